//! What one process can try of NCCL on its machine, alone: NCCL refuses two ranks on one GPU, so a single GPU shows
//! communicators of one rank, which sends to itself.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::JOIN_LIMIT;
use super::communicator::{Communicator, NcclError, Patience, Rooms, Seat, Transfer, unique_id, version};

/// Payloads that are sent, alone: from one row to a prefill's.
const SIZES: [usize; 4] = [4 << 10, 256 << 10, 16 << 20, 128 << 20];
/// Bytes of a payload that are the same.
const PAGE: usize = 1 << 10;
/// Payloads of one group, of which none is a whole number of anything.
const GROUPED: usize = 32;
/// Times that each size is sent.
const REPEATS: usize = 5;
/// How long a payload that nobody sends is waited for.
const SHORT: Duration = Duration::from_secs(1);

/// One thing that was tried, and did what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What it was.
    pub what: String,
    /// Bytes that went through; 0 where none should.
    pub bytes: usize,
    /// How long it took; of several times the shortest.
    pub took: Duration,
}

/// Makes communicators of one rank, moves rows through them, breaks them and makes them anew.
///
/// # Errors
/// What does not do as the exchange needs it.
pub fn self_check() -> Result<Vec<Checked>, NcclError> {
    let mut checked = Vec::new();
    let mut note = |what: String, bytes, took| checked.push(Checked { what, bytes, took });
    note(format!("NCCL {} and a GPU are there", version()?), 0, Duration::ZERO);
    let rooms = Arc::default();
    let (mut first, took) = alone(&rooms)?;
    note("a communicator of one rank, by its unique id".into(), 0, took);
    for bytes in SIZES {
        let took = shortest(|| there_and_back(&mut first, &[bytes]))?;
        note("a payload sent to itself".into(), bytes, took);
    }
    let sizes: Vec<usize> = (0..GROUPED).map(|i| 36_865 + 4_099 * i).collect();
    let took = shortest(|| there_and_back(&mut first, &sizes))?;
    note(format!("{GROUPED} payloads in one group, in their order"), sizes.iter().sum(), took);
    let (mut second, took) = alone(&rooms)?;
    note("a second communicator beside the first".into(), 0, took);
    let took = there_and_back(&mut second, &sizes)?.max(there_and_back(&mut first, &sizes)?);
    note("the same group through each".into(), 2 * sizes.iter().sum::<usize>(), took);
    let (why, took) = unsent(first)?;
    note(format!("a payload that nobody sends, given up: {why}"), 0, took);
    let (mut third, took) = alone(&rooms)?;
    note("aborted, and made anew by another id".into(), 0, took);
    let took = shortest(|| there_and_back(&mut third, &[SIZES[1]]))?;
    note("a payload through the new one".into(), SIZES[1], took);
    Ok(checked)
}

/// A communicator of one rank.
fn alone(rooms: &Arc<Rooms>) -> Result<(Communicator, Duration), NcclError> {
    let (begun, never) = (Instant::now(), AtomicBool::new(false));
    let seat = Seat { id: unique_id()?, rank: 0, ranks: 1 };
    let communicator = Communicator::join(&seat, rooms, Patience::from_now(JOIN_LIMIT, &never))?;
    Ok((communicator, begun.elapsed()))
}

/// Sends payloads of `sizes` to itself as one group, and compares what comes.
fn there_and_back(communicator: &mut Communicator, sizes: &[usize]) -> Result<Duration, NcclError> {
    let never = AtomicBool::new(false);
    let payload = |(i, &bytes): (usize, &usize)| {
        let mut payload = vec![0; bytes];
        // Repeats after a number of pages that is no power of two.
        payload.chunks_mut(PAGE).enumerate().for_each(|(page, chunk)| chunk.fill(((page + 7 * i) % 251) as u8));
        Bytes::from(payload)
    };
    let payloads: Vec<Bytes> = sizes.iter().enumerate().map(payload).collect();
    let sends = payloads.iter().map(|payload| Transfer::Send { to: 0, payload: payload.clone() });
    let receives = sizes.iter().map(|&bytes| Transfer::Receive { from: 0, bytes });
    let transfers: Vec<Transfer> = sends.chain(receives).collect();
    let begun = Instant::now();
    let received = communicator.group(&transfers, Patience::from_now(JOIN_LIMIT, &never))?;
    let took = begun.elapsed();
    if received == payloads {
        Ok(took)
    } else {
        Err(NcclError::Broken { call: "ncclSend and ncclRecv", why: "other bytes came than were sent".into() })
    }
}

fn shortest(mut once: impl FnMut() -> Result<Duration, NcclError>) -> Result<Duration, NcclError> {
    (0..REPEATS).try_fold(Duration::MAX, |shortest, _| Ok(shortest.min(once()?)))
}

/// Waits for a payload that nobody sends; returns how that ended. The communicator is aborted.
fn unsent(mut communicator: Communicator) -> Result<(String, Duration), NcclError> {
    let (begun, never) = (Instant::now(), AtomicBool::new(false));
    let receive = [Transfer::Receive { from: 0, bytes: SIZES[0] }];
    match communicator.group(&receive, Patience::from_now(SHORT, &never)) {
        Err(error) => Ok((error.to_string(), begun.elapsed())),
        Ok(_) => Err(NcclError::Broken { call: "ncclRecv", why: "received what nobody sent".into() }),
    }
}
