//! The solver's working state: nodes with their replicas and room, and the moves that balance them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use super::{NodeRoom, Problem, Standing};
use crate::{ExpertId, NodeId};

/// The weight of a node that is as fast as the others together, or whose speed nobody knows.
const AVERAGE: u64 = 4;
/// The largest weight: of four times that speed, or more.
const MAX_WEIGHT: u64 = 16;
/// So that fullness, a whole number, tells all weights apart.
const SCALE: u64 = 720_720;

/// Where a replica on the board comes from: moving a new one costs nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The previous placement has it on this node.
    Kept,
    /// It was put here just now.
    New,
}

/// One node.
struct Seat<'p> {
    id: &'p NodeId,
    zone: &'p str,
    /// Bytes left.
    free: u64,
    /// Whether it neither gets nor gives.
    cordoned: bool,
    /// Its share of the work, in parts of [`AVERAGE`].
    weight: u64,
    replicas: BTreeMap<ExpertId, Origin>,
}

impl Seat<'_> {
    /// How full `replicas` make it, beside others.
    fn fullness(&self, replicas: usize) -> u64 {
        replicas as u64 * SCALE / self.weight
    }

    /// Whether one replica fewer here and one more there makes the two more even.
    fn should_give_to(&self, to: &Self) -> bool {
        let (from, there) = (self.replicas.len() as u64, to.replicas.len() as u64);
        // What a move changes in Σ replicas² ÷ weight; that sum falls with each, so moving ends.
        (2 * from).saturating_sub(1) * to.weight > (2 * there + 1) * self.weight
    }

    /// Replicas of one layer.
    fn of_layer(&self, layer: u32) -> usize {
        self.replicas.range(ExpertId::new(layer, 0)..=ExpertId::new(layer, u32::MAX)).count()
    }
}

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

/// All nodes that may hold experts, ascending by id; a seat is an index into them.
pub(super) struct Board<'p> {
    seats: Vec<Seat<'p>>,
    bytes: BTreeMap<ExpertId, u64>,
}

impl<'p> Board<'p> {
    /// An empty board of the problem's nodes that are not draining.
    pub(super) fn new(problem: &'p Problem, zones: &'p BTreeMap<NodeId, String>) -> Self {
        let zone = |node: &NodeRoom| zones.get(&node.id).map_or("", String::as_str);
        let weight = weights(&problem.nodes);
        let seat = |node: &'p NodeRoom| Seat {
            id: &node.id,
            zone: zone(node),
            free: node.capacity,
            cordoned: node.standing == Standing::Cordoned,
            weight: weight(node.speed),
            replicas: BTreeMap::new(),
        };
        let stays = |node: &&NodeRoom| node.standing != Standing::Leaving;
        let mut seats: Vec<_> = problem.nodes.iter().filter(stays).map(seat).collect();
        seats.sort_by_key(|seat| seat.id);
        seats.dedup_by_key(|seat| seat.id);
        Self { seats, bytes: problem.experts.iter().map(|e| (e.id, e.bytes)).collect() }
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    /// How many nodes may hold `expert`: those that take experts, and the cordoned ones that have it.
    pub(super) fn reach(&self, expert: ExpertId) -> usize {
        self.seats.iter().filter(|s| !s.cordoned || s.replicas.contains_key(&expert)).count()
    }

    /// The experts to place, ascending.
    pub(super) fn experts(&self) -> Vec<ExpertId> {
        self.bytes.keys().copied().collect()
    }

    /// The nodes that hold `expert`, ascending.
    pub(super) fn holders(&self, expert: ExpertId) -> Vec<NodeId> {
        self.seats.iter().filter(|s| s.replicas.contains_key(&expert)).map(|s| s.id.clone()).collect()
    }

    /// How many nodes hold `expert`.
    pub(super) fn copies(&self, expert: ExpertId) -> usize {
        self.seats.iter().filter(|s| s.replicas.contains_key(&expert)).count()
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
        let holders = (0..self.len()).filter(|&s| self.seats[s].replicas.contains_key(&expert));
        if let Some(seat) = holders.max_by_key(|&s| (self.beside(expert, s, s), self.length(s))) {
            self.take(seat, expert);
        }
    }

    /// How full the seat is.
    fn length(&self, seat: usize) -> u64 {
        self.seats[seat].fullness(self.seats[seat].replicas.len())
    }

    /// Replicas of `expert` in the zone of `seat`, without the one on `but`.
    fn beside(&self, expert: ExpertId, seat: usize, but: usize) -> usize {
        let zone = self.seats[seat].zone;
        let others = self.seats.iter().enumerate().filter(|&(other, s)| other != but && s.zone == zone);
        others.filter(|(_, s)| s.replicas.contains_key(&expert)).count()
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
        let crowded =
            |&from: &usize| self.seats[from].replicas.contains_key(&expert) && self.beside(expert, from, from) > 0;
        let from = self.open().filter(crowded).max_by_key(|&from| self.beside(expert, from, from))?;
        let free =
            |&to: &usize| self.may_take(to, expert) && self.beside(expert, to, from) < self.beside(expert, from, from);
        let fullness = |&to: &usize| (self.beside(expert, to, from), self.length(to));
        let to = (0..self.len()).filter(free).min_by_key(fullness)?;
        Some(Move { expert, from, to })
    }

