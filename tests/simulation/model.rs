//! The model that the simulated cluster serves: as small as a model can be in which every token depends on every row, expert
//! and key before it, and the direct computation that everything is compared with.

use tramontane_router::{ExpertId, GateWeights, Routing, gate};

/// Values in a row.
pub(crate) const WIDTH: usize = 4;
/// Different tokens.
pub(crate) const VOCAB: u32 = 64;

/// A row of hidden values.
pub(crate) type Row = [f32; WIDTH];

/// Sizes of the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    pub(crate) layers: u32,
    pub(crate) experts: u32,
    pub(crate) per_token: usize,
}

/// splitmix64's finaliser.
pub(crate) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Takes one more number into a hash.
pub(crate) fn fold(hash: u64, next: u64) -> u64 {
    (hash ^ next).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

/// A row whose values follow from `hash`, each in −1 … 1 and exact.
fn row_of(hash: u64) -> Row {
    let value = |column| (mix(hash.wrapping_add(column)) >> 40) as f32 / (1 << 23) as f32 - 1.0;
    [value(0), value(1), value(2), value(3)]
}

/// What a row is at the beginning.
pub(crate) fn embed(token: u32) -> Row {
    row_of(u64::from(token) << 32)
}

/// What a row leaves in the cache.
pub(crate) fn key(layer: u32, hidden: &[f32]) -> u64 {
    hidden.iter().fold(mix(u64::from(layer)), |hash, value| fold(hash, u64::from(value.to_bits())))
}

/// The row after attention over `keys`, those of its own sequence up to itself.
pub(crate) fn attend(keys: impl Iterator<Item = u64>) -> Row {
    row_of(keys.fold(0, fold))
}

/// What expert `id` answers to `row`.
pub(crate) fn expert(id: ExpertId, row: &[f32]) -> Row {
    let weights = row_of(mix(u64::from(id.layer) << 32 | u64::from(id.expert)) | 1 << 63);
    std::array::from_fn(|column| row[column] * weights[column] + row[(column + 1) % WIDTH] * weights[0])
}

/// The token after a row.
pub(crate) fn next_token(hidden: &[f32]) -> u32 {
    (mix(key(u32::MAX, hidden)) % u64::from(VOCAB)) as u32
}

impl Model {
    /// All experts.
    pub(crate) fn all(self) -> impl Iterator<Item = ExpertId> {
        (0..self.layers).flat_map(move |layer| (0..self.experts).map(move |expert| ExpertId::new(layer, expert)))
    }

    /// Which experts the rows of `hidden` go to.
    pub(crate) fn route(self, layer: u32, hidden: &[f32]) -> Routing {
        let logit = |row: &[f32], expert| key(layer << 8 | expert, row) >> 44;
        let logits: Vec<f32> = hidden
            .chunks_exact(WIDTH)
            .flat_map(|row| (0..self.experts).map(move |expert| logit(row, expert) as f32 / (1 << 18) as f32))
            .collect();
        gate(&logits, self.experts as usize, self.per_token, GateWeights::Renormalised).expect("finite logits")
    }

    /// Adds the experts' half of `layer` to `hidden`, without a cluster.
    pub(crate) fn experts(self, layer: u32, routing: &Routing, hidden: &mut [f32]) {
        for (token, row) in hidden.chunks_exact_mut(WIDTH).enumerate() {
            let (experts, weights) = routing.row(token);
            let mut sum: Option<Row> = None;
            for (&index, &weight) in experts.iter().zip(weights) {
                let term = expert(ExpertId::new(layer, index), row).map(|value| weight * value);
                sum = Some(sum.map_or(term, |sum| std::array::from_fn(|column| sum[column] + term[column])));
            }
            row.iter_mut().zip(sum.unwrap_or_default()).for_each(|(value, term)| *value += term);
        }
    }

    /// The tokens that follow `prompt`: one position after the other, without cache, batch or cluster.
    pub(crate) fn complete(self, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut keys = vec![Vec::new(); self.layers as usize];
        let (mut tokens, mut position) = (prompt.to_vec(), 0);
        while tokens.len() < prompt.len() + count {
            let mut hidden = embed(tokens[position]);
            for (layer, keys) in (0..).zip(&mut keys) {
                keys.push(key(layer, &hidden));
                hidden = attend(keys.iter().copied());
                let routing = self.route(layer, &hidden);
                self.experts(layer, &routing, &mut hidden);
            }
            position += 1;
            if position == tokens.len() {
                tokens.push(next_token(&hidden));
            }
        }
        tokens.split_off(prompt.len())
    }
}
