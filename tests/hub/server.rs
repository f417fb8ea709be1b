//! A hub on loopback that speaks as much of Hugging Face's API as is asked of one: listings, small files by itself, large ones by a redirect
//! to another server; gated, private and absent repositories; and faults on request.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use futures::{StreamExt, stream};
use http::{HeaderMap, StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;

/// The commit that `main` is.
pub(crate) const COMMIT: &str = "9e107d9d372bb6826bd81d3542a419d6e107d9d3";
/// The token that opens what is private.
pub(crate) const TOKEN: &str = "hf_of_a_test";
/// Files from this size on are large ones.
const LARGE: usize = 100_000;
/// Bytes that are sent at a time.
const PIECE: usize = 16 << 10;

/// What goes wrong with one answer that has a file's bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The connection ends after so many bytes, or fewer.
    Cut(usize),
    /// Nothing comes any more after so many bytes.
    Hang(usize),
    /// A bit is flipped.
    Flip,
    /// There is no file, but this status.
    Status(StatusCode),
    /// The whole file comes, whatever was asked for.
    NoRanges,
}

/// A request that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Whether the hub's own server got it, and not the one with large files.
    pub(crate) at_hub: bool,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
}

#[derive(Default)]
struct Shared {
    files: BTreeMap<String, Bytes>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    /// What stands in listings instead of the truth, by file.
    listed: BTreeMap<String, Value>,
    seen: Vec<Seen>,
}

/// A hub that runs as long as this is there.
pub(crate) struct Hub {
    shared: Arc<Mutex<Shared>>,
    address: SocketAddr,
    _runtime: Runtime,
}

#[derive(Clone)]
struct Server {
    shared: Arc<Mutex<Shared>>,
    /// Where large files are; none at that server itself.
    large: Option<SocketAddr>,
}

impl Hub {
    /// Serves `files`, by path.
    pub(crate) fn start(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let files = files.into_iter().map(|(path, bytes)| (path, bytes.into())).collect();
        let shared = Arc::new(Mutex::new(Shared { files, ..Shared::default() }));
        let serve = |large| {
            let server = Server { shared: shared.clone(), large };
            let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a port");
            let address = listener.local_addr().expect("its address");
            let app = axum::Router::new().fallback(answer).with_state(server);
            runtime.spawn(accept(listener, app));
            address
        };
        let large = serve(None);
        let address = serve(Some(large));
        Self { shared, address, _runtime: runtime }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next answers with bytes of `path` are faulty.
    pub(crate) fn spoil(&self, path: &str, faults: &[Fault]) {
        lock(&self.shared).faults.entry(path.to_owned()).or_default().extend(faults);
    }

    /// Listings say `listed` of `path`.
    pub(crate) fn list_as(&self, path: &str, listed: Value) {
        lock(&self.shared).listed.insert(path.to_owned(), listed);
    }

    /// What came since it was last asked.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut lock(&self.shared).seen)
    }
}

