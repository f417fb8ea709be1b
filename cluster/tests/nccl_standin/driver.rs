//! The driver: memory of the process's own, streams that are threads.
//!
// SAFETY: of all functions here. The exchange calls them as the driver's manual says; what it passes came from here.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, RwLock};
use std::{ptr, thread};

use crate::{fault, lock, strikes};

const INVALID_VALUE: c_int = 1;
const OUT_OF_MEMORY: c_int = 2;
const NO_DEVICE: c_int = 100;
const NOT_READY: c_int = 600;
const ALIGN: usize = 256;

type Job = Box<dyn FnOnce() + Send>;

/// As in the driver, memory is freed once everything that the device does is done, and meanwhile nobody is let in to copy.
static COPYING: RwLock<()> = RwLock::new(());
/// Jobs of all streams that are not done.
static BUSY: AtomicUsize = AtomicUsize::new(0);

/// A thread that does one job after another.
pub struct Stream {
    jobs: Sender<Job>,
    /// Jobs that are not done.
    busy: Arc<AtomicUsize>,
}

impl Stream {
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.busy.fetch_add(1, SeqCst);
        BUSY.fetch_add(1, SeqCst);
        self.jobs.send(Box::new(job)).expect("the stream's thread lives");
    }
}

/// What was allocated: sizes by address.
type Memory = Mutex<BTreeMap<u64, usize>>;

/// On the device.
static MEMORY: Memory = Mutex::new(BTreeMap::new());

/// Whether these bytes lie within one allocation.
pub(crate) fn on_device(address: u64, bytes: usize) -> bool {
    lies_in(&MEMORY, address, bytes)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_: c_uint) -> c_int {
    if fault("nodevice", 0).is_some() { NO_DEVICE } else { 0 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_int {
    unsafe { *device = ordinal };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, _: c_int) -> c_int {
    unsafe { *context = ptr::dangling_mut::<u8>().cast() };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_: c_int) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> c_int {
    if context.is_null() { INVALID_VALUE } else { 0 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut *mut Stream, _: c_uint) -> c_int {
    let (jobs, given) = channel::<Job>();
    let busy = Arc::new(AtomicUsize::new(0));
    let left = busy.clone();
    thread::spawn(move || {
        for job in given {
            job();
            left.fetch_sub(1, SeqCst);
            BUSY.fetch_sub(1, SeqCst);
        }
    });
    unsafe { *stream = Box::into_raw(Box::new(Stream { jobs, busy })) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(stream: *mut Stream) -> c_int {
    if unsafe { &*stream }.busy.load(SeqCst) == 0 { 0 } else { NOT_READY }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: *mut Stream) -> c_int {
    drop(unsafe { Box::from_raw(stream) });
    0
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, ALIGN).expect("a size")
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> c_int {
    unsafe { allocate("alloc", &MEMORY, address, bytes) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> c_int {
    unsafe { release(&MEMORY, address) }
}

/// Pinned memory, from which streams copy in their own time; no device memory.
static PINNED: Memory = Mutex::new(BTreeMap::new());

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(address: *mut u64, bytes: usize, _: c_uint) -> c_int {
    unsafe { allocate("pin", &PINNED, address, bytes) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(address: u64) -> c_int {
    unsafe { release(&PINNED, address) }
}

/// Notes `bytes` more in `memory`, unless that is to go wrong.
unsafe fn allocate(fault: &'static str, memory: &Memory, address: *mut u64, bytes: usize) -> c_int {
    if strikes(fault, 0) || bytes == 0 {
        return OUT_OF_MEMORY;
    }
    let begin = unsafe { alloc(layout(bytes)) } as u64;
    lock(memory).insert(begin, bytes);
    unsafe { *address = begin };
    0
}

/// Gives back what `memory` has at `address`.
unsafe fn release(memory: &Memory, address: u64) -> c_int {
    let _nobody_copies = COPYING.write();
    while BUSY.load(SeqCst) > 0 {
        thread::yield_now();
    }
    match lock(memory).remove(&address) {
        Some(bytes) => unsafe { dealloc(address as *mut u8, layout(bytes)) },
        None => return INVALID_VALUE,
    }
    0
}

/// Whether these bytes lie within one allocation of `memory`.
fn lies_in(memory: &Memory, address: u64, bytes: usize) -> bool {
    let memory = lock(memory);
    let below = memory.range(..=address).next_back();
    below.is_some_and(|(begin, size)| address + bytes as u64 <= begin + *size as u64)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, bytes: usize, stream: *mut Stream) -> c_int {
    let _with_others = COPYING.read();
    if !on_device(to, bytes) || !lies_in(&PINNED, from as u64, bytes) {
        return INVALID_VALUE;
    }
    let from = from as usize;
    unsafe { &*stream }.run(move || unsafe { ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) });
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, bytes: usize, stream: *mut Stream) -> c_int {
    let _with_others = COPYING.read();
    if !on_device(from, bytes) || !lies_in(&PINNED, to as u64, bytes) {
        return INVALID_VALUE;
    }
    let to = to as usize;
    unsafe { &*stream }.run(move || unsafe { ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) });
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(_: c_int, text: *mut *const c_char) -> c_int {
    unsafe { *text = c"the stand-in's driver was told to fail".as_ptr() };
    0
}
