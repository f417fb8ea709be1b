//! A key's record: whose it is and what it may. Never the key itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::registry::RegistryError;

/// Keys of one cluster, at most.
pub const MAX_KEYS: usize = 10_000;
/// Longest name of a key.
const MAX_KEY_NAME: usize = 64;
/// Models that one key names, at most, and the longest of their names.
const MAX_MODELS: usize = 64;
const MAX_MODEL_NAME: usize = 256;

/// SHA-256 of a key. Written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash(pub [u8; 32]);

/// A text is no SHA-256 in hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("64 hex digits are wanted")]
pub struct NoHash;

/// What stands in the registry for a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Its name, unique in its cluster: what usage is counted under.
    pub name: Arc<str>,
    /// What the key is known by.
    pub sha256: KeyHash,
    /// What it may.
    #[serde(default)]
    pub limits: KeyLimits,
    /// When it was made, in seconds since 1970-01-01 UTC; 0 where nobody knows.
    #[serde(default)]
    pub created: u64,
}

/// What a key may; `None` and no models are no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyLimits {
    /// Requests a minute, at each front door.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpm: Option<NonZeroU32>,
    /// Tokens a minute, at each front door; the prompts' and the generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm: Option<NonZeroU32>,
    /// Tokens a month (UTC), at all front doors together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monthly_tokens: Option<NonZeroU64>,
    /// When it ends, in seconds since 1970-01-01 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// The models that it may ask.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub models: BTreeSet<String>,
}

/// Keys by name.
pub type KeyRecords = BTreeMap<Arc<str>, Arc<KeyRecord>>;

impl KeyRecord {
    /// Whether a registry may hold it.
    ///
    /// # Errors
    /// [`RegistryError::Refused`].
    pub fn check(&self) -> Result<(), RegistryError> {
        let models = &self.limits.models;
        let sound = |model: &String| (1..=MAX_MODEL_NAME).contains(&model.len());
        if !is_key_name(&self.name) {
            return Err(refused(&self.name, NAME_WANTED));
        }
        if models.len() > MAX_MODELS || !models.iter().all(sound) {
            return Err(refused(&self.name, "it may name 64 models, each of 1 to 256 bytes"));
        }
        Ok(())
    }
}

impl KeyLimits {
    /// Whether the key may ask `model`.
    pub fn allows(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.contains(model)
    }
}

/// What a key's name must be.
pub const NAME_WANTED: &str = "a name has 1 to 64 of the letters a-z, A-Z, 0-9, _, - and .";

/// Whether `name` is one.
pub fn is_key_name(name: &str) -> bool {
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=MAX_KEY_NAME).contains(&name.len()) && name.chars().all(named)
}

pub(super) fn refused(name: &str, why: impl Into<String>) -> RegistryError {
    RegistryError::Refused { what: format!("key {name}"), why: why.into() }
}

/// Whether another key, of this `name`, may come to `keys` of them.
pub(in crate::registry) fn admit(record: &KeyRecord, keys: usize) -> Result<(), RegistryError> {
    record.check()?;
    if keys >= MAX_KEYS {
        return Err(refused(&record.name, format!("the cluster has {MAX_KEYS} keys already")));
    }
    Ok(())
}

/// What is said where the name is another key's.
pub(in crate::registry) fn taken(name: &str) -> RegistryError {
    refused(name, "there is a key of this name; revoke it first, or choose another")
}

impl fmt::Debug for KeyHash {
    /// Without it: a log is no place to collect them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash")
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for KeyHash {
    type Err = NoHash;

    fn from_str(text: &str) -> Result<Self, NoHash> {
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(NoHash);
        }
        let mut hash = [0; 32];
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| NoHash)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| NoHash)?;
        }
        Ok(Self(hash))
    }
}

impl TryFrom<String> for KeyHash {
    type Error = NoHash;

    fn try_from(text: String) -> Result<Self, NoHash> {
        text.parse()
    }
}

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> Self {
        hash.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_without_limits_is_short_and_a_limit_of_nothing_is_none() {
        let text = format!(r#"{{"name":"a","sha256":"{}","limits":{{}},"created":7}}"#, "0f".repeat(32));
        let record: KeyRecord = serde_json::from_str(&text).expect("a record");
        assert_eq!((record.sha256, &record.limits), (KeyHash([15; 32]), &KeyLimits::default()));
        assert_eq!(serde_json::to_string(&record).expect("JSON"), text);
        let zero = text.replace("\"limits\":{}", "\"limits\":{\"rpm\":0}");
        assert!(serde_json::from_str::<KeyRecord>(&zero).is_err(), "{zero}");
    }

    #[test]
    fn hashes_are_hex_and_are_not_shown_by_accident() {
        let hash: KeyHash = "ABcd".repeat(16).parse().expect("a hash");
        assert_eq!((hash.to_string(), format!("{hash:?}")), ("abcd".repeat(16), "KeyHash".to_owned()));
        for wrong in ["", "0f", &"0".repeat(63), &"0g".repeat(32), &"é".repeat(32)] {
            assert_eq!(wrong.parse::<KeyHash>(), Err(NoHash));
        }
    }

    #[test]
    fn names_and_models_have_bounds() {
        let record = |name: &str, models: &[&str]| KeyRecord {
            name: name.into(),
            sha256: KeyHash([0; 32]),
            limits: KeyLimits { models: models.iter().map(|&model| model.to_owned()).collect(), ..Default::default() },
            created: 0,
        };
        assert_eq!(record("a-B_3.c", &["org/m"]).check(), Ok(()));
        for wrong in ["", "a/b", "ä", " a", &"x".repeat(65)] {
            assert!(record(wrong, &[]).check().is_err(), "{wrong}");
        }
        assert!(record("a", &[""]).check().is_err());
        assert!(record("a", &["m"]).limits.allows("m") && !record("a", &["m"]).limits.allows("n"));
    }
}
