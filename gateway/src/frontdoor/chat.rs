//! Conversations: messages to a prompt by the model's template, folded where the template does not know a role.

use std::sync::Arc;

use tramontane_model::chat::{ChatError, ChatTemplate, GenerationPrompt, Message, Role};
use tramontane_model::tokenizer::Special;

use super::job::{Job, Length};
use super::native;
use super::params::Parameters;
use super::prompt::Truncate;
use super::tools::{ToolCall, ToolChoice, ToolOffer};
use super::{Caller, FrontDoor, Named};
use crate::error::ApiError;
use crate::shown::Operation;

/// What stands between two messages that are folded into one.
const FOLD: &str = "\n\n";
/// What Mistral asks of a model when `safe_prompt` is set (its documentation, "Guardrailing").
const SAFE_PROMPT: &str = "Always assist with care, respect, and truth. Respond with utmost utility yet securely. Avoid harmful, unethical, prejudiced, or negative content. Ensure replies promote fairness and positivity.";

/// A request to answer a conversation.
#[derive(Clone, Debug, Default)]
pub struct ChatRequest {
    /// The conversation.
    pub turns: Vec<ChatTurn>,
    /// The tools that may be called.
    pub tools: ToolOffer,
    /// How.
    pub parameters: Parameters,
    /// Whether the last message, the assistant's, is to be gone on with.
    pub continue_final: bool,
    /// Whether Mistral's system prompt comes first.
    pub safe_prompt: bool,
}

/// A message.
#[derive(Clone, Debug)]
pub struct ChatTurn {
    /// Who speaks.
    pub speaker: Speaker,
    /// What is said.
    pub content: String,
    /// Tools that the assistant called.
    pub calls: Vec<ToolCall>,
    /// Of a tool's answer, the call that it answers.
    pub call_id: Option<String>,
}

/// Who speaks.
pub type Speaker = Role;

impl FrontDoor {
    /// Checks a request to answer a conversation.
    ///
    /// # Errors
    /// [`ApiError::Invalid`], [`ApiError::ContextLength`]; what the key's limits say.
    pub fn chat(self: &Arc<Self>, mut request: ChatRequest, caller: &Caller) -> Result<Job, ApiError> {
        caller.shown.asks(Operation::Chat, self.model.id());
        caller.shown.parameters(&request.parameters);
        caller.account.begin(self.model.id())?;
        if request.turns.is_empty() {
            return Err(ApiError::param("messages", "`messages` is empty"));
        }
        request.tools.check()?;
        if let Some(constraint) = request.tools.constraint()? {
            if let Some(Named { name, .. }) = request.parameters.constraint {
                return Err(ApiError::param(
                    name,
                    format!("`{name}` contradicts `tool_choice`, which wants calls of tools"),
                ));
            }
            request.parameters.constraint = Some(Named { name: "tools", value: constraint });
        }
        if let Some(Named { name, .. }) = &request.parameters.constraint
            && request.tools.is_open()
            && request.tools.choice == ToolChoice::Auto
        {
            // A call would not match it, so that no tool could ever be called.
            let why = format!(
                "`{name}` forbids calls of tools, which `tool_choice` leaves open; set `tool_choice` to `none`"
            );
            return Err(ApiError::param(*name, why));
        }
        let mut checked = request.parameters.check(&self.model, &self.tokenizer)?;
        self.check_sequences("n", 1, &checked)?;
        checked.rules.tools = request.tools.parser(&self.tokenizer);
        let truncate = Truncate::read(request.parameters.truncate_prompt_tokens, self.model.context)?;
        let ids = truncate.apply(self.conversation(&request)?);
        if ids.is_empty() {
            return Err(ApiError::param("messages", "the prompt has no tokens"));
        }
        self.job("messages", vec![ids], &request.parameters, checked, None, caller, Length::Some)
    }

    /// The ids of a conversation, up to where the answer begins.
    pub fn conversation(&self, request: &ChatRequest) -> Result<Vec<u32>, ApiError> {
        let Some(template) = &self.chat else {
            return Err(ApiError::param("messages", "the model has no chat template; use /v1/completions"));
        };
        let (turns, last) = match request.turns.split_last() {
            Some((last, before)) if request.continue_final && last.speaker == Role::Assistant => (before, Some(last)),
            _ if request.continue_final => {
                let why = "`continue_final_message` wants the assistant's message last";
                return Err(ApiError::param("continue_final_message", why));
            }
            _ => (&request.turns[..], None),
        };
        let mut ids = match own_form(template, self, turns, request)? {
            Some(ids) => ids,
            None => encode(template, self, spoken(turns, request))?,
        };
        if let Some(last) = last {
            ids.extend(self.tokenizer.encode(&said(last).content, Special::None)?);
        }
        Ok(ids)
    }
}

/// In the template's own words for tools; `None` where there are no tools, or it has none, or refuses these messages in them.
fn own_form(
    template: &ChatTemplate,
    front: &FrontDoor,
    turns: &[ChatTurn],
    request: &ChatRequest,
) -> Result<Option<Vec<u32>>, ApiError> {
    if !template.knows_tools() || !request.tools.is_open() {
        return Ok(None);
    }
    let (messages, tools) =
        (native::messages(turns, request.safe_prompt.then_some(SAFE_PROMPT))?, request.tools.native()?);
    match template.encode_with_tools(&front.tokenizer, &messages, &tools, GenerationPrompt::Add) {
        Err(ChatError::Refused { .. }) => Ok(None),
        encoded => Ok(Some(encoded?)),
    }
}

