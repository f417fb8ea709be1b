//! The programs that `tests/deploy/install` fetches into the target folder, and how they are run.
#![allow(dead_code, reason = "each test target uses its own part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder of tools.
pub(crate) fn tools() -> PathBuf {
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../deploy");
    assert!(
        tools.join("installed.txt").exists(),
        "run ./test, or see the top of tests/deploy.rs: no {}",
        tools.display()
    );
    tools
}

/// A file of the repository.
pub(crate) fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Runs `command`, which has to succeed: what it says on stdout.
pub(crate) fn succeeds(command: &mut Command) -> String {
    let ended = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "{command:?}: {stdout}{stderr}");
    stdout.into_owned()
}

/// Python, with what the manifests' tests need.
pub(crate) fn python() -> Command {
    let mut command = Command::new(tools().join("venv/bin/python"));
    // Nothing is left beside the sources.
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}
