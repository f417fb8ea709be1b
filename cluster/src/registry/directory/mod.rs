//! The directory: which engines there are, and where. Coordinators announce theirs under leases; front doors watch.
//!
//! Beside the registry, not in it: a front door knows neither the profile that a registry is opened with nor anything of
//! nodes, and engines come and go without a leader.

mod embedded;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tramontane_router::NumericProfile;

use super::{Health, MAX_NAME, RegistryError};
use crate::engine::EngineInfo;

pub use embedded::EmbeddedDirectory;

/// Engines in one cluster, at most.
pub const MAX_ENGINES: usize = 256;

/// Which engines there are.
pub trait Directory: Send + Sync {
    /// Announces an engine, for as long as what comes back is held.
    ///
    /// # Errors
    /// [`RegistryError::EngineTaken`]; [`RegistryError::Refused`] when the name is none; [`RegistryError::Lost`].
    fn announce(&self, record: EngineRecord) -> BoxFuture<'_, Result<Box<dyn Announcement>, RegistryError>>;

    /// The engines as they are, and how that changes.
    fn watch(&self) -> EngineWatch;

    /// How it stands with the directory right now.
    fn health(&self) -> Health;

    /// Waits, for a bounded time, until the directory knows which places were dropped. For a process that is about to end.
    fn farewell(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

/// An engine's place in the directory; it leaves when this is dropped.
pub trait Announcement: Send + Sync {
    /// Publishes the record anew. Returns when the directory has it.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for another name than was announced (the record before stays); [`RegistryError::Lost`].
    fn update(&self, record: EngineRecord) -> BoxFuture<'_, Result<(), RegistryError>>;

    /// Completes when the place is lost although it is held: another has taken the name.
    fn lost(&self) -> BoxFuture<'_, ()>;
}

/// An engine's name, unique in its cluster: that of its coordinator. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EngineId(Arc<str>);

impl EngineId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: AsRef<str>> From<T> for EngineId {
    fn from(name: T) -> Self {
        Self(Arc::from(name.as_ref()))
    }
}

impl fmt::Display for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a coordinator says of its engine; lives under its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineRecord {
    /// Its name.
    pub id: EngineId,
    /// Where it is served to front doors (`host:port`).
    pub addr: String,
    /// What it serves.
    pub info: EngineInfo,
    /// What decides the bits of its experts' answers, for who wants to know which weights these are.
    pub profile: NumericProfile,
    /// Whether it is leaving: it finishes what it has, and takes no more.
    #[serde(default)]
    pub draining: bool,
}

/// The engines that are announced, by name.
pub type Engines = BTreeMap<EngineId, EngineRecord>;

/// The engines as they come and go. A slow watcher sees the newest state, not all between. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EngineWatch(watch::Receiver<Arc<Engines>>);

impl EngineWatch {
    /// Of what `receiver` receives; what is there counts as not seen yet.
    pub(super) fn new(mut receiver: watch::Receiver<Arc<Engines>>) -> Self {
        receiver.mark_changed();
        Self(receiver)
    }

    /// The newest state; the last one for ever when the directory is lost.
    pub fn current(&self) -> Arc<Engines> {
        self.0.borrow().clone()
    }

    /// Waits for a state not yet seen by this watch, and returns it.
    ///
    /// # Errors
    /// [`RegistryError::Lost`].
    pub async fn changed(&mut self) -> Result<Arc<Engines>, RegistryError> {
        self.0.changed().await.map_err(|_| Self::closed())?;
        Ok(self.0.borrow_and_update().clone())
    }

    /// Waits until the engines, as they are or will be, satisfy `condition`.
    ///
    /// # Errors
    /// [`RegistryError::Lost`].
    pub async fn until(&mut self, mut condition: impl FnMut(&Engines) -> bool) -> Result<Arc<Engines>, RegistryError> {
        let engines = self.0.wait_for(|engines| condition(engines)).await.map_err(|_| Self::closed())?;
        Ok(engines.clone())
    }

    fn closed() -> RegistryError {
        RegistryError::Lost { why: "no more is heard of engines".into() }
    }
}

/// Whether `record` may be announced where there are `engines` engines.
pub(super) fn admit(engines: usize, record: &EngineRecord) -> Result<(), RegistryError> {
    let name = record.id.as_str();
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(refused(&record.id, format!("its name has {} bytes, not 1 to {MAX_NAME}", name.len())));
    }
    if engines >= MAX_ENGINES {
        return Err(refused(&record.id, format!("the cluster has {MAX_ENGINES} engines already")));
    }
    Ok(())
}

/// Whether `record` may stand for `engine`, which is announced.
pub(super) fn renew(engine: &EngineId, record: &EngineRecord) -> Result<(), RegistryError> {
    if record.id == *engine { Ok(()) } else { Err(refused(engine, format!("it cannot become {}", record.id))) }
}

fn refused(engine: &EngineId, why: String) -> RegistryError {
    RegistryError::Refused { what: format!("engine {engine}"), why }
}
