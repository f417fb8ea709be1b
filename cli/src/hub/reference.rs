//! How a model is named: `ORG/NAME[@REVISION][:QUANTIZATION]`. Pure.

use std::fmt;

/// Longest name of an organisation or a repository, in bytes: as with Hugging Face.
const MAX_NAME: usize = 96;
/// Longest name of a branch or tag, in bytes.
const MAX_REVISION: usize = 255;

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Repo {
    pub(crate) org: String,
    pub(crate) name: String,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) repo: Repo,
    /// A commit, a branch or a tag.
    pub(crate) revision: Option<String>,
    /// Which of several GGUF models.
    pub(crate) quantization: Option<String>,
}

impl Repo {
    /// `ORG/NAME`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (org, name) = text.split_once('/')?;
        (is_name(org) && is_name(name)).then(|| Self { org: org.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)
    }
}

impl Reference {
    /// As the command line has it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (rest, quantization) = match text.split_once(':') {
            Some((rest, quantization)) => (rest, Some(quantization)),
            None => (text, None),
        };
        let (repo, revision) = match rest.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (rest, None),
        };
        let repo = Repo::parse(repo);
        match repo.filter(|_| revision.is_none_or(is_revision) && quantization.is_none_or(is_name)) {
            Some(repo) => {
                Ok(Self { repo, revision: revision.map(str::to_owned), quantization: quantization.map(str::to_owned) })
            }
            None => Err("ORG/NAME is wanted, with @REVISION or :QUANTIZATION behind it if need be".to_owned()),
        }
    }
}

/// A name that can stand in a URL and be a folder's as it is.
fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && !text.contains("..")
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn is_revision(text: &str) -> bool {
    (1..=MAX_REVISION).contains(&text.len()) && text.split('/').all(is_name)
}

/// Whether `text` is a whole commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_repository_and_what_of_it() {
        let read = |text: &str| {
            let Reference { repo, revision, quantization } = Reference::parse(text).expect(text);
            (repo.to_string(), revision, quantization)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read("a/b"), ("a/b".to_owned(), None, None));
        assert_eq!(read("org-1/M.x_2@refs/pr/7"), ("org-1/M.x_2".to_owned(), some("refs/pr/7"), None));
        assert_eq!(read("a/b@v1:Q4_K_M"), ("a/b".to_owned(), some("v1"), some("Q4_K_M")));
        assert_eq!(read("a/b:q8_0"), ("a/b".to_owned(), None, some("q8_0")));
        for bad in
            ["", "a", "/b", "a/", "a/b/c", "../b", "a/..", "a/.b", "a/b@", "a/b:", "a/b@x/../y", "a b/c", "a/b@x:y/z"]
        {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_commit_is_forty_small_hexadecimal_digits() {
        assert!(is_commit(&"0a".repeat(20)));
        for other in ["main".to_owned(), "0a".repeat(19), "0A".repeat(20), "0g".repeat(20)] {
            assert!(!is_commit(&other), "{other}");
        }
    }
}
