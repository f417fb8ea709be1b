//! Which model is served, as clients see it.

use tramontane_cluster::engine::EngineInfo;

/// A served model.
#[derive(Clone, Debug)]
pub struct ServedModel {
    id: String,
    /// Tokens a prompt and its completion may have together.
    pub context: usize,
    /// Token ids there are.
    pub vocab: usize,
    /// Tokens that end a completion.
    pub eos: Vec<u32>,
    /// What is said about it.
    pub card: ModelCard,
}

/// What is said about a model beside its name.
#[derive(Clone, Debug, Default)]
pub struct ModelCard {
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// The root of its tensors' hashes.
    pub hash: String,
    /// Its experts' type.
    pub quantization: String,
    /// Its licence, where the checkpoint says.
    pub license: Option<String>,
}

impl ServedModel {
    /// The model that an engine serves.
    pub fn new(info: &EngineInfo, eos: Vec<u32>, card: ModelCard) -> Self {
        Self { id: info.model.as_str().to_owned(), context: info.context, vocab: info.vocab, eos, card }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Which weights these are: the card's hash behind its kind.
    pub fn named_hash(&self) -> String {
        format!("blake3:{}", self.card.hash)
    }
}
