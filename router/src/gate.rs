//! The gate: from router logits to each token's k experts and their weights.

use tramontane_kernels::{math::exp, top_k};

use crate::Pair;

/// How the weights of the chosen experts come from the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateWeights {
    /// Softmax over the k chosen alone: they sum to one (Mixtral, Qwen with `norm_topk_prob`).
    Renormalised,
    /// Softmax over all experts, of which the k chosen keep their share (OLMoE).
    Softmax,
}

/// Each token's k experts, ascending, and what each expert's output weighs.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    experts_per_token: usize,
    experts: Vec<u32>,
    weights: Vec<f32>,
}

impl Routing {
    /// k, at least 1.
    pub fn experts_per_token(&self) -> usize {
        self.experts_per_token
    }

    /// How many tokens are routed.
    pub fn rows(&self) -> usize {
        self.experts.len() / self.experts_per_token
    }

    /// Token `i`'s k experts, ascending, and their weights.
    ///
    /// # Panics
    /// When `i` is not below [`Routing::rows`].
    pub fn row(&self, i: usize) -> (&[u32], &[f32]) {
        let range = i * self.experts_per_token..(i + 1) * self.experts_per_token;
        (&self.experts[range.clone()], &self.weights[range])
    }

    /// Every (token, expert) pair, each once, token by token.
    pub fn pairs(&self) -> impl Iterator<Item = Pair> {
        let k = self.experts_per_token;
        self.experts.iter().enumerate().map(move |(i, &expert)| Pair { expert, token: (i / k) as u32 })
    }
}

/// Why logits cannot be routed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// Refuse the model: its configuration asks for no experts, or for more than there are.
    #[error("{k} experts a token of {experts}")]
    BadCount {
        /// Experts a token asked for.
        k: usize,
        /// Experts there are.
        experts: usize,
    },
    /// Mend the caller: the logits are no whole rows.
    #[error("{logits} logits are no rows of {experts}")]
    Shape {
        /// Logits given.
        logits: usize,
        /// Experts, a row's length.
        experts: usize,
    },
    /// Fail the row's sequence: its hidden state is damaged.
    #[error("row {row}: the logit of expert {expert} is not finite")]
    NotFinite {
        /// The row.
        row: usize,
        /// The first expert whose logit is NaN or infinite.
        expert: usize,
    },
}

/// Chooses `k` of `experts` for each row of `logits` (rows × experts).
///
/// Numeric contract, all in f32: the k largest logits are chosen, ties go to the lower index; a NaN or infinite logit is an
/// error and never compared. With m the largest of the row's logits, `p_e = exp(l_e − m)`, where exp is the contract's.
/// [`GateWeights::Renormalised`]: `sum` adds the p of the chosen in ascending expert index, one rounded addition each;
/// weight = p_e ÷ sum. [`GateWeights::Softmax`]: the same with `sum` over all experts, ascending.
///
/// # Errors
/// [`GateError`]: a `k` of 0 or above `experts`, logits that are no whole rows, a logit that is not finite.
pub fn gate(logits: &[f32], experts: usize, k: usize, weights: GateWeights) -> Result<Routing, GateError> {
    if k == 0 || k > experts {
        return Err(GateError::BadCount { k, experts });
    }
    if !logits.len().is_multiple_of(experts) {
        return Err(GateError::Shape { logits: logits.len(), experts });
    }
    let pairs = logits.len() / experts * k;
    let mut routing =
        Routing { experts_per_token: k, experts: Vec::with_capacity(pairs), weights: Vec::with_capacity(pairs) };
    let mut chosen = Vec::with_capacity(k + 1);
    for (row, logits) in logits.chunks_exact(experts).enumerate() {
        if let Some(expert) = logits.iter().position(|l| !l.is_finite()) {
            return Err(GateError::NotFinite { row, expert });
        }
        top_k(logits, k, &mut chosen);
        let max = logits[chosen[0] as usize];
        chosen.sort_unstable();
        let probability = |&e: &u32| exp(logits[e as usize] - max);
        let sum = match weights {
            GateWeights::Renormalised => chosen.iter().map(probability).fold(0.0, |sum, p| sum + p),
            GateWeights::Softmax => logits.iter().map(|l| exp(l - max)).fold(0.0, |sum, p| sum + p),
        };
        routing.weights.extend(chosen.iter().map(|e| probability(e) / sum));
        routing.experts.extend_from_slice(&chosen);
    }
    Ok(routing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_the_largest_and_lists_them_ascending() {
        let routing = gate(&[0.0, 3.0, 1.0, 2.0, 9.0, -1.0, 9.5, 0.0], 4, 2, GateWeights::Renormalised).unwrap();
        assert_eq!(routing.rows(), 2);
        assert_eq!(routing.row(0).0, [1, 3]);
        assert_eq!(routing.row(1).0, [0, 2]);
        let pairs: Vec<_> = routing.pairs().map(|p| (p.token, p.expert)).collect();
        assert_eq!(pairs, [(0, 1), (0, 3), (1, 0), (1, 2)]);
    }

    #[test]
    fn ties_go_to_the_lower_index_also_between_the_zeros() {
        let routing = gate(&[1.0, 2.0, 2.0, 2.0], 4, 2, GateWeights::Renormalised).unwrap();
        assert_eq!(routing.row(0), (&[1, 2][..], &[0.5, 0.5][..]));
        let routing = gate(&[-0.0, 0.0, -0.0], 3, 1, GateWeights::Renormalised).unwrap();
        assert_eq!(routing.row(0), (&[0][..], &[1.0][..]));
    }

    #[test]
    fn weights_follow_the_contract_bit_for_bit() {
        let logits = [0.5f32, -1.25, 2.0, 1.75];
        let p = logits.map(|l| exp(l - 2.0));
        let renormalised = gate(&logits, 4, 2, GateWeights::Renormalised).unwrap();
        let sum = p[2] + p[3];
        assert_eq!(renormalised.row(0), (&[2, 3][..], &[p[2] / sum, p[3] / sum][..]));
        let softmax = gate(&logits, 4, 2, GateWeights::Softmax).unwrap();
        let sum = ((p[0] + p[1]) + p[2]) + p[3];
        assert_eq!(softmax.row(0), (&[2, 3][..], &[p[2] / sum, p[3] / sum][..]));
    }

    #[test]
    fn logits_far_apart_give_weight_zero_not_nan() {
        let routing = gate(&[f32::MAX, -f32::MAX], 2, 2, GateWeights::Renormalised).unwrap();
        assert_eq!(routing.row(0).1, [1.0, 0.0]);
    }

    #[test]
    fn refuses_what_cannot_be_compared_and_names_the_row() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let refused = gate(&[0.0, 1.0, 2.0, bad], 2, 1, GateWeights::Softmax);
            assert_eq!(refused, Err(GateError::NotFinite { row: 1, expert: 1 }));
        }
    }

    #[test]
    fn refuses_wrong_counts_and_shapes() {
        let gate = |logits: &[f32], experts, k| gate(logits, experts, k, GateWeights::Softmax);
        assert_eq!(gate(&[0.0; 4], 2, 0), Err(GateError::BadCount { k: 0, experts: 2 }));
        assert_eq!(gate(&[0.0; 4], 2, 3), Err(GateError::BadCount { k: 3, experts: 2 }));
        assert_eq!(gate(&[0.0; 5], 2, 1), Err(GateError::Shape { logits: 5, experts: 2 }));
        assert_eq!(gate(&[], 2, 1).unwrap().rows(), 0);
    }
}
