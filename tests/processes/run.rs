//! Runs the binary under a watchdog: to its end, or step by step.
#![allow(dead_code, reason = "each test target uses its own part of it")]

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The binary.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_tramontane");
/// How long a process may take before the test fails; many times what any should.
const WATCHDOG: Duration = Duration::from_secs(120);
/// How often a condition outside our processes' pipes is looked at.
const POLL: Duration = Duration::from_millis(5);
/// Bytes taken from a pipe at a time.
const PIECE: usize = 4096;

/// What a process left.
pub(crate) struct Outcome {
    /// Its exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    /// Its own and its children's.
    pub(crate) stderr: String,
}

/// A process that runs; it is killed when this is dropped.
pub(crate) struct Running {
    what: String,
    child: Child,
    stdout: Pipe,
    stderr: Pipe,
    deadline: Instant,
}

/// Runs `tramontane` with `args` to its end.
pub(crate) fn run(args: &[&str]) -> Outcome {
    Running::start(args).outcome()
}

/// Runs `tramontane` with `args` and `input` on stdin to its end.
pub(crate) fn run_with_input(args: &[&str], input: &str) -> Outcome {
    let mut running = Running::spawn_reading(Command::new(PROGRAM), args, WATCHDOG, Stdio::piped());
    let mut stdin = running.child.stdin.take().expect("stdin is piped");
    // One that has ended before it read everything says so by its exit code.
    _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    running.outcome()
}

/// Runs `tramontane` with `args` where no file may become larger than `blocks` times 512 bytes (in some shells, 1024).
pub(crate) fn run_with_small_files(blocks: u32, args: &[&str]) -> Outcome {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -f \"$0\" && exec \"$@\"", &blocks.to_string(), PROGRAM]);
    Running::spawn(shell, args, WATCHDOG).outcome()
}

/// Runs `tramontane up --json` with `args`, which must go well and quietly, and returns its stdout.
pub(crate) fn json_text(args: &[&str]) -> String {
    let Outcome { code, stdout, stderr } = run(&[&["up", "--json"], args].concat());
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}: {stdout}");
    stdout
}

/// The object that [`json_text`] has.
pub(crate) fn json(args: &[&str]) -> Value {
    let text = json_text(args);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
}

/// Waits until `condition` holds.
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_in_time(condition), "after {WATCHDOG:?} still not: {what}");
}

/// Waits until `condition` holds; false when it does not before the test should fail.
pub(crate) fn holds_in_time(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + WATCHDOG;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL);
    }
    true
}

