//! One tool call's JSON object, letter by letter: `{"name": …, "arguments": …}`. What stands in the arguments is passed on as it comes.
//! Pure, and no deeper in the stack for deep JSON.

/// What a letter brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The name is complete.
    Name(String),
    /// More of the arguments' JSON text.
    Arguments(String),
    /// The object is complete.
    Closed,
}

/// Where in the object the next letter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before a key, or the end.
    Key,
    /// In a key.
    InKey,
    /// Before a value, its colon perhaps still to come.
    Value,
    /// In a value: a text, an object or list, or a word or number.
    InText,
    InNested,
    InWord,
}

/// What a key is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    Other,
}

/// Reads one object; its opening brace has been taken.
#[derive(Clone, Debug)]
pub(super) struct CallObject {
    at: At,
    key: Key,
    /// The key or the value of `name` (or a text as arguments), in JSON's spelling.
    text: String,
    depth: usize,
    /// Inside a text within a nested value.
    quoted: bool,
    escaped: bool,
}

impl CallObject {
    /// After the opening brace.
    pub(super) fn new() -> Self {
        Self { at: At::Key, key: Key::Other, text: String::new(), depth: 0, quoted: false, escaped: false }
    }

    /// Before an object that is the arguments; it is the only thing to come, and ends with [`CallObject::at_end_of_value`].
    pub(super) fn arguments() -> Self {
        Self { at: At::Value, key: Key::Arguments, ..Self::new() }
    }

    /// Whether the letter before ended a value.
    pub(super) fn at_end_of_value(&self) -> bool {
        self.at == At::Key
    }

    /// Takes the next letter.
    pub(super) fn take(&mut self, letter: char) -> Vec<Found> {
        match self.at {
            At::Key => match letter {
                '"' => self.begin(At::InKey, letter),
                '}' => return vec![Found::Closed],
                _ => {}
            },
            At::InKey => {
                self.text.push(letter);
                if self.closes_text(letter) {
                    self.key = match unquoted(&self.text).as_str() {
                        "name" => Key::Name,
                        "arguments" | "parameters" => Key::Arguments,
                        _ => Key::Other,
                    };
                    self.at = At::Value;
                }
            }
            At::Value => return self.begin_value(letter),
            At::InText => {
                self.text.push(letter);
                if self.closes_text(letter) {
                    self.at = At::Key;
                    return self.whole_text();
                }
            }
            At::InNested => return self.nested(letter),
            At::InWord => return self.word(letter),
        }
        Vec::new()
    }

    fn begin(&mut self, at: At, letter: char) {
        (self.at, self.escaped) = (at, false);
        self.text = letter.to_string();
    }

    fn begin_value(&mut self, letter: char) -> Vec<Found> {
        match letter {
            ':' => return Vec::new(),
            space if space.is_whitespace() => return Vec::new(),
            '"' => self.begin(At::InText, letter),
            '{' | '[' => {
                (self.at, self.depth, self.quoted, self.escaped) = (At::InNested, 1, false, false);
                return self.pass(letter);
            }
            _ => {
                self.at = At::InWord;
                return self.word(letter);
            }
        }
        Vec::new()
    }

    fn nested(&mut self, letter: char) -> Vec<Found> {
        if self.quoted {
            self.quoted = !self.closes_text(letter);
        } else {
            match letter {
                '"' => (self.quoted, self.escaped) = (true, false),
                '{' | '[' => self.depth += 1,
                '}' | ']' => self.depth -= 1,
                _ => {}
            }
            if self.depth == 0 {
                self.at = At::Key;
            }
        }
        self.pass(letter)
    }

    fn word(&mut self, letter: char) -> Vec<Found> {
        match letter {
            ',' => {
                self.at = At::Key;
                Vec::new()
            }
            '}' => vec![Found::Closed],
            space if space.is_whitespace() => Vec::new(),
            letter => self.pass(letter),
        }
    }

    /// A letter of a value that is not a text.
    fn pass(&self, letter: char) -> Vec<Found> {
        if self.key == Key::Arguments { vec![Found::Arguments(letter.to_string())] } else { Vec::new() }
    }

    /// A text is complete. As arguments it is JSON in JSON.
    fn whole_text(&mut self) -> Vec<Found> {
        let text = unquoted(&std::mem::take(&mut self.text));
        match self.key {
            Key::Name => vec![Found::Name(text)],
            Key::Arguments => vec![Found::Arguments(text)],
            Key::Other => Vec::new(),
        }
    }

    /// Whether `letter` closes the text that it stands in.
    fn closes_text(&mut self, letter: char) -> bool {
        let closes = letter == '"' && !self.escaped;
        self.escaped = letter == '\\' && !self.escaped;
        closes
    }
}

/// The text that a JSON text means; as it stands where it is not valid.
fn unquoted(json: &str) -> String {
    serde_json::from_str(json).unwrap_or_else(|_| json.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, arguments, and what is left after the object.
    fn read(json: &str) -> (Option<String>, String, Option<String>) {
        let (mut object, mut name, mut arguments) = (CallObject::new(), None, String::new());
        for (at, letter) in json.char_indices().skip(1) {
            for found in object.take(letter) {
                match found {
                    Found::Name(found) => name = Some(found),
                    Found::Arguments(found) => arguments.push_str(&found),
                    Found::Closed => return (name, arguments, Some(json[at + 1..].to_owned())),
                }
            }
        }
        (name, arguments, None)
    }

    #[test]
    fn name_and_arguments_are_found_in_any_order_and_spacing() {
        for json in [
            r#"{"name":"f","arguments":{"a":[1,"}"]}} rest"#,
            r#"{"arguments":{"a":[1,"}"]}, "id":"x\"}", "name" : "f" } rest"#,
            r#"{ "name":"f", "x":{"name":"g","arguments":1}, "parameters": {"a":[1,"}"]} , "y": null} rest"#,
            r#"{"name":"f","arguments":"{\"a\":[1,\"}\"]}"} rest"#,
        ] {
            assert_eq!(
                read(json),
                (Some("f".to_owned()), r#"{"a":[1,"}"]}"#.to_owned(), Some(" rest".to_owned())),
                "{json}"
            );
        }
        assert_eq!(
            read(r#"{"name":"f","arguments":null}"#),
            (Some("f".to_owned()), "null".to_owned(), Some(String::new()))
        );
    }

    #[test]
    fn what_is_cut_off_gives_what_there_is() {
        assert_eq!(read(r#"{"name":"f","arguments":{"a":"x"#), (Some("f".to_owned()), r#"{"a":"x"#.to_owned(), None));
        assert_eq!(read(r#"{"na"#), (None, String::new(), None));
    }

    #[test]
    fn escapes_do_not_end_a_text() {
        assert_eq!(
            read(r#"{"name":"a\\","arguments":{"k":"\\\""}}"#),
            (Some("a\\".to_owned()), r#"{"k":"\\\""}"#.to_owned(), Some(String::new()))
        );
    }
}
