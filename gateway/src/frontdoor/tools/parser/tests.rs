//! Each format, what only looks like one, and texts cut anywhere.

use proptest::prelude::*;

use super::*;

/// The content, and the calls as (name, arguments).
fn read<'a>(expect: Expect, texts: impl IntoIterator<Item = &'a str>) -> (String, Vec<(String, String)>) {
    let names = ["f", "get_weather"].map(str::to_owned).into();
    let mut parser = ToolParser::new(names, Vec::new(), expect);
    let mut pieces: Vec<ToolPiece> = texts.into_iter().flat_map(|text| parser.push(text)).collect();
    pieces.extend(parser.finish());
    let (mut content, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for piece in pieces {
        match piece {
            ToolPiece::Content(text) => content.push_str(&text),
            ToolPiece::Begin { index, id, name } => {
                assert_eq!((index, id.len()), (calls.len(), 9));
                calls.push((name, String::new()));
            }
            ToolPiece::Arguments { index, text } => {
                assert_eq!(index, calls.len() - 1);
                calls[index].1.push_str(&text);
            }
        }
    }
    (content, calls)
}

fn calls(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|&(name, arguments)| (name.to_owned(), arguments.to_owned())).collect()
}

const TWO: &[(&str, &str)] = &[("f", r#"{"a": 1}"#), ("get_weather", r#"{"city":"Lima"}"#)];

#[test]
fn each_format_gives_the_same_calls() {
    let (one, two) =
        (r#"{"name": "f", "arguments": {"a": 1}}"#, r#"{"arguments":{"city":"Lima"},"name":"get_weather"}"#);
    for text in [
        format!("[TOOL_CALLS] [{one}, {two}]"),
        format!("[TOOL_CALLS][{one},{two}]\n"),
        "[TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]get_weather{\"city\":\"Lima\"}".to_owned(),
        format!("<tool_call>\n{one}\n</tool_call>\n<tool_call>{two}</tool_call>"),
        format!("[{one}, {two}]"),
        format!("  {one}\n{two}"),
        format!("[TOOL_CALLS] [{one}] [TOOL_CALLS] [{two}]"),
    ] {
        assert_eq!(read(Expect::Anything, [text.as_str()]), (String::new(), calls(TWO)), "{text}");
    }
    assert_eq!(read(Expect::Calls, [format!("[{one}, {two}]").as_str()]), (String::new(), calls(TWO)));
}

#[test]
fn text_before_a_call_is_content() {
    let text = r#"Let me look [up]. [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]"#;
    assert_eq!(read(Expect::Anything, [text]), ("Let me look [up]. ".to_owned(), calls(&TWO[..1])));
}

#[test]
fn what_is_no_call_is_content_to_the_letter() {
    for text in [
        "Plain text.",
        "",
        "  \n",
        "[1, 2]",
        "[",
        "{\"name\": \"Paris\", \"size\": 3} is JSON",
        "{\"a\": 1}",
        "[{\"a\": 1}]",
        "[TOOL_CALLS] nothing",
        "<tool_call>oops",
        "a [TOOL_CALLS",
        "<tool_call>{\"name\": \"rm\", \"arguments\": {}}</tool_call>",
        "[TOOL_CALLS]rm[ARGS]{}",
        "🙂 [TOOL_CA",
        "[TOOL]",
        " [{\"name\": 1}] x",
    ] {
        assert_eq!(read(Expect::Anything, [text]), (text.to_owned(), Vec::new()), "{text}");
    }
}

#[test]
fn a_call_without_arguments_has_an_empty_object() {
    assert_eq!(read(Expect::Anything, [r#"{"name": "f"}"#]), (String::new(), calls(&[("f", "{}")])));
}

#[test]
fn a_call_cut_off_keeps_what_was_said() {
    let text = r#"[{"name": "f", "arguments": {"a": "lon"#;
    assert_eq!(read(Expect::Calls, [text]), (String::new(), calls(&[("f", r#"{"a": "lon"#)])));
}

proptest! {
    #[test]
    fn how_the_text_is_cut_does_not_matter(
        parts in prop::collection::vec(prop::sample::select(vec![
            "[TOOL_CALLS]", "[", "]", "{", "}", "\"name\"", ":", "\"f\"", "\"arguments\"", ",", " ", "<tool_call>", "</tool_call>",
            "f[ARGS]{}", "é", "\\", r#"{"name":"f","arguments":{"x":1}}"#,
        ]), 0..14),
    ) {
        let text = parts.concat();
        let whole = read(Expect::Anything, [text.as_str()]);
        prop_assert_eq!(read(Expect::Anything, parts.iter().copied()), whole.clone());
        let letters = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
        prop_assert_eq!(read(Expect::Anything, letters), whole.clone());
        if whole.1.is_empty() {
            prop_assert_eq!(whole.0, text);
        }
    }
}
