//! The thread that owns this process's end of a communicator: it moves what it is ordered to, in that order, as many
//! payloads at once as wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::spawn_blocking;

use super::communicator::{Communicator, NcclError, Patience, Rooms, Seat, Transfer};
use super::{
    COORDINATOR, GREETING_LIMIT, JOIN_LIMIT, MAX_GROUP, MAX_GROUP_BYTES, ORDERS_PER_MEMBER, SLOWEST, STALL_LIMIT,
};

/// How often a communicator with nothing to do is asked how it is.
const CHECK: Duration = Duration::from_secs(1);

/// One payload to move.
pub(super) struct Order {
    /// The dispatch whose rows they are.
    pub(super) sequence: u64,
    pub(super) transfer: Transfer,
}

/// What the thread says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// All ranks are together.
    Joined,
    /// A payload came.
    Received { sequence: u64, payload: Bytes },
    /// It is over with this communicator, and with the thread: through the rank `by`, where that is known.
    Broken { by: Option<u32>, why: String },
}

/// Why a communicator is over, and through which other rank, where that is known.
struct Ended {
    by: Option<u32>,
    why: NcclError,
}

impl From<NcclError> for Ended {
    fn from(why: NcclError) -> Self {
        Self { by: None, why }
    }
}

/// The thread, as others see it. When dropped the communicator is aborted, whatever it is about.
pub(super) struct Rank {
    orders: SyncSender<Order>,
    stop: Arc<AtomicBool>,
}

impl Rank {
    /// Starts a thread that takes `seat`, to move payloads to and from `peers` others by way of `rooms`. What it sends to `events` is
    /// bounded by what it is ordered. It is one of the runtime's blocking threads, whose end the runtime waits for: a
    /// process that ends while one is in NCCL crashes.
    pub(super) fn start(seat: Seat, peers: usize, rooms: Arc<Rooms>, events: UnboundedSender<Event>) -> Self {
        let (orders, ordered) = sync_channel(peers * ORDERS_PER_MEMBER);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        spawn_blocking(move || {
            let Ended { by, why } = drive(&seat, &rooms, &ordered, &events, &stopped);
            // Fails only when nobody wants to know any more.
            let _ = events.send(Event::Broken { by, why: why.to_string() });
        });
        Self { orders, stop }
    }

