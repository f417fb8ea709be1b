//! What comes between a TCP connection and its first byte of HTTP.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::connection::Connection;

/// Makes connections of what a listener accepts.
#[derive(Clone)]
pub struct Acceptor(Option<TlsAcceptor>);

impl Acceptor {
    /// Takes connections as they are.
    pub const fn plain() -> Self {
        Self(None)
    }

    pub(super) fn tls(config: Arc<ServerConfig>) -> Self {
        Self(Some(TlsAcceptor::from(config)))
    }

    /// Shakes hands, where that is to be done, within `patience`.
    ///
    /// # Errors
    /// Who connected was not let in, said nothing in time, or has gone.
    pub async fn accept(&self, stream: TcpStream, patience: Duration) -> io::Result<Connection> {
        let Some(acceptor) = &self.0 else { return Ok(Connection::plain(stream)) };
        match timeout(patience, acceptor.accept(stream)).await {
            Ok(shaken) => Ok(Connection::secured(shaken?.into())),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no handshake within {patience:?}"))),
        }
    }
}
