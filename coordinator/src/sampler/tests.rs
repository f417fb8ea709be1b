//! The sampler against cases, distributions, and a second, plainer implementation.

use proptest::prelude::*;

use super::*;

const LOGITS: [f32; 6] = [1.0, 2.5, -0.5, 2.0, 0.0, 2.5];
fn plain() -> Sampling {
    Sampling { temperature: 1.0, seed: 7, ..Sampling::default() }
}

fn token(logits: &[f32], sampling: &Sampling, position: usize) -> u32 {
    sample(logits, &Draw::new(sampling, &vec![0; position], &[])).unwrap()
}

/// The token drawn after `generated`, with temperature 0.
fn after(logits: &[f32], sampling: Sampling, generated: &[u32]) -> u32 {
    let sampling = Sampling { temperature: 0.0, ..sampling };
    sample(logits, &Draw::new(&sampling, &[0], generated)).unwrap()
}

/// How often each id is drawn at positions 0‥`draws`.
fn counts(logits: &[f32], sampling: &Sampling, draws: usize) -> Vec<u32> {
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
            let found = sample(&[0.0, 1.0, bad, bad], &Draw::new(&sampling, &[0], &[]));
            assert_eq!(found, Err(SampleError::NotFinite { index: 2 }));
        }
    }
    assert_eq!(sample(&[], &Draw::new(&plain(), &[0], &[])), Err(SampleError::NothingAllowed));
}

#[test]
fn penalties_and_bias_edit_the_logits_they_say() {
    let logits = [1.0, 2.0, -1.0, 1.5];
    let found = |sampling: Sampling| {
        let draw = Draw::new(&sampling, &[0, 2], &[1, 1]);
        adjust::adjusted(&logits, &draw).into_owned()
    };
    assert_eq!(found(Sampling { repetition_penalty: 2.0, ..plain() }), [0.5, 1.0, -2.0, 1.5]);
    assert_eq!(found(Sampling { frequency_penalty: 0.25, ..plain() }), [1.0, 1.5, -1.0, 1.5]);
    assert_eq!(found(Sampling { presence_penalty: 0.25, ..plain() }), [1.0, 1.75, -1.0, 1.5]);
    assert_eq!(found(Sampling { logit_bias: vec![(3, 4.0), (9, 1.0)], ..plain() }), [1.0, 2.0, -1.0, 5.5]);
    let all = Sampling {
        repetition_penalty: 2.0,
        frequency_penalty: 0.25,
        presence_penalty: 0.125,
        logit_bias: vec![(2, 3.0), (1, -4.0)],
        ..plain()
    };
    assert_eq!(found(all), [0.5, -4.625, 1.0, 1.5], "the bias first");
    let endless = Sampling { logit_bias: vec![(0, f32::MAX), (0, f32::MAX)], ..plain() };
    assert_eq!(found(endless)[0], f32::MAX);
}

#[test]
fn bad_words_end_nowhere_in_the_completion() {
    let sampling = |words: &[&[u32]]| Sampling { bad_words: words.iter().map(|w| w.to_vec()).collect(), ..plain() };
    assert_eq!(after(&LOGITS, sampling(&[&[1]]), &[]), 5);
    assert_eq!(after(&LOGITS, sampling(&[&[3, 4, 1]]), &[3, 4]), 5);
    assert_eq!(after(&LOGITS, sampling(&[&[3, 4, 1]]), &[4]), 1);
    assert_eq!(after(&LOGITS, sampling(&[&[0, 1]]), &[]), 1, "the prompt does not count");
    assert_eq!(after(&LOGITS, sampling(&[&[1], &[5], &[2, 3]]), &[2]), 0);
}

#[test]
fn what_is_banned_or_not_allowed_is_not_drawn() {
    let greedy = Sampling::default();
    let draw = Draw { banned: &[1, 9], ..Draw::new(&greedy, &[0], &[]) };
    assert_eq!(sample(&LOGITS, &draw), Ok(5));
    let allowed = |mask: u32| sample(&LOGITS, &Draw { allowed: Some(&[mask]), ..draw });
    assert_eq!(allowed(0b01_1101), Ok(3));
    assert_eq!(allowed(0b00_0010), Err(SampleError::NothingAllowed));
    assert_eq!(sample(&[1.0; 64], &Draw { allowed: Some(&[0]), ..draw }), Err(SampleError::NothingAllowed));
}

