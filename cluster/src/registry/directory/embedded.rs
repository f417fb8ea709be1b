//! The directory of one process: engines in memory.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, pending, ready};
use tokio::sync::watch;

use super::{Announcement, Directory, EngineId, EngineRecord, EngineWatch, Engines, admit, renew};
use crate::registry::{Health, RegistryError};

/// A directory that lives as long as it, or a place in it, is held.
#[derive(Debug, Default)]
pub struct EmbeddedDirectory {
    engines: watch::Sender<Arc<Engines>>,
}

impl Directory for EmbeddedDirectory {
    fn announce(&self, record: EngineRecord) -> BoxFuture<'_, Result<Box<dyn Announcement>, RegistryError>> {
        let engine = record.id.clone();
        let mut outcome = Ok(());
        self.engines.send_if_modified(|engines| {
            outcome = admit(engines.len(), &record);
            if outcome.is_ok() && engines.contains_key(&record.id) {
                outcome = Err(RegistryError::EngineTaken { engine: record.id.clone() });
            }
            if outcome.is_ok() {
                Arc::make_mut(engines).insert(record.id.clone(), record);
            }
            outcome.is_ok()
        });
        let place = || Box::new(Place { engines: self.engines.clone(), engine }) as Box<dyn Announcement>;
        ready(outcome.map(|()| place())).boxed()
    }

    fn watch(&self) -> EngineWatch {
        EngineWatch::new(self.engines.subscribe())
    }

    fn health(&self) -> Health {
        Health::Connected
    }
}

struct Place {
    engines: watch::Sender<Arc<Engines>>,
    engine: EngineId,
}

impl Announcement for Place {
    fn update(&self, record: EngineRecord) -> BoxFuture<'_, Result<(), RegistryError>> {
        let renewed = renew(&self.engine, &record);
        if renewed.is_ok() {
            self.engines.send_modify(|engines| {
                Arc::make_mut(engines).insert(record.id.clone(), record);
            });
        }
        ready(renewed).boxed()
    }

    /// Never: the place keeps its directory.
    fn lost(&self) -> BoxFuture<'_, ()> {
        pending().boxed()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.engines.send_modify(|engines| {
            Arc::make_mut(engines).remove(&self.engine);
        });
    }
}
