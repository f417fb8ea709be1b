//! Where a server is, and the key for it.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use super::origin::{Origin, Target};
use super::wire::Wire;
use crate::files::read_text;

/// Largest file of a key, in bytes.
const MAX_KEY_BYTES: u64 = 4096;

/// Which server is asked, and for which model.
#[derive(Debug, Args)]
pub(crate) struct EndpointArgs {
    /// The server, with or without /v1
    #[arg(
        long,
        env = "TRAMONTANE_ENDPOINT",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080",
        help_heading = "Server",
        value_parser = address
    )]
    pub(crate) endpoint: Address,
    /// The model [default: the first that the server lists]
    #[arg(long, value_name = "ID", help_heading = "Server")]
    pub(crate) model: Option<String>,
    /// File that holds the API key, and nothing else
    #[arg(long, env = "TRAMONTANE_API_KEY_FILE", value_name = "FILE", help_heading = "Server")]
    pub(crate) api_key_file: Option<PathBuf>,
}

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    origin: Origin,
    /// What stands before `/v1` in all paths.
    prefix: String,
}

/// A server that can be asked.
#[derive(Clone)]
pub(crate) struct Endpoint {
    address: Address,
    key: Option<String>,
    wire: Wire,
}

impl EndpointArgs {
    /// The server, with the key from its file.
    pub(crate) fn open(&self) -> anyhow::Result<Endpoint> {
        let key = self.api_key_file.as_deref().map(read_key).transpose()?;
        let wire = Wire::new(self.endpoint.origin.scheme)?;
        Ok(Endpoint { address: self.endpoint.clone(), key, wire })
    }
}

impl Endpoint {
    pub(super) const fn origin(&self) -> &Origin {
        &self.address.origin
    }

    pub(super) const fn wire(&self) -> &Wire {
        &self.wire
    }

    pub(super) fn path(&self, path: &str) -> String {
        format!("{}{path}", self.address.prefix)
    }

    pub(super) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.address.origin, self.address.prefix)
    }
}

fn address(text: &str) -> Result<Address, String> {
    let target = Target::parse(text).filter(|target| !target.path.contains('?'));
    let Target { origin, path } = target.ok_or("a URL is wanted, as http://127.0.0.1:8080")?;
    let prefix = path.trim_end_matches('/');
    Ok(Address { origin, prefix: prefix.strip_suffix("/v1").unwrap_or(prefix).to_owned() })
}

fn read_key(path: &Path) -> anyhow::Result<String> {
    let failed = || format!("cannot use the key in {}", path.display());
    let text = read_text(path, MAX_KEY_BYTES).with_context(failed)?;
    let key = text.trim();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("{}: one printable word is wanted", path.display());
    }
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_server_and_what_stands_before_v1() {
        for (text, shown) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://localhost", "http://localhost"),
            ("http://localhost:1/v1", "http://localhost:1"),
            ("https://localhost:1/v1/", "https://localhost:1"),
            ("http://[::1]:9/models/a/v1", "http://[::1]:9/models/a"),
        ] {
            let Address { origin, prefix } = address(text).expect(text);
            assert_eq!(format!("{origin}{prefix}"), shown, "{text}");
        }
        for bad in ["", "localhost:8080", "ftp://x", "http://", "http://x/?a=b", "/v1"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
