//! One run, from its number to the law that it broke, if it broke one.

mod disasters;
mod engine;
mod laws;
mod leader;
mod model;
mod mutant;
mod network;
mod node;
mod registry;
mod script;
mod trace;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use engine::{Engine, Step};
pub(crate) use mutant::Mutant;
use script::Script;
pub(crate) use trace::{Broken, Law, Tally, Trace};
use world::{MS, Micros, SECOND, Shared, World};

/// How long a cluster may take to come up.
const BOOT: Micros = 60 * SECOND;
/// How long everything may take to be well after the last disaster.
const CALM: Micros = 240 * SECOND;
/// Requests after the last of the script, while somebody lies, at most.
const MORE: u64 = 30;
/// Audits of wrong layers after which who lies must be found out. (One audit may look at another node's rows.)
const MAX_WRONG: u64 = 30;
/// Steps of a run, at most.
const MAX_STEPS: u64 = 5_000;
/// Between a step that brought nothing and the next: as long as the engine pauses at first, longer when it goes on.
const PAUSES: [Micros; 2] = [10 * MS, SECOND];

/// A run's outcome, what it counted, and its trace.
pub(crate) struct Run {
    pub(crate) outcome: Result<(), Broken>,
    pub(crate) tally: Tally,
    pub(crate) trace: Trace,
}

/// Runs `seed`, with a mistake if one is given.
pub(crate) fn run(seed: u64, mutant: Option<Mutant>, trace: Trace) -> Run {
    let script = Script::of(seed);
    let world = Shared::new(World::new(script.clone(), mutant, trace));
    let outcome = catch_unwind(AssertUnwindSafe(|| play(&script, mutant, &world)));
    let outcome = outcome.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(Broken::new(Law::Panic, said.unwrap_or_default()))
    });
    let mut world = world.lock();
    let outcome = world.broken.take().map_or(outcome, Err);
    Run { outcome, tally: std::mem::take(&mut world.tally), trace: std::mem::take(&mut world.trace) }
}

/// The cluster comes up, disasters happen while requests are served, and all is well in the end.
fn play(script: &Script, mutant: Option<Mutant>, world: &Shared) -> Result<(), Broken> {
    settle(world, BOOT, "the cluster does not come up")?;
    world.lock().begin_disasters();
    let mut engine = Engine::new(script, mutant, world);
    serve(script, world, &mut engine)?;
    settle(world, CALM, "the cluster does not settle")?;
    engine.count();
    if engine.blocks_used() > 0 {
        return Err(Broken::new(Law::Blocks, format!("{} blocks are held by nobody", engine.blocks_used())));
    }
    Ok(())
}

/// Waits until everything is placed and held.
fn settle(world: &Shared, within: Micros, otherwise: &str) -> Result<(), Broken> {
    let mut world = world.lock();
    let until = world.now + within;
    loop {
        let Some(what) = laws::unsettled(&world) else { return Ok(()) };
        if let Some(broken) = world.broken.clone() {
            return Err(broken);
        }
        if world.now >= until {
            return Err(Broken::new(Law::Progress, format!("{otherwise}: {what}")));
        }
        world.pass(50 * MS);
    }
}

/// Serves the script's requests, and some more until who lies is found out, or is not asked any more.
fn serve(script: &Script, world: &Shared, engine: &mut Engine) -> Result<(), Broken> {
    let mut wishes = script.wishes.iter().peekable();
    let (mut pause, mut calm_since, mut more) = (PAUSES[0], None, MORE);
    for step in 0..MAX_STEPS {
        while let Some(wish) = wishes.next_if(|wish| wish.step <= step) {
            engine.submit(wish.clone());
        }
        let wrong = engine.wrong;
        let done = engine.step()?;
        let mut world = world.lock();
        if let Some(broken) = world.broken.clone() {
            return Err(broken);
        }
        let calm = world.is_calm();
        if calm {
            let &mut (since, wrong_then) = calm_since.get_or_insert((world.now, wrong));
            if engine.wrong > wrong_then + u64::from(script.audit_every) * MAX_WRONG
                && let Some(liar) = world.liar()
                && laws::can_be_found_out(&engine.dispatcher, &world, liar)
            {
                return Err(Broken::new(Law::Quarantine, format!("n{liar} lies, and is not found out")));
            }
            if since + CALM < world.now {
                return Err(Broken::new(Law::Progress, "requests do not end"));
            }
        }
        if calm && engine.is_empty() && wishes.peek().is_none() {
            let lies = world.liar().map(|node| world.nodes[node].id.clone());
            if more == 0 || lies.is_none_or(|node| laws::is_quarantined(&engine.dispatcher, &node)) {
                return Ok(());
            }
            more -= 1;
            engine.submit(script.wishes[step as usize % script.wishes.len()].clone());
        }
        match done {
            Step::Abandoned => {
                world.pass(pause);
                pause = (pause * 2).min(PAUSES[1]);
            }
            Step::Idle if wishes.peek().is_none() => world.pass(SECOND),
            Step::Done | Step::Idle => {
                pause = PAUSES[0];
                let think = world.luck.below(5) * 400 * MS;
                world.pass(think);
            }
        }
    }
    Err(Broken::new(Law::Progress, "requests do not end within the steps of a run"))
}
