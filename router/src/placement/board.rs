//! The solver's working state: nodes with their replicas and room, and the moves that balance them. Clusters of thousands are searched
//! here again and again, so who holds what, and how full the emptiest is, are kept beside the seats.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::seat::{Origin, SCALE, Seat, weights};
use super::{NodeRoom, Problem, Standing};
use crate::{ExpertId, NodeId};

/// `expert` goes from one seat to another.
struct Move {
    expert: ExpertId,
    from: usize,
    to: usize,
}

/// How a search came to a seat.
#[derive(Clone, Copy)]
struct Step {
    /// The seat it came from; `None` where the search began.
    from: Option<usize>,
    /// The replica that would arrive.
    arrives: Option<ExpertId>,
}

/// A replica that may leave its seat.
struct Leaver {
    expert: ExpertId,
    /// The other replicas of its expert in each zone.
    beside: Vec<usize>,
}

/// All nodes that may hold experts, ascending by id; a seat is an index into them.
pub(super) struct Board<'p> {
    seats: Vec<Seat<'p>>,
    /// How many zones they stand in.
    zones: usize,
    /// How many of them are cordoned.
    cordoned: usize,
    bytes: BTreeMap<ExpertId, u64>,
    /// The seats that hold each expert, ascending: what a cluster of thousands would be searched for again and again.
    holders: BTreeMap<ExpertId, Vec<usize>>,
    /// The seats of each [`Seat::next`].
    lengths: BTreeMap<u64, BTreeSet<usize>>,
    /// How full one replica makes the fastest seat.
    fastest: u64,
}

impl<'p> Board<'p> {
    /// An empty board of the problem's nodes that are not draining.
    pub(super) fn new(problem: &'p Problem, zones: &'p BTreeMap<NodeId, String>) -> Self {
        let zone = |node: &NodeRoom| zones.get(&node.id).map_or("", String::as_str);
        let mut numbers: BTreeMap<&str, usize> = problem.nodes.iter().map(|node| (zone(node), 0)).collect();
        numbers.values_mut().zip(0..).for_each(|(number, i)| *number = i);
        let weight = weights(&problem.nodes);
        let seat = |node: &'p NodeRoom| {
            let weight = weight(node.speed);
            Seat {
                id: &node.id,
                zone: numbers[zone(node)],
                free: node.capacity,
                cordoned: node.standing == Standing::Cordoned,
                weight,
                replicas: BTreeMap::new(),
                next: SCALE / weight,
            }
        };
        let stays = |node: &&NodeRoom| node.standing != Standing::Leaving;
        let mut seats: Vec<_> = problem.nodes.iter().filter(stays).map(seat).collect();
        seats.sort_by_key(|seat| seat.id);
        seats.dedup_by_key(|seat| seat.id);
        let mut lengths = BTreeMap::<u64, BTreeSet<usize>>::new();
        seats.iter().enumerate().for_each(|(i, seat)| _ = lengths.entry(seat.next).or_default().insert(i));
        Self {
            zones: numbers.len(),
            cordoned: seats.iter().filter(|seat| seat.cordoned).count(),
            seats,
            bytes: problem.experts.iter().map(|e| (e.id, e.bytes)).collect(),
            holders: BTreeMap::new(),
            // All are empty.
            fastest: lengths.keys().next().copied().unwrap_or(SCALE),
            lengths,
        }
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    /// How many nodes may hold `expert`: those that take experts, and the cordoned ones that have it.
    pub(super) fn reach(&self, expert: ExpertId) -> usize {
        let kept = self.seats_of(expert).iter().filter(|&&seat| self.seats[seat].cordoned).count();
        self.len() - self.cordoned + kept
    }

    /// The experts to place, ascending.
    pub(super) fn experts(&self) -> Vec<ExpertId> {
        self.bytes.keys().copied().collect()
    }

    /// The nodes that hold `expert`, ascending.
    pub(super) fn holders(&self, expert: ExpertId) -> Vec<NodeId> {
        self.seats_of(expert).iter().map(|&seat| self.seats[seat].id.clone()).collect()
    }

    /// How many nodes hold `expert`.
    pub(super) fn copies(&self, expert: ExpertId) -> usize {
        self.seats_of(expert).len()
    }

    fn seats_of(&self, expert: ExpertId) -> &[usize] {
        self.holders.get(&expert).map_or(&[], Vec::as_slice)
    }

