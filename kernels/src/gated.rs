//! An expert's first half in one pass: `silu(gate · x) × (up · x)`, quantised where the second half wants it so.
//!
//! The columns of one or two quantisation blocks are computed at a time, for all rows: what lies between the two halves never leaves the
//! caches.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::activations::{F32_ROWS, Q8_ROWS, RECORD_ROW, interleave, quantize_group};
use crate::matmul::{Work, check, multiply, run_all};
use crate::packed::PANEL;
use crate::pool::Disjoint;
use crate::strips::{Output, Strip};
use crate::{Activations, Compute, F32Buf, NotFinite, PackedMatrix, Q8Buf, QUANT_BLOCK, swiglu};

/// The most blocks at a time; of several groups' rows one is enough.
const MOST_BLOCKS: usize = 2;
/// Panels whose columns make a block.
const BLOCK_PANELS: usize = QUANT_BLOCK / PANEL;
/// The most rows in a group.
const GROUP_ROWS: usize = if Q8_ROWS > F32_ROWS { Q8_ROWS } else { F32_ROWS };

/// Where the result goes: rows × `gate.rows()`, in the form in which the input came.
#[derive(Debug)]
pub enum Inner<'a> {
    /// As f32.
    F32(&'a mut F32Buf),
    /// As int8 blocks.
    Q8(&'a mut Q8Buf),
}

/// A part of [`Inner`] that pieces write to.
enum Parts<'a> {
    F32(Disjoint<'a, f32>),
    Q8(Disjoint<'a, u8>),
}

/// `inner[r] = silu(gate · x[r]) × (up · x[r])`.
pub struct Gated<'a> {
    gate: &'a PackedMatrix,
    up: &'a PackedMatrix,
    x: Activations<'a>,
    parts: Parts<'a>,
    /// The first row that is not finite.
    bad: AtomicUsize,
}

impl<'a> Gated<'a> {
    /// A first half to be computed.
    ///
    /// # Panics
    /// When shapes, or the kinds of weights, input and result, do not fit; or when blocks are wanted and 32 does not divide
    /// `gate.rows()`.
    pub fn new(gate: &'a PackedMatrix, up: &'a PackedMatrix, x: Activations<'a>, inner: Inner<'a>) -> Self {
        check(gate, x);
        check(up, x);
        assert_eq!(gate.rows(), up.rows(), "as many gates as values");
        let (rows, width) = (x.rows(), gate.rows());
        let alike = matches!((&inner, x), (Inner::F32(_), Activations::F32(_)) | (Inner::Q8(_), Activations::Q8(_)));
        assert!(alike, "a result of the input's kind: their rows stand in the same groups");
        let parts = match inner {
            Inner::F32(buf) => {
                buf.resize(rows, width);
                Parts::F32(Disjoint::new(buf.values_mut()))
            }
            Inner::Q8(buf) => {
                buf.resize(rows, width);
                Parts::Q8(Disjoint::new(buf.records_mut()))
            }
        };
        Self { gate, up, x, parts, bad: AtomicUsize::new(usize::MAX) }
    }

    /// Once computed: whether the result is.
    ///
    /// # Errors
    /// [`NotFinite`] names the first row that is not finite, where it was to be quantised; f32 lets it through.
    pub fn finite(&self) -> Result<(), NotFinite> {
        match self.bad.load(Relaxed) {
            usize::MAX => Ok(()),
            row => Err(NotFinite { row }),
        }
    }
}

impl Work for Gated<'_> {
    fn units(&self, _: &Compute) -> usize {
        self.gate.rows().div_ceil(QUANT_BLOCK)
    }

    fn run(&self, compute: &Compute, blocks: Range<usize>) {
        let most = if self.x.groups() <= 1 { MOST_BLOCKS } else { 1 };
        for start in blocks.clone().step_by(most) {
            let blocks = start..blocks.end.min(start + most);
            for group in 0..self.x.groups() {
                // A step of one row has many short pieces: no more is cleared than it takes.
                match self.x.rows() {
                    1 => self.columns::<{ MOST_BLOCKS * QUANT_BLOCK }>(compute, blocks.clone(), group),
                    _ => self.columns::<{ GROUP_ROWS * MOST_BLOCKS * QUANT_BLOCK }>(compute, blocks.clone(), group),
                }
            }
        }
    }
}

