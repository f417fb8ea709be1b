//! Control messages, sealed and opened, and the sums of the rows that they speak of.
//!
//! A seal is CRC-32 (ISO-HDLC) of the message as protobuf encodes it without its seal; a sum is the same of a payload.

use bytes::Bytes;
use prost::Message;
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::communicate_reply::Step as Reply;
use tramontane_proto::v1::communicate_request::Step as Request;

use super::communicator::{ID_BYTES, Seat};
use crate::Malformed;
use crate::exchange::MAX_PAYLOAD;

/// `step`, sealed.
pub(super) fn request(step: Request) -> pb::CommunicateRequest {
    let mut message = pb::CommunicateRequest { step: Some(step), seal: 0 };
    message.seal = crc32fast::hash(&message.encode_to_vec());
    message
}

/// `step`, sealed.
pub(super) fn reply(step: Reply) -> pb::CommunicateReply {
    let mut message = pb::CommunicateReply { step: Some(step), seal: 0 };
    message.seal = crc32fast::hash(&message.encode_to_vec());
    message
}

/// The step that came, if it is as it was sent.
pub(super) fn opened_request(mut message: pb::CommunicateRequest) -> Result<Request, Malformed> {
    let seal = std::mem::take(&mut message.seal);
    checked(seal, &message)?;
    message.step.ok_or_else(|| Malformed::missing("step"))
}

/// The step that came, if it is as it was sent.
pub(super) fn opened_reply(mut message: pb::CommunicateReply) -> Result<Reply, Malformed> {
    let seal = std::mem::take(&mut message.seal);
    checked(seal, &message)?;
    message.step.ok_or_else(|| Malformed::missing("step"))
}

fn checked(seal: u32, unsealed: &impl Message) -> Result<(), Malformed> {
    if crc32fast::hash(&unsealed.encode_to_vec()) == seal {
        Ok(())
    } else {
        Err(Malformed("a control message was damaged on the way".into()))
    }
}

/// The sum of a payload.
pub(super) fn sum(payload: &Bytes) -> u32 {
    crc32fast::hash(payload)
}

/// Checks that `payload` is the one that was announced with `sum`.
pub(super) fn check_sum(payload: &Bytes, announced: u32) -> Result<(), Malformed> {
    if sum(payload) == announced {
        Ok(())
    } else {
        Err(Malformed("rows were damaged on their way through NCCL".into()))
    }
}

/// A payload's size, within bounds.
pub(super) fn size(bytes: u64) -> Result<usize, Malformed> {
    let fits = usize::try_from(bytes).ok().filter(|bytes| (1..=MAX_PAYLOAD).contains(bytes));
    fits.ok_or_else(|| Malformed(format!("a payload of {bytes} bytes")))
}

/// A member's seat.
pub(super) fn seat(join: &pb::CommunicatorJoin) -> Result<Seat, Malformed> {
    let pb::CommunicatorJoin { id, rank, ranks } = join;
    let id = <[u8; ID_BYTES]>::try_from(id.as_ref()).map_err(|_| Malformed(format!("an id of {} bytes", id.len())))?;
    // Rank 0 is the coordinator's.
    if *rank == 0 || rank >= ranks || i32::try_from(*ranks).is_err() {
        return Err(Malformed(format!("rank {rank} of {ranks}")));
    }
    Ok(Seat { id, rank: *rank, ranks: *ranks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_that_still_decodes_breaks_the_seal() {
        let ready = pb::RowsReady { sequence: 7, head: Some(pb::AnswerHead { format: 1, width: 2, rows: 3 }), sum: 4 };
        let sealed = reply(Reply::Ready(ready));
        opened_reply(sealed.clone()).expect("as it was sent");
        let encoded = sealed.encode_to_vec();
        let mut decoded = 0;
        for bit in 0..encoded.len() * 8 {
            let mut damaged = encoded.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Ok(message) = pb::CommunicateReply::decode(damaged.as_slice()) {
                decoded += 1;
                assert!(opened_reply(message.clone()).is_err() || message == sealed, "bit {bit}");
            }
        }
        assert!(decoded > 50, "{decoded}");
        let offer = Request::Offer(pb::CommunicatorOffer { generation: 3 });
        assert_eq!(opened_request(request(offer.clone())), Ok(offer));
        assert!(opened_request(pb::CommunicateRequest { step: None, seal: 0 }).is_err());
    }

    #[test]
    fn seats_that_make_no_sense_are_refused() {
        let join = |length, rank, ranks| pb::CommunicatorJoin { id: vec![1; length].into(), rank, ranks };
        assert!(seat(&join(ID_BYTES, 1, 2)).is_ok());
        for (length, rank, ranks) in [(127, 1, 2), (129, 1, 2), (128, 0, 2), (128, 2, 2), (128, 1, u32::MAX)] {
            assert!(seat(&join(length, rank, ranks)).is_err(), "{length} {rank} {ranks}");
        }
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        assert_eq!(size(MAX_PAYLOAD as u64), Ok(MAX_PAYLOAD));
        for bytes in [0, MAX_PAYLOAD as u64 + 1, u64::MAX] {
            assert!(size(bytes).is_err());
        }
    }
}
