//! The directory in etcd: one key an engine, under its coordinator's lease.

use std::sync::Arc;

use etcd_client::Client;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::follow::{Follower, Seen};
use super::kept::{Kept, Record};
use super::keys::{EngineKeys, decode, encode};
use super::options::EtcdOptions;
use super::{count, farewell};
use crate::registry::directory::{
    Announcement, Directory, EngineId, EngineRecord, EngineWatch, Engines, MAX_ENGINES, admit, renew,
};
use crate::registry::{Health, RegistryError};

/// A cluster's directory in etcd.
pub struct EtcdDirectory {
    client: Client,
    keys: EngineKeys,
    ttl_seconds: i64,
    engines: watch::Receiver<Arc<Engines>>,
    health: watch::Receiver<Health>,
    /// Those that keep records, and give them back when they are dropped.
    tasks: TaskTracker,
}

impl EtcdDirectory {
    /// Connects. Must be called on a tokio runtime, which then carries the directory's streams.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] when etcd lets us not in; [`RegistryError::Lost`].
    pub async fn connect(options: &EtcdOptions) -> Result<Self, RegistryError> {
        let client = options.client().await?;
        let keys = EngineKeys::new(&options.cluster);
        let (views, engines) = watch::channel(Arc::default());
        let (healths, health) = watch::channel(Health::Connected);
        let follower = Follower { client: client.clone(), views, health: healths };
        let mut seen = SeenEngines { keys: keys.clone(), engines: Engines::new() };
        // Before anybody acts on what is there, it is known.
        let revision = follower.list(&mut seen).await?;
        tokio::spawn(follower.follow(seen, revision));
        let (ttl_seconds, tasks) = (options.ttl_seconds(), TaskTracker::new());
        Ok(Self { client, keys, ttl_seconds, engines, health, tasks })
    }
}

impl Directory for EtcdDirectory {
    fn announce(&self, record: EngineRecord) -> BoxFuture<'_, Result<Box<dyn Announcement>, RegistryError>> {
        async move {
            // Counted before it is written: engines that come at the same moment may be a few too many.
            admit(count(&self.client, self.keys.all()).await?, &record)?;
            let engine = record.id.clone();
            let taken = RegistryError::EngineTaken { engine: engine.clone() };
            let record = Record { key: self.keys.engine(&engine), value: value(&record)?, taken };
            let kept = Kept::begin(&self.client, self.ttl_seconds, record, &self.tasks).await?;
            Ok(Box::new(Announced { engine, kept }) as Box<dyn Announcement>)
        }
        .boxed()
    }

    fn watch(&self) -> EngineWatch {
        EngineWatch::new(self.engines.clone())
    }

    fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    fn farewell(&self) -> BoxFuture<'_, ()> {
        farewell(&self.tasks).boxed()
    }
}

struct Announced {
    engine: EngineId,
    kept: Kept,
}

impl Announcement for Announced {
    fn update(&self, record: EngineRecord) -> BoxFuture<'_, Result<(), RegistryError>> {
        async move {
            renew(&self.engine, &record)?;
            self.kept.update(value(&record)?).await
        }
        .boxed()
    }

    fn lost(&self) -> BoxFuture<'_, ()> {
        self.kept.lost().boxed()
    }
}

fn value(record: &EngineRecord) -> Result<Vec<u8>, RegistryError> {
    encode(&format!("engine {}", record.id), record)
}

/// The engines so far.
struct SeenEngines {
    keys: EngineKeys,
    engines: Engines,
}

impl Seen for SeenEngines {
    type View = Engines;

    fn range(&self) -> (String, String) {
        self.keys.watched()
    }

    fn list<'a>(&mut self, entries: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        self.engines.clear();
        entries.for_each(|(key, value)| self.put(key, value));
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        let Some(id) = self.keys.parse(key) else { return };
        let name = self.keys.engine(&id);
        match decode::<EngineRecord>(&name, value) {
            Ok(record) if record.id != id => tracing::error!(key = name, "another engine's record; passed over"),
            Ok(record) if self.engines.contains_key(&id) || self.engines.len() < MAX_ENGINES => {
                self.engines.insert(id, record);
            }
            Ok(_) => tracing::error!(key = name, "more than {MAX_ENGINES} engines; passed over"),
            Err(error) => tracing::error!(%error, "no engine's record; passed over"),
        }
    }

    fn delete(&mut self, key: &[u8]) {
        if let Some(id) = self.keys.parse(key) {
            self.engines.remove(&id);
        }
    }

    fn view(&self) -> &Engines {
        &self.engines
    }

    fn health(&self) -> Health {
        Health::Connected
    }
}
