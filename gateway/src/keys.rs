//! API keys: who may ask. Only hashes are held.
//!
//! A file has a key a line: `NAME:` and the SHA-256 of the key in hex, or the key itself, which is hashed as it is read. Empty lines
//! and those that begin with `#` are left out. To make a line from a new key:
//!
//! ```text
//! key=$(openssl rand -hex 24); printf 'alice:%s\n' "$(printf %s "$key" | sha256sum | cut -d' ' -f1)" >> keys; echo "$key"
//! ```

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use tramontane_cluster::engine::Tenant;

use crate::error::ApiError;

/// Most keys of a file.
pub const MAX_KEYS: usize = 10_000;
/// Largest file, in bytes.
pub const MAX_FILE_BYTES: u64 = 4 << 20;
/// Shortest key: one that is shorter could be guessed.
const MIN_KEY: usize = 16;
/// Longest key that is looked at.
const MAX_KEY: usize = 512;
/// Longest name.
const MAX_NAME: usize = 64;

type Hash = [u8; 32];

/// The keys that are known.
#[derive(Clone)]
pub struct Keys(Vec<(Hash, Arc<str>)>);

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
        let mut keys: Vec<(Hash, Arc<str>)> = Vec::new();
        for (index, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why| KeysError::Line { line: index + 1, why };
            let (name, secret) = line.split_once(':').ok_or(wrong("NAME:KEY or NAME:SHA256 is wanted"))?;
            let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(named) {
                return Err(wrong("a name has 1 to 64 of the letters a-z, A-Z, 0-9, _, - and ."));
            }
            let hash = match of_hex(secret) {
                Some(hash) => hash,
                None if !(MIN_KEY..=MAX_KEY).contains(&secret.len())
                    || !secret.bytes().all(|b| b.is_ascii_graphic()) =>
                {
                    return Err(wrong("a key has 16 to 512 printable letters and no spaces"));
                }
                None => Sha256::digest(secret).into(),
            };
            if keys.iter().any(|(known, _)| *known == hash) {
                return Err(wrong("this key stands in the file already"));
            }
            keys.push((hash, name.into()));
            if keys.len() > MAX_KEYS {
                break;
            }
        }
        match keys.len() {
            1..=MAX_KEYS => Ok(Self(keys)),
            found => Err(KeysError::Count { found }),
        }
    }

    /// Who sends `headers`.
    ///
    /// # Errors
    /// [`ApiError::MissingKey`], [`ApiError::InvalidKey`].
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Tenant, ApiError> {
        let mut sent = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (sent.next(), sent.next()) else { return Err(ApiError::MissingKey) };
        let value = value.to_str().map_err(|_| ApiError::InvalidKey)?;
        let (scheme, key) = value.split_once(' ').ok_or(ApiError::InvalidKey)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(ApiError::InvalidKey);
        }
        self.tenant(key.trim()).ok_or(ApiError::InvalidKey)
    }

    /// Whose key it is. Takes the same time whatever the key: all hashes are compared, and each to its end.
    pub fn tenant(&self, key: &str) -> Option<Tenant> {
        if key.len() > MAX_KEY {
            return None;
        }
        let hash: Hash = Sha256::digest(key).into();
        let mut found = None;
        for (known, name) in &self.0 {
            let differences = known.iter().zip(&hash).fold(0, |all, (a, b)| all | (a ^ b));
            // Kept from the optimiser, which could otherwise stop at the first difference.
            if std::hint::black_box(differences) == 0 {
                found = Some(name);
            }
        }
        found.map(|name| Tenant(Some(name.clone())))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

/// The hash that 64 hex digits are.
fn of_hex(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "sk-0123456789abcdef";

    fn keys() -> Keys {
        // printf %s sk-of-bob-0123456789 | sha256sum
        let hashed: String = Sha256::digest("sk-of-bob-0123456789").iter().map(|byte| format!("{byte:02x}")).collect();
        Keys::parse(&format!("# keys\n\nalice:{KEY}\nbob:{hashed}\n")).unwrap()
    }

    fn ask(value: &str) -> Result<Option<String>, ApiError> {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
        keys().authenticate(&headers).map(|tenant| tenant.0.map(|name| name.to_string()))
    }

    #[test]
    fn a_key_says_who_asks() {
        assert_eq!(ask(&format!("Bearer {KEY}")), Ok(Some("alice".to_owned())));
        assert_eq!(ask("bearer sk-of-bob-0123456789"), Ok(Some("bob".to_owned())));
    }

    #[test]
    fn other_keys_are_refused_and_case_matters() {
        for bad in [
            "Bearer x",
            "Bearer ",
            "Basic abc",
            "x",
            &format!("Bearer {}", KEY.to_uppercase()),
            &format!("Bearer {}", "k".repeat(600)),
        ] {
            assert_eq!(ask(bad), Err(ApiError::InvalidKey), "{bad}");
        }
        assert_eq!(
            keys().authenticate(&HeaderMap::new()).map_err(|e| e.to_string()).err(),
            Some(ApiError::MissingKey.to_string())
        );
    }

    #[test]
    fn the_hash_of_a_key_is_no_key() {
        let hash: String = Sha256::digest(KEY).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(ask(&format!("Bearer {hash}")), Err(ApiError::InvalidKey));
    }

    #[test]
    fn bad_files_name_the_line_and_never_the_key() {
        for (text, error) in [
            ("", KeysError::Count { found: 0 }),
            ("alice", KeysError::Line { line: 1, why: "NAME:KEY or NAME:SHA256 is wanted" }),
            (
                "\na b:sk-0123456789abcdef",
                KeysError::Line { line: 2, why: "a name has 1 to 64 of the letters a-z, A-Z, 0-9, _, - and ." },
            ),
            ("a:short", KeysError::Line { line: 1, why: "a key has 16 to 512 printable letters and no spaces" }),
            (
                "a:sk-0123456789abcdef\nb:sk-0123456789abcdef",
                KeysError::Line { line: 2, why: "this key stands in the file already" },
            ),
        ] {
            assert_eq!(Keys::parse(text).err(), Some(error), "{text}");
        }
        assert_eq!(format!("{:?}", keys()), "2 keys");
    }
}
