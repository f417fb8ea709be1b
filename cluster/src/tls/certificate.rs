//! What stands in a certificate. Pure.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::who::Who;

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Its common name.
    pub name: String,
    /// Whom it names; `None` where it names nobody of ours.
    pub who: Option<Who>,
    /// Hosts that it is for too: DNS names and addresses.
    pub hosts: Vec<String>,
    /// When it begins, and when it ends, in seconds since 1970.
    pub valid: (i64, i64),
}

/// Not a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be read as a certificate")]
pub struct Unreadable;

impl Certificate {
    /// Reads one. That it is genuine is not looked at.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn of(der: &CertificateDer<'_>) -> Result<Self, Unreadable> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Unreadable)?;
        let alternative = certificate.subject_alternative_name().map_err(|_| Unreadable)?;
        let names = alternative.map_or_else(Vec::new, |names| names.value.general_names.clone());
        let uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let who = Who::of(uris);
        let common = certificate.subject().iter_common_name().find_map(|name| name.as_str().ok());
        let validity = certificate.validity();
        Ok(Self {
            name: common.unwrap_or_default().to_owned(),
            who,
            hosts: names.iter().filter_map(host).collect(),
            valid: (validity.not_before.timestamp(), validity.not_after.timestamp()),
        })
    }
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => None,
        },
        _ => None,
    }
}
