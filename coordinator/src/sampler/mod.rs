//! The sampler: from a row of logits to the next token. A pure function of the logits, the parameters, the tokens so far and
//! the choice's number, bit for bit: no state is carried from token to token, so a resumed or preempted sequence draws the same
//! tokens. Order and meaning are vLLM's (`vllm/v1/sample`), with `typical_p` last.
//!
//! What is computed, exactly:
//!
//! 1. *Edits*, in f32 and in this order, each rounded: `logit_bias` is added; for tokens in prompt or completion
//!    `repetition_penalty` divides a positive logit and multiplies another (Keskar et al., "CTRL", 2019, section 4.1); for tokens in the
//!    completion `frequency_penalty` times their count is subtracted, then `presence_penalty`. Beyond f32's range a logit
//!    becomes the range's end. [`adjust`]
//! 2. *Candidates* are all tokens but: those a constraint does not allow; the last token of each of `bad_words` whose other tokens are
//!    the completion's last ones; and, before `min_tokens`, the stop tokens. They stand in descending order of their logits, equal ones in
//!    ascending order of their ids.
//! 3. Temperature 0 (or anything that is not above), or `top_k` 1: the first candidate.
//! 4. Weights: s = (l − m) / T, where m is the largest logit, difference and quotient in f64; w = exp(f32(s)).
//! 5. `top_k` keeps the first k candidates; `min_p` of these the ones with w ≥ min(`min_p`, 1). W: the weights of those kept, added
//!    in f64 in ascending order of ids.
//! 6. Cumulative weights c₀, c₁, …: w added in candidate order, in f64.
//! 7. `top_p` below 1 keeps the shortest prefix whose last cᵢ ≥ top_p · W, at least one candidate (the nucleus of Holtzman et al., "The Curious
//!    Case of Neural Text Degeneration", ICLR 2020); W becomes that cᵢ.
//! 8. `typical_p` below 1 (Meister et al., "Locally Typical Sampling", TACL 2023): let S = Σ w·s / Σ w over those kept, both sums in
//!    f64 in candidate order. A candidate's surprise differs from the expected one by |s − S|. Of the candidates in ascending order of
//!    that, equal ones in candidate order, the shortest prefix is kept whose weights, added in that order, reach typical_p · Σ w; at least one. c is
//!    added anew over those kept, and W becomes its last.
//! 9. Inverse CDF: the first candidate with cᵢ > u · W, where u is [`uniform`] of (seed, position, choice); should rounding leave none,
//!    the last with a weight above 0.

mod adjust;
mod logprobs;
mod philox;
mod rank;
#[cfg(test)]
mod tests;

pub use tramontane_cluster::engine::Sampling;
use tramontane_kernels::math::exp;

use rank::Ranked;

pub use logprobs::{TokenLogprobs, logprobs};
pub use philox::uniform;

/// A token to be drawn: how, and after what.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// How.
    pub sampling: &'a Sampling,
    /// The prompt's tokens.
    pub prompt: &'a [u32],
    /// The completion's so far. The token's absolute position is that behind both.
    pub generated: &'a [u32],
    /// The number of the choice.
    pub choice: u32,
    /// Tokens that must not be drawn: stop tokens, before there are `min_tokens`.
    pub banned: &'a [u32],
    /// What a constraint allows, 32 tokens a word, the lowest first; tokens beyond it are not.
    pub allowed: Option<&'a [u32]>,
}

impl<'a> Draw<'a> {
    /// A draw of choice 0 that nothing but `sampling` restricts.
    pub fn new(sampling: &'a Sampling, prompt: &'a [u32], generated: &'a [u32]) -> Self {
        Self { sampling, prompt, generated, choice: 0, banned: &[], allowed: None }
    }
}

/// No token can be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// A logit is NaN or infinite: end the sequence with an internal error, for the computation went wrong.
    #[error("logit {index} is not finite")]
    NotFinite {
        /// The lowest such id.
        index: usize,
    },
    /// What is allowed and what is banned leave no candidate: end the completion.
    #[error("no token is allowed")]
    NothingAllowed,
}

/// Chooses the token that follows from `logits` (one a token id).
///
/// # Errors
/// [`SampleError`].
pub fn sample(logits: &[f32], draw: &Draw<'_>) -> Result<u32, SampleError> {
    if let Some(index) = logits.iter().position(|l| !l.is_finite()) {
        return Err(SampleError::NotFinite { index });
    }
    let sampling = draw.sampling;
    let logits = adjust::adjusted(logits, draw);
    let (best, max) = greedy(&logits).ok_or(SampleError::NothingAllowed)?;
    let cold = sampling.temperature <= 0.0 || sampling.temperature.is_nan();
    if cold || sampling.top_k.is_some_and(|k| k <= 1) {
        return Ok(best);
    }
    let position = (draw.prompt.len() + draw.generated.len()) as u64;
    let drawn = uniform(sampling.seed, position, draw.choice);
    let scale = Scale { max: max.into(), temperature: sampling.temperature.into() };
    Ok(Candidates::new(&logits, sampling, scale).draw(sampling, drawn).unwrap_or(best))
}

