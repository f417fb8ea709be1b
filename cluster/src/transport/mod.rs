//! What all gRPC seams share: how a connection is made and secured, its settings, and how a server stops.

mod accept;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Server};

use crate::tls::{Connection, Role, Security, acceptor, client_config};
use accept::Accepting;

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

/// Connects to `host:port`, where somebody of the role `far` listens.
///
/// # Errors
/// Why it did not, as text, within [`CONNECT_TIMEOUT`].
pub(crate) async fn connect(addr: &str, security: &Security, far: Role) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|error| format!("{addr} is no address: {}", causes(&error)))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_adaptive_window(false)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let connected = match security {
        Security::Plaintext => endpoint.connect().await,
        Security::Mutual(identity) => {
            let config = client_config(identity, far).map_err(|error| format!("TLS: {error}"))?;
            let (connector, addr) = (TlsConnector::from(config), Arc::<str>::from(addr));
            let connector = tower::service_fn(move |_| secure(connector.clone(), addr.clone()));
            endpoint.connect_with_connector(connector).await
        }
    };
    connected.map_err(|error| format!("cannot connect to {addr}: {}", causes(&error)))
}

/// A connection to `addr` on which the far end has shown who it is.
async fn secure(connector: TlsConnector, addr: Arc<str>) -> io::Result<TokioIo<Connection>> {
    let connected = timeout(CONNECT_TIMEOUT, async {
        let stream = TcpStream::connect(&*addr).await?;
        stream.set_nodelay(true)?;
        // Whom a certificate is for is its role; there is no name to compare.
        let nobody = ServerName::IpAddress(stream.peer_addr()?.ip().into());
        connector.connect(nobody, stream).await
    });
    let stream = connected.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(TokioIo::new(Connection::secured(stream.into())))
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

/// The connections `listener` accepts, from whoever has the role `admitted`.
///
/// # Errors
/// [`ServerError::Transport`] when TLS cannot be set up.
pub(crate) fn incoming(
    listener: TcpListener,
    security: &Security,
    admitted: Role,
) -> Result<impl Stream<Item = io::Result<Connection>> + Send + use<>, ServerError> {
    let acceptor = acceptor(security, admitted);
    let acceptor = acceptor.map_err(|error| ServerError::Transport { why: format!("TLS: {error}") })?;
    Ok(Accepting::new(listener, acceptor).stream())
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
mod tests;
