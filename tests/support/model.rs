//! The checkpoints that tests run: the golden cases and the demo model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tempfile::TempDir;
use tramontane_kernels::CONTRACT_VERSION;
use tramontane_model::checkpoint::Checkpoint;
use tramontane_model::config::ModelConfig;
use tramontane_model::manifest::Manifest;
use tramontane_model::tokenizer::{Special, Tokenizer};
use tramontane_model::weights::{ExpertTypes, Quantize};
use tramontane_router::{CPU_ARITHMETIC, ExpertId, ModelId, NumericProfile};

use super::dice::Dice;
use super::gguf::{self, Form};

/// An opened checkpoint.
pub(crate) struct Model {
    pub(crate) id: ModelId,
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) config: ModelConfig,
    /// Root of its tensors' hashes.
    weights: String,
    /// Where it is, if it was written for a test; goes with it.
    _folder: Option<TempDir>,
}

impl Model {
    /// The demo model.
    pub(crate) fn breeze() -> Self {
        Self::open("breeze", &demo())
    }

    /// The golden case `case`.
    pub(crate) fn golden(case: &str) -> Self {
        Self::open(case, &golden().join(case))
    }

    /// The same model out of a GGUF file, in a folder of its own.
    pub(crate) fn as_gguf(&self, form: Form) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("model.gguf");
        gguf::write(self, form, &file);
        Self { _folder: Some(folder), ..Self::open(&format!("{}-gguf", self.id), &file) }
    }

    /// The checkpoint at `path`, a folder or a GGUF file.
    pub(crate) fn open(name: &str, path: &Path) -> Self {
        Self::open_with(name, path, |checkpoint| Manifest::compute(checkpoint).root().to_owned())
    }

    /// The same, where `root` knows the root of its tensors' hashes.
    pub(crate) fn open_with(name: &str, path: &Path, root: impl FnOnce(&Checkpoint) -> String) -> Self {
        let checkpoint = Checkpoint::open(path).expect("the checkpoint opens");
        let config = checkpoint.config().expect("its configuration is sound");
        checkpoint.validate(&config).expect("its tensors are the configuration's");
        let weights = root(&checkpoint);
        Self { id: ModelId::from(name), checkpoint: Arc::new(checkpoint), config, weights, _folder: None }
    }

    /// How its experts take their rows when they are held as `quantize` says.
    pub(crate) fn experts(&self, quantize: Quantize) -> ExpertTypes {
        ExpertTypes::of(&self.checkpoint, &self.config, quantize).expect("its experts have one type")
    }

    /// What decides its bits.
    pub(crate) fn profile(&self, quantize: Quantize) -> NumericProfile {
        NumericProfile {
            contract: CONTRACT_VERSION,
            weights: self.weights.clone(),
            quantization: self.experts(quantize).name,
            arithmetic: CPU_ARITHMETIC.to_owned(),
        }
    }

    /// All its experts.
    pub(crate) fn expert_ids(&self) -> impl Iterator<Item = ExpertId> {
        let experts = self.config.experts as u32;
        (0..self.config.layers as u32).flat_map(move |layer| (0..experts).map(move |e| ExpertId::new(layer, e)))
    }

    /// `len` token ids that are the same in every run, others for each `seed`.
    pub(crate) fn random_ids(&self, len: usize, seed: u64) -> Vec<u32> {
        let mut dice = Dice(seed);
        let mut next = || dice.below(self.config.vocab as u64) as u32;
        // The first numbers of neighbouring seeds are alike.
        next();
        (0..len).map(|_| next()).collect()
    }
}

/// The first `count` plain texts of the demo model's corpus, as token ids that begin with bos.
pub(crate) fn corpus(model: &Model, count: usize) -> Vec<Vec<u32>> {
    #[derive(Deserialize)]
    struct Line {
        text: Option<String>,
    }
    let json = model.checkpoint.tokenizer_json().expect("the demo model has a tokenizer");
    let tokenizer = Tokenizer::from_json(&json).expect("its tokenizer is sound");
    let corpus = std::fs::read_to_string(demo().join("corpus.jsonl")).expect("the demo model has a corpus");
    let lines = corpus.lines().map(|line| serde_json::from_str::<Line>(line).expect("the corpus is JSON lines"));
    let texts: Vec<String> = lines.filter_map(|line| line.text).take(count).collect();
    assert_eq!(texts.len(), count, "the corpus has enough texts");
    texts.iter().map(|text| tokenizer.encode(text, Special::Add).expect("a text has tokens")).collect()
}

/// The folder of the golden fixtures.
pub(crate) fn golden() -> PathBuf {
    root().join("tests/golden")
}

fn demo() -> PathBuf {
    root().join("models/breeze")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