#[test]
fn choices_draw_from_streams_of_their_own() {
    let draws = |choice| {
        let sampling = plain();
        let token = |n: usize| sample(&LOGITS, &Draw { choice, ..Draw::new(&sampling, &vec![0; n], &[]) }).unwrap();
        (0..64).map(token).collect::<Vec<_>>()
    };
    assert_eq!(draws(3), draws(3));
    assert_ne!(draws(0), draws(1));
}

#[test]
fn min_p_keeps_what_is_likely_enough_beside_the_likeliest() {
    let logits = [0.0, -1.0, -2.0, -3.0];
    let kept = |min_p| counts(&logits, &Sampling { min_p, ..plain() }, 3_000).iter().filter(|n| **n > 0).count();
    assert_eq!([0.0, 0.04, 0.1, 0.3, 0.5, 1.0, 7.0].map(kept), [4, 4, 3, 2, 1, 1, 1]);
}

#[test]
fn typical_p_keeps_those_whose_surprise_is_the_expected_one() {
    // Probabilities 0.5, 0.25, 0.125, 0.125: the expected surprise is 1.75 bits, so the second (2 bits) is the most typical.
    let logits = [0.5_f32, 0.25, 0.125, 0.125].map(f32::ln);
    let drawn = |typical_p| {
        let counts = counts(&logits, &Sampling { typical_p, ..plain() }, 2_000);
        counts.iter().map(|n| *n > 0).collect::<Vec<_>>()
    };
    assert_eq!(drawn(0.2), [false, true, false, false]);
    assert_eq!(drawn(0.7), [true, true, false, false]);
    assert_eq!(drawn(0.8), [true, true, true, false]);
    assert_eq!(drawn(1.0), [true; 4]);
}

/// The module's steps, one after the other, nothing clever.
fn plainly(logits: &[f32], draw: &Draw<'_>) -> Option<u32> {
    let sampling = draw.sampling;
    let edited: Vec<f32> = (0..logits.len() as u32).map(|id| edited_plainly(logits[id as usize], id, draw)).collect();
    let mut ids: Vec<usize> = (0..logits.len()).filter(|id| is_candidate(*id as u32, draw)).collect();
    ids.sort_by(|a, b| edited[*b].partial_cmp(&edited[*a]).unwrap().then(a.cmp(b)));
    let max = f64::from(edited[*ids.first()?]);
    if sampling.temperature == 0.0 {
        return Some(ids[0] as u32);
    }
    let scaled = |id: usize| (f64::from(edited[id]) - max) / f64::from(sampling.temperature);
    let weight = |id: usize| f64::from(exp(scaled(id) as f32));
    ids.truncate(sampling.top_k.map_or(usize::MAX, |k| k as usize));
    ids.retain(|id| weight(*id) >= f64::from(sampling.min_p));
    let mut by_id = ids.clone();
    by_id.sort_unstable();
    let mut total = by_id.iter().fold(0.0, |sum, id| sum + weight(*id));
    let sums = |ids: &[usize]| {
        let mut sum = 0.0;
        ids.iter()
            .map(|id| {
                sum += weight(*id);
                sum
            })
            .collect::<Vec<f64>>()
    };
    if sampling.top_p < 1.0 {
        let sums = sums(&ids);
        let last = sums.iter().position(|c| *c >= f64::from(sampling.top_p) * total).unwrap_or(ids.len() - 1);
        total = sums[last];
        ids.truncate(last + 1);
    }
    if sampling.typical_p < 1.0 {
        let sum = sums(&ids).last().copied()?;
        let expected = ids.iter().fold(0.0, |e, id| e + weight(*id) * scaled(*id)) / sum;
        let mut typical: Vec<(f64, usize)> =
            ids.iter().enumerate().map(|(at, id)| ((scaled(*id) - expected).abs(), at)).collect();
        typical.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let places: Vec<usize> = typical.into_iter().map(|(_, at)| at).collect();
        let reached = sums(&places.iter().map(|at| ids[*at]).collect::<Vec<_>>());
        let last = reached.iter().position(|c| *c >= f64::from(sampling.typical_p) * sum).unwrap_or(ids.len() - 1);
        let kept = &places[..=last];
        ids = (0..ids.len()).filter(|at| kept.contains(at)).map(|at| ids[at]).collect();
        total = sums(&ids).last().copied()?;
    }
    let position = draw.prompt.len() + draw.generated.len();
    let target = uniform(sampling.seed, position as u64, draw.choice) * total;
    let sums = sums(&ids);
    let last = ids.iter().rposition(|id| weight(*id) > 0.0)?;
    Some(ids[sums.iter().position(|c| *c > target).unwrap_or(last)] as u32)
}

