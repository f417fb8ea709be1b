//! Constraints: what a completion has to match, compiled to a grammar that says before each token which ones may follow. The work
//! is done by the crate `llguidance`; what is added here are bounds. A constraint comes from outside, and a small one can ask for
//! endless work:
//!
//! - it is compiled on a thread of its own, at most [`MAX_COMPILING`] at a time, and given up after [`COMPILE_TIME`];
//! - its size, its nesting and what its regular expressions cost are bounded before (`weigh`), the grammar's by [`limits`], and so is
//!   the work for each token;
//! - compiled grammars, and failures, are kept for the next request that asks: [`MAX_GRAMMARS`], the least recently used goes first.
//!
//! What a grammar allows follows from the constraint and the tokens so far alone.

mod compile;
mod follower;
mod lark;
#[cfg(test)]
mod tests;
mod vocabulary;
mod weigh;

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tramontane_cluster::engine::Constraint;

pub(crate) use follower::{Follower, Refusal};
pub use vocabulary::{Vocabulary, VocabularyError};

/// Grammars compiled at the same time, those given up but not yet ended among them.
const MAX_COMPILING: usize = 2;
/// How long compiling may take.
const COMPILE_TIME: Duration = Duration::from_secs(5);
/// Constraints whose grammars, or failures, are kept.
const MAX_GRAMMARS: usize = 128;
/// Stack of a compiling thread, in bytes: the library recurses over what it is given.
const COMPILE_STACK: usize = 64 << 20;

/// All constraints that have been asked for lately.
pub(crate) struct Grammars {
    vocabulary: Option<Vocabulary>,
    known: HashMap<Constraint, Known>,
    /// Threads that have not ended.
    compiling: usize,
    /// Counts uses: the lowest is the least recently used.
    clock: u64,
    results: Receiver<Compiled>,
    sender: Sender<Compiled>,
}

/// What came of compiling a constraint.
struct Compiled {
    constraint: Constraint,
    result: Result<Follower, String>,
}

struct Known {
    state: State,
    used: u64,
}

enum State {
    Compiling { since: Instant },
    Ready(Box<Follower>),
    Failed(String),
}

/// What is known of a constraint.
pub(crate) enum Lookup {
    /// Its grammar, at the beginning of a completion.
    Ready(Box<Follower>),
    /// It is being compiled, or will be.
    Pending,
    /// It is no good, and why.
    Failed(String),
}

impl Grammars {
    /// Grammars over the tokens of `vocabulary`; without one, every constraint fails.
    pub(crate) fn new(vocabulary: Option<Vocabulary>) -> Self {
        let (sender, results) = channel();
        Self { vocabulary, known: HashMap::new(), compiling: 0, clock: 0, results, sender }
    }

    /// The grammar of `constraint`, if it is compiled; otherwise sees to it that it will be. Ask again after [`Grammars::collect`].
    pub(crate) fn get(&mut self, constraint: &Constraint, now: Instant) -> Lookup {
        self.clock += 1;
        if let Some(known) = self.known.get_mut(constraint) {
            known.used = self.clock;
            if let State::Compiling { since } = known.state
                && now.saturating_duration_since(since) > COMPILE_TIME
            {
                let why = format!("it takes longer than {} s to compile", COMPILE_TIME.as_secs());
                known.state = State::Failed(why);
            }
            return match &known.state {
                State::Compiling { .. } => Lookup::Pending,
                State::Ready(follower) => Lookup::Ready(Box::new(follower.fork())),
                State::Failed(why) => Lookup::Failed(why.clone()),
            };
        }
        let Some(vocabulary) = self.vocabulary.clone() else {
            return Lookup::Failed("this engine has no vocabulary to match constraints with".to_owned());
        };
        if let Err(why) = compile::check_size(constraint) {
            return Lookup::Failed(why);
        }
        if self.compiling < MAX_COMPILING {
            self.start(constraint, vocabulary, now);
        }
        Lookup::Pending
    }

    fn start(&mut self, constraint: &Constraint, vocabulary: Vocabulary, now: Instant) {
        let (sender, job) = (self.sender.clone(), constraint.clone());
        let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(COMPILE_STACK);
        let spawned = thread.spawn(move || {
            let result = compile::compile(&vocabulary, &job);
            // When the engine is gone nobody wants to know.
            let _ = sender.send(Compiled { constraint: job, result });
        });
        let state = match spawned {
            Ok(_) => {
                self.compiling += 1;
                State::Compiling { since: now }
            }
            Err(error) => State::Failed(format!("no thread to compile it on: {error}")),
        };
        self.known.insert(constraint.clone(), Known { state, used: self.clock });
        self.forget();
    }

    /// Takes what has been compiled since.
    pub(crate) fn collect(&mut self) {
        while let Ok(compiled) = self.results.try_recv() {
            self.take(compiled);
        }
    }

    /// The same; with nothing there, waits for it as long as `patience`.
    pub(crate) fn wait(&mut self, patience: Duration) {
        if let Ok(compiled) = self.results.recv_timeout(patience) {
            self.take(compiled);
        }
    }

    fn take(&mut self, Compiled { constraint, result }: Compiled) {
        self.compiling = self.compiling.saturating_sub(1);
        // One that was given up stays so: whoever asked has been told.
        if let Some(known) = self.known.get_mut(&constraint)
            && matches!(known.state, State::Compiling { .. })
        {
            known.state = result.map_or_else(State::Failed, |follower| State::Ready(Box::new(follower)));
        }
    }

    /// Keeps the bound.
    fn forget(&mut self) {
        while self.known.len() > MAX_GRAMMARS {
            let idle = self.known.iter().filter(|(_, known)| !matches!(known.state, State::Compiling { .. }));
            let Some(oldest) = idle.min_by_key(|(_, known)| known.used).map(|(constraint, _)| constraint.clone())
            else {
                break;
            };
            self.known.remove(&oldest);
        }
    }
}
