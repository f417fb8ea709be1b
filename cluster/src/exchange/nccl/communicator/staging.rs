//! Where rows wait on their way through NCCL: a place on the device, and its like in the host's memory, pinned, so that
//! copies between the two go by themselves, in a stream's order.
#![allow(unsafe_code, reason = "memory of the CUDA driver, shared with the device")]

use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys as cuda;

use super::super::{MAX_GROUP, MAX_GROUP_BYTES};
use super::NcclError;
use super::enabled::{ALIGN, Device, ran};

/// Room for any group; only a payload that is larger than one has more made.
const FIRST: usize = MAX_GROUP_BYTES + MAX_GROUP * ALIGN;

/// Places that no communicator uses now, for the next ones. They are never freed while the process lives: the driver frees
/// nothing before the whole device rests, and has others' calls wait meanwhile. A communicator that is to be aborted would
/// wait for one that is being freed, and that for what the first one's stream waits for. So there are as many as
/// communicators lived at once, of each of the sizes (the first, and powers of two) that were wanted.
#[derive(Default)]
pub(in super::super) struct Rooms(Mutex<Vec<Staging>>);

impl Rooms {
    /// A place with room for `bytes`: one that is there, or a new one.
    pub(super) fn take(&self, bytes: usize) -> Result<Staging, NcclError> {
        let capacity = if bytes <= FIRST { FIRST } else { bytes.next_power_of_two() };
        let mut rooms = self.rooms();
        let there = rooms.iter().position(|room| room.capacity == capacity).map(|at| rooms.swap_remove(at));
        // The driver may take its time: nobody else is kept out meanwhile.
        drop(rooms);
        there.map_or_else(|| Staging::of(capacity), Ok)
    }

    /// No stream uses it now.
    pub(super) fn give_back(&self, room: Staging) {
        self.rooms().push(room);
    }

    fn rooms(&self) -> MutexGuard<'_, Vec<Staging>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The two places, equally large.
pub(super) struct Staging {
    host: *mut u8,
    device: cuda::CUdeviceptr,
    capacity: usize,
    /// Whose context they are in.
    _device: Device,
}

// SAFETY: it owns both places, and the driver takes their addresses on any thread that has the device's context.
unsafe impl Send for Staging {}

impl Staging {
    fn of(capacity: usize) -> Result<Self, NcclError> {
        let device = Device::open()?;
        let mut host = ptr::null_mut();
        // SAFETY: the call writes the address.
        ran(unsafe { cuda::cuMemHostAlloc(&raw mut host, capacity, 0) }, "cuMemHostAlloc")?;
        let mut new = Self { host: host.cast(), device: 0, capacity, _device: device };
        // SAFETY: the call writes the address.
        let allocated = ran(unsafe { cuda::cuMemAlloc_v2(&raw mut new.device, capacity) }, "cuMemAlloc");
        if allocated.is_err() {
            // SAFETY: allocated above, freed once; nothing has used it.
            let _ = unsafe { cuda::cuMemFreeHost(host) };
        }
        allocated?;
        // SAFETY: of the allocation just made, whose bytes nobody reads before somebody wrote them, but for the gaps.
        unsafe { ptr::write_bytes(new.host, 0, capacity) };
        Ok(new)
    }

    pub(super) fn has_room(&self, bytes: usize) -> bool {
        bytes <= self.capacity
    }

    /// The host's bytes from `begin` on. No stream writes them now.
    pub(super) fn host(&mut self, begin: usize, bytes: usize) -> &mut [u8] {
        assert!(begin + bytes <= self.capacity, "within what was reserved");
        // SAFETY: within the allocation, which `of` initialised; borrowed from `self`.
        unsafe { std::slice::from_raw_parts_mut(self.host.add(begin), bytes) }
    }

    /// The device's address of the byte `begin`.
    pub(super) fn device(&self, begin: usize) -> cuda::CUdeviceptr {
        self.device + begin as cuda::CUdeviceptr
    }

    /// Has `stream` copy bytes to the device.
    pub(super) fn upload(&self, begin: usize, bytes: usize, stream: cuda::CUstream) -> Result<(), NcclError> {
        assert!(begin + bytes <= self.capacity, "within what was reserved");
        // SAFETY: both places are within their allocations, which live until the stream rests.
        let host = unsafe { self.host.add(begin) };
        // SAFETY: as said.
        let copied = unsafe { cuda::cuMemcpyHtoDAsync_v2(self.device(begin), host.cast(), bytes, stream) };
        ran(copied, "cuMemcpyHtoDAsync")
    }

    /// Has `stream` copy bytes from the device.
    pub(super) fn download(&self, begin: usize, bytes: usize, stream: cuda::CUstream) -> Result<(), NcclError> {
        assert!(begin + bytes <= self.capacity, "within what was reserved");
        // SAFETY: both places are within their allocations, which live until the stream rests.
        let host = unsafe { self.host.add(begin) };
        // SAFETY: as said.
        let copied = unsafe { cuda::cuMemcpyDtoHAsync_v2(host.cast(), self.device(begin), bytes, stream) };
        ran(copied, "cuMemcpyDtoHAsync")
    }
}
