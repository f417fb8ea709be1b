//! Where one layer's keys and values stand: blocks of positions, laid out for the attention kernel.

use half::f16;

/// Positions in a block: the unit of paging and of attention's partial results.
pub const KV_BLOCK: usize = 32;

/// The type keys and values are rounded to and stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// IEEE binary16.
    F16,
    /// IEEE binary32: as computed.
    F32,
}

impl KvType {
    /// Bytes of a value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// The name used in flags and profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

/// Keys and values of one layer. A block holds, per KV head, keys as `head_dim × KV_BLOCK` (so that a lane is a key) and
/// values as `KV_BLOCK × head_dim`.
#[derive(Debug)]
pub struct KvLayer {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) data: KvData,
}

#[derive(Debug)]
pub(crate) enum KvData {
    F16 { k: Vec<u16>, v: Vec<u16> },
    F32 { k: Vec<f32>, v: Vec<f32> },
}

impl KvLayer {
    /// Room for `blocks` blocks.
    pub fn new(ty: KvType, blocks: usize, kv_heads: usize, head_dim: usize) -> Self {
        let len = blocks * kv_heads * head_dim * KV_BLOCK;
        let data = match ty {
            KvType::F16 => KvData::F16 { k: vec![0; len], v: vec![0; len] },
            KvType::F32 => KvData::F32 { k: vec![0.0; len], v: vec![0.0; len] },
        };
        Self { kv_heads, head_dim, data }
    }

    /// Stores one position's key and value rows (kv_heads × head_dim) in slot `slot` of `block`.
    ///
    /// # Panics
    /// When block, slot or rows do not fit.
    pub fn write(&mut self, block: u32, slot: usize, key: &[f32], value: &[f32]) {
        let (heads, width) = (self.kv_heads, self.head_dim);
        assert!(slot < KV_BLOCK && key.len() == heads * width && value.len() == key.len(), "one position's rows");
        let len = heads * width * KV_BLOCK;
        let block = block as usize * len..(block as usize + 1) * len;
        match &mut self.data {
            KvData::F16 { k, v } => {
                let round = |x: f32| f16::from_f32(x).to_bits();
                store(&mut k[block.clone()], &mut v[block], width, slot, [key, value], round);
            }
            KvData::F32 { k, v } => store(&mut k[block.clone()], &mut v[block], width, slot, [key, value], |x| x),
        }
    }

    /// Makes block `to` hold what block `from` does.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let len = self.kv_heads * self.head_dim * KV_BLOCK;
        let (source, to) = (from as usize * len..(from as usize + 1) * len, to as usize * len);
        match &mut self.data {
            KvData::F16 { k, v } => [k, v].map(|values| values.copy_within(source.clone(), to)),
            KvData::F32 { k, v } => [k, v].map(|values| values.copy_within(source.clone(), to)),
        };
    }
}

fn store<T>(k: &mut [T], v: &mut [T], width: usize, slot: usize, [key, value]: [&[f32]; 2], round: impl Fn(f32) -> T) {
    let heads = k.chunks_exact_mut(width * KV_BLOCK).zip(v.chunks_exact_mut(width * KV_BLOCK));
    for ((k, v), (key, value)) in heads.zip(key.chunks_exact(width).zip(value.chunks_exact(width))) {
        for (d, x) in key.iter().enumerate() {
            k[d * KV_BLOCK + slot] = round(*x);
        }
        for (to, x) in v[slot * width..(slot + 1) * width].iter_mut().zip(value) {
            *to = round(*x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_block_holds_the_same_and_the_others_what_they_did() {
        for ty in [KvType::F16, KvType::F32] {
            let mut layer = KvLayer::new(ty, 3, 2, 4);
            let row = |start: u8| (start..start + 8).map(f32::from).collect::<Vec<_>>();
            for (block, slot) in [(0, 0), (0, 31), (1, 5), (2, 7)] {
                layer.write(block, slot, &row(block as u8 * 50 + slot as u8), &row(100 + slot as u8));
            }
            let before = blocks(&layer);
            layer.copy_block(0, 2);
            let after = blocks(&layer);
            assert_eq!(after, [&before[0], &before[1], &before[0]].map(Clone::clone));
            assert_ne!(before[0], before[2]);
        }
    }

    /// What each block holds, keys then values.
    fn blocks(layer: &KvLayer) -> [Vec<f32>; 3] {
        let len = layer.kv_heads * layer.head_dim * KV_BLOCK;
        let (k, v): (Vec<f32>, Vec<f32>) = match &layer.data {
            KvData::F32 { k, v } => (k.clone(), v.clone()),
            KvData::F16 { k, v } => {
                let floats = |values: &[u16]| values.iter().map(|bits| f16::from_bits(*bits).to_f32()).collect();
                (floats(k), floats(v))
            }
        };
        [0, 1, 2].map(|block| [&k[block * len..][..len], &v[block * len..][..len]].concat())
    }
}
