//! Messages to the core's requests. What they mean is checked by the core, as for every protocol.

use serde_json::value::RawValue;
use tramontane_cluster::engine::Constraint;
use tramontane_model::chat::Role;
use tramontane_proto::v1::{self, answer_form::Form, input};

use crate::error::ApiError;
use crate::frontdoor::tools::{Tool, ToolCall, ToolChoice, ToolOffer};
use crate::frontdoor::{self, ChatRequest, ChatTurn, CompletionRequest, Named, Parameters, Prompt};

/// What stands before the name of the one tool that must be called.
const NAMED_TOOL: &str = "tool:";

pub(super) fn completion(request: v1::GenerateRequest) -> Result<CompletionRequest, ApiError> {
    let parameters = parameters(request.parameters)?;
    Ok(CompletionRequest { prompts: vec![input("prompt", request.prompt)?], parameters, echo: false })
}

pub(super) fn chat(request: v1::ChatRequest) -> Result<ChatRequest, ApiError> {
    let choice = match request.tool_choice.as_deref() {
        None | Some("auto") => ToolChoice::Auto,
        Some("none") => ToolChoice::None,
        Some("required") => ToolChoice::Required,
        Some(named) => match named.strip_prefix(NAMED_TOOL) {
            Some(name) => ToolChoice::Named(name.to_owned()),
            None => return Err(ApiError::param("tool_choice", "`none`, `auto`, `required` or `tool:NAME` is wanted")),
        },
    };
    let tools = request.tools.into_iter().enumerate().map(|(index, tool)| offered(index, tool));
    Ok(ChatRequest {
        turns: turns(request.messages)?,
        tools: ToolOffer { tools: tools.collect::<Result<_, _>>()?, choice, parallel: request.parallel_tool_calls },
        parameters: parameters(request.parameters)?,
        continue_final: request.continue_final_message.unwrap_or(false),
        safe_prompt: request.safe_prompt.unwrap_or(false),
    })
}

pub(super) fn turns(messages: Vec<v1::ChatMessage>) -> Result<Vec<ChatTurn>, ApiError> {
    messages.into_iter().enumerate().map(|(index, message)| turn(index, message)).collect()
}

fn turn(index: usize, message: v1::ChatMessage) -> Result<ChatTurn, ApiError> {
    let speaker = match message.role.as_str() {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        _ => {
            let why = "a role is `system`, `user`, `assistant` or `tool`";
            return Err(ApiError::param(format!("messages[{index}].role"), why));
        }
    };
    if !message.tool_calls.is_empty() && speaker != Role::Assistant {
        return Err(ApiError::param(format!("messages[{index}].tool_calls"), "only the assistant calls tools"));
    }
    let call = |call: v1::ToolCallMade| ToolCall { id: call.id, name: call.name, arguments: call.arguments };
    Ok(ChatTurn {
        speaker,
        content: message.content,
        calls: message.tool_calls.into_iter().map(call).collect(),
        call_id: message.tool_call_id,
    })
}

fn offered(index: usize, tool: v1::ToolOffered) -> Result<Tool, ApiError> {
    let wrong = |_| ApiError::param(format!("tools[{index}].parameters"), "a JSON schema is wanted, as text");
    let parameters = tool.parameters.map(RawValue::from_string).transpose().map_err(wrong)?;
    Ok(Tool { name: tool.name, description: tool.description, parameters })
}

pub(super) fn input(param: &str, input: Option<v1::Input>) -> Result<Prompt, ApiError> {
    match input.and_then(|input| input.input) {
        Some(input::Input::Text(text)) => Ok(Prompt::Text(text)),
        Some(input::Input::Tokens(tokens)) => Ok(Prompt::Tokens(tokens.ids)),
        None => Err(ApiError::param(param, format!("`{param}` wants `text` or `tokens`"))),
    }
}

fn parameters(sent: Option<v1::GenerationParameters>) -> Result<Parameters, ApiError> {
    let sent = sent.unwrap_or_default();
    Ok(Parameters {
        max_tokens: sent.max_tokens.map(|value| Named { name: "max_tokens", value }),
        min_tokens: sent.min_tokens,
        n: sent.n,
        best_of: None,
        temperature: sent.temperature,
        top_p: sent.top_p,
        top_k: sent.top_k,
        min_p: sent.min_p,
        typical_p: sent.typical_p,
        repetition_penalty: sent.repetition_penalty,
        presence_penalty: sent.presence_penalty,
        frequency_penalty: sent.frequency_penalty,
        logit_bias: sent.logit_bias.into_iter().map(|(id, bias)| (id.to_string(), bias)).collect(),
        bad_words: sent.bad_words,
        seed: sent.seed,
        stop: sent.stop,
        stop_token_ids: sent.stop_token_ids,
        ignore_eos: sent.ignore_eos.unwrap_or(false),
        include_stop_str_in_output: sent.include_stop_str_in_output.unwrap_or(false),
        skip_special_tokens: sent.skip_special_tokens,
        logprobs: sent.top_logprobs.map(|value| Named { name: "top_logprobs", value }),
        prompt_logprobs: sent.prompt_logprobs,
        constraint: sent.form.map(form).transpose()?.flatten().map(|value| Named { name: "form", value }),
        truncate_prompt_tokens: sent.truncate_prompt_tokens,
        cache_salt: sent.cache_salt,
        priority: sent.priority,
    })
}

fn form(form: v1::AnswerForm) -> Result<Option<Constraint>, ApiError> {
    match form.form {
        Some(Form::JsonSchema(json)) => frontdoor::schema("form.json_schema", &json).map(Some),
        Some(Form::JsonObject(true)) => Ok(Some(frontdoor::any_object())),
        Some(Form::JsonObject(false)) => Ok(None),
        Some(Form::Regex(text)) => Ok(Some(Constraint::Regex(frontdoor::constraint_text("form.regex", &text)?))),
        Some(Form::Grammar(text)) => Ok(Some(Constraint::Lark(frontdoor::constraint_text("form.grammar", &text)?))),
        Some(Form::Choice(choice)) => frontdoor::choices("form.choice", &choice.texts).map(Some),
        None => Err(ApiError::param("form", "`form` says nothing")),
    }
}
