//! The sampler against cases, distributions, and a second, plainer implementation.

use proptest::prelude::*;

use super::*;

const LOGITS: [f32; 6] = [1.0, 2.5, -0.5, 2.0, 0.0, 2.5];
fn plain() -> Sampling {
    Sampling { temperature: 1.0, seed: 7, ..Sampling::default() }
}

fn token(logits: &[f32], sampling: &Sampling, position: u64) -> u32 {
    sample(logits, sampling, position).unwrap().token
}

/// How often each id is drawn at positions 0‥`draws`.
fn counts(logits: &[f32], sampling: &Sampling, draws: u64) -> Vec<u32> {
    let mut counts = vec![0; logits.len()];
    for position in 0..draws {
        counts[token(logits, sampling, position) as usize] += 1;
    }
    counts
}

#[test]
fn greedy_is_the_largest_logit_the_lower_id_of_equal_ones() {
    let greedy = Sampling { temperature: 0.0, ..plain() };
    assert_eq!(token(&LOGITS, &greedy, 0), 1);
    assert_eq!(token(&[-0.0, 0.0], &greedy, 0), 0);
    assert_eq!(token(&[f32::MIN], &greedy, 0), 0);
}

#[test]
fn cuts_to_one_candidate_are_greedy() {
    let narrow = [
        Sampling { top_k: Some(1), ..plain() },
        Sampling { top_p: 1e-9, ..plain() },
        Sampling { top_p: 0.0, ..plain() },
    ];
    for sampling in narrow {
        assert!((0..200).all(|position| token(&LOGITS, &sampling, position) == 1), "{sampling:?}");
    }
}

#[test]
fn the_smallest_temperature_draws_among_the_largest_only() {
    let cold = Sampling { temperature: f32::from_bits(1), ..plain() };
    let counts = counts(&LOGITS, &cold, 1_000);
    assert!(counts[1] > 400 && counts[5] > 400 && counts[1] + counts[5] == 1_000, "{counts:?}");
}

#[test]
fn the_ends_of_the_range_are_not_an_error() {
    let hot = Sampling { temperature: f32::INFINITY, ..plain() };
    let counts = counts(&[f32::MAX, f32::MIN], &hot, 1_000);
    assert!(counts.iter().all(|n| *n > 400), "{counts:?}");
    assert_eq!(token(&[f32::MIN, f32::MAX], &plain(), 0), 1);
}

#[test]
fn draws_follow_the_softmax() {
    for temperature in [0.5_f32, 1.0, 2.0] {
        let weights = LOGITS.map(|l| f64::from(l / temperature).exp());
        let sum: f64 = weights.iter().sum();
        let counts = counts(&LOGITS, &Sampling { temperature, ..plain() }, 20_000);
        for (count, weight) in counts.iter().zip(weights) {
            let (found, expected) = (f64::from(*count) / 20_000.0, weight / sum);
            // Five standard deviations, at most; the draws are fixed, so this never flakes.
            assert!((found - expected).abs() < 0.018, "T {temperature}: {counts:?}");
        }
    }
}

#[test]
fn top_k_keeps_the_k_first_candidates() {
    let counts = counts(&LOGITS, &Sampling { top_k: Some(2), ..plain() }, 2_000);
    assert!(counts[1] > 900 && counts[5] > 900 && counts[1] + counts[5] == 2_000, "{counts:?}");
}

#[test]
fn top_k_cuts_equal_logits_by_id() {
    let counts = counts(&[1.0; 4], &Sampling { top_k: Some(3), ..plain() }, 2_000);
    assert!(counts[..3].iter().all(|n| *n > 500) && counts[3] == 0, "{counts:?}");
}

#[test]
fn top_p_keeps_the_shortest_prefix_that_reaches_it() {
    let kept = |top_p| {
        let counts = counts(&[0.0; 4], &Sampling { top_p, ..plain() }, 1_000);
        counts.iter().filter(|n| **n > 0).count()
    };
    assert_eq!([0.2, 0.25, 0.26, 0.5, 0.75, 0.76, 1.0].map(kept), [1, 1, 2, 2, 3, 4, 4]);
}

#[test]
fn top_p_is_a_share_of_what_top_k_keeps() {
    let sampling = Sampling { top_k: Some(2), top_p: 0.5, ..plain() };
    assert_eq!(counts(&[0.0; 4], &sampling, 500), [500, 0, 0, 0]);
}

#[test]
fn seed_and_position_change_the_draw_and_nothing_else_does() {
    let draws = |seed| (0..64).map(|p| token(&LOGITS, &Sampling { seed, ..plain() }, p)).collect::<Vec<_>>();
    assert_eq!(draws(1), draws(1));
    assert_ne!(draws(1), draws(2));
    assert!(draws(1).iter().any(|t| *t != draws(1)[0]));
}

#[test]
fn what_is_not_finite_is_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let greedy = Sampling { temperature: 0.0, ..plain() };
        for sampling in [plain(), greedy] {
            assert_eq!(sample(&[0.0, 1.0, bad, bad], &sampling, 0), Err(SampleError::NotFinite { index: 2 }));
        }
    }
    assert_eq!(sample(&[], &plain(), 0), Err(SampleError::Empty));
}

/// The module's steps 1 to 6, one after the other, nothing clever.
fn plainly(logits: &[f32], sampling: &Sampling, position: u64) -> u32 {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap().then(a.cmp(b)));
    let max = f64::from(logits[ids[0]]);
    if let Some(k) = sampling.top_k {
        ids.truncate(k as usize);
    }
    let mut sums = vec![];
    let mut sum = 0.0_f64;
    for id in &ids {
        sum += f64::from(exp(((f64::from(logits[*id]) - max) / f64::from(sampling.temperature)) as f32));
        sums.push(sum);
    }
    let last = sums.iter().position(|c| *c >= f64::from(sampling.top_p) * sum).unwrap();
    let target = uniform(sampling.seed, position) * sums[last];
    ids[sums.iter().position(|c| *c > target).unwrap()] as u32
}

proptest! {
    #[test]
    fn as_plainly_done(
        logits in prop::collection::vec(prop_oneof![(-4..4_i8).prop_map(f32::from), -9.0..9.0_f32], 1..80),
        temperature in 0.05..3.0_f32,
        top_k in 0..90_u32,
        top_p in 0.0..=1.0_f32,
        seed: u64,
        position: u64,
    ) {
        let sampling = Sampling { temperature, top_k: (top_k > 0).then_some(top_k), top_p, seed, ..plain() };
        prop_assert_eq!(token(&logits, &sampling, position), plainly(&logits, &sampling, position));
    }
}
