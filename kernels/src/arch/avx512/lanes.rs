//! Between memory and registers of sixteen lanes, and what attention does with them.

use std::arch::x86_64::*;

/// Lanes of a register.
pub(super) const LANES: usize = 16;
/// A register of f32.
pub(super) type Floats = __m512;

/// Zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn zero() -> Floats {
    _mm512_setzero_ps()
}

/// `x` in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn splat(x: f32) -> Floats {
    _mm512_set1_ps(x)
}

/// a · b
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn mul(a: Floats, b: Floats) -> Floats {
    _mm512_mul_ps(a, b)
}

/// a · b + c, rounded once.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn fma(a: Floats, b: Floats, c: Floats) -> Floats {
    _mm512_fmadd_ps(a, b, c)
}

/// A register of f32.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn load(at: *const f32) -> Floats {
    // SAFETY: the caller's promise; an unaligned load.
    unsafe { _mm512_loadu_ps(at) }
}

/// To f32.
///
/// # Safety
/// There is room for them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn store(at: *mut f32, v: Floats) {
    // SAFETY: the caller's promise; an unaligned store.
    unsafe { _mm512_storeu_ps(at, v) }
}

/// Sixteen f16 as f32.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise; an unaligned load.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
}

/// Sixteen u8 as f32.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn unsigned_bytes(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise; an unaligned load.
    _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(at.cast()) }))
}

/// Sixteen i8 as i32.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn signed_bytes(at: *const u8) -> __m512i {
    // SAFETY: the caller's promise; an unaligned load.
    _mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(at.cast()) })
}

/// A register's values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::arch) fn lanes(v: Floats) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    // SAFETY: `out` has room for sixteen f32.
    unsafe { store(out.as_mut_ptr(), v) };
    out
}