/// The largest logit with its id, the lowest of equal ones; `None` when all are −∞, that is excluded.
fn greedy(logits: &[f32]) -> Option<(u32, f32)> {
    let best = (0..).zip(logits).reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    (*best.1 > f32::NEG_INFINITY).then_some((best.0, *best.1))
}

/// From logits to weights.
#[derive(Clone, Copy)]
struct Scale {
    max: f64,
    temperature: f64,
}

impl Scale {
    /// s of a logit. In f64, for the quotient must not become NaN at either end of f32's range.
    fn scaled(self, logit: f32) -> f64 {
        (f64::from(logit) - self.max) / self.temperature
    }

    /// w of a logit.
    fn weight(self, logit: f32) -> f64 {
        f64::from(exp(self.scaled(logit) as f32))
    }
}

/// The candidates that `top_k` and `min_p` keep, put in order only as far as they are looked at: a vocabulary is long,
/// and what is drawn stands at its beginning.
struct Candidates<'a> {
    logits: &'a [f32],
    scale: Scale,
    ranked: Ranked,
    /// Candidates that `top_k` leaves.
    count: usize,
    min_weight: f64,
    /// W of step 5.
    total: f64,
}

impl<'a> Candidates<'a> {
    fn new(logits: &'a [f32], sampling: &Sampling, scale: Scale) -> Self {
        let mut ranked = Ranked::new(logits);
        let count = sampling.top_k.map_or(ranked.len(), |k| ranked.len().min(k as usize));
        let min_weight = f64::from(sampling.min_p.min(1.0));
        let weights = |logit: &f32| Some(scale.weight(*logit)).filter(|weight| *weight >= min_weight);
        let total = if count < ranked.len() {
            let mut ids = ranked.first(count).to_vec();
            ids.sort_unstable();
            ids.iter().filter_map(|id| weights(&logits[*id as usize])).fold(0.0, |sum, weight| sum + weight)
        } else {
            logits.iter().filter_map(weights).fold(0.0, |sum, weight| sum + weight)
        };
        Self { logits, scale, ranked, count, min_weight, total }
    }

    /// Id and weight of candidate `at`, if it is kept.
    fn get(&mut self, at: usize) -> Option<(u32, f64)> {
        let id = (at < self.count).then(|| self.ranked.get(at)).flatten()?;
        let weight = self.scale.weight(self.logits[id as usize]);
        (weight >= self.min_weight).then_some((id, weight))
    }

    /// Steps 6 to 9.
    fn draw(mut self, sampling: &Sampling, drawn: f64) -> Option<u32> {
        if sampling.top_p >= 1.0 && sampling.typical_p >= 1.0 {
            let total = self.total;
            return inverse_cdf((0..).map_while(|at| self.get(at)), drawn * total);
        }
        let (mut kept, mut sum) = (Vec::new(), 0.0);
        let threshold = if sampling.top_p < 1.0 { f64::from(sampling.top_p) * self.total } else { f64::INFINITY };
        while let Some((id, weight)) = self.get(kept.len()) {
            kept.push((id, weight));
            sum += weight;
            if sum >= threshold {
                break;
            }
        }
        if sampling.typical_p < 1.0 {
            kept = self.typical(kept, sampling.typical_p);
            sum = kept.iter().fold(0.0, |sum, (_, weight)| sum + weight);
        }
        inverse_cdf(kept.into_iter(), drawn * sum)
    }

    /// Those of `kept` that are most typical, in the same order.
    fn typical(&self, kept: Vec<(u32, f64)>, mass: f32) -> Vec<(u32, f64)> {
        let scaled = |id: u32| self.scale.scaled(self.logits[id as usize]);
        let total = kept.iter().fold(0.0, |sum, (_, weight)| sum + weight);
        let expected = kept.iter().fold(0.0, |sum, (id, weight)| sum + weight * scaled(*id)) / total;
        let mut order: Vec<usize> = (0..kept.len()).collect();
        let off = |at: &usize| (scaled(kept[*at].0) - expected).abs();
        order.sort_by(|a, b| off(a).total_cmp(&off(b)).then(a.cmp(b)));
        let mut sum = 0.0;
        let reaches = |at: &usize| {
            sum += kept[*at].1;
            sum >= f64::from(mass) * total
        };
        let count = order.iter().position(reaches).map_or(kept.len(), |at| at + 1);
        order.truncate(count);
        order.sort_unstable();
        order.into_iter().map(|at| kept[at]).collect()
    }
}

/// The first candidate whose cumulative weight is above `target`, else the last with any weight.
fn inverse_cdf(candidates: impl Iterator<Item = (u32, f64)>, target: f64) -> Option<u32> {
    let (mut sum, mut last) = (0.0, None);
    for (id, weight) in candidates.filter(|(_, weight)| *weight > 0.0) {
        sum += weight;
        last = Some(id);
        if sum > target {
            break;
        }
    }
    last
}