/// By the template as it is; where it refuses, with roles folded.
fn encode(template: &ChatTemplate, front: &FrontDoor, messages: Vec<Message>) -> Result<Vec<u32>, ApiError> {
    match template.encode(&front.tokenizer, &messages, GenerationPrompt::Add) {
        Err(refused @ ChatError::Refused { .. }) => {
            let folded = fold(&messages);
            if folded == messages {
                return Err(refused.into());
            }
            Ok(template.encode(&front.tokenizer, &folded, GenerationPrompt::Add)?)
        }
        encoded => Ok(encoded?),
    }
}

/// Messages as text alone: tools, their calls and answers as Mistral's templates write them.
fn spoken(turns: &[ChatTurn], request: &ChatRequest) -> Vec<Message> {
    let mut messages: Vec<Message> = turns.iter().map(said).collect();
    if request.tools.is_open() {
        let described = request.tools.described();
        // As in Mistral's templates, the tools stand before the last message of the user.
        match messages.iter_mut().rfind(|message| message.role == Role::User) {
            Some(message) => message.content = format!("{described}{FOLD}{}", message.content),
            None => messages.insert(0, Message { role: Role::User, content: described }),
        }
    }
    if request.safe_prompt {
        messages.insert(0, Message { role: Role::System, content: SAFE_PROMPT.to_owned() });
    }
    messages
}

fn said(turn: &ChatTurn) -> Message {
    match turn.speaker {
        Role::Tool => {
            let quoted = |text: &str| serde_json::Value::from(text).to_string();
            let call = turn.call_id.as_deref().map_or(String::new(), |id| format!(", \"call_id\": {}", quoted(id)));
            let content = format!("[TOOL_RESULTS] {{\"content\": {}{call}}} [/TOOL_RESULTS]", quoted(&turn.content));
            Message { role: Role::User, content }
        }
        Role::Assistant if !turn.calls.is_empty() => {
            let calls: Vec<String> = turn.calls.iter().map(ToolCall::json).collect();
            let before = if turn.content.is_empty() { String::new() } else { format!("{} ", turn.content) };
            Message { role: Role::Assistant, content: format!("{before}[TOOL_CALLS] [{}]", calls.join(", ")) }
        }
        role => Message { role, content: turn.content.clone() },
    }
}

/// For templates in which user and assistant take turns and nobody else speaks: what the system says goes before the user's next
/// (or, at the end, last) words, and neighbours of one role are one message.
fn fold(messages: &[Message]) -> Vec<Message> {
    let mut folded: Vec<Message> = Vec::new();
    for message in messages {
        let role = if message.role == Role::Assistant { Role::Assistant } else { Role::User };
        match folded.last_mut().filter(|last| last.role == role) {
            Some(last) => {
                last.content.push_str(FOLD);
                last.content.push_str(&message.content);
            }
            None => folded.push(Message { role, content: message.content.clone() }),
        }
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: Role, content: &str) -> Message {
        Message { role, content: content.to_owned() }
    }

    fn turn(speaker: Speaker, content: &str) -> ChatTurn {
        ChatTurn { speaker, content: content.to_owned(), calls: Vec::new(), call_id: None }
    }

    #[test]
    fn folding_leaves_users_and_assistants_in_turn() {
        let messages = [
            message(Role::System, "Be brief."),
            message(Role::User, "Hi"),
            message(Role::User, "there"),
            message(Role::Assistant, "Hello."),
            message(Role::Assistant, "Well?"),
            message(Role::System, "Be kind."),
            message(Role::User, "Bye"),
        ];
        let folded = [
            message(Role::User, "Be brief.\n\nHi\n\nthere"),
            message(Role::Assistant, "Hello.\n\nWell?"),
            message(Role::User, "Be kind.\n\nBye"),
        ];
        assert_eq!(fold(&messages), folded);
        assert_eq!(fold(&folded), folded);
    }

    #[test]
    fn calls_and_their_answers_are_text() {
        let calls = vec![ToolCall { id: "abc".to_owned(), name: "f".to_owned(), arguments: "{\"a\":1}".to_owned() }];
        let turns = vec![
            turn(Role::User, "?"),
            ChatTurn { calls, ..turn(Role::Assistant, "") },
            ChatTurn { call_id: Some("abc".to_owned()), ..turn(Role::Tool, "4 \"x\"") },
        ];
        let spoken = spoken(&turns, &ChatRequest::default());
        assert_eq!(
            spoken[1],
            message(Role::Assistant, r#"[TOOL_CALLS] [{"name": "f", "arguments": {"a":1}, "id": "abc"}]"#)
        );
        assert_eq!(
            spoken[2],
            message(Role::User, r#"[TOOL_RESULTS] {"content": "4 \"x\"", "call_id": "abc"} [/TOOL_RESULTS]"#)
        );
    }

    #[test]
    fn the_safe_prompt_comes_first() {
        let turns = vec![turn(Role::User, "?")];
        let spoken = spoken(&turns, &ChatRequest { safe_prompt: true, ..ChatRequest::default() });
        assert_eq!((spoken.len(), spoken[0].role), (2, Role::System));
    }
}
