//! The queue of those that have not been let in yet: a line a tenant, in fair turns.
//!
//! A tenant's turn comes when it has been served the fewest tokens of all that wait: each is charged for the prompt tokens it
//! lets in and for the tokens sampled for it. One that comes (back) starts at the level of the least served one here, so that nobody saves up
//! turns by staying away. Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024 (the virtual token counter).
//! Within a line it is priority, then order of arrival.
//!
//! The queue's bound is shared by the rule of Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet
//! Switches", 1998: a tenant that has some waiting may have as many as there are places left, so that one that floods the queue leaves half
//! of it, a second one a quarter. The anonymous tenant, who is alone when there are no keys, may have all.

use std::collections::BTreeMap;

use tramontane_cluster::engine::Tenant;

use super::{Rank, Refused};
use crate::sequence::{Sequence, SequenceId};

/// The lines of all tenants that have a sequence in the scheduler.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lines: BTreeMap<Tenant, Line>,
    arrivals: u64,
    admitted: u64,
}

/// One tenant's.
#[derive(Debug, Default)]
struct Line {
    /// By priority and arrival.
    waiting: BTreeMap<(i32, u64), Sequence>,
    /// Tokens it has been charged for, or let off.
    served: u64,
    /// Its sequences, waiting or let in.
    here: usize,
}

impl Line {
    /// Places its sequences take in the queue.
    fn places(&self) -> usize {
        self.waiting.values().map(|sequence| sequence.origin().choices).sum()
    }

    /// Whose turn it is: the lower.
    fn turn(&self) -> Option<(u64, u64)> {
        self.waiting.first_key_value().map(|((_, arrival), _)| (self.served, *arrival))
    }
}

impl Queue {
    /// Queues `sequence`, within `bound` places.
    pub(super) fn push(&mut self, sequence: Sequence, bound: usize) -> Result<(), Refused> {
        let (id, tenant, choices) = (sequence.id(), sequence.origin().tenant.clone(), sequence.origin().choices);
        let taken: usize = self.lines.values().map(Line::places).sum();
        let mine = self.lines.get(&tenant).map_or(0, Line::places);
        // One with more choices than there are places waits alone: its siblings would not wait otherwise either.
        if taken > 0 && taken + choices > bound {
            return Err(Refused::QueueFull { sequence: id, bound });
        }
        if tenant.0.is_some() && mine > 0 && mine + choices > bound.saturating_sub(taken) {
            return Err(Refused::ShareFull { sequence: id, waiting: mine });
        }
        let level = self.lines.values().map(|line| line.served).min().unwrap_or(0);
        let line = self.lines.entry(tenant).or_insert_with(|| Line { served: level, ..Line::default() });
        self.arrivals += 1;
        line.here += 1;
        line.waiting.insert((sequence.origin().priority, self.arrivals), sequence);
        Ok(())
    }

    /// The one whose turn it is.
    pub(super) fn head(&mut self) -> Option<&mut Sequence> {
        self.next_line()?.waiting.first_entry().map(std::collections::btree_map::OccupiedEntry::into_mut)
    }

    /// Lets it in.
    pub(super) fn pop(&mut self) -> Option<Sequence> {
        let (_, mut sequence) = self.next_line()?.waiting.pop_first()?;
        self.admitted += 1;
        sequence.rank = Rank(self.admitted, 0);
        Some(sequence)
    }

    fn next_line(&mut self) -> Option<&mut Line> {
        let lines = self.lines.values_mut().filter_map(|line| Some((line.turn()?, line)));
        lines.min_by_key(|(turn, _)| *turn).map(|(_, line)| line)
    }

    /// Charges `tenant` for `tokens`.
    pub(super) fn charge(&mut self, tenant: &Tenant, tokens: usize) {
        if let Some(line) = self.lines.get_mut(tenant) {
            line.served += tokens as u64;
        }
    }

    /// Another sequence of `tenant` has come in by a fork.
    pub(super) fn joined(&mut self, tenant: &Tenant) {
        self.lines.entry(tenant.clone()).or_default().here += 1;
    }

    /// One of `tenant`'s sequences, let in before, has left.
    pub(super) fn left(&mut self, tenant: &Tenant) {
        if let Some(line) = self.lines.get_mut(tenant) {
            line.here = line.here.saturating_sub(1);
            if line.here == 0 {
                self.lines.remove(tenant);
            }
        }
    }