    /// Puts a new replica of `expert` on the node in the zone with the fewest of it, with the fewest replicas of its layer,
    /// then the fewest in all, then the next at or after `preferred`. Where no node has room, others' replicas are moved to make some.
    /// Says whether it found a place.
    #[must_use]
    pub(super) fn place(&mut self, expert: ExpertId, preferred: usize) -> bool {
        let n = self.len();
        let candidates = (0..n).filter(|&seat| self.may_take(seat, expert));
        let best = candidates.min_by_key(|&seat| {
            let s = &self.seats[seat];
            (
                self.beside(expert, seat, seat),
                s.fullness(s.of_layer(expert.layer) + 1),
                s.fullness(s.replicas.len() + 1),
                (seat + n - preferred % n) % n,
            )
        });
        let Some(seat) = best.or_else(|| self.make_room(expert)) else { return false };
        self.put(seat, expert, Origin::New);
        true
    }

    /// Moves replicas until no move makes two nodes more even (equal ones: until none has two more than another), or none is
    /// possible.
    pub(super) fn balance(&mut self) {
        while self.balance_once() {}
    }

    /// Shortens the longest node it can, at the cost of new replicas if that will do, else of a kept one.
    fn balance_once(&mut self) -> bool {
        let evens = |from: usize, to: usize| self.seats[from].should_give_to(&self.seats[to]);
        let mut order: Vec<usize> = self.open().collect();
        order.sort_by_key(|&seat| (Reverse(self.length(seat)), seat));
        for &from in &order {
            let start = [(from, Step { from: None, arrives: None })];
            if let Some((_, moves)) = self.chain(&start, Some(Origin::New), |to| evens(from, to)) {
                self.apply(moves);
                return true;
            }
        }
        let pairs = order.iter().flat_map(|&from| order.iter().rev().map(move |&to| (from, to)));
        let mut uneven = pairs.filter(|&(from, to)| evens(from, to));
        let Some(found) = uneven.find_map(|(from, to)| self.best_move(from, to)) else { return false };
        self.apply(vec![found]);
        true
    }

    /// The move between two nodes that spreads its layer best.
    fn best_move(&self, from: usize, to: usize) -> Option<Move> {
        let expert = self.best(from, to, self.seats[from].replicas.keys())?;
        Some(Move { expert, from, to })
    }

    /// The one of `experts` whose move from one node to another spreads its layer best, of those that `to` can take.
    fn best<'e>(&self, from: usize, to: usize, experts: impl Iterator<Item = &'e ExpertId>) -> Option<ExpertId> {
        let of_layer = |seat: usize, layer| self.seats[seat].of_layer(layer) as i64;
        let fits = experts.filter(|&&expert| self.may_take(to, expert) && self.keeps_apart(expert, from, to));
        fits.copied().min_by_key(|e| (of_layer(to, e.layer) - of_layer(from, e.layer), *e))
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
        let mut reached: BTreeMap<usize, Step> = starts.iter().copied().collect();
        let mut queue: VecDeque<usize> = reached.keys().copied().collect();
        while let Some(from) = queue.pop_front() {
            let seat = &self.seats[from];
            let arriving = reached[&from].arrives.map_or(0, |expert| self.bytes[&expert]);
            let movable = seat.replicas.iter().filter(|&(_, &origin)| only.is_none_or(|o| o == origin));
            let makes_room = |e: &ExpertId| seat.free.saturating_add(self.bytes[e]) >= arriving;
            let leaving: Vec<ExpertId> = movable.map(|(&expert, _)| expert).filter(makes_room).collect();
            for to in self.open() {
                if reached.contains_key(&to) {
                    continue;
                }
                let lacks = |expert: &&ExpertId| {
                    !self.seats[to].replicas.contains_key(expert) && self.keeps_apart(**expert, from, to)
                };
                let last = if ends(to) { self.best(from, to, leaving.iter()) } else { None };
                let Some(arrives) = last.or_else(|| leaving.iter().find(lacks).copied()) else { continue };
                reached.insert(to, Step { from: Some(from), arrives: Some(arrives) });
                if last.is_some() {
                    return Some(trace(&reached, to));
                }
                queue.push_back(to);
            }
        }
        None
    }

    /// Whether `expert` shares its zone with no more replicas after a move.
    fn keeps_apart(&self, expert: ExpertId, from: usize, to: usize) -> bool {
        self.beside(expert, to, from) <= self.beside(expert, from, from)
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
    }

    fn take(&mut self, seat: usize, expert: ExpertId) {
        self.seats[seat].free += self.bytes[&expert];
        self.seats[seat].replicas.remove(&expert);
    }
}

/// The weight of a node by its speed, beside the known speeds of all that take experts.
fn weights(nodes: &[NodeRoom]) -> impl Fn(u32) -> u64 {
    let known = || nodes.iter().filter(|n| n.standing == Standing::Open && n.speed > 0).map(|n| u64::from(n.speed));
    let (sum, count) = (known().sum::<u64>(), known().count() as u64);
    move |speed| match (speed, sum) {
        (0, _) | (_, 0) => AVERAGE,
        // Rounded to parts of the average: experts are not moved for less.
        (speed, sum) => ((2 * AVERAGE * u64::from(speed) * count + sum) / (2 * sum)).clamp(1, MAX_WEIGHT),
    }
}

/// Walks back from `end` to where the search began.
fn trace(reached: &BTreeMap<usize, Step>, end: usize) -> (usize, Vec<Move>) {
    let (mut at, mut moves) = (end, Vec::new());
    while let Step { from: Some(from), arrives: Some(expert) } = reached[&at] {
        moves.push(Move { expert, from, to: at });
        at = from;
    }
    (at, moves)
}
