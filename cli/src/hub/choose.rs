//! Which of a repository's files a model needs: the configuration, the tokenizer, the chat template, the terms, and safetensors with
//! their index; or one GGUF model, which has all of that in it. Pure.

use std::collections::BTreeMap;

use tramontane_model::checkpoint::gguf::set_of;

use super::{HubError, HubFile, Listing, Repo};
use crate::output::bytes;

/// What stands beside safetensors, as far as this program reads it.
const BESIDE: [&str; 7] = [
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// GGUF models that are shown when one must be chosen.
const SHOWN: usize = 40;

/// Which model of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The only one: safetensors, where there are any.
    Only,
    /// The GGUF model whose name ends with this.
    Quantization(String),
    /// The GGUF model with this file.
    File(String),
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// What a GGUF model is called; none where it is safetensors.
    pub(crate) variant: Option<String>,
    /// In the order in which they are got: small ones first.
    pub(crate) files: Vec<HubFile>,
}

/// The files of `listing`, of `repo`, that `choice` needs.
pub(crate) fn choose(repo: &Repo, listing: &Listing, choice: &Choice) -> Result<Chosen, HubError> {
    let wrong = |why: String| HubError::Choice { repo: repo.to_string(), why };
    let safetensors = safetensors(listing);
    if let (Choice::Only, false) = (choice, safetensors.is_empty()) {
        return Ok(Chosen { variant: None, files: in_order(listing, safetensors) });
    }
    let models = gguf_models(listing).map_err(wrong)?;
    let wanted = |name: &str, files: &[&HubFile]| match choice {
        Choice::Only => true,
        Choice::Quantization(end) => ends_with(name, end),
        Choice::File(file) => files.iter().any(|known| known.path == *file || known.name() == file),
    };
    let found: Vec<_> = models.iter().filter(|(name, files)| wanted(name, files)).collect();
    match found.as_slice() {
        [(name, files)] => Ok(Chosen { variant: Some((*name).clone()), files: in_order(listing, (*files).clone()) }),
        [] if models.is_empty() => {
            Err(wrong("has neither safetensors in Hugging Face's layout nor GGUF models".to_owned()))
        }
        [] => Err(wrong(format!("has no such GGUF model, but {}", shown(models.iter())))),
        several => {
            let those = shown(several.iter().copied());
            Err(wrong(format!("has several GGUF models, so --quantization or --file must name one: {those}")))
        }
    }
}

/// The weights in safetensors, with their index.
fn safetensors(listing: &Listing) -> Vec<&HubFile> {
    let file = |name: &str| listing.files.iter().find(|file| file.path == name);
    match (file(SINGLE), file(INDEX)) {
        (Some(single), _) => vec![single],
        (None, Some(index)) => {
            let shards = listing.files.iter().filter(|file| is_shard(&file.path));
            std::iter::once(index).chain(shards).collect()
        }
        (None, None) => Vec::new(),
    }
}

/// `model-00001-of-00019.safetensors`.
fn is_shard(path: &str) -> bool {
    let numbers = path.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.and_then(|numbers| numbers.split_once("-of-")).is_some_and(|(n, of)| number(n) && number(of))
}

/// The GGUF models by what they are called, each with all its files.
fn gguf_models(listing: &Listing) -> Result<BTreeMap<String, Vec<&HubFile>>, String> {
    let mut models = BTreeMap::new();
    let is_model = |file: &&HubFile| file.path.ends_with(".gguf") && !file.name().starts_with("mmproj");
    for file in listing.files.iter().filter(is_model) {
        let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
        let set = set_of(name).map_err(|error| error.to_string())?;
        let in_folder = |name: &String| if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        let files: Option<Vec<_>> =
            set.iter().map(in_folder).map(|path| listing.files.iter().find(|file| file.path == path)).collect();
        let files = files.ok_or_else(|| format!("lacks files of the model that {} is a file of", file.path))?;
        let stem = match set.as_slice() {
            [one] => one.trim_end_matches(".gguf"),
            // Without `-00001-of-00003`.
            several => several.first().and_then(|first| first.rsplitn(4, '-').nth(3)).unwrap_or(name),
        };
        // Of two folders' models of one name the second is called by its folder, too.
        let known = models.get(stem).is_some_and(|known: &Vec<&HubFile>| known.first() != files.first());
        let stem = if known { format!("{}-{stem}", folder.replace('/', "-")) } else { stem.to_owned() };
        models.insert(stem, files);
    }
    Ok(models)
}

/// Whether `name` ends with the word or words `end`.
pub(super) fn ends_with(name: &str, end: &str) -> bool {
    let (name, end) = (name.to_ascii_lowercase(), end.to_ascii_lowercase());
    name.strip_suffix(&end).is_some_and(|before| before.is_empty() || before.ends_with(['-', '.', '_']))
}

