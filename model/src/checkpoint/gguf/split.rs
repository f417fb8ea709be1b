//! Models that are split over several GGUF files: which files belong together, and whether they say so too.
//!
//! Source: llama.cpp, `llama_split_path` and `gguf-split`: files are called `PREFIX-00001-of-00003.gguf`, and hold the keys
//! `split.no` (from 0), `split.count` (0 where there is one file) and `split.tensors.count` (of all files together).

use std::collections::BTreeSet;

use super::{EXTENSION, GgufError, Metadata};
use crate::checkpoint::files::has_extension;
use crate::checkpoint::{CheckpointError, MAX_SHARDS};

const NO: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
const DIGITS: usize = 5;

/// The files of the model that `name` is a file of, in order: `name` alone, unless it is one of several by its form.
///
/// # Errors
/// It says that it is one of more than a checkpoint may have.
pub fn set_of(name: &str) -> Result<Vec<String>, CheckpointError> {
    let Some((prefix, count)) = parts(name) else { return Ok(vec![name.to_owned()]) };
    if count > MAX_SHARDS {
        let (found, limit) = (count as u64, MAX_SHARDS as u64);
        return Err(CheckpointError::TooLarge { file: name.to_owned(), found, limit, unit: "shards" });
    }
    Ok((1..=count).map(|number| format!("{prefix}-{number:05}-of-{count:05}.{EXTENSION}")).collect())
}

/// Of a folder's `names` those that are the files of its only GGUF model; `None` when it has none.
pub(crate) fn only_model(names: &[String]) -> Result<Option<Vec<String>>, CheckpointError> {
    let mut models = BTreeSet::new();
    for name in names.iter().filter(|name| has_extension(name, &[EXTENSION])) {
        models.insert(set_of(name)?);
    }
    let mut models = models.into_iter();
    let first = models.next();
    match (first.as_deref(), models.next().as_deref()) {
        (Some([file, ..]), Some([other, ..])) => {
            Err(CheckpointError::SeveralModels { file: file.clone(), other: other.clone() })
        }
        _ => Ok(first),
    }
}

/// Checks what the files of a model, in order, say of the split; the model has `tensors` tensors.
pub(crate) fn check(files: &[Metadata], tensors: usize) -> Result<(), CheckpointError> {
    for (number, metadata) in files.iter().enumerate() {
        let same = |key: &'static str, expected: usize, found: u32| {
            let (expected, found) = (expected as u64, u64::from(found));
            if expected == found {
                return Ok(());
            }
            Err(metadata.error(GgufError::SplitDisagrees { key, expected, found }))
        };
        let count = metadata.u32(COUNT)?.unwrap_or(0);
        same(COUNT, files.len(), count.max(1))?;
        if count > 1 {
            same(NO, number, metadata.required(NO, metadata.u32(NO)?)?)?;
            same(TENSORS, tensors, metadata.required(TENSORS, metadata.u32(TENSORS)?)?)?;
        }
    }
    Ok(())
}

/// Prefix and count of `PREFIX-NUMBER-of-COUNT.gguf`, where NUMBER is one of 1 to COUNT; `None` for other names.
fn parts(name: &str) -> Option<(&str, usize)> {
    let stem = name.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let (number, count) = (digits(number)?, digits(count)?);
    (1..=count).contains(&number).then_some((prefix, count))
}

fn digits(text: &str) -> Option<usize> {
    let plain = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_files_are_known_by_their_names() {
        let all = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"];
        for name in all {
            assert_eq!(set_of(name).unwrap(), all);
        }
        assert_eq!(set_of("a-of-b-00001-of-00001.gguf").unwrap(), ["a-of-b-00001-of-00001.gguf"]);
        for plain in [
            "m.gguf",
            "m-00004-of-00003.gguf",
            "m-00000-of-00003.gguf",
            "m-1-of-3.gguf",
            "m-+0001-of-00003.gguf",
            "m-00001-of-00003gguf",
            "00001-of-00003.gguf",
            "m-00001-of-00003",
            "",
        ] {
            assert_eq!(set_of(plain).unwrap(), [plain]);
        }
        assert!(matches!(set_of("m-00001-of-99999.gguf"), Err(CheckpointError::TooLarge { found: 99_999, .. })));
    }

    #[test]
    fn a_folder_has_one_model_or_says_which_two() {
        let only = |names: &[&str]| only_model(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(only(&["README.md", "gguf"]).unwrap(), None);
        assert_eq!(only(&["README.md", "m.gguf"]).unwrap().unwrap(), ["m.gguf"]);
        let split = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
        assert_eq!(only(&split).unwrap().unwrap(), split);
        assert_eq!(only(&split[1..]).unwrap().unwrap(), split, "the missing one too");
        let text = only(&[split[0], split[1], "n.gguf"]).unwrap_err().to_string();
        assert_eq!(text, "m-00001-of-00002.gguf and n.gguf are in one folder: name the file that is meant");
    }
}
