//! Puts a stream's chunks together again to whole payloads, bounded by the size the first one declares. Pure.

use std::mem;

use bytes::{Bytes, BytesMut};
use tramontane_proto::v1 as pb;

use super::MAX_CHUNK;
use crate::Malformed;

/// The chunks of two messages are mixed up: nothing that follows on the stream can be trusted, so it must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunks out of order on the stream")]
pub struct BrokenFraming;

/// A message: its head and its payload, or why it is refused.
pub(super) type Whole<H, E> = Result<(H, Bytes), E>;

/// One direction of one stream. `H` is what stands in a message's head.
pub(super) struct Reassembly<H> {
    state: State<H>,
}

enum State<H> {
    /// The next chunk opens a message.
    Between,
    /// The next chunk belongs to this one.
    Filling { sequence: u64, head: H, payload: Payload },
    /// As before, but the message has been refused already.
    Skipping { sequence: u64 },
}

impl<H> Reassembly<H> {
    pub(super) fn new() -> Self {
        Self { state: State::Between }
    }

    /// Takes the next chunk. `head` is the message's decoded head and the bytes it declares, with its first chunk.
    /// Returns the message once it is whole, or once, as soon as that is known, why it is refused.
    pub(super) fn push<E: From<Malformed>>(
        &mut self,
        sequence: u64,
        head: Option<Result<(H, usize), E>>,
        chunk: pb::Chunk,
    ) -> Result<Option<Whole<H, E>>, BrokenFraming> {
        let rest = if chunk.last { State::Between } else { State::Skipping { sequence } };
        let (head, mut payload) = match (mem::replace(&mut self.state, rest), head) {
            (State::Between, Some(Ok((head, declared)))) => (head, Payload::new(declared)),
            (State::Between, Some(Err(refused))) => return Ok(Some(Err(refused))),
            (State::Filling { sequence: open, head, payload }, None) if open == sequence => (head, payload),
            (State::Skipping { sequence: open }, None) if open == sequence => return Ok(None),
            _ => return Err(BrokenFraming),
        };
        match payload.push(chunk) {
            Ok(Some(bytes)) => Ok(Some(Ok((head, bytes)))),
            Ok(None) => {
                self.state = State::Filling { sequence, head, payload };
                Ok(None)
            }
            Err(malformed) => Ok(Some(Err(malformed.into()))),
        }
    }
}

/// The bytes of one message so far.
struct Payload {
    declared: usize,
    next: u32,
    so_far: BytesMut,
}

impl Payload {
    fn new(declared: usize) -> Self {
        Self { declared, next: 0, so_far: BytesMut::new() }
    }

    /// The payload, when `chunk` was its last. A payload of one chunk is not copied.
    fn push(&mut self, chunk: pb::Chunk) -> Result<Option<Bytes>, Malformed> {
        let pb::Chunk { index, last, payload } = chunk;
        let (length, declared) = (self.so_far.len() + payload.len(), self.declared);
        if index != self.next || payload.is_empty() {
            return Err(Malformed(format!(
                "chunk {index} of {} bytes where chunk {} was due",
                payload.len(),
                self.next
            )));
        }
        if length > declared || (last && length < declared) {
            return Err(Malformed(format!("a payload of {length} bytes, not {declared}")));
        }
        if last && index == 0 {
            return Ok(Some(payload));
        }
        self.next += 1;
        self.so_far.reserve(if index == 0 { declared } else { 0 });
        self.so_far.extend_from_slice(&payload);
        Ok(last.then(|| mem::take(&mut self.so_far).freeze()))
    }
}

