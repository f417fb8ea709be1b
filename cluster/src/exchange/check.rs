//! What a batch and an answer must be, whoever sent them. Pure: run on all that comes off a wire, and in process too.

use tramontane_router::{ExpertBatch, ExpertRows, RowFormat};

use crate::Malformed;

/// Values in a row, at most.
pub const MAX_WIDTH: usize = 1 << 16;
/// Rows in a batch, at most.
pub const MAX_ROWS: usize = 1 << 16;
/// Rows in an answer, at most: pairs of expert and row.
pub const MAX_ANSWERS: usize = 1 << 20;
/// Bytes of rows in a batch or an answer, at most.
pub const MAX_PAYLOAD: usize = 512 << 20;

/// Values that share one scale in [`RowFormat::Q8`].
const Q8_BLOCK: usize = 32;

/// Bytes of `rows` rows, refused where a bound is passed.
pub(super) fn payload_bytes(format: RowFormat, width: usize, rows: usize) -> Result<usize, Malformed> {
    if width == 0 || width > MAX_WIDTH || (format == RowFormat::Q8 && !width.is_multiple_of(Q8_BLOCK)) {
        return Err(Malformed(format!("no row of {format:?} has {width} values")));
    }
    rows.checked_mul(format.row_bytes(width))
        .filter(|&bytes| bytes <= MAX_PAYLOAD)
        .ok_or_else(|| Malformed(format!("{rows} rows of {width} values exceed {MAX_PAYLOAD} bytes")))
}

/// Checks what an expert node computes with: formats, sizes, that every index is in range, that the work is ascending
/// and not empty, and that Q8 rows are what a quantiser can make (values −127…127, finite non-negative scales).
///
/// # Errors
/// What is wrong, as text.
pub fn check_batch(batch: &ExpertBatch) -> Result<(), Malformed> {
    let rows = &batch.rows;
    if rows.format == RowFormat::Bf16 {
        return Err(Malformed("bf16 rows are answers, never sent to experts".into()));
    }
    payload_bytes(rows.format, rows.width, 1)?;
    let count = rows.count().ok_or_else(|| Malformed(format!("{} bytes are no whole rows", rows.data.len())))?;
    if count == 0 || count > MAX_ROWS {
        return Err(Malformed(format!("a batch of {count} rows")));
    }
    payload_bytes(rows.format, rows.width, count)?;
    check_work(batch, count)?;
    // An answer has at most four bytes a value.
    payload_bytes(RowFormat::F32, rows.width, batch.answers())?;
    if rows.format == RowFormat::Q8 {
        (0..count).try_for_each(|i| check_q8_row(rows.row(i), rows.width, i))?;
    }
    Ok(())
}

fn check_work(batch: &ExpertBatch, count: usize) -> Result<(), Malformed> {
    if batch.work.is_empty() || batch.answers() > MAX_ANSWERS {
        return Err(Malformed(format!("a batch with {} answers", batch.answers())));
    }
    if !batch.work.is_sorted_by(|a, b| a.expert < b.expert) {
        return Err(Malformed("experts are not strictly ascending".into()));
    }
    for work in &batch.work {
        let in_range = work.rows.last().is_some_and(|&last| (last as usize) < count);
        if !in_range || !work.rows.is_sorted_by(|a, b| a < b) {
            let expert = work.expert;
            return Err(Malformed(format!("rows of expert {expert} are not strictly ascending within 0..{count}")));
        }
    }
    Ok(())
}

fn check_q8_row(row: &[u8], width: usize, index: usize) -> Result<(), Malformed> {
    let (values, scales) = row.split_at(width);
    // −128 has no counterpart, so no quantiser writes it.
    if values.contains(&i8::MIN.cast_unsigned()) {
        return Err(Malformed(format!("row {index} holds the value -128")));
    }
    let (scales, _) = scales.as_chunks::<4>();
    let valid = |scale: f32| scale.is_finite() && scale.is_sign_positive();
    match scales.iter().map(|&s| f32::from_le_bytes(s)).find(|&s| !valid(s)) {
        Some(scale) => Err(Malformed(format!("row {index} holds the scale {scale}"))),
        None => Ok(()),
    }
}

/// Checks an answer of `answers` rows of `width` values: the format is one for answers, and the bytes are those rows'.
///
/// # Errors
/// What is wrong, as text.
pub fn check_answer(answers: usize, width: usize, answer: &ExpertRows) -> Result<(), Malformed> {
    let rows = &answer.rows;
    check_answer_head(rows.format, rows.width, width)?;
    let expected = payload_bytes(rows.format, width, answers)?;
    if rows.data.len() != expected {
        return Err(Malformed(format!("an answer of {} bytes, not {expected}", rows.data.len())));
    }
    Ok(())
}

