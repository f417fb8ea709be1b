//! AVX-512 where there is none.

crate::arch::entries!(Avx512Proof);
