//! What an instruction set offers the operations: one list, so that every set has every entry, and where a CPU's family is absent
//! entries that nobody can call.

/// `entries!(Proof, "features")` in an instruction set's module: its entry for each operation, which takes the proof that the CPU has the
/// features. Row-wise operations are the portable bodies compiled with these; the rest is the module's own `attention`, `float`, `peak`
/// and `quantized`.
#[cfg(target_arch = "x86_64")]
macro_rules! entries {
    ($proof:ident, $features:literal) => {
        $crate::arch::entries!(@ $proof, $features,
            quantize(x: &[f32], width: usize, records: &mut [u8]) -> bool = $crate::arch::portable::quantize;
            receive(wire: &[u8], record: $crate::activations::Record, r: usize, records: &mut [u8]) -> () =
                $crate::arch::portable::receive;
            rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) -> () = $crate::arch::portable::rms_norm;
            rope(row: &mut [f32], order: $crate::RopePairs, sin: &[f32], cos: &[f32]) -> () = $crate::arch::portable::rope;
            swiglu(gate: &mut [f32], up: &[f32]) -> () = $crate::arch::portable::swiglu;
            attention(head: &$crate::attention::HeadGroup<'_>) -> () = attention::attention;
            merge(
                totals: &[$crate::attention::Total],
                partials: &[f32],
                stride: usize,
                merged: &mut Option<$crate::attention::Total>,
                out: &mut [f32]
            ) -> () = $crate::arch::portable::merge;
            burn_float(rounds: usize) -> u64 = peak::float;
            burn_int8(rounds: usize) -> u64 = peak::int8;
            matmul(
                ty: $crate::WeightType,
                strips: &[$crate::strips::Strip<'_>],
                activations: $crate::Activations<'_>,
                groups: std::ops::Range<usize>,
                prefetch: $crate::compute::Prefetch
            ) -> () = by_kind;
        );

        #[target_feature(enable = $features)]
        fn by_kind(
            ty: $crate::WeightType,
            strips: &[$crate::strips::Strip<'_>],
            activations: $crate::Activations<'_>,
            groups: std::ops::Range<usize>,
            prefetch: $crate::compute::Prefetch,
        ) {
            match activations {
                $crate::Activations::F32(x) => float::matmul(ty, strips, x, groups, prefetch),
                $crate::Activations::Q8(x) => quantized::matmul(ty, strips, x, groups, prefetch),
            }
        }
    };
    (@ $proof:ident, $features:literal,
        $($name:ident ( $($arg:ident : $ty:ty),* ) -> $ret:ty = $body:path;)*) => {
        $(pub(crate) fn $name(_: $crate::compute::$proof, $($arg: $ty),*) -> $ret {
            #[target_feature(enable = $features)]
            fn inner($($arg: $ty),*) -> $ret {
                $body($($arg),*)
            }
            // SAFETY: the proof says that the CPU has these features.
            unsafe { inner($($arg),*) }
        })*
    };
}

/// `entries!(Proof)`: no such proof can exist here, so nothing of this is ever called.
#[cfg(not(target_arch = "x86_64"))]
macro_rules! entries {
    ($proof:ident) => {
        pub(crate) use absent::*;

        mod absent {
            use std::ops::Range;

            use crate::activations::Record;
            use crate::arch::portable;
            use crate::attention::{HeadGroup, Total};
            use crate::compute::{Prefetch, $proof};
            use crate::strips::Strip;
            use crate::{Activations, RopePairs, WeightType};

            pub(crate) fn quantize(_: $proof, x: &[f32], width: usize, records: &mut [u8]) -> bool {
                portable::quantize(x, width, records)
            }

            pub(crate) fn receive(_: $proof, wire: &[u8], record: Record, r: usize, records: &mut [u8]) {
                portable::receive(wire, record, r, records);
            }

            pub(crate) fn rms_norm(_: $proof, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
                portable::rms_norm(x, weight, epsilon, out);
            }

            pub(crate) fn rope(_: $proof, row: &mut [f32], order: RopePairs, sin: &[f32], cos: &[f32]) {
                portable::rope(row, order, sin, cos);
            }

            pub(crate) fn swiglu(_: $proof, gate: &mut [f32], up: &[f32]) {
                portable::swiglu(gate, up);
            }

            pub(crate) fn attention(_: $proof, head: &HeadGroup<'_>) {
                portable::attention(head);
            }

            pub(crate) fn merge(
                _: $proof,
                totals: &[Total],
                partials: &[f32],
                stride: usize,
                merged: &mut Option<Total>,
                out: &mut [f32],
            ) {
                portable::merge(totals, partials, stride, merged, out);
            }

            pub(crate) fn matmul(
                _: $proof,
                ty: WeightType,
                strips: &[Strip<'_>],
                x: Activations<'_>,
                groups: Range<usize>,
                _: Prefetch,
            ) {
                portable::matmul(ty, strips, x, groups);
            }

            pub(crate) fn burn_float(_: $proof, _: usize) -> u64 {
                0
            }

            pub(crate) fn burn_int8(_: $proof, _: usize) -> u64 {
                0
            }
        }
    };
}

pub(crate) use entries;
