//! Parts that several requests share.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tramontane_cluster::engine::Constraint;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::frontdoor::{self, Named, Prompt};

/// A text, or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a text or a list of texts is wanted")]
pub(crate) enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// A text, several, token ids, or several lists of them.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a text, a list of texts, a list of token ids or a list of lists of token ids is wanted")]
pub(crate) enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<i64>),
    TokenLists(Vec<Vec<i64>>),
}

impl Prompts {
    pub(super) fn into_vec(self) -> Vec<Prompt> {
        match self {
            Self::Text(text) => vec![Prompt::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Self::Tokens(ids) => vec![Prompt::Tokens(ids)],
            Self::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        }
    }
}

/// What a stream has beside the answer.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// A last chunk with the tokens that it took.
    #[serde(default)]
    pub include_usage: Option<bool>,
    /// The tokens so far with every chunk (vLLM).
    #[serde(default)]
    pub continuous_usage_stats: Option<bool>,
    /// OpenAI's padding against traffic analysis: not supported.
    #[serde(default)]
    pub include_obfuscation: Option<bool>,
}

impl StreamOptions {
    /// The options of a request, which makes sense only of a stream.
    pub(crate) fn check(options: Option<Self>, stream: bool) -> Result<Self, ApiError> {
        match options {
            Some(_) if !stream => Err(ApiError::param("stream_options", "`stream_options` wants `stream`")),
            Some(Self { include_obfuscation: Some(true), .. }) => {
                Err(ApiError::param("stream_options.include_obfuscation", "padding is not supported"))
            }
            options => Ok(options.unwrap_or_default()),
        }
    }
}

/// Constraints in vLLM's form: exactly one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StructuredOutputs {
    /// A JSON schema, as an object or as text.
    #[schema(value_type = Option<Object>)]
    json: Option<Box<RawValue>>,
    /// Any JSON object.
    json_object: Option<bool>,
    /// A regular expression for the whole answer.
    regex: Option<String>,
    /// A grammar in Lark's form.
    grammar: Option<String>,
    /// Texts, of which the answer is one.
    choice: Option<Vec<String>>,
}

impl StructuredOutputs {
    fn constraint(self) -> Result<Constraint, ApiError> {
        const PARAM: &str = "structured_outputs";
        let json = self.json.map(|raw| {
            let text: Option<String> = serde_json::from_str(raw.get()).ok();
            frontdoor::schema("structured_outputs.json", text.as_deref().unwrap_or(raw.get()))
        });
        let any = self.json_object.filter(|&wanted| wanted).map(|_| Ok(frontdoor::any_object()));
        let regex =
            self.regex.map(|text| frontdoor::constraint_text("structured_outputs.regex", &text).map(Constraint::Regex));
        let grammar = self
            .grammar
            .map(|text| frontdoor::constraint_text("structured_outputs.grammar", &text).map(Constraint::Lark));
        let choice = self.choice.map(|texts| frontdoor::choices("structured_outputs.choice", &texts));
        let mut given = [json, any, regex, grammar, choice].into_iter().flatten();
        match (given.next(), given.next()) {
            (Some(constraint), None) => constraint,
            _ => Err(ApiError::param(PARAM, "one of `json`, `regex`, `grammar`, `choice` and `json_object` is wanted")),
        }
    }
}

/// The form that an answer must have.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    kind: String,
    /// The schema.
    json_schema: Option<JsonSchemaFormat>,
}

/// A named schema.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JsonSchemaFormat {
    /// What it is called; of no effect.
    #[allow(dead_code, reason = "clients must send it")]
    name: String,
    /// What it is for; of no effect.
    #[allow(dead_code, reason = "clients may send it")]
    description: Option<String>,
    /// The schema (Mistral's client calls it `schema_definition` in Python and `schema` on the wire).
    #[schema(value_type = Option<Object>)]
    schema: Option<Box<RawValue>>,
    /// Whether it must be followed: it always is.
    #[allow(dead_code, reason = "schemas are always followed")]
    strict: Option<bool>,
}

