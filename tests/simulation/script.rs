//! What happens in a run, all of it from one number: the cluster's shape, the disasters and when, the requests.

use std::time::Duration;

use tramontane_coordinator::Limits;
use tramontane_router::flight::Policy;
use tramontane_router::placement::ControllerPolicy;

use super::model::{Model, VOCAB, mix};
use super::world::{MS, Micros, SECOND};
use crate::dice::Dice;

/// How long disasters may begin, at most.
const WINDOW: Micros = 20 * SECOND;
/// How long one lasts, at most.
const LONGEST: Micros = 20 * SECOND;

impl Dice {
    /// One of `from..=to`.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True in `percent` of a hundred.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// How a process ends, as those who talk to it see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// Its machine closes its streams.
    Closes,
    /// Its machine is gone: nobody hears anything.
    Silent,
    /// In the middle of the next batch.
    NextBatch,
}

/// What a broken link does with messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// They are lost.
    Lost,
    /// They arrive when the link is whole again.
    Late,
}

/// How a node answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Sound,
    /// With values that are not finite.
    NotFinite,
    /// With a row too few, which the exchange notices.
    RowMissing,
    /// With a row too few, which the exchange does not notice.
    RowMissingUnseen,
    /// That too much waits.
    Overloaded,
    /// Never.
    Silent,
    /// After many times its usual time.
    Slow,
    /// With finite rows that are wrong.
    Lies,
}

/// Who can be cut off from the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Coordinator,
    Node(usize),
    Leader(usize),
}

/// Something that goes wrong, until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disaster {
    /// A node's process ends; it starts anew when the disaster is over.
    Kill(usize, Death),
    /// All of them.
    KillAll(Death),
    /// A node's process stands still.
    Stall(usize),
    /// The coordinator and a node do not hear each other.
    Partition(usize, Loss),
    /// The coordinator does not hear a node, which hears it.
    OneWay(usize, Loss),
    /// Somebody and the registry do not hear each other.
    CutOff(Who),
    /// The registry is away.
    RegistryDown,
    /// A node answers badly.
    Mood(usize, Mood),
    /// A node is asked to leave; it comes back when the disaster is over.
    Drain(usize),
    /// A leader's process stands still.
    LeaderStalls(usize),
    /// The same, when it is about to write its next placement.
    LeaderStallsWriting(usize),
    /// A leader's process ends, and another takes its place at once.
    LeaderDies(usize),
    /// Messages are lost, doubled, damaged, late.
    Weather,
}

/// A disaster in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scheduled {
    pub(crate) disaster: Disaster,
    /// Since the cluster came up.
    pub(crate) at: Micros,
    pub(crate) lasts: Micros,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// It comes before this step.
    pub(crate) step: u64,
    pub(crate) prompt: Vec<u32>,
    pub(crate) tokens: usize,
    pub(crate) reader: Reader,
}

/// How long a request's reader waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// For the end.
    Waits,
    /// So many steps.
    Leaves(u64),
    /// Until a step brings nothing.
    LeavesAtFailure,
}

/// How a node is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeShape {
    /// Time for a row of one expert.
    pub(crate) pace: Micros,
    /// Time to load one expert.
    pub(crate) load: Micros,
    /// Experts it has room for.
    pub(crate) room: u64,
    /// Whether it has the same address after a restart.
    pub(crate) fixed_address: bool,
    pub(crate) zone: u64,
}

/// A whole run.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) model: Model,
    pub(crate) replicas: usize,
    pub(crate) nodes: Vec<NodeShape>,
    pub(crate) leaders: usize,
    pub(crate) controller: ControllerPolicy,
    pub(crate) policy: Policy,
    /// One dispatch in so many is audited; 1: all are, before they are used.
    pub(crate) audit_every: u32,
    /// Who lies, in runs that are about it.
    pub(crate) liar: Option<usize>,
    pub(crate) limits: Limits,
    pub(crate) kv_blocks: u32,
    pub(crate) disasters: Vec<Scheduled>,
    pub(crate) wishes: Vec<Wish>,
    /// How long a change of the registry's takes to be seen, at most.
    pub(crate) watch_delay: Micros,
    /// For everything that the network and the nodes draw.
    pub(crate) luck: Dice,
}

impl Script {
    /// The run of `seed`.
    pub(crate) fn of(seed: u64) -> Self {
        let mut dice = Dice(mix(seed.wrapping_add(0x7472_616d)));
        let dice = &mut dice;
        let lying = dice.chance(10);
        let model = Model {
            layers: dice.between(1, 3) as u32,
            experts: dice.between(3, 6) as u32,
            per_token: dice.between(1, 2) as usize,
        };
        let nodes = dice.between(3, 6) as usize;
        let replicas = if lying { 3 } else { dice.between(1, 3) as usize };
        let liar = lying.then(|| dice.below(nodes as u64) as usize);
        let (policy, audit_every) = (policy(dice), if lying { dice.between(1, 3) as u32 } else { 256 });
        Self {
            model,
            replicas,
            nodes: (0..nodes).map(|_| node(dice, model, replicas, nodes)).collect(),
            leaders: if dice.chance(30) { 1 } else { 2 },
            controller: controller(dice),
            policy,
            audit_every,
            liar,
            limits: limits(dice),
            kv_blocks: dice.between(2, 7) as u32,
            disasters: disasters(dice, nodes, liar),
            wishes: wishes(dice),
            watch_delay: if dice.chance(30) { 3 * SECOND } else { 50 * MS },
            luck: Dice(mix(seed ^ 0x6c75_636b)),
        }
    }

