//! Finds tool calls in a model's text as it comes, and lets everything else through as content. Pure.
//!
//! Formats: Mistral's `[TOOL_CALLS] [{"name": …, "arguments": …}]` and `[TOOL_CALLS]name[ARGS]{…}`; Hermes' and Qwen's
//! `<tool_call>{…}</tool_call>`; a bare `{"name": …, "parameters": …}` (Llama 3's), or a list of such, as the whole answer. What
//! only looks like a call, since no tool has that name, is content.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::call::{CallObject, Found};
use crate::frontdoor::random::alphanumeric;

/// What opens Mistral's calls.
const MISTRAL: &str = "[TOOL_CALLS]";
/// What stands between a name and its arguments there.
const ARGS: &str = "[ARGS]";
/// What opens and closes Hermes' calls.
const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
/// Letters of a call's id: what Mistral's templates want.
const ID_LETTERS: usize = 9;

/// A part of an answer that may hold calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolPiece {
    /// Text beside the calls.
    Content(String),
    /// A call begins.
    Begin {
        /// Its number.
        index: usize,
        /// Its id.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments, JSON text.
    Arguments {
        /// The call's number.
        index: usize,
        /// The text.
        text: String,
    },
}

/// What the answer is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Text, calls, or both.
    Anything,
    /// A list of calls and nothing else: the answer is constrained to it.
    Calls,
}

/// Reads one answer.
#[derive(Clone, Debug)]
pub struct ToolParser {
    names: Arc<BTreeSet<String>>,
    /// The control tokens that open calls.
    marks: Vec<u32>,
    state: State,
    /// Taken, and not known yet to be content or a call.
    held: String,
    /// Whether only whitespace has come.
    blank: bool,
    calls: usize,
}

#[derive(Clone, Debug)]
enum State {
    /// In text.
    Content,
    /// Before, between and after calls.
    Between,
    /// In a name that is followed by arguments.
    Name(String),
    /// In a call's object.
    Call { object: CallObject, kind: Kind, call: Call },
}

/// How a call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// With its object.
    Object,
    /// With its arguments.
    ArgumentsOnly,
}

/// What is known of a call.
#[derive(Clone, Debug, Default)]
struct Call {
    begun: bool,
    /// Arguments that came before the name.
    early: String,
    any_arguments: bool,
}

impl ToolParser {
    /// For an answer that may call the tools of these `names`; `marks` are the control tokens that open calls.
    pub(crate) fn new(names: BTreeSet<String>, marks: Vec<u32>, expect: Expect) -> Self {
        let state = if expect == Expect::Calls { State::Between } else { State::Content };
        Self { names: Arc::new(names), marks, state, held: String::new(), blank: true, calls: 0 }
    }

    /// Whether a control token opens calls, so that its text is wanted.
    pub(crate) fn is_mark(&self, id: u32) -> bool {
        self.marks.contains(&id)
    }

    /// The texts of the control tokens that may open calls.
    pub(crate) const MARKS: [&str; 3] = [MISTRAL, OPEN, CLOSE];

    /// Whether a call has begun.
    pub(crate) fn has_called(&self) -> bool {
        self.calls > 0
    }

    /// Takes the next text.
    pub(crate) fn push(&mut self, text: &str) -> Vec<ToolPiece> {
        let mut pieces = Pieces::default();
        for letter in text.chars() {
            self.take(letter, &mut pieces);
        }
        pieces.0
    }

    /// The answer has ended: what was held back is content.
    pub(crate) fn finish(&mut self) -> Vec<ToolPiece> {
        let mut pieces = Pieces::default();
        match &mut self.state {
            State::Call { call, .. } if call.begun => {}
            State::Between if self.calls > 0 => self.held.clear(),
            _ => pieces.content(&std::mem::take(&mut self.held)),
        }
        pieces.0
    }

    fn take(&mut self, letter: char, pieces: &mut Pieces) {
        self.held.push(letter);
        match std::mem::replace(&mut self.state, State::Content) {
            State::Content => self.in_content(letter, pieces),
            State::Between => self.between(letter, pieces),
            State::Name(name) => self.in_name(name, letter, pieces),
            State::Call { object, kind, call } => self.in_call(object, kind, call, letter, pieces),
        }
    }

    fn in_content(&mut self, letter: char, pieces: &mut Pieces) {
        let opened = [MISTRAL, OPEN].into_iter().find(|mark| self.held.ends_with(mark));
        if let Some(mark) = opened {
            let content = self.held.len() - mark.len();
            pieces.content(&self.held[..content]);
            self.held.drain(..content);
            self.state = State::Between;
        } else if self.blank && matches!(letter, '{' | '[') && !MISTRAL.starts_with(self.held.trim_start()) {
            self.between(letter, pieces);
        } else if self.blank && self.held.trim_start() == "[{" {
            // The bracket could have been the mark's.
            self.between(letter, pieces);
        } else {
            let keep = [MISTRAL, OPEN].iter().map(|mark| overlap(&self.held, mark)).max().unwrap_or(0);
            let keep = if self.blank && self.held.trim_start().is_empty() { self.held.len() } else { keep };
            let content = self.held.len() - keep;
            self.blank &= self.held[..content].trim_start().is_empty();
            pieces.content(&self.held[..content]);
            self.held.drain(..content);
        }
    }

