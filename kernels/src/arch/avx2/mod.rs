//! AVX2 + FMA + F16C. Each entry takes an `Avx2Proof`, which exists only where the CPU has all three.
//!
//! Row-wise operations are the portable bodies compiled with these features; matmul and attention are written out.
#![allow(unsafe_code)]

mod attention;
mod float;
mod lanes;
mod peak;
mod quantized;

use std::ops::Range;

use crate::arch::portable;
use crate::attention::HeadGroup;
use crate::compute::Avx2Proof;
use crate::matmul::Output;
use crate::{Activations, PackedMatrix};

macro_rules! with_features {
    ($(#[$doc:meta])* $name:ident ( $($arg:ident : $ty:ty),* ) $(-> $ret:ty)? = $body:path) => {
        $(#[$doc])*
        pub(crate) fn $name(_: Avx2Proof, $($arg: $ty),*) $(-> $ret)? {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn inner($($arg: $ty),*) $(-> $ret)? {
                $body($($arg),*)
            }
            // SAFETY: the proof says that the CPU has these features.
            unsafe { inner($($arg),*) }
        }
    };
}

with_features!(quantize(x: &[f32], width: usize, records: &mut [u8]) -> bool = portable::quantize);
with_features!(rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) = portable::rms_norm);
with_features!(swiglu(gate: &mut [f32], up: &[f32]) = portable::swiglu);
with_features!(attention(head: &HeadGroup<'_>) = attention::attention);
with_features!(burn_float(rounds: usize) -> u64 = peak::float);
with_features!(burn_int8(rounds: usize) -> u64 = peak::int8);
with_features!(
    /// Columns `panels` of the product for rows `groups`.
    matmul(weights: &PackedMatrix, activations: Activations<'_>, panels: Range<usize>, groups: Range<usize>, out: &Output<'_>) = by_kind
);

#[target_feature(enable = "avx2,fma,f16c")]
fn by_kind(
    weights: &PackedMatrix,
    activations: Activations<'_>,
    panels: Range<usize>,
    groups: Range<usize>,
    out: &Output<'_>,
) {
    match activations {
        Activations::F32(x) => float::matmul(weights, x, panels, groups, out),
        Activations::Q8(x) => quantized::matmul(weights, x, panels, groups, out),
    }
}
