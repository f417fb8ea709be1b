//! The core's pieces to messages.

use tramontane_cluster::engine::Token;
use tramontane_proto::v1::{self, answer_piece};

use crate::frontdoor::tools::ToolPiece;
use crate::frontdoor::{End, FrontDoor, Piece, Reason, TextPiece, UsageSoFar};

/// Whether log-probabilities were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logprobs {
    Wanted,
    Unwanted,
}

/// A piece of choice `choice`; `None` for what no answer over gRPC has.
pub(super) fn piece(front: &FrontDoor, logprobs: Logprobs, choice: usize, piece: Piece) -> Option<v1::AnswerPiece> {
    use answer_piece::Piece as Sent;
    let sent = match piece {
        Piece::Embedding(_) => return None,
        Piece::Text(TextPiece { text, tokens }) => {
            let tokens = tokens.into_iter().map(|spoken| token(front, logprobs, spoken.token)).collect();
            Sent::Text(v1::AnswerText { text, tokens })
        }
        Piece::Tool(ToolPiece::Content(text)) => Sent::Text(v1::AnswerText { text, tokens: Vec::new() }),
        Piece::Tool(ToolPiece::Begin { id, name, .. }) => {
            Sent::ToolCall(v1::ToolCallMade { id, name, arguments: String::new() })
        }
        Piece::Tool(ToolPiece::Arguments { text, .. }) => Sent::ToolArguments(text),
        Piece::Prompt(tokens) => {
            let first = || v1::AnswerToken::default();
            let of = |position: Option<Token>| position.map_or_else(first, |it| token(front, Logprobs::Wanted, it));
            Sent::Prompt(v1::PromptTokens { tokens: tokens.into_iter().map(of).collect() })
        }
        Piece::End(End { reason, .. }) => Sent::End(v1::AnswerEnd { reason: end_reason(reason).into() }),
    };
    Some(v1::AnswerPiece { choice: choice as u32, piece: Some(sent) })
}

pub(super) fn last(so_far: UsageSoFar) -> v1::AnswerPiece {
    v1::AnswerPiece { choice: 0, piece: Some(answer_piece::Piece::Usage(usage(so_far))) }
}

pub(super) fn usage(usage: UsageSoFar) -> v1::TokenUsage {
    v1::TokenUsage {
        prompt_tokens: usage.prompt as u64,
        completion_tokens: usage.completion as u64,
        cached_tokens: usage.cached.map(|cached| cached as u64),
    }
}

pub(super) fn model(front: &FrontDoor) -> v1::ServedModel {
    let model = front.model();
    v1::ServedModel {
        id: model.id().to_owned(),
        context: model.context as u64,
        vocab: model.vocab as u64,
        hash: model.named_hash(),
        quantization: model.card.quantization.clone(),
        license: model.card.license.clone(),
        chat: front.can_chat(),
        fingerprint: front.engine_info().fingerprint.clone(),
    }
}

fn token(front: &FrontDoor, logprobs: Logprobs, token: Token) -> v1::AnswerToken {
    let bytes = |id| front.token_text().bytes(id).into();
    let wanted = logprobs == Logprobs::Wanted;
    let likely = |(id, logprob): (u32, f32)| v1::LikelyToken { id, bytes: bytes(id), logprob };
    v1::AnswerToken {
        id: token.id,
        bytes: bytes(token.id),
        logprob: wanted.then_some(token.logprob),
        top: if wanted { token.top.into_iter().map(likely).collect() } else { Vec::new() },
    }
}

fn end_reason(reason: Reason) -> v1::EndReason {
    match reason {
        Reason::Stop => v1::EndReason::Stop,
        Reason::Length => v1::EndReason::Length,
        Reason::ToolCalls => v1::EndReason::ToolCalls,
    }
}
