//! Attention with eight lanes: a tile's accumulators fill half of the registers.

crate::arch::attention!("avx2,fma,f16c", 4);
