//! Attention of some queries over one KV head: a lane is a key for the scores, a value's dimension for the sums.
//!
//! The queries of a tile (rows of one sequence × heads that share the KV head) read each block of keys and values once, and what a
//! block adds is merged into the result from registers.

/// `attention!("features", TILE)` in an instruction set's module: its entry, with the registers of the module's `lanes`. `TILE` is the most
/// queries in a tile, each with two accumulators.
macro_rules! attention {
    ($features:literal, $tile:literal) => {
        use std::ops::Range;

        use super::lanes::{Floats, LANES, fma, halves, load, mul, splat, store, zero};
        use $crate::KV_BLOCK;
        use $crate::arch::softmax::{Block, Merge, Step, Stored, Tile, Weighed, ahead, soften};
        use $crate::attention::{HeadGroup, Total};
        use $crate::kv::KvData;

        #[target_feature(enable = $features)]
        pub(super) fn attention(head: &HeadGroup<'_>) {
            match &head.kv.data {
                KvData::F16 { k, v } => over_tiles(head, k, v),
                KvData::F32 { k, v } => over_tiles(head, k, v),
            }
        }

        #[target_feature(enable = $features)]
        fn over_tiles<T: Stored>(head: &HeadGroup<'_>, k: &[T], v: &[T]) {
            let mut query = 0;
            while query < head.queries() {
                query += match head.queries() - query {
                    n if n >= $tile => tile::<T, $tile>(head, query, k, v),
                    4.. => tile::<T, 4>(head, query, k, v),
                    2.. => tile::<T, 2>(head, query, k, v),
                    _ => tile::<T, 1>(head, query, k, v),
                };
            }
        }

        /// Computes queries `first…first + Q`; returns Q.
        #[target_feature(enable = $features)]
        fn tile<T: Stored, const Q: usize>(head: &HeadGroup<'_>, first: usize, k: &[T], v: &[T]) -> usize {
            let tile = Tile::new(head, first, k, v);
            if let Some(part) = &head.part {
                for i in part.blocks.clone() {
                    let mut merge = [None; Q];
                    block(
                        &tile,
                        i,
                        &mut merge,
                        &mut std::array::from_fn(|q| part.values(first + q, i, head.kv.head_dim)),
                    );
                    for (q, Merge { max, sum, .. }) in
                        merge.into_iter().enumerate().filter_map(|(q, merge)| Some((q, merge?)))
                    {
                        part.note(first + q, i, Total { max, sum });
                    }
                }
                return Q;
            }
            let mut merge = [None; Q];
            let mut outs = std::array::from_fn(|q| head.out(first + q));
            for i in tile.blocks.clone() {
                block(&tile, i, &mut merge, &mut outs);
            }
            for (out, merge) in outs.into_iter().zip(merge) {
                let inverse = 1.0 / merge.map_or(1.0, |m| m.sum);
                out.iter_mut().for_each(|o| *o *= inverse);
            }
            Q
        }

        /// Merges block `i` into `outs`, the tile's results; `merge` is what they came to.
        #[inline]
        #[target_feature(enable = $features)]
        fn block<T: Stored, const Q: usize>(
            tile: &Tile<'_, T, Q>,
            i: usize,
            merge: &mut [Option<Merge>; Q],
            outs: &mut [&mut [f32]; Q],
        ) {
            let Block { keys, values, next, slots } = tile.block(i);
            let mut weights = scores::<T, Q>(&tile.queries, keys, tile.scale, values);
            for q in 0..Q {
                merge[q] = soften::<LANES>(&mut weights[q], &slots[q], merge[q]);
            }
            if slots.iter().all(|s| s.len() == KV_BLOCK) {
                return weigh(outs, &Weighed { e: &weights, values, merge, next }, 0..KV_BLOCK);
            }
            for q in 0..Q {
                let block = Weighed { e: &[weights[q]], values, merge: &[merge[q]], next };
                weigh(std::array::from_mut(&mut outs[q]), &block, slots[q].clone());
            }
        }

        /// All 32 scores of a block for Q queries, while `next` is asked for. Slots that are not visible give what they give; `soften` drops them.
        #[inline]
        #[target_feature(enable = $features)]
        fn scores<T: Stored, const Q: usize>(
            queries: &[&[f32]; Q],
            k: &[T],
            scale: f32,
            next: &[T],
        ) -> [[f32; KV_BLOCK]; Q] {
            let width = queries[0].len();
            assert!(
                k.len() == width * KV_BLOCK && queries.iter().all(|q| q.len() == width),
                "a block of keys, and queries"
            );
            let mut out = [[0.0; KV_BLOCK]; Q];
            for part in 0..KV_BLOCK / (2 * LANES) {
                let mut acc = [[zero(); 2]; Q];
                for d in 0..width {
                    if part == 0 {
                        ahead(next, d);
                    }
                    // SAFETY: value d of 32 keys, by the assertion above.
                    let keys = unsafe {
                        let at = k.as_ptr().add(d * KV_BLOCK + part * 2 * LANES);
                        [load_stored(at), load_stored(at.add(LANES))]
                    };
                    for q in 0..Q {
                        // SAFETY: d < width.
                        let value = splat(unsafe { *queries[q].get_unchecked(d) });
                        acc[q][0] = fma(keys[0], value, acc[q][0]);
                        acc[q][1] = fma(keys[1], value, acc[q][1]);
                    }
                }
                for (out, acc) in out.iter_mut().zip(acc) {
                    let to = out[part * 2 * LANES..].as_chunks_mut::<LANES>().0;
                    for (to, acc) in to.iter_mut().zip(acc) {
                        // SAFETY: `to` has room for a register.
                        unsafe { store(to.as_mut_ptr(), mul(acc, splat(scale))) };
                    }
                }
            }
            out
        }

        /// Merges `Σ e_j v_j` over `slots` into `outs`, the results of Q queries, while `next` is asked for.
        #[inline]
        #[target_feature(enable = $features)]
        fn weigh<T: Stored, const Q: usize>(
            outs: &mut [&mut [f32]; Q],
            block: &Weighed<'_, T, Q>,
            slots: Range<usize>,
        ) {
            let (width, &Weighed { e, values: v, merge, .. }) = (outs[0].len(), block);
            assert!(v.len() == width * KV_BLOCK && slots.end <= KV_BLOCK, "a block of values");
            let mut d = 0;
            while d + 2 * LANES <= width {
                weigh_lanes::<T, Q, 2>(outs, block, slots.clone(), d);
                d += 2 * LANES;
            }
            if d + LANES <= width {
                weigh_lanes::<T, Q, 1>(outs, block, slots.clone(), d);
                d += LANES;
            }
            for d in d..width {
                for q in 0..Q {
                    let sum = slots.clone().fold(0.0, |acc, slot| e[q][slot].mul_add(v[slot * width + d].widen(), acc));
                    let out = &mut outs[q][d];
                    match merge[q].map(|m| m.step) {
                        None | Some(Step::Skip) => {}
                        Some(Step::First) => *out = sum,
                        Some(Step::Scale(alpha, beta)) => *out = out.mul_add(alpha, sum * beta),
                    }
                }
            }
        }

        /// Dimensions d…d + N registers of [`weigh`].
        #[inline]
        #[target_feature(enable = $features)]
        fn weigh_lanes<T: Stored, const Q: usize, const N: usize>(
            outs: &mut [&mut [f32]; Q],
            block: &Weighed<'_, T, Q>,
            slots: Range<usize>,
            d: usize,
        ) {
            let (width, &Weighed { e, values: v, merge, next }) = (outs[0].len(), block);
            // Lines of `next` that the dimensions before these have asked for.
            let asked = d * KV_BLOCK / (2 * LANES);
            let mut acc = [[zero(); N]; Q];
            for slot in slots {
                if asked + slot < width {
                    ahead(next, asked + slot);
                }
                let values: [Floats; N] = std::array::from_fn(|n| {
                    // SAFETY: dimensions d…d + N·LANES ≤ width of slot < 32: inside `v`, which `weigh` has measured.
                    unsafe { load_stored(v.as_ptr().add(slot * width + d + n * LANES)) }
                });
                for q in 0..Q {
                    let weight = splat(e[q][slot]);
                    for n in 0..N {
                        acc[q][n] = fma(weight, values[n], acc[q][n]);
                    }
                }
            }
            for q in 0..Q {
                let out = &mut outs[q][d..d + N * LANES];
                let step = merge[q].map_or(Step::Skip, |m| m.step);
                for (out, acc) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(acc[q]) {
                    // SAFETY: `out` is a register's values; unaligned loads and stores.
                    unsafe {
                        match step {
                            Step::Skip => {}
                            Step::First => store(out.as_mut_ptr(), acc),
                            Step::Scale(alpha, beta) => {
                                let before = load(out.as_ptr());
                                let block = mul(acc, splat(beta));
                                store(out.as_mut_ptr(), fma(before, splat(alpha), block));
                            }
                        }
                    }
                }
            }
        }

        /// A register of values as they are stored.
        ///
        /// # Safety
        /// `at` points to [`LANES`] of them.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load_stored<T: Stored>(at: *const T) -> Floats {
            // SAFETY: the caller's promise; a type is f16 where it says so, and else f32.
            unsafe { if T::F16 { halves(at.cast()) } else { load(at.cast()) } }
        }
    };
}
pub(crate) use attention;
