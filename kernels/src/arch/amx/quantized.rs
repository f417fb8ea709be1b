//! Quantised weights × int8 blocks: a product of tiles is the exact integer dots of a panel's sub-block with a group of rows, which
//! AVX-512 scales and adds in the contract's order.
//!
//! Both are laid out as tiles want them already: a group's block is rows of 32 int8, a panel's sub-block four values of each output row
//! side by side. Tiles multiply signed bytes with each other, so what a type takes off its integers comes off them when they are unpacked.

use std::arch::x86_64::*;
use std::ops::Range;

use super::tiles::{Products, TILE_ROWS, Tiles};
use crate::activations::{Q8_ROWS, Record};
use crate::arch::avx512::lanes::lanes;
use crate::arch::avx512::quantized::{self as avx512, Scales, sums, unpack};
use crate::arch::each_row;
use crate::arch::prefetch::{DISTANCE, prefetch_ahead};
use crate::arch::types::{Q4_0, Q5_0, Q6K, Q8_0, Ty, by_type, layout};
use crate::compute::Prefetch;
use crate::packed::{GROUP, PANEL};
use crate::strips::{Panel, Strip};
use crate::{Q8Buf, QUANT_BLOCK, WeightType};

/// Sub-blocks that are unpacked before the tiles load them: what was stored a moment ago has to reach the cache first.
const UNPACKED: usize = 2;
/// Sub-blocks whose products are on their way while those before them are scaled and added.
const MULTIPLIED: usize = 6;
/// Sub-blocks on their way in all.
const AHEAD: usize = UNPACKED + MULTIPLIED;
/// Sub-blocks after which the next panel is taken: so much of a group of rows stays in the first-level cache while a few panels meet it.
const CHUNK: usize = 32;
/// The most of these panels.
const PANELS: usize = 4;

/// What lies between tiles and registers.
#[repr(C, align(64))]
struct Scratch {
    /// Unpacked weights.
    weights: [[i8; 8 * GROUP]; UNPACKED],
    /// Dots of the whole, or of each half.
    dots: [[[i32; TILE_ROWS * PANEL]; 2]; AHEAD],
}

/// Rows of a group from which on tiles are faster.
const TILED_ROWS: usize = 9;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn matmul(ty: WeightType, strips: &[Strip<'_>], x: &Q8Buf, groups: Range<usize>, prefetch: Prefetch) {
    if groups.clone().all(|group| x.group(group).0 < TILED_ROWS) {
        return avx512::matmul(ty, strips, x, groups, prefetch);
    }
    by_type!(quantized ty, over_groups(strips, x, groups, prefetch));
}

/// Groups of enough rows in tiles, the others as AVX-512 does.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn over_groups<const TY: Ty>(strips: &[Strip<'_>], x: &Q8Buf, groups: Range<usize>, prefetch: Prefetch) {
    let mut scratch = Scratch { weights: [[0; 8 * GROUP]; UNPACKED], dots: [[[0; TILE_ROWS * PANEL]; 2]; AHEAD] };
    for group in groups {
        match x.group(group).0 {
            TILED_ROWS..=10 => over_panels::<TY, 10>(strips, x, group, &mut scratch),
            11 | 12 => over_panels::<TY, 12>(strips, x, group, &mut scratch),
            13 | 14 => over_panels::<TY, 14>(strips, x, group, &mut scratch),
            15.. => over_panels::<TY, TILE_ROWS>(strips, x, group, &mut scratch),
            _ => avx512::over_groups::<TY>(strips, x, group..group + 1, prefetch),
        }
    }
}

