//! Asking for memory before it is read.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

use crate::memory::LINE;

/// How many bytes before they are read weights are asked for, where kernels do ([`Prefetch::Software`](crate::compute::Prefetch)). It is a
/// const parameter of theirs, or 0 is: a choice at run time within their loops would cost CPUs that want none up to 40 %, for the compiler
/// then orders multiplications worse.
pub(crate) const DISTANCE: usize = 4096;

/// Asks for what stands `D` behind the `bytes` bytes from `at` on; for nothing if that is 0. Behind the end of a panel stands what is likely
/// read next.
#[inline(always)]
pub(crate) fn prefetch_ahead<const D: usize>(at: *const u8, bytes: usize) {
    if D > 0 {
        prefetch(at.wrapping_add(D), bytes);
    }
}

/// Asks for the `bytes` bytes from `at` on, into the second-level cache, which waits for more lines at once than the first.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8, bytes: usize) {
    for byte in (0..bytes).step_by(LINE) {
        // SAFETY: a hint, whatever the address.
        #[allow(unsafe_code)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(byte).cast());
        }
    }
}
