//! The regular expressions in a grammar: as much of Lark's syntax as it takes to find them, for they are weighed before the library
//! compiles them (`weigh`). What is no grammar at all is left to the library to refuse.

use std::collections::BTreeMap;

use super::weigh::{Weight, written_out};

/// A piece of a grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'g> {
    /// A terminal's name: its text stands where the name does.
    Terminal(&'g str),
    /// A string: one piece, however long.
    Text(&'g str),
    Regex(&'g str),
    /// `|`.
    Bar,
    /// `?`, `*`, `~`.
    Choice,
    /// `[`: something may be left out, or a rule is compiled as a regular expression (`lazy`, `suffix`, …).
    Bracket,
    /// `%json`, `%ignore`, …
    Directive(&'g str),
    /// `{`.
    Open,
    /// `}`.
    Close,
    /// A line's end.
    Line,
    Other,
}

/// One definition, or what else stands on a line and those that go on with it.
type Statement<'g> = Vec<Token<'g>>;

/// The weights of what the library compiles as regular expressions in `grammar`.
pub(super) fn regexes(grammar: &str) -> Vec<Weight> {
    let statements = statements(grammar);
    let mut terminals: BTreeMap<&str, (Weight, Vec<&str>)> = BTreeMap::new();
    for statement in &statements {
        if let [Token::Terminal(name), body @ ..] = statement.as_slice() {
            let (own, parts) = whole(body);
            let known = terminals.entry(name).or_default();
            known.0 = known.0.and(own);
            known.1.extend(parts);
        }
    }
    let weights = written_out(&terminals);
    let mut found: Vec<Weight> = weights.values().copied().collect();
    for statement in statements {
        match statement.as_slice() {
            [Token::Terminal(_), ..] => {}
            // Its terminals are written out in it, not only named.
            tokens @ [Token::Directive(_), ..] => found.push(rule(tokens, &weights)),
            tokens if tokens.contains(&Token::Bracket) => found.push(rule(tokens, &weights)),
            tokens => found.extend(tokens.iter().filter_map(|token| match token {
                Token::Regex(regex) => Some(Weight::of(regex)),
                _ => None,
            })),
        }
    }
    found
}

/// The weight of all of `tokens` but the terminals, which are named.
fn whole<'g>(tokens: &[Token<'g>]) -> (Weight, Vec<&'g str>) {
    let mut parts = Vec::new();
    let weight = tokens.iter().fold(Weight::default(), |sum, token| match token {
        Token::Terminal(name) => {
            parts.push(*name);
            sum
        }
        Token::Text(_) => sum.and(Weight { bytes: 1, choices: 0 }),
        Token::Bar | Token::Choice | Token::Bracket | Token::Open => sum.and(Weight { bytes: 1, choices: 1 }),
        Token::Regex(regex) => sum.and(Weight::of(regex)),
        Token::Directive(_) | Token::Close | Token::Line | Token::Other => sum,
    });
    (weight, parts)
}

fn rule(tokens: &[Token<'_>], weights: &BTreeMap<String, Weight>) -> Weight {
    let (own, parts) = whole(tokens);
    parts.iter().filter_map(|&part| weights.get(part)).fold(own, |sum, &part| sum.and(part))
}

/// Cuts a grammar into statements. In JSON (`%json {…}`) any string may be a regular expression, and lines mean nothing.
fn statements(grammar: &str) -> Vec<Statement<'_>> {
    let (mut all, mut statement) = (Vec::new(), Statement::default());
    let (mut json, mut depth) = (false, 0_usize);
    let mut line_ended = false;
    let mut rest = grammar;
    while let Some((token, behind)) = token(rest) {
        rest = behind;
        match token {
            Token::Line if json && depth > 0 => continue,
            Token::Line => (json, line_ended) = (false, true),
            Token::Directive("%json" | "%regex" | "%llguidance") => json = true,
            Token::Open if json => depth += 1,
            Token::Close if json => {
                depth = depth.saturating_sub(1);
                json = depth > 0;
            }
            _ => {}
        }
        // A line that begins with `|` goes on with the one before.
        if line_ended && !matches!(token, Token::Line | Token::Bar) {
            all.push(std::mem::take(&mut statement));
        }
        if token != Token::Line {
            line_ended = false;
            statement.push(match token {
                Token::Text(text) if json => Token::Regex(text),
                token => token,
            });
        }
    }
    all.push(statement);
    all
}

/// The first token of `text`, and what is behind it; spaces and comments count for nothing.
fn token(text: &str) -> Option<(Token<'_>, &str)> {
    let mut text = text;
    loop {
        text = text.trim_start_matches([' ', '\t', '\r']);
        if !text.starts_with('#') && !text.starts_with("//") {
            break;
        }
        text = text.find('\n').map_or("", |end| &text[end..]);
    }
    let first = *text.as_bytes().first()?;
    let name = |behind: usize, part: fn(u8) -> bool| {
        let length = text.bytes().skip(behind).position(|byte| !part(byte));
        length.map_or(text.len(), |length| behind + length)
    };
    let upper = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    let (token, end) = match first {
        b'\n' => (Token::Line, 1),
        b'"' => quoted(text, '"').map_or((Token::Other, 1), |(inner, end)| (Token::Text(inner), end)),
        b'/' => quoted(text, '/').map_or((Token::Other, 1), |(inner, end)| (Token::Regex(inner), end)),
        b'%' => {
            let end = name(1, |byte| byte.is_ascii_alphabetic());
            (Token::Directive(&text[..end]), end)
        }
        b'_' if text.as_bytes().get(1).is_some_and(u8::is_ascii_uppercase) => {
            let end = name(1, upper);
            (Token::Terminal(&text[..end]), end)
        }
        b'A'..=b'Z' => {
            let end = name(0, upper);
            (Token::Terminal(&text[..end]), end)
        }
        b'a'..=b'z' => (Token::Other, name(0, lower)),
        // The name of a control token, which no other begins with.
        b'<' => (Token::Other, special(text).unwrap_or(1)),
        b'|' => (Token::Bar, 1),
        b'?' | b'*' | b'~' => (Token::Choice, 1),
        b'[' => (Token::Bracket, 1),
        b'{' => (Token::Open, 1),
        b'}' => (Token::Close, 1),
        _ => (Token::Other, text.chars().next().map_or(1, char::len_utf8)),
    };
    Some((token, &text[end..]))
}

/// What stands between the quote that `text` begins with and the next that has no backslash before it, and where that ends.
fn quoted(text: &str, quote: char) -> Option<(&str, usize)> {
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|&(_, c)| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    end.map(|(end, _)| (&text[1..end], end + 1))
}

fn special(text: &str) -> Option<usize> {
    let end = text.char_indices().skip(1).find(|&(_, c)| c == '<' || c == '>' || c.is_whitespace());
    end.filter(|&(end, c)| c == '>' && end > 1).map(|(end, _)| end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weights of `grammar`, heaviest first.
    fn weigh(grammar: &str) -> Vec<(usize, usize)> {
        let mut found: Vec<_> = regexes(grammar).into_iter().map(|w| (w.bytes, w.choices)).collect();
        found.sort_unstable();
        found.reverse();
        found
    }

    #[test]
    fn terminals_are_written_out_and_rules_only_name_them() {
        let grammar = "start: A \"x\" A | /b?/ // A A A\nA: B B?\n  | \"B\" /c*\\/d/i # B\nB: /ef/";
        // A: two of B, `?`, `|`, a string, `c*\/d`.
        assert_eq!(weigh(grammar), [(12, 3), (2, 1), (2, 0)]);
        assert_eq!(weigh("start: A1 _B\nA1: _B _B\n_B: \"long as it may be\""), [(2, 0), (1, 0)]);
        assert_eq!(weigh("start[lazy]: A A\nA: /ab/"), [(5, 1), (2, 0)], "a rule that is an expression");
        assert_eq!(weigh("start: a\n%ignore /x/ | A\nA: /ab/"), [(4, 1), (2, 0)]);
    }

    #[test]
    fn terminals_that_double_grow_and_those_that_go_in_circles_do_not() {
        let doubling = |n: usize| {
            let terminals: Vec<String> = (0..n).map(|i| format!("T{i}: T{0} T{0}", i + 1)).collect();
            weigh(&format!("start: T0\n{}\nT{n}: /a?/", terminals.join("\n")))
        };
        assert_eq!(doubling(10)[0], (2048, 1024));
        assert_eq!(doubling(4_000)[0], (usize::MAX, usize::MAX));
        assert_eq!(weigh("A: B \"x\"\nB: A A\nC: C"), [(1, 0), (0, 0), (0, 0)]);
    }

    #[test]
    fn strings_in_json_are_expressions_and_other_braces_are_not_json() {
        assert_eq!(weigh("start: %json {\n \"pattern\":\n \"a?b?\" }\nA: \"abc\""), [(7, 0), (4, 2), (1, 0)]);
        assert_eq!(weigh("start: %lark {\nstart: T\nT: \"abc\"\n}"), [(1, 0)]);
    }

    #[test]
    fn what_is_no_grammar_is_read_to_its_end() {
        for text in ["\"", "/", "<", "< |", "%", "é", "\\", "a:\"\\", "_", "%json {", "}", "<|a|> <a> |", "/\\/"] {
            let _weights = regexes(text);
        }
    }
}
