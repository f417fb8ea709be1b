//! The cluster in a simulation: scripted time and network, nodes and registry that fail as a number says, and everything that
//! decides is real (router, flight, peers, controller, ledger, dispatcher, scheduler, KV pool). A run follows from its seed alone:
//!
//! `TRAMONTANE_SIM_SEED=7 cargo test -p tramontane --test simulation replay -- --nocapture` plays one again and prints its events.

#[path = "support/dice.rs"]
mod dice;
#[path = "simulation/mod.rs"]
mod simulation;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use simulation::{Broken, Mutant, Tally, Trace, run};

/// Schedules that are run.
const SCHEDULES: u64 = 10_000;
/// Seeds within which every mistake must be caught,
const MUTANT_SEEDS: u64 = 1_500;
/// and how often.
const CATCHES: usize = 2;
/// Runs at a time.
const THREADS: usize = 2;
/// Events shown of a run that broke a law.
const SHOWN: usize = 60;

/// What the schedules must contain, or they say nothing.
const HAPPENS: &[&str] = &[
    "abandoned",
    "deaths",
    "drained",
    "hedged",
    "late answers",
    "left",
    "lost messages",
    "made room",
    "not leader",
    "preempted",
    "prefix hits",
    "quarantined",
    "rescued",
    "resent",
    "wrong layers",
];

/// What to do to see `seed` again, and the last of its events.
fn replay_of(seed: u64, broken: &Broken) -> String {
    let run = run(seed, None, Trace::written());
    let lines = run.trace.lines();
    let last = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
    let command = "cargo test -p tramontane --test simulation replay -- --nocapture";
    format!("seed {seed} breaks {broken}\nits last events:\n{last}\nagain: TRAMONTANE_SIM_SEED={seed} {command}")
}

/// How many schedules: the environment may ask for others than the suite's.
fn schedules() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let from = number("TRAMONTANE_SIM_FROM").unwrap_or(0);
    from..from + number("TRAMONTANE_SIM_COUNT").unwrap_or(SCHEDULES)
}

#[test]
fn no_schedule_breaks_a_law() {
    let (seeds, start) = (schedules(), Instant::now());
    let tally = Mutex::new(Tally::default());
    let broken = search(seeds.clone(), |seed| {
        let run = run(seed, None, Trace::default());
        tally.lock().expect("no panic").merge(&run.tally);
        run.outcome.err()
    });
    let tally = tally.into_inner().expect("no panic");
    println!("{} schedules in {:.1} s: {:?}", seeds.end - seeds.start, start.elapsed().as_secs_f64(), tally.0);
    broken.iter().take(SHOWN).for_each(|(seed, why)| println!("seed {seed}: {why}"));
    if let Some((seed, why)) = broken.first() {
        panic!("{} of them break a law; the first:\n{}", broken.len(), replay_of(*seed, why));
    }
    let rare = HAPPENS.iter().filter(|what| tally.get(what) * 1_000 < seeds.end - seeds.start).collect::<Vec<_>>();
    assert!(rare.is_empty(), "less than once in a thousand schedules: {rare:?}");
}

/// The seeds of `seeds` for which `wanted` says something, with what it says, ascending.
fn search<T: Send>(seeds: std::ops::Range<u64>, wanted: impl Fn(u64) -> Option<T> + Sync) -> Vec<(u64, T)> {
    let (next, found) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            if let Some(what) = wanted(seed) {
                found.lock().expect("no panic").push((seed, what));
            }
        }
    };
    std::thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(work))));
    let mut found = found.into_inner().expect("no panic");
    found.sort_by_key(|(seed, _)| *seed);
    found
}

#[test]
fn every_mistake_is_caught_by_the_law_that_it_breaks() {
    for mutant in Mutant::ALL {
        let is_caught = |seed: &u64| {
            let broken = run(*seed, Some(mutant), Trace::default()).outcome.err();
            broken.is_some_and(|broken| broken.law == mutant.breaks())
        };
        let caught: Vec<u64> = (0..MUTANT_SEEDS).filter(is_caught).take(CATCHES).collect();
        assert_eq!(caught.len(), CATCHES, "{mutant:?} is caught by {:?} in seeds {caught:?} alone", mutant.breaks());
        println!("{mutant:?}: {caught:?}");
        for seed in caught {
            let sound = run(seed, None, Trace::default()).outcome;
            assert!(sound.is_ok(), "seed {seed} breaks a law without a mistake, too: {sound:?}");
        }
    }
}

#[test]
fn replay() {
    let asked = std::env::var("TRAMONTANE_SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = asked.unwrap_or(0);
    let (first, second) = (run(seed, None, Trace::written()), run(seed, None, Trace::written()));
    if asked.is_some() {
        first.trace.lines().iter().for_each(|line| println!("{line}"));
        println!("seed {seed}: {:?}", first.outcome);
    }
    assert_eq!(first.trace.lines(), second.trace.lines(), "a run follows from its seed alone");
    assert!(first.outcome.is_ok() || asked.is_none(), "{:?}", first.outcome);
}
