//! Chat templates: messages to the model's prompt, as text and as token ids.
//!
//! Templates are Jinja, set up as in Hugging Face `transformers` (`apply_chat_template`): blocks are trimmed, Python's string
//! methods work, `raise_exception` refuses, undefined values are lenient, `tojson` writes as Python does, `documents` are none, and
//! `tools` too but for [`ChatTemplate::encode_with_tools`]. They come with a checkpoint, so their work and memory are bounded (minijinja's fuel pays for both). There is no clock here, hence no
//! `strftime_now`; templates ask whether it is defined.
//!
//! # What a user writes never becomes a control token
//!
//! The rendered text mixes the template's control tokens with what users wrote. To tell them apart, a *guard*, a private-use
//! character that occurs nowhere else, is put inside every control token's text in the messages (and where a message's edge
//! could complete one) before rendering: every control token that still stands in the result is the template's own. The guards
//! are then taken out. If encoding the text as a whole finds exactly the template's control tokens, those ids are the answer,
//! equal to Hugging Face's. Otherwise the text between the template's control tokens is encoded as plain text, piece by piece.
//! (Where a `tokenizer.json` prepends a space to the first piece of a text only, such a prompt has a space more after each
//! control token; that is the price of a message that spells one.) What is not a control token of the tokenizer, such as
//! `[INST]` in Mixtral 8x7B, is text in the template as well, and cannot be told apart.
//!
//! A tokenizer from `tokenizer.model` encodes the text after a control token with one space before it, its own if it has one.
//! So Mistral's v1 prompt, `<s> [INST] user [/INST] assistant</s> [INST] …`, gets the ids of mistral-common, which encodes each
//! message by itself; and so does the older template's first turn, `<s>[INST] user [/INST]`.

mod json;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};
use serde::{Deserialize, Serialize};

pub use json::Json;

use crate::checkpoint::ChatSource;
use crate::tokenizer::{Special, Tokenizer, TokenizerError};

/// Largest template, in bytes.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Work that one rendering may do: an instruction costs 1, 64 bytes of any text made cost 1.
pub const RENDER_FUEL: u64 = 4_000_000;
/// Longest rendered prompt, in bytes.
pub const MAX_RENDERED_BYTES: usize = 16 << 20;

const NAME: &str = "chat_template";

/// Who speaks. An enum, for templates may build control tokens from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
    /// A tool's answer.
    Tool,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// Whether the prompt ends with the words that let the model answer, where the template has such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// It does: the model is to answer.
    Add,
    /// It does not.
    Omit,
}