impl ResponseFormat {
    fn constraint(self) -> Result<Option<Constraint>, ApiError> {
        match (self.kind.as_str(), self.json_schema) {
            ("text", None) => Ok(None),
            ("json_object", None) => Ok(Some(frontdoor::any_object())),
            ("json_schema", Some(JsonSchemaFormat { schema: Some(schema), .. })) => {
                frontdoor::schema("response_format.json_schema.schema", schema.get()).map(Some)
            }
            ("json_schema", _) => Err(ApiError::param("response_format.json_schema.schema", "a schema is wanted")),
            ("text" | "json_object", Some(_)) => {
                Err(ApiError::param("response_format.json_schema", "only the type `json_schema` has a schema"))
            }
            _ => Err(ApiError::param("response_format.type", "`text`, `json_object` or `json_schema` is wanted")),
        }
    }
}

/// The one constraint of a request.
pub(super) fn constraint(
    format: Option<ResponseFormat>,
    structured: Option<StructuredOutputs>,
) -> Result<Option<Named<Constraint>>, ApiError> {
    let named = |name| move |value| Named { name, value };
    let format = format.map(ResponseFormat::constraint).transpose()?.flatten().map(named("response_format"));
    let structured = structured.map(StructuredOutputs::constraint).transpose()?.map(named("structured_outputs"));
    match (format, structured) {
        (Some(_), Some(_)) => {
            Err(ApiError::param("structured_outputs", "`structured_outputs` contradicts `response_format`"))
        }
        (format, structured) => Ok(format.or(structured)),
    }
}