/// `weights` with what belongs to them; what is small first, so that a repository that is not as it should be is found out early.
fn in_order(listing: &Listing, weights: Vec<&HubFile>) -> Vec<HubFile> {
    let gguf = weights.iter().all(|file| file.path.ends_with(".gguf"));
    let terms = |file: &&HubFile| file.path.starts_with("LICENSE") && !file.path.contains('/');
    let beside = |file: &&HubFile| terms(file) || (!gguf && BESIDE.contains(&file.path.as_str()));
    let mut files: Vec<HubFile> = listing.files.iter().filter(beside).cloned().collect();
    files.extend(weights.into_iter().cloned());
    files.sort_by(|a, b| (a.size, &a.path).cmp(&(b.size, &b.path)));
    files
}

fn shown<'a>(models: impl Iterator<Item = (&'a String, &'a Vec<&'a HubFile>)>) -> String {
    let model = |(name, files): (&String, &Vec<&HubFile>)| {
        format!("{name} ({})", bytes(files.iter().map(|file| file.size).sum()))
    };
    let mut names: Vec<String> = models.take(SHOWN + 1).map(model).collect();
    if names.len() > SHOWN {
        names.truncate(SHOWN);
        names.push("…".to_owned());
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::listing::Sum;
    use super::*;

    fn listing(paths: &[&str]) -> Listing {
        let file = |(size, path): (usize, &&str)| HubFile {
            path: (*path).to_owned(),
            size: size as u64,
            sum: Sum::GitBlob("0".repeat(40)),
        };
        Listing { commit: "0".repeat(40), license: None, files: paths.iter().enumerate().map(file).collect() }
    }

    fn chosen(paths: &[&str], choice: &Choice) -> Result<(Option<String>, Vec<String>), String> {
        let repo = Repo::parse("org/name").expect("a name");
        let chosen = choose(&repo, &listing(paths), choice).map_err(|error| error.to_string())?;
        Ok((chosen.variant, chosen.files.into_iter().map(|file| file.path).collect()))
    }

    #[test]
    fn of_a_repository_of_safetensors_only_what_is_read_is_taken() {
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let rest = [
            "consolidated.00.pt",
            "pytorch_model.bin",
            "original/model.safetensors",
            "model-x-of-2.safetensors",
            "vocab.json",
        ];
        let small = ["LICENSE", "config.json", "tokenizer.json", INDEX];
        let all = [&small[..], &shards, &rest].concat();
        let wanted = [&small[..], &shards].concat();
        assert_eq!(chosen(&all, &Choice::Only), Ok((None, wanted.iter().map(|path| (*path).to_owned()).collect())));
        let single = ["config.json", SINGLE, "a.gguf"];
        assert_eq!(chosen(&single, &Choice::Only).map(|(_, files)| files.len()), Ok(2));
    }

    #[test]
    fn of_several_gguf_models_one_must_be_named() {
        let paths = [
            "README.md",
            "M-Q4_K.gguf",
            "M-Q4_K_M.gguf",
            "big/M-f16-00001-of-00002.gguf",
            "big/M-f16-00002-of-00002.gguf",
            "mmproj-M-f16.gguf",
        ];
        let by = |quantization: &str| chosen(&paths, &Choice::Quantization(quantization.to_owned()));
        assert_eq!(by("q4_k"), Ok((Some("M-Q4_K".to_owned()), vec!["M-Q4_K.gguf".to_owned()])));
        assert_eq!(by("Q4_K_M").map(|(variant, _)| variant), Ok(Some("M-Q4_K_M".to_owned())));
        let (variant, files) = by("f16").expect("one model");
        assert_eq!((variant.as_deref(), files.len()), (Some("M-f16"), 2));
        let file = |file: &str| chosen(&paths, &Choice::File(file.to_owned())).map(|(variant, _)| variant);
        assert_eq!(file("big/M-f16-00002-of-00002.gguf"), Ok(Some("M-f16".to_owned())));
        assert_eq!(file("M-Q4_K.gguf"), Ok(Some("M-Q4_K".to_owned())));

        let several = chosen(&paths, &Choice::Only).expect_err("several");
        assert!(several.contains("M-Q4_K (1 B), M-Q4_K_M (2 B), M-f16 (7 B)"), "{several}");
        let none = by("q5_0").expect_err("none");
        assert!(none.contains("no such GGUF model") && none.contains("M-f16"), "{none}");
        let lacking = chosen(&["M-00001-of-00002.gguf"], &Choice::Only).expect_err("one of two");
        assert!(lacking.contains("lacks files"), "{lacking}");
        let other = chosen(&["pytorch_model.bin"], &Choice::Only).expect_err("pickles");
        assert!(other.contains("neither safetensors"), "{other}");
    }
}