/// The part of [`check_answer`] that needs no rows.
pub(super) fn check_answer_head(format: RowFormat, width: usize, expected: usize) -> Result<(), Malformed> {
    if format == RowFormat::Q8 {
        return Err(Malformed("an answer in Q8".into()));
    }
    if width != expected {
        return Err(Malformed(format!("an answer of width {width}, not {expected}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use tramontane_router::{Epoch, ExpertWork, ModelId, Rows};

    use super::*;

    fn batch(format: RowFormat, width: usize, rows: usize, work: &[(u32, &[u32])]) -> ExpertBatch {
        ExpertBatch {
            model: ModelId::from("m"),
            epoch: Epoch(1),
            layer: 0,
            rows: Rows { format, width, data: Bytes::from(vec![0; rows * format.row_bytes(width)]) },
            work: work.iter().map(|&(expert, rows)| ExpertWork { expert, rows: rows.to_vec() }).collect(),
            trace: None,
        }
    }

    fn refusal(batch: &ExpertBatch) -> String {
        check_batch(batch).expect_err("a damaged batch").0
    }

    #[test]
    fn sound_batches_pass() {
        for format in [RowFormat::F32, RowFormat::Q8] {
            assert_eq!(check_batch(&batch(format, 64, 3, &[(0, &[0, 2]), (5, &[1])])), Ok(()));
        }
    }

    #[test]
    fn work_out_of_order_or_range_is_refused() {
        let work: [&[(u32, &[u32])]; 7] = [
            &[],
            &[(0, &[])],
            &[(0, &[3])],
            &[(0, &[1, 1])],
            &[(0, &[1, 0])],
            &[(1, &[0]), (1, &[1])],
            &[(1, &[0]), (0, &[1])],
        ];
        for work in work {
            assert!(check_batch(&batch(RowFormat::F32, 32, 3, work)).is_err(), "{work:?}");
        }
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        assert!(refusal(&batch(RowFormat::F32, 0, 1, &[(0, &[0])])).contains("0 values"));
        assert!(refusal(&batch(RowFormat::F32, MAX_WIDTH + 1, 1, &[(0, &[0])])).contains("65537 values"));
        assert!(refusal(&batch(RowFormat::Q8, 48, 1, &[(0, &[0])])).contains("48 values"));
        assert!(refusal(&batch(RowFormat::F32, 1, MAX_ROWS + 1, &[(0, &[0])])).contains("65537 rows"));
        assert!(refusal(&batch(RowFormat::F32, 32, 0, &[(0, &[0])])).contains("0 rows"));
        let mut short = batch(RowFormat::F32, 32, 2, &[(0, &[0])]);
        short.rows.data.truncate(255);
        assert!(refusal(&short).contains("no whole rows"));
    }

    #[test]
    fn an_answer_too_large_is_refused_before_it_is_computed() {
        let all: Vec<u32> = (0..4096).collect();
        let work: Vec<(u32, &[u32])> = (0..9).map(|expert| (expert, all.as_slice())).collect();
        assert!(refusal(&batch(RowFormat::Q8, 4096, 4096, &work)).contains("exceed"));
    }

    #[test]
    fn bf16_rows_are_refused() {
        assert!(refusal(&batch(RowFormat::Bf16, 32, 1, &[(0, &[0])])).contains("bf16"));
    }

    #[test]
    fn q8_rows_no_quantiser_makes_are_refused() {
        let sound = batch(RowFormat::Q8, 32, 2, &[(0, &[0, 1])]);
        let with = |at: usize, bytes: &[u8]| {
            let mut data = sound.rows.data.to_vec();
            data[at..at + bytes.len()].copy_from_slice(bytes);
            let mut batch = sound.clone();
            batch.rows.data = data.into();
            batch
        };
        assert_eq!(check_batch(&with(36 + 31, &[0x81])), Ok(()), "-127 is a value");
        assert!(refusal(&with(36 + 31, &[0x80])).contains("row 1 holds the value -128"));
        assert_eq!(check_batch(&with(32, &[0x80, 0, 0, 0])), Ok(()), "0x80 in a scale is no value");
        for scale in [f32::NAN, f32::INFINITY, -1.0, -0.0] {
            assert!(refusal(&with(36 + 32, &scale.to_le_bytes())).contains("row 1 holds the scale"));
        }
    }

    #[test]
    fn answers_must_be_the_rows_asked_for() {
        let rows =
            |format: RowFormat, width, len| ExpertRows { rows: Rows { format, width, data: vec![0; len].into() } };
        assert_eq!(check_answer(3, 8, &rows(RowFormat::F32, 8, 96)), Ok(()));
        assert_eq!(check_answer(3, 8, &rows(RowFormat::Bf16, 8, 48)), Ok(()));
        assert!(check_answer(3, 8, &rows(RowFormat::F32, 8, 95)).is_err());
        assert!(check_answer(2, 8, &rows(RowFormat::F32, 8, 96)).is_err());
        assert!(check_answer(3, 8, &rows(RowFormat::F32, 4, 48)).is_err());
        assert!(check_answer(3, 32, &rows(RowFormat::Q8, 32, 108)).is_err());
    }

    proptest! {
        #[test]
        fn a_batch_passes_exactly_when_it_is_sound(
            format in prop::sample::select(vec![RowFormat::F32, RowFormat::Q8]),
            width in prop::sample::select(vec![1usize, 32, 48, 64]),
            count in 0usize..4,
            torn in 0usize..2,
            work in prop::collection::vec((0u32..3, prop::collection::vec(0u32..4, 1..3)), 1..3),
        ) {
            let data = vec![0; count * format.row_bytes(width) + torn];
            let batch = ExpertBatch {
                model: ModelId::from("m"),
                epoch: Epoch(0),
                layer: 0,
                rows: Rows { format, width, data: data.into() },
                work: work.into_iter().map(|(expert, rows)| ExpertWork { expert, rows }).collect(),
                trace: None,
            };
            let ascending = |list: &[u32]| list.windows(2).all(|pair| pair[0] < pair[1]);
            let indices = || batch.work.iter().flat_map(|w| &w.rows).map(|&row| row as usize);
            let sound = batch.rows.count() == Some(count)
                && (format == RowFormat::F32 || width % 32 == 0)
                && ascending(&batch.work.iter().map(|w| w.expert).collect::<Vec<_>>())
                && batch.work.iter().all(|w| ascending(&w.rows))
                && indices().all(|row| row < count);
            prop_assert_eq!(check_batch(&batch).is_ok(), sound);
        }
    }
}