/// One value under two names.
pub(super) fn either<T: PartialEq>(
    (name, value): (&'static str, Option<T>),
    (alias, other): (&'static str, Option<T>),
) -> Result<Option<Named<T>>, ApiError> {
    match (value, other) {
        (Some(value), Some(other)) if value != other => {
            Err(ApiError::param(alias, format!("`{alias}` contradicts `{name}`")))
        }
        (Some(value), _) => Ok(Some(Named { name, value })),
        (None, Some(value)) => Ok(Some(Named { name: alias, value })),
        (None, None) => Ok(None),
    }
}

/// A parameter that is known and not supported: only its default passes.
pub(crate) type Unsupported = Option<Value>;

/// Refuses `value` unless it is one of `defaults`, empty or absent.
pub(super) fn unsupported(param: &str, value: &Unsupported, defaults: &[Value]) -> Result<(), ApiError> {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    match value {
        Some(value) if !empty(value) && !defaults.contains(value) => {
            Err(ApiError::param(param, format!("`{param}` is not supported with this value")))
        }
        _ => Ok(()),
    }
}

/// Adds the shared parameters to a request's own, and `shared()` that takes them out of it.
macro_rules! request {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[$field_meta])* pub(super) $field: $type,)*
            /// The model [default: the one that is served]
            pub(super) model: Option<String>,
            /// Whether the answer comes piece by piece, as server-sent events
            pub(super) stream: Option<bool>,
            /// What a stream has beside the answer
            pub(super) stream_options: Option<$crate::http::request::StreamOptions>,
            /// Choices [default: 1]
            pub(super) n: Option<i64>,
            /// Randomness: 0 to 2; 0 always takes the likeliest token [default: 1]
            pub(super) temperature: Option<f64>,
            /// Above 0, at most 1 [default: 1]
            pub(super) top_p: Option<f64>,
            /// Texts that end the answer, at most 4
            pub(super) stop: Option<$crate::http::request::common::Texts>,
            /// Most tokens to generate
            pub(super) max_tokens: Option<i64>,
            /// −2 to 2 [default: 0]
            pub(super) presence_penalty: Option<f64>,
            /// −2 to 2 [default: 0]
            pub(super) frequency_penalty: Option<f64>,
            /// Token id → −100 to 100
            pub(super) logit_bias: Option<std::collections::BTreeMap<String, f64>>,
            /// The same seed gives the same answer [default: random]
            pub(super) seed: Option<i64>,
            /// The same under Mistral's name
            pub(super) random_seed: Option<i64>,
            /// The form of the answer
            pub(super) response_format: Option<$crate::http::request::common::ResponseFormat>,
            /// The form of the answer (vLLM)
            pub(super) structured_outputs: Option<$crate::http::request::common::StructuredOutputs>,
            /// Who asks, for the operator: of no effect
            #[allow(dead_code, reason = "of no effect")]
            pub(super) user: Option<String>,
            /// For the client's own books: of no effect
            #[schema(value_type = Option<Object>)]
            #[allow(dead_code, reason = "of no effect")]
            pub(super) metadata: Option<std::collections::BTreeMap<String, serde_json::Value>>,
            /// Only the k likeliest tokens; −1 or 0 for all (vLLM) [default: all]
            pub(super) top_k: Option<i64>,
            /// Only tokens at least this times as likely as the likeliest (vLLM) [default: 0]
            pub(super) min_p: Option<f64>,
            /// Locally typical sampling: above 0, at most 1 [default: 1]
            pub(super) typical_p: Option<f64>,
            /// 0.01 to 100 (vLLM) [default: 1]
            pub(super) repetition_penalty: Option<f64>,
            /// Fewest tokens to generate (vLLM) [default: 0]
            pub(super) min_tokens: Option<i64>,
            /// Tokens that end the answer (vLLM)
            pub(super) stop_token_ids: Option<Vec<i64>>,
            /// Words that must not appear (vLLM)
            pub(super) bad_words: Option<Vec<String>>,
            /// Go on after the model's end-of-sequence token (vLLM)
            pub(super) ignore_eos: Option<bool>,
            /// Whether the stop string is part of the answer (vLLM)
            pub(super) include_stop_str_in_output: Option<bool>,
            /// Whether control tokens have no text (vLLM) [default: true]
            pub(super) skip_special_tokens: Option<bool>,
            /// Log-probabilities of the prompt (vLLM): 0 to 20 likeliest a token
            pub(super) prompt_logprobs: Option<i64>,
            /// Token ids in the answer (vLLM)
            pub(super) return_token_ids: Option<bool>,
            /// Only the prompt's last so many tokens count (vLLM); −1 for what the context holds
            pub(super) truncate_prompt_tokens: Option<i64>,
            /// Cached keys and values are shared only with requests of the same salt (vLLM)
            pub(super) cache_salt: Option<String>,
            /// Among the caller's waiting requests, lower is earlier (vLLM) [default: 0]
            pub(super) priority: Option<i64>,
            /// OpenAI's tier: only `auto` and `default`
            #[schema(value_type = Option<Object>)]
            pub(super) service_tier: $crate::http::request::Unsupported,
            /// OpenAI's storage: only false
            #[schema(value_type = Option<Object>)]
            pub(super) store: $crate::http::request::Unsupported,
        }

        impl $name {
            /// Takes the shared parameters out. `max_tokens` may have a second name.
            fn shared(&mut self, max_tokens_alias: (&'static str, Option<i64>)) -> Result<$crate::frontdoor::Parameters, $crate::error::ApiError> {
                use $crate::http::request::common::{Texts, constraint, either, unsupported};
                unsupported("service_tier", &self.service_tier, &["auto".into(), "default".into()])?;
                unsupported("store", &self.store, &[false.into()])?;
                Ok($crate::frontdoor::Parameters {
                    max_tokens: either(("max_tokens", self.max_tokens), max_tokens_alias)?,
                    min_tokens: self.min_tokens,
                    n: self.n,
                    best_of: None,
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    typical_p: self.typical_p,
                    repetition_penalty: self.repetition_penalty,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    logit_bias: self.logit_bias.take().unwrap_or_default(),
                    bad_words: self.bad_words.take().unwrap_or_default(),
                    seed: either(("seed", self.seed), ("random_seed", self.random_seed))?.map(|named| named.value),
                    stop: self.stop.take().map_or_else(Vec::new, Texts::into_vec),
                    stop_token_ids: self.stop_token_ids.take().unwrap_or_default(),
                    ignore_eos: self.ignore_eos.unwrap_or(false),
                    include_stop_str_in_output: self.include_stop_str_in_output.unwrap_or(false),
                    skip_special_tokens: self.skip_special_tokens,
                    logprobs: None,
                    prompt_logprobs: self.prompt_logprobs,
                    constraint: constraint(self.response_format.take(), self.structured_outputs.take())?,
                    truncate_prompt_tokens: self.truncate_prompt_tokens,
                    cache_salt: self.cache_salt.take(),
                    priority: self.priority,
                })
            }

            /// How the answer comes.
            pub(crate) fn manner(&self) -> Result<$crate::http::answer::Manner, $crate::error::ApiError> {
                let stream = self.stream.unwrap_or(false);
                let options = $crate::http::request::StreamOptions::check(self.stream_options, stream)?;
                Ok($crate::http::answer::Manner { stream, options, token_ids: self.return_token_ids.unwrap_or(false) })
            }

            /// The model that is asked for.
            pub(crate) fn model(&self) -> Option<&str> {
                self.model.as_deref()
            }
        }
    };
}
pub(super) use request;
