//! The sampler: from a row of logits to the next token. A pure function of the logits, the parameters and the position,
//! bit for bit: no state is carried from token to token, so a resumed or preempted sequence draws the same tokens.
//!
//! What is computed, exactly:
//!
//! 1. Candidates stand in descending order of their logits, equal ones in ascending order of their ids.
//! 2. Temperature 0 (or anything that is not above): the first candidate. Otherwise `top_k` keeps the first k.
//! 3. Weights: w = exp(f32((l − m) / T)), where m is the largest logit, and difference and quotient are f64.
//! 4. Cumulative weights c₀, c₁, …: w added in candidate order, in f64.
//! 5. `top_p` keeps the shortest prefix whose last cᵢ ≥ top_p · c_last, at least one candidate (the nucleus of
//!    Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020).
//! 6. Inverse CDF: the first candidate with cᵢ > u · c_kept, where u is [`uniform`] of (seed, position).

mod logprobs;
mod philox;
mod rank;
#[cfg(test)]
mod tests;

pub use tramontane_cluster::engine::Sampling;
use tramontane_kernels::math::exp;

pub use logprobs::{TokenLogprobs, logprobs};
pub use philox::uniform;

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// Its id: the index of its logit.
    pub token: u32,
}

/// The logits cannot be sampled from: end the sequence with an internal error, for the computation went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// A logit is NaN or infinite.
    #[error("logit {index} is not finite")]
    NotFinite {
        /// The lowest such id.
        index: usize,
    },
    /// There are no logits.
    #[error("no logits")]
    Empty,
}

/// Chooses the token for absolute position `position` from `logits` (one a token id).
pub fn sample(logits: &[f32], sampling: &Sampling, position: u64) -> Result<Sampled, SampleError> {
    let best = greedy(logits)?;
    let cold = sampling.temperature <= 0.0 || sampling.temperature.is_nan();
    if cold || sampling.top_k == Some(1) {
        return Ok(Sampled { token: best });
    }
    let count = sampling.top_k.map_or(logits.len(), |k| k as usize);
    let candidates = rank::best(logits, count);
    let cumulative = cumulative_weights(logits, &candidates, logits[best as usize], sampling.temperature);
    let kept = nucleus(&cumulative, sampling.top_p);
    let target = uniform(sampling.seed, position) * kept.last().copied().unwrap_or(0.0);
    let drawn = kept.partition_point(|c| *c <= target);
    Ok(Sampled { token: candidates.get(drawn).copied().unwrap_or(best) })
}

/// The id of the largest logit, the lowest of equal ones.
fn greedy(logits: &[f32]) -> Result<u32, SampleError> {
    if let Some(index) = logits.iter().position(|l| !l.is_finite()) {
        return Err(SampleError::NotFinite { index });
    }
    let best = logits.iter().enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map(|(id, _)| id as u32).ok_or(SampleError::Empty)
}

/// Running sums of the candidates' weights. `max` is the largest logit.
fn cumulative_weights(logits: &[f32], candidates: &[u32], max: f32, temperature: f32) -> Vec<f64> {
    // In f64, for the quotient must not become NaN at either end of f32's range.
    let scaled = |id: &u32| (f64::from(logits[*id as usize]) - f64::from(max)) / f64::from(temperature);
    let weights = candidates.iter().map(|id| f64::from(exp(scaled(id) as f32)));
    let add = |sum: &mut f64, weight: f64| {
        *sum += weight;
        Some(*sum)
    };
    weights.scan(0.0, add).collect()
}

/// The shortest prefix that has `top_p` of the whole weight.
fn nucleus(cumulative: &[f64], top_p: f32) -> &[f64] {
    let threshold = f64::from(top_p) * cumulative.last().copied().unwrap_or(0.0);
    let below = if top_p < 1.0 { cumulative.partition_point(|c| *c < threshold) } else { cumulative.len() };
    &cumulative[..cumulative.len().min(below + 1)]
}
