//! The binary on a terminal.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::run::PROGRAM;
use crate::serving::WATCHDOG;

/// The terminal's size.
const ROWS: usize = 30;
const COLUMNS: usize = 120;

/// A program on a terminal of its own, which `script` makes.
pub(crate) struct Terminal {
    child: Child,
    pieces: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    pub(crate) fn start(args: &[&str]) -> Self {
        let quoted: Vec<String> = [PROGRAM].iter().chain(args).map(|arg| format!("'{arg}'")).collect();
        // Without `exec`, a shell that waits for it would take the interrupts as its own, and some would end by them.
        let command = format!("stty rows {ROWS} cols {COLUMNS}; exec {}", quoted.join(" "));
        let mut child = Command::new("script")
            .args(["--quiet", "--flush", "--return", "--command", &command, "/dev/null"])
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script starts");
        let mut stdout = child.stdout.take().expect("stdout is piped");
        let (sender, pieces) = channel();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut piece) {
                if sender.send(piece[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, pieces, seen: String::new() }
    }

    pub(crate) fn types(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("the terminal reads");
    }

    /// Waits until it has shown, since it was last asked, what `is_there` wants; all of it.
    pub(crate) fn shows(&mut self, what: &str, is_there: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + WATCHDOG;
        while !is_there(&self.seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(left) {
                // A terminal ends lines with both.
                Ok(piece) => self.seen.push_str(&String::from_utf8_lossy(&piece).replace('\r', "")),
                Err(_) => panic!("never {what}: {}", self.seen),
            }
        }
        std::mem::take(&mut self.seen)
    }

    pub(crate) fn ends(mut self) -> Option<i32> {
        let deadline = Instant::now() + WATCHDOG;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it has not ended");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
