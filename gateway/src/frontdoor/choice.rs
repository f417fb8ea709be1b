//! One choice's events, as the engine sends them, to pieces of an answer. Pure: no waiting, no clock.
//!
//! token → text (complete characters only) → stop strings → tool calls. A token is let out with the text that it ends, so that
//! log-probabilities never run ahead of what was said.

use std::collections::VecDeque;
use std::sync::Arc;

use tramontane_cluster::engine::{Event, FinishReason, Token, Usage};
use tramontane_model::tokenizer::{Detokenizer, Tokenizer};

use super::stop::{Passed, StopStrings, StopText};
use super::tools::{ToolParser, ToolPiece};
use crate::error::ApiError;

/// What happens to the text of a choice.
#[derive(Clone, Debug)]
pub(super) struct TextRules {
    pub(super) stops: Vec<String>,
    pub(super) stop_text: StopText,
    /// Tokens before which no stop string counts.
    pub(super) min_tokens: usize,
    pub(super) control: ControlTokens,
    /// How tool calls are written, if there may be any.
    pub(super) tools: Option<ToolParser>,
}

/// What becomes of control tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ControlTokens {
    /// They have no text.
    Silent,
    /// They are spelled out.
    Spelled,
}

/// A part of a choice's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// The prompt's log-probabilities, an entry a position; the first has none.
    Prompt(Vec<Option<Token>>),
    /// The prompt's embedding.
    Embedding(Vec<f32>),
    /// Text, or tokens without any.
    Text(TextPiece),
    /// A part of a tool call.
    Tool(ToolPiece),
    /// The end; nothing follows.
    End(End),
}

/// Text, and the tokens that end in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextPiece {
    /// The text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<SpokenToken>,
}

/// A token, and where its text begins.
#[derive(Clone, Debug, PartialEq)]
pub struct SpokenToken {
    /// The token.
    pub token: Token,
    /// Characters of the choice's text before it.
    pub offset: usize,
}

/// How a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub reason: Reason,
    /// What it took.
    pub usage: ChoiceUsage,
}

/// Tokens of one choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChoiceUsage {
    /// Generated.
    pub completion: usize,
    /// Of the prompt, found in the prefix cache; `None` where no engine was asked.
    pub cached: Option<usize>,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A stop token or a stop string.
    Stop,
    /// It has the tokens that were asked for, or the context is full.
    Length,
    /// It called tools.
    ToolCalls,
}

impl Reason {
    /// As OpenAI's API names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// One choice on its way.
pub(super) struct Choice {
    tokenizer: Tokenizer,
    detokenizer: Detokenizer,
    stops: StopStrings,
    min_tokens: usize,
    control: ControlTokens,
    tools: Option<ToolParser>,
    /// Tokens whose text is not out, each with where its text ends: characters of the whole text.
    waiting: VecDeque<(SpokenToken, usize)>,
    generated: usize,
    /// Of the prompt, found in the prefix cache; `None` before the engine has started.
    cached: Option<usize>,
    /// Characters decoded, and of them let out.
    decoded: usize,
    let_out: usize,
    ended: bool,
}

impl Choice {
    /// A choice after `prompt`.
    pub(super) fn new(tokenizer: &Tokenizer, prompt: &Arc<[u32]>, rules: &TextRules) -> Result<Self, ApiError> {
        let TextRules { stops, stop_text, min_tokens, control, tools } = rules.clone();
        Ok(Self {
            tokenizer: tokenizer.clone(),
            detokenizer: tokenizer.detokenizer(prompt)?,
            stops: StopStrings::new(stops, stop_text),
            min_tokens,
            control,
            tools,
            waiting: VecDeque::new(),
            generated: 0,
            cached: None,
            decoded: 0,
            let_out: 0,
            ended: false,
        })
    }

    /// Whether the end has been given: what the engine still sends is of no use.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Tokens generated so far.
    pub(super) fn generated(&self) -> usize {
        self.generated
    }

    /// Of the prompt's tokens, those found in the prefix cache, as far as the engine has told.
    pub(super) fn cached(&self) -> Option<usize> {
        self.cached
    }

