//! Runs a test in a process of its own, in which the loader finds the stand-in for libcuda and libnccl: it looks at
//! LD_LIBRARY_PATH as it was when the process started. With `TRAMONTANE_TEST_NCCL=gpu` there is no stand-in: the loader
//! finds the machine's own NCCL and GPU, and what only a stand-in can be told to do is left out (docs/OPERATIONS.md).
#![allow(dead_code, reason = "each test target uses its own part of it")]

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

/// Says to a process which test's body it is to run.
const INSIDE: &str = "TRAMONTANE_TEST_INSIDE";
/// The stand-in's own setting.
const FAULTS: &str = "NCCL_STANDIN";
/// Whose NCCL it is: the stand-in's where this is not set.
const WHOSE: &str = "TRAMONTANE_TEST_NCCL";

/// Which stand-in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    Whole,
    /// NCCL lacks one function.
    WithoutSend,
    /// There is NVIDIA's driver alone.
    WithoutNccl,
}

/// Runs `body` as the test `test` (its path in this program).
pub(crate) fn inside(test: &str, build: Build, faults: &str, body: impl FnOnce()) {
    inside_each(test, build, &[faults], body);
}

/// Runs `body` as the test `test`, in a process for each of `faults` (the stand-in's setting), all at once.
pub(crate) fn inside_each(test: &str, build: Build, faults: &[&str], body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some_and(|inside| inside == test) {
        return body();
    }
    if is_real() && (build != Build::Whole || faults != [""]) {
        eprintln!("LEFT OUT: {test} wants the stand-in");
        return;
    }
    let ours = (!is_real()).then(|| library(build).into_os_string());
    let paths: Vec<OsString> = ours.into_iter().chain(env::var_os("LD_LIBRARY_PATH")).collect();
    let run = |faults: &&str| {
        Command::new(env::current_exe().expect("this program"))
            .args(["--exact", test, "--nocapture", "--test-threads", "1"])
            .env(INSIDE, test)
            .env(FAULTS, faults)
            .env("LD_LIBRARY_PATH", paths.join(&OsString::from(":")))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this program runs again")
    };
    let running: Vec<Child> = faults.iter().map(run).collect();
    for (faults, child) in faults.iter().zip(running) {
        let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
        let said = [stdout, stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        assert!(status.success() && said.contains("1 passed"), "{test} {faults}: {status}\n{said}");
    }
}

/// Whether NCCL and the GPU are the machine's own.
fn is_real() -> bool {
    env::var_os(WHOSE).is_some_and(|whose| whose == "gpu")
}

/// The version that NCCL says it has, as far as it is known beforehand.
pub(crate) fn version() -> &'static str {
    if is_real() { "NCCL 2." } else { "NCCL 2.28.3" }
}

/// A folder with libcuda.so and libnccl.so; compiled once for each state of its source.
fn library(build: Build) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cluster/tests/nccl_standin");
    let mut hasher = DefaultHasher::new();
    for file in ["stand_in.rs", "comm.rs", "driver.rs", "nccl.rs"] {
        fs::read(source.join(file)).expect("the stand-in's source").hash(&mut hasher);
    }
    let name = match build {
        Build::Whole => "whole",
        Build::WithoutSend => "without-send",
        Build::WithoutNccl => "without-nccl",
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("nccl-stand-in-{name}-{:x}", hasher.finish()));
    if folder.is_dir() {
        return folder;
    }
    // Another program may be at it too: whoever is first gives it its name.
    let new = folder.with_extension(process::id().to_string());
    fs::create_dir_all(&new).expect("a folder");
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "--crate-type", "cdylib", "-O", "--cap-lints", "allow"]);
    if build == Build::WithoutSend {
        rustc.args(["--cfg", "without_send"]);
    }
    let compiled = rustc.arg("-o").arg(new.join("libcuda.so")).arg(source.join("stand_in.rs")).output();
    let compiled = compiled.expect("rustc runs");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    if build != Build::WithoutNccl {
        // One file of two names is loaded once.
        symlink("libcuda.so", new.join("libnccl.so")).expect("a link");
    }
    if fs::rename(&new, &folder).is_err() {
        assert!(folder.is_dir(), "{} cannot be made", folder.display());
        fs::remove_dir_all(&new).expect("our own folder");
    }
    folder
}
