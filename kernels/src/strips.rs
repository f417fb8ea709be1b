//! What a kernel multiplies rows with: strips of panels, and where their results go.

use std::ops::Range;

use crate::packed::PANEL;
use crate::pool::Disjoint;
use crate::{PackedMatrix, WeightType};

/// Places of a matrix from which few rows read at once. Each is a stream that goes on from piece to piece: memory gives several
/// of them more than one, and less where they stop and begin anew.
pub(crate) const STREAMS: usize = 4;

/// Some panels of a matrix, and where their results go.
pub(crate) struct Strip<'a> {
    ty: WeightType,
    bytes: &'a [u8],
    panel_bytes: usize,
    panels: Range<usize>,
    out: &'a Output<'a>,
}

/// A panel of a matrix, and where its results go.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    pub(crate) bytes: &'a [u8],
    /// Its number in the matrix.
    at: usize,
    out: &'a Output<'a>,
}

impl<'a> Strip<'a> {
    /// Panels `panels` of `weights`, or those of them that it has.
    pub(crate) fn new(weights: &'a PackedMatrix, panels: Range<usize>, out: &'a Output<'a>) -> Self {
        let (all, panel_bytes) = (weights.panels(), weights.panel_bytes());
        let panels = panels.start.min(all)..panels.end.min(all);
        let bytes = &weights.as_bytes()[panels.start * panel_bytes..panels.end * panel_bytes];
        Self { ty: weights.ty(), bytes, panel_bytes, panels, out }
    }

    /// The type of its weights.
    pub(crate) fn ty(&self) -> WeightType {
        self.ty
    }

    /// How many panels it has.
    pub(crate) fn len(&self) -> usize {
        self.panels.len()
    }

    /// Its i-th panel, one of those it has.
    pub(crate) fn panel(&self, i: usize) -> Panel<'a> {
        let bytes = &self.bytes[i * self.panel_bytes..(i + 1) * self.panel_bytes];
        Panel { bytes, at: self.panels.start + i, out: self.out }
    }

    /// All of its panels.
    pub(crate) fn panels(&self) -> impl Iterator<Item = Panel<'a>> {
        (0..self.len()).map(|i| self.panel(i))
    }

    /// P panels from the i-th on, if it has so many.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn run<const P: usize>(&self, i: usize) -> Option<[Panel<'a>; P]> {
        (i + P <= self.len()).then(|| std::array::from_fn(|p| self.panel(i + p)))
    }

    /// The i-th panels of P strips, if there are P and each has so many.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn abreast<const P: usize>(strips: &[Self], i: usize) -> Option<[Panel<'a>; P]> {
        let strips: &[Self; P] = strips.try_into().ok()?;
        strips.iter().all(|strip| i < strip.len()).then(|| strips.each_ref().map(|strip| strip.panel(i)))
    }
}

impl Panel<'_> {
    /// Stores the lanes, or N of them from `first`, for row `row`, without those past the last column.
    #[inline(always)]
    pub(crate) fn store<const N: usize>(&self, row: usize, first: usize, lanes: &[f32; N]) {
        self.out.store(row, self.at, first, lanes);
    }
}

/// Where tiles put their results; each panel's columns are written by one piece only.
pub(crate) struct Output<'a> {
    pub(crate) data: Disjoint<'a, f32>,
    /// Columns.
    pub(crate) stride: usize,
    /// The row of activations that the first row holds, and the panel that the first column starts.
    pub(crate) first_row: usize,
    pub(crate) first_panel: usize,
}

impl Output<'_> {
    /// Stores lanes of panel `panel`, from `first` on, for row `row`, without those past the last column.
    #[inline(always)]
    #[allow(unsafe_code)]
    fn store<const N: usize>(&self, row: usize, panel: usize, first: usize, lanes: &[f32; N]) {
        let at = (panel - self.first_panel) * PANEL + first;
        let len = N.min(self.stride.saturating_sub(at));
        if len == N {
            // SAFETY: a panel belongs to one piece, and a piece to one thread at a time.
            unsafe { self.data.part((row - self.first_row) * self.stride + at, N) }.copy_from_slice(lanes);
        } else if len > 0 {
            // SAFETY: as above.
            unsafe { self.data.part((row - self.first_row) * self.stride + at, len) }.copy_from_slice(&lanes[..len]);
        }
    }
}