/// `payload` in chunks of at most [`MAX_CHUNK`] bytes, without copying; at least one.
pub(super) fn chunks(payload: &Bytes) -> impl Iterator<Item = pb::Chunk> + use<> {
    let payload = payload.clone();
    let count = payload.len().div_ceil(MAX_CHUNK).max(1);
    (0..count).map(move |i| {
        let end = payload.len().min((i + 1) * MAX_CHUNK);
        // At most MAX_PAYLOAD / MAX_CHUNK chunks: the index fits.
        pb::Chunk { index: i as u32, last: i + 1 == count, payload: payload.slice(i * MAX_CHUNK..end) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pushed = Result<Option<Whole<char, Malformed>>, BrokenFraming>;

    fn chunk(index: u32, last: bool, payload: &'static [u8]) -> pb::Chunk {
        pb::Chunk { index, last, payload: Bytes::from_static(payload) }
    }

    fn whole(head: char, payload: &'static [u8]) -> Pushed {
        Ok(Some(Ok((head, Bytes::from_static(payload)))))
    }

    #[test]
    fn one_chunk_is_passed_through_uncopied() {
        let payload = Bytes::from(vec![7; 64]);
        let only = pb::Chunk { index: 0, last: true, payload: payload.clone() };
        let pushed = Reassembly::new().push::<Malformed>(1, Some(Ok(('a', 64))), only);
        let (_, bytes) = pushed.expect("framing").expect("whole").expect("sound");
        assert_eq!(bytes.as_ptr(), payload.as_ptr());
    }

    #[test]
    fn chunks_and_messages_follow_one_another() {
        let mut stream = Reassembly::new();
        assert_eq!(stream.push::<Malformed>(1, Some(Ok(('a', 4))), chunk(0, false, b"ab")), Ok(None));
        assert_eq!(stream.push(1, None, chunk(1, true, b"cd")), whole('a', b"abcd"));
        assert_eq!(stream.push(2, Some(Ok(('b', 1))), chunk(0, true, b"e")), whole('b', b"e"));
    }

    #[test]
    fn a_refused_message_is_answered_once_and_skipped_to_its_end() {
        let refused = Malformed("no such format".into());
        let mut stream = Reassembly::<char>::new();
        assert_eq!(stream.push(1, Some(Err(refused.clone())), chunk(0, false, b"ab")), Ok(Some(Err(refused))));
        assert_eq!(stream.push::<Malformed>(1, None, chunk(1, false, b"cd")), Ok(None));
        assert_eq!(stream.push::<Malformed>(1, None, chunk(2, true, b"ef")), Ok(None));
        assert_eq!(stream.push(2, Some(Ok(('b', 1))), chunk(0, true, b"e")), whole('b', b"e"));
    }

    #[test]
    fn payloads_of_another_size_are_refused() {
        for (declared, bytes, last) in [(2, b"abc".as_slice(), true), (4, b"abc", true), (2, b"abc", false)] {
            let pushed = Reassembly::new().push::<Malformed>(1, Some(Ok(('a', declared))), chunk(0, last, bytes));
            assert!(matches!(pushed, Ok(Some(Err(_)))), "{declared} {last}");
        }
    }

    #[test]
    fn chunks_out_of_turn_or_empty_are_refused() {
        for second in [chunk(0, true, b"cd"), chunk(2, true, b"cd"), chunk(1, false, b"")] {
            let mut stream = Reassembly::new();
            assert_eq!(stream.push::<Malformed>(1, Some(Ok(('a', 4))), chunk(0, false, b"ab")), Ok(None));
            assert!(matches!(stream.push::<Malformed>(1, None, second), Ok(Some(Err(_)))));
        }
    }

    #[test]
    fn mixed_messages_break_the_stream() {
        let fresh = || Reassembly::<char>::new();
        assert_eq!(fresh().push::<Malformed>(1, None, chunk(1, true, b"a")), Err(BrokenFraming));
        let half = || {
            let mut stream = fresh();
            assert_eq!(stream.push::<Malformed>(1, Some(Ok(('a', 4))), chunk(0, false, b"ab")), Ok(None));
            stream
        };
        assert_eq!(half().push::<Malformed>(2, None, chunk(1, true, b"cd")), Err(BrokenFraming));
        assert_eq!(half().push::<Malformed>(1, Some(Ok(('a', 2))), chunk(0, true, b"cd")), Err(BrokenFraming));
    }

    #[test]
    fn chunking_is_undone_by_reassembly() {
        for length in [1, MAX_CHUNK, MAX_CHUNK + 1, 2 * MAX_CHUNK + 5] {
            let payload: Bytes = (0..length).map(|i| i as u8).collect::<Vec<_>>().into();
            let mut stream = Reassembly::new();
            let mut whole = None;
            for chunk in chunks(&payload) {
                assert!(whole.is_none() && chunk.payload.len() <= MAX_CHUNK);
                let head = (chunk.index == 0).then_some(Ok::<_, Malformed>(((), length)));
                whole = stream.push(1, head, chunk).expect("framing");
            }
            assert_eq!(whole, Some(Ok(((), payload))));
        }
    }
}
