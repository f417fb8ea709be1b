//! Reads the repository's sources, and Rust text just well enough to judge it: where code ends and comments, literals and
//! test modules begin.

use std::fs;
use std::path::Path;

/// Directories that hold no source of ours. Hidden ones are skipped too.
const SKIPPED: &[&str] = &["target", "node_modules"];

/// One file: its path relative to the repository's root, with `/`, and its text.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Every `.rs` file and every `Cargo.toml` under `root`, in order of path.
pub(crate) fn read(root: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of the repository can be read") {
            let entry = entry.expect("a directory entry can be read");
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let kind = entry.file_type().expect("a file's type can be read");
            if kind.is_dir() && !name.starts_with('.') && !SKIPPED.contains(&name.as_str()) {
                directories.push(path);
            } else if kind.is_file() && (name.ends_with(".rs") || name == "Cargo.toml") {
                let relative = path.strip_prefix(root).expect("the walk stays below its root");
                let path_text = relative.to_string_lossy().replace('\\', "/");
                let text = fs::read_to_string(&path).expect("a source file is UTF-8");
                sources.push(Source { path: path_text, text });
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

/// `text` with every comment and literal replaced by one space, and line ends kept: what the compiler is told to do.
pub(crate) fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let inside_name = out.ends_with(is_name);
        if let Some(length) = comment(rest).or_else(|| literal(rest, inside_name)) {
            out.push(' ');
            out.extend(rest[..length].chars().filter(|&c| c == '\n'));
            rest = &rest[length..];
        } else {
            out.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    out
}

/// `code` (from [`code`]) without the items under `#[cfg(test)]`.
pub(crate) fn without_test_items(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let (mut out, mut rest) = (String::new(), code);
    while let Some(start) = rest.find(MARK) {
        out.push_str(&rest[..start]);
        rest = &rest[start + MARK.len()..];
        rest = &rest[item_length(rest)..];
    }
    out + rest
}

/// The identifiers and keywords of each line of `code`, with the line's number from 1.
pub(crate) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().enumerate().flat_map(|(index, line)| {
        line.split(|c| !is_name(c)).filter(|word| !word.is_empty()).map(move |word| (index + 1, word))
    })
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Bytes of the item at the start of `rest`: to its `;`, or to the brace that closes its first one.
fn item_length(rest: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in rest.char_indices() {
        match c {
            ';' if depth == 0 => return at + 1,
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    rest.len()
}

/// Bytes of the comment `rest` starts with. Block comments nest.
fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        let tail = &rest.as_bytes()[at..];
        if tail.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if tail.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += 1;
        }
    }
    Some(rest.len())
}

/// Bytes of the string or character literal `rest` starts with. A prefix `b` or `c` of a plain literal counts as code.
fn literal(rest: &str, inside_name: bool) -> Option<usize> {
    let raw = ["r", "br", "cr"].iter().find_map(|prefix| rest.strip_prefix(prefix));
    if let Some(after) = raw.filter(|_| !inside_name) {
        let hashes = after.len() - after.trim_start_matches('#').len();
        if let Some(body) = after[hashes..].strip_prefix('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let length = body.find(&close).map_or(body.len(), |at| at + close.len());
            return Some(rest.len() - body.len() + length);
        }
    }
    let mut chars = rest.char_indices();
    match chars.next()?.1 {
        '"' => Some(closed(rest, '"')),
        '\'' if chars.next()?.1 == '\\' || chars.next()?.1 == '\'' => Some(closed(rest, '\'')),
        _ => None, // a lifetime, or no literal at all
    }
}

/// Bytes from the quote `rest` starts with to the next `quote` that no backslash escapes.
fn closed(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::{code, without_test_items, words};

    #[test]
    fn comments_are_not_code() {
        assert_eq!(code("a // b\nc /* d /* e */ f\n */ g"), "a  \nc  \n g");
        assert_eq!(code("//! doc\n/// doc"), " \n ");
    }

    #[test]
    fn literals_are_not_code() {
        assert_eq!(code(r#"a("x \" // y", 'z', '\'', '"') + b"w""#), "a( ,  ,  ,  ) + b ");
        assert_eq!(code("r#\"a \" b\"# + br\"c\" + r\"\\\""), "  +   +  ");
        assert_eq!(code("\"a\nb\""), " \n");
    }

    #[test]
    fn lifetimes_and_raw_names_are_code() {
        for text in ["fn f<'a, 'b>(x: &'a str) {}", "r#type + var", "'outer: loop { break 'outer }"] {
            assert_eq!(code(text), text);
        }
    }

    #[test]
    fn test_items_are_cut_wherever_they_stand() {
        let text = "#[cfg(test)]\nmod tests;\nfn a() {}\n#[cfg(test)]\nmod t { fn b() { { } } }\nfn c() {}";
        assert_eq!(without_test_items(text), "\nfn a() {}\n\nfn c() {}");
    }

    #[test]
    fn words_carry_their_line() {
        assert_eq!(words("a::b_c\n(d)").collect::<Vec<_>>(), [(1, "a"), (1, "b_c"), (2, "d")]);
    }
}
