//! Between memory and registers of eight lanes.

use std::arch::x86_64::*;

/// Lanes of a register.
pub(super) const LANES: usize = 8;

/// Eight f16 as f32.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise; an unaligned load.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
}

/// Eight u8 as f32.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unsigned_bytes(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise; an unaligned load.
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(at.cast()) }))
}

/// Eight i8 as i32.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn signed_bytes(at: *const u8) -> __m256i {
    // SAFETY: the caller's promise; an unaligned load.
    _mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(at.cast()) })
}

/// A register's values.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn lanes(v: __m256) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    // SAFETY: `out` has room for eight f32.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) };
    out
}
