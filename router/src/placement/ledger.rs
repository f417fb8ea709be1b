//! Who may write the next placement, and what it must be: the rules that every registry holds, whatever keeps its documents.

use super::Placement;
use crate::{Epoch, ModelId};

/// A leadership. Each one has a higher term than those before it, so that a leader that slept is known by its term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term(pub u64);

/// Why a placement was not written. The variant is what to do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Campaign again, and decide anew.
    #[error("its writer led in term {}, and term {} has begun", wrote.0, current.0)]
    NotLeader {
        /// The writer's term.
        wrote: Term,
        /// The term that has begun.
        current: Term,
    },
    /// Read the view, and decide anew.
    #[error("it was made from epoch {parent}, and the current one is {current}")]
    Fenced {
        /// The epoch it was made from.
        parent: Epoch,
        /// The current one.
        current: Epoch,
    },
    /// Do not try again unchanged.
    #[error("{0}")]
    Malformed(String),
}

/// Whether `next` may follow `current` (`None` before the first, whose parent is epoch 0) as the placement of `model`.
///
/// # Errors
/// [`Denied::Fenced`] when its parent is not `current`; [`Denied::Malformed`] for another model, or an epoch that does not
/// follow its parent's.
pub fn follows(model: &ModelId, current: Option<&Placement>, next: &Placement) -> Result<(), Denied> {
    let current = current.map_or(Epoch(0), |p| p.epoch);
    if next.model != *model {
        return Err(Denied::Malformed(format!("it places {}, the cluster serves {model}", next.model)));
    }
    if next.parent != current {
        return Err(Denied::Fenced { parent: next.parent, current });
    }
    // Compared without adding: the epoch came from outside.
    if next.epoch.0.checked_sub(1) != Some(current.0) {
        return Err(Denied::Malformed(format!("its epoch does not follow its parent's, {current}")));
    }
    Ok(())
}

/// The newest placement, and the term in which the next may be written: one write is one decision.
#[derive(Clone, Debug)]
pub struct Ledger {
    model: ModelId,
    term: Term,
    current: Option<Placement>,
}

impl Ledger {
    /// An empty ledger for `model`, in term 0.
    pub fn new(model: ModelId) -> Self {
        Self { model, term: Term::default(), current: None }
    }

    /// The newest placement.
    pub fn current(&self) -> Option<&Placement> {
        self.current.as_ref()
    }

    /// Begins a new term: what earlier leaders still write is denied from now on.
    pub fn elect(&mut self) -> Term {
        self.term.0 += 1;
        self.term
    }

    /// Writes `next` for the leader of `term`.
    ///
    /// # Errors
    /// [`Denied`]; nothing has changed then.
    pub fn write(&mut self, term: Term, next: Placement) -> Result<Epoch, Denied> {
        if term != self.term {
            return Err(Denied::NotLeader { wrote: term, current: self.term });
        }
        follows(&self.model, self.current.as_ref(), &next)?;
        let epoch = next.epoch;
        self.current = Some(next);
        Ok(epoch)
    }
}

/// That a registry shows an older placement than it did: it was restored from an old snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the placement went back from epoch {seen} to {found}; `tramontane placement restore --from-live` writes it anew"
)]
pub struct WentBack {
    /// The newest epoch seen.
    pub seen: Epoch,
    /// What stands there now (0 for nothing).
    pub found: Epoch,
}

/// Whether a watcher that has `seen` a placement may take `found` as the newer one.
///
/// # Errors
/// [`WentBack`]: go on with what was seen.
pub fn may_take(seen: Option<&Placement>, found: Option<&Placement>) -> Result<(), WentBack> {
    let epoch = |placement: Option<&Placement>| placement.map_or(Epoch(0), |p| p.epoch);
    let (seen_at, found_at) = (epoch(seen), epoch(found));
    // Two documents of one epoch: the history was cut off and written on.
    let forked = seen_at == found_at && seen != found;
    if found_at < seen_at || forked { Err(WentBack { seen: seen_at, found: found_at }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(epoch: u64, parent: u64, node: &str) -> Placement {
        let replicas = [(crate::ExpertId::new(0, 0), vec![node.into()])].into();
        Placement { model: "m".into(), epoch: Epoch(epoch), parent: Epoch(parent), replicas }
    }

    #[test]
    fn a_leader_that_slept_writes_no_more() {
        let mut ledger = Ledger::new("m".into());
        let old = ledger.elect();
        assert_eq!(ledger.write(old, placement(1, 0, "a")), Ok(Epoch(1)));
        let new = ledger.elect();
        assert_eq!(ledger.write(old, placement(2, 1, "b")), Err(Denied::NotLeader { wrote: old, current: new }));
        assert_eq!(ledger.current(), Some(&placement(1, 0, "a")));
        assert_eq!(ledger.write(new, placement(2, 1, "c")), Ok(Epoch(2)));
    }

    #[test]
    fn a_write_from_an_old_parent_is_fenced_and_nonsense_refused() {
        let current = placement(4, 3, "a");
        let judge = |next: &Placement| follows(&"m".into(), Some(&current), next);
        assert_eq!(judge(&placement(5, 4, "b")), Ok(()));
        assert_eq!(judge(&placement(4, 3, "b")), Err(Denied::Fenced { parent: Epoch(3), current: Epoch(4) }));
        assert!(matches!(judge(&placement(6, 4, "b")), Err(Denied::Malformed(_))));
        let other = Placement { model: "x".into(), ..placement(5, 4, "b") };
        assert!(matches!(judge(&other), Err(Denied::Malformed(_))));
    }

    #[test]
    fn a_watcher_never_goes_back() {
        let (old, new) = (placement(3, 2, "a"), placement(4, 3, "b"));
        assert_eq!(may_take(Some(&old), Some(&new)), Ok(()));
        assert_eq!(may_take(Some(&new), Some(&new)), Ok(()));
        assert_eq!(may_take(Some(&new), Some(&old)), Err(WentBack { seen: Epoch(4), found: Epoch(3) }));
        assert_eq!(may_take(Some(&new), None), Err(WentBack { seen: Epoch(4), found: Epoch(0) }));
        assert!(may_take(Some(&new), Some(&placement(4, 3, "c"))).is_err(), "a fork");
        assert_eq!(may_take(None, Some(&old)), Ok(()));
    }
}