async fn accept(listener: tokio::net::TcpListener, app: axum::Router) {
    while let Ok((stream, _)) = listener.accept().await {
        let service = TowerToHyperService::new(app.clone());
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(State(server): State<Server>, request: Request) -> Response {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let token = header(header::AUTHORIZATION);
    let seen =
        Seen { at_hub: server.large.is_some(), path: path.clone(), range: header(header::RANGE), token: token.clone() };
    lock(&server.shared).seen.push(seen);
    if server.large.is_none() {
        return server.bytes(path.trim_start_matches('/'), request.headers());
    }
    let open = token.as_deref() == Some(&format!("Bearer {TOKEN}"));
    let known = ["org/demo", "org/private", "org/gated"];
    let (api, rest) = match path.strip_prefix("/api/models/") {
        Some(rest) => (true, rest),
        None => (false, path.trim_start_matches('/')),
    };
    // A repository that was renamed.
    if let Some(rest) = rest.strip_prefix("org/old/") {
        let prefix = if api { "/api/models" } else { "" };
        return moved(StatusCode::TEMPORARY_REDIRECT, format!("{prefix}/org/demo/{rest}"));
    }
    match known.iter().find_map(|repo| Some((*repo, rest.strip_prefix(repo)?))) {
        Some(("org/gated", _)) => refusal(StatusCode::FORBIDDEN, "GatedRepo"),
        None | Some(("org/private", _)) if !open => refusal(StatusCode::UNAUTHORIZED, "RepoNotFound"),
        None => refusal(StatusCode::NOT_FOUND, "RepoNotFound"),
        Some((_, "/revision/main?blobs=true")) => server.listing(),
        Some((_, rest)) if rest == format!("/revision/{COMMIT}?blobs=true") => server.listing(),
        Some((_, rest)) => match rest.strip_prefix(&format!("/resolve/{COMMIT}/")) {
            Some(file) => server.file(file, request.headers()),
            None => refusal(StatusCode::NOT_FOUND, "RevisionNotFound"),
        },
    }
}

impl Server {
    fn listing(&self) -> Response {
        let shared = lock(&self.shared);
        let truth = |path: &String, bytes: &Bytes| {
            let blob = hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize());
            let mut file = json!({"rfilename": path, "size": bytes.len(), "blobId": blob});
            if bytes.len() >= LARGE {
                file["lfs"] = json!({"sha256": hex(&Sha256::digest(bytes)), "size": bytes.len(), "pointerSize": 130});
            }
            file
        };
        let file = |(path, bytes)| shared.listed.get(path).cloned().unwrap_or_else(|| truth(path, bytes));
        let siblings: Vec<Value> = shared.files.iter().map(file).collect();
        let listing =
            json!({"id": "org/demo", "sha": COMMIT, "cardData": {"license": "apache-2.0"}, "siblings": siblings});
        Response::new(listing.to_string().into())
    }

    /// A file of the hub's: a small one, or where it is.
    fn file(&self, path: &str, headers: &HeaderMap) -> Response {
        let size = lock(&self.shared).files.get(path).map(Bytes::len);
        match (size, self.large) {
            (Some(LARGE..), Some(elsewhere)) => moved(StatusCode::FOUND, format!("http://{elsewhere}/{path}")),
            _ => self.bytes(path, headers),
        }
    }

    fn bytes(&self, path: &str, headers: &HeaderMap) -> Response {
        let mut shared = lock(&self.shared);
        let Some(all) = shared.files.get(path).cloned() else { return refusal(StatusCode::NOT_FOUND, "EntryNotFound") };
        let fault = shared.faults.get_mut(path).and_then(VecDeque::pop_front);
        drop(shared);
        let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
        let range = range.filter(|_| !matches!(fault, Some(Fault::NoRanges)));
        let begin = range.map(|range| {
            let begin = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
            begin.and_then(|begin| begin.parse::<usize>().ok()).expect("a range as we ask for them")
        });
        let rest = all.slice(begin.unwrap_or(0)..);
        let response = Response::builder().header(header::CONTENT_LENGTH, rest.len());
        let response = match begin {
            Some(begin) => response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, format!("bytes {begin}-{}/{}", all.len() - 1, all.len())),
            None => response,
        };
        let body = match fault {
            Some(Fault::Status(status)) => return refusal(status, ""),
            Some(Fault::Cut(after)) => sent(&rest.slice(..after), stream::once(cut())),
            Some(Fault::Hang(after)) => sent(&rest.slice(..after), stream::pending()),
            Some(Fault::Flip) => {
                let mut spoilt = rest.to_vec();
                *spoilt.last_mut().expect("it is not empty") ^= 1;
                Body::from(spoilt)
            }
            Some(Fault::NoRanges) | None => Body::from(rest),
        };
        response.body(body).expect("an answer")
    }
}

/// The end of a connection. What was to be sent before is handed to the system first, as much of it as it takes.
async fn cut() -> std::io::Result<Bytes> {
    tokio::task::yield_now().await;
    Err(std::io::Error::other("cut"))
}

/// `bytes` in pieces, and what comes then.
fn sent(bytes: &Bytes, then: impl stream::Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Body {
    let pieces: Vec<_> = bytes.chunks(PIECE).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    Body::from_stream(stream::iter(pieces).chain(then))
}

fn moved(status: StatusCode, location: String) -> Response {
    Response::builder().status(status).header(header::LOCATION, location).body(Body::empty()).expect("an answer")
}

fn refusal(status: StatusCode, code: &str) -> Response {
    let response = Response::builder().status(status).header("x-error-code", code);
    response.body(Body::from("what the hub says")).expect("an answer")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
