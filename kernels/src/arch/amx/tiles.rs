//! Tiles: registers of up to sixteen rows of 64 bytes. They have a size only once a thread has configured them, and a process may use
//! them only once it has asked.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18 (AMX); Linux, Documentation/arch/x86/xstate.rst.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;

use crate::QUANT_BLOCK;

/// Rows of a tile, at most.
pub(super) const TILE_ROWS: usize = 16;
/// Bytes of a tile's row, at most.
pub(super) const TILE_BYTES: usize = 64;

/// Whether the CPU has tiles of int8, and the system lets this process use them, which it is asked for here.
pub(crate) fn is_permitted() -> bool {
    /// CPUID leaf 7, EDX: AMX-TILE and AMX-INT8.
    const FEATURES: u32 = 1 << 24 | 1 << 25;
    /// Linux: asks for a part of a thread's state that is too large to have unasked.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    /// The tiles' data.
    const XTILEDATA: libc::c_long = 18;
    __cpuid_count(7, 0).edx & FEATURES == FEATURES
        // SAFETY: it changes nothing but what this process may use.
        && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) } == 0
}

/// What `ldtilecfg` takes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// This thread's tiles: tiles 0 to 3 of `rows` × 16 i32, tile 4 of `rows` × `depth` int8, tile 5 of `depth / 4` × 16 × 4 int8. Given back
/// when dropped.
pub(super) struct Tiles {
    /// A thread's own.
    not_send: PhantomData<*const ()>,
}

impl Tiles {
    /// Configures them.
    ///
    /// # Safety
    /// [`is_permitted`]; nobody else has configured this thread's.
    pub(super) unsafe fn configure(rows: usize, depth: usize) -> Self {
        assert!(rows <= TILE_ROWS && depth <= TILE_BYTES && depth.is_multiple_of(4), "a tile's size");
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let (wide, rows) = (TILE_BYTES as u16, rows as u8);
        config.row_bytes[..6].copy_from_slice(&[wide, wide, wide, wide, depth as u16, wide]);
        config.rows[..6].copy_from_slice(&[rows, rows, rows, rows, rows, (depth / 4) as u8]);
        // SAFETY: the caller's promise; 64 bytes of a palette that there is.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly, preserves_flags)) };
        Self { not_send: PhantomData }
    }

    /// No products yet. Whatever is in the tiles goes to `c` (rows × 16) first.
    ///
    /// # Safety
    /// `c` is there until two products have been begun, or all are finished.
    pub(super) unsafe fn products(&self, c: *mut i32) -> Products<'_> {
        Products { _tiles: self, to: [c; 2] }
    }
}

/// Products one after the other: while one is stored the next is multiplied and the one after loaded, each in an instruction that need not
/// wait for another. So a product is stored with the second one after it.
pub(super) struct Products<'t> {
    _tiles: &'t Tiles,
    /// Where the two before go.
    to: [*mut i32; 2],
}

impl Products<'_> {
    /// Bytes from a row of `a` to the next.
    const A_STRIDE: usize = QUANT_BLOCK;

    /// `c` (rows × 16) = `a` (rows × depth) × `b` (depth / 4 × 16 × 4: four values of each column side by side).
    ///
    /// # Safety
    /// The matrices are there; `c` is until two more are begun, and nobody looks at it until then.
    #[inline(always)]
    pub(super) unsafe fn begin(&mut self, a: *const i8, b: *const i8, c: *mut i32) {
        // SAFETY: the caller's promise. What is left in tiles from one call to the next nothing else touches: the compiler, which
        // was not told of AMX, uses no tiles of its own.
        unsafe {
            asm!(
                "tilestored [{c} + {wide}], tmm0",
                "tilezero tmm0",
                "tdpbssd tmm0, tmm4, tmm5",
                "tileloadd tmm4, [{a} + {narrow}]",
                "tileloadd tmm5, [{b} + {wide}]",
                a = in(reg) a, b = in(reg) b, c = in(reg) self.to[0],
                narrow = in(reg) Self::A_STRIDE, wide = in(reg) TILE_BYTES,
                out("tmm0") _, out("tmm4") _, out("tmm5") _,
                options(nostack, preserves_flags),
            );
        }
        self.to = [self.to[1], c];
    }

    /// Stores the last two.
    ///
    /// # Safety
    /// They have been begun, and there is where they go.
    #[inline(always)]
    pub(super) unsafe fn finish(&self) {
        let [first, second] = self.to;
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tilestored [{first} + {wide}], tmm0",
                "tilezero tmm0",
                "tdpbssd tmm0, tmm4, tmm5",
                "tilestored [{second} + {wide}], tmm0",
                first = in(reg) first, second = in(reg) second, wide = in(reg) TILE_BYTES,
                out("tmm0") _,
                options(nostack, preserves_flags),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: they were configured, so there are tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}
