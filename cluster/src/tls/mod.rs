//! Mutual TLS between processes of a cluster. A certificate names one role ([`Who`]), and each listener answers one: expert nodes
//! answer coordinators, coordinators' engines gateways, and their admin listeners admins. Certificates may change while
//! connections are open.

mod acceptor;
mod authority;
mod certificate;
mod connection;
mod front;
mod identity;
mod verify;
mod watched;
mod who;

use std::sync::Arc;

use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

pub use acceptor::Acceptor;
pub use authority::{Authority, AuthorityError, Issued, Subject};
pub use certificate::{Certificate, Unreadable};
pub use connection::Connection;
pub use front::FrontCertificate;
pub use identity::{Identity, TlsFiles, certificates as pem_certificates};
pub use watched::{Reloaded, TlsError};
pub use who::{NoRole, Role, Who};

use identity::provider;
use verify::Verifier;

/// What is spoken over the connections, as ALPN names it.
const HTTP2: &[u8] = b"h2";

/// How connections between processes are secured.
#[derive(Clone, Debug)]
pub enum Security {
    /// Not at all: for loopback, and networks that are trusted or encrypt by themselves.
    Plaintext,
    /// By TLS 1.3, both ends with certificates.
    Mutual(Identity),
}

/// For connecting to whoever has the role `far`.
pub(crate) fn client_config(identity: &Identity, far: Role) -> Result<Arc<ClientConfig>, rustls::Error> {
    let verifier = Arc::new(Verifier::new(identity.clone(), far));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_cert_resolver(verifier);
    // A resumed session would outlive the certificate it began with.
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(Arc::new(config))
}

/// For listening to whoever has the role `admitted`.
pub(crate) fn acceptor(security: &Security, admitted: Role) -> Result<Acceptor, rustls::Error> {
    let Security::Mutual(identity) = security else { return Ok(Acceptor::plain()) };
    let verifier = Arc::new(Verifier::new(identity.clone(), admitted));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(verifier);
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(Acceptor::tls(Arc::new(config)))
}
