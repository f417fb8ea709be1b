//! Which engine a request goes to. Pure.
//!
//! Requests whose prompts begin alike favour the same engine, whose prefix cache then has their beginning: the favourite is the
//! one of the highest hash of (beginning, name), so that every front door finds the same, and an engine that comes or goes moves
//! no more than its share. A favourite over its share of the load is left alone, and the least loaded engine takes the request.

use sha2::{Digest, Sha256};
use tramontane_cluster::engine::{CacheScope, ValidRequest};

/// Tokens of a prompt that are its beginning: two blocks of the prefix cache. Longer ones would part prompts that share less.
const BEGINNING: usize = 64;
/// What a favourite may have, times the mean: in percent.
const SHARE: usize = 125;

/// A hash of a prompt's beginning, and of who may share what is cached of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beginning([u8; 32]);

impl Beginning {
    pub(super) fn of(request: &ValidRequest) -> Self {
        let CacheScope(scope) = request.cache_scope;
        let mut hash = Sha256::new().chain_update(scope.to_le_bytes());
        request.prompt.iter().take(BEGINNING).for_each(|token| hash.update(token.to_le_bytes()));
        Self(hash.finalize().into())
    }

    /// How much it favours the engine `name`.
    fn favours(&self, name: &str) -> [u8; 32] {
        Sha256::new().chain_update(self.0).chain_update(name).finalize().into()
    }
}

/// An engine that takes requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) name: &'a str,
    /// Sequences it has, running or waiting.
    pub(super) load: usize,
}

/// The place, among `candidates`, of the engine that a prompt with this beginning goes to.
pub(super) fn choose(beginning: &Beginning, candidates: &[Candidate<'_>]) -> Option<usize> {
    let favour = |place: &usize| beginning.favours(candidates[*place].name);
    let favourite = (0..candidates.len()).max_by_key(favour)?;
    let all: usize = candidates.iter().map(|candidate| candidate.load).sum();
    let share = ((all + 1) * SHARE).div_ceil(100 * candidates.len());
    if candidates[favourite].load < share {
        return Some(favourite);
    }
    let least = candidates.iter().map(|candidate| candidate.load).min()?;
    (0..candidates.len()).filter(|place| candidates[*place].load == least).max_by_key(favour)
}

#[cfg(test)]
mod tests {
    use tramontane_cluster::engine::Generation;

    use super::*;

    fn beginning(prompt: &[u32]) -> Beginning {
        Beginning::of(&ValidRequest::generate(0, prompt.to_vec(), Generation::default()))
    }

    fn of_loads<'a>(names: &[&'a str], loads: &[usize]) -> Vec<Candidate<'a>> {
        names.iter().zip(loads).map(|(&name, &load)| Candidate { name, load }).collect()
    }

    const NAMES: [&str; 4] = ["a", "b", "c", "d"];

    #[test]
    fn prompts_that_begin_alike_favour_one_engine_and_others_spread() {
        let idle = of_loads(&NAMES, &[0; 4]);
        let long: Vec<u32> = (0..100).collect();
        let mut other = long.clone();
        other[BEGINNING] = 7;
        assert_eq!(choose(&beginning(&long), &idle), choose(&beginning(&other), &idle));
        let mut counts = [0; 4];
        (0..400).for_each(|first| counts[choose(&beginning(&[first]), &idle).expect("one")] += 1);
        assert!(counts.iter().all(|count| (60..140).contains(count)), "{counts:?}");
    }

    #[test]
    fn who_may_not_share_is_not_drawn_together() {
        let idle = of_loads(&NAMES, &[0; 4]);
        let scoped = |scope| {
            let request = ValidRequest::generate(0, vec![1, 2, 3], Generation::default());
            choose(&Beginning::of(&ValidRequest { cache_scope: CacheScope(scope), ..request }), &idle)
        };
        assert!((1..20).any(|scope| scoped(scope) != scoped(0)));
    }

    #[test]
    fn an_engine_that_goes_moves_only_what_favoured_it() {
        let (four, three) = (of_loads(&NAMES, &[0; 4]), of_loads(&NAMES[..3], &[0; 3]));
        for first in 0..200 {
            let before = choose(&beginning(&[first]), &four).expect("one");
            let after = choose(&beginning(&[first]), &three).expect("one");
            assert!(before == 3 || before == after, "{first}: {before} {after}");
        }
    }

    #[test]
    fn a_favourite_over_its_share_is_left_for_the_least_loaded() {
        for first in 0..50 {
            let beginning = beginning(&[first]);
            let favourite = choose(&beginning, &of_loads(&NAMES, &[0; 4])).expect("one");
            let mut loads = [4, 4, 4, 4];
            loads[favourite] = 5;
            assert_eq!(choose(&beginning, &of_loads(&NAMES, &loads)), Some(favourite), "within a quarter of the mean");
            loads[favourite] = 8;
            let least = (favourite + 1) % 4;
            loads[least] = 3;
            assert_eq!(choose(&beginning, &of_loads(&NAMES, &loads)), Some(least));
        }
    }

    #[test]
    fn a_burst_is_spread_even_if_all_begin_alike() {
        let (beginning, mut loads) = (beginning(&[1]), [0; 4]);
        for _ in 0..400 {
            loads[choose(&beginning, &of_loads(&NAMES, &loads)).expect("one")] += 1;
        }
        assert!(loads.iter().all(|load| (80..=130).contains(load)), "{loads:?}");
    }

    #[test]
    fn of_none_there_is_none() {
        assert_eq!(choose(&beginning(&[1]), &[]), None);
    }
}
