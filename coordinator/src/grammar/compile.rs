//! From a constraint to a grammar, within bounds.

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, TokenParser};
use serde_json::{Value, json};
use tramontane_cluster::engine::Constraint;

use super::follower::Follower;
use super::vocabulary::Vocabulary;
use super::weigh::{check_patterns, check_regexes};

/// Length of a constraint's text, in bytes.
pub(super) const MAX_CONSTRAINT_BYTES: usize = 64 << 10;
/// Length of a text in a schema and of a line of a grammar, in bytes.
pub(super) const MAX_PART_BYTES: usize = 16 << 10;
/// How deep brackets of any kind may be nested in it: parsers of such texts recurse.
pub(super) const MAX_NESTING: usize = 100;
/// Length of an error's text, in characters: it may quote the constraint.
const MAX_ERROR: usize = 400;

/// What a grammar may cost: the library's defaults are said beside where they differ.
pub(super) fn limits() -> ParserLimits {
    ParserLimits {
        // 1 to 2 kB each, so about 30 MB a sequence at most; 250,000.
        max_lexer_states: 20_000,
        // An ambiguous grammar has a row for each position that grows with it; work grows with their square; 2,000.
        max_items_in_row: 1_000,
        // Symbols in productions; 500,000.
        max_grammar_size: 200_000,
        // Errors would quote the tokens so far; true.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Whether the constraint's text is small and flat enough to be parsed at all, and what it asks for not too much.
pub(super) fn check_size(constraint: &Constraint) -> Result<(), String> {
    let text = match constraint {
        Constraint::JsonObject => return Ok(()),
        Constraint::JsonSchema(text) | Constraint::Regex(text) | Constraint::Lark(text) => text,
    };
    if text.len() > MAX_CONSTRAINT_BYTES {
        return Err(format!("{} bytes, at most {MAX_CONSTRAINT_BYTES}", text.len()));
    }
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_NESTING {
            return Err(format!("nested more than {MAX_NESTING} deep"));
        }
    }
    if let Constraint::Lark(grammar) = constraint {
        grammar.lines().try_for_each(check_part)?;
    }
    check_regexes(constraint)
}

fn check_part(text: &str) -> Result<(), String> {
    if text.len() > MAX_PART_BYTES {
        return Err(format!("a part of {} bytes, at most {MAX_PART_BYTES}", text.len()));
    }
    Ok(())
}

/// The same for all texts in a schema.
fn check_schema(schema: &Value) -> Result<(), String> {
    match schema {
        Value::String(text) => check_part(text),
        Value::Array(values) => values.iter().try_for_each(check_schema),
        Value::Object(members) => {
            members.iter().try_for_each(|(name, value)| check_part(name).and_then(|()| check_schema(value)))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// The grammar of `constraint` over the tokens of `vocabulary`; or why there is none.
pub(super) fn compile(vocabulary: &Vocabulary, constraint: &Constraint) -> Result<Follower, String> {
    let mut matcher = Matcher::new(Ok(parser(vocabulary, constraint)?));
    // The first mask is the dearest, and says whether anything can be generated at all.
    matcher.compute_mask().map_err(|error| shorten(&error.to_string()))?;
    Ok(Follower::new(matcher))
}

/// The library's parser of it.
pub(super) fn parser(vocabulary: &Vocabulary, constraint: &Constraint) -> Result<TokenParser, String> {
    let grammar = match constraint {
        Constraint::JsonObject => TopLevelGrammar::from_json_schema(json!({ "type": "object" })),
        Constraint::JsonSchema(schema) => {
            let schema = serde_json::from_str(schema).map_err(|error| format!("not JSON: {error}"))?;
            check_schema(&schema)?;
            check_patterns(&schema)?;
            TopLevelGrammar::from_json_schema(schema)
        }
        Constraint::Regex(regex) => TopLevelGrammar::from_regex(regex),
        Constraint::Lark(grammar) => TopLevelGrammar::from_lark(grammar.to_string()),
    };
    vocabulary.factory().create_parser(grammar).map_err(|error| shorten(&error.to_string()))
}

/// A library's error without what it says of itself.
pub(super) fn shorten(error: &str) -> String {
    let of_panic = error.split("\n<backtrace>").next().unwrap_or_default();
    let plain = of_panic.split("\n<non-verbose/>").next().unwrap_or_default();
    plain.chars().take(MAX_ERROR).collect()
}
