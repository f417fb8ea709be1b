//! Whom a connection leads to, and what is asked there: origins and paths, and where a redirect leads. Pure.

use std::fmt;

use http::Uri;
use http::uri::{Authority, PathAndQuery};

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) scheme: Scheme,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Something at a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) origin: Origin,
    /// Begins with `/`; with the query, if there is one.
    pub(crate) path: String,
}

impl Scheme {
    const fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl Origin {
    /// As a `Host` header has it, and people read it: signed URLs are signed without a port that goes without saying.
    pub(crate) fn authority(&self) -> String {
        if self.port == self.scheme.port() { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// The host for the system's resolver and for certificates, which want no brackets.
    pub(crate) fn name(&self) -> &str {
        self.host.trim_matches(['[', ']'])
    }

    /// Whether nobody between here and there can read along.
    pub(crate) fn is_private(&self) -> bool {
        let address = self.name().parse::<std::net::IpAddr>();
        self.scheme == Scheme::Https || self.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.word(), self.authority())
    }
}

impl Target {
    /// What the absolute URL `text` names; `None` if it is none over HTTP. User names in it are refused: nobody would see them used.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let scheme = match uri.scheme_str()? {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let authority = uri.authority()?;
        let host = uri.host().filter(|host| !host.is_empty() && !authority.as_str().contains('@'))?;
        let port = if has_port(authority) { uri.port_u16()? } else { scheme.port() };
        let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        Some(Self { origin: Origin { scheme, host: host.to_owned(), port }, path: path.to_owned() })
    }

    /// Where the header `location` of an answer leads from here; `None` where it is not followed: it is no URL over HTTP, or leads from
    /// a connection that nobody can read to one that others can.
    pub(crate) fn follow(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') && !location.starts_with("//") {
            let path: PathAndQuery = location.parse().ok()?;
            return Some(Self { origin: self.origin.clone(), path: path.as_str().to_owned() });
        }
        Self::parse(location).filter(|next| next.origin.scheme == Scheme::Https || self.origin.scheme == Scheme::Http)
    }
}

/// A port that is there and no number is a mistake, not the default.
fn has_port(authority: &Authority) -> bool {
    authority.as_str().rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_scheme_a_host_a_port_and_a_path() {
        for (text, shown, port, path) in [
            ("https://hub.example", "https://hub.example", 443, "/"),
            ("http://127.0.0.1:8080/a/b?c=d", "http://127.0.0.1:8080", 8080, "/a/b?c=d"),
            ("https://[::1]:9/x", "https://[::1]:9", 9, "/x"),
            ("http://[::1]/x", "http://[::1]", 80, "/x"),
        ] {
            let target = Target::parse(text).expect(text);
            assert_eq!((target.origin.to_string().as_str(), target.origin.port), (shown, port), "{text}");
            assert_eq!(target.path, path, "{text}");
        }
        for bad in
            ["", "/a", "hub.example", "ftp://x/", "http://", "https://user:word@x/", "http://x:/", "http://x:99999/"]
        {
            assert_eq!(Target::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_redirect_is_followed_unless_it_leads_into_the_open() {
        let from = |text: &str| Target::parse(text).expect(text);
        let https = from("https://hub.example/a/b");
        assert_eq!(https.follow("/c?d=e"), Some(from("https://hub.example/c?d=e")));
        assert_eq!(https.follow("https://cdn.example/f"), Some(from("https://cdn.example/f")));
        assert_eq!(from("http://hub.example/a").follow("http://cdn.example/f"), Some(from("http://cdn.example/f")));
        for refused in ["http://hub.example/a", "//cdn.example/f", "f", "", "file:///etc/passwd"] {
            assert_eq!(https.follow(refused), None, "{refused}");
        }
    }

    #[test]
    fn private_is_what_nobody_can_read_along() {
        for (text, private) in [
            ("https://hub.example", true),
            ("http://hub.example", false),
            ("http://127.0.0.1:1", true),
            ("http://[::1]:1", true),
            ("http://localhost", true),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(Target::parse(text).expect(text).origin.is_private(), private, "{text}");
        }
    }
}
