//! Batches and answers to messages and back. Nothing that comes off the wire is believed before it is checked here.

use bytes::Bytes;
use tramontane_proto::v1 as pb;
use tramontane_router::{
    Epoch, ExpertBatch, ExpertRows, ExpertWork, ModelId, NodeId, NumericProfile, RowFormat, Rows, TraceIds,
};

use super::reassembly::chunks;
use super::seal::{seal_reply, seal_request};
use crate::Malformed;
use crate::convert::{expert_from_pb, expert_to_pb, profile_from_pb, profile_to_pb};
use crate::exchange::check::{check_answer_head, payload_bytes};
use crate::exchange::{ExchangeError, MAX_ROWS, ServeError, check_batch};

impl From<Malformed> for ServeError {
    fn from(Malformed(why): Malformed) -> Self {
        Self::Corrupt { why }
    }
}

fn format_to_pb(format: RowFormat) -> i32 {
    let format = match format {
        RowFormat::F32 => pb::RowFormat::F32,
        RowFormat::Bf16 => pb::RowFormat::Bf16,
        RowFormat::Q8 => pb::RowFormat::Q8,
    };
    format.into()
}

fn format_from_pb(format: i32) -> Result<RowFormat, Malformed> {
    match pb::RowFormat::try_from(format) {
        Ok(pb::RowFormat::F32) => Ok(RowFormat::F32),
        Ok(pb::RowFormat::Bf16) => Ok(RowFormat::Bf16),
        Ok(pb::RowFormat::Q8) => Ok(RowFormat::Q8),
        Ok(pb::RowFormat::Unspecified) | Err(_) => Err(Malformed(format!("row format {format} is not known"))),
    }
}

/// The messages of one dispatch.
pub(super) fn requests(
    sequence: u64,
    batch: ExpertBatch,
    profile: &NumericProfile,
) -> impl Iterator<Item = pb::DispatchRequest> + use<> {
    let data = batch.rows.data.clone();
    let mut head = Some(dispatch_head(batch, profile));
    chunks(&data).map(move |chunk| {
        seal_request(pb::DispatchRequest { sequence, head: head.take(), chunk: Some(chunk), seal: 0 })
    })
}

/// All of a dispatch but its rows' bytes.
pub(in crate::exchange) fn dispatch_head(batch: ExpertBatch, profile: &NumericProfile) -> pb::DispatchHead {
    let ExpertBatch { model, epoch, layer, rows, work, trace } = batch;
    pb::DispatchHead {
        model: model.as_str().to_owned(),
        epoch: epoch.0,
        profile: Some(profile_to_pb(profile)),
        layer,
        format: format_to_pb(rows.format),
        width: saturate(rows.width),
        rows: saturate(rows.count().unwrap_or_default()),
        work: work.into_iter().map(|w| pb::ExpertWork { expert: w.expert, rows: w.rows }).collect(),
        trace: trace.map(|TraceIds(ids)| Bytes::copy_from_slice(&ids)).unwrap_or_default(),
    }
}

/// A batch without its rows' bytes, and how many they are; refused where the node's `profile` is not the one expected.
pub(in crate::exchange) fn batch_head(
    head: pb::DispatchHead,
    profile: &NumericProfile,
) -> Result<(ExpertBatch, usize), ServeError> {
    if let Some(why) = profile.difference(&profile_from_pb(head.profile)?) {
        return Err(ServeError::WrongModel { why });
    }
    let (format, width, rows) = (format_from_pb(head.format)?, head.width as usize, head.rows as usize);
    let declared = payload_bytes(format, width, rows)?;
    if rows > MAX_ROWS {
        return Err(ServeError::Corrupt { why: format!("a batch of {rows} rows") });
    }
    let batch = ExpertBatch {
        model: ModelId::from(head.model),
        epoch: Epoch(head.epoch),
        layer: head.layer,
        rows: Rows { format, width, data: Bytes::new() },
        work: head.work.into_iter().map(|w| ExpertWork { expert: w.expert, rows: w.rows }).collect(),
        trace: trace_ids(&head.trace)?,
    };
    Ok((batch, declared))
}

fn trace_ids(bytes: &[u8]) -> Result<Option<TraceIds>, Malformed> {
    match <[u8; TraceIds::BYTES]>::try_from(bytes) {
        Ok(ids) => Ok(Some(TraceIds(ids))),
        Err(_) if bytes.is_empty() => Ok(None),
        Err(_) => Err(Malformed(format!("a place in a trace of {} bytes", bytes.len()))),
    }
}

