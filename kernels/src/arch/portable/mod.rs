//! The numeric contract in plain Rust. Bodies are `inline(always)`: `avx2` compiles some of them again with its features on,
//! which changes the speed and not a bit, since Rust neither fuses nor reorders floating-point operations by itself.

mod attention;
mod matmul;
mod quantize;
mod rms_norm;
mod rope;
mod swiglu;

pub(crate) use attention::{attention, merge, merge_scales, sum_tree};
pub(crate) use matmul::matmul;
pub(crate) use quantize::{quantize, receive};
pub(crate) use rms_norm::rms_norm;
pub(crate) use rope::rope;
pub(crate) use swiglu::swiglu;
