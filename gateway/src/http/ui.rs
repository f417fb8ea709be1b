//! The console: a page that chats with the model and shows how the server fares. It is part of the binary, asks nobody but this
//! server, and contains nothing secret, so it is served without a key and asks for one where the API wants it.

use axum::Router;
use axum::response::{IntoResponse, Redirect};
use axum::routing::get;
use http::header;

/// Whether browsers are given the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// At `/ui`.
    Served,
    /// There is no such route.
    LeftOut,
}

/// A piece of the page.
struct Piece {
    path: &'static str,
    media: &'static str,
    text: &'static str,
}

static PIECES: [Piece; 5] = [
    Piece { path: "/ui", media: "text/html; charset=utf-8", text: include_str!("ui/index.html") },
    Piece { path: "/ui/style.css", media: "text/css; charset=utf-8", text: include_str!("ui/style.css") },
    Piece { path: "/ui/console.js", media: "text/javascript; charset=utf-8", text: include_str!("ui/console.js") },
    Piece { path: "/ui/text.js", media: "text/javascript; charset=utf-8", text: include_str!("ui/text.js") },
    Piece { path: "/ui/icon.svg", media: "image/svg+xml", text: include_str!("ui/icon.svg") },
];
/// What somebody types who types one stroke too many; from there the page's own addresses would lead astray.
const WITH_STROKE: &str = "/ui/";

/// Scripts, styles and answers from this server alone, no HTML made of texts, and no other page around this one.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// What every piece is sent with. It may change with the next release, so it is asked for each time: it is small.
const HEADERS: [(&str, &str); 4] = [
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-cache"),
];

/// Whether `path` is one of the console's.
pub(super) fn is_piece(path: &str) -> bool {
    path == WITH_STROKE || PIECES.iter().any(|piece| piece.path == path)
}

/// The console's routes.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(console: Console) -> Router<S> {
    if console == Console::LeftOut {
        return Router::new();
    }
    let redirect = Router::new().route(WITH_STROKE, get(async || Redirect::permanent("../ui")));
    PIECES.iter().fold(redirect, |router, piece| router.route(piece.path, get(move || async { serve(piece) })))
}

fn serve(piece: &'static Piece) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, piece.media)], HEADERS, piece.text)
}

#[cfg(test)]
mod tests;
