//! The body of `/v1/chat/completions`.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tramontane_model::chat::Role;
use utoipa::ToSchema;

use super::Unsupported;
use super::common::{request, unsupported};
use crate::error::ApiError;
use crate::frontdoor::tools::{Tool, ToolCall, ToolChoice, ToolOffer};
use crate::frontdoor::{ChatRequest, ChatTurn, Named};

request! {
    /// A conversation to go on with.
    pub struct ChatBody {
        /// The conversation
        messages: Vec<MessageBody>,
        /// Most tokens to generate [default: what the context has room for]
        max_completion_tokens: Option<i64>,
        /// Whether each token's log-probability is wanted
        logprobs: Option<bool>,
        /// Of each token's likeliest alternatives too: 0 to 20
        top_logprobs: Option<i64>,
        /// Tools that the model may call
        tools: Option<Vec<ToolBody>>,
        /// `none`, `auto`, `required`, `any`, or one tool
        tool_choice: Option<ToolChoiceBody>,
        /// Whether an answer may hold several calls [default: true]
        parallel_tool_calls: Option<bool>,
        /// Whether Mistral's system prompt comes first [default: false]
        safe_prompt: Option<bool>,
        /// Go on with the last message, which is the assistant's (vLLM) [default: false]
        continue_final_message: Option<bool>,
        /// Whether the model is to answer (vLLM): the opposite of `continue_final_message`
        add_generation_prompt: Option<bool>,
        /// OpenAI's: only `["text"]`
        #[schema(value_type = Option<Object>)]
        modalities: Unsupported,
        /// OpenAI's: not supported
        #[schema(value_type = Option<Object>)]
        audio: Unsupported,
        /// OpenAI's: not supported
        #[schema(value_type = Option<Object>)]
        prediction: Unsupported,
        /// OpenAI's: not supported
        #[schema(value_type = Option<Object>)]
        reasoning_effort: Unsupported,
        /// Mistral's: not supported
        #[schema(value_type = Option<Object>)]
        prompt_mode: Unsupported,
        /// Mistral's: not supported
        #[schema(value_type = Option<Object>)]
        guardrails: Unsupported,
        /// OpenAI's: not supported
        #[schema(value_type = Option<Object>)]
        verbosity: Unsupported,
        /// OpenAI's: not supported
        #[schema(value_type = Option<Object>)]
        web_search_options: Unsupported,
        /// OpenAI's older name of tools: not supported
        #[schema(value_type = Option<Object>)]
        functions: Unsupported,
        /// OpenAI's older name of `tool_choice`: not supported
        #[schema(value_type = Option<Object>)]
        function_call: Unsupported,
        /// vLLM's: the model's own template is used
        #[schema(value_type = Option<Object>)]
        chat_template: Unsupported,
    }
}

/// A message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessageBody {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    role: String,
    /// What is said.
    content: Option<Content>,
    /// The speaker's name: of no effect.
    #[allow(dead_code, reason = "templates do not show it")]
    name: Option<String>,
    /// Calls that the assistant made.
    tool_calls: Option<Vec<CallBody>>,
    /// The call that a tool answers.
    tool_call_id: Option<String>,
    /// Mistral's: go on with this message, which is the last and the assistant's.
    prefix: Option<bool>,
    /// OpenAI's answers, sent back, have these; only empty.
    #[schema(value_type = Option<Object>)]
    refusal: Unsupported,
    #[schema(value_type = Option<Object>)]
    annotations: Unsupported,
    #[schema(value_type = Option<Object>)]
    audio: Unsupported,
    #[schema(value_type = Option<Object>)]
    function_call: Unsupported,
}

/// What is said: a text, or parts of one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a text or a list of parts is wanted")]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a message. Only texts are supported.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Part {
    /// `text`.
    #[serde(rename = "type")]
    kind: String,
    /// The text.
    text: Option<String>,
}

/// A call that the assistant made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CallBody {
    /// Its id.
    id: Option<String>,
    /// `function`.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// What was called.
    function: CalledBody,
    /// Its number: of no effect.
    #[allow(dead_code, reason = "Mistral's client sends it back")]
    index: Option<i64>,
}

/// A function and its arguments.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CalledBody {
    name: String,
    /// JSON text, or (Mistral's) an object.
    #[schema(value_type = Object)]
    arguments: Value,
}

/// A tool.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolBody {
    /// `function`.
    #[serde(rename = "type")]
    kind: Option<String>,
    function: FunctionBody,
}

/// A function.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FunctionBody {
    /// Its name.
    name: String,
    /// What it does.
    description: Option<String>,
    /// The JSON schema of its arguments.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Box<RawValue>>,
    /// Whether the schema must be followed: calls that are required always do.
    #[allow(dead_code, reason = "required calls always follow their schema")]
    strict: Option<bool>,
}

/// Whether to call tools.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "`none`, `auto`, `required`, `any`, or {\"type\": \"function\", \"function\": {\"name\": …}} is wanted"
)]
pub(crate) enum ToolChoiceBody {
    Word(String),
    Named(NamedTool),
}

/// One tool.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedTool {
    /// `function`.
    #[serde(rename = "type")]
    kind: Option<String>,
    function: ToolName,
}

/// Its name.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolName {
    name: String,
}

