//! AVX2 where there is none: no `Avx2Proof` can exist, so nothing here is ever called.

use std::ops::Range;

use crate::attention::HeadGroup;
use crate::compute::Avx2Proof;
use crate::matmul::Output;
use crate::{Activations, PackedMatrix, arch::portable};

pub(crate) fn quantize(_: Avx2Proof, x: &[f32], width: usize, records: &mut [u8]) -> bool {
    portable::quantize(x, width, records)
}

pub(crate) fn rms_norm(_: Avx2Proof, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    portable::rms_norm(x, weight, epsilon, out);
}

pub(crate) fn swiglu(_: Avx2Proof, gate: &mut [f32], up: &[f32]) {
    portable::swiglu(gate, up);
}

pub(crate) fn attention(_: Avx2Proof, head: &HeadGroup<'_>) {
    portable::attention(head);
}

pub(crate) fn matmul(
    _: Avx2Proof,
    weights: &PackedMatrix,
    x: Activations<'_>,
    panels: Range<usize>,
    groups: Range<usize>,
    out: &Output<'_>,
) {
    portable::matmul(weights, x, panels, groups, out);
}

pub(crate) fn burn_float(_: Avx2Proof, _: usize) -> u64 {
    0
}

pub(crate) fn burn_int8(_: Avx2Proof, _: usize) -> u64 {
    0
}
