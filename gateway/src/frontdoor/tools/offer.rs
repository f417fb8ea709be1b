//! The tools that a request offers: checked, written into the prompt, and as a constraint where calls are wanted. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::value::RawValue;
use tramontane_cluster::engine::Constraint;
use tramontane_model::chat::Json;
use tramontane_model::tokenizer::Tokenizer;

use super::{Expect, ToolCall, ToolParser};
use crate::error::ApiError;
use crate::frontdoor::constraint;

/// Most tools a request may offer.
pub const MAX_TOOLS: usize = 128;
/// Longest name of a tool.
const MAX_NAME: usize = 64;
/// Most calls in one answer, where they are constrained.
const MAX_CALLS: usize = 16;

/// A tool.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// The JSON schema of its arguments, as it was sent; `None` for no arguments.
    pub parameters: Option<Box<RawValue>>,
}

/// Whether the model is to call tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// It must not.
    None,
    /// As it likes.
    #[default]
    Auto,
    /// It must, which it likes.
    Required,
    /// It must call this one.
    Named(String),
}

/// Tools, and how they may be called.
#[derive(Clone, Debug, Default)]
pub struct ToolOffer {
    /// The tools.
    pub tools: Vec<Tool>,
    /// Whether to call them.
    pub choice: ToolChoice,
    /// Whether an answer may hold several calls.
    pub parallel: Option<bool>,
}

