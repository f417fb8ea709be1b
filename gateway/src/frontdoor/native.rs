//! Messages in the words of OpenAI's API, as `transformers` gives them to templates that know tools. Pure.

use std::collections::BTreeMap;

use tramontane_model::chat::{Json, Role};

use super::chat::ChatTurn;
use super::tools::ToolCall;
use crate::error::ApiError;

/// `turns` behind the message of a system, if there is one.
///
/// # Errors
/// [`ApiError::Invalid`]: a call's arguments are no JSON.
pub(super) fn messages(turns: &[ChatTurn], system: Option<&'static str>) -> Result<Vec<Json>, ApiError> {
    let mut called = BTreeMap::new();
    let mut messages: Vec<Json> =
        system.map(|text| Json::object([("role", "system".into()), ("content", text.into())])).into_iter().collect();
    for (index, turn) in turns.iter().enumerate() {
        let mut fields = vec![("role", role(turn.speaker).into()), ("content", turn.content.clone().into())];
        if !turn.calls.is_empty() {
            let calls = turn.calls.iter().map(|call| {
                called.insert(call.id.clone(), call.name.clone());
                native(call).ok_or_else(|| {
                    ApiError::param(format!("messages[{index}].tool_calls"), "a call's arguments are no JSON")
                })
            });
            fields.push(("tool_calls", Json::List(calls.collect::<Result<_, _>>()?)));
        }
        if let Some(id) = &turn.call_id {
            fields.push(("tool_call_id", id.clone().into()));
            fields.extend(called.get(id).map(|name| ("name", name.clone().into())));
        }
        messages.push(Json::object(fields));
    }
    Ok(messages)
}

const fn role(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    }
}

fn native(call: &ToolCall) -> Option<Json> {
    let arguments = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
    let function = [("name", call.name.clone().into()), ("arguments", Json::parse(arguments).ok()?)];
    let fields = [("id", call.id.clone().into()), ("type", "function".into()), ("function", Json::object(function))];
    Some(Json::object(fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(speaker: Role, content: &str) -> ChatTurn {
        ChatTurn { speaker, content: content.to_owned(), calls: Vec::new(), call_id: None }
    }

    fn call(arguments: &str) -> ToolCall {
        ToolCall { id: "abcdefghi".to_owned(), name: "f".to_owned(), arguments: arguments.to_owned() }
    }

    #[test]
    fn an_answer_of_a_tool_has_the_name_of_what_was_called() {
        let turns = [
            turn(Role::User, "?"),
            ChatTurn { calls: vec![call("{\"b\":1,\"a\":2}"), call("")], ..turn(Role::Assistant, "") },
            ChatTurn { call_id: Some("abcdefghi".to_owned()), ..turn(Role::Tool, "4") },
        ];
        let messages = messages(&turns, Some("Be kind.")).unwrap();
        let json: Vec<String> = messages.iter().map(|message| serde_json::to_string(message).unwrap()).collect();
        assert_eq!(
            json,
            [
                r#"{"role":"system","content":"Be kind."}"#,
                r#"{"role":"user","content":"?"}"#,
                r#"{"role":"assistant","content":"","tool_calls":[{"id":"abcdefghi","type":"function","function":{"name":"f","arguments":{"b":1,"a":2}}},{"id":"abcdefghi","type":"function","function":{"name":"f","arguments":{}}}]}"#,
                r#"{"role":"tool","content":"4","tool_call_id":"abcdefghi","name":"f"}"#,
            ]
        );
    }

    #[test]
    fn arguments_that_are_no_json_are_the_clients_fault() {
        let turns = [turn(Role::User, "?"), ChatTurn { calls: vec![call("{")], ..turn(Role::Assistant, "") }];
        assert_eq!(messages(&turns, None).unwrap_err().param_name(), Some("messages[1].tool_calls"));
    }
}