    /// Takes the engine's next event.
    pub(super) fn take(&mut self, event: Event) -> Result<Vec<Piece>, ApiError> {
        match event {
            Event::Started { cached_tokens } => {
                self.cached = Some(cached_tokens);
                Ok(Vec::new())
            }
            Event::Prompt(tokens) => Ok(vec![Piece::Prompt(tokens)]),
            Event::Embedding(values) => Ok(vec![Piece::Embedding(values)]),
            Event::Token(token) => self.token(token),
            Event::Finished { reason, usage } => self.finished(reason, usage),
            Event::Failed(error) => Err(error.into()),
        }
    }

    fn token(&mut self, token: Token) -> Result<Vec<Piece>, ApiError> {
        let id = token.id;
        let text = self.decode(id)?;
        let offset = self.decoded;
        self.decoded += text.chars().count();
        self.generated += 1;
        self.waiting.push_back((SpokenToken { token, offset }, self.decoded));
        let mut pieces = Vec::new();
        match self.look_for_stops(&text) {
            Passed::On(text) => self.say(text, &mut pieces),
            Passed::Stopped(text) => {
                self.say(text, &mut pieces);
                self.speak_begun(&mut pieces);
                let usage = ChoiceUsage { completion: self.generated, cached: self.cached };
                self.end(Reason::Stop, usage, &mut pieces);
            }
        }
        Ok(pieces)
    }

    /// The text that `id` completes.
    fn decode(&mut self, id: u32) -> Result<String, ApiError> {
        let marks_call = self.tools.as_ref().is_some_and(|tools| tools.is_mark(id));
        if self.tokenizer.is_control(id) && (marks_call || self.control == ControlTokens::Spelled) {
            let mut text = self.detokenizer.finish()?.unwrap_or_default();
            text.extend(self.tokenizer.id_to_token(id));
            return Ok(text);
        }
        Ok(self.detokenizer.push(id)?.unwrap_or_default())
    }

    fn look_for_stops(&mut self, text: &str) -> Passed {
        if self.generated < self.min_tokens { Passed::On(text.to_owned()) } else { self.stops.push(text) }
    }

    fn finished(&mut self, reason: FinishReason, usage: Usage) -> Result<Vec<Piece>, ApiError> {
        let mut pieces = Vec::new();
        let rest = self.detokenizer.finish()?.unwrap_or_default();
        let rest = match self.look_for_stops(&rest) {
            Passed::Stopped(text) => text,
            Passed::On(text) => text + &self.stops.finish(),
        };
        self.say(rest, &mut pieces);
        self.speak_begun(&mut pieces);
        let reason = match reason {
            FinishReason::Stop { .. } | FinishReason::Embedded => Reason::Stop,
            FinishReason::Length => Reason::Length,
        };
        let usage =
            ChoiceUsage { completion: usage.completion_tokens, cached: self.cached.or(Some(usage.cached_tokens)) };
        self.end(reason, usage, &mut pieces);
        Ok(pieces)
    }

    /// Lets `text` out, with the tokens that end in it.
    fn say(&mut self, text: String, pieces: &mut Vec<Piece>) {
        self.let_out += text.chars().count();
        let mut tokens = Vec::new();
        while self.waiting.front().is_some_and(|(_, end)| *end <= self.let_out) {
            tokens.extend(self.waiting.pop_front().map(|(token, _)| token));
        }
        self.give(TextPiece { text, tokens }, pieces);
    }

    /// A stop string cut the text: lets out the tokens whose text has begun, and drops the rest.
    fn speak_begun(&mut self, pieces: &mut Vec<Piece>) {
        let all = std::mem::take(&mut self.waiting).into_iter().map(|(token, _)| token);
        let tokens = all.filter(|token| token.offset < self.let_out).collect();
        self.give(TextPiece { text: String::new(), tokens }, pieces);
    }

    fn give(&mut self, piece: TextPiece, pieces: &mut Vec<Piece>) {
        let Some(tools) = &mut self.tools else {
            if piece != TextPiece::default() {
                pieces.push(Piece::Text(piece));
            }
            return;
        };
        let parsed = tools.push(&piece.text);
        Self::give_parsed(parsed, piece.tokens, pieces);
    }

    fn give_parsed(parsed: Vec<ToolPiece>, tokens: Vec<SpokenToken>, pieces: &mut Vec<Piece>) {
        if !tokens.is_empty() {
            pieces.push(Piece::Text(TextPiece { text: String::new(), tokens }));
        }
        pieces.extend(parsed.into_iter().map(|piece| match piece {
            ToolPiece::Content(text) => Piece::Text(TextPiece { text, tokens: Vec::new() }),
            call => Piece::Tool(call),
        }));
    }