impl Gated<'_> {
    /// Computes the columns of some blocks, at most [`MOST_BLOCKS`], for a group of rows: at most N values.
    fn columns<const N: usize>(&self, compute: &Compute, blocks: Range<usize>, group: usize) {
        let Self { gate, up, x, .. } = *self;
        let (rows, width) = (x.rows(), gate.rows());
        let columns = blocks.start * QUANT_BLOCK..width.min(blocks.end * QUANT_BLOCK);
        let first = group * x.group_rows();
        let n = x.group_rows().min(rows - first);
        let (mut gates, mut ups) = ([0.0; N], [0.0; N]);
        let (gates, ups) = (&mut gates[..n * columns.len()], &mut ups[..n * columns.len()]);
        let first_panel = blocks.start * BLOCK_PANELS;
        let panels = first_panel..blocks.end * BLOCK_PANELS;
        let to = |out| Output { data: Disjoint::new(out), stride: columns.len(), first_row: first, first_panel };
        let (gate_out, up_out) = (to(&mut *gates), to(&mut *ups));
        let strips = [Strip::new(gate, panels.clone(), &gate_out), Strip::new(up, panels, &up_out)];
        multiply(compute.isa, &strips, x, group..group + 1);
        swiglu(compute.isa, gates, ups);
        if let Some(row) = put(compute, &self.parts, gates, columns, (first, n), width) {
            self.bad.fetch_min(row, Relaxed);
        }
    }
}

