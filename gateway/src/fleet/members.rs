//! The engines that are there, and what each of them has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;
use tramontane_cluster::engine::{Engine, EngineInfo, EngineStatus, Phase};
use tramontane_cluster::registry::directory::EngineId;

use super::choose::{Beginning, Candidate, choose};

/// The engines of a fleet. Cheap to clone.
#[derive(Clone)]
pub struct Members {
    info: Arc<EngineInfo>,
    there: watch::Sender<BTreeMap<EngineId, Arc<Member>>>,
}

/// An engine's place in a fleet; it leaves when this is dropped. What it has goes on.
pub struct Membership {
    members: Members,
    member: Arc<Member>,
}

/// Never send a request there: its answers would have other bits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine {id} serves {what}")]
pub struct Differs {
    /// The engine.
    pub id: EngineId,
    /// What it serves that the fleet does not.
    pub what: String,
}

/// One engine.
pub(super) struct Member {
    id: EngineId,
    pub(super) engine: Arc<dyn Engine>,
    /// Choices that this process has there: known at once, as its status is not.
    in_flight: AtomicUsize,
}

/// A choice that an engine has from here; it has it no more when this is dropped.
pub(super) struct InFlight(Arc<Member>);

impl Members {
    pub(super) fn new(info: EngineInfo) -> Self {
        Self { info: Arc::new(info), there: watch::Sender::default() }
    }

    /// What all of them serve.
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// Takes `engine` in as `id`, in the place of another one of that name.
    ///
    /// # Errors
    /// [`Differs`].
    pub fn join(&self, id: EngineId, engine: Arc<dyn Engine>) -> Result<Membership, Differs> {
        if engine.info() != self.info() {
            return Err(Differs { id, what: differences(self.info(), engine.info()) });
        }
        let member = Arc::new(Member { id: id.clone(), engine, in_flight: AtomicUsize::new(0) });
        self.there.send_modify(|there| _ = there.insert(id, member.clone()));
        Ok(Membership { members: self.clone(), member })
    }

    /// How each of them fares.
    pub(super) fn statuses(&self) -> Vec<EngineStatus> {
        self.there.borrow().values().map(|member| member.engine.status()).collect()
    }

    /// The one that a prompt with this beginning goes to, without those in `not`.
    pub(super) fn choose(&self, beginning: &Beginning, not: &[Arc<Member>]) -> Option<Arc<Member>> {
        let there = self.there.borrow();
        let ready: Vec<(&Arc<Member>, EngineStatus)> = there
            .values()
            .filter(|member| !not.iter().any(|other| Arc::ptr_eq(other, member)))
            .map(|member| (member, member.engine.status()))
            .filter(|(_, status)| status.phase == Phase::Ready)
            .collect();
        let candidates: Vec<Candidate<'_>> = ready
            .iter()
            .map(|(member, status)| Candidate { name: member.id.as_str(), load: member.load(status) })
            .collect();
        choose(beginning, &candidates).map(|place| ready[place].0.clone())
    }

    /// How they come and go.
    pub(super) fn changes(&self) -> watch::Receiver<BTreeMap<EngineId, Arc<Member>>> {
        self.there.subscribe()
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.members.there.send_if_modified(|there| {
            let mine = there.get(&self.member.id).is_some_and(|member| Arc::ptr_eq(member, &self.member));
            mine && there.remove(&self.member.id).is_some()
        });
    }
}

impl Member {
    /// Its name.
    pub(super) fn id(&self) -> &str {
        self.id.as_str()
    }

    fn load(&self, status: &EngineStatus) -> usize {
        self.in_flight.load(Ordering::Relaxed).max(status.running + status.waiting)
    }

    /// Notes that it has a choice more.
    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }
}

impl InFlight {
    /// Where it is.
    pub(super) fn member(&self) -> &Arc<Member> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn differences(ours: &EngineInfo, theirs: &EngineInfo) -> String {
    let pairs = [
        ("model", ours.model.to_string(), theirs.model.to_string()),
        ("context", ours.context.to_string(), theirs.context.to_string()),
        ("vocabulary", ours.vocab.to_string(), theirs.vocab.to_string()),
        ("fingerprint", ours.fingerprint.clone(), theirs.fingerprint.clone()),
    ];
    let different = pairs.into_iter().filter(|(_, ours, theirs)| ours != theirs);
    different.map(|(what, ours, theirs)| format!("{what} {theirs}, not {ours}")).collect::<Vec<_>>().join("; ")
}
