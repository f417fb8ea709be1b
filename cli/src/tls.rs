//! How this process shows others of its cluster who it is.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use tramontane_cluster::tls::{Acceptor, FrontCertificate, Identity, Role, Security, TlsFiles};

/// Certificates for connections between processes of a cluster.
#[derive(Clone, Debug, Args)]
pub(crate) struct CertificateArgs {
    /// Certificate of this process (PEM), which names its role; with it TLS is spoken, and asked for, between the cluster's processes. It is read again when it changes
    #[arg(long, env = "TRAMONTANE_TLS_CERT", value_name = "FILE", requires_all = ["tls_key", "tls_ca"], help_heading = "TLS")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, env = "TRAMONTANE_TLS_KEY", value_name = "FILE", requires = "tls_cert", help_heading = "TLS")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Authorities that sign the certificates of the cluster (PEM)
    #[arg(long, env = "TRAMONTANE_TLS_CA", value_name = "FILE", requires = "tls_cert", help_heading = "TLS")]
    pub(crate) tls_ca: Option<PathBuf>,
}

/// The same for a process that listens.
#[derive(Clone, Debug, Args)]
pub(crate) struct TlsArgs {
    #[command(flatten)]
    pub(crate) certificate: CertificateArgs,
    /// Listen for the cluster's processes on addresses that others can reach although there is no TLS
    #[arg(long, env = "TRAMONTANE_PLAINTEXT", conflicts_with = "tls_cert", help_heading = "TLS")]
    pub(crate) plaintext: bool,
}

/// A certificate for clients.
#[derive(Clone, Debug, Args)]
pub(crate) struct FrontTlsArgs {
    /// Certificate for clients (PEM, with those above it): HTTP and gRPC are served over TLS, 1.2 or newer. It is read again when it changes
    #[arg(
        long,
        env = "TRAMONTANE_HTTP_TLS_CERT",
        value_name = "FILE",
        requires = "http_tls_key",
        help_heading = "Serving"
    )]
    pub(crate) http_tls_cert: Option<PathBuf>,
    /// Private key of the certificate for clients (PEM)
    #[arg(
        long,
        env = "TRAMONTANE_HTTP_TLS_KEY",
        value_name = "FILE",
        requires = "http_tls_cert",
        help_heading = "Serving"
    )]
    pub(crate) http_tls_key: Option<PathBuf>,
}

impl CertificateArgs {
    /// What they say for a process that is to be `role` and stays. Certificates are read again for as long as the runtime is there.
    pub(crate) fn open(&self, role: Role) -> anyhow::Result<Security> {
        let security = self.load(role)?;
        if let Security::Mutual(identity) = &security {
            let followed = identity.clone();
            tokio::spawn(async move { followed.follow().await });
        }
        Ok(security)
    }

    /// What they say now, for a command that connects once.
    pub(crate) fn load(&self, role: Role) -> anyhow::Result<Security> {
        let (Some(certificate), Some(key), Some(authority)) = (&self.tls_cert, &self.tls_key, &self.tls_ca) else {
            return Ok(Security::Plaintext);
        };
        let (certificate, key, authority) = (certificate.clone(), key.clone(), authority.clone());
        let identity = Identity::load(TlsFiles { certificate: certificate.clone(), key, authority })?;
        let who = identity.who();
        if who.role != role {
            bail!("--tls-cert {}: it is for {who}, and this is to be its {role}", certificate.display());
        }
        Ok(Security::Mutual(identity))
    }
}

impl TlsArgs {
    /// The same for a process of `cluster`.
    pub(crate) fn open(&self, role: Role, cluster: &str) -> anyhow::Result<Security> {
        let security = self.certificate.open(role)?;
        if let Security::Mutual(identity) = &security
            && identity.who().cluster != cluster
        {
            bail!("--tls-cert: it is for {}, and --cluster is {cluster}", identity.who());
        }
        Ok(security)
    }

    /// Whether a process may listen for others of its cluster on `addr`, as `flag` says.
    pub(crate) fn permit(&self, flag: &str, addr: SocketAddr) -> anyhow::Result<()> {
        if addr.ip().is_loopback() || self.plaintext || self.certificate.tls_cert.is_some() {
            return Ok(());
        }
        bail!(
            "{flag} {addr}: others can reach this address; give --tls-cert, --tls-key and --tls-ca (`tramontane certs` makes them), or --plaintext if that is meant"
        )
    }
}

impl FrontTlsArgs {
    /// What makes connections of clients. The certificate is read again for as long as the runtime is there.
    pub(crate) fn open(&self) -> anyhow::Result<Acceptor> {
        let (Some(certificate), Some(key)) = (&self.http_tls_cert, &self.http_tls_key) else {
            return Ok(Acceptor::plain());
        };
        let front = FrontCertificate::load(certificate.clone(), key.clone())?;
        let acceptor = front.acceptor().map_err(anyhow::Error::msg)?;
        tokio::spawn(async move { front.follow().await });
        Ok(acceptor)
    }

    /// How the front door's addresses begin.
    pub(crate) const fn scheme(&self) -> &'static str {
        if self.http_tls_cert.is_some() { "https" } else { "http" }
    }
}
