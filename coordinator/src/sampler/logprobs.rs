//! Log-probabilities of tokens, as clients ask for them: before temperature and cuts.

use tramontane_kernels::math::{exp, ln};

use super::rank;

/// The log-probabilities that go with one token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The chosen token's, natural logarithm.
    pub logprob: f32,
    /// The likeliest tokens with theirs, in the sampler's candidate order: descending, equal logits by ascending id.
    pub top: Vec<(u32, f32)>,
}

/// Log-softmax of `logits` (one a token id) at `chosen` and at the `top` likeliest ids:
/// (l − m) − ln(f32(Σ exp(l − m))), where m is the largest logit and the sum is f64 in ascending order of ids.
///
/// # Panics
/// When `chosen` is not below `logits.len()`. The logits must be those that [`super::sample`] accepted: finite.
pub fn logprobs(logits: &[f32], chosen: u32, top: usize) -> TokenLogprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(exp(l - max))).sum();
    let log_sum = ln(sum as f32);
    let logprob = |id: u32| (logits[id as usize] - max) - log_sum;
    let top = rank::best(logits, top).into_iter().map(|id| (id, logprob(id))).collect();
    TokenLogprobs { logprob: logprob(chosen), top }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_share_the_probability() {
        let found = logprobs(&[3.0; 4], 2, 2);
        let quarter = -ln(4.0);
        assert_eq!(found, TokenLogprobs { logprob: quarter, top: vec![(0, quarter), (1, quarter)] });
    }

    #[test]
    fn probabilities_sum_to_one_and_descend() {
        let logits = [0.5, -2.0, 3.25, 0.5, 1.0];
        let found = logprobs(&logits, 3, 9);
        let ids: Vec<u32> = found.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [2, 4, 0, 3, 1]);
        assert_eq!(found.logprob, found.top[3].1);
        let total: f64 = found.top.iter().map(|(_, l)| f64::from(*l).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6, "{total}");
    }

    #[test]
    fn against_the_formula_in_f64() {
        let logits = [10.0, 8.5, -30.0, 9.75];
        let sum: f64 = logits.iter().map(|l: &f32| f64::from(*l).exp()).sum();
        for (id, logit) in (0..).zip(logits) {
            let expected = f64::from(logit) - sum.ln();
            let found = f64::from(logprobs(&logits, id, 0).logprob);
            assert!((found - expected).abs() < 1e-5, "{id}: {found} for {expected}");
        }
    }

    #[test]
    fn a_difference_beyond_f32_is_minus_infinity_not_nan() {
        let found = logprobs(&[f32::MAX, f32::MIN], 1, 2);
        assert_eq!(found.top, [(0, 0.0), (1, f32::NEG_INFINITY)]);
    }

    #[test]
    fn no_top_is_an_empty_list() {
        assert!(logprobs(&[1.0, 2.0], 0, 0).top.is_empty());
    }
}
