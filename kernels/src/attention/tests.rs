//! Every path against `portable`, and `portable` against the formula.

use super::*;
use crate::KvType;
use crate::arch::testing::{adversarial, moderate};
use crate::kv::KvData;

struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    ty: KvType,
}

/// Fills a cache of `positions` through a scattered block table; unused slots hold NaN, which must never be read into a result.
fn cache(
    case: &Case,
    positions: usize,
    rows: impl Fn(usize, u64) -> Vec<f32>,
) -> (KvLayer, Vec<u32>, Vec<f32>, Vec<f32>) {
    let used = positions.div_ceil(KV_BLOCK);
    let table: Vec<u32> = (0..used as u32).map(|i| (i * 5 + 3) % (used as u32 * 5 + 7)).collect();
    let blocks = used * 5 + 7;
    let mut kv = KvLayer::new(case.ty, blocks, case.kv_heads, case.head_dim);
    match &mut kv.data {
        KvData::F16 { k, v } => (k.fill(0x7e00), v.fill(0x7e00)),
        KvData::F32 { k, v } => (k.fill(f32::NAN), v.fill(f32::NAN)),
    };
    let width = case.kv_heads * case.head_dim;
    let (keys, values) = (rows(positions * width, 1), rows(positions * width, 2));
    let written: Vec<QueryRow<'_>> = (0..positions).map(|position| QueryRow { position, blocks: &table }).collect();
    kv.write(&Compute::new(Isa::detect(), 3), &written, &keys, &values);
    (kv, table, keys, values)
}

fn cases() -> impl Iterator<Item = Case> {
    of_shapes([(None, KvType::F16), (None, KvType::F32), (Some(48), KvType::F16), (Some(1), KvType::F32)])
}

fn of_shapes<const N: usize>(kinds: [(Option<usize>, KvType); N]) -> impl Iterator<Item = Case> {
    let shapes = [(8, 2, 16), (4, 4, 8), (6, 2, 20), (4, 1, 64), (2, 2, 128), (8, 1, 6)];
    shapes.into_iter().flat_map(move |(heads, kv_heads, head_dim)| {
        kinds.map(|(window, ty)| Case { heads, kv_heads, head_dim, window, ty })
    })
}

impl Case {
    const fn shape(&self) -> AttentionShape {
        AttentionShape { heads: self.heads, window: self.window }
    }
}

