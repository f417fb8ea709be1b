//! Answers to conversations.

use std::sync::Arc;

use serde::Serialize;
use tramontane_cluster::engine::Token;
use utoipa::ToSchema;

use super::logprobs::{ChatLogprobs, PromptLogprobs, of_prompt};
use super::{Heading, Manner, Render, UsageBody};
use crate::error::ApiError;
use crate::frontdoor::tools::{ToolCall, ToolPiece};
use crate::frontdoor::{FrontDoor, Piece, Reason, SpokenToken, Step, TextPiece, UsageSoFar, Whole};

/// A whole answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: UsageBody,
    /// Where they were asked for (vLLM).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    prompt_logprobs: Option<PromptLogprobs>,
    /// With `return_token_ids` (vLLM).
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

/// A choice.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    index: usize,
    message: AnswerMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
    /// With `return_token_ids` (vLLM).
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

/// What the assistant says.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AnswerMessage {
    role: &'static str,
    content: Option<String>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallOut>,
}

/// A call of a tool.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CallOut {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: FunctionOut,
}

/// What is called.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FunctionOut {
    name: String,
    /// JSON text.
    arguments: String,
}

/// What is common to the answers of one request.
pub(crate) struct Writer {
    front: Arc<FrontDoor>,
    heading: Heading,
    manner: Manner,
    logprobs: bool,
    prompt: Arc<[u32]>,
    /// Choices whose first chunk is out.
    begun: Vec<bool>,
}

impl Writer {
    /// The answer's id.
    pub(crate) fn id(&self) -> &str {
        &self.heading.id
    }

    pub(crate) fn new(front: &Arc<FrontDoor>, manner: Manner, logprobs: bool, prompt: Arc<[u32]>, n: u32) -> Self {
        let heading = Heading::new("chatcmpl", front);
        Self { front: front.clone(), heading, manner, logprobs, prompt, begun: vec![false; n as usize] }
    }

    /// A whole answer.
    pub(crate) fn whole(self, choices: Vec<Whole>, usage: UsageSoFar) -> ChatCompletion {
        let texts = self.front.token_text();
        let prompt_logprobs = choices.iter().find_map(|choice| Some(of_prompt(choice.prompt.as_ref()?, texts)));
        let choices = choices.into_iter().enumerate().map(|(index, choice)| self.choice(index, choice)).collect();
        ChatCompletion {
            object: "chat.completion",
            choices,
            usage: usage.into(),
            prompt_logprobs,
            prompt_token_ids: self.manner.token_ids.then(|| self.prompt.to_vec()),
            id: self.heading.id,
            created: self.heading.created,
            model: self.heading.model,
            system_fingerprint: self.heading.fingerprint,
        }
    }

    fn choice(&self, index: usize, choice: Whole) -> ChatChoice {
        let Whole { text, tokens, calls, reason: why, .. } = choice;
        let content = if calls.is_empty() || !text.is_empty() { Some(text) } else { None };
        let call = |ToolCall { id, name, arguments }| CallOut {
            id,
            kind: "function",
            function: FunctionOut { name, arguments },
        };
        let tool_calls = calls.into_iter().map(call).collect();
        ChatChoice {
            index,
            message: AnswerMessage { role: "assistant", content, refusal: None, tool_calls },
            logprobs: self.logprobs_of(&tokens),
            finish_reason: why.map_or("stop", Reason::name),
            token_ids: self.ids_of(&tokens),
        }
    }

    fn logprobs_of(&self, tokens: &[SpokenToken]) -> Option<ChatLogprobs> {
        self.logprobs.then(|| ChatLogprobs::of(tokens, self.front.token_text()))
    }

    fn ids_of(&self, tokens: &[SpokenToken]) -> Option<Vec<u32>> {
        self.manner.token_ids.then(|| tokens.iter().map(|spoken| spoken.token.id).collect())
    }
}

/// A piece of an answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChunk {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<ChunkChoice>,
    /// With `include_usage`: absent from all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