/// Step 1 for one token.
fn edited_plainly(logit: f32, id: u32, draw: &Draw<'_>) -> f32 {
    let sampling = draw.sampling;
    let mut logit = sampling.logit_bias.iter().filter(|(of, _)| *of == id).fold(logit, |l, (_, bias)| l + bias);
    let count = draw.generated.iter().filter(|token| **token == id).count();
    if count > 0 || draw.prompt.contains(&id) {
        logit = if logit > 0.0 { logit / sampling.repetition_penalty } else { logit * sampling.repetition_penalty };
    }
    if count > 0 {
        logit = logit - sampling.frequency_penalty * count as f32 - sampling.presence_penalty;
    }
    logit
}

/// Step 2 for one token.
fn is_candidate(id: u32, draw: &Draw<'_>) -> bool {
    let with_it = [draw.generated, &[id]].concat();
    let bad = draw.sampling.bad_words.iter().any(|word| with_it.ends_with(word));
    let allowed = draw.allowed.is_none_or(|words| words[id as usize / 32] >> (id % 32) & 1 == 1);
    allowed && !bad && !draw.banned.contains(&id)
}

prop_compose! {
    fn cuts()(
        temperature in prop_oneof![1 => Just(0.0), 9 => 0.05..3.0_f32],
        top_k in prop::option::of(2..90_u32),
        top_p in prop_oneof![Just(1.0), 0.0..=1.0_f32],
        min_p in prop_oneof![Just(0.0), 0.0..=1.0_f32],
        typical_p in prop_oneof![Just(1.0), 0.0..=1.0_f32],
        seed: u64,
    ) -> Sampling {
        Sampling { temperature, top_k, top_p, min_p, typical_p, seed, ..Sampling::default() }
    }
}

prop_compose! {
    fn samplings()(
        cuts in cuts(),
        repetition_penalty in prop_oneof![Just(1.0), 0.5..2.0_f32],
        presence_penalty in prop_oneof![Just(0.0), -2.0..2.0_f32],
        frequency_penalty in prop_oneof![Just(0.0), -2.0..2.0_f32],
        logit_bias in prop::collection::vec((0..90_u32, -100.0..100.0_f32), 0..3),
        bad_words in prop::collection::vec(prop::collection::vec(0..6_u32, 1..4), 0..4),
    ) -> Sampling {
        Sampling { repetition_penalty, presence_penalty, frequency_penalty, logit_bias, bad_words, ..cuts }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn as_plainly_done(
        logits in prop::collection::vec(prop_oneof![(-4..4_i8).prop_map(f32::from), -9.0..9.0_f32], 1..200),
        sampling in samplings(),
        prompt in prop::collection::vec(0..20_u32, 1..10),
        generated in prop::collection::vec(0..6_u32, 0..10),
        choice: u32,
        banned in prop::collection::vec(0..20_u32, 0..3),
        allowed in prop::option::of(prop::collection::vec(any::<u32>(), 7)),
    ) {
        let draw = Draw { choice, banned: &banned, allowed: allowed.as_deref(), ..Draw::new(&sampling, &prompt, &generated) };
        let found = sample(&logits, &draw);
        prop_assert_eq!(found.ok(), plainly(&logits, &draw));
        prop_assert_eq!(found, sample(&logits, &draw));
    }
}
