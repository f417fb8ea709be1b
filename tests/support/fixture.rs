//! What the reference computed, as `tests/golden/make.py` wrote it (its README says what the fields mean).

use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::model::golden;

/// Likeliest tokens that a fixture lists at each position.
const TOP: usize = 5;

/// One case's prompts.
#[derive(Deserialize)]
pub(crate) struct Fixture {
    pub(crate) case: String,
    pub(crate) prompts: Vec<Prompt>,
}

impl Fixture {
    /// The prompts' token ids.
    pub(crate) fn ids(&self) -> Vec<Vec<u32>> {
        self.prompts.iter().map(|prompt| prompt.ids.clone()).collect()
    }
}

/// A teacher-forced prompt: everything but `next_logprob` has an entry a position.
#[derive(Deserialize)]
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    pub(crate) argmax: Vec<u32>,
    /// First minus second logit.
    pub(crate) margin: Vec<f64>,
    pub(crate) top: Vec<[u32; TOP]>,
    pub(crate) top_logprobs: Vec<[f64; TOP]>,
    /// At position p, the log-probability of token p + 1: one entry fewer.
    pub(crate) next_logprob: Vec<f64>,
}

/// The golden cases: those whose folder has a fixture, by name.
pub(crate) fn cases() -> Vec<Fixture> {
    let entries = fs::read_dir(golden()).expect("the golden folder can be read");
    let folders = entries.map(|entry| entry.expect("an entry can be read").path());
    let mut cases: Vec<Fixture> =
        folders.map(|folder| folder.join("fixture.json")).filter(|file| file.is_file()).map(|f| read(&f)).collect();
    cases.sort_by(|a, b| a.case.cmp(&b.case));
    cases
}

/// The golden case `case`.
pub(crate) fn case(case: &str) -> Fixture {
    read(&golden().join(case).join("fixture.json"))
}

/// What the demo model computes.
pub(crate) fn breeze() -> Fixture {
    read(&golden().join("breeze.json"))
}

fn read(file: &Path) -> Fixture {
    let json = fs::read(file).expect("a fixture can be read");
    let fixture: Fixture = serde_json::from_slice(&json).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    for prompt in &fixture.prompts {
        let lengths = [prompt.argmax.len(), prompt.margin.len(), prompt.top.len(), prompt.top_logprobs.len()];
        assert_eq!(lengths, [prompt.ids.len(); 4], "{}: a value a position", file.display());
        assert_eq!(prompt.next_logprob.len() + 1, prompt.ids.len(), "{}: next_logprob", file.display());
    }
    fixture
}
