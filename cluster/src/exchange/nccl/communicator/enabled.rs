//! A rank of a communicator through `cudarc`: NCCL in its non-blocking mode, so that no call outlasts anybody's patience, on
//! a stream of its own; the rows are staged in the device's memory.
#![allow(unsafe_code, reason = "calls of NCCL and of the CUDA driver")]

use std::ffi::{CStr, c_char, c_void};
use std::mem::{self, MaybeUninit, size_of};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cudarc::driver::sys as cuda;
use cudarc::nccl::sys as nccl;

use super::library::{CUDA, NCCL};
use super::staging::{Rooms, Staging};
use super::{ID_BYTES, NcclError, Patience, Seat, Transfer, UniqueId};

/// The device: the first that CUDA_VISIBLE_DEVICES leaves visible.
const DEVICE: i32 = 0;
/// Payloads begin at multiples of this where they are staged.
pub(super) const ALIGN: usize = 256;
/// A busy stream is looked at this often,
const LOOK: Duration = Duration::from_micros(50);
/// and without a pause at first: a small group takes less.
const BUSY: Duration = Duration::from_micros(300);
/// How long an aborted stream may take to come to rest; what it might still touch is given up then, not freed.
const REST: Duration = Duration::from_secs(1);
/// What `NCCL_CONFIG_INITIALIZER` of nccl.h writes: its magic, the version whose fields follow, and "not set".
const CONFIG_MAGIC: u32 = 0xcafe_beef;
const CONFIG_VERSION: u32 = 22_403;
const NOT_SET: i32 = i32::MIN;

/// Fails unless the libraries and a device are there.
pub(in super::super) fn check() -> Result<(), NcclError> {
    CUDA.present()?;
    NCCL.present()?;
    Device::open().map(drop)
}

/// NCCL's version, as `2.28.3`.
pub(in super::super) fn version() -> Result<String, NcclError> {
    check()?;
    let mut version = 0;
    // SAFETY: `check` found the function; it writes one int.
    let got = unsafe { nccl::ncclGetVersion(&raw mut version) };
    done(got, "ncclGetVersion", ptr::null_mut())?;
    Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}

/// An id for a communicator whose rank 0 is in this process.
pub(in super::super) fn unique_id() -> Result<UniqueId, NcclError> {
    check()?;
    let mut id = MaybeUninit::<nccl::ncclUniqueId>::zeroed();
    // SAFETY: `check` found the function; it writes the id.
    let got = unsafe { nccl::ncclGetUniqueId(id.as_mut_ptr()) };
    done(got, "ncclGetUniqueId", ptr::null_mut())?;
    // SAFETY: zeroed bytes are an id, too.
    Ok(unsafe { id.assume_init() }.internal.map(c_char::cast_unsigned))
}

/// One rank. Lives on one thread. Dropped, it is aborted: also where other ranks wait for it.
pub(in super::super) struct Communicator {
    comm: nccl::ncclComm_t,
    stream: cuda::CUstream,
    /// Until the stream is known to rest.
    staging: Option<Staging>,
    rooms: Arc<Rooms>,
    /// The last to go.
    _device: Device,
}

impl Communicator {
    /// Takes `seat`, and returns when all ranks have taken theirs. Rows are staged in a place of `rooms`.
    pub(in super::super) fn join(seat: &Seat, rooms: &Arc<Rooms>, patience: Patience<'_>) -> Result<Self, NcclError> {
        check()?;
        let device = Device::open()?;
        let mut stream = ptr::null_mut();
        let flags = cuda::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the device's context is this thread's; the call writes the stream.
        ran(unsafe { cuda::cuStreamCreate(&raw mut stream, flags) }, "cuStreamCreate")?;
        // From here on a failure drops it whole.
        let mut new = Self { comm: ptr::null_mut(), stream, staging: None, rooms: rooms.clone(), _device: device };
        let id = nccl::ncclUniqueId { internal: seat.id.map(u8::cast_signed) };
        let mut config = config();
        let (ranks, rank) = (seat.ranks.cast_signed(), seat.rank.cast_signed());
        // SAFETY: `comm` outlives the call and is written by it; the configuration is read in it.
        let begun = unsafe { nccl::ncclCommInitRankConfig(&raw mut new.comm, ranks, id, rank, &raw mut config) };
        done(begun, "ncclCommInitRankConfig", new.comm)?;
        new.settle("ncclCommInitRankConfig", "to have all ranks together", patience)?;
        new.staging = Some(new.room_for(1)?);
        Ok(new)
    }

    /// Takes the place where rows are staged, with room for so many bytes. The stream rests.
    fn room_for(&mut self, bytes: usize) -> Result<Staging, NcclError> {
        match self.staging.take() {
            Some(room) if room.has_room(bytes) => return Ok(room),
            Some(outgrown) => self.rooms.give_back(outgrown),
            None => {}
        }
        self.rooms.take(bytes)
    }

