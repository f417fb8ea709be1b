//! What an answer has to match, as clients say it: checked for size and shape here, compiled by the engine.

use tramontane_cluster::engine::Constraint;

use crate::error::ApiError;

/// Longest schema, expression or grammar, in bytes.
pub const MAX_CONSTRAINT_BYTES: usize = 64 << 10;
/// Most texts to choose from.
const MAX_CHOICES: usize = 256;

/// Texts to choose from, one of which is to be the whole answer.
pub type Choices = Vec<String>;

/// `text`, which is the constraint in `param`, if it is neither empty nor too long.
///
/// # Errors
/// [`ApiError::Invalid`].
pub fn text(param: &str, text: &str) -> Result<std::sync::Arc<str>, ApiError> {
    match text.len() {
        0 => Err(ApiError::param(param, format!("`{param}` is empty"))),
        1..=MAX_CONSTRAINT_BYTES => Ok(text.into()),
        _ => Err(ApiError::param(param, format!("`{param}` has more than {MAX_CONSTRAINT_BYTES} bytes"))),
    }
}

/// How JSON is spaced: as most of it is written. Left free, a model may write spaces until its tokens are used up. (llguidance's
/// options, in its `docs/json_schema.md`.)
const SPACING: &str = r#""x-guidance":{"whitespace_flexible":false,"item_separator":", ","key_separator":": "}"#;

/// The constraint of a JSON schema, given as JSON text. Unless it says so itself, spacing is fixed.
///
/// # Errors
/// [`ApiError::Invalid`] when it is too long, or neither an object nor a boolean.
pub fn schema(param: &str, json: &str) -> Result<Constraint, ApiError> {
    let json = text(param, json.trim())?;
    if matches!(&*json, "true" | "false") || json.contains("\"x-guidance\"") {
        return Ok(Constraint::JsonSchema(json));
    }
    let Some(rest) = json.strip_prefix('{') else {
        return Err(ApiError::param(param, format!("`{param}` is no JSON schema: an object is wanted")));
    };
    let comma = if rest.trim_start().starts_with('}') { "" } else { "," };
    Ok(Constraint::JsonSchema(format!("{{{SPACING}{comma}{rest}").into()))
}

/// The constraint that the answer is a JSON object.
pub fn any_object() -> Constraint {
    Constraint::JsonSchema(format!("{{{SPACING},\"type\":\"object\"}}").into())
}

/// The constraint that the answer is one of `texts`.
///
/// # Errors
/// [`ApiError::Invalid`].
pub fn choices(param: &str, texts: &Choices) -> Result<Constraint, ApiError> {
    if texts.is_empty() || texts.len() > MAX_CHOICES || texts.iter().any(String::is_empty) {
        let why = format!("`{param}` must hold 1 to {MAX_CHOICES} texts, none empty");
        return Err(ApiError::param(param, why));
    }
    // Lark's strings are escaped as JSON's are.
    let quoted: Vec<String> = texts.iter().map(|text| serde_json::Value::from(text.as_str()).to_string()).collect();
    Ok(Constraint::Lark(text(param, &format!("start: {}", quoted.join(" | ")))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_quoted() {
        let made = choices("c", &vec!["yes".to_owned(), "a \"b\"\n".to_owned()]);
        assert_eq!(made, Ok(Constraint::Lark(r#"start: "yes" | "a \"b\"\n""#.into())));
        for bad in [vec![], vec![String::new()], vec!["x".to_owned(); MAX_CHOICES + 1]] {
            assert_eq!(choices("c", &bad).map_err(|e| e.param_name().map(str::to_owned)), Err(Some("c".to_owned())));
        }
    }

    #[test]
    fn spacing_is_fixed_unless_the_schema_says_how() {
        let made = |json| match schema("s", json) {
            Ok(Constraint::JsonSchema(text)) => serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(made("{}")["x-guidance"]["whitespace_flexible"], false);
        assert_eq!(made(r#"{ "type": "object" }"#)["type"], "object");
        let own = r#"{"x-guidance":{"whitespace_flexible":true}}"#;
        assert_eq!(schema("s", own), Ok(Constraint::JsonSchema(own.into())));
        assert_eq!(schema("s", "true"), Ok(Constraint::JsonSchema("true".into())));
    }

    #[test]
    fn schemas_are_objects_and_not_endless() {
        assert!(schema("s", " {\"type\":\"object\"} ").is_ok());
        for bad in ["", "[1]", "\"x\"", &format!("{{{}}}", " ".repeat(MAX_CONSTRAINT_BYTES))] {
            assert!(schema("s", bad).is_err(), "{}", bad.len());
        }
    }
}
