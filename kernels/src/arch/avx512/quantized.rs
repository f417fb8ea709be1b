//! Quantised weights × int8 blocks: a lane an output row, `vpdpbusd` for the exact integer dots, one or two fma a block.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. Weights are its unsigned side, so what a type takes off its integers (8, 16, 32, or
//! the 128 that make int8 unsigned) comes off a dot as a multiple of the activations' sum: the accumulator starts there.

use std::arch::x86_64::*;
use std::ops::Range;

use super::lanes::{halves, lanes, signed_bytes, unsigned_bytes};
use crate::activations::{Q8_ROWS, Record};
use crate::arch::prefetch::{DISTANCE, prefetch_ahead};
use crate::arch::types::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Ty, by_type, layout};
use crate::arch::{each_row, side_by_side};
use crate::compute::Prefetch;
use crate::packed::{GROUP, PANEL};
use crate::strips::{Panel, Strip};
use crate::{Q8Buf, WeightType};

/// The most sums of a tile, a register each.
const TILE_SUMS: usize = 16;
/// Rows of a short tile: one with few chains of dependent instructions, which are cut in two.
const SHORT_TILE: usize = 4;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::arch) fn matmul(
    ty: WeightType,
    strips: &[Strip<'_>],
    x: &Q8Buf,
    groups: Range<usize>,
    prefetch: Prefetch,
) {
    by_type!(quantized ty, over_groups(strips, x, groups, prefetch));
}

/// A group's rows, all of them beside each other, meet each panel: both stay in the second-level cache.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::arch) fn over_groups<const TY: Ty>(
    strips: &[Strip<'_>],
    x: &Q8Buf,
    groups: Range<usize>,
    prefetch: Prefetch,
) {
    for group in groups {
        let (rows, records) = x.group(group);
        let at = group * Q8_ROWS;
        match rows {
            1 => few_rows::<TY, 1>(strips, records, at, prefetch),
            2 => few_rows::<TY, 2>(strips, records, at, prefetch),
            3 => few_rows::<TY, 3>(strips, records, at, prefetch),
            4 => few_rows::<TY, 4>(strips, records, at, prefetch),
            5 => few_rows::<TY, 5>(strips, records, at, prefetch),
            6 => few_rows::<TY, 6>(strips, records, at, prefetch),
            7 => few_rows::<TY, 7>(strips, records, at, prefetch),
            8 => few_rows::<TY, 8>(strips, records, at, prefetch),
            _ => {
                for panel in strips.iter().flat_map(Strip::panels) {
                    Tile { panels: [panel], records, rows, at }.over_rows::<TY>();
                }
            }
        }
    }
}

/// A group of R rows meets the strips side by side, each a stream of memory.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn few_rows<const TY: Ty, const R: usize>(strips: &[Strip<'_>], records: &[u8], at: usize, prefetch: Prefetch) {
    match prefetch {
        Prefetch::Software => abreast::<TY, R, DISTANCE>(strips, records, at),
        Prefetch::Hardware => abreast::<TY, R, 0>(strips, records, at),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn abreast<const TY: Ty, const R: usize, const D: usize>(strips: &[Strip<'_>], records: &[u8], at: usize) {
    side_by_side!(strips, panels => if R * panels.len() <= TILE_SUMS {
        Tile { panels, records, rows: R, at }.compute::<TY, R, D>(0);
    } else {
        let (pairs, rest) = panels.as_chunks::<2>();
        for &panels in pairs {
            Tile { panels, records, rows: R, at }.compute::<TY, R, D>(0);
        }
        for &panel in rest {
            Tile { panels: [panel], records, rows: R, at }.compute::<TY, R, D>(0);
        }
    });
}

/// P panels and a group of rows.
struct Tile<'a, const P: usize> {
    panels: [Panel<'a>; P],
    records: &'a [u8],
    /// Rows in the group.
    rows: usize,
    /// The group's first row.
    at: usize,
}

impl<const P: usize> Tile<'_, P> {
    /// Computes the group's rows, more than eight: what is left after the first tile are three at most.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn over_rows<const TY: Ty>(&self) {
        let mut row = 0;
        while row < self.rows {
            row += match self.rows - row {
                1 => self.compute::<TY, 1, 0>(row),
                2 => self.compute::<TY, 2, 0>(row),
                3 => self.compute::<TY, 3, 0>(row),
                Q8_ROWS => self.compute::<TY, Q8_ROWS, 0>(row),
                12..Q8_ROWS => self.compute::<TY, 12, 0>(row),
                _ => self.compute::<TY, 8, 0>(row),
            };
        }
    }

    /// Computes rows `row…row + R` of the group; returns R.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn compute<const TY: Ty, const R: usize, const D: usize>(&self, row: usize) -> usize {
        let layout = const { layout::<TY>() };
        let record = Record::of(self.rows);
        let supers = self.records.len() / (record.bytes() * layout.subs);
        assert!(
            row + R <= self.rows
                && self.records.len() == supers * layout.subs * record.bytes()
                && self.panels.iter().all(|panel| panel.bytes.len() == layout.panel_bytes(supers)),
            "a panel's and a group's bytes"
        );
        let mut acc = [[_mm512_setzero_ps(); R]; P];
        // SAFETY: super-block s < supers of a panel has its head at s·bytes, its body behind that, and each of its subs
        // sub-blocks one record, by the assertion; row + r is one of the record's rows.
        unsafe {
            let mut heads = self.panels.map(|panel| panel.bytes.as_ptr());
            let mut values = self.records.as_ptr().add(record.values(row));
            let mut scales = self.records.as_ptr().add(record.scale(row));
            let sums = record.sum(0) - record.scale(0);
            for _ in 0..supers {
                let mut bodies = heads.map(|head| head.add(layout.head));
                each_row!(P, p, {
                    prefetch_ahead::<D>(heads[p], layout.head);
                });
                for sub in 0..layout.subs {
                    let x = Rows { values, scales, sums };
                    each_row!(P, p, {
                        prefetch_ahead::<D>(bodies[p], layout.sub_bytes);
                        add_sub_block::<TY, R>(heads[p], bodies[p], sub, &x, &mut acc[p]);
                        bodies[p] = bodies[p].add(layout.sub_bytes);
                    });
                    values = values.add(record.bytes());
                    scales = scales.add(record.bytes());
                }
                heads = heads.map(|head| head.add(layout.bytes()));
            }
        }
        for (panel, acc) in self.panels.iter().zip(&acc) {
            each_row!(R, r, {
                panel.store(self.at + row + r, 0, &lanes(acc[r]));
            });
        }
        R
    }
}

