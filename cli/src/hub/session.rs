//! A hub that is asked: requests, redirects, and what its refusals mean. The token goes to the hub alone: never to another server that it
//! sends us to, and never where others could read it on the way.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{HubError, Listing, Repo};
use crate::client::USER_AGENT;
use crate::client::origin::Target;
use crate::client::wire::Wire;

/// Redirects that one request follows: renamed repositories, and where large files are.
const MAX_REDIRECTS: usize = 5;
/// How long the head of an answer may take.
const HEAD: Duration = Duration::from_secs(60);
/// Largest listing, in bytes.
const MAX_LISTING: usize = 32 << 20;
/// What is read of a refusal, in bytes, and shown of it, in characters.
const MAX_REFUSAL: usize = 64 << 10;
const SHOWN: usize = 200;
/// Longest pause that a hub can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// Where a hub is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address(Target);

impl Address {
    /// As the command line has it; a mirror's may have a path.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let target = Target::parse(text).filter(|target| !target.path.contains('?'));
        let mut target = target.ok_or("a URL is wanted, as https://huggingface.co")?;
        target.path.truncate(target.path.trim_end_matches('/').len());
        Ok(Self(target))
    }
}

/// A hub, and who asks.
pub(crate) struct Session {
    hub: Target,
    token: Option<HeaderValue>,
    wire: Wire,
}

impl Session {
    /// Asks the hub at `address`, with `token` if there is one.
    ///
    /// # Errors
    /// The token is no word, or would go over the network for all to read; the system trusts no authority.
    pub(crate) fn new(Address(hub): Address, token: Option<&str>) -> anyhow::Result<Self> {
        if token.is_some() && !hub.origin.is_private() {
            anyhow::bail!("the token would go to {} for all on the way to read: use https, or no token", hub.origin);
        }
        let bearer = |token: &str| {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))?;
            value.set_sensitive(true);
            Ok::<_, anyhow::Error>(value)
        };
        let token = token.map(bearer).transpose()?;
        let wire = Wire::new(hub.origin.scheme)?;
        Ok(Self { hub, token, wire })
    }

    /// What `repo` has at `revision`.
    pub(crate) async fn listing(&self, repo: &Repo, revision: &str) -> Result<Listing, HubError> {
        let what = format!("{repo}@{revision}");
        let path = format!("/api/models/{repo}/revision/{}?blobs=true", revision.replace('/', "%2F"));
        let response = self.get(&path, 0).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(repo, what, response).await);
        }
        let body = timeout(HEAD, Limited::new(response.into_body(), MAX_LISTING).collect()).await;
        let body = body.map_err(|_| broke_off(&what, format!("nothing came for {HEAD:?}")))?;
        let body = body.map_err(|error| broke_off(&what, error.to_string()))?.to_bytes();
        Listing::read(&body).map_err(|why| HubError::NoHub { host: self.hub.origin.authority(), why })
    }

    /// The bytes of the file at `path` of `repo` at `commit`, from `offset` on; all of them (200) from a hub that cannot begin in the
    /// middle.
    pub(super) async fn file(
        &self,
        repo: &Repo,
        commit: &str,
        path: &str,
        offset: u64,
    ) -> Result<Response<Incoming>, HubError> {
        let response = self.get(&format!("/{repo}/resolve/{commit}/{}", escaped(path)), offset).await?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            _ => Err(self.refusal(repo, path.to_owned(), response).await),
        }
    }

    async fn get(&self, path: &str, offset: u64) -> Result<Response<Incoming>, HubError> {
        let mut target = Target { origin: self.hub.origin.clone(), path: format!("{}{path}", self.hub.path) };
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(&target, offset).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
            let next = location.and_then(|location| target.follow(location));
            target = next.ok_or_else(|| self.no_hub(&target, "it sends us where we do not go"))?;
        }
        Err(self.no_hub(&target, "it sends us from one place to the next"))
    }

    async fn send(&self, target: &Target, offset: u64) -> Result<Response<Incoming>, HubError> {
        let host = target.origin.authority();
        let unreachable = |why: anyhow::Error| HubError::Unreachable { host: host.clone(), why };
        let mut request = Request::get(&target.path)
            .header(header::HOST, &host)
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT_ENCODING, "identity");
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        if let Some(token) = self.token.as_ref().filter(|_| target.origin == self.hub.origin) {
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request.body(Full::new(Bytes::new())).map_err(|error| unreachable(error.into()))?;
        let mut sender = self.wire.connect(&target.origin).await.map_err(unreachable)?;
        let answer = timeout(HEAD, sender.send_request(request)).await;
        let answer = answer.map_err(|_| unreachable(anyhow::anyhow!("it did not answer within {HEAD:?}")))?;
        answer.map_err(|error| unreachable(error.into()))
    }

    fn no_hub(&self, target: &Target, why: &str) -> HubError {
        let host = target.origin.authority();
        HubError::NoHub { host, why: why.to_owned() }
    }

    /// What a status that is no success means for `what` of `repo`.
    async fn refusal(&self, repo: &Repo, what: String, response: Response<Incoming>) -> HubError {
        let (head, body) = response.into_parts();
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (code, status) = (header("x-error-code"), head.status);
        let host = self.hub.origin.authority();
        match status {
            _ if code == "GatedRepo" || status == StatusCode::FORBIDDEN => {
                HubError::Gated { repo: repo.to_string(), page: format!("{}{}/{repo}", self.hub.origin, self.hub.path) }
            }
            StatusCode::UNAUTHORIZED => HubError::NotPublic { repo: repo.to_string() },
            StatusCode::NOT_FOUND => HubError::NotFound { host, what },
            StatusCode::RANGE_NOT_SATISFIABLE => broke_off(&what, "the hub has less of it than it says".to_owned()),
            _ if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                let after = header("retry-after").parse().ok().map(Duration::from_secs);
                HubError::BrokeOff { what, why: status.to_string(), after: after.map(|after| after.min(LONGEST_PAUSE)) }
            }
            _ => {
                let body = timeout(HEAD, Limited::new(body, MAX_REFUSAL).collect()).await;
                let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
                let words: String = String::from_utf8_lossy(&body).trim().chars().take(SHOWN).collect();
                HubError::Refused { what, status, words: words.replace(char::is_control, " ") }
            }
        }
    }
}

