//! The core of the front door, the same for every protocol: what is asked becomes a checked request to an engine, and the engine's
//! tokens become text, tool calls, log-probabilities and usage.
//!
//! [`FrontDoor::completion`], [`FrontDoor::chat`] and [`FrontDoor::embedding`] decide and touch no network: they check and tokenise
//! (on the caller's thread, which for long prompts should not be one that carries bytes). [`Job::start`] asks the engine, and an
//! [`Answer`] is read step by step. Dropping an answer cancels what it still waits for.

mod answer;
mod chat;
mod choice;
mod constraint;
mod embed;
mod job;
mod model;
mod native;
mod numbers;
mod params;
mod prompt;
mod random;
mod stop;
mod token_text;
pub mod tools;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tramontane_cluster::engine::{CacheScope, Engine, EngineInfo, EngineStatus};
use tramontane_model::chat::ChatTemplate;
use tramontane_model::tokenizer::Tokenizer;

pub use answer::{Answer, Step, UsageSoFar, Whole};
pub use chat::{ChatRequest, ChatTurn, Speaker};
pub use choice::{ChoiceUsage, End, Piece, Reason, SpokenToken, TextPiece};
pub use constraint::{Choices, MAX_CONSTRAINT_BYTES, any_object, choices, schema, text as constraint_text};
pub use embed::EmbeddingJob;
pub use job::{CompletionRequest, Job};
pub use model::{ModelCard, ServedModel};
pub use params::{Limits, Named, Parameters};
pub use prompt::{Prompt, Truncate};
pub use random::alphanumeric;
pub use token_text::TokenText;

use crate::error::ApiError;
use crate::metering::Account;
use crate::metrics::FrontMetrics;
use crate::shown::Shown;

/// Prepares a request. Tokenising a long prompt takes a while: not on a thread that carries bytes.
pub(crate) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or(Err(ApiError::Internal { why: "preparing a request panicked" }))
}

/// Who asks, and until when.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The key, and what knows of it.
    pub account: Account,
    /// After it nobody waits for the answer.
    pub deadline: Option<Instant>,
    /// What is shown of his request.
    pub shown: Shown,
}

/// The front door of one model on one engine. Shared by all that carry its requests.
pub struct FrontDoor {
    engine: Arc<dyn Engine>,
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
    model: ServedModel,
    limits: Limits,
    token_text: TokenText,
    next_request: AtomicU64,
    metrics: FrontMetrics,
}

impl FrontDoor {
    /// The front door of `model`, which `engine` runs.
    pub fn new(
        engine: Arc<dyn Engine>,
        tokenizer: Tokenizer,
        chat: Option<ChatTemplate>,
        model: ServedModel,
        limits: Limits,
    ) -> Self {
        let token_text = TokenText::of(&tokenizer);
        Self {
            engine,
            tokenizer,
            chat,
            model,
            limits,
            token_text,
            next_request: AtomicU64::new(0),
            metrics: FrontMetrics::default(),
        }
    }

    /// Has its requests counted by `metrics`.
    pub fn counted_by(self, metrics: FrontMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// What the engine serves.
    pub fn engine_info(&self) -> &EngineInfo {
        self.engine.info()
    }

    /// How the engine fares.
    pub fn engine_status(&self) -> EngineStatus {
        self.engine.status()
    }

    /// The model.
    pub fn model(&self) -> &ServedModel {
        &self.model
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The texts of single tokens.
    pub fn token_text(&self) -> &TokenText {
        &self.token_text
    }

    /// Checks that a request means the model that is served.
    ///
    /// # Errors
    /// [`ApiError::ModelNotFound`].
    pub fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(asked) if asked != self.model.id() => Err(ApiError::ModelNotFound { model: asked.to_owned() }),
            _ => Ok(()),
        }
    }

    /// Whether the model has a chat template.
    pub fn can_chat(&self) -> bool {
        self.chat.is_some()
    }

    /// The text of ids, which are the parameter `param`.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    pub fn text_of(&self, param: &str, ids: &[i64]) -> Result<String, ApiError> {
        let ids = ids.iter().map(|&id| numbers::token(param, id, self.model.vocab));
        Ok(self.tokenizer.decode(&ids.collect::<Result<Vec<_>, _>>()?)?)
    }

    fn next_id(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }

    /// Who may share cached keys and values with `caller`: those of the same key who name the same salt.
    fn cache_scope(&self, caller: &Caller, salt: Option<&str>) -> CacheScope {
        use sha2::{Digest, Sha256};
        let tenant = caller.account.tenant();
        if tenant.0.is_none() && salt.is_none() {
            return CacheScope::default();
        }
        let mut hash = Sha256::new();
        for part in [tenant.0.as_deref(), salt] {
            // Lengths go in, so that no two pairs are the same bytes.
            hash.update(part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
            hash.update(part.unwrap_or_default());
        }
        let mut scope = [0; 16];
        scope.copy_from_slice(&hash.finalize()[..16]);
        CacheScope(u128::from_le_bytes(scope))
    }
}