    /// Moves all of `transfers` as one group; returns what was received, in their order. After an error the communicator
    /// is good for nothing but to be dropped.
    pub(in super::super) fn group(
        &mut self,
        transfers: &[Transfer],
        patience: Patience<'_>,
    ) -> Result<Vec<Bytes>, NcclError> {
        let layout = layout(transfers);
        let mut room = self.room_for(layout.total)?;
        let moved = self.through(&mut room, transfers, &layout, patience);
        // After an error, too: the stream may be about it still.
        self.staging = Some(room);
        moved
    }

    fn through(
        &self,
        room: &mut Staging,
        transfers: &[Transfer],
        layout: &Layout,
        patience: Patience<'_>,
    ) -> Result<Vec<Bytes>, NcclError> {
        let Layout { begins, sent, total } = layout;
        for (transfer, &begin) in transfers.iter().zip(begins) {
            if let Transfer::Send { payload, .. } = transfer {
                room.host(begin, payload.len()).copy_from_slice(payload);
            }
        }
        if *sent > 0 {
            room.upload(0, *sent, self.stream)?;
        }
        self.post(room, transfers, begins, patience)?;
        if total > sent {
            room.download(*sent, total - sent, self.stream)?;
        }
        self.rest("rows to go through", patience)?;
        let received = transfers.iter().zip(begins).filter_map(|(transfer, &begin)| match *transfer {
            Transfer::Receive { bytes, .. } => Some(Bytes::copy_from_slice(room.host(begin, bytes))),
            Transfer::Send { .. } => None,
        });
        Ok(received.collect())
    }

    /// Hands the group to NCCL. Where a call fails the group is ended all the same, for it is the thread's.
    fn post(
        &self,
        room: &Staging,
        transfers: &[Transfer],
        begins: &[usize],
        patience: Patience<'_>,
    ) -> Result<(), NcclError> {
        // SAFETY: takes nothing.
        done(unsafe { nccl::ncclGroupStart() }, "ncclGroupStart", self.comm)?;
        let posted = transfers.iter().zip(begins).try_for_each(|(transfer, &begin)| {
            let (count, stream) = (transfer.bytes(), self.stream.cast::<nccl::CUstream_st>());
            let place = room.device(begin);
            let of_bytes = nccl::ncclDataType_t::ncclUint8;
            match transfer {
                Transfer::Send { to, .. } => {
                    let at = place as *const c_void;
                    // SAFETY: the place holds `count` bytes until the stream rests.
                    let sent = unsafe { nccl::ncclSend(at, count, of_bytes, to.cast_signed(), self.comm, stream) };
                    done(sent, "ncclSend", self.comm)
                }
                Transfer::Receive { from, .. } => {
                    let at = place as *mut c_void;
                    // SAFETY: the place has room for `count` bytes until the stream rests.
                    let received =
                        unsafe { nccl::ncclRecv(at, count, of_bytes, from.cast_signed(), self.comm, stream) };
                    done(received, "ncclRecv", self.comm)
                }
            }
        });
        // SAFETY: takes nothing.
        let ended = done(unsafe { nccl::ncclGroupEnd() }, "ncclGroupEnd", self.comm);
        posted.and(ended)?;
        self.settle("ncclGroupEnd", "to begin a group", patience)
    }

    /// Fails if NCCL has noticed that something is wrong.
    pub(in super::super) fn healthy(&self) -> Result<(), NcclError> {
        self.state("ncclCommGetAsyncError").map(drop)
    }

    fn state(&self, call: &'static str) -> Result<nccl::ncclResult_t, NcclError> {
        let mut state = nccl::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator has not been aborted; the call writes the state.
        let asked = unsafe { nccl::ncclCommGetAsyncError(self.comm, &raw mut state) };
        done(asked, "ncclCommGetAsyncError", self.comm)?;
        done(state, call, self.comm)?;
        Ok(state)
    }

    /// Waits until what `call` began is under way.
    fn settle(&self, call: &'static str, what: &'static str, patience: Patience<'_>) -> Result<(), NcclError> {
        let under_way = || Ok((self.state(call)? != nccl::ncclResult_t::ncclInProgress).then_some(()));
        wait(under_way, what, patience)
    }

    /// Waits until the stream has done what it was given.
    fn rest(&self, what: &'static str, patience: Patience<'_>) -> Result<(), NcclError> {
        let done = || {
            self.healthy()?;
            self.is_resting()
        };
        wait(|| Ok(done()?.then_some(())), what, patience)
    }

    fn is_resting(&self) -> Result<bool, NcclError> {
        // SAFETY: the stream has not been destroyed.
        match unsafe { cuda::cuStreamQuery(self.stream) } {
            cuda::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => ran(result, "cuStreamQuery").map(|()| true),
        }
    }

