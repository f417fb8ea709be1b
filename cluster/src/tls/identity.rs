//! A process's certificate, key and authorities.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;

use super::certificate::Certificate;
use super::watched::{Reloaded, TlsError, Watched};
use super::who::Who;

/// Where they are, all in PEM. What manages certificates writes them anew before they end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The process's certificate, and those between it and an authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities that sign others' certificates.
    pub authority: PathBuf,
}

/// Who a process is, and whom it trusts.
#[derive(Clone)]
pub struct Identity(Arc<Watched<Material, 3>>);

/// What handshakes use.
pub(super) struct Material {
    pub(super) who: Who,
    pub(super) own: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
    /// Whether a client's certificate is genuine; not, whom it is for.
    pub(super) clients: Arc<dyn ClientCertVerifier>,
    /// When `own` ends, in seconds since 1970.
    ends: i64,
}

impl Identity {
    /// Reads `files`.
    ///
    /// # Errors
    /// [`TlsError`]: unreadable, a key that is another's, a certificate that names no role, or nobody to trust.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let paths = [files.certificate.clone(), files.key.clone(), files.authority.clone()];
        let watched = Watched::load(paths, move |contents, before: Option<&Material>| {
            let material = material(&files, contents)?;
            match before {
                Some(Material { who, .. }) if *who != material.who => {
                    let why = format!("it is for {}, and the one before was for {who}", material.who);
                    Err(TlsError::new(&files.certificate, why))
                }
                _ => Ok(material),
            }
        });
        Ok(Self(Arc::new(watched?)))
    }

    /// Whom its certificate names.
    pub fn who(&self) -> Who {
        self.material().who.clone()
    }

    /// When its certificate ends, in seconds since 1970.
    pub fn ends(&self) -> i64 {
        self.material().ends
    }

    pub(super) fn material(&self) -> Arc<Material> {
        self.0.current()
    }

    /// Reads the files again.
    ///
    /// # Errors
    /// [`TlsError`]; then what was read before stays in use. So it does when the new certificate names another role or cluster.
    pub fn reload(&self) -> Result<Reloaded, TlsError> {
        self.0.reload()
    }

    /// Reads the files again whenever they have changed, for as long as it is polled.
    pub async fn follow(&self) -> Infallible {
        self.0.follow().await
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.who())
    }
}

/// The arithmetic that all handshakes use.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn material(files: &TlsFiles, [certificate, key, authority]: &[Vec<u8>; 3]) -> Result<Material, TlsError> {
    let own = certified(&files.certificate, certificate, &files.key, key)?;
    let leaf = own.end_entity_cert().ok().and_then(|leaf| Certificate::of(leaf).ok());
    let leaf = leaf.ok_or_else(|| TlsError::new(&files.certificate, "it cannot be read as a certificate"))?;
    let who = leaf.who.ok_or_else(|| {
        let why = "it names no role: a URI like spiffe://tramontane/CLUSTER/ROLE is wanted, exactly one";
        TlsError::new(&files.certificate, why)
    })?;
    let mut roots = RootCertStore::empty();
    for root in certificates(&files.authority, authority)? {
        roots.add(root).map_err(|error| TlsError::new(&files.authority, error.to_string()))?;
    }
    let roots = Arc::new(roots);
    let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build();
    let clients = clients.map_err(|error| TlsError::new(&files.authority, format!("nobody to trust: {error}")))?;
    Ok(Material { who, own: Arc::new(own), roots, clients, ends: leaf.valid.1 })
}

/// A certificate, those above it, and its key.
pub(super) fn certified(
    certificate: &Path,
    chain: &[u8],
    key: &Path,
    key_bytes: &[u8],
) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate, chain)?;
    if chain.is_empty() {
        return Err(TlsError::new(certificate, "there is no certificate in it"));
    }
    let private = PrivateKeyDer::from_pem_slice(key_bytes);
    let private = private.map_err(|_| TlsError::new(key, "there is no private key in it"))?;
    CertifiedKey::from_der(chain, private, &provider()).map_err(|error| {
        TlsError::new(key, format!("it does not belong to the certificate in {}: {error}", certificate.display()))
    })
}

/// All certificates in `pem`, which was read from `file`.
///
/// # Errors
/// [`TlsError`]: it is not PEM.
pub fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<_, _> = CertificateDer::pem_slice_iter(pem).collect();
    read.map_err(|error| TlsError::new(file, format!("it is not PEM: {error}")))
}