/// Where one block of a tile's rows stands.
struct Rows {
    values: *const u8,
    scales: *const u8,
    /// From a field to the next: scales, sums, first sums.
    sums: usize,
}

impl Rows {
    /// Values 4g…4g + 3 of row r, in every lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn four(&self, r: usize, g: usize) -> __m512i {
        // SAFETY: the caller's: row r is there.
        _mm512_set1_epi32(unsafe { self.values.add(32 * r + 4 * g).cast::<i32>().read_unaligned() })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn scale(&self, r: usize) -> __m512 {
        // SAFETY: as above.
        _mm512_set1_ps(unsafe { self.scales.add(4 * r).cast::<f32>().read_unaligned() })
    }

    /// −8 × the sum of row r's values; with `field` 2 of its first 16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn sum(&self, r: usize, field: usize) -> __m512i {
        // SAFETY: as above.
        _mm512_set1_epi32(unsafe { self.scales.add(field * self.sums + 4 * r).cast::<i32>().read_unaligned() })
    }
}

/// Adds sub-block `sub`, which meets the block `x` of R rows.
///
/// # Safety
/// `head`, `body` and `x` point to the fields of one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn add_sub_block<const TY: Ty, const R: usize>(
    head: *const u8,
    body: *const u8,
    sub: usize,
    x: &Rows,
    acc: &mut [__m512; R],
) {
    // SAFETY: the caller's promise for every load.
    unsafe {
        let w = unpack::<TY>(body);
        let scales = Scales::of::<TY>(head, sub);
        each_row!(R, r, {
            let dots = dots::<TY, R>(&w, x, r);
            acc[r] = scales.add::<TY>(dots, x.scale(r), sums::<TY>(x.sum(r, 1)), acc[r]);
        });
    }
}

