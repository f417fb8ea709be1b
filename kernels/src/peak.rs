//! As fast as this machine multiplies and adds, from registers alone: the ceiling that benchmarks compare with.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{Compute, Isa, arch};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// f32 fused multiply-adds: what float matmul is made of.
    Float,
    /// 8-bit multiply-adds with exact sums, as quantised matmul uses them: `tdpbssd` in AMX, `vpdpbusd` in AVX-512, `vpmaddubsw` and `vpaddw` in AVX2.
    Int8,
}

/// Multiplies and adds on all threads of `compute`, `rounds` times a fixed number of instructions each, and returns how many
/// operations that was (a multiply-add is two). The caller has the clock. `None` where there is only `portable`.
pub fn burn(compute: &Compute, unit: Unit, rounds: usize) -> Option<u64> {
    if compute.isa == Isa::Portable {
        return None;
    }
    let one = |rounds| match (compute.isa, unit) {
        (Isa::Portable, _) => 0,
        (Isa::Avx2(proof), Unit::Float) => arch::avx2::burn_float(proof, rounds),
        (Isa::Avx2(proof), Unit::Int8) => arch::avx2::burn_int8(proof, rounds),
        (Isa::Avx512(proof), Unit::Float) => arch::avx512::burn_float(proof, rounds),
        (Isa::Avx512(proof), Unit::Int8) => arch::avx512::burn_int8(proof, rounds),
        (Isa::Amx(proof), Unit::Float) => arch::avx512::burn_float(proof.avx512(), rounds),
        (Isa::Amx(proof), Unit::Int8) => arch::amx::burn_int8(proof, rounds),
    };
    let done = AtomicU64::new(0);
    compute.pool.run(compute.pool.threads() * PIECES, &|_| {
        done.fetch_add(one(rounds.div_ceil(PIECES)), Relaxed);
    });
    Some(done.into_inner())
}

/// Pieces a thread's share is cut in, so that threads end together.
const PIECES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_by_round_and_thread() {
        for isa in Isa::available() {
            for unit in [Unit::Float, Unit::Int8] {
                let count = |threads, rounds| burn(&Compute::new(isa, threads), unit, rounds);
                if isa == Isa::Portable {
                    assert_eq!(count(1, 16), None);
                } else {
                    let one = count(1, 16).unwrap();
                    assert!(one > 0 && count(2, 16) == Some(2 * one) && count(1, 48) == Some(3 * one), "{isa}");
                }
            }
        }
    }
}
