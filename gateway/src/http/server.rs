//! Connections: accepted under a bound, served as HTTP/1.1 or HTTP/2 with clocks that run, and closed in order at the end.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;
use tramontane_cluster::tls::{Acceptor, Connection};

use super::connection::Guarded;

/// Most connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;
/// Connections that the system holds until they are accepted.
const BACKLOG: u32 = 1024;
/// Largest head of a request, in bytes, and its most fields.
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_FIELDS: usize = 100;
/// Most requests at once on an HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// Most streams that a client may have reset before we looked at them; one more, and its connection ends (CVE-2023-44487).
const MAX_RESETS: usize = 20;
/// Bytes of an answer that wait for their reader in the process, a stream or connection, and in the system.
const MAX_UNREAD: usize = 64 << 10;
/// How often an HTTP/2 peer is asked whether it lives, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long to wait when the system has no place for a connection (EMFILE, ENFILE, ENOMEM).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long connections have to close after the last answer.
pub const CLOSING: Duration = Duration::from_secs(5);

/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To send a request's head; also, to begin at all, and between two requests.
    pub head: Duration,
    /// To read some of what was written.
    pub read: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { head: Duration::from_secs(20), read: Duration::from_secs(30) }
    }
}

/// Listens on `addr`.
///
/// # Errors
/// The system's.
pub fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit it: it bounds what the system buffers for a slow reader.
    socket.set_send_buffer_size(MAX_UNREAD as u32)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1 or HTTP/2, as the client begins.
    Http,
    /// HTTP/2, as gRPC does.
    Http2,
}

/// Serves `routes`, on connections that `acceptor` makes of what `listener` accepts, until `stop` says true; then closes connections as soon as they have answered.
pub async fn serve(
    listener: TcpListener,
    acceptor: Acceptor,
    routes: Router,
    speaks: Speaks,
    timeouts: Timeouts,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let builder = match speaks {
        Speaks::Http => builder(timeouts),
        Speaks::Http2 => builder(timeouts).http2_only(),
    };
    let builder = Arc::new(builder);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|&stop| stop) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, place)) = accepted else { continue };
        let (acceptor, builder, routes, stop) = (acceptor.clone(), builder.clone(), routes.clone(), stop.clone());
        connections.spawn(async move {
            // Tokens are small, and wanted at once.
            _ = stream.set_nodelay(true);
            match acceptor.accept(stream, timeouts.head).await {
                Ok(stream) => connection(stream, &builder, routes, timeouts, stop).await,
                // Who knocks and goes is the client's affair, and there may be many.
                Err(error) => tracing::debug!(%error, "no handshake"),
            }
            drop(place);
        });
    }
    drop(listener);
    let closed = tokio::time::timeout(CLOSING, async { while connections.join_next().await.is_some() {} });
    _ = closed.await;
}

/// The next connection; `None` where there was none, for a reason that passes.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => None,
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_BACKOFF).await;
            None
        }
    }
}

fn builder(timeouts: Timeouts) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.head)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_FIELDS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_send_buf_size(MAX_UNREAD);
    builder
}

/// Serves one connection to its end.
async fn connection(
    stream: Connection,
    builder: &Builder<TokioExecutor>,
    routes: Router,
    timeouts: Timeouts,
    mut stop: watch::Receiver<bool>,
) {
    let (stream, head) = Guarded::new(stream, timeouts.read);
    let begun = Arc::new(AtomicBool::new(false));
    let asked = begun.clone();
    let seen = head.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(head.clone());
        routes.clone().oneshot(request)
    });
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // Before the first byte it is not known which HTTP it is, and none of hyper's clocks runs. In HTTP/2 they do after its preface: a
    // peer that lives may stay without a request.
    let mut silent = pin!(tokio::time::sleep(timeouts.head));
    let (mut watched, mut stopping) = (true, false);
    loop {
        tokio::select! {
            ended = served.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended");
                }
                return;
            }
            () = silent.as_mut(), if watched => {
                watched = false;
                if !begun.load(Ordering::Relaxed) && !seen.is_http2() {
                    return;
                }
            }
            _ = stop.wait_for(|&stop| stop), if !stopping => {
                stopping = true;
                served.as_mut().graceful_shutdown();
            }
        }
    }
}
