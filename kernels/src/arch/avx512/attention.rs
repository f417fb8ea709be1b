//! Attention with sixteen lanes: a tile's accumulators fill half of the registers.

crate::arch::attention!("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c", 8);
