//! f32 rows in groups.

/// Rows in a group of [`F32Buf`]: with two panels they fill 24 of AVX-512's registers, in halves 12 of AVX2's.
pub(crate) const F32_ROWS: usize = 12;

/// Rows of f32. A buffer to be filled again and again.
#[derive(Clone, Debug, Default)]
pub struct F32Buf {
    rows: usize,
    width: usize,
    /// Group after group; in a group of n rows, value k of row r is at `n·k + r`.
    values: Vec<f32>,
}

impl F32Buf {
    /// Rows held.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Takes rows (rows × `width`) in place of what the buffer held.
    ///
    /// # Panics
    /// When `x` is not whole rows.
    pub fn fill(&mut self, x: &[f32], width: usize) {
        assert!(width > 0 && x.len().is_multiple_of(width), "whole rows");
        self.resize(x.len() / width, width);
        let groups = x.chunks(F32_ROWS * width).zip(self.values.chunks_mut(F32_ROWS * width));
        for (from, to) in groups {
            interleave(from, width, to);
        }
    }

    /// Takes rows in their wire form (`width` little-endian f32) in place of what the buffer held.
    ///
    /// # Panics
    /// When a row has another length.
    pub fn receive<'a>(&mut self, width: usize, rows: impl ExactSizeIterator<Item = &'a [u8]>) {
        self.resize(rows.len(), width);
        for (row, wire) in rows.enumerate() {
            assert_eq!(wire.len(), 4 * width, "bytes of a row");
            let first = row / F32_ROWS * F32_ROWS;
            let n = F32_ROWS.min(self.rows - first);
            let to = self.values[first * width + row - first..].iter_mut().step_by(n);
            for (value, to) in wire.as_chunks::<4>().0.iter().zip(to) {
                *to = f32::from_le_bytes(*value);
            }
        }
    }

    /// Makes room for rows whose values will be written by [`interleave`].
    pub(crate) fn resize(&mut self, rows: usize, width: usize) {
        (self.rows, self.width) = (rows, width);
        self.values.resize(rows * width, 0.0);
    }

    /// Group `group`: its rows and values.
    pub(crate) fn group(&self, group: usize) -> (usize, &[f32]) {
        let rows = F32_ROWS.min(self.rows - group * F32_ROWS);
        let at = group * F32_ROWS * self.width;
        (rows, &self.values[at..at + rows * self.width])
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

/// Rows (of `width` values) to the order in which a group holds them.
pub(crate) fn interleave(rows: &[f32], width: usize, to: &mut [f32]) {
    let n = rows.len() / width;
    for (r, row) in rows.chunks_exact(width).enumerate() {
        for (value, to) in row.iter().zip(to[r..].iter_mut().step_by(n)) {
            *to = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float_rows_stand_side_by_side() {
        let x: Vec<f32> = (0..14 * 5).map(|i| i as f32).collect();
        let mut buf = F32Buf::default();
        buf.fill(&x, 5);
        let (rows, values) = buf.group(1);
        assert_eq!((rows, values[0], values[1], values[2]), (2, 60.0, 65.0, 61.0));
        let wires: Vec<Vec<u8>> = x.chunks(5).map(|row| row.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
        let mut received = F32Buf::default();
        received.receive(5, wires.iter().map(Vec::as_slice));
        assert_eq!((received.rows, received.values), (14, buf.values));
    }
}
