//! NCCL's functions.
//!
// SAFETY: of all functions here. The exchange calls them as NCCL's manual says; what it passes came from here.

use std::cell::RefCell;
use std::ffi::{CStr, OsStr, c_char, c_int, c_uint};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::{env, fs, process, thread};

use crate::comm::{Comm, Op};
use crate::driver::{Stream, on_device};
use crate::{fault, strikes};

// What NCCL answers.
pub(crate) const SUCCESS: c_int = 0;
pub(crate) const INTERNAL_ERROR: c_int = 3;
pub(crate) const INVALID_ARGUMENT: c_int = 4;
pub(crate) const INVALID_USAGE: c_int = 5;
pub(crate) const REMOTE_ERROR: c_int = 6;
pub(crate) const IN_PROGRESS: c_int = 7;

const UINT8: c_int = 1;
/// Questions that are answered "in progress" before a group is under way.
const SETTLING: i32 = 2;

#[repr(C)]
pub struct UniqueId([u8; 128]);

/// The beginning of `ncclConfig_t`.
#[repr(C)]
pub struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

/// Communicators that were not aborted.
static LIVING: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    fn atexit(at_exit: extern "C" fn()) -> c_int;
}

/// As NCCL does, when a process ends while one of its threads is in it.
extern "C" fn crash_if_living() {
    if LIVING.load(SeqCst) > 0 {
        eprintln!("the process ends, and a communicator lives");
        process::abort();
    }
}

thread_local! {
    /// The group that this thread has begun: its communicator, and what goes through it.
    static GROUP: RefCell<Option<Vec<(usize, Op)>>> = const { RefCell::new(None) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> c_int {
    unsafe { *version = 22_803 };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> c_int {
    static IDS: AtomicUsize = AtomicUsize::new(0);
    let number = IDS.fetch_add(1, SeqCst);
    let folder = env::temp_dir().join(format!("nccl-stand-in-{}-{number}", process::id()));
    let (name, mut bytes) = (folder.as_os_str().as_bytes(), [0; 128]);
    if fs::create_dir(&folder).is_err() || name.len() >= bytes.len() {
        return INTERNAL_ERROR;
    }
    bytes[..name.len()].copy_from_slice(name);
    unsafe { *id = UniqueId(bytes) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    comm: *mut *const Comm,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
    config: *const Config,
) -> c_int {
    let config = unsafe { &*config };
    let is_sound = config.size >= size_of::<Config>() && config.magic == 0xcafe_beef && config.version >= 21_400;
    if !is_sound || config.blocking != 0 || !(0..ranks).contains(&rank) {
        return INVALID_ARGUMENT;
    }
    let rank = rank.cast_unsigned();
    if let Some(code) = fault("init", rank) {
        return code as c_int;
    }
    let folder = CStr::from_bytes_until_nul(&id.0).expect("an id of ours");
    let folder = PathBuf::from(OsStr::from_bytes(folder.to_bytes()));
    let new = Arc::new(Comm::new(rank, ranks.cast_unsigned(), folder));
    if LIVING.fetch_add(1, SeqCst) == 0 {
        unsafe { atexit(crash_if_living) };
    }
    unsafe { *comm = Arc::into_raw(new.clone()) };
    thread::spawn(move || match (fault("lateinit", rank), new.meet()) {
        (Some(code), _) => new.state.store(code as c_int, SeqCst),
        (None, Ok(())) => new.state.store(SUCCESS, SeqCst),
        (None, Err(_)) => new.state.store(REMOTE_ERROR, SeqCst),
    });
    IN_PROGRESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(comm: *const Comm, state: *mut c_int) -> c_int {
    let comm = unsafe { &*comm };
    let settles = comm.settling.fetch_sub(1, SeqCst) > 0;
    unsafe { *state = if settles { IN_PROGRESS } else { comm.state.load(SeqCst) } };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(comm: *const Comm) -> c_int {
    let comm = unsafe { Arc::from_raw(comm) };
    comm.abort();
    LIVING.fetch_sub(1, SeqCst);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupStart() -> c_int {
    GROUP.with_borrow_mut(|group| *group = Some(Vec::new()));
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupEnd() -> c_int {
    let Some(group) = GROUP.take() else { return INVALID_USAGE };
    let Some(&(comm, Op { stream, .. })) = group.first() else { return SUCCESS };
    let comm = comm as *const Comm;
    unsafe { Arc::increment_strong_count(comm) };
    let comm = unsafe { Arc::from_raw(comm) };
    if strikes("groupend", comm.rank) {
        return INTERNAL_ERROR;
    }
    comm.settling.store(SETTLING, SeqCst);
    let ops: Vec<Op> = group.iter().map(|(_, op)| *op).collect();
    let to_itself = |sends| ops.iter().filter(|op| op.peer == comm.rank && op.sends == sends).count();
    if to_itself(true) != to_itself(false) {
        comm.state.store(INVALID_USAGE, SeqCst);
        return IN_PROGRESS;
    }
    unsafe { &*(stream as *const Stream) }.run(move || comm.carry(&ops));
    IN_PROGRESS
}

fn post(comm: *const Comm, op: Op, kind: c_int) -> c_int {
    let rank = unsafe { &*comm };
    if !on_device(op.at as u64, op.bytes) || op.bytes == 0 || kind != UINT8 || op.peer >= rank.ranks {
        return INVALID_ARGUMENT;
    }
    GROUP.with_borrow_mut(|group| match group {
        Some(group) if rank.state.load(SeqCst) == SUCCESS => {
            group.push((comm as usize, op));
            SUCCESS
        }
        _ => INVALID_USAGE,
    })
}

#[cfg(not(without_send))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclSend(
    from: *const u8,
    bytes: usize,
    kind: c_int,
    peer: c_int,
    comm: *const Comm,
    stream: *mut Stream,
) -> c_int {
    if strikes("send", unsafe { &*comm }.rank) {
        return INVALID_ARGUMENT;
    }
    let peer = peer.cast_unsigned();
    post(comm, Op { sends: true, peer, at: from as usize, bytes, stream: stream as usize }, kind)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclRecv(
    to: *mut u8,
    bytes: usize,
    kind: c_int,
    peer: c_int,
    comm: *const Comm,
    stream: *mut Stream,
) -> c_int {
    let peer = peer.cast_unsigned();
    // A size that the sender does not know of.
    let bytes = bytes - usize::from(strikes("mismatch", unsafe { &*comm }.rank));
    post(comm, Op { sends: false, peer, at: to as usize, bytes, stream: stream as usize }, kind)
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(code: c_int) -> *const c_char {
    let text = match code {
        INTERNAL_ERROR => c"internal error",
        INVALID_ARGUMENT => c"invalid argument",
        INVALID_USAGE => c"invalid usage",
        REMOTE_ERROR => c"remote process exited or there was a network error",
        _ => c"unhandled error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_: *const Comm) -> *const c_char {
    c"said by the stand-in".as_ptr()
}
