//! Where one layer's keys and values stand: blocks of positions, laid out for the attention kernel.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use crate::memory::on_huge_pages;
use crate::pool::Disjoint;
use crate::{Compute, QueryRow};

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
            KvType::F16 => KvData::F16 { k: on_huge_pages(vec![0; len]), v: on_huge_pages(vec![0; len]) },
            KvType::F32 => KvData::F32 { k: on_huge_pages(vec![0.0; len]), v: on_huge_pages(vec![0.0; len]) },
        };
        Self { kv_heads, head_dim, data }
    }

    /// Stores each row's key and value (rows × kv_heads × head_dim) at its position.
    ///
    /// # Panics
    /// When shapes do not fit, or a row's blocks do not reach its position or are none of this layer's.
    pub fn write(&mut self, compute: &Compute, rows: &[QueryRow<'_>], keys: &[f32], values: &[f32]) {
        let (heads, head_dim) = (self.kv_heads, self.head_dim);
        assert!(keys.len() == rows.len() * heads * head_dim && values.len() == keys.len(), "rows of keys and values");
        let rows = Rows { rows, keys, values, heads, head_dim };
        match &mut self.data {
            KvData::F16 { k, v } => {
                rows.store(compute, k, v, |from, to| to.reinterpret_cast_mut::<f16>().convert_from_f32_slice(from));
            }
            KvData::F32 { k, v } => rows.store(compute, k, v, |from, to| to.copy_from_slice(from)),
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

/// Keys and values on their way into the cache.
struct Rows<'a> {
    rows: &'a [QueryRow<'a>],
    keys: &'a [f32],
    values: &'a [f32],
    heads: usize,
    head_dim: usize,
}

/// Values that are rounded at a time.
const ROUNDED: usize = 16;

impl Rows<'_> {
    /// A head a piece: heads lie apart in a block, so that no two threads write the same value whatever the rows' blocks are.
    #[allow(unsafe_code)]
    fn store<T: Copy + Default + Send>(
        &self,
        compute: &Compute,
        k: &mut [T],
        v: &mut [T],
        round: impl Fn(&[f32], &mut [T]) + Sync,
    ) {
        let (heads, width) = (self.heads, self.head_dim);
        let (k, v) = (Disjoint::new(k), Disjoint::new(v));
        compute.pool.run(heads, &|head| {
            for (i, row) in self.rows.iter().enumerate() {
                let (block, slot) = (row.blocks[row.position / KV_BLOCK] as usize, row.position % KV_BLOCK);
                let at = (block * heads + head) * width * KV_BLOCK;
                let from = (i * heads + head) * width..(i * heads + head + 1) * width;
                // SAFETY: the head's part of a block, and the head is this piece's; `k` is not used meanwhile.
                let k = unsafe { k.part(at, width * KV_BLOCK) };
                for (from, to) in self.keys[from.clone()].chunks(ROUNDED).zip(k.chunks_mut(ROUNDED * KV_BLOCK)) {
                    let mut rounded = [T::default(); ROUNDED];
                    round(from, &mut rounded[..from.len()]);
                    for (value, to) in rounded.iter().zip(to.iter_mut().skip(slot).step_by(KV_BLOCK)) {
                        *to = *value;
                    }
                }
                // SAFETY: as above.
                round(&self.values[from], unsafe { v.part(at + slot * width, width) });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn a_copied_block_holds_the_same_and_the_others_what_they_did() {
        let compute = Compute::new(Isa::Portable, 1);
        for ty in [KvType::F16, KvType::F32] {
            let mut layer = KvLayer::new(ty, 3, 2, 4);
            let row = |start: u8| (start..start + 8).map(f32::from).collect::<Vec<_>>();
            for (block, slot) in [(0, 0), (0, 31), (1, 5), (2, 7)] {
                let rows = [QueryRow { position: slot as usize, blocks: &[block] }];
                layer.write(&compute, &rows, &row(block as u8 * 50 + slot), &row(100 + slot));
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
