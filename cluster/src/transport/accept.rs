//! Connections as they come: each shakes hands beside the others, so that one that dawdles holds nobody up.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, unfold};
use futures::{FutureExt, Stream, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use super::{CONNECT_TIMEOUT, causes};
use crate::tls::{Acceptor, Connection};

/// Handshakes at once, at most; more connections wait to be accepted.
const MAX_HANDSHAKES: usize = 256;
/// How long to wait when the system has no place for a connection (EMFILE, ENFILE, ENOMEM).
const BACKOFF: Duration = Duration::from_millis(100);
/// Refusals are logged at most this often: whoever knocks all day does not fill a disk.
const SELDOM: Duration = Duration::from_secs(1);

/// A listener, and the connections that have come and not yet shaken hands.
pub(super) struct Accepting {
    listener: TcpListener,
    acceptor: Acceptor,
    shaking: FuturesUnordered<BoxFuture<'static, Result<Connection, Refused>>>,
    logged: Option<Instant>,
}

/// Somebody who was not let in.
struct Refused {
    peer: SocketAddr,
    why: String,
}

impl Accepting {
    pub(super) fn new(listener: TcpListener, acceptor: Acceptor) -> Self {
        Self { listener, acceptor, shaking: FuturesUnordered::new(), logged: None }
    }

    /// All connections, in the order in which they were let in.
    pub(super) fn stream(self) -> impl Stream<Item = io::Result<Connection>> + Send {
        unfold(self, async |mut accepting| {
            let connection = accepting.next().await;
            Some((Ok(connection), accepting))
        })
    }

    async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if self.shaking.len() < MAX_HANDSHAKES => match accepted {
                    Ok((stream, peer)) => self.shaking.push(shake(stream, peer, self.acceptor.clone()).boxed()),
                    Err(error) => not_accepted(&error).await,
                },
                Some(shaken) = self.shaking.next(), if !self.shaking.is_empty() => match shaken {
                    Ok(connection) => return connection,
                    Err(refused) => self.log(&refused),
                },
            }
        }
    }

    fn log(&mut self, Refused { peer, why }: &Refused) {
        if self.logged.is_none_or(|at| at.elapsed() >= SELDOM) {
            self.logged = Some(Instant::now());
            tracing::warn!(%peer, why, "a connection was refused");
        }
    }
}

async fn shake(stream: TcpStream, peer: SocketAddr, acceptor: Acceptor) -> Result<Connection, Refused> {
    let refused = |why: String| Refused { peer, why };
    stream.set_nodelay(true).map_err(|error| refused(error.to_string()))?;
    acceptor.accept(stream, CONNECT_TIMEOUT).await.map_err(|error| refused(causes(&error)))
}

async fn not_accepted(error: &io::Error) {
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tracing::warn!(%error, "cannot accept a connection");
        sleep(BACKOFF).await;
    }
}
