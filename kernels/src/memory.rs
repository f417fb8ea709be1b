//! Memory for weights: on huge pages where the system gives them, or borrowed from a mapping.
//!
//! A matrix product reads every byte of a matrix once a step. With pages of 4 KiB the address translation alone costs a quarter of the
//! bandwidth.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes of a huge page on x86-64 and AArch64 with 4 KiB base pages.
const HUGE_PAGE: usize = 2 << 20;
/// Alignment of what is smaller: a cache line.
pub(crate) const LINE: usize = 64;

/// Bytes that somebody else owns and nobody changes, such as a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Bytes, aligned to a cache line.
pub(crate) enum Memory {
    Owned(Owned),
    Shared(SharedBytes, Range<usize>),
}

impl Memory {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(owned) => owned.bytes(),
            Self::Shared(owner, range) => &(**owner).as_ref()[range.clone()],
        }
    }
}

/// An allocation of our own.
pub(crate) struct Owned {
    start: NonNull<u8>,
    len: usize,
    layout: Layout,
}

// SAFETY: it owns its bytes, and hands them out under the rules of `&` and `&mut`.
unsafe impl Send for Owned {}
// SAFETY: as above.
unsafe impl Sync for Owned {}

impl Owned {
    /// `len` zero bytes.
    pub(crate) fn zeroed(len: usize) -> Self {
        let align = if len >= HUGE_PAGE { HUGE_PAGE } else { LINE };
        // More than the address space holds is more than there is.
        let layout =
            Layout::from_size_align(len.max(1), align).unwrap_or_else(|_| handle_alloc_error(Layout::new::<u8>()));
        // SAFETY: the layout has a size above 0.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        if align == HUGE_PAGE {
            advise_huge(start.as_ptr(), len);
        }
        // Touched only now, so that the first touch already brings huge pages.
        // SAFETY: `len` bytes were allocated.
        unsafe { start.as_ptr().write_bytes(0, len) };
        Self { start, len, layout }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes were allocated and written.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes it the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and dropped once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// `values`, which nobody has touched yet, on huge pages where the system gives them.
pub(crate) fn on_huge_pages<T>(mut values: Vec<T>) -> Vec<T> {
    let start = values.as_mut_ptr().cast::<u8>();
    let (before, len) = (start.align_offset(HUGE_PAGE), std::mem::size_of_val(values.as_slice()));
    if before < len {
        advise_huge(start.wrapping_add(before), len - before);
    }
    values
}

/// Asks for huge pages. Advice: where it is refused, 4 KiB pages serve.
#[cfg(target_os = "linux")]
fn advise_huge(start: *mut u8, len: usize) {
    // SAFETY: whole pages of an allocation of ours; the advice changes no contents.
    let _ = unsafe { libc::madvise(start.cast(), len / HUGE_PAGE * HUGE_PAGE, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge(_: *mut u8, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_zero_aligned_and_writable() {
        for len in [0, 1, 100, HUGE_PAGE, 2 * HUGE_PAGE + 77] {
            let mut owned = Owned::zeroed(len);
            assert!(owned.bytes().iter().all(|b| *b == 0) && owned.bytes().len() == len);
            assert!((owned.start.as_ptr() as usize).is_multiple_of(if len >= HUGE_PAGE { HUGE_PAGE } else { LINE }));
            owned.bytes_mut().fill(7);
            assert!(Memory::Owned(owned).bytes().iter().all(|b| *b == 7));
        }
        let shared = Memory::Shared(Arc::new(vec![1u8, 2, 3]), 1..3);
        assert_eq!(shared.bytes(), [2, 3]);
    }
}
