//! A file of keys. It has a key a line: `NAME:` and the SHA-256 of the key in hex, or the key itself, which is hashed as it is read; and
//! behind it, apart by spaces, what the key may:
//!
//! ```text
//! alice:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae rpm=60 tpm=10000 monthly-tokens=5000000 expires=2027-01-01 models=breeze
//! ```
//!
//! Empty lines and those that begin with `#` are left out. To make a line from a new key:
//!
//! ```text
//! key=$(openssl rand -hex 24); printf 'alice:%s\n' "$(printf %s "$key" | sha256sum | cut -d' ' -f1)" >> keys; echo "$key"
//! ```

use std::sync::Arc;

use sha2::{Digest, Sha256};
use tramontane_cluster::registry::accounts::{Day, KeyHash, KeyLimits, KeyRecord, MAX_KEYS, NAME_WANTED, is_key_name};

use super::{Keys, MAX_KEY};

/// Largest file, in bytes.
pub const MAX_FILE_BYTES: u64 = 4 << 20;
/// Shortest key: one that is shorter could be guessed.
const MIN_KEY: usize = 16;

/// Why a file of keys cannot be used. Never quotes a key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// A line is not as it should be.
    #[error("line {line}: {why}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// There is no key in it, or too many.
    #[error("{found} keys; 1 to {MAX_KEYS} are wanted")]
    Count {
        /// Keys found.
        found: usize,
    },
}

impl Keys {
    /// Reads a file's text.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let mut keys: Vec<Arc<KeyRecord>> = Vec::new();
        for (index, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why| KeysError::Line { line: index + 1, why };
            let record = record(line).map_err(wrong)?;
            if keys.iter().any(|known| known.sha256 == record.sha256) {
                return Err(wrong("this key stands in the file already"));
            }
            keys.push(Arc::new(record));
            if keys.len() > MAX_KEYS {
                break;
            }
        }
        match keys.len() {
            1..=MAX_KEYS => Ok(Self(keys)),
            found => Err(KeysError::Count { found }),
        }
    }
}

fn record(line: &str) -> Result<KeyRecord, &'static str> {
    let (name, rest) = line.split_once(':').ok_or("NAME:KEY or NAME:SHA256 is wanted")?;
    if !is_key_name(name) {
        return Err(NAME_WANTED);
    }
    let mut words = rest.split_ascii_whitespace();
    let secret = words.next().unwrap_or_default();
    let sha256 = match secret.parse() {
        Ok(hash) => hash,
        Err(_) if !(MIN_KEY..=MAX_KEY).contains(&secret.len()) || !secret.bytes().all(|b| b.is_ascii_graphic()) => {
            return Err("a key has 16 to 512 printable letters and no spaces");
        }
        Err(_) => KeyHash(Sha256::digest(secret).into()),
    };
    let mut limits = KeyLimits::default();
    words.try_for_each(|word| limit(&mut limits, word))?;
    let record = KeyRecord { name: name.into(), sha256, limits, created: 0 };
    record.check().map_err(|_| "a key may name 64 models, each of 1 to 256 bytes")?;
    Ok(record)
}

/// Takes one word of a line.
fn limit(limits: &mut KeyLimits, word: &str) -> Result<(), &'static str> {
    const WANTED: &str =
        "behind a key, rpm=N, tpm=N, monthly-tokens=N, expires=YYYY-MM-DD and models=A,B are known, each once";
    const NUMBER: &str = "a limit is a number above 0, below 2^32 a minute and 2^64 a month";
    let (name, value) = word.split_once('=').ok_or(WANTED)?;
    match name {
        "rpm" if limits.rpm.is_none() => limits.rpm = Some(value.parse().map_err(|_| NUMBER)?),
        "tpm" if limits.tpm.is_none() => limits.tpm = Some(value.parse().map_err(|_| NUMBER)?),
        "monthly-tokens" if limits.monthly_tokens.is_none() => {
            limits.monthly_tokens = Some(value.parse().map_err(|_| NUMBER)?);
        }
        "expires" if limits.expires.is_none() => {
            let day: Day = value.parse().map_err(|_| "expires= wants a day such as 2027-01-31")?;
            limits.expires = Some(day.start());
        }
        "models" if limits.models.is_empty() => limits.models = value.split(',').map(str::to_owned).collect(),
        _ => return Err(WANTED),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_files_name_the_line_and_never_the_key() {
        for (text, error) in [
            ("", KeysError::Count { found: 0 }),
            ("alice", KeysError::Line { line: 1, why: "NAME:KEY or NAME:SHA256 is wanted" }),
            ("\na b:sk-0123456789abcdef", KeysError::Line { line: 2, why: NAME_WANTED }),
            ("a:short", KeysError::Line { line: 1, why: "a key has 16 to 512 printable letters and no spaces" }),
            (
                "a:sk-0123456789abcdef\nb:sk-0123456789abcdef",
                KeysError::Line { line: 2, why: "this key stands in the file already" },
            ),
        ] {
            assert_eq!(Keys::parse(text).err(), Some(error), "{text}");
        }
    }

    #[test]
    fn a_line_may_say_what_its_key_may() {
        let text = "a:sk-0123456789abcdef rpm=60  tpm=10000\tmonthly-tokens=5000000 expires=2027-01-01 models=m,org/n\nb:sk-of-bob-0123456789";
        let Keys(keys) = Keys::parse(text).expect("a file");
        let KeyLimits { rpm, tpm, monthly_tokens, expires, models } = &keys[0].limits;
        assert_eq!((rpm.map(u32::from), tpm.map(u32::from)), (Some(60), Some(10_000)));
        assert_eq!((monthly_tokens.map(u64::from), *expires), (Some(5_000_000), Some(1_798_761_600)));
        assert_eq!(models.iter().collect::<Vec<_>>(), ["m", "org/n"]);
        assert_eq!(keys[1].limits, KeyLimits::default());
    }

    #[test]
    fn limits_that_are_none_are_refused() {
        for bad in [
            "rpm",
            "rpm=0",
            "rpm=-1",
            "rpm=1 rpm=2",
            "tpm=4294967296",
            "monthly-tokens=1e6",
            "expires=soon",
            "models=",
            "models=a,,b",
            "frobnicate=1",
            "sk-another-word-that-could-be-a-key",
        ] {
            let error = Keys::parse(&format!("a:sk-0123456789abcdef {bad}")).expect_err(bad);
            assert!(matches!(error, KeysError::Line { line: 1, .. }) && !error.to_string().contains("sk-"), "{error}");
        }
    }
}