    /// Aborts, once. Whether nothing of it touches memory any more.
    fn abort(&mut self) -> bool {
        if !self.comm.is_null() {
            // SAFETY: aborted once, for the pointer is forgotten. An error changes nothing: it cannot be used any more.
            let _ = unsafe { nccl::ncclCommAbort(self.comm) };
            self.comm = ptr::null_mut();
        }
        let never = AtomicBool::new(false);
        let resting = || Ok(self.is_resting()?.then_some(()));
        wait(resting, "an aborted stream to rest", Patience::from_now(REST, &never)).is_ok()
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if self.abort() {
            self.staging.take().into_iter().for_each(|room| self.rooms.give_back(room));
            // SAFETY: the stream is ours, rests, and is not used again.
            let _ = unsafe { cuda::cuStreamDestroy_v2(self.stream) };
        } else {
            // With it, its hold on the context: the stream may be about both.
            mem::forget(self.staging.take());
            tracing::warn!(
                "an aborted NCCL stream did not come to rest; its memory on the GPU, and as much of the host, is lost"
            );
        }
    }
}

/// A device's primary context, current on the thread that opened it.
pub(super) struct Device(cuda::CUdevice);

impl Device {
    pub(super) fn open() -> Result<Self, NcclError> {
        let failed = |call| move |error: NcclError| NcclError::NoDevice { call, why: error.to_string() };
        // SAFETY: `check` found the functions; they write where they are told to.
        unsafe {
            ran(cuda::cuInit(0), "cuInit").map_err(failed("cuInit"))?;
            let (mut device, mut context) = (0, ptr::null_mut());
            ran(cuda::cuDeviceGet(&raw mut device, DEVICE), "cuDeviceGet").map_err(failed("cuDeviceGet"))?;
            let retained = cuda::cuDevicePrimaryCtxRetain(&raw mut context, device);
            ran(retained, "cuDevicePrimaryCtxRetain").map_err(failed("cuDevicePrimaryCtxRetain"))?;
            let device = Self(device);
            ran(cuda::cuCtxSetCurrent(context), "cuCtxSetCurrent").map_err(failed("cuCtxSetCurrent"))?;
            Ok(device)
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`.
        let _ = unsafe { cuda::cuDevicePrimaryCtxRelease_v2(self.0) };
    }
}

/// Where payloads lie: what is sent first, then what is received, so that each is one copy.
struct Layout {
    /// Of each.
    begins: Vec<usize>,
    /// Bytes of what is sent,
    sent: usize,
    /// and of all.
    total: usize,
}

fn layout(transfers: &[Transfer]) -> Layout {
    let room = |transfer: &Transfer| transfer.bytes().next_multiple_of(ALIGN);
    let is_sent = |transfer: &&Transfer| matches!(transfer, Transfer::Send { .. });
    let sent = transfers.iter().filter(is_sent).map(room).sum();
    let (mut next_sent, mut next_received) = (0, sent);
    let begin = |transfer: &Transfer| {
        let next = if is_sent(&transfer) { &mut next_sent } else { &mut next_received };
        let begin = *next;
        *next += room(transfer);
        begin
    };
    let begins = transfers.iter().map(begin).collect();
    Layout { begins, sent, total: next_received }
}

fn config() -> nccl::ncclConfig_t {
    nccl::ncclConfig_t {
        size: size_of::<nccl::ncclConfig_t>(),
        magic: CONFIG_MAGIC,
        version: CONFIG_VERSION,
        blocking: 0,
        cgaClusterSize: NOT_SET,
        minCTAs: NOT_SET,
        maxCTAs: NOT_SET,
        netName: ptr::null(),
        splitShare: NOT_SET,
    }
}

/// Looks until `look` finds something.
fn wait<T>(
    look: impl Fn() -> Result<Option<T>, NcclError>,
    what: &'static str,
    patience: Patience<'_>,
) -> Result<T, NcclError> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        patience.last(what)?;
        if begun.elapsed() < BUSY { thread::yield_now() } else { thread::sleep(LOOK) }
    }
}

/// `result` of `call`; what NCCL does in its own time is no failure.
fn done(result: nccl::ncclResult_t, call: &'static str, comm: nccl::ncclComm_t) -> Result<(), NcclError> {
    if matches!(result, nccl::ncclResult_t::ncclSuccess | nccl::ncclResult_t::ncclInProgress) {
        return Ok(());
    }
    // SAFETY: both return strings that live as long as the library, and take a null communicator.
    let (what, detail) = unsafe { (text(nccl::ncclGetErrorString(result)), text(nccl::ncclGetLastError(comm))) };
    let why = if detail.is_empty() { what } else { format!("{what} ({detail})") };
    Err(NcclError::Broken { call, why })
}

/// `result` of the driver's `call`.
pub(super) fn ran(result: cuda::CUresult, call: &'static str) -> Result<(), NcclError> {
    if result == cuda::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut what = ptr::null();
    // SAFETY: the call writes the address of a string that lives as long as the library, or null.
    let _ = unsafe { cuda::cuGetErrorString(result, &raw mut what) };
    // SAFETY: as said.
    Err(NcclError::Broken { call, why: format!("{result:?}: {}", unsafe { text(what) }) })
}

/// # Safety
/// `text` is null or a string that ends with 0.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
}

const _: () = assert!(size_of::<nccl::ncclUniqueId>() == ID_BYTES);