    /// Keeps a replica of the previous placement, if its expert and node are still there and it still fits.
    pub(super) fn keep(&mut self, expert: ExpertId, node: &NodeId) {
        if let Ok(seat) = self.seats.binary_search_by_key(&node, |s| s.id)
            && self.fits(seat, expert)
        {
            self.put(seat, expert, Origin::Kept);
        }
    }

    /// Takes `expert` from that of its holders which shares a zone with most others, then the fullest (ties: the highest id).
    pub(super) fn drop_one(&mut self, expert: ExpertId) {
        let in_zones = self.in_zones(expert, None);
        let holders = self.seats_of(expert).iter().copied();
        if let Some(seat) = holders.max_by_key(|&s| (in_zones[self.seats[s].zone], self.length(s))) {
            self.take(seat, expert);
        }
    }

    /// How full the seat is.
    fn length(&self, seat: usize) -> u64 {
        self.seats[seat].fullness(self.seats[seat].replicas.len())
    }

    /// Moves replicas that share a zone to zones that have none of theirs, where there is room.
    pub(super) fn spread(&mut self) {
        for expert in self.experts() {
            // Each move lowers the number of replicas that share a zone.
            while let Some(found) = self.spreading(expert) {
                self.apply(vec![found]);
            }
        }
    }

    fn spreading(&self, expert: ExpertId) -> Option<Move> {
        let in_zones = self.in_zones(expert, None);
        let zone = |seat: usize| self.seats[seat].zone;
        let crowded = |&from: &usize| !self.seats[from].cordoned && in_zones[zone(from)] > 1;
        let from = self.seats_of(expert).iter().copied().filter(crowded).max_by_key(|&from| in_zones[zone(from)])?;
        let beside = self.in_zones(expert, Some(from));
        let free = |&to: &usize| beside[zone(to)] < beside[zone(from)] && self.may_take(to, expert);
        let to = (0..self.len()).filter(free).min_by_key(|&to| (beside[zone(to)], self.length(to)))?;
        Some(Move { expert, from, to })
    }

    /// Puts a new replica of `expert` on the node in the zone with the fewest of it, with the fewest replicas of its layer,
    /// then the fewest in all, then the next at or after `preferred`. Where no node has room, others' replicas are moved to make some.
    /// Says whether it found a place.
    #[must_use]
    pub(super) fn place(&mut self, expert: ExpertId, preferred: usize) -> bool {
        let Some(seat) = self.best_seat(expert, preferred).or_else(|| self.make_room(expert)) else { return false };
        self.put(seat, expert, Origin::New);
        true
    }

    /// The node that [`Board::place`] describes, among those with room.
    fn best_seat(&self, expert: ExpertId, preferred: usize) -> Option<usize> {
        let bytes = *self.bytes.get(&expert)?;
        let beside = self.in_zones(expert, None);
        let start = preferred % self.len();
        // None can be better than one as fast as the fastest that shares neither zone nor layer; of those the emptiest.
        let perfect = |&seat: &usize| {
            let s = &self.seats[seat];
            let fits = beside[s.zone] == 0 && bytes <= s.free && !s.cordoned && !s.replicas.contains_key(&expert);
            fits && s.fullness(s.of_layer(expert.layer) + 1) == self.fastest
        };
        // From the preferred one on, so that of equals the first is taken.
        let round = |seats: &BTreeSet<usize>| seats.range(start..).chain(seats.range(..start)).copied().find(perfect);
        if let Some(seat) = self.lengths.values().find_map(round) {
            return Some(seat);
        }
        let mut best: Option<((usize, u64, u64), usize)> = None;
        for seat in (start..self.len()).chain(0..start) {
            let s = &self.seats[seat];
            if s.cordoned || bytes > s.free {
                continue;
            }
            // Most seats are worse whatever they hold of the layer, which takes long to look up.
            let empty = (beside[s.zone], s.fullness(1), s.next);
            if best.is_some_and(|(key, _)| empty >= key) || s.replicas.contains_key(&expert) {
                continue;
            }
            let key = (empty.0, s.fullness(s.of_layer(expert.layer) + 1), s.next);
            if best.is_none_or(|(best, _)| key < best) {
                best = Some((key, seat));
            }
        }
        best.map(|(_, seat)| seat)
    }

    /// Moves replicas until no move makes two nodes more even (equal ones: until none has two more than another), or none is
    /// possible.
    pub(super) fn balance(&mut self) {
        while self.balance_once() {}
    }

