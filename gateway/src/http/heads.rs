//! Request heads that two readers could understand differently, found before they are parsed. Pure.
//!
//! hyper takes a head with both `content-length` and `transfer-encoding` by the latter, and lines that end without CR as lines (RFC
//! 9112, 2.2 and 6.3, allows both). A proxy in front that decides otherwise would let a second request pass inside the first. So such
//! heads are refused. To know where the next head begins, bodies are counted by `content-length`; after one with
//! `transfer-encoding` the connection is closed, so there is none.

/// Longest beginning of a line that is looked at, in bytes: longer names and values are none of ours.
const MAX_LINE: usize = 256;
/// What HTTP/2 begins with, and how many bytes belong to it behind that line (RFC 9113, 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0";
const HTTP2_REST: usize = 8;

/// Follows the bytes of a connection.
#[derive(Debug, Default)]
pub(super) struct Heads {
    at: At,
    line: Line,
    lengths: usize,
    length: u64,
    codings: usize,
}

/// What the next byte belongs to.
#[derive(Debug, Default)]
enum At {
    /// The first line of a head.
    #[default]
    Start,
    /// A line after it.
    Fields,
    /// A body of which so much is to come.
    Body(u64),
    /// What HTTP/2 begins with, of which so much is to come.
    Preface(usize),
    /// Frames of HTTP/2.
    Frames,
    /// Nothing that could be misunderstood.
    Rest,
}

#[derive(Debug, Default)]
struct Line {
    begin: Vec<u8>,
    length: usize,
    last: u8,
}

impl Heads {
    /// Takes the next bytes; the first ambiguity in them.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Option<&'static str> {
        while let Some((&byte, rest)) = bytes.split_first() {
            match &mut self.at {
                At::Rest | At::Frames => return None,
                At::Preface(left) => {
                    *left -= 1;
                    if *left == 0 {
                        self.at = At::Frames;
                    }
                    bytes = rest;
                    continue;
                }
                At::Body(left) => {
                    let skipped = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= skipped as u64;
                    bytes = &bytes[skipped..];
                    if *left == 0 {
                        self.at = At::Start;
                    }
                    continue;
                }
                At::Start | At::Fields => {}
            }
            bytes = rest;
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            if let Some(why) = self.line_ended() {
                self.at = At::Rest;
                return Some(why);
            }
        }
        None
    }

    /// Whether HTTP/2 is spoken: all that it begins with has come.
    pub(super) fn is_http2(&self) -> bool {
        matches!(self.at, At::Frames)
    }

    fn line_ended(&mut self) -> Option<&'static str> {
        let line = std::mem::take(&mut self.line);
        if line.last != b'\r' {
            return Some("a line ends without CR");
        }
        let text = line.begin.strip_suffix(b"\r").unwrap_or(&line.begin);
        match self.at {
            // Empty lines before a request are left out, as hyper does.
            At::Start if line.length == 1 => {}
            At::Start if text == HTTP2 => self.at = At::Preface(HTTP2_REST),
            At::Start => self.at = At::Fields,
            _ if line.length == 1 => return self.head_ended(),
            _ => return self.field(text),
        }
        None
    }

    fn field(&mut self, text: &[u8]) -> Option<&'static str> {
        let colon = text.iter().position(|&byte| byte == b':')?;
        let (name, value) = (&text[..colon], text[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.codings += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            match digits.and_then(|digits| digits.parse().ok()) {
                Some(length) => self.length = length,
                None => return Some("`content-length` is not a number"),
            }
        }
        None
    }

    fn head_ended(&mut self) -> Option<&'static str> {
        let Self { lengths, length, codings, .. } = std::mem::take(self);
        match (lengths, codings) {
            (1.., 1..) => return Some("it has both `content-length` and `transfer-encoding`"),
            (2.., _) => return Some("it has `content-length` more than once"),
            (_, 2..) => return Some("it has `transfer-encoding` more than once"),
            (0, 1) => self.at = At::Rest,
            (1, 0) if length > 0 => self.at = At::Body(length),
            _ => {}
        }
        None
    }
}

impl Line {
    fn push(&mut self, byte: u8) {
        if self.begin.len() < MAX_LINE {
            self.begin.push(byte);
        }
        (self.length, self.last) = (self.length + 1, byte);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Option<&'static str> {
        let by_one = bytes.iter().fold((Heads::default(), None), |(mut heads, found), byte| {
            let found = found.or_else(|| heads.take(std::slice::from_ref(byte)));
            (heads, found)
        });
        assert_eq!(Heads::default().take(bytes), by_one.1, "{}", String::from_utf8_lossy(bytes));
        by_one.1
    }

    #[test]
    fn ordinary_heads_pass() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nPOST / HTTP/1.1\r\nContent-Length: 5\r\n\r\na\nb\ncGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\nabcde\r\n0\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\n\n\n",
            "GET / HTTP/1.1\r\nX: Content-Length: 5\r\nContent-Length: 0\r\n\r\n",
        ] {
            assert_eq!(read(head.as_bytes()), None, "{head}");
        }
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(10_000));
        assert_eq!(read(long.as_bytes()), None);
    }

    #[test]
    fn http2_is_known_by_its_whole_preface() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        for (bytes, known) in [(&preface[..], true), (&preface[..23], false), (b"GET / HTTP/1.1\r\n\r\n", false)] {
            let mut heads = Heads::default();
            heads.take(bytes);
            assert_eq!(heads.is_http2(), known, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn ambiguous_heads_are_found() {
        for head in [
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nabGET / HTTP/1.1\n\n",
        ] {
            assert!(read(head.as_bytes()).is_some(), "{head}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(prop::sample::select(b"\r\n: 0aPG".to_vec()), 0..64)) {
            read(&bytes);
        }
    }
}
