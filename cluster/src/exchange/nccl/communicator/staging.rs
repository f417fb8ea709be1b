//! Where rows wait on their way through NCCL: a place on the device, and its like in the host's memory, pinned, so that
//! copies between the two go by themselves, in a stream's order.
#![allow(unsafe_code, reason = "memory of the CUDA driver, shared with the device")]

use std::ptr;

use cudarc::driver::sys as cuda;

use super::super::{MAX_GROUP, MAX_GROUP_BYTES};
use super::NcclError;
use super::enabled::{ALIGN, ran};

/// Room from the beginning, for any group: making room waits for whatever the device does, so only a payload that is larger
/// than a group has it made.
const FIRST: usize = MAX_GROUP_BYTES + MAX_GROUP * ALIGN;

/// The two places, equally large.
pub(super) struct Staging {
    host: *mut u8,
    device: cuda::CUdeviceptr,
    capacity: usize,
}

impl Staging {
    pub(super) fn none() -> Self {
        Self { host: ptr::null_mut(), device: 0, capacity: 0 }
    }

    /// Has room for `bytes`, and forgets what it held. No stream uses it now.
    pub(super) fn reserve(&mut self, bytes: usize) -> Result<(), NcclError> {
        if bytes <= self.capacity {
            return Ok(());
        }
        self.free();
        let capacity = if bytes <= FIRST { FIRST } else { bytes.next_power_of_two() };
        let mut host = ptr::null_mut();
        // SAFETY: the call writes the address.
        ran(unsafe { cuda::cuMemHostAlloc(&raw mut host, capacity, 0) }, "cuMemHostAlloc")?;
        self.host = host.cast();
        // SAFETY: the call writes the address.
        ran(unsafe { cuda::cuMemAlloc_v2(&raw mut self.device, capacity) }, "cuMemAlloc")?;
        self.capacity = capacity;
        // SAFETY: of the allocation just made, whose bytes nobody reads before somebody wrote them, but for the gaps.
        unsafe { ptr::write_bytes(self.host, 0, capacity) };
        Ok(())
    }

    /// The host's bytes from `begin` on. No stream writes them now.
    pub(super) fn host(&mut self, begin: usize, bytes: usize) -> &mut [u8] {
        assert!(begin + bytes <= self.capacity, "within what was reserved");
        // SAFETY: within the allocation, which `reserve` initialised; borrowed from `self`.
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

    /// Gives both back. No stream uses them now.
    pub(super) fn free(&mut self) {
        if !self.host.is_null() {
            // SAFETY: allocated in `reserve`, freed once.
            let _ = unsafe { cuda::cuMemFreeHost(self.host.cast()) };
        }
        if self.device != 0 {
            // SAFETY: the same.
            let _ = unsafe { cuda::cuMemFree_v2(self.device) };
        }
        *self = Self::none();
    }
}
