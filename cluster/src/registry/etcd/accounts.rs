//! The accounts in etcd: a key's record each, which all front doors watch, and sums of usage, to which all of them add.

use std::sync::Arc;

use etcd_client::{Client, Compare, CompareOp, GetOptions, Txn, TxnOp};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::timeout;

use super::follow::{Follower, Seen};
use super::keys::{AccountKeys, decode, encode};
use super::options::{EtcdOptions, kv};
use super::{CALL_TIMEOUT, count, within};
use crate::registry::accounts::{
    Accounts, KeyRecord, KeyRecords, MAX_KEYS, MAX_ROWS, Usage, UsageEntry, UsageId, UsageQuery, UsageRecord, admit,
    taken, too_many_rows,
};
use crate::registry::{Health, RegistryError};

/// How often an entry is tried again that another one came before.
const TRIES: usize = 64;
/// Records of one page of usage.
const PAGE: i64 = 2_000;

/// A cluster's accounts in etcd.
pub struct EtcdAccounts {
    client: Client,
    keys: AccountKeys,
    records: watch::Receiver<Arc<KeyRecords>>,
}

impl EtcdAccounts {
    /// Connects. Must be called on a tokio runtime, which then carries the watch of keys.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] when etcd lets us not in; [`RegistryError::Lost`].
    pub async fn connect(options: &EtcdOptions) -> Result<Self, RegistryError> {
        let client = options.client().await?;
        let keys = AccountKeys::new(&options.cluster);
        let (views, records) = watch::channel(Arc::default());
        // What the directory beside it says of etcd's health, this would say too.
        let (health, _) = watch::channel(Health::Connected);
        let follower = Follower { client: client.clone(), views, health };
        let mut seen = SeenKeys { keys: keys.clone(), records: KeyRecords::new() };
        let revision = follower.list(&mut seen).await?;
        tokio::spawn(follower.follow(seen, revision));
        Ok(Self { client, keys, records })
    }

    /// Waits until the watch has come as far as what was written; not for ever, for it is written.
    async fn seen(&self, is_seen: impl FnMut(&Arc<KeyRecords>) -> bool) {
        _ = timeout(CALL_TIMEOUT, self.records.clone().wait_for(is_seen)).await;
    }

    async fn write(&self, record: KeyRecord) -> Result<(), RegistryError> {
        // Counted before it is written: keys that are made at the same moment may be a few too many.
        admit(&record, count(&self.client, &self.keys.all_keys()).await?)?;
        let key = self.keys.key(&record.name);
        let put = TxnOp::put(key.as_str(), encode("key", &record)?, None);
        let absent = Txn::new().when([Compare::create_revision(key, CompareOp::Equal, 0)]).and_then([put]);
        if !within(kv(&self.client).txn(absent)).await?.succeeded() {
            return Err(taken(&record.name));
        }
        self.seen(|seen| seen.get(&record.name).is_some_and(|seen| **seen == record)).await;
        Ok(())
    }

    async fn put(&self, entry: &UsageEntry) -> Result<(), RegistryError> {
        let key = self.keys.usage(&entry.id);
        for _ in 0..TRIES {
            let read = within(kv(&self.client).get(key.as_str(), None)).await?;
            let stored = read.kvs().first();
            let revision = stored.map_or(0, |kv| kv.mod_revision());
            let stored: Option<UsageRecord> = stored.map(|kv| decode(&key, kv.value())).transpose()?;
            let Some(next) = stored.unwrap_or_default().after(entry) else { return Ok(()) };
            let put = TxnOp::put(key.as_str(), encode("usage", &next)?, None);
            let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, revision);
            if within(kv(&self.client).txn(Txn::new().when([unchanged]).and_then([put]))).await?.succeeded() {
                return Ok(());
            }
        }
        Err(RegistryError::Lost { why: format!("others write {key} all the time") })
    }

    async fn rows(&self, query: &UsageQuery) -> Result<Vec<(UsageId, Usage)>, RegistryError> {
        let (from, to) = self.keys.usage_range(query);
        let (mut from, mut rows) = (from.into_bytes(), Vec::new());
        loop {
            let options = GetOptions::new().with_range(to.as_str()).with_limit(PAGE);
            let page = within(kv(&self.client).get(from, Some(options))).await?;
            for kv in page.kvs() {
                let id = self.keys.parse_usage(kv.key());
                let Some(id) = id.filter(|id| query.covers(id)) else { continue };
                match decode::<UsageRecord>(&self.keys.usage(&id), kv.value()) {
                    Ok(record) => rows.push((id, record.sum)),
                    Err(error) => tracing::error!(%error, "no record of usage; passed over"),
                }
            }
            if rows.len() > MAX_ROWS {
                return Err(too_many_rows());
            }
            match page.kvs().last() {
                Some(last) if page.more() => from = [last.key(), &[0]].concat(),
                _ => break,
            }
        }
        rows.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(rows)
    }
}

impl Accounts for EtcdAccounts {
    fn create(&self, record: KeyRecord) -> BoxFuture<'_, Result<(), RegistryError>> {
        self.write(record).boxed()
    }

    fn revoke(&self, name: &str) -> BoxFuture<'_, Result<bool, RegistryError>> {
        let name = name.to_owned();
        async move {
            let deleted = within(kv(&self.client).delete(self.keys.key(&name), None)).await?.deleted();
            self.seen(|seen| !seen.contains_key(name.as_str())).await;
            Ok(deleted > 0)
        }
        .boxed()
    }

    fn watch(&self) -> watch::Receiver<Arc<KeyRecords>> {
        let mut records = self.records.clone();
        records.mark_changed();
        records
    }

    fn add(&self, entry: UsageEntry) -> BoxFuture<'_, Result<(), RegistryError>> {
        async move { self.put(&entry).await }.boxed()
    }

    fn usage(&self, query: UsageQuery) -> BoxFuture<'_, Result<Vec<(UsageId, Usage)>, RegistryError>> {
        async move { self.rows(&query).await }.boxed()
    }
}

/// The keys so far.
struct SeenKeys {
    keys: AccountKeys,
    records: KeyRecords,
}

impl Seen for SeenKeys {
    type View = KeyRecords;

    fn range(&self) -> (String, String) {
        self.keys.watched()
    }

    fn list<'a>(&mut self, entries: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        self.records.clear();
        entries.for_each(|(key, value)| self.put(key, value));
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        let Some(name) = self.keys.parse_key(key) else { return };
        let key = self.keys.key(&name);
        match decode::<KeyRecord>(&key, value) {
            Ok(record) if record.name == name && record.check().is_ok() => {
                if self.records.contains_key(&name) || self.records.len() < MAX_KEYS {
                    self.records.insert(name, Arc::new(record));
                } else {
                    tracing::error!(key, "more than {MAX_KEYS} keys; passed over");
                }
            }
            // What is wrong with it is not said: whoever wrote it by hand may have written the key itself. What stood there is gone.
            _ => {
                self.records.remove(&name);
                tracing::error!(key, "no key's record; passed over");
            }
        }
    }

    fn delete(&mut self, key: &[u8]) {
        if let Some(name) = self.keys.parse_key(key) {
            self.records.remove(&name);
        }
    }

    fn view(&self) -> &KeyRecords {
        &self.records
    }

    fn health(&self) -> Health {
        Health::Connected
    }
}