/// In whole passes or in parts, as `attention` decides.
fn attend(compute: &Compute, kv: &KvLayer, case: &Case, rows: &[QueryRow<'_>], queries: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; queries.len()];
    attention(compute, kv, case.shape(), rows, queries, &mut AttentionScratch::default(), &mut out);
    out
}

/// In parts, `window` at a time, whatever pays.
fn attend_in_parts(
    compute: &Compute,
    window: usize,
    kv: &KvLayer,
    case: &Case,
    rows: &[QueryRow<'_>],
    queries: &[f32],
    scratch: &mut AttentionScratch,
) -> Vec<f32> {
    let mut out = vec![f32::NAN; queries.len()];
    split::run(compute, &Call::new(kv, case.shape(), rows, queries, &mut out), window, scratch);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn paths_agree_at_every_position() {
    for case in cases() {
        let (kv, table, ..) = cache(&case, 100, moderate);
        let positions: Vec<usize> = vec![0, 1, 7, 30, 31, 32, 33, 63, 64, 80, 99];
        let rows: Vec<_> = positions.iter().map(|&position| QueryRow { position, blocks: &table }).collect();
        let queries = moderate(rows.len() * case.heads * case.head_dim, 3);
        let reference = attend(&Compute::new(Isa::Portable, 1), &kv, &case, &rows, &queries);
        assert!(reference.iter().all(|v| v.is_finite()));
        for isa in Isa::available() {
            for threads in [1, 2, 5] {
                let out = attend(&Compute::new(isa, threads), &kv, &case, &rows, &queries);
                assert!(bits(&out) == bits(&reference), "{isa} {}", case.head_dim);
            }
        }
    }
}

/// Rows whose values are adversarial where they are attention's values: scores must stay finite, so queries and keys are small.
fn adversarial_values(n: usize, seed: u64) -> Vec<f32> {
    match seed {
        2 => adversarial(n, seed).iter().map(|x| x.clamp(-6e4, 6e4)).collect(),
        _ => moderate(n, seed),
    }
}

/// Queries whose scores lie far apart, so that blocks come to nothing beside others.
fn decided_queries(n: usize) -> Vec<f32> {
    moderate(n, 8).iter().map(|q| q * 40.0).collect()
}

#[test]
fn paths_agree_on_adversarial_values() {
    for case in cases() {
        let (kv, table, ..) = cache(&case, 70, adversarial_values);
        let rows = [QueryRow { position: 69, blocks: &table }];
        let queries = decided_queries(case.heads * case.head_dim);
        let outs = Isa::available().into_iter().map(|isa| attend(&Compute::new(isa, 2), &kv, &case, &rows, &queries));
        let outs: Vec<_> = outs.map(|out| bits(&out)).collect();
        assert!(outs.iter().all(|o| *o == outs[0]));
    }
}

#[test]
fn parts_come_to_what_whole_passes_do() {
    let computes: Vec<_> =
        Isa::available().into_iter().flat_map(|isa| [1, 2, 5, 16].map(|threads| Compute::new(isa, threads))).collect();
    let alone = Compute::new(Isa::Portable, 1);
    let mut scratch = AttentionScratch::default();
    for case in of_shapes([(None, KvType::F16), (Some(300), KvType::F32), (Some(48), KvType::F16)]) {
        for values in [moderate, adversarial_values] {
            let (kv, table, ..) = cache(&case, 700, values);
            // Sequences of their own that begin alike.
            let (short, long) = (table[..13].to_vec(), table.clone());
            let of = |blocks, positions: &[usize]| {
                positions.iter().map(move |&position| QueryRow { position, blocks }).collect::<Vec<_>>()
            };
            let batch =
                [of(&table, &[10, 400, 697, 698, 699]), of(&short, &[31]), of(&short, &[415]), of(&long, &[699])]
                    .concat();
            for rows in [&batch[4..5], &batch[..]] {
                let queries = decided_queries(rows.len() * case.heads * case.head_dim);
                let whole = bits(&attend(&alone, &kv, &case, rows, &queries));
                for compute in &computes {
                    let what = format!("{} × {}, {} rows", compute.isa, compute.pool.threads(), rows.len());
                    assert!(bits(&attend(compute, &kv, &case, rows, &queries)) == whole, "{what}");
                    for window in [1, 3, split::window(compute.pool.threads())] {
                        let out = attend_in_parts(compute, window, &kv, &case, rows, &queries, &mut scratch);
                        assert!(bits(&out) == whole, "{what}, {window} parts at a time");
                    }
                }
            }
        }
    }
}

#[test]
fn a_long_sequence_is_split_in_windows_without_allocating_again() {
    let case = Case { heads: 4, kv_heads: 1, head_dim: 64, window: None, ty: KvType::F16 };
    let (kv, table, ..) = cache(&case, 8000, moderate);
    let queries = decided_queries(case.heads * case.head_dim);
    let row = |position| [QueryRow { position, blocks: &table }];
    for threads in [3, 5, 16] {
        let mut scratch = AttentionScratch::default();
        let mut places = Vec::new();
        for position in [7999, 3000, 7999] {
            let whole = attend(&Compute::new(Isa::Portable, 1), &kv, &case, &row(position), &queries);
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; queries.len()];
                let compute = Compute::new(isa, threads);
                attention(&compute, &kv, case.shape(), &row(position), &queries, &mut scratch, &mut out);
                assert!(bits(&out) == bits(&whole), "{isa} × {threads}");
                places.push(scratch.places());
            }
        }
        let parts = 8000_usize.div_ceil(KV_BLOCK).div_ceil(split::PART_BLOCKS);
        assert!(threads > 3 || parts > split::window(threads), "three threads have several windows");
        assert!(places.iter().all(|place| *place == places[0] && place.1 > 0), "{places:?}");
    }
    let mut scratch = AttentionScratch::default();
    let compute = Compute::new(Isa::detect(), 1);
    attention(&compute, &kv, case.shape(), &row(7999), &queries, &mut scratch, &mut vec![0.0; queries.len()]);
    assert_eq!(scratch.places().1, 0, "one thread splits nothing");
}

#[test]
fn is_near_the_formula() {
    for case in cases() {
        let positions = 100;
        let (kv, table, keys, values) = cache(&case, positions, moderate);
        let (width, group) = (case.kv_heads * case.head_dim, case.heads / case.kv_heads);
        let queries = moderate(case.heads * case.head_dim, 3);
        let row = QueryRow { position: positions - 1, blocks: &table };
        let out = attend(&Compute::new(Isa::Portable, 1), &kv, &case, &[row], &queries);
        let first = case.window.map_or(0, |w| positions.saturating_sub(w));
        for head in 0..case.heads {
            let at = head / group * case.head_dim;
            let q = &queries[head * case.head_dim..(head + 1) * case.head_dim];
            let part = |rows: &[f32], p: usize, d: usize| f64::from(rows[p * width + at + d]);
            let score = |p: usize| {
                (0..case.head_dim).map(|d| f64::from(q[d]) * part(&keys, p, d)).sum::<f64>()
                    / (case.head_dim as f64).sqrt()
            };
            let weights: Vec<f64> = (first..positions).map(|p| score(p).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..case.head_dim {
                let truth = weights.iter().zip(first..).map(|(w, p)| w * part(&values, p, d)).sum::<f64>() / total;
                let found = f64::from(out[head * case.head_dim + d]);
                let tolerance = if case.ty == KvType::F16 { 2e-3 } else { 1e-5 };
                assert!((found - truth).abs() < tolerance, "head {head} value {d}: {found} {truth}");
            }
        }
    }
}
