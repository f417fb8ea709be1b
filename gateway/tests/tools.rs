//! What a model is told of tools: by its template where that has words for them, else as text.

mod served;

use serde_json::{Value, json};
use served::{served, submitted, tokenizer};
use tramontane_model::chat::ChatTemplate;
use tramontane_model::checkpoint::ChatSource;

/// Has words for tools, and wants users and assistants in turn.
const KNOWING: &str = "\
{%- if tools %}Tools: {{ tools | tojson }}. {% endif %}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}
{{- message.role }}: {{ message.content }}
{%- for call in message.tool_calls %} calls {{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}; {% endfor %}";
/// Has none.
const IGNORANT: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}; {% endfor %}";

/// The prompt of a chat, as text.
async fn prompt(template: &str, messages: &Value, choice: &str) -> String {
    let source = ChatSource { template: template.to_owned(), special_tokens: Default::default() };
    let (routes, inbox) = served(Some(ChatTemplate::compile(&source).expect("a template")));
    let parameters = json!({"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}});
    let tools =
        json!([{"type": "function", "function": {"name": "get", "description": "Gets.", "parameters": parameters}}]);
    let body = json!({"messages": messages, "tools": tools, "tool_choice": choice, "max_tokens": 1});
    let (asked, submission) = submitted(routes, &inbox, "/v1/chat/completions", &body).await;
    asked.abort();
    tokenizer().decode(&submission.request.prompt).expect("text").trim_start().to_owned()
}

fn conversation() -> Value {
    let call =
        json!({"id": "abcdefghi", "type": "function", "function": {"name": "get", "arguments": "{\"z\": \"1\"}"}});
    json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "Rain."},
    ])
}

#[tokio::test]
async fn a_template_with_words_for_tools_says_them() {
    let text = prompt(KNOWING, &conversation(), "auto").await;
    assert!(text.starts_with("Tools: [{\"type\": \"function\", \"function\": {\"name\": \"get\""), "{text}");
    assert!(text.ends_with("user: Hi; assistant:  calls get {\"z\": \"1\"}; tool: Rain.; "), "{text}");
    assert!(!text.contains("AVAILABLE_TOOLS"), "{text}");
}

#[tokio::test]
async fn without_tools_to_call_it_is_told_of_none() {
    let text = prompt(KNOWING, &json!([{"role": "user", "content": "Hi"}]), "none").await;
    assert_eq!(text, "user: Hi; ");
}

#[tokio::test]
async fn a_template_without_words_for_tools_or_that_refuses_is_told_in_text() {
    let system = json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]);
    for (template, messages) in [(IGNORANT, conversation()), (KNOWING, system)] {
        let text = prompt(template, &messages, "auto").await;
        assert!(text.contains("[AVAILABLE_TOOLS] [{\"type\": \"function\"") && !text.contains("Tools: ["), "{text}");
    }
}
