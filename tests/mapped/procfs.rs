//! How much of a process is where, as `/proc` says (proc_pid_status(5), proc_pid_smaps(5), proc_pid_io(5)), in bytes.

use std::fs;
use std::path::Path;

/// A process at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Memory of its own.
    pub(crate) own: u64,
    /// The most memory that it has had, its own and of files.
    pub(crate) peak: u64,
    /// Resident pages of the mapped file.
    pub(crate) mapped: u64,
    /// Read from disks since it started.
    pub(crate) read: u64,
}

impl Usage {
    /// Of the process `pid`, which has mapped `file`.
    pub(crate) fn of(pid: u32, file: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).expect("the process is there");
        let status = text("status");
        let kib = |key: &str| 1024 * number(&status, key);
        Self {
            own: kib("RssAnon:"),
            peak: kib("VmHWM:"),
            mapped: mapped(&text("smaps"), file),
            read: number(&text("io"), "read_bytes:"),
        }
    }
}

/// Resident bytes of all mappings of `file`. A mapping's first line ends with the file's path, those that follow have a key.
fn mapped(smaps: &str, file: &Path) -> u64 {
    let file = file.to_str().expect("a path of a test is UTF-8");
    let (mut is_its, mut mappings, mut resident) = (false, 0, 0);
    for line in smaps.lines() {
        let key = line.split_whitespace().next().unwrap_or_default();
        if !key.ends_with(':') {
            is_its = line.ends_with(file);
            mappings += u64::from(is_its);
        } else if is_its && key == "Rss:" {
            resident += 1024 * number(line, key);
        }
    }
    assert!(mappings > 0, "{file} is not mapped");
    resident
}

/// The number after `key`.
fn number(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok());
    value.unwrap_or_else(|| panic!("no {key} in {text}"))
}
