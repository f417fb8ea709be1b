//! Multiply-adds from tiles: see `peak.rs`.

use std::arch::asm;

use super::tiles::{TILE_BYTES, TILE_ROWS, Tiles};

/// Turns of the inner loop in a round.
const TURNS: usize = 64;
/// Products in a turn, each into a tile of its own: more than an instruction's latency × its throughput.
const CHAINS: usize = 4;

/// # Safety
/// There are tiles, and this thread's are not configured.
pub(super) unsafe fn int8(rounds: usize) -> u64 {
    // SAFETY: the caller's promise; tiles 0 to 5 are full, and are multiplied as they are.
    unsafe {
        let tiles = Tiles::configure(TILE_ROWS, TILE_BYTES);
        for _ in 0..rounds * TURNS {
            asm!(
                "tdpbssd tmm0, tmm4, tmm5",
                "tdpbssd tmm1, tmm4, tmm5",
                "tdpbssd tmm2, tmm4, tmm5",
                "tdpbssd tmm3, tmm4, tmm5",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem, preserves_flags),
            );
        }
        drop(tiles);
    }
    (rounds * TURNS * CHAINS * TILE_ROWS * TILE_ROWS * TILE_BYTES * 2) as u64
}
