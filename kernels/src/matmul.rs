//! Matrix products: rows of hidden states × a packed weight matrix.

use std::ops::Range;

use crate::compute::Prefetch;
use crate::pool::Disjoint;
use crate::strips::{Output, STREAMS, Strip};
use crate::{Activations, Compute, Isa, PackedMatrix, WeightType, arch};

/// What the panels hold at most that several groups of rows meet in turn: with a group's rows they stay in the second-level cache.
const CACHED_BYTES: usize = 128 << 10;
/// The most of these panels.
const CACHED_PANELS: usize = 4;
/// Bytes of a matrix for each thread from which on few rows read it in streams: shorter ones end before they have gained anything.
const STREAMED_BYTES: usize = 2 << 20;
/// Rows up to which a matrix is read in streams: with more, arithmetic takes longer than reading.
const STREAMED_ROWS: usize = 8;
/// Panels of a stream for each thread from which on it does: fewer leave threads without work at the end.
const STREAM_PANELS: usize = 8;

/// One matrix product: `out[r][n] = Σ_k weights[n][k] · rows[r][k]` in the contract's order; `out` is rows × `weights.rows()`.
pub struct Product<'a> {
    weights: &'a PackedMatrix,
    rows: Activations<'a>,
    out: Output<'a>,
}

impl<'a> Product<'a> {
    /// A product to be computed.
    ///
    /// # Panics
    /// When shapes, or the kinds of weights and activations, do not fit.
    pub fn new(weights: &'a PackedMatrix, rows: Activations<'a>, out: &'a mut [f32]) -> Self {
        check(weights, rows);
        assert_eq!(out.len(), rows.rows() * weights.rows(), "rows × outputs");
        let out = Output { data: Disjoint::new(out), stride: weights.rows(), first_row: 0, first_panel: 0 };
        Self { weights, rows, out }
    }

    /// Into how many parts the panels are cut, which are read side by side.
    fn streams(&self, compute: &Compute) -> usize {
        let threads = compute.pool.threads();
        let large = self.weights.bytes() >= STREAMED_BYTES * threads
            && self.weights.panels() >= STREAM_PANELS * STREAMS * threads;
        let most = match compute.isa {
            Isa::Avx512(_) | Isa::Amx(_) if self.weights.ty().is_quantized() => STREAMED_ROWS,
            // These take one row side by side.
            _ => 1,
        };
        // Q8_0's arithmetic is the least: memory gives one stream of it more than four, unless kernels ask for it.
        let one = self.weights.ty() == WeightType::Q8_0 && compute.isa.prefetch() == Prefetch::Hardware;
        if large && self.rows.rows() <= most && !one { STREAMS } else { 1 }
    }
}

/// A unit is one panel of each stream.
impl Work for Product<'_> {
    fn units(&self, compute: &Compute) -> usize {
        self.weights.panels().div_ceil(self.streams(compute))
    }

    fn run(&self, compute: &Compute, units: Range<usize>) {
        let (streams, apart) = (self.streams(compute), self.units(compute));
        let strip = |stream: usize, units: &Range<usize>| {
            Strip::new(self.weights, stream * apart + units.start..stream * apart + units.end, &self.out)
        };
        let multiply = |strips: &[Strip<'_>]| multiply(compute.isa, strips, self.rows, 0..self.rows.groups());
        if streams > 1 {
            return multiply(&std::array::from_fn::<_, STREAMS, _>(|stream| strip(stream, &units)));
        }
        let most = match self.rows.groups() {
            0 | 1 => units.len(),
            _ => (CACHED_BYTES / self.weights.panel_bytes().max(1)).clamp(1, CACHED_PANELS),
        };
        for start in units.clone().step_by(most) {
            multiply(&[strip(0, &(start..units.end.min(start + most)))]);
        }
    }
}

/// Computes one product.
///
/// # Panics
/// As [`Product::new`].
pub fn matmul(compute: &Compute, weights: &PackedMatrix, rows: Activations<'_>, out: &mut [f32]) {
    matmul_all(compute, &mut [Product::new(weights, rows, out)]);
}

