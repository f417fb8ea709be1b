//! Combining the experts' answers into the hidden states.

use crate::{Dispatch, ExpertRows, NodeId, Pair, Routing, RowFormat, Rows};

/// Why answers cannot be combined. [`CombineError::node`] says whose answer to throw away and ask for again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CombineError {
    /// Mend the caller: the hidden states are not of the routed rows.
    #[error("{values} hidden values are no {rows} rows")]
    Shape {
        /// Hidden values given.
        values: usize,
        /// Rows routed.
        rows: usize,
    },
    /// Ask again: the answer is not of the size or format that was asked for.
    #[error("node {node}: {why}")]
    Malformed {
        /// Who answered.
        node: NodeId,
        /// What is wrong.
        why: String,
    },
    /// Ask again, elsewhere: the answer has a NaN or an infinity.
    #[error("node {node}: expert {expert} answered a value that is not finite for token {token}")]
    NotFinite {
        /// Who answered.
        node: NodeId,
        /// For which expert.
        expert: u32,
        /// For which hidden row.
        token: u32,
    },
    /// Leave one of the answers out.
    #[error("node {node}: expert {expert} was already answered for token {token}")]
    Duplicate {
        /// Who answered second.
        node: NodeId,
        /// Hidden row.
        token: u32,
        /// Expert.
        expert: u32,
    },
    /// Leave the answer out: the gate did not choose this expert for this token.
    #[error("node {node}: expert {expert} is not one of token {token}'s")]
    Unrouted {
        /// Who answered.
        node: NodeId,
        /// Hidden row.
        token: u32,
        /// Expert.
        expert: u32,
    },
    /// Wait for, or ask for, the rest.
    #[error("expert {expert} is not answered for token {token}")]
    Missing {
        /// Hidden row.
        token: u32,
        /// Expert.
        expert: u32,
    },
}

impl CombineError {
    /// The node whose answer is wrong, if one is.
    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Self::Malformed { node, .. }
            | Self::NotFinite { node, .. }
            | Self::Duplicate { node, .. }
            | Self::Unrouted { node, .. } => Some(node),
            Self::Shape { .. } | Self::Missing { .. } => None,
        }
    }

    /// The (expert, token) that it is about, if it is about one. A node may have answered several dispatches of one flight.
    pub fn pair(&self) -> Option<Pair> {
        match *self {
            Self::NotFinite { expert, token, .. }
            | Self::Duplicate { expert, token, .. }
            | Self::Unrouted { expert, token, .. }
            | Self::Missing { expert, token } => Some(Pair { expert, token }),
            Self::Shape { .. } | Self::Malformed { .. } => None,
        }
    }
}

/// Adds the experts' answers to `hidden` (rows × width, the residual), in place. The answers may come in any order, from any
/// nodes; together they hold every (token, expert) pair of `routing` once. `hidden` is untouched on error.
///
/// Numeric contract, all in f32, for each token and column: `acc = w_0 × y_0`, then `acc = acc + (w_i × y_i)` in ascending
/// expert index, product and sum each rounded (no fma); at last `hidden = hidden + acc`. y is the answer's f32, or its bf16
/// widened, which is exact.
///
/// # Errors
/// [`CombineError`]: a pair that is missing, answered twice or was never asked for; an answer of the wrong number of rows,
/// width or format, or with a value that is not finite.
pub fn combine(
    routing: &Routing,
    answers: &[(&Dispatch, &ExpertRows)],
    hidden: &mut [f32],
) -> Result<(), CombineError> {
    let shape = CombineError::Shape { values: hidden.len(), rows: routing.rows() };
    let width = match hidden.len().checked_div(routing.rows()) {
        Some(width) if width > 0 && width * routing.rows() == hidden.len() => width,
        None if hidden.is_empty() => 0,
        _ => return Err(shape),
    };
    let slots = slots(routing, answers, width)?;
    if width == 0 {
        return Ok(());
    }
    let mut acc = vec![0.0f32; width];
    let tokens = slots.chunks_exact(routing.experts_per_token());
    for (token, (hidden, rows)) in hidden.chunks_exact_mut(width).zip(tokens).enumerate() {
        let mut terms = routing.row(token).1.iter().zip(rows);
        if let Some((&weight, row)) = terms.next() {
            row.for_each(&mut acc, |acc, y| *acc = weight * y);
        }
        for (&weight, row) in terms {
            row.for_each(&mut acc, |acc, y| *acc += weight * y);
        }
        hidden.iter_mut().zip(&acc).for_each(|(h, acc)| *h += acc);
    }
    Ok(())
}