impl Running {
    /// Starts `tramontane` with `args`, and without settings of the environment.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_within(WATCHDOG, args)
    }

    /// The same, of what may take as long as `limit`.
    pub(crate) fn start_within(limit: Duration, args: &[&str]) -> Self {
        Self::spawn(Command::new(PROGRAM), args, limit)
    }

    /// The same for a process in a network namespace, whose process is that very one.
    pub(crate) fn start_within_namespace(namespace: &str, args: &[&str]) -> Self {
        let mut ip = Command::new("ip");
        ip.args(["netns", "exec", namespace, PROGRAM]);
        Self::spawn(ip, args, WATCHDOG)
    }

    /// The same for a process that may have no more than `files` files open.
    pub(crate) fn start_with_files(files: u32, args: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &files.to_string(), PROGRAM]);
        Self::spawn(shell, args, WATCHDOG)
    }

    /// The same with `settings` for `env`: `NAME=VALUE`, or `-u` and a name.
    pub(crate) fn start_in(settings: &[&str], args: &[&str]) -> Self {
        let mut env = Command::new("env");
        env.args(settings).arg(PROGRAM);
        Self::spawn(env, args, WATCHDOG)
    }

    /// The same for a process that logs all that it and its libraries have to say.
    pub(crate) fn start_logging_all(args: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", "RUST_LOG=trace exec \"$0\" \"$@\"", PROGRAM]);
        Self::spawn(shell, args, WATCHDOG)
    }

    /// Starts `command`, which becomes `tramontane`, with `args`.
    fn spawn(command: Command, args: &[&str], limit: Duration) -> Self {
        Self::spawn_reading(command, args, limit, Stdio::null())
    }

    fn spawn_reading(mut command: Command, args: &[&str], limit: Duration, stdin: Stdio) -> Self {
        let settings = std::env::vars_os().map(|(name, _)| name);
        settings
            .filter(|name| {
                ["TRAMONTANE_", "OTEL_", "RUST_LOG"].iter().any(|known| name.to_string_lossy().starts_with(known))
            })
            .for_each(|name| _ = command.env_remove(name));
        command.args(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let stdout = Pipe::read(child.stdout.take().expect("stdout is piped"));
        let stderr = Pipe::read(child.stderr.take().expect("stderr is piped"));
        let what = format!("tramontane {args:?}");
        Self { what, child, stdout, stderr, deadline: Instant::now() + limit }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Waits until stdout has more bytes than were seen before.
    pub(crate) fn until_it_says_more(&mut self) {
        if self.stdout.next(self.deadline) != Next::Piece {
            let stderr = String::from_utf8_lossy(&self.stderr.seen);
            panic!("{}: nothing more came on stdout; stderr: {stderr}", self.what);
        }
    }

    /// Whether it has said `words` on stderr so far.
    pub(crate) fn has_complained(&mut self, words: &str) -> bool {
        self.stderr.take_what_is_there();
        String::from_utf8_lossy(&self.stderr.seen).contains(words)
    }

    /// What was seen of its stdout.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&self.stdout.seen).into_owned()
    }

    /// Closes the reading end of its stdout.
    pub(crate) fn stop_reading(&mut self) {
        self.stdout.close();
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "SIG{name} could not be sent");
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("our child can be killed");
    }

    /// Waits for its end, and for that of every process that shares its pipes.
    pub(crate) fn outcome(mut self) -> Outcome {
        let ended = self.stdout.drain(self.deadline) && self.stderr.drain(self.deadline);
        let text = |pipe: &Pipe| String::from_utf8_lossy(&pipe.seen).into_owned();
        let (stdout, stderr) = (text(&self.stdout), text(&self.stderr));
        assert!(ended, "{} has not ended in time; stdout: {stdout}; stderr: {stderr}", self.what);
        until(&format!("{} has ended", self.what), || !self.is_running());
        let status = self.child.wait().expect("an ended child can be waited for");
        Outcome { code: status.code(), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// The reading end of a pipe, which a thread empties, so that its writer never waits for the test.
struct Pipe {
    pieces: Option<Receiver<Vec<u8>>>,
    seen: Vec<u8>,
}

/// What came of waiting on a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Piece,
    End,
    Late,
}

impl Pipe {
    fn read(mut from: impl Read + Send + 'static) -> Self {
        // Bounded by what one run prints: its tokens fit the model's context.
        let (pieces, received) = channel();
        thread::spawn(move || {
            let mut piece = [0; PIECE];
            while let Ok(length @ 1..) = from.read(&mut piece) {
                if pieces.send(piece[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { pieces: Some(received), seen: Vec::new() }
    }

    fn next(&mut self, deadline: Instant) -> Next {
        let Some(pieces) = &self.pieces else { return Next::End };
        match pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(piece) => {
                self.seen.extend(piece);
                Next::Piece
            }
            Err(RecvTimeoutError::Disconnected) => Next::End,
            Err(RecvTimeoutError::Timeout) => Next::Late,
        }
    }

    fn take_what_is_there(&mut self) {
        let pieces = self.pieces.iter().flat_map(|pieces| pieces.try_iter());
        self.seen.extend(pieces.flatten());
    }

    /// Reads to the end; whether it came before `deadline`.
    fn drain(&mut self, deadline: Instant) -> bool {
        loop {
            match self.next(deadline) {
                Next::Piece => {}
                Next::End => return true,
                Next::Late => return false,
            }
        }
    }

    /// The thread closes the pipe when it finds that nobody takes its next piece.
    fn close(&mut self) {
        self.pieces = None;
    }
}

/// Names in `folder`, in order.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