    /// Has one payload more moved; `false` when the thread has ended, or has more to do than it may.
    pub(super) fn order(&self, order: Order) -> bool {
        self.orders.try_send(order).is_ok()
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Works until that is no longer possible, or wanted; returns why.
fn drive(
    seat: &Seat,
    rooms: &Arc<Rooms>,
    ordered: &Receiver<Order>,
    events: &UnboundedSender<Event>,
    stop: &AtomicBool,
) -> Ended {
    let mut communicator = match join(seat, rooms, stop) {
        Ok(communicator) => communicator,
        Err(ended) => return ended,
    };
    let mut left = None;
    let mut said = events.send(Event::Joined);
    while said.is_ok() {
        let first = match left.take().map_or_else(|| ordered.recv_timeout(CHECK), Ok) {
            Ok(first) => first,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => match communicator.healthy() {
                Ok(()) => continue,
                Err(error) => return error.into(),
            },
        };
        let group = gather(first, &mut left, || ordered.try_recv().ok());
        let transfers: Vec<Transfer> = group.iter().map(|order| order.transfer.clone()).collect();
        let total = transfers.iter().map(Transfer::bytes).sum();
        let received = match communicator.group(&transfers, Patience::from_now(limit(total), stop)) {
            Ok(received) => received,
            Err(error) => return error.into(),
        };
        let receives = group.iter().filter(|order| matches!(order.transfer, Transfer::Receive { .. }));
        said = receives
            .zip(received)
            .try_for_each(|(order, payload)| events.send(Event::Received { sequence: order.sequence, payload }));
    }
    NcclError::Stopped.into()
}

/// Takes `seat`, and has each member and the coordinator greet one another, one member after the other. NCCL connects two
/// ranks when they first exchange something, which takes long and can fail; here nobody's rows wait for it.
fn join(seat: &Seat, rooms: &Arc<Rooms>, stop: &AtomicBool) -> Result<Communicator, Ended> {
    if stop.load(Ordering::Acquire) {
        return Err(NcclError::Stopped.into());
    }
    let patience = Patience::from_now(JOIN_LIMIT, stop);
    let mut communicator = Communicator::join(seat, rooms, patience)?;
    let greeting = |rank: u32| Bytes::copy_from_slice(&rank.to_le_bytes());
    let is_coordinator = seat.rank == COORDINATOR;
    for peer in if is_coordinator { 1..seat.ranks } else { COORDINATOR..1 } {
        let ours = Transfer::Send { to: peer, payload: greeting(seat.rank) };
        let theirs = Transfer::Receive { from: peer, bytes: greeting(peer).len() };
        // A member waits for its turn as well.
        let patience = if is_coordinator { Patience::from_now(GREETING_LIMIT, stop) } else { patience };
        match communicator.group(&[ours, theirs], patience) {
            Ok(came) if came == [greeting(peer)] => {}
            Ok(_) => {
                let why = NcclError::Broken { call: "ncclRecv", why: format!("no greeting of rank {peer}") };
                return Err(Ended { by: Some(peer), why });
            }
            Err(why @ NcclError::Late { .. }) => return Err(Ended { by: Some(peer), why }),
            Err(why) => return Err(why.into()),
        }
    }
    Ok(communicator)
}

/// `first` and what waits behind it, within the bounds of a group; what goes over them is `left`. With each peer all go one
/// way (why: see the module `nccl`).
fn gather(first: Order, left: &mut Option<Order>, mut next: impl FnMut() -> Option<Order>) -> Vec<Order> {
    let mut bytes = first.transfer.bytes();
    let mut ways = BTreeMap::from([first.transfer.way()]);
    let mut group = vec![first];
    while group.len() < MAX_GROUP
        && let Some(order) = next()
    {
        bytes += order.transfer.bytes();
        let (peer, way) = order.transfer.way();
        if bytes > MAX_GROUP_BYTES || *ways.entry(peer).or_insert(way) != way {
            *left = Some(order);
            break;
        }
        group.push(order);
    }
    group
}

/// How long a group of so many bytes may take.
fn limit(bytes: usize) -> Duration {
    STALL_LIMIT + Duration::from_secs_f64(bytes as f64 / SLOWEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(sizes: &[usize]) -> Vec<Vec<u64>> {
        gathered(sizes.iter().map(|&bytes| Transfer::Receive { from: 0, bytes }))
    }

    /// Which of `transfers` go together, by their numbers.
    fn gathered(transfers: impl Iterator<Item = Transfer>) -> Vec<Vec<u64>> {
        let mut waiting = transfers.enumerate().map(|(i, transfer)| Order { sequence: i as u64, transfer });
        let (mut left, mut groups) = (None, Vec::new());
        while let Some(first) = left.take().or_else(|| waiting.next()) {
            let group = gather(first, &mut left, || waiting.next());
            groups.push(group.iter().map(|order| order.sequence).collect());
        }
        groups
    }

    #[test]
    fn what_waits_goes_together_in_its_order_within_bounds() {
        assert_eq!(groups(&[1, 2, 3]), [vec![0, 1, 2]]);
        assert_eq!(groups(&[MAX_GROUP_BYTES, 1, 2]), [vec![0], vec![1, 2]]);
        assert_eq!(groups(&[1, MAX_GROUP_BYTES, MAX_GROUP_BYTES]), [vec![0], vec![1], vec![2]]);
        assert_eq!(groups(&[2 * MAX_GROUP_BYTES, 1]), [vec![0], vec![1]], "one that is over the bound goes alone");
        assert_eq!(groups(&vec![1; MAX_GROUP + 1]).last(), Some(&vec![MAX_GROUP as u64]));
    }

    #[test]
    fn with_each_peer_a_group_goes_one_way() {
        let send = |to| Transfer::Send { to, payload: Bytes::from_static(b"row") };
        let receive = |from| Transfer::Receive { from, bytes: 3 };
        let orders = [send(1), send(1), receive(2), receive(1), receive(2), send(2), send(1)];
        assert_eq!(gathered(orders.into_iter()), [vec![0, 1, 2], vec![3, 4], vec![5, 6]]);
    }

    #[test]
    fn large_groups_may_take_longer() {
        assert_eq!(limit(0), STALL_LIMIT);
        assert_eq!(limit(SLOWEST as usize), STALL_LIMIT + Duration::from_secs(1));
    }
}
