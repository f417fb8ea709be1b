//! A small certificate authority, for clusters that have none: it signs who has which role. No revocation: certificates are short,
//! and a new authority takes the old one's place (both are trusted meanwhile).

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::OffsetDateTime;

use super::who::Who;

/// Certificates begin a little before they are made: clocks differ.
const SKEW: Duration = Duration::from_secs(300);

/// It could not be signed, or the authority could not be read: look at what it names.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The authority's files are not an authority's.
    #[error("the authority's certificate or key cannot be used: {0}")]
    Unusable(#[source] rcgen::Error),
    /// A name cannot stand in a certificate.
    #[error("`{name}` cannot stand in a certificate: {source}")]
    Name {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// Signing failed.
    #[error("cannot sign: {0}")]
    Sign(#[source] rcgen::Error),
    /// The end is beyond what certificates can say.
    #[error("{0} days are too many")]
    Days(u32),
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// Whom to sign for.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The certificate's own name, for people.
    pub name: String,
    /// What it may do.
    pub who: Who,
    /// DNS names and addresses for clients that look at those (browsers, other programs; ours look at `who`).
    pub hosts: Vec<String>,
}

/// Signs.
pub struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    /// A new one that holds for `days` from `now`, and its certificate and key.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn create(name: &str, days: u32, now: SystemTime) -> Result<(Self, Issued), AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Sign)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = validity(days, now)?;
        let certificate = params.self_signed(&key).map_err(AuthorityError::Sign)?.pem();
        let issued = Issued { certificate, key: key.serialize_pem() };
        Ok((Self(Issuer::new(params, key)), issued))
    }

    /// The one whose certificate and key these are, in PEM.
    ///
    /// # Errors
    /// [`AuthorityError::Unusable`].
    pub fn from_pem(issued: &Issued) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(&issued.key).map_err(AuthorityError::Unusable)?;
        Issuer::from_ca_cert_pem(&issued.certificate, key).map(Self).map_err(AuthorityError::Unusable)
    }

    /// A certificate for `subject` that holds for `days` from `now`, with a key of its own.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn issue(&self, subject: &Subject, days: u32, now: SystemTime) -> Result<Issued, AuthorityError> {
        let name = |name: &str, source| AuthorityError::Name { name: name.to_owned(), source };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, subject.name.as_str());
        let uri = subject.who.uri();
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().map_err(|error| name(&uri, error))?)];
        for host in &subject.hosts {
            let alternative = match host.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into().map_err(|error| name(host, error))?),
            };
            params.subject_alt_names.push(alternative);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(days, now)?;
        let key = KeyPair::generate().map_err(AuthorityError::Sign)?;
        let certificate = params.signed_by(&key, &self.0).map_err(AuthorityError::Sign)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem() })
    }
}

fn validity(days: u32, now: SystemTime) -> Result<(OffsetDateTime, OffsetDateTime), AuthorityError> {
    let begin = OffsetDateTime::from(now);
    let end = begin.checked_add(time::Duration::days(days.into())).ok_or(AuthorityError::Days(days))?;
    Ok((begin.saturating_sub(SKEW.try_into().unwrap_or_default()), end))
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;
    use crate::tls::certificate::Certificate;
    use crate::tls::who::Role;

    #[test]
    fn what_is_signed_says_what_was_asked_for() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (_, issued) = Authority::create("tramontane prod", 3650, now).expect("an authority");
        let authority = Authority::from_pem(&issued).expect("the same authority");
        let who = Who { cluster: "prod".to_owned(), role: Role::Gateway };
        let hosts = vec!["api.example.com".to_owned(), "10.0.0.7".to_owned(), "::1".to_owned()];
        let subject = Subject { name: "gateway-1".to_owned(), who: who.clone(), hosts: hosts.clone() };
        let leaf = authority.issue(&subject, 90, now).expect("a certificate");
        let der = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).expect("PEM");
        let read = Certificate::of(&der).expect("a certificate");
        assert_eq!((read.name.as_str(), read.who, read.hosts), ("gateway-1", Some(who), hosts));
        assert_eq!(read.valid, (1_800_000_000 - 300, 1_800_000_000 + 90 * 86_400));
        let bad = Subject { hosts: vec!["käse".to_owned()], ..subject };
        assert!(matches!(authority.issue(&bad, 90, now), Err(AuthorityError::Name { .. })));
    }

    #[test]
    fn what_is_no_authority_is_refused() {
        let nonsense = Issued { certificate: "no".to_owned(), key: "no".to_owned() };
        assert!(matches!(Authority::from_pem(&nonsense), Err(AuthorityError::Unusable(_))));
        assert!(matches!(Authority::create("x", u32::MAX, SystemTime::now()), Err(AuthorityError::Days(_))));
    }
}