/// A piece of a choice.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

/// What is new.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallDelta>,
}

/// What is new of a call.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CallDelta {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionDelta,
}

/// What is new of a function.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl Writer {
    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<UsageSoFar>) -> ChatChunk {
        let wanted = self.manner.options.include_usage == Some(true) || usage.is_some();
        ChatChunk {
            id: self.heading.id.clone(),
            object: "chat.completion.chunk",
            created: self.heading.created,
            model: self.heading.model.clone(),
            system_fingerprint: self.heading.fingerprint.clone(),
            choices,
            usage: wanted.then(|| usage.map(UsageBody::from)),
            prompt_logprobs: None,
            prompt_token_ids: None,
        }
    }

    fn delta(&self, index: usize, delta: Delta, tokens: &[SpokenToken], end: Option<&'static str>) -> ChunkChoice {
        let (logprobs, token_ids) =
            if tokens.is_empty() { (None, None) } else { (self.logprobs_of(tokens), self.ids_of(tokens)) };
        ChunkChoice { index, delta, logprobs, finish_reason: end, token_ids }
    }

    fn first(&self, choice: usize, usage: Option<UsageSoFar>) -> ChatChunk {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        let mut chunk = self.chunk(vec![self.delta(choice, delta, &[], None)], usage);
        chunk.prompt_token_ids = (self.manner.token_ids && choice == 0).then(|| self.prompt.to_vec());
        chunk
    }

    fn of_prompt(&self, tokens: &[Option<Token>], usage: Option<UsageSoFar>) -> ChatChunk {
        let mut chunk = self.chunk(Vec::new(), usage);
        chunk.prompt_logprobs = Some(of_prompt(tokens, self.front.token_text()));
        chunk
    }

    fn piece(&self, choice: usize, piece: Piece, usage: Option<UsageSoFar>) -> Option<ChatChunk> {
        let one =
            |delta, tokens: &[SpokenToken], end| Some(self.chunk(vec![self.delta(choice, delta, tokens, end)], usage));
        let call = |index, id, name: Option<String>, arguments| {
            let kind = name.is_some().then_some("function");
            let function = FunctionDelta { name, arguments };
            Delta { tool_calls: vec![CallDelta { index, id, kind, function }], ..Delta::default() }
        };
        match piece {
            Piece::Text(TextPiece { text, tokens }) => {
                let silent = text.is_empty() && !self.logprobs && !self.manner.token_ids;
                let delta = Delta { content: Some(text), ..Delta::default() };
                if silent { None } else { one(delta, &tokens, None) }
            }
            Piece::Tool(ToolPiece::Content(text)) => one(Delta { content: Some(text), ..Delta::default() }, &[], None),
            Piece::Tool(ToolPiece::Begin { index, id, name }) => {
                one(call(index, Some(id), Some(name), String::new()), &[], None)
            }
            Piece::Tool(ToolPiece::Arguments { index, text }) => one(call(index, None, None, text), &[], None),
            Piece::End(end) => one(Delta::default(), &[], Some(end.reason.name())),
            Piece::Prompt(tokens) => Some(self.of_prompt(&tokens, usage)),
            Piece::Embedding(_) => None,
        }
    }
}

impl Render for Writer {
    type Chunk = ChatChunk;

    fn step(&mut self, step: Step, usage: Option<UsageSoFar>) -> Result<Vec<ChatChunk>, ApiError> {
        let Step { choice, pieces, .. } = step;
        let mut chunks = Vec::new();
        if !std::mem::replace(&mut self.begun[choice], true) {
            chunks.push(self.first(choice, usage));
        }
        chunks.extend(pieces.into_iter().filter_map(|piece| self.piece(choice, piece, usage)));
        Ok(chunks)
    }

    fn usage(&self, usage: UsageSoFar) -> ChatChunk {
        self.chunk(Vec::new(), Some(usage))
    }
}
