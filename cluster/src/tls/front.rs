//! TLS towards clients: a certificate for the names by which they reach us. Clients show keys of the API, not certificates.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};

use super::HTTP2;
use super::acceptor::Acceptor;
use super::identity::{certified, provider};
use super::watched::{Reloaded, TlsError, Watched};

/// As ALPN names it.
const HTTP11: &[u8] = b"http/1.1";

/// A front door's certificate and key.
#[derive(Clone)]
pub struct FrontCertificate(Arc<Watched<CertifiedKey, 2>>);

impl FrontCertificate {
    /// Reads the certificate (with those above it) and its key, in PEM.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(certificate: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let files = [certificate.clone(), key.clone()];
        let watched = Watched::load(files, move |[chain, private]: &[Vec<u8>; 2], _| {
            certified(&certificate, chain, &key, private)
        });
        Ok(Self(Arc::new(watched?)))
    }

    /// Reads the files again.
    ///
    /// # Errors
    /// [`TlsError`]; then what was read before stays in use.
    pub fn reload(&self) -> Result<Reloaded, TlsError> {
        self.0.reload()
    }

    /// Reads the files again whenever they have changed, for as long as it is polled.
    pub async fn follow(&self) -> Infallible {
        self.0.follow().await
    }

    /// For TLS from 1.2 on, with HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// As text, when TLS cannot be set up.
    pub fn acceptor(&self) -> Result<Acceptor, String> {
        let config = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS12, &TLS13]);
        let config = config.map_err(|error| format!("TLS: {error}"))?;
        let mut config = config.with_no_client_auth().with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP11.to_vec()];
        Ok(Acceptor::tls(Arc::new(config)))
    }
}

impl ResolvesServerCert for FrontCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current())
    }
}

impl fmt::Debug for FrontCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrontCertificate")
    }
}
