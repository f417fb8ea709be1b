//! AVX-512 where there is none: no `Avx512Proof` can exist, so nothing here is ever called.

use std::ops::Range;

use crate::attention::HeadGroup;
use crate::compute::Avx512Proof;
use crate::matmul::Output;
use crate::{Activations, PackedMatrix, arch::portable};

pub(crate) fn quantize(_: Avx512Proof, x: &[f32], width: usize, records: &mut [u8]) -> bool {
    portable::quantize(x, width, records)
}

pub(crate) fn rms_norm(_: Avx512Proof, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    portable::rms_norm(x, weight, epsilon, out);
}

pub(crate) fn swiglu(_: Avx512Proof, gate: &mut [f32], up: &[f32]) {
    portable::swiglu(gate, up);
}

pub(crate) fn attention(_: Avx512Proof, head: &HeadGroup<'_>) {
    portable::attention(head);
}

pub(crate) fn matmul(
    _: Avx512Proof,
    weights: &PackedMatrix,
    x: Activations<'_>,
    panels: Range<usize>,
    groups: Range<usize>,
    out: &Output<'_>,
) {
    portable::matmul(weights, x, panels, groups, out);
}

pub(crate) fn burn_float(_: Avx512Proof, _: usize) -> u64 {
    0
}

pub(crate) fn burn_int8(_: Avx512Proof, _: usize) -> u64 {
    0
}
