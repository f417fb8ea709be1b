//! AVX2 where there is none.

crate::arch::entries!(Avx2Proof);
