//! What has been said, what is asked next, and what came of it. Pure.

use serde_json::{Value, json};

use super::ChatArgs;

/// A conversation.
pub(super) struct Conversation {
    system: Option<String>,
    /// Role and content, in turns.
    turns: Vec<(&'static str, String)>,
}

/// An answer as far as it has come.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) finish_reason: Value,
    pub(super) usage: Value,
}

impl Conversation {
    pub(super) fn new(system: Option<String>) -> Self {
        Self { system, turns: Vec::new() }
    }

    /// The user says `content`.
    pub(super) fn ask(&mut self, content: String) {
        self.turns.push(("user", content));
    }

    /// The model has said `content`, perhaps not to its end.
    pub(super) fn answered(&mut self, content: &str) {
        self.turns.push(("assistant", content.to_owned()));
    }

    /// The last question has no answer: as if it had not been asked.
    pub(super) fn take_back(&mut self) {
        self.turns.pop();
    }

    /// Forgets everything but the system's message.
    pub(super) fn clear(&mut self) {
        self.turns.clear();
    }

    /// The request for the next answer.
    pub(super) fn request(&self, model: &str, args: &ChatArgs) -> Value {
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let system = self.system.iter().map(|content| message("system", content));
        let turns = self.turns.iter().map(|(role, content)| message(role, content));
        let messages: Vec<Value> = system.chain(turns).collect();
        let options = json!({"include_usage": true});
        let mut body = json!({"model": model, "messages": messages, "stream": true, "stream_options": options});
        if let Some(max_tokens) = args.max_tokens {
            body["max_tokens"] = json!(max_tokens);
        }
        if let Some(temperature) = args.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(seed) = args.seed {
            body["seed"] = json!(seed);
        }
        body
    }
}

impl Answer {
    /// Takes an event; the text that it brings.
    pub(super) fn take(&mut self, event: &Value) -> String {
        if event["usage"].is_object() {
            self.usage = event["usage"].clone();
        }
        let choice = &event["choices"][0];
        if choice["finish_reason"].is_string() {
            self.finish_reason = choice["finish_reason"].clone();
        }
        let piece = choice["delta"]["content"].as_str().unwrap_or_default().to_owned();
        self.text.push_str(&piece);
        piece
    }

    /// What `--json` prints.
    pub(super) fn report(&self, model: &str) -> Value {
        json!({"model": model, "content": self.text, "finish_reason": self.finish_reason, "usage": self.usage})
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(more: &[&str]) -> ChatArgs {
        match Cli::try_parse_from([&["tramontane", "chat"], more].concat()).map(|cli| cli.command) {
            Ok(Command::Chat(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_turns_are_told_and_what_was_given() {
        let mut conversation = Conversation::new(Some("Be brief.".to_owned()));
        conversation.ask("Hi".to_owned());
        conversation.answered("Hello");
        conversation.ask("wrong".to_owned());
        conversation.take_back();
        conversation.ask("Bye".to_owned());
        let body = conversation.request("m", &args(&["--seed", "-3", "--temperature", "0", "--max-tokens", "9"]));
        let said: Vec<_> = body["messages"].as_array().expect("messages").iter().map(|m| &m["content"]).collect();
        assert_eq!(said, ["Be brief.", "Hi", "Hello", "Bye"]);
        assert_eq!((&body["seed"], &body["temperature"], &body["max_tokens"]), (&json!(-3), &json!(0.0), &json!(9)));
        conversation.clear();
        let body = conversation.request("m", &args(&[]));
        assert_eq!(body["messages"], json!([{"role": "system", "content": "Be brief."}]));
        // What was not given is the server's to decide.
        for absent in ["seed", "temperature", "max_tokens"] {
            assert!(body.get(absent).is_none(), "{body}");
        }
    }

    #[test]
    fn an_answer_is_its_pieces_its_reason_and_its_usage() {
        let mut answer = Answer::default();
        let delta = |content: &str| json!({"choices": [{"delta": {"content": content}, "finish_reason": null}]});
        let events = [
            json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
            delta("He"),
            delta("llo"),
            json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
            json!({"choices": [], "usage": {"completion_tokens": 2}}),
        ];
        let pieces: Vec<String> = events.iter().map(|event| answer.take(event)).collect();
        assert_eq!(pieces.concat(), "Hello");
        let report =
            json!({"model": "m", "content": "Hello", "finish_reason": "stop", "usage": {"completion_tokens": 2}});
        assert_eq!(answer.report("m"), report);
    }
}
