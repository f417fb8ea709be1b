//! AMX: quantised matmul of many rows in tiles of int8. Whatever else there is to compute, AVX-512 does. Each entry takes an `AmxProof`,
//! which exists only where the CPU has both, and the system lets this process use tiles.
#![allow(unsafe_code)]

mod peak;
mod quantized;
mod tiles;

use std::ops::Range;

use crate::compute::{AmxProof, Prefetch};
use crate::strips::Strip;
use crate::{Activations, WeightType};

pub(crate) use tiles::is_permitted;

pub(crate) fn matmul(
    proof: AmxProof,
    ty: WeightType,
    strips: &[Strip<'_>],
    activations: Activations<'_>,
    groups: Range<usize>,
    prefetch: Prefetch,
) {
    match activations {
        Activations::F32(_) => super::avx512::matmul(proof.avx512(), ty, strips, activations, groups, prefetch),
        // SAFETY: the proof says that the CPU has these features.
        Activations::Q8(x) => unsafe { quantized::matmul(ty, strips, x, groups, prefetch) },
    }
}

pub(crate) fn burn_int8(_: AmxProof, rounds: usize) -> u64 {
    // SAFETY: the proof says that there are tiles.
    unsafe { peak::int8(rounds) }
}