/// A group in tiles: of R rows, or of one less, whose last row is then taken twice. All CPUs with tiles want to be asked for weights.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn over_panels<const TY: Ty, const R: usize>(strips: &[Strip<'_>], x: &Q8Buf, group: usize, scratch: &mut Scratch) {
    let (rows, records) = x.group(group);
    let record = Record::of(rows);
    let blocks = records.len() / record.bytes();
    // SAFETY: there is a proof that there are tiles, or this would not be called.
    let tiles = unsafe { Tiles::configure(rows, if TY == Q6K { QUANT_BLOCK / 2 } else { QUANT_BLOCK }) };
    for strip in strips {
        for first in (0..strip.len()).step_by(PANELS) {
            let panels = first..strip.len().min(first + PANELS);
            let mut acc = [[_mm512_setzero_ps(); R]; PANELS];
            for start in (0..blocks).step_by(CHUNK) {
                let chunk = start..blocks.min(start + CHUNK);
                for (i, acc) in panels.clone().zip(&mut acc) {
                    add_chunk::<TY, R>(&strip.panel(i), (record, records), chunk.clone(), &tiles, scratch, acc);
                }
            }
            for (i, acc) in panels.zip(&acc) {
                let panel = strip.panel(i);
                each_row!(R, r, {
                    if r < rows {
                        panel.store(group * Q8_ROWS + r, 0, &lanes(acc[r]));
                    }
                });
            }
        }
    }
}

/// Adds sub-blocks `chunk` of a panel for a group's rows, R or one less.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn add_chunk<const TY: Ty, const R: usize>(
    panel: &Panel<'_>,
    (record, records): (Record, &[u8]),
    chunk: Range<usize>,
    tiles: &Tiles,
    scratch: &mut Scratch,
    acc: &mut [__m512; R],
) {
    const { assert!(R > TILE_ROWS / 2 && R <= TILE_ROWS, "the sums of so many rows are loaded as one register") };
    let layout = const { layout::<TY>() };
    let (start, count) = (chunk.start, chunk.len());
    assert!(
        (record.rows == R || record.rows + 1 == R)
            && start.is_multiple_of(layout.subs)
            && records.len() >= chunk.end * record.bytes()
            && panel.bytes.len() >= chunk.end.div_ceil(layout.subs) * layout.bytes(),
        "a panel's and a group's bytes"
    );
    // SAFETY: sub-block i < chunk.end of a panel and block i of a group are there by the assertion.
    unsafe {
        let first = Place {
            head: panel.bytes.as_ptr().add(start / layout.subs * layout.bytes()),
            sub: 0,
            record: records.as_ptr().add(start * record.bytes()),
        };
        // A copy of our own stays in registers.
        let mut sums = *acc;
        let (mut unpacked, mut multiplied, mut added) = (first, first, first);
        // The last slot takes what is in the tiles now: it is not wanted before the pipeline is full.
        let mut products = tiles.products(scratch.dots[AHEAD - 1][0].as_mut_ptr());
        for i in 0..count + AHEAD {
            if i >= AHEAD {
                added.add::<TY, R>(record, &scratch.dots[i % AHEAD], &mut sums);
                added.step::<TY>(record);
            }
            if i == count + UNPACKED {
                products.finish();
            } else if (UNPACKED..count + UNPACKED).contains(&i) {
                let dots = &mut scratch.dots[(i - UNPACKED) % AHEAD];
                multiplied.multiply::<TY>(&mut products, &scratch.weights[i % UNPACKED], dots);
                multiplied.step::<TY>(record);
            }
            if i < count {
                unpacked.prefetch::<TY>();
                if TY != Q8_0 {
                    // Where the one was that was loaded just now.
                    unpacked.unpack::<TY>(&mut scratch.weights[i % UNPACKED]);
                }
                unpacked.step::<TY>(record);
            }
        }
        *acc = sums;
    }
}

/// A sub-block of a panel, and the block of a group's rows that it meets.
#[derive(Clone, Copy)]
struct Place {
    /// The head of its super-block.
    head: *const u8,
    /// Its number within that.
    sub: usize,
    record: *const u8,
}

impl Place {
    /// To the next one.
    ///
    /// # Safety
    /// It is of a panel and a group.
    #[inline(always)]
    unsafe fn step<const TY: Ty>(&mut self, record: Record) {
        let layout = const { layout::<TY>() };
        // SAFETY: the caller's promise; behind the last one is the end of both.
        unsafe {
            self.record = self.record.add(record.bytes());
            self.sub += 1;
            if self.sub == layout.subs {
                (self.head, self.sub) = (self.head.add(layout.bytes()), 0);
            }
        }
    }

