//! What a constraint's regular expressions may cost, weighed in its text: the library spends what the first byte of each takes before
//! it counts anything. Two things make that dear. Of a row of pieces that may be left out (`\w?\w?…`) each can come first, and what is
//! left then is another row: the square of their number, for every byte. And a class of characters, with case ignored, is worked out
//! wherever it is written.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tramontane_cluster::engine::Constraint;

use super::lark;

/// Bytes of all regular expressions of a constraint together, a grammar's terminals written out. (16 KiB of classes take a second.)
pub(super) const MAX_REGEX_BYTES: usize = 16 << 10;
/// Choices in the regular expressions of a constraint (`?`, `*`, `{` and `|`): the root of the sum of their squares. (500 take a
/// tenth of a second, 1,500 a whole one.)
pub(super) const MAX_CHOICES: usize = 500;

/// What one regular expression adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    pub(super) bytes: usize,
    pub(super) choices: usize,
}

impl Weight {
    /// Of a regular expression. The mark of a group (`(?`) is no choice.
    pub(super) fn of(regex: &str) -> Self {
        let bytes = regex.as_bytes();
        let before = std::iter::once(0).chain(bytes.iter().copied());
        let chooses = |&(before, byte): &(u8, u8)| matches!(byte, b'*' | b'{' | b'|') || byte == b'?' && before != b'(';
        Self { bytes: bytes.len(), choices: before.zip(bytes.iter().copied()).filter(chooses).count() }
    }

    /// Of one behind the other.
    pub(super) fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), choices: self.choices.saturating_add(other.choices) }
    }
}

/// Whether all regular expressions of `constraint` together are within the bounds.
pub(super) fn check_regexes(constraint: &Constraint) -> Result<(), String> {
    match constraint {
        Constraint::Regex(regex) => check([Weight::of(regex)]),
        Constraint::Lark(grammar) => check(lark::regexes(grammar)),
        // A schema's are found when it is read.
        Constraint::JsonObject | Constraint::JsonSchema(_) => Ok(()),
    }
}

/// The same for a schema.
pub(super) fn check_patterns(schema: &Value) -> Result<(), String> {
    let mut found = BTreeSet::new();
    patterns(schema, &mut found);
    check(found.into_iter().map(Weight::of))
}

fn check(regexes: impl IntoIterator<Item = Weight>) -> Result<(), String> {
    let (mut bytes, mut squares) = (0_usize, 0_usize);
    for weight in regexes {
        bytes = bytes.saturating_add(weight.bytes);
        squares = squares.saturating_add(weight.choices.saturating_mul(weight.choices));
    }
    if bytes > MAX_REGEX_BYTES {
        return Err(format!("its regular expressions, written out, have {bytes} bytes, at most {MAX_REGEX_BYTES}"));
    }
    if squares > MAX_CHOICES * MAX_CHOICES {
        let choices = squares.isqrt();
        return Err(format!(
            "its regular expressions choose {choices} times (`?`, `*`, `{{`, `|`), at most {MAX_CHOICES}"
        ));
    }
    Ok(())
}

/// Collects the regular expressions of a schema, each once: the library too compiles equal ones once.
fn patterns<'s>(schema: &'s Value, found: &mut BTreeSet<&'s str>) {
    match schema {
        Value::Array(values) => values.iter().for_each(|value| patterns(value, found)),
        Value::Object(members) => members.iter().for_each(|(name, value)| match (name.as_str(), value) {
            ("pattern", Value::String(regex)) => _ = found.insert(regex),
            ("patternProperties", Value::Object(by_name)) => {
                found.extend(by_name.keys().map(String::as_str));
                patterns(value, found);
            }
            // What stands between a document's parts is an expression too.
            ("x-guidance", Value::Object(options)) => found.extend(options.values().filter_map(Value::as_str)),
            _ => patterns(value, found),
        }),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The weight of each terminal with the terminals in it written out, as the library does it; of itself it has none.
pub(super) fn written_out(terminals: &BTreeMap<&str, (Weight, Vec<&str>)>) -> BTreeMap<String, Weight> {
    let mut weights: BTreeMap<String, Weight> = BTreeMap::new();
    let mut open: BTreeSet<&str> = BTreeSet::new();
    for &root in terminals.keys() {
        // A row of terminals may be as long as the text: no recursion.
        let mut path: Vec<(&str, usize)> = vec![(root, 0)];
        while let Some((name, next)) = path.pop() {
            let Some((own, parts)) = terminals.get(name).filter(|_| !weights.contains_key(name)) else { continue };
            open.insert(name);
            if let Some(&part) = parts.get(next) {
                path.push((name, next + 1));
                if !open.contains(part) {
                    path.push((part, 0));
                }
                continue;
            }
            let known = parts.iter().filter_map(|&part| weights.get(part));
            let weight = known.fold(*own, |sum, &part| sum.and(part));
            weights.insert(name.to_owned(), weight);
            open.remove(name);
        }
    }
    weights
}