impl ChatBody {
    /// The request that it means.
    pub(crate) fn into_request(mut self) -> Result<ChatRequest, ApiError> {
        self.refuse_unsupported()?;
        let mut parameters = self.shared(("max_completion_tokens", self.max_completion_tokens))?;
        parameters.logprobs = match (self.logprobs, self.top_logprobs) {
            (Some(true), top) => Some(Named { name: "top_logprobs", value: top.unwrap_or(0) }),
            (_, Some(0) | None) => None,
            _ => return Err(ApiError::param("top_logprobs", "`top_logprobs` wants `logprobs`")),
        };
        let prefix = self.messages.last().and_then(|last| last.prefix).unwrap_or(false);
        let continue_final = self.continue_final_message.unwrap_or(false) || prefix;
        if self.add_generation_prompt == Some(continue_final) {
            let why = "`add_generation_prompt` and `continue_final_message` contradict each other";
            return Err(ApiError::param("add_generation_prompt", why));
        }
        let turns = self.messages.into_iter().enumerate().map(|(index, message)| message.into_turn(index));
        let tools = self.tools.unwrap_or_default().into_iter().enumerate().map(|(index, tool)| tool.into_tool(index));
        Ok(ChatRequest {
            turns: turns.collect::<Result<_, _>>()?,
            tools: ToolOffer {
                tools: tools.collect::<Result<_, _>>()?,
                choice: self.tool_choice.map(ToolChoiceBody::into_choice).transpose()?.unwrap_or_default(),
                parallel: self.parallel_tool_calls,
            },
            parameters,
            continue_final,
            safe_prompt: self.safe_prompt.unwrap_or(false),
        })
    }

    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        unsupported("modalities", &self.modalities, &[serde_json::json!(["text"])])?;
        for (name, value) in [
            ("audio", &self.audio),
            ("prediction", &self.prediction),
            ("reasoning_effort", &self.reasoning_effort),
            ("prompt_mode", &self.prompt_mode),
            ("guardrails", &self.guardrails),
            ("verbosity", &self.verbosity),
            ("web_search_options", &self.web_search_options),
            ("functions", &self.functions),
            ("function_call", &self.function_call),
            ("chat_template", &self.chat_template),
        ] {
            unsupported(name, value, &[])?;
        }
        Ok(())
    }
}

impl MessageBody {
    pub(super) fn into_turn(self, index: usize) -> Result<ChatTurn, ApiError> {
        let param = |field: &str| format!("messages[{index}].{field}");
        for (name, value) in [
            ("refusal", &self.refusal),
            ("annotations", &self.annotations),
            ("audio", &self.audio),
            ("function_call", &self.function_call),
        ] {
            unsupported(&param(name), value, &[])?;
        }
        let speaker = match self.role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            _ => {
                let why = "a role is `system`, `developer`, `user`, `assistant` or `tool`";
                return Err(ApiError::param(param("role"), why));
            }
        };
        let calls = self.tool_calls.unwrap_or_default();
        if !calls.is_empty() && speaker != Role::Assistant {
            return Err(ApiError::param(param("tool_calls"), "only the assistant calls tools"));
        }
        let content = match self.content {
            Some(content) => content.into_text(&param("content"))?,
            None if speaker == Role::Assistant => String::new(),
            None => return Err(ApiError::param(param("content"), "a message wants its content")),
        };
        let calls = calls.into_iter().map(|call| call.into_call(&param("tool_calls")));
        Ok(ChatTurn { speaker, content, calls: calls.collect::<Result<_, _>>()?, call_id: self.tool_call_id })
    }
}

impl Content {
    fn into_text(self, param: &str) -> Result<String, ApiError> {
        let parts = match self {
            Self::Text(text) => return Ok(text),
            Self::Parts(parts) => parts,
        };
        let texts = parts.into_iter().map(|part| match (part.kind.as_str(), part.text) {
            ("text", Some(text)) => Ok(text),
            ("text", None) => Err(ApiError::param(param, "a part of the type `text` wants its `text`")),
            _ => Err(ApiError::param(
                param,
                "only parts of the type `text` are supported: this model reads no images or files",
            )),
        });
        Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
    }
}

impl CallBody {
    fn into_call(self, param: &str) -> Result<ToolCall, ApiError> {
        function_alone(param, self.kind.as_deref())?;
        let arguments = match self.function.arguments {
            Value::String(text) => text,
            value => value.to_string(),
        };
        Ok(ToolCall { id: self.id.unwrap_or_default(), name: self.function.name, arguments })
    }
}

impl ToolBody {
    fn into_tool(self, index: usize) -> Result<Tool, ApiError> {
        function_alone(&format!("tools[{index}].type"), self.kind.as_deref())?;
        let FunctionBody { name, description, parameters, .. } = self.function;
        Ok(Tool { name, description, parameters })
    }
}

impl ToolChoiceBody {
    fn into_choice(self) -> Result<ToolChoice, ApiError> {
        match self {
            Self::Named(NamedTool { kind, function }) => {
                function_alone("tool_choice", kind.as_deref())?;
                Ok(ToolChoice::Named(function.name))
            }
            Self::Word(word) => match word.as_str() {
                "none" => Ok(ToolChoice::None),
                "auto" => Ok(ToolChoice::Auto),
                "required" | "any" => Ok(ToolChoice::Required),
                _ => Err(ApiError::param("tool_choice", "`none`, `auto`, `required`, `any` or one tool is wanted")),
            },
        }
    }
}

fn function_alone(param: &str, kind: Option<&str>) -> Result<(), ApiError> {
    match kind {
        None | Some("function") => Ok(()),
        Some(_) => Err(ApiError::param(param, "only the type `function` is supported")),
    }
}