/// What all rows' dots with a sub-block are scaled by. A field that a type lacks is zero.
pub(in crate::arch) struct Scales {
    d: __m512,
    /// Of the rows' sums.
    m: __m512,
    /// Of the halves.
    sc: [__m512i; 2],
}

impl Scales {
    /// Sub-block `sub`'s.
    ///
    /// # Safety
    /// `head` points to the head of its super-block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(in crate::arch) unsafe fn of<const TY: Ty>(head: *const u8, sub: usize) -> Self {
        let layout = const { layout::<TY>() };
        // SAFETY: the caller's promise for every load.
        unsafe {
            let (mut d, mut m, mut sc) = (halves(head), _mm512_setzero_ps(), [_mm512_setzero_si512(); 2]);
            match TY {
                Q6K => {
                    let at = head.add(layout.sub_scales.0 + 2 * PANEL * sub);
                    sc = [signed_bytes(at), signed_bytes(at.add(PANEL))];
                }
                Q4K | Q5K => {
                    d = _mm512_mul_ps(d, unsigned_bytes(head.add(layout.sub_scales.0 + PANEL * sub)));
                    let minima = unsigned_bytes(head.add(layout.minima + PANEL * sub));
                    m = _mm512_mul_ps(halves(head.add(layout.offsets)), minima);
                }
                Q4_1 | Q5_1 => m = halves(head.add(layout.offsets)),
                _ => {}
            }
            Self { d, m, sc }
        }
    }

    /// `acc` and what a row adds to it whose dots with the halves these are (where the halves have one scale, the first is of the whole),
    /// with its scale and [`sums`] in every lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(in crate::arch) fn add<const TY: Ty>(
        &self,
        [dot, upper]: [__m512i; 2],
        scale: __m512,
        sum: __m512,
        acc: __m512,
    ) -> __m512 {
        let dot = match TY {
            Q6K => _mm512_add_epi32(_mm512_mullo_epi32(self.sc[0], dot), _mm512_mullo_epi32(self.sc[1], upper)),
            _ => dot,
        };
        let acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(self.d, scale), acc);
        match TY {
            Q4_1 | Q5_1 | Q4K | Q5K => _mm512_fmadd_ps(sum, _mm512_mul_ps(self.m, scale), acc),
            _ => acc,
        }
    }
}

/// What offsets and minima are multiplied by, of −8 times the sums of values: the sums, and minus the sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::arch) fn sums<const TY: Ty>(minus_8_sums: __m512i) -> __m512 {
    let minus_sums = _mm512_srai_epi32(minus_8_sums, 3);
    _mm512_cvtepi32_ps(match TY {
        Q4_1 | Q5_1 => _mm512_sub_epi32(_mm512_setzero_si512(), minus_sums),
        _ => minus_sums,
    })
}

