//! The accounts of one process: keys and usage in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use tokio::sync::watch;

use super::{
    Accounts, KeyRecord, KeyRecords, MAX_ROWS, Usage, UsageEntry, UsageId, UsageQuery, UsageRecord, admit, taken,
    too_many_rows,
};
use crate::registry::RegistryError;

/// Records that are kept, at most: those of ten thousand keys for a hundred days.
const MAX_RECORDS: usize = 1_000_000;

/// Accounts that live as long as this is held.
#[derive(Debug, Default)]
pub struct EmbeddedAccounts {
    keys: watch::Sender<Arc<KeyRecords>>,
    usage: Mutex<BTreeMap<UsageId, UsageRecord>>,
}

impl EmbeddedAccounts {
    fn put(&self, entry: &UsageEntry) -> Result<(), RegistryError> {
        let mut records = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() >= MAX_RECORDS && !records.contains_key(&entry.id) {
            let why = format!("{MAX_RECORDS} records are there already");
            return Err(RegistryError::Refused { what: "usage".into(), why });
        }
        let record = records.entry(entry.id.clone()).or_default();
        if let Some(next) = record.clone().after(entry) {
            *record = next;
        }
        Ok(())
    }

    fn rows(&self, query: &UsageQuery) -> Result<Vec<(UsageId, Usage)>, RegistryError> {
        let records = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = records.iter().filter(|(id, _)| query.covers(id));
        let rows: Vec<_> = wanted.map(|(id, record)| (id.clone(), record.sum)).take(MAX_ROWS + 1).collect();
        if rows.len() > MAX_ROWS { Err(too_many_rows()) } else { Ok(rows) }
    }
}

impl Accounts for EmbeddedAccounts {
    fn create(&self, record: KeyRecord) -> BoxFuture<'_, Result<(), RegistryError>> {
        let mut outcome = Ok(());
        self.keys.send_if_modified(|keys| {
            outcome = admit(&record, keys.len());
            if outcome.is_ok() && keys.contains_key(&record.name) {
                outcome = Err(taken(&record.name));
            }
            if outcome.is_ok() {
                Arc::make_mut(keys).insert(record.name.clone(), Arc::new(record));
            }
            outcome.is_ok()
        });
        ready(outcome).boxed()
    }

    fn revoke(&self, name: &str) -> BoxFuture<'_, Result<bool, RegistryError>> {
        let there = self.keys.send_if_modified(|keys| {
            let there = keys.contains_key(name);
            if there {
                Arc::make_mut(keys).remove(name);
            }
            there
        });
        ready(Ok(there)).boxed()
    }

    fn watch(&self) -> watch::Receiver<Arc<KeyRecords>> {
        let mut keys = self.keys.subscribe();
        keys.mark_changed();
        keys
    }

    fn add(&self, entry: UsageEntry) -> BoxFuture<'_, Result<(), RegistryError>> {
        ready(self.put(&entry)).boxed()
    }

    fn usage(&self, query: UsageQuery) -> BoxFuture<'_, Result<Vec<(UsageId, Usage)>, RegistryError>> {
        ready(self.rows(&query)).boxed()
    }
}
