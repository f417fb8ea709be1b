//! AVX2 + FMA + F16C. Each entry takes an `Avx2Proof`, which exists only where the CPU has all three.
//!
//! Row-wise operations are the portable bodies compiled with these features (`entries.rs`); matmul and attention are written out.
#![allow(unsafe_code)]

mod attention;
mod dots;
mod float;
mod lanes;
mod peak;
mod quantized;

crate::arch::entries!(Avx2Proof, "avx2,fma,f16c");