    fn end(&mut self, mut reason: Reason, usage: ChoiceUsage, pieces: &mut Vec<Piece>) {
        if let Some(tools) = &mut self.tools {
            let parsed = tools.finish();
            Self::give_parsed(parsed, Vec::new(), pieces);
            if tools.has_called() && reason == Reason::Stop {
                reason = Reason::ToolCalls;
            }
        }
        self.ended = true;
        pieces.push(Piece::End(End { reason, usage }));
    }
}

#[cfg(test)]
mod tests {
    use tramontane_model::tokenizer::Special;

    use super::*;

    const BREEZE: &[u8] = include_bytes!("../../../models/breeze/tokenizer.json");

    fn rules(stops: &[&str]) -> TextRules {
        let stops = stops.iter().map(|&stop| stop.to_owned()).collect();
        TextRules { stops, stop_text: StopText::Left, min_tokens: 0, control: ControlTokens::Silent, tools: None }
    }

    fn token(id: u32) -> Event {
        Event::Token(Token { id, logprob: -0.5, top: Vec::new() })
    }

    /// Everything said, the tokens let out with it, and the end.
    fn say(text: &str, rules: &TextRules) -> (String, Vec<u32>, Option<End>) {
        let tokenizer = Tokenizer::from_json(BREEZE).unwrap();
        let ids = tokenizer.encode(text, Special::None).unwrap();
        let mut choice = Choice::new(&tokenizer, &vec![1].into(), rules).unwrap();
        let usage = Usage { prompt_tokens: 1, completion_tokens: ids.len(), cached_tokens: 1 };
        let started = Event::Started { cached_tokens: 1 };
        let tokens_sent = ids.iter().map(|&id| token(id));
        let events =
            [started].into_iter().chain(tokens_sent).chain([Event::Finished { reason: FinishReason::Length, usage }]);
        let (mut said, mut tokens, mut end) = (String::new(), Vec::new(), None);
        for event in events {
            for piece in choice.take(event).unwrap() {
                match piece {
                    Piece::Text(piece) => {
                        said.push_str(&piece.text);
                        tokens.extend(piece.tokens.iter().map(|spoken| spoken.token.id));
                    }
                    Piece::End(ended) => end = Some(ended),
                    other => panic!("{other:?}"),
                }
            }
            if choice.has_ended() {
                break;
            }
        }
        (said, tokens, end)
    }

    #[test]
    fn all_text_and_all_tokens_come_out_once() {
        let text = "The capital of Peru is Lima. 🙂 é";
        let (said, tokens, end) = say(text, &rules(&[]));
        let ids = Tokenizer::from_json(BREEZE).unwrap().encode(text, Special::None).unwrap();
        assert_eq!((said.trim_start(), tokens), (text, ids.clone()));
        let usage = ChoiceUsage { completion: ids.len(), cached: Some(1) };
        assert_eq!(end, Some(End { reason: Reason::Length, usage }));
    }

    #[test]
    fn a_stop_string_ends_the_choice_before_the_engine_does() {
        let (said, tokens, end) = say("one two three four", &rules(&["o thr"]));
        assert_eq!(said.trim_start(), "one tw");
        let end = end.unwrap();
        assert_eq!((end.reason, end.usage.cached), (Reason::Stop, Some(1)));
        assert!(tokens.len() <= end.usage.completion, "{tokens:?}: {end:?}");
    }

    #[test]
    fn a_stop_string_in_the_middle_of_a_character_sequence_holds_back_its_bytes() {
        let (said, ..) = say("a 🙂🙂 b", &rules(&["🙂 b"]));
        assert_eq!(said.trim_start(), "a 🙂");
    }

    #[test]
    fn stop_strings_do_not_count_before_min_tokens() {
        let (said, ..) = say("a a a a a a a a", &TextRules { min_tokens: 4, ..rules(&["a"]) });
        assert_eq!(said.matches('a').count(), 3, "{said}");
    }

    #[test]
    fn a_failure_is_an_error() {
        let tokenizer = Tokenizer::from_json(BREEZE).unwrap();
        let mut choice = Choice::new(&tokenizer, &vec![1].into(), &rules(&[])).unwrap();
        let failed = tramontane_cluster::engine::EngineError::Stopped;
        assert_eq!(choice.take(Event::Failed(failed.clone())), Err(ApiError::Engine(failed)));
    }
}