/// The whole batch, checked.
pub(in crate::exchange) fn batch(mut head: ExpertBatch, payload: Bytes) -> Result<ExpertBatch, ServeError> {
    head.rows.data = payload;
    check_batch(&head)?;
    Ok(head)
}

/// The messages that answer one dispatch.
pub(super) fn replies(
    sequence: u64,
    answer: Result<ExpertRows, ServeError>,
) -> impl Iterator<Item = pb::DispatchReply> + use<> {
    let (rows, error) = match answer {
        Ok(ExpertRows { rows }) => (Some(rows), None),
        Err(error) => (None, Some(pb::dispatch_reply::Answer::Error(error_to_pb(error)))),
    };
    let rows = rows.into_iter().flat_map(|rows| {
        let mut head = Some(head_of(&rows));
        chunks(&rows.data)
            .map(move |chunk| pb::AnswerRows { head: head.take(), chunk: Some(chunk) })
            .map(pb::dispatch_reply::Answer::Rows)
    });
    rows.chain(error).map(move |answer| seal_reply(pb::DispatchReply { sequence, answer: Some(answer), seal: 0 }))
}

/// What an answer's rows are.
pub(in crate::exchange) fn head_of(rows: &Rows) -> pb::AnswerHead {
    pb::AnswerHead {
        format: format_to_pb(rows.format),
        width: saturate(rows.width),
        rows: saturate(rows.count().unwrap_or_default()),
    }
}

/// An answer's format and the bytes its rows have, if they are `answers` rows of `width` values.
pub(in crate::exchange) fn answer_head(
    head: pb::AnswerHead,
    answers: usize,
    width: usize,
) -> Result<(RowFormat, usize), Malformed> {
    let format = format_from_pb(head.format)?;
    check_answer_head(format, head.width as usize, width)?;
    if head.rows as usize != answers {
        return Err(Malformed(format!("{} rows in answer to {answers}", head.rows)));
    }
    Ok((format, payload_bytes(format, width, answers)?))
}

/// `error`, to be told to the far end.
pub(in crate::exchange) fn error_to_pb(error: ServeError) -> pb::DispatchError {
    let message = error.to_string();
    let (code, expert) = match error {
        ServeError::NotHeld { expert } | ServeError::CannotHold { expert, .. } => {
            (pb::ErrorCode::NotHeld, Some(expert_to_pb(expert)))
        }
        ServeError::WrongModel { .. } => (pb::ErrorCode::WrongProfile, None),
        ServeError::Overloaded => (pb::ErrorCode::Overloaded, None),
        ServeError::Corrupt { .. } => (pb::ErrorCode::Corrupt, None),
    };
    pb::DispatchError { code: code.into(), expert, message }
}

/// What `node` told us.
pub(in crate::exchange) fn error_from_pb(error: pb::DispatchError, node: &NodeId) -> ExchangeError {
    let pb::DispatchError { code, expert, message: why } = error;
    let node = node.clone();
    match pb::ErrorCode::try_from(code) {
        Ok(pb::ErrorCode::NotHeld) => match expert_from_pb(expert) {
            Ok(expert) => ExchangeError::NotHeld { node, expert },
            Err(Malformed(why)) => ExchangeError::Corrupt { node, why },
        },
        Ok(pb::ErrorCode::WrongProfile) => ExchangeError::WrongProfile { node, why },
        Ok(pb::ErrorCode::Overloaded) => ExchangeError::Overloaded { node },
        Ok(pb::ErrorCode::Corrupt | pb::ErrorCode::Unspecified) | Err(_) => ExchangeError::Corrupt { node, why },
    }
}