pub(super) fn broke_off(what: &str, why: String) -> HubError {
    HubError::BrokeOff { what: what.to_owned(), why, after: None }
}

/// `path` as it stands in a URL.
fn escaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => text.push(byte.into()),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_is_an_origin_and_perhaps_a_path() {
        let read = |text: &str| Address::parse(text).map(|Address(target)| (target.origin.to_string(), target.path));
        assert_eq!(read("https://hub.example/"), Ok(("https://hub.example".to_owned(), String::new())));
        assert_eq!(read("http://m:8081/api/hf/"), Ok(("http://m:8081".to_owned(), "/api/hf".to_owned())));
        assert!(read("hub.example").is_err() && read("https://hub.example/?a").is_err());
    }

    #[test]
    fn a_token_does_not_go_in_the_open() {
        let session = |url: &str, token| Session::new(Address::parse(url).expect(url), token);
        assert!(session("http://hub.example", Some("hf_x")).is_err_and(|error| !error.to_string().contains("hf_x")));
        assert!(session("http://hub.example", None).is_ok());
        assert!(session("http://127.0.0.1:1", Some("hf_x")).is_ok());
        assert!(session("http://127.0.0.1:1", Some("hf\nx")).is_err());
    }

    #[test]
    fn paths_are_escaped_for_urls() {
        assert_eq!(escaped("a b/ü#1?.gguf"), "a%20b/%C3%BC%231%3F.gguf");
    }
}
