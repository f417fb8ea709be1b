//! One rank, and what goes through it.
//!
// SAFETY: of all functions here. The places were found to lie in one allocation, and the exchange keeps it until the stream
// rests.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::{fs, process, slice, thread};

use crate::nccl::{IN_PROGRESS, INVALID_USAGE, REMOTE_ERROR};
use crate::{LOOK, lock, strikes};

/// One rank.
pub struct Comm {
    pub(crate) rank: u32,
    pub(crate) ranks: u32,
    pub(crate) folder: PathBuf,
    pub(crate) state: AtomicI32,
    pub(crate) settling: AtomicI32,
    aborted: AtomicBool,
    /// To each rank, and from each.
    to: Mutex<BTreeMap<u32, Arc<UnixStream>>>,
    from: Mutex<BTreeMap<u32, Arc<UnixStream>>>,
}

#[derive(Clone, Copy)]
pub(crate) struct Op {
    pub(crate) sends: bool,
    pub(crate) peer: u32,
    pub(crate) at: usize,
    pub(crate) bytes: usize,
    pub(crate) stream: usize,
}

impl Comm {
    pub(crate) fn new(rank: u32, ranks: u32, folder: PathBuf) -> Self {
        Self {
            rank,
            ranks,
            folder,
            state: AtomicI32::new(IN_PROGRESS),
            settling: AtomicI32::new(0),
            aborted: AtomicBool::new(false),
            to: Mutex::default(),
            from: Mutex::default(),
        }
    }

    pub(crate) fn abort(&self) {
        self.aborted.store(true, SeqCst);
        for link in lock(&self.to).values().chain(lock(&self.from).values()) {
            _ = link.shutdown(Shutdown::Both);
        }
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(SeqCst)
    }

    fn fail(&self, code: c_int) {
        self.state.store(code, SeqCst);
        self.stand_still();
    }

    fn stand_still(&self) {
        while !self.is_aborted() {
            thread::sleep(LOOK);
        }
    }

    /// Meets all ranks, itself too.
    pub(crate) fn meet(&self) -> io::Result<()> {
        let listener = UnixListener::bind(self.folder.join(self.rank.to_string()))?;
        listener.set_nonblocking(true)?;
        let count = |links: &Mutex<BTreeMap<u32, Arc<UnixStream>>>| lock(links).len() as u32;
        while !self.is_aborted() && (count(&self.to) < self.ranks || count(&self.from) < self.ranks) {
            let next = count(&self.to);
            if next < self.ranks
                && let Ok(mut stream) = UnixStream::connect(self.folder.join(next.to_string()))
            {
                stream.write_all(&self.rank.to_le_bytes())?;
                lock(&self.to).insert(next, Arc::new(stream));
            }
            if let Ok((mut stream, _)) = listener.accept() {
                stream.set_nonblocking(false)?;
                let mut rank = [0; 4];
                stream.read_exact(&mut rank)?;
                lock(&self.from).insert(u32::from_le_bytes(rank), Arc::new(stream));
            } else {
                thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    /// Moves one group. With each other rank its n-th payload there and its n-th here go together, whichever was named
    /// first, and after both are through the next two: so NCCL plans a group.
    pub(crate) fn carry(&self, ops: &[Op]) {
        if strikes("die", self.rank) {
            process::abort();
        }
        if strikes("async", self.rank) {
            return self.fail(REMOTE_ERROR);
        }
        if strikes("hang", self.rank) {
            return self.stand_still();
        }
        let damage = ops.iter().any(|op| !op.sends) && strikes("damage", self.rank);
        let mut peers: BTreeMap<u32, [Vec<Op>; 2]> = BTreeMap::new();
        for op in ops {
            peers.entry(op.peer).or_default()[usize::from(op.sends)].push(*op);
        }
        thread::scope(|scope| {
            for [here, there] in peers.into_values() {
                scope.spawn(move || {
                    (0..here.len().max(there.len()))
                        .all(|n| self.pair(here.get(n).copied(), there.get(n).copied(), damage))
                });
            }
        });
    }

    /// Moves one payload each way; `false` when the rank has failed.
    fn pair(&self, here: Option<Op>, there: Option<Op>, damage: bool) -> bool {
        let moved = |op| match self.one(op, damage) {
            Ok(true) => true,
            Ok(false) => {
                self.fail(INVALID_USAGE);
                false
            }
            Err(_) => {
                self.fail(REMOTE_ERROR);
                false
            }
        };
        thread::scope(|scope| {
            let both = [here, there].map(|op| op.map(|op| scope.spawn(move || moved(op))));
            both.into_iter().flatten().all(|moved| moved.join().expect("it does not panic"))
        })
    }

    /// Moves one payload; `false` if the sizes differ.
    fn one(&self, op: Op, damage: bool) -> io::Result<bool> {
        let links = if op.sends { &self.to } else { &self.from };
        let link = lock(links).get(&op.peer).cloned().ok_or(io::ErrorKind::NotConnected)?;
        let mut link = link.as_ref();
        let mut size = [0; 8];
        if op.sends {
            let payload = unsafe { slice::from_raw_parts(op.at as *const u8, op.bytes) };
            link.write_all(&(op.bytes as u64).to_le_bytes())?;
            link.write_all(payload)?;
            // Received.
            link.read_exact(&mut size[..1])?;
            return Ok(true);
        }
        link.read_exact(&mut size)?;
        if u64::from_le_bytes(size) != op.bytes as u64 {
            return Ok(false);
        }
        let payload = unsafe { slice::from_raw_parts_mut(op.at as *mut u8, op.bytes) };
        link.read_exact(payload)?;
        if damage {
            payload[0] ^= 1;
        }
        link.write_all(&[1])?;
        Ok(true)
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        if self.rank == 0 {
            _ = fs::remove_dir_all(&self.folder);
        }
    }
}