/// Computes products as one job: threads go on from one to the next without waiting for each other.
pub fn matmul_all(compute: &Compute, products: &mut [Product<'_>]) {
    run_all(compute, products);
}

/// What threads share in units.
pub(crate) trait Work: Sync {
    /// How many units there are for `compute`.
    fn units(&self, compute: &Compute) -> usize;
    /// Does some of them, on one of the threads of `compute`.
    fn run(&self, compute: &Compute, units: Range<usize>);
}

/// Does all `items` as one job.
pub(crate) fn run_all<T: Work>(compute: &Compute, items: &[T]) {
    compute.pool.run_ranges(items.iter().map(|item| item.units(compute)).sum(), &|units| {
        let mut first = 0;
        for item in items {
            let end = first + item.units(compute);
            let own = units.start.max(first)..units.end.min(end);
            if !own.is_empty() {
                item.run(compute, own.start - first..own.end - first);
            }
            first = end;
        }
    });
}

/// That rows and weights go together.
pub(crate) fn check(weights: &PackedMatrix, activations: Activations<'_>) {
    let quantized = matches!(activations, Activations::Q8(_));
    assert_eq!(quantized, weights.ty().is_quantized(), "int8 rows go with quantised weights, f32 rows with float ones");
    assert_eq!(activations.width(), weights.width(), "width of rows and weights");
}

/// Strips × some groups of rows, on the calling thread. Few rows meet strips of one type side by side.
pub(crate) fn multiply(isa: Isa, strips: &[Strip<'_>], activations: Activations<'_>, groups: Range<usize>) {
    for strips in strips.chunk_by(|a, b| a.ty() == b.ty()) {
        let Some(ty) = strips.first().map(Strip::ty) else { continue };
        let (groups, prefetch) = (groups.clone(), isa.prefetch());
        match isa {
            Isa::Portable => arch::portable::matmul(ty, strips, activations, groups),
            Isa::Avx2(proof) => arch::avx2::matmul(proof, ty, strips, activations, groups, prefetch),
            Isa::Avx512(proof) => arch::avx512::matmul(proof, ty, strips, activations, groups, prefetch),
            Isa::Amx(proof) => arch::amx::matmul(proof, ty, strips, activations, groups, prefetch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::testing::{adversarial, random_matrix};
    use crate::blocks::{Scale, SubBlock};
    use crate::packed::PANEL;
    use crate::{F32Buf, Q8Buf};

    /// The contract, straight from its text: one output at a time over stored weights.
    fn by_definition(ty: WeightType, stored: &[u8], width: usize, x: &[f32], q: &Q8Buf, row: usize, n: usize) -> f32 {
        let row_bytes = ty.row_bytes(width).unwrap();
        let bytes = &stored[n * row_bytes..(n + 1) * row_bytes];
        if !ty.is_quantized() {
            let mut w = vec![0.0; width];
            ty.decode_row(bytes, &mut w);
            return w.iter().zip(&x[row * width..]).fold(0.0, |acc, (w, x)| w.mul_add(*x, acc));
        }
        let mut acc = 0.0f32;
        let subs = ty.block_values() / 32;
        for (b, block) in
            bytes.chunks_exact(ty.block_bytes()).flat_map(|block| (0..subs).map(move |_| block)).enumerate()
        {
            let stored = SubBlock::read(ty, block, b % subs);
            let at = row * width + b * 32;
            let block = q.block(row, (at - row * width) / 32);
            let (x, d_a) = (block.values, block.scale);
            let dot = |part: std::ops::Range<usize>| -> i32 {
                part.map(|i| i32::from(stored.values[i]) * i32::from(x[i])).sum()
            };
            let sum: i32 = x.iter().map(|&x| i32::from(x)).sum();
            acc = match stored.scale {
                Scale::Plain { d } => (dot(0..32) as f32).mul_add(d.to_f32() * d_a, acc),
                Scale::Offset { d, m } => {
                    (sum as f32).mul_add(m.to_f32() * d_a, (dot(0..32) as f32).mul_add(d.to_f32() * d_a, acc))
                }
                Scale::Minimum { d, dmin, sc, mn } => {
                    let acc = (dot(0..32) as f32).mul_add(d.to_f32() * f32::from(sc) * d_a, acc);
                    (-sum as f32).mul_add(dmin.to_f32() * f32::from(mn) * d_a, acc)
                }
                Scale::Halves { d, sc } => {
                    let total = i32::from(sc[0]) * dot(0..16) + i32::from(sc[1]) * dot(16..32);
                    (total as f32).mul_add(d.to_f32() * d_a, acc)
                }
            };
        }
        acc
    }

    #[test]
    fn every_path_gives_the_bits_of_the_definition() {
        let mut seed = 0;
        for ty in WeightType::ALL {
            let widths: &[usize] = match ty.block_values() {
                1 => &[1, 2, 7, 8, 31, 64, 200],
                32 => &[32, 64, 96, 416],
                _ => &[256, 512],
            };
            for &width in widths {
                for n in [1, 2, 7, 8, 9, 15, 16, 17, 31, 33] {
                    for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 31, 64] {
                        seed += 1;
                        check(ty, n, width, rows, seed);
                    }
                }
            }
            check(ty, 200, 256, 6, 9_999);
            // More panels, and more sub-blocks, than tiles take at once.
            for (width, rows) in [(1280, 12), (2304, 15), (2304, 16), (1280, 31)] {
                check(ty, 7 * PANEL - 3, width, rows, seed + rows as u64);
            }
        }
    }

    fn check(ty: WeightType, n: usize, width: usize, rows: usize, seed: u64) {
        let stored = random_matrix(ty, n, width, seed);
        let packed = PackedMatrix::pack(&crate::Pool::new(1), ty, n, width, &stored).unwrap();
        let x = adversarial(rows * width, seed);
        let mut q = Q8Buf::default();
        if ty.is_quantized() {
            q.quantize(&Compute::new(Isa::Portable, 1), &x, width).unwrap();
        }
        let mut floats = F32Buf::default();
        floats.fill(&x, width);
        let activations = if ty.is_quantized() { Activations::Q8(&q) } else { Activations::F32(&floats) };
        let expected: Vec<u32> =
            (0..rows * n).map(|i| by_definition(ty, &stored, width, &x, &q, i / n, i % n).to_bits()).collect();
        for isa in Isa::available() {
            for threads in [1, 2, 5] {
                let mut out = vec![f32::NAN; rows * n];
                matmul(&computes(isa, threads), &packed, activations, &mut out);
                let bits: Vec<u32> = out.iter().map(|v| v.to_bits()).collect();
                assert_eq!(bits, expected, "{} {n}×{width}, {rows} rows, {isa}, {threads} threads", ty.name());
            }
        }
    }

    #[test]
    fn strips_side_by_side_give_the_bits_of_panels_alone() {
        let (n, width) = (9 * PANEL - 3, 512);
        for (ty, rows) in WeightType::ALL.into_iter().flat_map(|ty| [1, 2, 4, 5, 8, 9].map(|rows| (ty, rows))) {
            let stored = random_matrix(ty, n, width, 5);
            let weights = PackedMatrix::pack(&crate::Pool::new(1), ty, n, width, &stored).unwrap();
            let x = adversarial(rows * width, 6);
            let (mut q, mut floats) = (Q8Buf::default(), F32Buf::default());
            let x = if ty.is_quantized() {
                q.quantize(&Compute::new(Isa::Portable, 1), &x, width).unwrap();
                Activations::Q8(&q)
            } else {
                floats.fill(&x, width);
                Activations::F32(&floats)
            };
            let product = |isa, strips: &[Range<usize>]| -> Vec<u32> {
                let mut values = vec![f32::NAN; rows * n];
                let out = Output { data: Disjoint::new(&mut values), stride: n, first_row: 0, first_panel: 0 };
                let strip = |panels: &Range<usize>| Strip::new(&weights, panels.clone(), &out);
                multiply(isa, &strips.iter().map(strip).collect::<Vec<_>>(), x, 0..x.groups());
                values.iter().map(|v| v.to_bits()).collect()
            };
            let whole = std::slice::from_ref(&(0..9));
            let alone = product(Isa::Portable, whole);
            let asked = |isa: Isa| [Prefetch::Hardware, Prefetch::Software].map(|prefetch| isa.with(prefetch));
            for isa in Isa::available().into_iter().flat_map(asked) {
                for strips in
                    [whole, &[0..5, 5..9], &[0..3, 3..6, 6..9], &[0..3, 3..6, 6..9, 9..9], &[0..2, 2..5, 5..7, 7..9]]
                {
                    assert_eq!(product(isa, strips), alone, "{} {rows} rows, {isa} {strips:?}", ty.name());
                }
            }
        }
    }

    #[test]
    fn streams_meet_each_panel_once() {
        let (n, width) = (30_000, 256);
        let stored = random_matrix(WeightType::Q4_0, n, width, 7);
        let weights = PackedMatrix::pack(&crate::Pool::new(1), WeightType::Q4_0, n, width, &stored).unwrap();
        let (all, rows) = (adversarial(9 * width, 8), |n: usize| ..n * width);
        let quantized = |n: usize| {
            let mut q = Q8Buf::default();
            q.quantize(&Compute::new(Isa::Portable, 1), &all[rows(n)], width).unwrap();
            q
        };
        let compute = computes(Isa::detect(), 2);
        let (nine, mut reference) = (quantized(9), vec![f32::NAN; 9 * n]);
        let product = Product::new(&weights, Activations::Q8(&nine), &mut reference);
        assert_eq!(product.streams(&compute), 1, "nine rows are no few");
        matmul(&compute, &weights, Activations::Q8(&nine), &mut reference);
        for few in [1, 3, 8] {
            let (q, mut out) = (quantized(few), vec![f32::NAN; few * n]);
            let product = Product::new(&weights, Activations::Q8(&q), &mut out);
            let streams = product.streams(&compute);
            assert!(weights.panels() % STREAMS == 3 && (few > 1 || streams == STREAMS), "what this is about");
            matmul(&compute, &weights, Activations::Q8(&q), &mut out);
            assert!(out == reference[..few * n], "{few} rows");
        }
    }

    /// Pools are made once a test thread: thousands of matrices are multiplied.
    fn computes(isa: Isa, threads: usize) -> Compute {
        thread_local!(static POOLS: [(usize, std::sync::Arc<crate::Pool>); 3] =
            [1, 2, 5].map(|n| (n, std::sync::Arc::new(crate::Pool::new(n)))));
        let pool = POOLS.with(|p| p.iter().find(|(n, _)| *n == threads).map(|(_, p)| p.clone()).unwrap());
        Compute { isa, pool }
    }
}