    /// Shortens the longest node it can, at the cost of new replicas if that will do, else of a kept one.
    fn balance_once(&mut self) -> bool {
        let evens = |from: usize, to: usize| self.seats[from].should_give_to(&self.seats[to]);
        // Who has nothing to give to the one that most should be given to has nothing to give to anybody.
        let Some(neediest) = self.neediest() else { return false };
        let mut order: Vec<usize> = self.open().filter(|&from| evens(from, neediest)).collect();
        order.sort_by_key(|&seat| (Reverse(self.length(seat)), seat));
        let has_new = |from: &&usize| self.seats[**from].replicas.values().any(|&origin| origin == Origin::New);
        for &from in order.iter().filter(has_new) {
            let start = [(from, Step { from: None, arrives: None })];
            if let Some((_, moves)) = self.chain(&start, Some(Origin::New), |to| evens(from, to)) {
                self.apply(moves);
                return true;
            }
        }
        let mut takers: Vec<usize> = self.open().collect();
        takers.sort_by_key(|&seat| (self.length(seat), Reverse(seat)));
        let any_move = |&from: &usize| {
            let leavers = self.leavers(from, |_, _| true);
            let mut needy = takers.iter().filter(|&&to| evens(from, to));
            needy.find_map(|&to| Some(Move { expert: self.best(from, to, &leavers)?, from, to }))
        };
        let Some(found) = order.iter().find_map(any_move) else { return false };
        self.apply(vec![found]);
        true
    }

    /// The seat that any other should rather give to than to the rest.
    fn neediest(&self) -> Option<usize> {
        // As `should_give_to` compares: (2 × replicas + 1) ÷ weight.
        let need = |seat: usize| (2 * self.seats[seat].replicas.len() as u64 + 1, self.seats[seat].weight);
        self.open().min_by(|&a, &b| {
            let ((a, weight_a), (b, weight_b)) = (need(a), need(b));
            (a * weight_b).cmp(&(b * weight_a))
        })
    }

    /// The replicas on `from` that may go, ascending.
    fn leavers(&self, from: usize, may_go: impl Fn(ExpertId, Origin) -> bool) -> Vec<Leaver> {
        let going = self.seats[from].replicas.iter().filter(|&(&expert, &origin)| may_go(expert, origin));
        let leaver = |(&expert, _): (&ExpertId, &Origin)| Leaver { expert, beside: self.in_zones(expert, Some(from)) };
        going.map(leaver).collect()
    }

    /// How many replicas of `expert` stand in each zone, without the one on `but`.
    fn in_zones(&self, expert: ExpertId, but: Option<usize>) -> Vec<usize> {
        let mut counts = vec![0; self.zones];
        let others = self.seats_of(expert).iter().filter(|&&seat| Some(seat) != but);
        others.for_each(|&seat| counts[self.seats[seat].zone] += 1);
        counts
    }

    /// Whether the replica shares its zone with no more of its expert's after a move.
    fn keeps_apart(&self, leaver: &Leaver, from: usize, to: usize) -> bool {
        leaver.beside[self.seats[to].zone] <= leaver.beside[self.seats[from].zone]
    }

    /// The one of `leavers` whose move from one node to another spreads its layer best, of those that `to` can take.
    fn best(&self, from: usize, to: usize, leavers: &[Leaver]) -> Option<ExpertId> {
        let of_layer = |seat: usize, layer| self.seats[seat].of_layer(layer) as i64;
        let fits = leavers.iter().filter(|l| self.keeps_apart(l, from, to) && self.may_take(to, l.expert));
        fits.map(|l| l.expert).min_by_key(|e| (of_layer(to, e.layer) - of_layer(from, e.layer), *e))
    }

    /// Makes room for `expert` on some node that lacks it, and names the node.
    fn make_room(&mut self, expert: ExpertId) -> Option<usize> {
        let step = Step { from: None, arrives: Some(expert) };
        let lacking = self.open().filter(|&seat| !self.seats[seat].replicas.contains_key(&expert));
        let starts: Vec<_> = lacking.map(|seat| (seat, step)).collect();
        let (seat, moves) = self.chain(&starts, None, |_| true)?;
        self.apply(moves);
        Some(seat)
    }

