//! Server-sent events out of bytes, however they are cut: the WHATWG's format, of which the API uses `data` and comments. Pure.

use std::collections::VecDeque;

/// Longest line, in bytes: a chunk with the log-probabilities of a long prompt.
const MAX_LINE: usize = 64 << 20;

/// Events whose bytes are coming.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// A line that has not ended.
    line: Vec<u8>,
    /// The data of an event that has not ended.
    data: Option<String>,
    whole: VecDeque<String>,
}

impl Events {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// A line is too long, or no text.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            if self.line.len() + piece.len() > MAX_LINE {
                return Err("a line is too long");
            }
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.line_ended(
                    std::str::from_utf8(&line).map_err(|_| "it is not UTF-8")?.trim_end_matches(['\r', '\n']),
                );
            }
        }
        Ok(())
    }

    fn line_ended(&mut self, line: &str) {
        if line.is_empty() {
            self.whole.extend(self.data.take());
        } else if let Some(data) = line.strip_prefix("data:") {
            let data = data.strip_prefix(' ').unwrap_or(data);
            match &mut self.data {
                None => self.data = Some(data.to_owned()),
                Some(before) => {
                    before.push('\n');
                    before.push_str(data);
                }
            }
        }
    }

    /// The data of the next event that is whole.
    pub(super) fn next(&mut self) -> Option<String> {
        self.whole.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str =
        ": ping\n\ndata: {\"a\": \"é\"}\n\nevent: x\r\ndata:b\r\ndata:  c\r\n\r\n: ping\n\ndata: [DONE]\n\n";

    #[test]
    fn events_are_the_same_however_they_are_cut() {
        for size in 1..=STREAM.len() {
            let mut events = Events::default();
            for piece in STREAM.as_bytes().chunks(size) {
                events.push(piece).expect("events");
            }
            let all: Vec<String> = std::iter::from_fn(|| events.next()).collect();
            assert_eq!(all, ["{\"a\": \"é\"}", "b\n c", "[DONE]"], "in pieces of {size}");
        }
    }

    #[test]
    fn what_has_not_ended_is_no_event_and_lines_have_a_bound() {
        let mut events = Events::default();
        events.push(b"data: half").expect("a piece");
        assert_eq!(events.next(), None);
        assert!(events.push(&vec![b'x'; MAX_LINE]).is_err());
        assert!(Events::default().push(b"data: \xff\n").is_err());
    }
}
