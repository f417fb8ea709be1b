//! Other processes, as `/proc` shows them.

use std::fs;
use std::process::Command;

/// A process, told by its start time from a later one that got the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// In the kernel's ticks since boot.
    started: u64,
}

/// What `/proc/PID/stat` says, as far as it is of use (proc_pid_stat(5)).
struct Stat {
    state: char,
    parent: u32,
    started: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name stands in parentheses and may hold some itself.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            state: field(3)?.chars().next()?,
            parent: field(4)?.parse().ok()?,
            started: field(22)?.parse().ok()?,
        })
    }
}

/// The processes whose parent is `parent`, without those that have ended and were not waited for.
pub(crate) fn children(parent: u32) -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| {
        let stat = Stat::read(pid)?;
        (stat.parent == parent && stat.state != 'Z').then_some(Process { pid, started: stat.started })
    })
    .collect()
}

impl Process {
    /// Whether it has ended, waited for or not.
    pub(crate) fn is_gone(self) -> bool {
        Stat::read(self.pid).is_none_or(|stat| stat.started != self.started || matches!(stat.state, 'Z' | 'X'))
    }

    /// What follows `flag` on its command line.
    pub(crate) fn argument(self, flag: &str) -> Option<String> {
        let line = fs::read_to_string(format!("/proc/{}/cmdline", self.pid)).ok()?;
        line.split('\0').skip_while(|&word| word != flag).nth(1).map(str::to_owned)
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(self) {
        // The shell's own, so that no package must be installed for it.
        let sent = Command::new("sh").args(["-c", "kill -KILL \"$0\"", &self.pid.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{self:?} cannot be killed");
    }
}