    /// Takes a waiting sequence out.
    pub(super) fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let found = self.lines.iter().find_map(|(tenant, line)| {
            let (key, _) = line.waiting.iter().find(|(_, sequence)| sequence.id() == id)?;
            Some((tenant.clone(), *key))
        });
        let (tenant, key) = found?;
        let sequence = self.lines.get_mut(&tenant)?.waiting.remove(&key);
        self.left(&tenant);
        sequence
    }

    /// All that wait.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.lines.values().flat_map(|line| line.waiting.values())
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.lines.values().map(|line| line.waiting.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::Origin;

    const BOUND: usize = 12;

    fn tenant(name: &str) -> Tenant {
        Tenant(Some(name.into()))
    }

    fn sequence(id: u64, name: &str, priority: i32) -> Sequence {
        Sequence::new(SequenceId(id), vec![0; 10], 5).of(Origin { tenant: tenant(name), priority, ..Origin::default() })
    }

    /// The ids in the order in which they are let in, each charged for its prompt.
    fn order(queue: &mut Queue) -> Vec<u64> {
        let next = |queue: &mut Queue| {
            let sequence = queue.pop()?;
            queue.charge(&sequence.origin().tenant, sequence.pending());
            Some(sequence.id().0)
        };
        std::iter::from_fn(|| next(queue)).collect()
    }

    #[test]
    fn tenants_take_turns_whoever_came_first() {
        let mut queue = Queue::default();
        for (id, name) in [(1, "flood"), (2, "flood"), (3, "flood"), (4, "flood"), (5, "b"), (6, "c"), (7, "c")] {
            queue.push(sequence(id, name, 0), BOUND).unwrap();
        }
        assert_eq!(order(&mut queue), [1, 5, 6, 2, 7, 3, 4]);
    }

    #[test]
    fn within_a_tenant_it_is_priority_then_arrival() {
        let mut queue = Queue::default();
        for (id, priority) in [(1, 0), (2, 1), (3, -1), (4, 0)] {
            queue.push(sequence(id, "a", priority), BOUND).unwrap();
        }
        assert_eq!(order(&mut queue), [3, 1, 4, 2]);
    }

    #[test]
    fn whoever_has_been_served_much_waits_for_the_others() {
        let mut queue = Queue::default();
        queue.push(sequence(1, "a", 0), BOUND).unwrap();
        queue.push(sequence(2, "b", 0), BOUND).unwrap();
        queue.charge(&tenant("a"), 25);
        (3..6).for_each(|id| queue.push(sequence(id, "b", 0), BOUND).unwrap());
        assert_eq!(order(&mut queue), [2, 3, 4, 1, 5]);
    }

    #[test]
    fn a_newcomer_starts_at_the_level_of_the_least_served() {
        let mut queue = Queue::default();
        queue.push(sequence(1, "a", 0), BOUND).unwrap();
        queue.push(sequence(2, "a", 0), BOUND).unwrap();
        queue.charge(&tenant("a"), 1_000);
        queue.push(sequence(3, "new", 0), BOUND).unwrap();
        queue.push(sequence(4, "new", 0), BOUND).unwrap();
        assert_eq!(order(&mut queue), [1, 3, 2, 4], "not 3, 4 first");
    }

    #[test]
    fn a_flood_leaves_places_for_others() {
        let mut queue = Queue::default();
        let took = |queue: &mut Queue, name: &str, from: u64| {
            (from..from + 50).take_while(|id| queue.push(sequence(*id, name, 0), BOUND).is_ok()).count()
        };
        assert_eq!(took(&mut queue, "flood", 0), 6);
        assert_eq!(took(&mut queue, "second flood", 100), 3);
        assert_eq!(took(&mut queue, "third flood", 200), 2);
        let refused = queue.push(sequence(300, "flood", 0), BOUND).unwrap_err();
        assert_eq!(refused, Refused::ShareFull { sequence: SequenceId(300), waiting: 6 });
        assert!(queue.push(sequence(301, "newcomer", 0), BOUND).is_ok());
        let refused = queue.push(sequence(302, "late", 0), BOUND).unwrap_err();
        assert_eq!(refused, Refused::QueueFull { sequence: SequenceId(302), bound: BOUND });
    }

    #[test]
    fn the_anonymous_tenant_may_have_all_places_and_choices_take_one_each() {
        let mut queue = Queue::default();
        let anonymous =
            |id, choices| Sequence::new(SequenceId(id), vec![0; 10], 5).of(Origin { choices, ..Origin::default() });
        assert_eq!(queue.push(anonymous(0, BOUND - 1), BOUND), Ok(()));
        assert!(queue.push(anonymous(1, 2), BOUND).is_err());
        assert_eq!(queue.push(anonymous(2, 1), BOUND), Ok(()));
    }

    #[test]
    fn a_tenant_with_nothing_here_is_forgotten() {
        let mut queue = Queue::default();
        queue.push(sequence(1, "a", 0), BOUND).unwrap();
        queue.push(sequence(2, "a", 0), BOUND).unwrap();
        assert_eq!(queue.pop().map(|s| s.id()), Some(SequenceId(1)));
        assert_eq!(queue.remove(SequenceId(2)).map(|s| s.id()), Some(SequenceId(2)));
        assert_eq!(queue.lines.len(), 1);
        queue.left(&tenant("a"));
        assert!(queue.lines.is_empty());
    }
}