    fn between(&mut self, letter: char, pieces: &mut Pieces) {
        let gap = self.held.trim();
        let gap = gap.strip_prefix(MISTRAL).or_else(|| gap.strip_prefix(OPEN)).unwrap_or(gap).trim_start();
        if letter == '{' {
            self.state = State::Call { object: CallObject::new(), kind: Kind::Object, call: Call::default() };
        } else if matches!(letter, '[' | ']' | ',') || letter.is_whitespace() || is_mark_begun(gap) {
            self.state = State::Between;
        } else if letter.is_alphanumeric() || letter == '_' {
            self.state = State::Name(letter.to_string());
        } else {
            self.give_up(pieces);
        }
    }

    fn in_name(&mut self, mut name: String, letter: char, pieces: &mut Pieces) {
        let known = |name: &str| self.names.contains(name.strip_suffix(ARGS).unwrap_or(name).trim_end());
        match letter {
            '{' if known(&name) => {
                let name = name.strip_suffix(ARGS).unwrap_or(&name).trim_end().to_owned();
                let (mut object, mut call) = (CallObject::arguments(), Call::default());
                self.begin(&mut call, name, pieces);
                for found in object.take(letter) {
                    self.found(&mut call, found, pieces);
                }
                self.state = State::Call { object, kind: Kind::ArgumentsOnly, call };
            }
            '{' | '\n' => self.give_up(pieces),
            letter => {
                name.push(letter);
                self.state = State::Name(name);
            }
        }
    }

    fn in_call(&mut self, mut object: CallObject, kind: Kind, mut call: Call, letter: char, pieces: &mut Pieces) {
        let mut closed = false;
        for found in object.take(letter) {
            match found {
                Found::Closed => closed = true,
                Found::Name(name) if !call.begun && !self.names.contains(&name) => return self.give_up(pieces),
                found => self.found(&mut call, found, pieces),
            }
        }
        closed |= kind == Kind::ArgumentsOnly && object.at_end_of_value();
        if !closed {
            self.state = State::Call { object, kind, call };
        } else if call.begun {
            if !call.any_arguments {
                pieces.arguments(self.calls - 1, "{}");
            }
            self.held.clear();
            self.state = State::Between;
        } else {
            self.give_up(pieces);
        }
    }

    fn found(&mut self, call: &mut Call, found: Found, pieces: &mut Pieces) {
        match found {
            Found::Name(name) if !call.begun => self.begin(call, name, pieces),
            Found::Arguments(text) if !call.begun => call.early.push_str(&text),
            Found::Arguments(text) => {
                self.held.clear();
                call.any_arguments = true;
                pieces.arguments(self.calls - 1, &text);
            }
            Found::Name(_) | Found::Closed => {}
        }
    }

    fn begin(&mut self, call: &mut Call, name: String, pieces: &mut Pieces) {
        self.held.clear();
        (self.blank, call.begun) = (false, true);
        pieces.0.push(ToolPiece::Begin { index: self.calls, id: alphanumeric(ID_LETTERS), name });
        self.calls += 1;
        let early = std::mem::take(&mut call.early);
        if !early.is_empty() {
            call.any_arguments = true;
            pieces.arguments(self.calls - 1, &early);
        }
    }

    /// It was no call: what is held is content.
    fn give_up(&mut self, pieces: &mut Pieces) {
        pieces.content(&std::mem::take(&mut self.held));
        (self.blank, self.state) = (false, State::Content);
    }
}

/// Whether `gap`, what stands between two calls, ends in a mark or the beginning of one.
fn is_mark_begun(gap: &str) -> bool {
    if let Some(at) = gap.rfind("[T") {
        return MISTRAL.starts_with(&gap[at..]);
    }
    let gap = gap.trim_start_matches(|c: char| matches!(c, '[' | ']' | ',') || c.is_whitespace());
    let (closed, gap) = gap.strip_prefix(CLOSE).map_or((false, gap), |rest| (true, rest.trim_start()));
    (closed && gap.is_empty()) || gap.starts_with('<') && [OPEN, CLOSE].iter().any(|mark| mark.starts_with(gap))
}

/// Bytes of the longest end of `text` with which `mark` (ASCII) begins.
fn overlap(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|&length| text.ends_with(&mark[..length])).unwrap_or(0)
}

/// Pieces, neighbours of one kind joined.
#[derive(Default)]
struct Pieces(Vec<ToolPiece>);

impl Pieces {
    fn content(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(ToolPiece::Content(last)) => last.push_str(text),
            _ => self.0.push(ToolPiece::Content(text.to_owned())),
        }
    }

    fn arguments(&mut self, index: usize, text: &str) {
        match self.0.last_mut() {
            Some(ToolPiece::Arguments { index: last, text: said }) if *last == index => said.push_str(text),
            _ => self.0.push(ToolPiece::Arguments { index, text: text.to_owned() }),
        }
    }
}