/// Why a conversation does not become a prompt.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The template is over its bound. Get another checkpoint.
    #[error("chat template: {found} bytes, at most {limit}")]
    TemplateTooLarge {
        /// Its size in bytes.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// The template is not valid. Get another checkpoint.
    #[error("chat template, line {line}: {reason}")]
    Template {
        /// The line, from 1; 0 when unknown.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The template refuses the messages: the client's mistake.
    #[error("{reason}")]
    Refused {
        /// What the template says, for the client.
        reason: String,
    },
    /// The template fails on the messages.
    #[error("chat template, line {line}: {reason}")]
    Render {
        /// The line, from 1; 0 when unknown.
        line: usize,
        /// The kind of failure, without values.
        reason: String,
    },
    /// Rendering takes more than [`RENDER_FUEL`].
    #[error("chat template: more than {limit} units of work")]
    TooMuchWork {
        /// The bound.
        limit: u64,
    },
    /// The prompt is longer than [`MAX_RENDERED_BYTES`].
    #[error("the prompt has {found} bytes, at most {limit}")]
    TooLong {
        /// Its size in bytes.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// The messages use every private-use character there is, so none is left as a guard.
    #[error("the messages use every private-use character")]
    NoGuard,
    /// The prompt cannot be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    /// Private-use characters of the template itself: not for guards.
    private: BTreeSet<char>,
    knows_tools: bool,
}

/// What a template sees.
#[derive(Serialize)]
struct Context<'a, M> {
    messages: &'a [M],
    add_generation_prompt: bool,
    tools: Option<&'a [Json]>,
    documents: Option<()>,
    #[serde(flatten)]
    special_tokens: &'a BTreeMap<String, String>,
}

/// What `raise_exception` was called with, on its way through the engine's errors.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`ChatError::TemplateTooLarge`], [`ChatError::Template`].
    pub fn compile(source: &ChatSource) -> Result<Self, ChatError> {
        let ChatSource { template, special_tokens } = source;
        if template.len() > MAX_TEMPLATE_BYTES {
            return Err(ChatError::TemplateTooLarge { found: template.len(), limit: MAX_TEMPLATE_BYTES });
        }
        let invalid = |e: minijinja::Error| ChatError::Template { line: e.line().unwrap_or(0), reason: e.to_string() };
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(invalid)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", json::to_json);
        environment.set_fuel(Some(RENDER_FUEL));
        environment.add_template_owned(NAME, template.clone()).map_err(invalid)?;
        let private = template.chars().filter(is_private_use).collect();
        let compiled = environment.get_template(NAME).map_err(invalid)?;
        let knows_tools = compiled.undeclared_variables(false).contains("tools");
        Ok(Self { environment, special_tokens: special_tokens.clone(), private, knows_tools })
    }

    /// Whether the template has words of its own for tools: it asks for `tools`.
    pub const fn knows_tools(&self) -> bool {
        self.knows_tools
    }

    /// The prompt as text. Where it came from cannot be seen in it: to get token ids, use [`ChatTemplate::encode`].
    ///
    /// # Errors
    /// [`ChatError`].
    pub fn render(&self, messages: &[Message], prompt: GenerationPrompt) -> Result<String, ChatError> {
        self.fill(messages, None, prompt)
    }

    fn fill<M: Serialize>(
        &self,
        messages: &[M],
        tools: Option<&[Json]>,
        prompt: GenerationPrompt,
    ) -> Result<String, ChatError> {
        let context = Context {
            messages,
            add_generation_prompt: prompt == GenerationPrompt::Add,
            tools,
            documents: None,
            special_tokens: &self.special_tokens,
        };
        let template = self.environment.get_template(NAME).map_err(render_error)?;
        let mut text = Rendered::default();
        let rendered = template.render_captured_to(Value::from(Serde(context)), &mut text).map(drop);
        match (text.beyond, rendered) {
            (Some(found), _) => Err(ChatError::TooLong { found, limit: MAX_RENDERED_BYTES }),
            (None, Err(error)) => Err(render_error(error)),
            // Templates write texts, each whole.
            (None, Ok(())) => Ok(String::from_utf8_lossy(&text.bytes).into_owned()),
        }
    }

    /// The prompt as token ids. Control tokens are the template's alone (see the top of this file).
    ///
    /// # Errors
    /// [`ChatError`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        prompt: GenerationPrompt,
    ) -> Result<Vec<u32>, ChatError> {
        let mut used = BTreeSet::new();
        messages.iter().for_each(|message| used.extend(message.content.chars().filter(is_private_use)));
        let guard = self.choose_guard(&used)?;
        let guarded = messages.iter().map(|message| Message {
            role: message.role,
            content: put_guards(&message.content, tokenizer, guard).into_owned(),
        });
        let text = self.render(&guarded.collect::<Vec<_>>(), prompt)?;
        ids(tokenizer, &text, guard)
    }

    /// The same of messages with more to them than a text (calls of tools, and their answers' names), and with tools, all in the words
    /// of OpenAI's API, but that a call's arguments are an object: what `transformers` gives to templates.
    ///
    /// # Errors
    /// [`ChatError`].
    pub fn encode_with_tools(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Json],
        tools: &[Json],
        prompt: GenerationPrompt,
    ) -> Result<Vec<u32>, ChatError> {
        let mut used = BTreeSet::new();
        let mut look = |text: &str| used.extend(text.chars().filter(is_private_use));
        messages.iter().chain(tools).for_each(|json| json.each_text(&mut look));
        let guard = self.choose_guard(&used)?;
        let guarded = |all: &[Json]| {
            let put = |text: &str| put_guards(text, tokenizer, guard).into_owned();
            all.iter().map(|json| json.with_texts(&put)).collect::<Vec<_>>()
        };
        let text = self.fill(&guarded(messages), Some(&guarded(tools)), prompt)?;
        ids(tokenizer, &text, guard)
    }

    /// A private-use character that is not `used`, nor by the template.
    fn choose_guard(&self, used: &BTreeSet<char>) -> Result<char, ChatError> {
        let mut candidates = PRIVATE_USE.into_iter().flatten();
        candidates.find(|c| !used.contains(c) && !self.private.contains(c)).ok_or(ChatError::NoGuard)
    }
}