/// Sizes over any bound stay over it.
fn saturate(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use tramontane_router::ExpertId;

    use super::super::MAX_CHUNK;
    use super::super::reassembly::Reassembly;
    use super::*;

    fn profile() -> NumericProfile {
        NumericProfile { contract: 1, weights: "ab".into(), quantization: "q8_0".into(), arithmetic: "cpu".into() }
    }

    fn sound(rows: usize) -> ExpertBatch {
        let (format, width) = (RowFormat::Q8, 4096);
        ExpertBatch {
            model: ModelId::from("m"),
            epoch: Epoch(7),
            layer: 3,
            rows: Rows { format, width, data: vec![1; rows * format.row_bytes(width)].into() },
            work: vec![
                ExpertWork { expert: 1, rows: (0..rows as u32).collect() },
                ExpertWork { expert: 6, rows: vec![0] },
            ],
            trace: (rows % 2 == 1).then_some(TraceIds([rows as u8; TraceIds::BYTES])),
        }
    }

    fn receive(messages: impl IntoIterator<Item = pb::DispatchRequest>) -> Result<ExpertBatch, ServeError> {
        let mut stream = Reassembly::new();
        for message in messages {
            let head = message.head.map(|head| batch_head(head, &profile()));
            let chunk = message.chunk.expect("every message has a chunk");
            if let Some(pushed) = stream.push(message.sequence, head, chunk).expect("framing") {
                return pushed.and_then(|(head, payload)| batch(head, payload));
            }
        }
        panic!("no whole batch");
    }

    fn why(damage: impl FnOnce(&mut pb::DispatchRequest)) -> ServeError {
        let mut message = requests(1, sound(2), &profile()).next().expect("a message");
        damage(&mut message);
        receive([message]).expect_err("a damaged batch")
    }

    fn head(message: &mut pb::DispatchRequest) -> &mut pb::DispatchHead {
        message.head.as_mut().expect("a head")
    }

    #[test]
    fn batches_survive_the_wire_in_one_message_and_in_many() {
        for rows in [1, 3 * MAX_CHUNK / 4096] {
            let messages: Vec<_> = requests(1, sound(rows), &profile()).collect();
            assert_eq!(messages.len() > 1, rows > 1);
            assert_eq!(receive(messages), Ok(sound(rows)));
        }
    }

    #[test]
    fn damaged_batches_are_corrupt() {
        let damages: [fn(&mut pb::DispatchRequest); 11] = [
            |m| head(m).format = 0,
            |m| head(m).format = 9,
            |m| head(m).format = format_to_pb(RowFormat::Bf16),
            |m| head(m).format = format_to_pb(RowFormat::F32),
            |m| head(m).width = 0,
            |m| head(m).width = 4064,
            |m| head(m).rows = u32::MAX,
            |m| head(m).rows = 3,
            |m| head(m).work[0].rows[0] = 2,
            |m| head(m).profile = None,
            |m| head(m).trace = vec![1; 16].into(),
        ];
        for (i, damage) in damages.into_iter().enumerate() {
            assert!(matches!(why(damage), ServeError::Corrupt { .. }), "damage {i}");
        }
    }

    #[test]
    fn bytes_no_quantiser_makes_are_corrupt() {
        let with = |at: usize, byte: u8| {
            why(|message| {
                let chunk = message.chunk.as_mut().expect("a chunk");
                let mut bytes = chunk.payload.to_vec();
                bytes[at] = byte;
                chunk.payload = bytes.into();
            })
        };
        assert!(matches!(with(0, 0x80), ServeError::Corrupt { .. }), "the value -128");
        assert!(matches!(with(4096 + 3, 0x80), ServeError::Corrupt { .. }), "a negative scale");
    }

    #[test]
    fn another_profile_is_refused_with_the_difference() {
        let refused = why(|m| head(m).profile.as_mut().expect("a profile").contract = 2);
        assert_eq!(refused, ServeError::WrongModel { why: "numeric contract 1 here, 2 there".into() });
    }

    #[test]
    fn answers_that_are_not_the_rows_asked_for_are_refused() {
        let head = |format, width, rows| pb::AnswerHead { format: format_to_pb(format), width, rows };
        assert_eq!(answer_head(head(RowFormat::F32, 8, 3), 3, 8), Ok((RowFormat::F32, 96)));
        assert_eq!(answer_head(head(RowFormat::Bf16, 8, 3), 3, 8), Ok((RowFormat::Bf16, 48)));
        for (format, width, rows) in [(RowFormat::F32, 8, 2), (RowFormat::F32, 4, 3), (RowFormat::Q8, 8, 3)] {
            assert!(answer_head(head(format, width, rows), 3, 8).is_err());
        }
    }

    #[test]
    fn errors_keep_their_meaning_over_the_wire() {
        let (node, expert) = (NodeId::from("n"), ExpertId::new(2, 5));
        let errors = [
            ServeError::NotHeld { expert },
            ServeError::WrongModel { why: "x".into() },
            ServeError::Overloaded,
            ServeError::Corrupt { why: "x".into() },
        ];
        for error in errors {
            let received = error_from_pb(error_to_pb(error.clone()), &node);
            let kind = std::mem::discriminant(&received);
            assert_eq!(kind, std::mem::discriminant(&error.clone().at(&node)), "{error:?}");
        }
        let lost = error_from_pb(pb::DispatchError { code: 1, expert: None, message: String::new() }, &node);
        assert!(matches!(lost, ExchangeError::Corrupt { .. }), "NOT_HELD without an expert");
        let unknown = error_from_pb(pb::DispatchError { code: 77, expert: None, message: String::new() }, &node);
        assert!(matches!(unknown, ExchangeError::Corrupt { .. }));
    }
}