/// Computes first halves as one job: threads go on from one to the next without waiting for each other.
pub fn gated_all(compute: &Compute, all: &mut [Gated<'_>]) {
    run_all(compute, all);
}

/// Puts `columns`, whole blocks, of the n rows from `first` in place; the first of them that is not finite where they are quantised.
fn put(
    compute: &Compute,
    parts: &Parts<'_>,
    values: &[f32],
    columns: Range<usize>,
    (first, n): (usize, usize),
    width: usize,
) -> Option<usize> {
    match parts {
        Parts::F32(to) => {
            let at = first * width + columns.start * n;
            // SAFETY: a block is one unit's, so no other call has these columns of this group.
            #[allow(unsafe_code)]
            interleave(values, columns.len(), unsafe { to.part(at, n * columns.len()) });
            None
        }
        Parts::Q8(to) => {
            let bytes = |values: usize| values / QUANT_BLOCK * RECORD_ROW;
            let (at, len) = (bytes(first * width) + bytes(n * columns.start), bytes(n * columns.len()));
            // SAFETY: a block is one unit's, so no other call has these blocks of this group.
            #[allow(unsafe_code)]
            let finite = quantize_group(compute.isa, values, columns.len(), unsafe { to.part(at, len) });
            let bad = || values.iter().position(|v| !v.is_finite()).unwrap_or(0) / columns.len();
            (!finite).then(|| first + bad())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::testing::{moderate, random_matrix};
    use crate::{Isa, WeightType, matmul};

    fn gated(
        compute: &Compute,
        gate: &PackedMatrix,
        up: &PackedMatrix,
        x: Activations<'_>,
        inner: Inner<'_>,
    ) -> Result<(), NotFinite> {
        let mut one = [Gated::new(gate, up, x, inner)];
        gated_all(compute, &mut one);
        one[0].finite()
    }

    /// The same in three steps, by `portable`.
    fn in_steps(gate: &PackedMatrix, up: &PackedMatrix, x: Activations<'_>) -> Vec<f32> {
        let compute = Compute::new(Isa::Portable, 1);
        let (mut a, mut b) = (vec![0.0; x.rows() * gate.rows()], vec![0.0; x.rows() * gate.rows()]);
        matmul(&compute, gate, x, &mut a);
        matmul(&compute, up, x, &mut b);
        swiglu(Isa::Portable, &mut a, &b);
        a
    }

    #[test]
    fn is_the_three_steps_bit_for_bit() {
        for (seed, ty) in WeightType::ALL.into_iter().enumerate() {
            for (rows, inner) in [(1, 32), (3, 96), (12, 64), (17, 128), (40, 160)] {
                let width = 256;
                let matrix = |seed| {
                    PackedMatrix::pack(&crate::Pool::new(1), ty, inner, width, &random_matrix(ty, inner, width, seed))
                        .unwrap()
                };
                let (gate, up) = (matrix(seed as u64), matrix(seed as u64 + 100));
                // Adversarial float weights overflow here; `matmul` has had them.
                let x: Vec<f32> = moderate(rows * width, 5).iter().map(|v| v * 1e-20).collect();
                let (mut q, mut f) = (Q8Buf::default(), F32Buf::default());
                q.quantize(&Compute::new(Isa::Portable, 1), &x, width).unwrap();
                f.fill(&x, width);
                let x = if ty.is_quantized() { Activations::Q8(&q) } else { Activations::F32(&f) };
                let expected = in_steps(&gate, &up, x);
                let (mut blocks, mut floats) = (Q8Buf::default(), F32Buf::default());
                blocks.quantize(&Compute::new(Isa::Portable, 1), &expected, inner).unwrap();
                floats.fill(&expected, inner);
                for isa in Isa::available() {
                    let compute = Compute::new(isa, 3);
                    let (mut q, mut f) = (Q8Buf::default(), F32Buf::default());
                    let to = if ty.is_quantized() { Inner::Q8(&mut q) } else { Inner::F32(&mut f) };
                    gated(&compute, &gate, &up, x, to).unwrap();
                    let what = format!("{isa} {} {rows}", ty.name());
                    for group in 0..x.groups() {
                        if ty.is_quantized() {
                            assert!(q.group(group) == blocks.group(group), "{what}");
                        } else {
                            let bits = |b: &F32Buf| b.group(group).1.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                            assert!(bits(&f) == bits(&floats), "{what}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn float_columns_need_not_fill_a_block() {
        let matrix = |seed| {
            PackedMatrix::pack(
                &crate::Pool::new(1),
                WeightType::F16,
                41,
                8,
                &random_matrix(WeightType::F16, 41, 8, seed),
            )
        };
        let (gate, up) = (matrix(1).unwrap(), matrix(2).unwrap());
        let mut x = F32Buf::default();
        x.fill(&moderate(14 * 8, 3), 8);
        let expected = in_steps(&gate, &up, Activations::F32(&x));
        for isa in Isa::available() {
            let mut out = F32Buf::default();
            gated(&Compute::new(isa, 2), &gate, &up, Activations::F32(&x), Inner::F32(&mut out)).unwrap();
            let (rows, values) = out.group(1);
            let last: Vec<u32> = values.iter().skip(1).step_by(rows).map(|v| v.to_bits()).collect();
            let wanted: Vec<u32> = expected[13 * 41..].iter().map(|v| v.to_bits()).collect();
            assert_eq!((rows, last), (2, wanted), "{isa}");
        }
    }

    #[test]
    fn a_row_that_overflows_is_named() {
        let stored: Vec<u8> = (0..64).flat_map(|_| [[0x00, 0x7b].as_slice(), &[127; 32]].concat()).collect();
        let ones = PackedMatrix::pack(&crate::Pool::new(1), WeightType::Q8_0, 64, 32, &stored).unwrap();
        let hidden = [vec![1.0; 18 * 32], vec![1e30; 32]].concat();
        let mut x = Q8Buf::default();
        x.quantize(&Compute::new(Isa::Portable, 1), &hidden, 32).unwrap();
        for isa in Isa::available() {
            let to = &mut Q8Buf::default();
            let found = gated(&Compute::new(isa, 2), &ones, &ones, Activations::Q8(&x), Inner::Q8(to));
            assert_eq!(found, Err(NotFinite { row: 18 }), "{isa}");
        }
    }
}