impl ToolOffer {
    /// Checks names and choice.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        if self.tools.len() > MAX_TOOLS {
            return Err(ApiError::param(
                "tools",
                format!("`tools` has {} entries, at most {MAX_TOOLS}", self.tools.len()),
            ));
        }
        let mut names = BTreeSet::new();
        for (index, Tool { name, .. }) in self.tools.iter().enumerate() {
            let param = || format!("tools[{index}].function.name");
            let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
            if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(letter) {
                let why = format!("a tool's name has 1 to {MAX_NAME} of the letters a-z, A-Z, 0-9, _ and -");
                return Err(ApiError::param(param(), why));
            }
            if !names.insert(name.as_str()) {
                return Err(ApiError::param(param(), "two tools have this name"));
            }
        }
        match &self.choice {
            ToolChoice::Required if self.tools.is_empty() => {
                Err(ApiError::param("tool_choice", "there are no `tools` to call"))
            }
            ToolChoice::Named(name) if !names.contains(name.as_str()) => {
                Err(ApiError::param("tool_choice", "`tool_choice` names none of the `tools`"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the model is told of the tools.
    pub(crate) fn is_open(&self) -> bool {
        !self.tools.is_empty() && self.choice != ToolChoice::None
    }

    /// The tools that may be called.
    fn callable(&self) -> impl Iterator<Item = &Tool> {
        self.tools.iter().filter(|tool| match &self.choice {
            ToolChoice::Named(name) => tool.name == *name,
            _ => true,
        })
    }

    /// What reads the answer; `None` when there cannot be calls.
    pub(crate) fn parser(&self, tokenizer: &Tokenizer) -> Option<ToolParser> {
        let expect = match self.choice {
            ToolChoice::Auto => Expect::Anything,
            ToolChoice::Required | ToolChoice::Named(_) => Expect::Calls,
            ToolChoice::None => return None,
        };
        let marks = ToolParser::MARKS.iter().filter_map(|mark| tokenizer.token_to_id(mark)).collect();
        let names = self.callable().map(|tool| tool.name.clone()).collect();
        self.is_open().then(|| ToolParser::new(names, marks, expect))
    }

    /// The constraint that the answer is a list of calls; `None` when it need not be.
    ///
    /// A schema's own definitions (`$defs`, `definitions`) move to the whole's, where its references look for them.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: the schemas are too long, no schemas, or their definitions contradict each other.
    pub(crate) fn constraint(&self) -> Result<Option<Constraint>, ApiError> {
        const PARAM: &str = "tools";
        if matches!(self.choice, ToolChoice::Auto | ToolChoice::None) {
            return Ok(None);
        }
        let most = match (&self.choice, self.parallel) {
            (ToolChoice::Named(_), _) | (_, Some(false)) => 1,
            _ => MAX_CALLS,
        };
        let mut definitions = BTreeMap::new();
        let mut calls = Vec::new();
        for tool in self.callable() {
            let parameters =
                tool.parameters.as_ref().map_or(r#"{"type":"object","additionalProperties":false}"#, |raw| raw.get());
            let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(parameters)
                .map_err(|_| ApiError::param(PARAM, format!("the parameters of {} are no JSON schema", tool.name)))?;
            for (kind, raw) in fields.iter().filter(|(key, _)| matches!(key.as_str(), "$defs" | "definitions")) {
                let of_tool: BTreeMap<String, Box<RawValue>> = serde_json::from_str(raw.get())
                    .map_err(|_| ApiError::param(PARAM, format!("the definitions of {} are no object", tool.name)))?;
                for (name, definition) in of_tool {
                    let text = definition.get().to_owned();
                    let known = definitions.entry((kind.clone(), name)).or_insert_with(|| text.clone());
                    if *known != text {
                        return Err(ApiError::param(
                            PARAM,
                            format!("{kind} of {} contradict another tool's", tool.name),
                        ));
                    }
                }
            }
            let name = serde_json::Value::from(tool.name.as_str());
            calls.push(format!(
                r#"{{"type":"object","properties":{{"name":{{"const":{name}}},"arguments":{parameters}}},"required":["name","arguments"],"additionalProperties":false}}"#
            ));
        }
        let items = if calls.len() == 1 { calls.remove(0) } else { format!(r#"{{"anyOf":[{}]}}"#, calls.join(",")) };
        let mut schema = format!(r#"{{"type":"array","minItems":1,"maxItems":{most},"items":{items}"#);
        for kind in ["$defs", "definitions"] {
            let of_kind = definitions.iter().filter(|((of, _), _)| of == kind);
            let texts: Vec<String> =
                of_kind.map(|((_, name), text)| format!("{}:{text}", serde_json::Value::from(name.as_str()))).collect();
            if !texts.is_empty() {
                schema.push_str(&format!(r#","{kind}":{{{}}}"#, texts.join(",")));
            }
        }
        schema.push('}');
        constraint::schema(PARAM, &schema).map(Some)
    }

    /// The tools as templates that know tools are given them.
    ///
    /// # Errors
    /// [`ApiError::Invalid`]: a schema is nested too deeply.
    pub(crate) fn native(&self) -> Result<Vec<Json>, ApiError> {
        let native = |tool: &Tool| {
            let why = || format!("the parameters of {} are no JSON schema", tool.name);
            Json::parse(&tool.json()).map_err(|_| ApiError::param("tools", why()))
        };
        self.callable().map(native).collect()
    }

    /// The tools as a model without a template for them is told.
    pub(crate) fn described(&self) -> String {
        let tools: Vec<String> = self.callable().map(Tool::json).collect();
        let ask = match self.choice {
            ToolChoice::Required | ToolChoice::Named(_) => "Answer with calls of these tools, and nothing else, as",
            _ => "To call tools, answer with",
        };
        format!(
            "[AVAILABLE_TOOLS] [{}] [/AVAILABLE_TOOLS] {ask} [TOOL_CALLS] [{{\"name\": NAME, \"arguments\": {{…}}}}]",
            tools.join(", ")
        )
    }
}

impl Tool {
    /// As OpenAI's API writes it.
    pub(crate) fn json(&self) -> String {
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        let mut function = format!(r#""name": {}"#, quote(&self.name));
        if let Some(description) = &self.description {
            function.push_str(&format!(r#", "description": {}"#, quote(description)));
        }
        if let Some(parameters) = &self.parameters {
            function.push_str(&format!(r#", "parameters": {}"#, parameters.get()));
        }
        format!(r#"{{"type": "function", "function": {{{function}}}}}"#)
    }
}

impl ToolCall {
    /// As models write it.
    pub(crate) fn json(&self) -> String {
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        let arguments = if self.arguments.trim().is_empty() { "{}" } else { &self.arguments };
        format!(r#"{{"name": {}, "arguments": {arguments}, "id": {}}}"#, quote(&self.name), quote(&self.id))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tool(name: &str, parameters: &Value) -> Tool {
        let raw = RawValue::from_string(parameters.to_string()).unwrap();
        Tool { name: name.to_owned(), description: Some("Does \"it\".".to_owned()), parameters: Some(raw) }
    }

    fn offer(choice: ToolChoice, tools: Vec<Tool>) -> ToolOffer {
        ToolOffer { tools, choice, parallel: None }
    }

    fn schema(offer: &ToolOffer) -> Value {
        match offer.constraint() {
            Ok(Some(Constraint::JsonSchema(text))) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_required_call_is_one_of_the_tools() {
        let point =
            json!({"type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "$defs": {"P": {"type": "number"}}});
        let offer = offer(ToolChoice::Required, vec![tool("f", &point), tool("g", &json!({"type": "object"}))]);
        let schema = schema(&offer);
        assert_eq!((&schema["minItems"], &schema["maxItems"]), (&json!(1), &json!(MAX_CALLS)));
        assert_eq!(schema["items"]["anyOf"][1]["properties"]["name"], json!({"const": "g"}));
        assert_eq!(schema["$defs"], json!({"P": {"type": "number"}}));
        let text = offer.constraint().unwrap();
        let Some(Constraint::JsonSchema(text)) = text else { panic!("a schema") };
        assert!(
            text.find("\"name\"") < text.find("\"arguments\""),
            "the name comes first, so that arguments can be streamed"
        );
    }

    #[test]
    fn a_named_tool_is_the_only_one_and_called_once() {
        let none = json!({"type": "object"});
        let schema = schema(&offer(ToolChoice::Named("g".to_owned()), vec![tool("f", &none), tool("g", &none)]));
        assert_eq!((&schema["maxItems"], &schema["items"]["properties"]["name"]), (&json!(1), &json!({"const": "g"})));
    }

    #[test]
    fn definitions_that_contradict_each_other_are_refused() {
        let of = |kind: &str| json!({"type": "object", "$defs": {"P": {"type": kind}}});
        let offer = offer(ToolChoice::Required, vec![tool("f", &of("number")), tool("g", &of("string"))]);
        assert_eq!(offer.constraint().unwrap_err().param_name(), Some("tools"));
    }

    #[test]
    fn names_are_checked() {
        let none = json!({"type": "object"});
        for bad in ["", "a b", "a.b", &"x".repeat(65)] {
            let error = offer(ToolChoice::Auto, vec![tool("f", &none), tool(bad, &none)]).check().unwrap_err();
            assert_eq!(error.param_name(), Some("tools[1].function.name"));
        }
        assert!(offer(ToolChoice::Auto, vec![tool("f", &none), tool("f", &none)]).check().is_err());
        assert!(offer(ToolChoice::Auto, vec![tool("f", &none); MAX_TOOLS + 1]).check().is_err());
        assert!(offer(ToolChoice::Named("g".to_owned()), vec![tool("f", &none)]).check().is_err());
        assert!(offer(ToolChoice::Required, vec![]).check().is_err());
        assert!(offer(ToolChoice::Named("f".to_owned()), vec![tool("f", &none)]).check().is_ok());
    }

    #[test]
    fn tools_are_written_as_json() {
        let written: Value = serde_json::from_str(&tool("f", &json!({"type": "object"})).json()).unwrap();
        let function = json!({"name": "f", "description": "Does \"it\".", "parameters": {"type": "object"}});
        assert_eq!(written, json!({"type": "function", "function": function}));
    }
}
