//! What a run tells: its events, what it counted, and which law it broke.

use std::collections::BTreeMap;
use std::fmt;

use super::world::Micros;

/// What must be true in every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Law {
    /// A layer's result is the direct computation's.
    Rows,
    /// A request's tokens are the direct computation's.
    Tokens,
    /// What is read from the KV cache was written, and by the same tokens.
    Cache,
    /// KV blocks are neither leaked nor written while others hold them.
    Blocks,
    /// A layer that brings nothing may run again.
    RunsAgain,
    /// When the disasters have ended, requests end and the placement is held.
    Progress,
    /// No placement takes an expert from its last holder.
    Holder,
    /// Placements form one chain, written by the leader of the time.
    Chain,
    /// Who lies is quarantined, and nobody else.
    Quarantine,
    /// Nothing panics.
    Panic,
}

/// A law that a run broke.
#[derive(Clone, Debug)]
pub(crate) struct Broken {
    pub(crate) law: Law,
    pub(crate) what: String,
}

impl Broken {
    pub(crate) fn new(law: Law, what: impl Into<String>) -> Self {
        Self { law, what: what.into() }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.law, self.what)
    }
}

/// How often things have happened, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally(pub(crate) BTreeMap<&'static str, u64>);

impl Tally {
    pub(crate) fn add(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, count)| self.add(what, *count));
    }

    pub(crate) fn get(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }
}

/// The events of a run as text, if anybody wants them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace(Option<Vec<String>>);

impl Trace {
    /// One that writes everything down.
    pub(crate) fn written() -> Self {
        Self(Some(Vec::new()))
    }

    /// Notes what `line` says happened at `now`.
    pub(crate) fn note(&mut self, now: Micros, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.0 {
            lines.push(format!("{:>4}.{:06} {}", now / 1_000_000, now % 1_000_000, line()));
        }
    }

    /// All lines.
    pub(crate) fn lines(&self) -> &[String] {
        self.0.as_deref().unwrap_or_default()
    }
}
