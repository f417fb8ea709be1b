//! Completions of texts.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::logprobs::{CompletionLogprobs, PromptLogprobs, of_prompt};
use super::{Heading, Manner, Render, UsageBody};
use crate::error::ApiError;
use crate::frontdoor::{End, FrontDoor, Piece, Reason, SpokenToken, Step, TextPiece, UsageSoFar, Whole};

/// A whole answer, or a piece of one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Completion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<CompletionChoice>,
    /// Of a piece with `include_usage`: null in all pieces but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
}

/// A choice, or a piece of one.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    /// Where they were asked for (vLLM).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    prompt_logprobs: Option<PromptLogprobs>,
    /// With `return_token_ids` (vLLM).
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    /// With `return_token_ids` (vLLM).
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

/// What an answer shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shows {
    pub(crate) echo: bool,
    pub(crate) logprobs: bool,
    pub(crate) prompt_logprobs: bool,
}

/// A prompt, and what is shown of it.
struct Prompt {
    ids: Arc<[u32]>,
    /// Its text, where it is echoed.
    text: String,
    /// Its characters.
    length: usize,
}

/// What is common to the answers of one request.
pub(crate) struct Writer {
    front: Arc<FrontDoor>,
    heading: Heading,
    manner: Manner,
    shows: Shows,
    prompts: Vec<Prompt>,
    n: usize,
    /// Choices whose first piece is out.
    begun: Vec<bool>,
}

impl Writer {
    /// The answer's id.
    pub(crate) fn id(&self) -> &str {
        &self.heading.id
    }

    pub(crate) fn new(
        front: &Arc<FrontDoor>,
        manner: Manner,
        shows: Shows,
        prompts: &[Arc<[u32]>],
        n: u32,
    ) -> Result<Self, ApiError> {
        let n = n as usize;
        let heading = Heading::new("cmpl", front);
        let begun = vec![false; prompts.len() * n];
        let prompts = prompts.iter().map(|ids| {
            let text = if shows.echo { front.tokenizer().decode(ids)? } else { String::new() };
            Ok(Prompt { ids: ids.clone(), length: text.chars().count(), text })
        });
        let prompts = prompts.collect::<Result<Vec<_>, ApiError>>()?;
        Ok(Self { front: front.clone(), heading, manner, shows, prompts, n, begun })
    }

    /// A whole answer.
    pub(crate) fn whole(self, choices: Vec<Whole>, usage: UsageSoFar) -> Result<Completion, ApiError> {
        let mut written = Vec::with_capacity(choices.len());
        let mut prompt_logprobs = None;
        for (index, choice) in choices.into_iter().enumerate() {
            // The prompt's come with its first choice.
            if index % self.n == 0 {
                prompt_logprobs = choice.prompt.clone();
            }
            let mut whole = self.first(index);
            whole.logprobs = self.prompt_part(index, prompt_logprobs.as_deref())?;
            if self.shows.logprobs {
                let generated = self.generated(index, &choice.tokens);
                whole.logprobs.get_or_insert_default().extend(generated);
            }
            whole.text.push_str(&choice.text);
            whole.finish_reason = Some(choice.reason.map_or("length", Reason::name));
            whole.token_ids = self.ids_of(&choice.tokens);
            let shown = prompt_logprobs.as_deref().filter(|_| self.shows.prompt_logprobs);
            whole.prompt_logprobs = shown.map(|tokens| of_prompt(tokens, self.front.token_text()));
            written.push(whole);
        }
        Ok(self.answer(written, Some(Some(usage.into()))))
    }

    /// A choice before anything is generated.
    fn first(&self, index: usize) -> CompletionChoice {
        let prompt = &self.prompts[index / self.n];
        let prompt_token_ids = self.manner.token_ids.then(|| prompt.ids.to_vec());
        CompletionChoice { index, text: prompt.text.clone(), prompt_token_ids, ..CompletionChoice::default() }
    }

    /// The log-probabilities of an echoed prompt.
    fn prompt_part(
        &self,
        index: usize,
        tokens: Option<&[Option<tramontane_cluster::engine::Token>]>,
    ) -> Result<Option<CompletionLogprobs>, ApiError> {
        let shown = tokens.filter(|_| self.shows.echo && self.shows.logprobs);
        let prompt = &self.prompts[index / self.n];
        shown.map(|tokens| CompletionLogprobs::of_prompt(&prompt.ids, tokens, &self.front)).transpose()
    }

    fn generated(&self, index: usize, tokens: &[SpokenToken]) -> CompletionLogprobs {
        CompletionLogprobs::of(tokens, self.prompts[index / self.n].length, self.front.token_text())
    }

    fn ids_of(&self, tokens: &[SpokenToken]) -> Option<Vec<u32>> {
        self.manner.token_ids.then(|| tokens.iter().map(|spoken| spoken.token.id).collect())
    }

    fn answer(&self, choices: Vec<CompletionChoice>, usage: Option<Option<UsageBody>>) -> Completion {
        Completion {
            id: self.heading.id.clone(),
            object: "text_completion",
            created: self.heading.created,
            model: self.heading.model.clone(),
            system_fingerprint: self.heading.fingerprint.clone(),
            choices,
            usage,
        }
    }

    fn chunk(&self, choice: CompletionChoice, usage: Option<UsageSoFar>) -> Completion {
        let wanted = self.manner.options.include_usage == Some(true) || usage.is_some();
        self.answer(vec![choice], wanted.then(|| usage.map(UsageBody::from)))
    }

    fn piece(&self, index: usize, piece: Piece) -> Result<Option<CompletionChoice>, ApiError> {
        let empty = CompletionChoice { index, ..CompletionChoice::default() };
        Ok(match piece {
            Piece::Text(TextPiece { text, tokens }) => {
                let silent = text.is_empty() && !self.shows.logprobs && !self.manner.token_ids;
                let logprobs = self.shows.logprobs.then(|| self.generated(index, &tokens));
                let token_ids = self.ids_of(&tokens);
                (!silent).then_some(CompletionChoice { text, logprobs, token_ids, ..empty })
            }
            Piece::Prompt(tokens) => {
                let shown = self.shows.prompt_logprobs.then(|| of_prompt(&tokens, self.front.token_text()));
                let logprobs = self.prompt_part(index, Some(&tokens))?;
                Some(CompletionChoice { logprobs, prompt_logprobs: shown, ..empty })
            }
            Piece::End(End { reason: why, .. }) => Some(CompletionChoice { finish_reason: Some(why.name()), ..empty }),
            Piece::Tool(_) | Piece::Embedding(_) => None,
        })
    }
}

impl Render for Writer {
    type Chunk = Completion;

    fn step(&mut self, step: Step, usage: Option<UsageSoFar>) -> Result<Vec<Completion>, ApiError> {
        let Step { choice, pieces, .. } = step;
        let mut chunks = Vec::new();
        let begins = !std::mem::replace(&mut self.begun[choice], true);
        if begins && (self.shows.echo || self.manner.token_ids) {
            chunks.push(self.chunk(self.first(choice), usage));
        }
        for piece in pieces {
            if let Some(written) = self.piece(choice, piece)? {
                chunks.push(self.chunk(written, usage));
            }
        }
        Ok(chunks)
    }

    fn usage(&self, usage: UsageSoFar) -> Completion {
        self.answer(Vec::new(), Some(Some(usage.into())))
    }
}
