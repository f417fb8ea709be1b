//! Connections to servers that speak HTTP/1.1, plain or over TLS.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::origin::{Origin, Scheme};

/// How long a connection may take to stand, TLS included.
const CONNECT: Duration = Duration::from_secs(10);

/// Makes connections, and knows whom to trust.
#[derive(Clone)]
pub(crate) struct Wire {
    /// The system's authorities, if any server is to be reached over TLS.
    tls: Option<Arc<ClientConfig>>,
}

impl Wire {
    /// For servers by `scheme`. The authorities are read only where they are needed.
    ///
    /// # Errors
    /// The system has no authorities.
    pub(crate) fn new(scheme: Scheme) -> anyhow::Result<Self> {
        let tls = match scheme {
            Scheme::Http => None,
            Scheme::Https => Some(Arc::new(trusting_the_system()?)),
        };
        Ok(Self { tls })
    }

    /// A connection to `origin`, which takes one request after another. It ends when the last answer has been read or dropped.
    pub(crate) async fn connect(&self, origin: &Origin) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let connecting = timeout(CONNECT, self.open(origin)).await;
        connecting.map_err(|_| anyhow!("it did not answer within {CONNECT:?}"))?
    }

    async fn open(&self, origin: &Origin) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect((origin.name(), origin.port)).await?;
        // A request is small, and wanted at once.
        _ = stream.set_nodelay(true);
        if origin.scheme == Scheme::Http {
            return shake(stream).await;
        }
        // One that was made for plain servers is led to one over TLS by a redirect.
        let tls = match &self.tls {
            Some(tls) => tls.clone(),
            None => Arc::new(trusting_the_system()?),
        };
        let name = ServerName::try_from(origin.name().to_owned())?;
        shake(TlsConnector::from(tls).connect(name, stream).await?).await
    }
}

async fn shake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

fn trusting_the_system() -> anyhow::Result<ClientConfig> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // What cannot be read as a certificate is nobody to trust; the others are.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(String::new, |error| format!(": {error}"));
        return Err(anyhow!(
            "this machine trusts no authority, so nobody over https (Debian's package is ca-certificates; SSL_CERT_FILE names a file){why}"
        ));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().context("TLS")?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
