//! Whose pages may ask. A server without keys that listens on loopback trusts whatever runs on its machine, and a browser there runs
//! pages of strangers. What another origin's page asks, browsers themselves hold back (JSON wants a permission that is never given).
//! But a stranger's name can be made to mean 127.0.0.1 once its page is loaded, and then the page is of the server's own origin: DNS
//! rebinding. That page's origin is still the stranger's name, which the browser says with every POST.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::ORIGIN;

use crate::error::ApiError;

/// Whose pages may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Anybody's: there are keys, or an operator means it.
    OfAnybody,
    /// This machine's, and those that came over https, which no rebound name does.
    OfThisMachine,
}

pub(super) async fn check(State(pages): State<Pages>, request: Request, next: Next) -> Response {
    let mut origins = request.headers().get_all(ORIGIN).iter();
    if pages == Pages::OfThisMachine && origins.any(|origin| is_strange(origin.as_bytes())) {
        return ApiError::ForeignPage.into_response();
    }
    next.run(request).await
}

/// Whether an origin in the clear has a name that somebody else may have given.
fn is_strange(origin: &[u8]) -> bool {
    let Ok(origin) = std::str::from_utf8(origin) else { return true };
    let Some(authority) = origin.strip_prefix("http://") else { return false };
    let host = match authority.strip_prefix('[') {
        Some(rest) => return rest.split_once(']').is_none_or(|(host, _)| host.parse::<Ipv6Addr>().is_err()),
        None => authority.split(':').next().unwrap_or_default(),
    };
    // RFC 6761: names under `localhost` are this machine everywhere.
    let local = host == "localhost" || host.ends_with(".localhost");
    !local && host.parse::<Ipv4Addr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_others_give_are_strange() {
        for known in [
            "http://127.0.0.1:8080",
            "http://localhost:8080",
            "http://ui.localhost",
            "http://[::1]:8080",
            "http://192.168.1.5",
            "https://llm.example.com",
            "chrome-extension://abc",
            "null",
        ] {
            assert!(!is_strange(known.as_bytes()), "{known}");
        }
        for strange in [
            "http://evil.example:8080",
            "http://localhost.evil.example",
            "http://notlocalhost",
            "http://127.0.0.1.evil.example",
            "http://[::1",
            "http://",
            "http://\u{e9}",
        ] {
            assert!(is_strange(strange.as_bytes()), "{strange}");
        }
        assert!(is_strange(b"\xff"));
    }
}
