//! The tokens that grammars are made of.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use toktrie::{ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use tramontane_cluster::engine::Constraint;
use tramontane_model::tokenizer::{TokenBytes, Tokenizer};

use super::compile::{check_size, compile, limits};

/// Longest token that a constrained completion may have, in bytes: the trie has a bound, and ordinary tokens are far below.
const MAX_TOKEN_BYTES: usize = 256;
/// What stands before the name of a control token in the trie: no text has this byte.
const CONTROL: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// What each token of a model stands for, as a trie. Cheap to clone.
#[derive(Clone)]
pub struct Vocabulary(Arc<ParserFactory>);

/// There is no vocabulary to match constraints with: the model's tokenizer is at fault.
#[derive(Debug, thiserror::Error)]
pub enum VocabularyError {
    /// It does not say what its tokens stand for.
    #[error("the tokenizer does not say what bytes its tokens stand for")]
    UnknownSpelling,
    /// The trie cannot be made.
    #[error("no trie of the tokens: {0}")]
    Trie(String),
}

impl Vocabulary {
    /// The tokens of `tokenizer`, of a model with `vocab` ids, whose completions end with any of `eos`.
    ///
    /// # Errors
    /// [`VocabularyError`].
    pub fn of(tokenizer: &Tokenizer, vocab: usize, eos: &[u32]) -> Result<Self, VocabularyError> {
        let tokens = (0..vocab as u32).map(|id| match tokenizer.token_bytes(id) {
            TokenBytes::Text(bytes) => Ok(bytes),
            TokenBytes::Control(name) => Ok([&[CONTROL], name.as_bytes()].concat()),
            TokenBytes::Nothing => Ok(Vec::new()),
            TokenBytes::Unknown => Err(VocabularyError::UnknownSpelling),
        });
        Self::new(tokens.collect::<Result<_, _>>()?, eos)
    }

    /// Tokens that stand for `tokens`, by id; one that stands for nothing is never allowed.
    ///
    /// # Errors
    /// [`VocabularyError::Trie`].
    pub fn new(mut tokens: Vec<Vec<u8>>, eos: &[u32]) -> Result<Self, VocabularyError> {
        tokens.iter_mut().filter(|token| token.len() > MAX_TOKEN_BYTES).for_each(Vec::clear);
        let eos: Vec<u32> = eos.iter().copied().filter(|id| (*id as usize) < tokens.len()).collect();
        let info = TokRxInfo::new(tokens.len() as u32, eos.first().copied().unwrap_or(INVALID_TOKEN));
        let trie = TokTrie::from(&info, &tokens);
        let trie = if eos.is_empty() { trie } else { trie.with_eos_tokens(&eos) };
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .map_err(|error| VocabularyError::Trie(error.to_string()))?;
        // Its warnings would quote constraints.
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self(Arc::new(factory)))
    }

    /// Whether a completion of `tokens` obeys `constraint`: all of them may stand there, and it may end behind the last one.
    ///
    /// # Errors
    /// The constraint is too large, malformed, or asks for too much work.
    pub fn accepts(&self, constraint: &Constraint, tokens: &[u32]) -> Result<bool, String> {
        check_size(constraint)?;
        let mut follower = compile(self, constraint)?;
        for &token in tokens {
            let allowed = follower.allowed().map_err(|refusal| refusal.0)?;
            if (token as usize) >= allowed.len() || !allowed.is_allowed(token) {
                return Ok(false);
            }
            follower.push(token).map_err(|refusal| refusal.0)?;
        }
        Ok(follower.may_end())
    }

    pub(super) fn factory(&self) -> &ParserFactory {
        &self.0
    }
}
