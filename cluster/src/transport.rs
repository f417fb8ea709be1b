//! What both gRPC seams share: the settings of a connection, and how a server stops.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

/// Bytes of one message, at most, in either direction.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;
/// How long a connection may take to be made.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// HTTP/2 flow-control window of a stream and of a connection: a prefill's rows must not wait for window updates.
const WINDOW: u32 = 16 << 20;
/// Bytes of one HTTP/2 frame, at most: large rows in few frames.
const FRAME: u32 = 1 << 20;
/// A silent connection is pinged this often,
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// and given up when a ping stays unanswered this long. (A broken connection is noticed at once.)
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to `host:port`.
///
/// # Errors
/// Why it did not, as text, within [`CONNECT_TIMEOUT`].
pub(crate) async fn connect(addr: &str) -> Result<Channel, String> {
    Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|error| format!("{addr} is no address: {}", causes(&error)))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_adaptive_window(false)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect()
        .await
        .map_err(|error| format!("cannot connect to {addr}: {}", causes(&error)))
}

/// A server with the settings of [`connect`]'s far end.
pub(crate) fn server() -> Server {
    Server::builder()
        .http2_adaptive_window(Some(false))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
}

/// The connections `listener` accepts.
pub(crate) fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// An error with its causes on one line: what a connection failed of stands in the last one.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// Why a server ended although it was not told to.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The listener or the transport broke: start the server again, or look at the address.
    #[error("the server broke: {why}")]
    Transport {
        /// What broke.
        why: String,
    },
    /// The thread that computes panicked: end the process, for its state is unknown.
    #[error("the compute thread panicked")]
    ComputeDied,
}

impl From<tonic::transport::Error> for ServerError {
    fn from(error: tonic::transport::Error) -> Self {
        Self::Transport { why: causes(&error) }
    }
}

/// Tells a server's streams that it stops: they would keep its connections open for ever.
#[derive(Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// `signal`, to be awaited by the server, and what its streams see: they stop when `signal` completes or is dropped.
    pub(crate) fn after(signal: impl Future<Output = ()> + Send) -> (impl Future<Output = ()> + Send, Self) {
        let (tell, told) = watch::channel(false);
        let signal = async move {
            signal.await;
            tell.send_replace(true);
        };
        (signal, Self(told))
    }

    /// Completes when the server stops.
    pub(crate) async fn stopped(mut self) {
        // An error means that the signal was dropped with the server.
        let _ = self.0.wait_for(|&stopped| stopped).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn streams_stop_when_the_signal_completes_or_is_dropped() {
        let (signal, stop) = Stop::after(std::future::ready(()));
        tokio::join!(signal, stop.stopped());
        let (signal, stop) = Stop::after(std::future::pending());
        drop(signal);
        stop.stopped().await;
    }

    #[tokio::test]
    async fn a_failed_connection_says_of_what() {
        let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("its address");
        let refused = connect(&nobody.to_string()).await.expect_err("nobody listens");
        assert!(refused.contains("refused"), "{refused}");
        assert!(connect("no address").await.expect_err("a space").contains("is no address"));
    }
}
