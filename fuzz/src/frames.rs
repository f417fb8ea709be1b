//! The exchange's frames: messages as they come off a stream, at either end.

use prost::Message;
use tramontane_cluster::exchange::check_batch;
use tramontane_cluster::exchange::grpc::{AnswerReader, Asked, DispatchReader, seal_reply, seal_request};
use tramontane_proto::v1::{DispatchReply, DispatchRequest};
use tramontane_router::{CPU_ARITHMETIC, NodeId, NumericProfile};

/// Bits of the first byte: which end reads, and whether messages are sealed anew, as a peer of ill will would.
const COORDINATOR: u8 = 1;
const AS_THEY_COME: u8 = 2;

/// `data` is messages, each behind two bytes that say how long it is, behind a byte of bits.
pub(super) fn messages(data: &[u8]) {
    let Some((&bits, mut data)) = data.split_first() else { return };
    let profile = NumericProfile {
        contract: 1,
        weights: "w".to_owned(),
        quantization: "q".to_owned(),
        arithmetic: CPU_ARITHMETIC.to_owned(),
    };
    let mut dispatches = DispatchReader::new(profile);
    let mut answers = AnswerReader::new(NodeId::from("n"));
    // An even dispatch is in flight, for as many rows as its number says.
    let asked =
        |sequence: u64| sequence.is_multiple_of(2).then_some(Asked { answers: (sequence as usize) % 8, width: 32 });
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let (message, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        data = rest;
        if bits & COORDINATOR == 0 {
            let Ok(message) = DispatchRequest::decode(message) else { continue };
            let message = if bits & AS_THEY_COME == 0 { seal_request(message) } else { message };
            match dispatches.push(message) {
                Err(_) => return,
                Ok(Some((_, Ok(batch)))) => check_batch(&batch).expect("what a node computes was checked"),
                Ok(_) => {}
            }
        } else {
            let Ok(message) = DispatchReply::decode(message) else { continue };
            let message = if bits & AS_THEY_COME == 0 { seal_reply(message) } else { message };
            match answers.push(message, asked) {
                Err(_) => return,
                Ok(Some((sequence, Ok(rows)))) => {
                    let Asked { answers, width } = asked(sequence).expect("it was asked for");
                    let found = (rows.rows.width, rows.rows.count());
                    assert_eq!(found, (width, Some(answers)), "dispatch {sequence}");
                }
                Ok(_) => {}
            }
        }
    }
}
