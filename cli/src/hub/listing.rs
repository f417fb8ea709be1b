//! What a repository has at a revision, as a hub's API lists it: `GET /api/models/REPO/revision/REVISION?blobs=true`. Pure. What comes
//! is from outside: names must be plain paths, sums must be sums, and a hub that gives none is refused, for nothing is kept unchecked.

use serde::{Deserialize, Serialize};

use super::reference::is_commit;

/// Longest path of a file, in bytes.
const MAX_PATH: usize = 1024;
/// Longest name of a licence, in characters.
const MAX_LICENSE: usize = 128;

/// What a repository has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    /// The commit that the revision is.
    pub(crate) commit: String,
    /// The licence that its card names.
    pub(crate) license: Option<String>,
    pub(crate) files: Vec<HubFile>,
}

/// A file, and how its bytes are known again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HubFile {
    /// Where it stands in the repository.
    pub(crate) path: String,
    /// Bytes.
    pub(crate) size: u64,
    #[serde(flatten)]
    pub(crate) sum: Sum,
}

/// The sum of a file's bytes, in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sum {
    /// Of a large file.
    Sha256(String),
    /// Of a small file: SHA-1 as git has it, over `blob SIZE\0` and the bytes.
    GitBlob(String),
}

impl HubFile {
    /// What it is called, without the folders it stands in.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
    #[serde(rename = "cardData", default)]
    card: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Sibling {
    #[serde(rename = "rfilename")]
    path: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Listing {
    /// What `json` says.
    ///
    /// # Errors
    /// It is no listing, in words.
    pub(crate) fn read(json: &[u8]) -> Result<Self, String> {
        let answer: Answer = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if !is_commit(&answer.sha) {
            return Err("it names no commit".to_owned());
        }
        let files = answer.siblings.into_iter().map(file).collect::<Result<_, _>>()?;
        Ok(Self { commit: answer.sha, license: answer.card.as_ref().and_then(license), files })
    }
}

fn file(sibling: Sibling) -> Result<HubFile, String> {
    let Sibling { path, size, blob, lfs } = sibling;
    if !is_plain(&path) {
        return Err(format!("{path:?} is no path of a file"));
    }
    let (size, sum) = match (lfs, size, blob) {
        (Some(Lfs { sha256, size }), ..) => (size, Sum::Sha256(sha256)),
        (None, Some(size), Some(blob)) => (size, Sum::GitBlob(blob)),
        _ => return Err(format!("it gives no size or no sum of {path}")),
    };
    let (digits, wanted) = match &sum {
        Sum::Sha256(digits) => (digits, 64),
        Sum::GitBlob(digits) => (digits, 40),
    };
    if digits.len() != wanted || !digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
        return Err(format!("the sum of {path} is none"));
    }
    Ok(HubFile { path, size, sum })
}

/// A path that stays where it is put.
fn is_plain(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.len() <= MAX_PATH
        && path.split('/').all(plain)
        && !path.contains(['\\', ':'])
        && !path.contains(char::is_control)
}

/// `license`, or where that is `other`, `license_name`.
fn license(card: &serde_json::Value) -> Option<String> {
    let field = |name: &str| {
        let text = card[name].as_str().filter(|text| (1..=MAX_LICENSE).contains(&text.chars().count()))?;
        (!text.contains(char::is_control)).then(|| text.to_owned())
    };
    match field("license") {
        Some(other) if other == "other" => field("license_name").or(Some(other)),
        license => license,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: &serde_json::Value) -> Result<Listing, String> {
        Listing::read(json.to_string().as_bytes())
    }

    #[test]
    fn large_files_have_sha256_and_small_ones_gits_sum() {
        let (commit, blob, sha256) = ("0b".repeat(20), "1c".repeat(20), "2d".repeat(32));
        let listing = read(&json!({
            "sha": commit, "gated": false, "cardData": {"license": "other", "license_name": "mnpl"},
            "siblings": [
                {"rfilename": "config.json", "size": 7, "blobId": blob},
                {"rfilename": "a/m.gguf", "size": 9, "blobId": blob, "lfs": {"sha256": sha256, "size": 9, "pointerSize": 130}},
            ],
        }));
        let files = vec![
            HubFile { path: "config.json".to_owned(), size: 7, sum: Sum::GitBlob(blob) },
            HubFile { path: "a/m.gguf".to_owned(), size: 9, sum: Sum::Sha256(sha256) },
        ];
        assert_eq!(files[1].name(), "m.gguf");
        assert_eq!(listing, Ok(Listing { commit, license: Some("mnpl".to_owned()), files }));
    }

    #[test]
    fn what_is_no_listing_is_refused_with_the_reason() {
        let (commit, blob) = ("0b".repeat(20), "1c".repeat(20));
        let of = |file: serde_json::Value| json!({"sha": commit, "siblings": [file]});
        for (json, why) in [
            (json!([]), "expected struct"),
            (json!({"sha": "main"}), "no commit"),
            (of(json!({"rfilename": "f"})), "no size or no sum"),
            (of(json!({"rfilename": "f", "size": 1, "blobId": "xyz"})), "the sum of f"),
            (of(json!({"rfilename": "f", "size": -1, "blobId": blob})), "invalid value"),
            (of(json!({"rfilename": "f", "size": 1, "lfs": {"sha256": blob, "size": 1}})), "the sum of f"),
            (of(json!({"rfilename": "../f", "size": 1, "blobId": blob})), "no path"),
            (of(json!({"rfilename": "/f", "size": 1, "blobId": blob})), "no path"),
            (of(json!({"rfilename": "a\\b", "size": 1, "blobId": blob})), "no path"),
            (of(json!({"rfilename": "a\nb", "size": 1, "blobId": blob})), "no path"),
        ] {
            let error = read(&json).expect_err(why);
            assert!(error.contains(why), "{json}: {error}");
        }
    }
}
