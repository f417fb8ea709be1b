//! What happens when a mapped file is truncated, or its disk fails, and the missing part is read: the system sends SIGBUS to
//! the thread that reads. Here that becomes a last line on stderr that names the file, and exit code 1.
//!
//! There is nobody to return an error to, for the read is a plain load somewhere in a kernel. So the process ends; what it was
//! computing for others they compute elsewhere, as when it is killed.

use std::io;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use super::MAX_SHARDS;

/// Most files that one process has mapped at a time: two checkpoints of the most files, for one may be opened beside another, and
/// packed matrices out of the cache, as many as 48 layers of 128 experts have and half as many again.
pub(super) const MAX_MAPPED: usize = 2 * MAX_SHARDS + (28 << 10);
/// How a process ends whose file has gone.
const EXIT_FAILURE: i32 = 1;

/// A mapped file, as the handler sees it.
struct Slot {
    /// Address of the first byte; [`FREE`], or [`TAKEN`] while the rest is being written.
    begin: AtomicUsize,
    /// Address after the last byte.
    end: AtomicUsize,
    /// The line that is said of it, which lives as long as the mapping.
    line: AtomicPtr<u8>,
    line_bytes: AtomicUsize,
}

// Neither is an address that anything is mapped at.
const FREE: usize = 0;
const TAKEN: usize = 1;

impl Slot {
    const fn unused() -> Self {
        Self {
            begin: AtomicUsize::new(FREE),
            end: AtomicUsize::new(0),
            line: AtomicPtr::new(ptr::null_mut()),
            line_bytes: AtomicUsize::new(0),
        }
    }
}

/// What is mapped. A global, because a signal's handler is one for the whole process and is handed nothing of ours; of a fixed
/// size and without locks, because the handler may have interrupted anything.
static SLOTS: [Slot; MAX_MAPPED] = [const { Slot::unused() }; MAX_MAPPED];

/// What was to happen at SIGBUS before; `None` when that could not be changed. A global for the same reason.
static PREVIOUS: OnceLock<Option<libc::sigaction>> = OnceLock::new();

/// Keeps a mapping known to the handler. Drop it before the mapping goes.
pub(super) struct Watched {
    slot: &'static Slot,
    /// What [`Slot::line`] points to.
    _line: Box<[u8]>,
}

impl Watched {
    /// Makes the mapping `bytes` of the file `path` known, and the handler installed.
    ///
    /// # Errors
    /// [`MAX_MAPPED`] files are mapped already, or the system does not let SIGBUS be handled.
    pub(super) fn new(bytes: &[u8], path: &Path) -> io::Result<Self> {
        if PREVIOUS.get_or_init(install).is_none() {
            return Err(io::Error::other("SIGBUS cannot be handled"));
        }
        let claim = |slot: &&Slot| {
            slot.begin.load(Ordering::Relaxed) == FREE
                && slot.begin.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let Some(slot) = SLOTS.iter().find(claim) else {
            return Err(io::Error::other(format!("{MAX_MAPPED} files are mapped already")));
        };
        let why = "was truncated or became unreadable while it was mapped";
        let line: Box<[u8]> = format!("tramontane: {} {why}\n", path.display()).into_bytes().into();
        let range = bytes.as_ptr_range();
        slot.end.store(range.end.addr(), Ordering::Relaxed);
        slot.line.store(line.as_ptr().cast_mut(), Ordering::Relaxed);
        slot.line_bytes.store(line.len(), Ordering::Relaxed);
        slot.begin.store(range.start.addr(), Ordering::Release);
        Ok(Self { slot, _line: line })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.slot.begin.store(FREE, Ordering::Release);
    }
}

/// Installs the handler; returns what was there before.
#[allow(unsafe_code)]
fn install() -> Option<libc::sigaction> {
    // SAFETY: all fields of `sigaction` are integers, or pointers that may be null. Both structures live through the call.
    // The handler is of the form that SA_SIGINFO asks for, and does only what a handler may (signal-safety(7)). SA_ONSTACK
    // lets it run where the Rust runtime has given a thread a stack for signals.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut previous: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        (libc::sigaction(libc::SIGBUS, &action, &mut previous) == 0).then_some(previous)
    }
}

/// Ends the process when the fault is in a mapping of ours. Otherwise the fault is none of our business: what was there before
/// the handler is put back, and deals with it when the faulting instruction runs again.
#[allow(unsafe_code)]
extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the system hands over a valid `info`. `write`, `_exit`, `sigaction` and `raise` may be called in a handler. The line of a
    // slot lives, for whoever touched the mapping borrows it. (Were the slot's file unmapped and another mapped between the
    // loads in `line_at`, a wrong name could be read; `begin` is loaded again to see that.)
    unsafe {
        // Above 0: the system's own, with an address. Else somebody sent the signal.
        let is_fault = (*info).si_code > 0;
        if is_fault && let Some((line, bytes)) = line_at((*info).si_addr().addr()) {
            libc::write(libc::STDERR_FILENO, line.cast(), bytes);
            libc::_exit(EXIT_FAILURE);
        }
        match PREVIOUS.get().and_then(Option::as_ref) {
            Some(previous) => libc::sigaction(signal, previous, ptr::null_mut()),
            None => 0,
        };
        if !is_fault {
            // Blocked until the handler returns, and then what it was.
            libc::raise(signal);
        }
    }
}

/// The line of the mapping that `address` is in, and its length.
fn line_at(address: usize) -> Option<(*const u8, usize)> {
    SLOTS.iter().find_map(|slot| {
        let begin = slot.begin.load(Ordering::Acquire);
        let within = begin > TAKEN && (begin..slot.end.load(Ordering::Relaxed)).contains(&address);
        let line = (slot.line.load(Ordering::Relaxed).cast_const(), slot.line_bytes.load(Ordering::Relaxed));
        (within && slot.begin.load(Ordering::Acquire) == begin).then_some(line)
    })
}

#[cfg(test)]
mod tests;