    /// When the last disaster is over, since the cluster came up.
    pub(crate) fn ends(&self) -> Micros {
        self.disasters.iter().map(|d| d.at + d.lasts).max().unwrap_or(0)
    }
}

fn node(dice: &mut Dice, model: Model, replicas: usize, nodes: usize) -> NodeShape {
    let all = u64::from(model.layers * model.experts);
    let share = (all * replicas as u64).div_ceil(nodes as u64 - 1);
    let room = if dice.chance(30) { (share + dice.between(1, 3)).min(all) } else { all };
    NodeShape {
        pace: dice.between(20, 300),
        load: dice.between(MS, 400 * MS),
        room,
        fixed_address: dice.chance(50),
        zone: dice.below(3),
    }
}

fn policy(dice: &mut Dice) -> Policy {
    let usual = Policy::default();
    if dice.chance(50) {
        return usual;
    }
    Policy {
        max_resends: dice.between(2, 16) as usize,
        timeout: Duration::from_millis(dice.between(500, 10_000)),
        hedge_percent: dice.between(0, 30) as u32,
        ..usual
    }
}

fn controller(dice: &mut Dice) -> ControllerPolicy {
    let usual = ControllerPolicy::default();
    if dice.chance(30) {
        return usual;
    }
    let (settle, grace) = (dice.between(0, 2_000), dice.between(500, 15_000));
    let (settle, grace) = (Duration::from_millis(settle), Duration::from_millis(grace));
    ControllerPolicy { settle, grace, max_adds: dice.between(1, 20) as usize, ..usual }
}

fn limits(dice: &mut Dice) -> Limits {
    let max_running = dice.between(1, 4) as usize;
    let (chunk, others) =
        if dice.chance(70) { (64, dice.between(40, 64)) } else { (dice.between(8, 40), dice.between(4, 40)) };
    Limits { max_running, step_tokens: max_running + others as usize, chunk: chunk as usize, max_waiting: 16 }
}

fn wishes(dice: &mut Dice) -> Vec<Wish> {
    let family = dice.below(u64::from(VOCAB)) as u32;
    let mut step = 0;
    let mut wish = |dice: &mut Dice| {
        let shared = if dice.chance(60) { dice.between(30, 40) as u32 } else { dice.between(1, 8) as u32 };
        let mut prompt: Vec<u32> = (0..shared).map(|position| (family + position * 7) % VOCAB).collect();
        prompt.extend((0..dice.below(3)).map(|_| dice.below(u64::from(VOCAB)) as u32));
        step += if dice.chance(40) { 0 } else { dice.below(16) };
        let reader = match dice.below(100) {
            0..12 => Reader::Leaves(dice.between(1, 8)),
            12..45 => Reader::LeavesAtFailure,
            _ => Reader::Waits,
        };
        Wish { step, prompt, tokens: dice.between(1, 5) as usize, reader }
    };
    (0..dice.between(2, 6)).map(|_| wish(dice)).collect()
}

fn disasters(dice: &mut Dice, nodes: usize, liar: Option<usize>) -> Vec<Scheduled> {
    let mut all = Vec::new();
    for _ in 0..dice.between(1, 6) {
        let disaster = disaster(dice, nodes);
        // What brings a second disaster while the first lasts is as likely as what comes alone.
        let lasts = if dice.chance(50) { dice.between(MS, 2 * SECOND) } else { dice.between(SECOND, LONGEST) };
        all.push(Scheduled { disaster, at: dice.below(WINDOW), lasts });
    }
    if let Some(liar) = liar {
        all.push(Scheduled { disaster: Disaster::Mood(liar, Mood::Lies), at: dice.below(WINDOW), lasts: 0 });
    }
    all.sort_by_key(|scheduled| scheduled.at);
    all
}

fn disaster(dice: &mut Dice, nodes: usize) -> Disaster {
    let node = dice.below(nodes as u64) as usize;
    let death = [Death::Closes, Death::Silent, Death::NextBatch][dice.below(3) as usize];
    let loss = [Loss::Lost, Loss::Late][dice.below(2) as usize];
    let moods = [Mood::NotFinite, Mood::RowMissing, Mood::RowMissingUnseen, Mood::Overloaded, Mood::Silent, Mood::Slow];
    match dice.below(22) {
        0..3 => Disaster::Kill(node, death),
        3 | 4 => Disaster::KillAll(death),
        5 | 6 => Disaster::Stall(node),
        7 | 8 => Disaster::Partition(node, loss),
        9 => Disaster::OneWay(node, loss),
        10 => Disaster::CutOff(Who::Coordinator),
        11 => Disaster::CutOff(Who::Node(node)),
        12 => Disaster::CutOff(Who::Leader(dice.below(2) as usize)),
        13 => Disaster::RegistryDown,
        14 | 15 => match moods[dice.below(6) as usize] {
            // One node in all: where three answer so, it is the row.
            Mood::NotFinite => Disaster::Mood(0, Mood::NotFinite),
            mood => Disaster::Mood(node, mood),
        },
        16 => Disaster::Drain(node),
        17 => Disaster::LeaderStalls(dice.below(2) as usize),
        18 => Disaster::LeaderDies(dice.below(2) as usize),
        19 | 20 => Disaster::LeaderStallsWriting(dice.below(2) as usize),
        _ => Disaster::Weather,
    }
}
