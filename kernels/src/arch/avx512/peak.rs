//! Multiply-adds from registers: see `peak.rs`.

use std::arch::x86_64::*;
use std::hint::black_box;

/// Independent chains: more than an instruction's latency × its throughput.
const CHAINS: usize = 16;
/// Turns of the inner loop in a round.
const TURNS: usize = 256;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn float(rounds: usize) -> u64 {
    let (a, b) = (_mm512_set1_ps(black_box(1.000_000_1)), _mm512_set1_ps(black_box(1e-9)));
    let mut acc: [__m512; CHAINS] = std::array::from_fn(|i| _mm512_set1_ps(i as f32));
    for _ in 0..rounds {
        for _ in 0..TURNS {
            for acc in &mut acc {
                *acc = _mm512_fmadd_ps(*acc, a, b);
            }
        }
    }
    black_box(acc);
    (rounds * TURNS * CHAINS * 16 * 2) as u64
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn int8(rounds: usize) -> u64 {
    let a = _mm512_set1_epi8(black_box(3));
    let b = _mm512_set1_epi8(black_box(-5));
    let mut acc: [__m512i; CHAINS] = std::array::from_fn(|i| _mm512_set1_epi8(i as i8));
    for _ in 0..rounds {
        for _ in 0..TURNS {
            for acc in &mut acc {
                *acc = _mm512_dpbusd_epi32(*acc, a, b);
            }
        }
    }
    black_box(acc);
    // A register's bytes are so many products.
    (rounds * TURNS * CHAINS * size_of::<__m512i>() * 2) as u64
}