/// The ids of a prompt in which every control token that still stands is the template's own.
fn ids(tokenizer: &Tokenizer, text: &str, guard: char) -> Result<Vec<u32>, ChatError> {
    let control = tokenizer.find_control(text);
    let whole = tokenizer.encode_trusted(&text.replace(guard, ""))?;
    let found = whole.iter().copied().filter(|&id| tokenizer.is_control(id));
    if found.eq(control.iter().map(|(_, id)| *id)) {
        return Ok(whole);
    }
    let first = control.first().map_or(text.len(), |(range, _)| range.start);
    let mut ids = tokenizer.encode(&text[..first].replace(guard, ""), Special::None)?;
    let ends = control.iter().skip(1).map(|(range, _)| range.start).chain([text.len()]);
    for ((range, id), end) in control.iter().zip(ends) {
        ids.push(*id);
        ids.extend(tokenizer.encode_after_control(&text[range.end..end].replace(guard, ""))?);
    }
    Ok(ids)
}

/// Unicode's private-use characters.
const PRIVATE_USE: [std::ops::RangeInclusive<char>; 3] =
    ['\u{e000}'..='\u{f8ff}', '\u{f0000}'..='\u{ffffd}', '\u{100000}'..='\u{10fffd}'];

fn is_private_use(c: &char) -> bool {
    PRIVATE_USE.iter().any(|range| range.contains(c))
}

/// Puts `guard` into `text` so that no control token stands in it, nor can stand across its edges.
fn put_guards<'a>(text: &'a str, tokenizer: &Tokenizer, guard: char) -> Cow<'a, str> {
    let mut places = BTreeSet::new();
    for control in tokenizer.control_texts().filter(|_| !text.is_empty()) {
        let Some(first) = control.chars().next().map(char::len_utf8) else { continue };
        let mut begin = 0;
        while let Some(at) = text[begin..].find(control) {
            begin += at + first;
            places.insert(begin);
        }
        for (at, _) in control.char_indices().skip(1) {
            let (head, tail) = control.split_at(at);
            if text.ends_with(head) {
                places.insert(text.len() - head.len() + first);
            }
            if text.starts_with(tail) || tail.starts_with(text) {
                places.insert(0);
            }
        }
    }
    if places.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut guarded = String::with_capacity(text.len() + places.len() * guard.len_utf8());
    let mut begin = 0;
    for place in places {
        guarded.push_str(&text[begin..place]);
        guarded.push(guard);
        begin = place;
    }
    guarded.push_str(&text[begin..]);
    Cow::Owned(guarded)
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception");
    Err(error.with_source(Raised(message)))
}

/// What a template writes, up to [`MAX_RENDERED_BYTES`]: within its fuel it could write gigabytes.
#[derive(Default)]
struct Rendered {
    bytes: Vec<u8>,
    /// How much it would have been, where the bound was met.
    beyond: Option<usize>,
}

impl std::io::Write for Rendered {
    fn write(&mut self, piece: &[u8]) -> std::io::Result<usize> {
        let length = self.bytes.len() + piece.len();
        if length > MAX_RENDERED_BYTES {
            self.beyond = Some(length);
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn render_error(error: minijinja::Error) -> ChatError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(this) = cause {
        if let Some(Raised(reason)) = this.downcast_ref() {
            return ChatError::Refused { reason: reason.clone() };
        }
        if this.downcast_ref::<minijinja::Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return ChatError::TooMuchWork { limit: RENDER_FUEL };
        }
        cause = this.source();
    }
    // The detail may quote values: the kind has to do.
    ChatError::Render { line: error.line().unwrap_or(0), reason: error.kind().to_string() }
}
