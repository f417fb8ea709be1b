//! Each fault in a process of its own: the test's program, started again to run one of the tests below with [`CHILD`] set.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use super::super::map::FileBytes;
use super::*;

/// Names the file that a child maps.
const CHILD: &str = "BUS_ERROR_TEST_FILE";
const BYTES: u64 = 3 << 20;

/// Runs `test` of this module again, as a child that is told of a file of [`BYTES`] bytes; returns how it ended and the file.
fn start_again(test: &str) -> (Output, PathBuf, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.bin");
    File::create(&path).unwrap().set_len(BYTES).unwrap();
    let program = std::env::current_exe().unwrap();
    let name = format!("checkpoint::bus_error::tests::{test}");
    let ended = Command::new(program).args(["--exact", &name, "--nocapture"]).env(CHILD, &path).output().unwrap();
    (ended, path, folder)
}

fn told() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// Maps `path`, and then has it lose all but its first page.
fn map_and_truncate(path: &Path) -> FileBytes {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let bytes = FileBytes::map(&file, path).unwrap();
    assert_eq!(bytes.len() as u64, BYTES);
    file.set_len(1).unwrap();
    bytes
}

#[test]
fn a_truncated_file_ends_the_process_with_its_name() {
    if let Some(path) = told() {
        let bytes = map_and_truncate(&path);
        assert_eq!(bytes[0], 0, "what is left is read");
        panic!("read {} past the end", std::hint::black_box(bytes[bytes.len() - 1]));
    }
    let (ended, path, _folder) = start_again("a_truncated_file_ends_the_process_with_its_name");
    let said = String::from_utf8_lossy(&ended.stderr);
    let line = format!("tramontane: {} was truncated or became unreadable while it was mapped\n", path.display());
    assert!(ended.status.code() == Some(EXIT_FAILURE) && said.ends_with(&line), "{:?}: {said}", ended.status);
}

#[test]
#[allow(unsafe_code)]
fn a_fault_elsewhere_is_what_it_was() {
    if let Some(path) = told() {
        // The handler is there, and one file is known to it.
        let (_ours, file) = (map_and_truncate(&path), File::open(&path).unwrap());
        // SAFETY: a read-only map, of which one byte is read.
        let foreign = unsafe { memmap2::MmapOptions::new().len(BYTES as usize).map(&file) }.unwrap();
        panic!("read {} past the end", std::hint::black_box(foreign[BYTES as usize - 1]));
    }
    let (ended, _, _folder) = start_again("a_fault_elsewhere_is_what_it_was");
    assert_eq!(ended.status.signal(), Some(libc::SIGBUS), "{}", String::from_utf8_lossy(&ended.stderr));
}

#[test]
#[allow(unsafe_code)]
fn a_signal_that_somebody_sends_is_what_it_was() {
    if let Some(path) = told() {
        let _ours = FileBytes::map(&File::open(&path).unwrap(), &path).unwrap();
        // The first comes to the Rust runtime's handler in the end, which steps aside for the second.
        for _ in 0..2 {
            // SAFETY: sends a signal to this thread.
            unsafe { libc::raise(libc::SIGBUS) };
        }
        panic!("still here");
    }
    let (ended, _, _folder) = start_again("a_signal_that_somebody_sends_is_what_it_was");
    assert_eq!(ended.status.signal(), Some(libc::SIGBUS), "{}", String::from_utf8_lossy(&ended.stderr));
}

#[test]
fn a_mapping_is_known_while_it_lives() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    for path in [&a, &b] {
        std::fs::write(path, [1; 5000]).unwrap();
    }
    let map = |path: &Path| FileBytes::map(&File::open(path).unwrap(), path).unwrap();
    let (first, second) = (map(&a), map(&b));
    #[allow(unsafe_code)]
    let line = |bytes: &FileBytes, at: usize| {
        // SAFETY: the lines live as long as `first` and `second`.
        let text = |(line, bytes)| unsafe { std::slice::from_raw_parts(line, bytes) };
        line_at(bytes.as_ptr().addr() + at).map(|found| String::from_utf8(text(found).to_vec()).unwrap())
    };
    assert!(line(&first, 0).unwrap().contains(a.to_str().unwrap()));
    assert!(line(&second, 4999).unwrap().contains(b.to_str().unwrap()));
    let address = first.as_ptr().addr();
    drop(first);
    let found = line_at(address);
    assert!(found.is_none() && line(&second, 0).is_some());
}
