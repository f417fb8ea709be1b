//! A wire between coordinators and a node, in weather that the test makes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::dice::Dice;

/// Bytes carried at a time.
const PIECE: usize = 16 << 10;
/// Bytes that a narrow link carries at a time.
const NARROW: usize = 512;
/// What a slow wire takes, one way.
const LATENCY: Duration = Duration::from_millis(100);
/// What a piece that was lost takes beside that, to be sent again.
const AGAIN: Duration = Duration::from_millis(400);

/// What the wire does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// All that comes in goes out.
    Clear,
    /// One bit of every fourth piece from the node is another.
    FlippedBits,
    /// The node is heard by nobody; it hears everybody.
    NoAnswers,
    /// Connections are made, and carry nothing.
    Silence,
    /// 100 ms each way, and one piece in a hundred sent twice.
    Slow,
    /// What does not fit a small packet never arrives, nor what follows it that way: a link narrower than both ends believe, whose
    /// word about it is lost.
    NothingLarge,
    /// No connections.
    Cut,
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToNode,
    FromNode,
}

/// A wire.
pub(crate) struct Proxy {
    pub(crate) addr: String,
    weather: watch::Sender<Weather>,
    harmed: Arc<AtomicU64>,
}

impl Proxy {
    /// A wire to `target`, in clear weather.
    pub(crate) fn to(target: String, runtime: &Runtime) -> Self {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let addr = listener.local_addr().expect("its address").to_string();
        let (weather, harmed) = (watch::Sender::new(Weather::Clear), Arc::new(AtomicU64::new(0)));
        let (changes, count) = (weather.subscribe(), harmed.clone());
        runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if *changes.borrow() == Weather::Cut {
                    count.fetch_add(1, Ordering::Relaxed);
                } else {
                    tokio::spawn(connection(near, target.clone(), changes.clone(), count.clone()));
                }
            }
        });
        Self { addr, weather, harmed }
    }

    pub(crate) fn make(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Pieces and connections that did not come through as they were, so far.
    pub(crate) fn harmed(&self) -> u64 {
        self.harmed.load(Ordering::Relaxed)
    }
}

async fn connection(near: TcpStream, target: String, weather: watch::Receiver<Weather>, harmed: Arc<AtomicU64>) {
    let Ok(far) = TcpStream::connect(target).await else { return };
    // Fails only where the connection is gone already.
    _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let mut cut = weather.clone();
    tokio::select! {
        () = carry(near_in, far_out, Way::ToNode, weather.clone(), harmed.clone()) => {}
        () = carry(far_in, near_out, Way::FromNode, weather, harmed.clone()) => {}
        _ = cut.wait_for(|weather| *weather == Weather::Cut) => { harmed.fetch_add(1, Ordering::Relaxed); }
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    weather: watch::Receiver<Weather>,
    harmed: Arc<AtomicU64>,
) {
    let (mut piece, mut dice, mut stuck) = (vec![0; PIECE], Dice(7), false);
    let harm = || _ = harmed.fetch_add(1, Ordering::Relaxed);
    loop {
        let Ok(length @ 1..) = from.read(&mut piece).await else { return };
        let now = *weather.borrow();
        match now {
            Weather::Clear | Weather::Cut => {}
            Weather::FlippedBits if way == Way::FromNode && dice.below(4) == 0 => {
                piece[dice.below(length as u64) as usize] ^= 1 << dice.below(8);
                harm();
            }
            Weather::FlippedBits => {}
            Weather::NoAnswers if way == Way::ToNode => {}
            Weather::NoAnswers | Weather::Silence => {
                harm();
                continue;
            }
            Weather::NothingLarge => {
                stuck |= length > NARROW;
                if stuck {
                    harm();
                    continue;
                }
            }
            Weather::Slow => {
                harm();
                sleep(LATENCY + if dice.below(100) == 0 { AGAIN } else { Duration::ZERO }).await;
            }
        }
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}