/// Row r's dots with the halves of a sub-block; where these have one scale, the first is of the whole. The unsigned weights' offset is
/// taken off by where a dot starts: −8, −16, −32 or −128 times the sum.
///
/// # Safety
/// Row r is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn dots<const TY: Ty, const R: usize>(w: &[__m512i; 8], x: &Rows, r: usize) -> [__m512i; 2] {
    let zero = _mm512_setzero_si512();
    // SAFETY: the caller's promise for every load.
    unsafe {
        if TY == Q6K {
            let (all, first) = (x.sum(r, 1), x.sum(r, 2));
            let mut dot_0 = _mm512_slli_epi32(first, 2);
            let mut dot_1 = _mm512_slli_epi32(_mm512_sub_epi32(all, first), 2);
            for g in 0..4 {
                dot_0 = _mm512_dpbusd_epi32(dot_0, w[g], x.four(r, g));
                dot_1 = _mm512_dpbusd_epi32(dot_1, w[g + 4], x.four(r, g + 4));
            }
            return [dot_0, dot_1];
        }
        let start = match TY {
            Q4_0 => x.sum(r, 1),
            Q5_0 => _mm512_slli_epi32(x.sum(r, 1), 1),
            Q8_0 => _mm512_slli_epi32(x.sum(r, 1), 4),
            _ => zero,
        };
        [dot::<R>(w, x, r, start), zero]
    }
}

/// `start` + the dot of all 32 values with row r. Short tiles cut the chain of dependent instructions in two.
///
/// # Safety
/// Row r is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn dot<const R: usize>(w: &[__m512i; 8], x: &Rows, r: usize, start: __m512i) -> __m512i {
    let (mut dot, mut upper) = (start, _mm512_setzero_si512());
    for g in 0..4 {
        // SAFETY: the caller's promise.
        let (low, high) = unsafe { (x.four(r, g), x.four(r, g + 4)) };
        dot = _mm512_dpbusd_epi32(dot, w[g], low);
        if R <= SHORT_TILE {
            upper = _mm512_dpbusd_epi32(upper, w[g + 4], high);
        } else {
            dot = _mm512_dpbusd_epi32(dot, w[g + 4], high);
        }
    }
    if R <= SHORT_TILE { _mm512_add_epi32(dot, upper) } else { dot }
}

/// A sub-block's integers, unsigned: register g holds values 4g…4g + 3 of every row.
///
/// # Safety
/// `body` points to a sub-block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::arch) unsafe fn unpack<const TY: Ty>(body: *const u8) -> [__m512i; 8] {
    let high = const { layout::<TY>().high };
    // SAFETY: a sub-block has `high` bytes of high bits and 4 groups after them, or 8 groups.
    let load = |at: usize| unsafe { _mm512_loadu_si512(body.add(at).cast()) };
    let group = |g: usize| load(high + GROUP * g);
    if TY == Q8_0 {
        let flip = _mm512_set1_epi8(-128);
        return [0, 1, 2, 3, 4, 5, 6, 7].map(|g| _mm512_xor_si512(group(g), flip));
    }
    let nibble = _mm512_set1_epi8(15);
    let mut w = [_mm512_setzero_si512(); 8];
    for g in 0..4 {
        let both = group(g);
        w[g] = _mm512_and_si512(both, nibble);
        w[g + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    }
    if TY == Q6K {
        let mask = _mm512_set1_epi8(48);
        for half in 0..2 {
            let bits = load(GROUP * half);
            let at_4 = [_mm512_slli_epi16(bits, 4), _mm512_slli_epi16(bits, 2), bits, _mm512_srli_epi16(bits, 2)];
            for g in 0..4 {
                w[4 * half + g] = or_masked(w[4 * half + g], at_4[g], mask);
            }
        }
    } else if matches!(TY, Q5_0 | Q5_1 | Q5K) {
        let (bits, mask) = (load(0), _mm512_set1_epi8(16));
        let lower = [4, 3, 2, 1].map(|n| _mm512_sll_epi16(bits, _mm_cvtsi32_si128(n)));
        let upper = [0, 1, 2, 3].map(|n| _mm512_srl_epi16(bits, _mm_cvtsi32_si128(n)));
        for g in 0..4 {
            w[g] = or_masked(w[g], lower[g], mask);
            w[g + 4] = or_masked(w[g + 4], upper[g], mask);
        }
    }
    w
}

/// a | (b & mask)
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn or_masked(a: __m512i, b: __m512i, mask: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32(a, b, mask, 0xf8)
}

const _: () = assert!(PANEL == 16, "a 512-bit register holds sixteen lanes");
