//! What either end makes of the messages that come on a stream: sealed, in order, put together, checked. Pure.

use tramontane_proto::v1 as pb;
use tramontane_router::{ExpertBatch, ExpertRows, NodeId, NumericProfile, RowFormat, Rows};

use super::reassembly::{BrokenFraming, Reassembly};
use super::seal::{Broken, check_reply, check_request};
use super::wire;
use crate::Malformed;
use crate::exchange::{ExchangeError, ServeError};

/// Nothing that follows on the stream can be believed: end it.
#[derive(Debug, thiserror::Error)]
pub enum BrokenStream {
    /// A message is not the one that was sent. It may be of any dispatch.
    #[error(transparent)]
    Damaged(#[from] Broken),
    /// Messages are mixed up.
    #[error(transparent)]
    OutOfOrder(#[from] BrokenFraming),
    /// The node answered what it was not asked, or what was answered already.
    #[error("the node answered dispatch {sequence}, which is not in flight")]
    Unasked {
        /// The dispatch.
        sequence: u64,
    },
}

/// A dispatch's number, and what came of it.
pub type Numbered<T, E> = (u64, Result<T, E>);

/// The node's end of one stream.
pub struct DispatchReader {
    profile: NumericProfile,
    reassembly: Reassembly<ExpertBatch>,
}

impl DispatchReader {
    /// Of a node with `profile`, which refuses dispatches that expect another.
    pub fn new(profile: NumericProfile) -> Self {
        Self { profile, reassembly: Reassembly::new() }
    }

    /// Takes the next message. Returns a dispatch, or why it is refused, once that is known.
    ///
    /// # Errors
    /// [`BrokenStream`].
    pub fn push(
        &mut self,
        message: pb::DispatchRequest,
    ) -> Result<Option<Numbered<ExpertBatch, ServeError>>, BrokenStream> {
        check_request(&message)?;
        let pb::DispatchRequest { sequence, head, chunk, .. } = message;
        let head = head.map(|head| wire::batch_head(head, &self.profile));
        let whole = self.reassembly.push(sequence, head, chunk.unwrap_or_default())?;
        Ok(whole.map(|whole| (sequence, whole.and_then(|(head, payload)| wire::batch(head, payload)))))
    }
}

/// What a dispatch's answer must be.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Its rows.
    pub answers: usize,
    /// A row's values.
    pub width: usize,
}

/// The coordinator's end of one stream.
pub struct AnswerReader {
    node: NodeId,
    reassembly: Reassembly<(RowFormat, usize)>,
}

impl AnswerReader {
    /// Of the stream to `node`.
    pub fn new(node: NodeId) -> Self {
        Self { node, reassembly: Reassembly::new() }
    }

    /// Takes the next message; `asked` says what a dispatch in flight asked for. Returns the dispatch's number and its answer, once that
    /// is whole or refused.
    ///
    /// # Errors
    /// [`BrokenStream`].
    pub fn push(
        &mut self,
        reply: pb::DispatchReply,
        asked: impl Fn(u64) -> Option<Asked>,
    ) -> Result<Option<Numbered<ExpertRows, ExchangeError>>, BrokenStream> {
        check_reply(&reply)?;
        let sequence = reply.sequence;
        let Some(Asked { answers, width }) = asked(sequence) else { return Err(BrokenStream::Unasked { sequence }) };
        let corrupt = |Malformed(why)| ExchangeError::Corrupt { node: self.node.clone(), why };
        let answer = match reply.answer {
            Some(pb::dispatch_reply::Answer::Rows(pb::AnswerRows { head, chunk })) => {
                let head = head.map(|head| wire::answer_head(head, answers, width));
                let head = head.map(|head| head.map(|(format, bytes)| ((format, width), bytes)));
                match self.reassembly.push(sequence, head, chunk.unwrap_or_default())? {
                    None => return Ok(None),
                    Some(whole) => whole
                        .map(|((format, width), data)| ExpertRows { rows: Rows { format, width, data } })
                        .map_err(corrupt),
                }
            }
            Some(pb::dispatch_reply::Answer::Error(error)) => Err(wire::error_from_pb(error, &self.node)),
            None => Err(corrupt(Malformed::missing("answer"))),
        };
        Ok(Some((sequence, answer)))
    }
}