    /// Its bytes.
    ///
    /// # Safety
    /// It is of a panel.
    #[inline(always)]
    unsafe fn body<const TY: Ty>(self) -> *const u8 {
        let layout = const { layout::<TY>() };
        // SAFETY: the caller's promise.
        unsafe { self.head.add(layout.head + self.sub * layout.sub_bytes) }
    }

    /// Asks for weights behind it.
    ///
    /// # Safety
    /// It is of a panel.
    #[inline(always)]
    unsafe fn prefetch<const TY: Ty>(self) {
        let layout = const { layout::<TY>() };
        if self.sub == 0 {
            prefetch_ahead::<DISTANCE>(self.head, layout.head);
        }
        // SAFETY: the caller's promise.
        prefetch_ahead::<DISTANCE>(unsafe { self.body::<TY>() }, layout.sub_bytes);
    }

    /// Its integers as they are stored, less what the type takes off them.
    ///
    /// # Safety
    /// It is of a panel.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn unpack<const TY: Ty>(self, to: &mut [i8; 8 * GROUP]) {
        let offset = _mm512_set1_epi8(match TY {
            Q4_0 => 8,
            Q5_0 => 16,
            Q6K => 32,
            _ => 0,
        });
        // SAFETY: the caller's promise; 8 groups of 64 bytes, aligned as the scratch is.
        unsafe {
            for (g, w) in unpack::<TY>(self.body::<TY>()).into_iter().enumerate() {
                _mm512_store_si512(to.as_mut_ptr().add(GROUP * g).cast(), _mm512_sub_epi8(w, offset));
            }
        }
    }

    /// The dots of the sub-block, whose integers are `weights`, with the rows.
    ///
    /// # Safety
    /// It is of a panel and a group.
    #[inline(always)]
    unsafe fn multiply<const TY: Ty>(
        self,
        products: &mut Products<'_>,
        weights: &[i8; 8 * GROUP],
        dots: &mut [[i32; TILE_ROWS * PANEL]; 2],
    ) {
        // SAFETY: the caller's promise for every load; a row's values start its record.
        unsafe {
            // Int8 stands in a panel as tiles want it.
            let weights = if TY == Q8_0 { self.body::<TY>().cast() } else { weights.as_ptr() };
            let [whole, upper] = dots;
            products.begin(self.record.cast(), weights, whole.as_mut_ptr());
            if TY == Q6K {
                let (values, weights) = (self.record.add(QUANT_BLOCK / 2), weights.add(4 * GROUP));
                products.begin(values.cast(), weights, upper.as_mut_ptr());
            }
        }
    }

    /// Adds the dots, scaled.
    ///
    /// # Safety
    /// It is of a panel and a group of R rows or one less.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn add<const TY: Ty, const R: usize>(
        self,
        record: Record,
        dots: &[[i32; TILE_ROWS * PANEL]; 2],
        acc: &mut [__m512; R],
    ) {
        let [whole, upper] = dots;
        let last = record.rows - 1;
        // SAFETY: the caller's promise for every load; the group has at least half of TILE_ROWS. Behind the sums of fewer rows than a register has
        // lanes their first sums stand.
        unsafe {
            let scales = Scales::of::<TY>(self.head, self.sub);
            let row_scales = self.record.add(record.scale(0)).cast::<f32>();
            let minus_8_sums = _mm512_loadu_si512(self.record.add(record.sum(0)).cast());
            let sums = lanes(sums::<TY>(minus_8_sums));
            each_row!(R, r, {
                let at = if r + 1 == R { last } else { r };
                let dots = [whole, upper].map(|dots| _mm512_load_si512(dots.as_ptr().add(PANEL * at).cast()));
                let scale = _mm512_set1_ps(row_scales.add(at).read_unaligned());
                acc[r] = scales.add::<TY>(dots, scale, _mm512_set1_ps(sums[at]), acc[r]);
            });
        }
    }
}

const _: () = assert!(Q8_ROWS == TILE_ROWS, "a tile holds a group's rows");
