//! No AMX here: nobody can call these, for there is no proof of it.

use std::ops::Range;

use crate::compute::{AmxProof, Prefetch};
use crate::strips::Strip;
use crate::{Activations, WeightType};

pub(crate) fn is_permitted() -> bool {
    false
}

pub(crate) fn matmul(
    proof: AmxProof,
    ty: WeightType,
    strips: &[Strip<'_>],
    x: Activations<'_>,
    groups: Range<usize>,
    prefetch: Prefetch,
) {
    super::avx512::matmul(proof.avx512(), ty, strips, x, groups, prefetch);
}

pub(crate) fn burn_int8(_: AmxProof, _: usize) -> u64 {
    0
}
