//! Multiply-adds from registers: see `peak.rs`.

use std::arch::x86_64::*;
use std::hint::black_box;

/// Independent chains: more than an instruction's latency × its throughput.
const CHAINS: usize = 12;
/// Turns of the inner loop in a round.
const TURNS: usize = 256;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn float(rounds: usize) -> u64 {
    let (a, b) = (_mm256_set1_ps(black_box(1.000_000_1)), _mm256_set1_ps(black_box(1e-9)));
    let mut acc: [__m256; CHAINS] = std::array::from_fn(|i| _mm256_set1_ps(i as f32));
    for _ in 0..rounds {
        for _ in 0..TURNS {
            for acc in &mut acc {
                *acc = _mm256_fmadd_ps(*acc, a, b);
            }
        }
    }
    black_box(acc);
    (rounds * TURNS * CHAINS * 8 * 2) as u64
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn int8(rounds: usize) -> u64 {
    let a = _mm256_set1_epi8(black_box(3));

    let mut acc: [__m256i; CHAINS] = std::array::from_fn(|i| _mm256_set1_epi8(i as i8));
    for _ in 0..rounds {
        for _ in 0..TURNS {
            for acc in &mut acc {
                *acc = _mm256_add_epi16(*acc, _mm256_maddubs_epi16(a, *acc));
            }
        }
    }
    black_box(acc);
    // A register's bytes are so many products.
    (rounds * TURNS * CHAINS * size_of::<__m256i>() * 2) as u64
}