    /// Finds a shortest chain of moves (breadth first) out of one of `starts` that ends on a node which `ends` accepts and
    /// which has room; each node on the way passes one replica on and takes one. `only`: which replicas may move.
    /// Returns where the chain begins, and its moves, last first.
    fn chain(
        &self,
        starts: &[(usize, Step)],
        only: Option<Origin>,
        ends: impl Fn(usize) -> bool,
    ) -> Option<(usize, Vec<Move>)> {
        let mut reached: Vec<Option<Step>> = vec![None; self.len()];
        starts.iter().for_each(|&(seat, step)| reached[seat] = Some(step));
        let mut queue: VecDeque<usize> = starts.iter().map(|&(seat, _)| seat).collect();
        // Where nobody can end, or all are on the way already, a search of thousands is not begun, and not gone on with.
        let mut others: Vec<usize> = self.open().filter(|&seat| reached[seat].is_none()).collect();
        let mut last: Vec<usize> = others.iter().copied().filter(|&seat| ends(seat)).collect();
        while let Some(from) = queue.pop_front().filter(|_| !last.is_empty()) {
            let seat = &self.seats[from];
            let arriving = reached[from].and_then(|step| step.arrives).map_or(0, |expert| self.bytes[&expert]);
            let makes_room = |expert: ExpertId| seat.free.saturating_add(self.bytes[&expert]) >= arriving;
            let leavers = self.leavers(from, |expert, origin| only.is_none_or(|o| o == origin) && makes_room(expert));
            let step = |arrives| Some(Step { from: Some(from), arrives: Some(arrives) });
            let end = |&to: &usize| Some((to, self.best(from, to, &leavers)?));
            if let Some((to, arrives)) = last.iter().find_map(end) {
                reached[to] = step(arrives);
                return Some(trace(&reached, to));
            }
            others.retain(|&to| {
                let lacks =
                    |l: &&Leaver| self.keeps_apart(l, from, to) && !self.seats[to].replicas.contains_key(&l.expert);
                let Some(passed) = leavers.iter().find(lacks) else { return true };
                reached[to] = step(passed.expert);
                queue.push_back(to);
                false
            });
            last.retain(|&seat| reached[seat].is_none());
        }
        None
    }

    fn apply(&mut self, moves: Vec<Move>) {
        for Move { expert, from, to } in moves {
            self.take(from, expert);
            self.put(to, expert, Origin::New);
        }
    }

    /// The seats that get and give.
    fn open(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len()).filter(|&seat| !self.seats[seat].cordoned)
    }

    fn may_take(&self, seat: usize, expert: ExpertId) -> bool {
        !self.seats[seat].cordoned && self.fits(seat, expert)
    }

    fn fits(&self, seat: usize, expert: ExpertId) -> bool {
        let seat = &self.seats[seat];
        !seat.replicas.contains_key(&expert) && self.bytes.get(&expert).is_some_and(|&bytes| bytes <= seat.free)
    }

    fn put(&mut self, seat: usize, expert: ExpertId, origin: Origin) {
        self.seats[seat].free -= self.bytes[&expert];
        self.seats[seat].replicas.insert(expert, origin);
        let holders = self.holders.entry(expert).or_default();
        if let Err(at) = holders.binary_search(&seat) {
            holders.insert(at, seat);
        }
        self.measure(seat);
    }

    fn take(&mut self, seat: usize, expert: ExpertId) {
        self.seats[seat].free += self.bytes[&expert];
        self.seats[seat].replicas.remove(&expert);
        self.holders.entry(expert).or_default().retain(|&holder| holder != seat);
        self.measure(seat);
    }

    /// Notes that a seat has more replicas than before, or fewer.
    fn measure(&mut self, seat: usize) {
        let s = &mut self.seats[seat];
        let next = s.fullness(s.replicas.len() + 1);
        let before = std::mem::replace(&mut s.next, next);
        if let Some(seats) = self.lengths.get_mut(&before) {
            seats.remove(&seat);
            if seats.is_empty() {
                self.lengths.remove(&before);
            }
        }
        self.lengths.entry(next).or_default().insert(seat);
    }
}

/// Walks back from `end` to where the search began.
fn trace(reached: &[Option<Step>], end: usize) -> (usize, Vec<Move>) {
    let (mut at, mut moves) = (end, Vec::new());
    while let Some(Step { from: Some(from), arrives: Some(expert) }) = reached[at] {
        moves.push(Move { expert, from, to: at });
        at = from;
    }
    (at, moves)
}
