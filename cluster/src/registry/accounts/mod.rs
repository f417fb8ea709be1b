//! Accounts: which API keys there are, what each may, and what each has used. Operators make keys; front doors watch them, and add what
//! was used.
//!
//! Beside the registry, as the directory is: neither a profile nor a leader is needed to look after keys.

mod day;
mod embedded;
mod key;
mod usage;

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::watch;

use super::RegistryError;

pub use day::{Day, Month, NoDate, utc_now};
pub use embedded::EmbeddedAccounts;
pub use key::{KeyHash, KeyLimits, KeyRecord, KeyRecords, MAX_KEYS, NAME_WANTED, NoHash, is_key_name};
pub(super) use key::{admit, taken};
pub use usage::{MAX_ROWS, Usage, UsageEntry, UsageId, UsageQuery, UsageRecord};

/// The keys of a cluster, and what they have used.
pub trait Accounts: Send + Sync {
    /// Makes a key known. Returns when those who watch here see it.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for a name that is none, or taken, or one key too many; [`RegistryError::Lost`].
    fn create(&self, record: KeyRecord) -> BoxFuture<'_, Result<(), RegistryError>>;

    /// Forgets the key `name`, and keeps what it has used; says whether there was one. Returns when those who watch here see it.
    ///
    /// # Errors
    /// [`RegistryError::Lost`].
    fn revoke(&self, name: &str) -> BoxFuture<'_, Result<bool, RegistryError>>;

    /// The keys as they are, which counts as not seen yet, and as they change; the last ones for ever when the registry is lost.
    fn watch(&self) -> watch::Receiver<Arc<KeyRecords>>;

    /// Adds `entry` to its record, if it is not in it yet: who has not heard what became of it adds it again.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] when the record is none, or one too many; [`RegistryError::Lost`].
    fn add(&self, entry: UsageEntry) -> BoxFuture<'_, Result<(), RegistryError>>;

    /// What was used, by key, day, then model.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] when that is more than [`MAX_ROWS`] records; [`RegistryError::Lost`].
    fn usage(&self, query: UsageQuery) -> BoxFuture<'_, Result<Vec<(UsageId, Usage)>, RegistryError>>;
}

/// What is said to who asks for too much.
pub(super) fn too_many_rows() -> RegistryError {
    let why = format!("more than {MAX_ROWS} records of a key, day and model; ask for fewer days");
    RegistryError::Refused { what: "usage".into(), why }
}