/// Bits of an f32's exponent; all set in a NaN or an infinity.
const F32_EXPONENT: u32 = 0x7f80_0000;
/// The same of a bf16.
const BF16_EXPONENT: u16 = 0x7f80;

/// One answer row, as it came.
#[derive(Clone, Copy)]
enum Row<'a> {
    F32(&'a [u8]),
    Bf16(&'a [u8]),
}

impl<'a> Row<'a> {
    /// Row `i` of an answer, which is f32 or bf16.
    fn of(rows: &'a Rows, i: usize) -> Self {
        let bytes = rows.row(i);
        if rows.format == RowFormat::Bf16 { Row::Bf16(bytes) } else { Row::F32(bytes) }
    }

    /// Calls `f` on each of `out` beside the row's value in that column. The row has as many values as `out`.
    #[inline(always)]
    fn for_each(self, out: &mut [f32], mut f: impl FnMut(&mut f32, f32)) {
        match self {
            Row::F32(bytes) => {
                out.iter_mut().zip(bytes.as_chunks().0).for_each(|(o, &b)| f(o, f32::from_le_bytes(b)));
            }
            Row::Bf16(bytes) => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(o, &b)| {
                f(o, f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16));
            }),
        }
    }

    /// Whether all values are finite. Looks at all of them: without an early exit it is a few vector instructions.
    fn is_finite(self) -> bool {
        let bad = match self {
            Row::F32(bytes) => bytes
                .as_chunks()
                .0
                .iter()
                .fold(false, |bad, &b| bad | (u32::from_le_bytes(b) & F32_EXPONENT == F32_EXPONENT)),
            Row::Bf16(bytes) => bytes
                .as_chunks()
                .0
                .iter()
                .fold(false, |bad, &b| bad | (u16::from_le_bytes(b) & BF16_EXPONENT == BF16_EXPONENT)),
        };
        !bad
    }
}

/// The answer row of every pair of `routing`, in the routing's order, all checked.
fn slots<'a>(
    routing: &Routing,
    answers: &[(&Dispatch, &'a ExpertRows)],
    width: usize,
) -> Result<Vec<Row<'a>>, CombineError> {
    let k = routing.experts_per_token();
    let mut slots = vec![None; routing.rows() * k];
    for &(dispatch, answer) in answers {
        check_shape(dispatch, answer, width)?;
        let answered = dispatch.work.iter().flat_map(|w| w.rows.iter().map(move |&row| (w.expert, row)));
        for (i, (expert, index)) in answered.enumerate() {
            let node = || dispatch.node.clone();
            let Some(&token) = dispatch.tokens.get(index as usize) else {
                return Err(CombineError::Malformed { node: node(), why: format!("row {index} is no token's") });
            };
            let slot = ((token as usize) < routing.rows())
                .then(|| routing.row(token as usize).0.iter().position(|&e| e == expert))
                .flatten()
                .map(|at| &mut slots[token as usize * k + at]);
            let Some(slot) = slot else { return Err(CombineError::Unrouted { node: node(), token, expert }) };
            let row = Row::of(&answer.rows, i);
            if !row.is_finite() {
                return Err(CombineError::NotFinite { node: node(), expert, token });
            }
            if slot.replace(row).is_some() {
                return Err(CombineError::Duplicate { node: node(), token, expert });
            }
        }
    }
    let full = slots.iter().zip(routing.pairs());
    full.map(|(slot, pair)| slot.ok_or(CombineError::Missing { token: pair.token, expert: pair.expert })).collect()
}

/// Whether `answer` has one row of `width` finite values for each pair of `dispatch`.
pub(crate) fn is_sound(dispatch: &Dispatch, answer: &ExpertRows, width: usize) -> bool {
    let is_finite = |i| Row::of(&answer.rows, i).is_finite();
    check_shape(dispatch, answer, width).is_ok() && (0..answer.rows.count().unwrap_or(0)).all(is_finite)
}

/// Checks that `answer` has one row of `width` values, f32 or bf16, for each pair of `dispatch`.
fn check_shape(dispatch: &Dispatch, answer: &ExpertRows, width: usize) -> Result<(), CombineError> {
    let rows = &answer.rows;
    let asked: usize = dispatch.work.iter().map(|w| w.rows.len()).sum();
    let why = if rows.format == RowFormat::Q8 {
        "answered in int8 blocks".into()
    } else if rows.width != width {
        format!("answered rows of {} values where {width} were asked for", rows.width)
    } else if rows.data.len() != asked * rows.format.row_bytes(width) {
        format!("answered {} bytes, which are not the {asked} rows asked for", rows.data.len())
    } else {
        return Ok(());
    };
    Err(CombineError::Malformed { node: dispatch.node.clone(), why })
}

#[cfg(test)]
mod tests;
