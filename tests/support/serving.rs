//! A server: the binary, which serves on a port that the system chose.
#![allow(dead_code, reason = "each test target uses its own part of it")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::run::{Outcome, Running};

/// How long an answer may take before the test fails; many times what any should.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// How a server is started.
const SERVE: [&str; 4] = ["up", "--http", "127.0.0.1:0", "--json"];

/// A server that is ready; it is killed when this is dropped.
pub(crate) struct Serving {
    running: Running,
    addr: String,
    grpc: Option<String>,
    admin: Option<String>,
    metrics: Option<String>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Serving {
    /// Starts `tramontane up` with `args`, and waits until it is ready.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::ready(Running::start(&[&SERVE, args].concat()))
    }

    /// The same for a process that may have no more than `files` files open.
    pub(crate) fn start_with_files(files: u32, args: &[&str]) -> Self {
        Self::ready(Running::start_with_files(files, &[&SERVE, args].concat()))
    }

    /// The same for a process with these settings, which logs everything.
    pub(crate) fn start_logging_all(args: &[&str]) -> Self {
        Self::ready(Running::start_logging_all(&[&SERVE, args].concat()))
    }

    /// Starts `tramontane` with `args`, a role that serves, and waits until it is ready.
    pub(crate) fn start_role(args: &[&str]) -> Self {
        Self::ready(Running::start(args))
    }

    /// The same for a process that logs everything.
    pub(crate) fn start_role_logging_all(args: &[&str]) -> Self {
        Self::ready(Running::start_logging_all(args))
    }

    fn ready(mut running: Running) -> Self {
        let mut said = String::new();
        while !said.ends_with('\n') {
            running.until_it_says_more();
            said = running.said();
        }
        let ready: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
        let addr = ready["http"].as_str().expect("an address").to_owned();
        let [grpc, admin, metrics] = ["grpc", "admin", "metrics"].map(|what| ready[what].as_str().map(str::to_owned));
        Self { running, addr, grpc, admin, metrics }
    }

    pub(crate) fn addr(&self) -> &str {
        &self.addr
    }

    /// Where it serves gRPC, if it does.
    pub(crate) fn grpc(&self) -> Option<&str> {
        self.grpc.as_deref()
    }

    /// Where it answers operators; only a coordinator does.
    pub(crate) fn admin(&self) -> &str {
        self.admin.as_deref().expect("an address")
    }

    /// Where it shows metrics, if it does.
    pub(crate) fn metrics(&self) -> &str {
        self.metrics.as_deref().expect("an address")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// A connection.
    pub(crate) fn connect(&self) -> TcpStream {
        connect(&self.addr)
    }

    /// Sends `bytes` on a connection of their own, and reads what comes until it is closed. What cannot be written any more is left.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Reply {
        let mut stream = self.connect();
        _ = stream.write_all(bytes);
        read_reply(&mut stream)
    }

    /// Sends a request, of which `head` are further lines.
    pub(crate) fn send(&self, method: &str, path: &str, head: &[&str], body: &[u8]) -> Reply {
        let lines: String = head.iter().map(|line| format!("{line}\r\n")).collect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n{lines}\r\n",
            body.len()
        );
        self.raw(&[head.as_bytes(), body].concat())
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    /// Posts a body as JSON, whatever it is.
    pub(crate) fn post(&self, path: &str, body: &[u8]) -> Reply {
        self.send("POST", path, &["content-type: application/json"], body)
    }

    /// Posts `body`, which must be answered well, and returns the answer.
    pub(crate) fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body.to_string().as_bytes());
        assert_eq!(reply.status, 200, "{body}: {reply:?}");
        reply.json()
    }

    /// The JSON of each event of the answer to `body`, which is to be streamed; the last must be `[DONE]`.
    pub(crate) fn events(&self, path: &str, body: &Value) -> Vec<Value> {
        let reply = self.post(path, body.to_string().as_bytes());
        assert_eq!(reply.status, 200, "{body}: {reply:?}");
        reply.events()
    }

    /// How the engine fares.
    pub(crate) fn engine(&self) -> Value {
        self.get("/version").json()["engine"].clone()
    }

    /// Whether no sequence runs or waits, and none holds a KV block.
    pub(crate) fn is_idle(&self) -> bool {
        let engine = self.engine();
        ["running", "waiting", "kv_used"].iter().all(|count| engine[count] == 0)
    }

    /// Sends the process a signal.
    pub(crate) fn signal(&self, name: &str) {
        self.running.signal(name);
    }

    /// Whether the process has said `words` on stderr so far.
    pub(crate) fn has_complained(&mut self, words: &str) -> bool {
        self.running.has_complained(words)
    }

    /// Waits for the process to end.
    pub(crate) fn outcome(self) -> Outcome {
        self.running.outcome()
    }
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), Some("text/event-stream"), "{self:?}");
        let mut events: Vec<&str> = self.body.split("\n\n").filter(|event| !event.is_empty()).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{self:?}");
        let data = events.into_iter().filter_map(|event| event.strip_prefix("data: "));
        data.map(|data| serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"))).collect()
    }
}

/// A connection to `addr`.
pub(crate) fn connect(addr: &str) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("the server listens");
    stream.set_read_timeout(Some(WATCHDOG)).expect("a timeout can be set");
    stream.set_write_timeout(Some(WATCHDOG)).expect("a timeout can be set");
    stream
}

/// What `path` brings from the server at `addr`, on a connection of its own.
pub(crate) fn get(addr: &str, path: &str) -> Reply {
    let mut stream = connect(addr);
    _ = write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    read_reply(&mut stream)
}

/// Posts `body` to the server at `addr`, on a connection of its own.
pub(crate) fn post(addr: &str, path: &str, body: &Value) -> Reply {
    let body = body.to_string();
    let head = "host: test\r\nconnection: close\r\ncontent-type: application/json";
    let mut stream = connect(addr);
    _ = write!(stream, "POST {path} HTTP/1.1\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    read_reply(&mut stream)
}

/// Reads a reply whose connection is closed after it; status 0 when nothing came.
pub(crate) fn read_reply(stream: &mut impl Read) -> Reply {
    let mut bytes = Vec::new();
    // A connection that is reset after its reply has brought it.
    match stream.read_to_end(&mut bytes) {
        Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
            panic!("after {WATCHDOG:?} the connection is still open: {}", String::from_utf8_lossy(&bytes))
        }
        _ => {}
    }
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
    let headers: Vec<(String, String)> =
        lines.filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned())).collect();
    let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = if chunked { unchunked(body) } else { body.to_owned() };
    Reply { status, headers, body }
}

/// The bytes of a chunked body (in UTF-8, and whole).
fn unchunked(mut body: &str) -> String {
    let mut whole = Vec::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else { break };
        let Some(chunk) = rest.as_bytes().get(..size) else { break };
        whole.extend_from_slice(chunk);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    String::from_utf8_lossy(&whole).into_owned()
}
