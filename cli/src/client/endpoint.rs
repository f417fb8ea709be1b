//! Where a server is, and the key for it.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use http::Uri;

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
    host: String,
    port: u16,
    /// What stands before `/v1` in all paths.
    prefix: String,
}

/// A server that can be asked.
#[derive(Clone)]
pub(crate) struct Endpoint {
    address: Address,
    key: Option<String>,
}

impl EndpointArgs {
    /// The server, with the key from its file.
    pub(crate) fn open(&self) -> anyhow::Result<Endpoint> {
        let key = self.api_key_file.as_deref().map(read_key).transpose()?;
        Ok(Endpoint { address: self.endpoint.clone(), key })
    }
}

impl Endpoint {
    /// Host and port, as they were given.
    pub(super) fn address(&self) -> String {
        format!("{}:{}", self.address.host, self.address.port)
    }

    /// The same for the system's resolver, which wants no brackets.
    pub(super) fn target(&self) -> (&str, u16) {
        (self.address.host.trim_matches(['[', ']']), self.address.port)
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
        write!(f, "http://{}{}", self.address(), self.address.prefix)
    }
}

fn address(text: &str) -> Result<Address, String> {
    const WANTED: &str = "a URL is wanted, as http://127.0.0.1:8080";
    let uri: Uri = text.parse().map_err(|_| WANTED.to_owned())?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err("https is not spoken here: name a proxy on this machine that does".to_owned()),
        _ => return Err(WANTED.to_owned()),
    }
    if uri.query().is_some() {
        return Err(WANTED.to_owned());
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or(WANTED)?;
    let prefix = uri.path().trim_end_matches('/');
    let prefix = prefix.strip_suffix("/v1").unwrap_or(prefix);
    Ok(Address { host: host.to_owned(), port: uri.port_u16().unwrap_or(80), prefix: prefix.to_owned() })
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
    fn an_address_is_a_host_a_port_and_what_stands_before_v1() {
        for (text, host, port, prefix) in [
            ("http://127.0.0.1:8080", "127.0.0.1", 8080, ""),
            ("http://localhost", "localhost", 80, ""),
            ("http://localhost:1/v1", "localhost", 1, ""),
            ("http://localhost:1/v1/", "localhost", 1, ""),
            ("http://[::1]:9/models/a/v1", "[::1]", 9, "/models/a"),
        ] {
            let expected = Address { host: host.to_owned(), port, prefix: prefix.to_owned() };
            assert_eq!(address(text), Ok(expected), "{text}");
        }
        for bad in ["", "localhost:8080", "https://localhost", "ftp://x", "http://", "http://x/?a=b", "/v1"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
