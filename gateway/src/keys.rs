//! API keys: who may ask. Only hashes are held.

mod file;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use tramontane_cluster::registry::accounts::{KeyRecord, KeyRecords};

pub use file::{KeysError, MAX_FILE_BYTES};

use crate::error::ApiError;

/// Longest key that is looked at.
const MAX_KEY: usize = 512;

/// The keys that are known.
#[derive(Clone, Default)]
pub struct Keys(Vec<Arc<KeyRecord>>);

impl Keys {
    /// These and those of a registry. A hash that stands in both is these', with its limits.
    pub(crate) fn with(&self, records: &KeyRecords) -> Self {
        let is_new = |record: &&Arc<KeyRecord>| self.0.iter().all(|own| own.sha256 != record.sha256);
        Self(self.0.iter().chain(records.values().filter(is_new)).cloned().collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<KeyRecord>> {
        self.0.iter()
    }

    /// Their names.
    pub(crate) fn names(&self) -> BTreeSet<&str> {
        self.0.iter().map(|key| &*key.name).collect()
    }

    /// Who sends `headers`.
    ///
    /// # Errors
    /// [`ApiError::MissingKey`], [`ApiError::InvalidKey`].
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<&Arc<KeyRecord>, ApiError> {
        let mut sent = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (sent.next(), sent.next()) else { return Err(ApiError::MissingKey) };
        let value = value.to_str().map_err(|_| ApiError::InvalidKey)?;
        let (scheme, key) = value.split_once(' ').ok_or(ApiError::InvalidKey)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(ApiError::InvalidKey);
        }
        self.find(key.trim()).ok_or(ApiError::InvalidKey)
    }

    /// Whose key it is. Takes the same time whatever the key: all hashes are compared, and each to its end.
    fn find(&self, key: &str) -> Option<&Arc<KeyRecord>> {
        if key.len() > MAX_KEY {
            return None;
        }
        let hash: [u8; 32] = Sha256::digest(key).into();
        let mut found = None;
        for record in &self.0 {
            let differences = record.sha256.0.iter().zip(&hash).fold(0, |all, (a, b)| all | (a ^ b));
            // Kept from the optimiser, which could otherwise stop at the first difference.
            if std::hint::black_box(differences) == 0 {
                found = Some(record);
            }
        }
        found
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use tramontane_cluster::registry::accounts::{KeyHash, KeyLimits};

    use super::*;

    const KEY: &str = "sk-0123456789abcdef";

    fn keys() -> Keys {
        // printf %s sk-of-bob-0123456789 | sha256sum
        let hashed: String = Sha256::digest("sk-of-bob-0123456789").iter().map(|byte| format!("{byte:02x}")).collect();
        Keys::parse(&format!("# keys\n\nalice:{KEY}\nbob:{hashed}\n")).unwrap()
    }

    fn ask(value: &str) -> Result<String, ApiError> {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
        keys().authenticate(&headers).map(|record| record.name.to_string())
    }

    #[test]
    fn a_key_says_who_asks() {
        assert_eq!(ask(&format!("Bearer {KEY}")), Ok("alice".to_owned()));
        assert_eq!(ask("bearer sk-of-bob-0123456789"), Ok("bob".to_owned()));
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
        assert_eq!(keys().authenticate(&HeaderMap::new()).err(), Some(ApiError::MissingKey));
    }

    #[test]
    fn the_hash_of_a_key_is_no_key() {
        let hash: String = Sha256::digest(KEY).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(ask(&format!("Bearer {hash}")), Err(ApiError::InvalidKey));
    }

    #[test]
    fn a_registrys_keys_come_beside_those_of_the_file() {
        let record = |name: &str, key: &str| {
            let (sha256, limits) = (KeyHash(Sha256::digest(key).into()), KeyLimits::default());
            (Arc::from(name), Arc::new(KeyRecord { name: name.into(), sha256, limits, created: 1 }))
        };
        let records = [record("carol", "sk-of-carol"), record("mallory", KEY)].into();
        let both = keys().with(&records);
        assert_eq!(both.names().into_iter().collect::<Vec<_>>(), ["alice", "bob", "carol"]);
        assert_eq!(both.find("sk-of-carol").map(|record| &*record.name), Some("carol"));
        assert_eq!(format!("{both:?}"), "3 keys");
    }
}
