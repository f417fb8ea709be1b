//! AVX-512 with VNNI. Each entry takes an `Avx512Proof`, which exists only where the CPU has the features named below.
//!
//! Row-wise operations are the portable bodies compiled with these features (`entries.rs`); matmul and attention are written out.
#![allow(unsafe_code)]

mod attention;
mod float;
pub(super) mod lanes;
mod peak;
pub(super) mod quantized;

crate::arch::entries!(Avx512Proof, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c");
