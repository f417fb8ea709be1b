//! Seals: a checksum over a whole message, so that a bit that flips on the way (TCP's own sum misses one in 65536) is a broken
//! stream and not a wrong row.
//!
//! CRC-32 (ISO-HDLC) of the message as protobuf encodes it with neither seal nor payload, then of the payload's bytes.

use bytes::Bytes;
use prost::Message;
use tramontane_proto::v1 as pb;

/// `message` with its seal.
pub fn seal_request(mut message: pb::DispatchRequest) -> pb::DispatchRequest {
    message.seal = request_seal(&message);
    message
}

/// `message` with its seal.
pub fn seal_reply(mut message: pb::DispatchReply) -> pb::DispatchReply {
    message.seal = reply_seal(&message);
    message
}

/// Why a message that came is not the one that was sent.
#[derive(Debug, thiserror::Error)]
#[error("message of dispatch {sequence} was damaged on the way")]
pub struct Broken {
    sequence: u64,
}

pub(super) fn check_request(message: &pb::DispatchRequest) -> Result<(), Broken> {
    if message.seal == request_seal(message) { Ok(()) } else { Err(Broken { sequence: message.sequence }) }
}

pub(super) fn check_reply(message: &pb::DispatchReply) -> Result<(), Broken> {
    if message.seal == reply_seal(message) { Ok(()) } else { Err(Broken { sequence: message.sequence }) }
}

fn request_seal(message: &pb::DispatchRequest) -> u32 {
    let mut head = pb::DispatchRequest { seal: 0, ..message.clone() };
    let payload = take(head.chunk.as_mut());
    sum(&head.encode_to_vec(), &payload)
}

fn reply_seal(message: &pb::DispatchReply) -> u32 {
    let mut head = pb::DispatchReply { seal: 0, ..message.clone() };
    let payload = match &mut head.answer {
        Some(pb::dispatch_reply::Answer::Rows(rows)) => take(rows.chunk.as_mut()),
        Some(pb::dispatch_reply::Answer::Error(_)) | None => Bytes::new(),
    };
    sum(&head.encode_to_vec(), &payload)
}

/// The payload, taken out without a copy: the clone shares its bytes.
fn take(chunk: Option<&mut pb::Chunk>) -> Bytes {
    chunk.map(|chunk| std::mem::take(&mut chunk.payload)).unwrap_or_default()
}

fn sum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_that_still_decodes_breaks_the_seal() {
        let head = pb::AnswerHead { format: 1, width: 2, rows: 1 };
        let chunk = pb::Chunk { index: 0, last: true, payload: vec![7; 8].into() };
        let rows = pb::AnswerRows { head: Some(head), chunk: Some(chunk) };
        let answer = Some(pb::dispatch_reply::Answer::Rows(rows));
        let sealed = seal_reply(pb::DispatchReply { sequence: 5, answer, seal: 0 });
        check_reply(&sealed).expect("as it was sent");
        let encoded = sealed.encode_to_vec();
        let mut decoded = 0;
        for bit in 0..encoded.len() * 8 {
            let mut damaged = encoded.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Ok(message) = pb::DispatchReply::decode(damaged.as_slice()) {
                decoded += 1;
                assert!(check_reply(&message).is_err() || message == sealed, "bit {bit}");
            }
        }
        assert!(decoded > 100, "{decoded}");
    }
}
