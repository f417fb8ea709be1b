//! Many engines as one: a request goes to one of them, and when that one is gone another takes it up where it stopped, from the
//! prompt, the tokens so far and the seed. Equal fingerprints mean equal bits, so whoever reads the events notices nothing.
//!
//! [`choose`] says which engine, [`resume`] what is left to ask for; both are pure. [`carry`] acts, a task a request. [`Members`]
//! are the engines that are there, and [`follow`] makes them of a directory.

mod carry;
mod choose;
mod follow;
mod members;
mod resume;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tramontane_cluster::engine::{
    Engine, EngineError, EngineInfo, EngineStatus, EventStream, Phase, ValidRequest, event_channel,
};

pub use follow::follow;
pub use members::{Differs, Members, Membership};

use carry::Carrier;

/// Choices on their way through one front door, at most; what comes over it is answered `Overloaded`.
const MAX_CHOICES: usize = 8192;
/// How long whoever comes over it should wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a request waits for an engine when there is none to take it (up). One with an earlier deadline waits until then.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks again though it has heard of no change.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Engines that a request may lose. A request that ends engines must not end all of them.
const MAX_LOSSES: usize = 5;

/// An engine that is any number of engines.
pub struct Fleet {
    members: Members,
    places: Arc<Semaphore>,
    draining: AtomicBool,
    runtime: Handle,
}

impl Fleet {
    /// A fleet of engines that all serve `info`; none is there yet. Must be called on a tokio runtime, which then carries its
    /// requests.
    pub fn new(info: EngineInfo) -> Self {
        Self {
            members: Members::new(info),
            places: Arc::new(Semaphore::new(MAX_CHOICES)),
            draining: AtomicBool::new(false),
            runtime: Handle::current(),
        }
    }

    /// The engines that are there.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Takes no more requests; those it has go on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

impl Engine for Fleet {
    fn info(&self) -> &EngineInfo {
        self.members.info()
    }

    /// The engines' sum. It is ready when one of them is.
    fn status(&self) -> EngineStatus {
        let mut sum = EngineStatus { phase: Phase::Stopped, ..EngineStatus::default() };
        for status in self.members.statuses() {
            sum.phase = match (sum.phase, status.phase) {
                (Phase::Ready, _) | (_, Phase::Ready) => Phase::Ready,
                (Phase::Draining, _) | (_, Phase::Draining) => Phase::Draining,
                (Phase::Stopped, Phase::Stopped) => Phase::Stopped,
            };
            sum.running += status.running;
            sum.waiting += status.waiting;
            sum.kv_used += status.kv_used;
            sum.kv_total += status.kv_total;
            sum.preemptions += status.preemptions;
            sum.prefix_queries += status.prefix_queries;
            sum.prefix_hits += status.prefix_hits;
            sum.generated += status.generated;
        }
        if sum.phase == Phase::Ready && self.draining.load(Ordering::Relaxed) {
            sum.phase = Phase::Draining;
        }
        sum
    }

    fn submit(&self, request: ValidRequest) -> Result<Vec<EventStream>, EngineError> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(EngineError::Draining);
        }
        let overloaded = || EngineError::Overloaded { retry_after: RETRY_AFTER };
        let choices = u32::try_from(request.streams()).map_err(|_| overloaded())?;
        let places = self.places.clone().try_acquire_many_owned(choices).map_err(|_| overloaded())?;
        let (events, streams) = (0..choices).map(|_| event_channel()).unzip();
        let carrier = Carrier::new(self.members.clone(), request);
        self.runtime.spawn(async move {
            carrier.carry(events).await;
            drop(places);
        });
        Ok(streams)
    }
}
