//! Parameters of a generation, as any protocol brings them, and their bounds. Everything is checked before anything is made of it.

use std::collections::BTreeMap;

use tramontane_cluster::engine::{Constraint, Generation, Sampling};
use tramontane_model::tokenizer::{Special, Tokenizer, TokenizerError};

use super::choice::{ControlTokens, TextRules};
use super::model::ServedModel;
use super::numbers::{real, real_above, token, whole};
use super::random;
use super::stop::StopText;
use crate::error::ApiError;

/// Most stop strings.
pub(super) const MAX_STOPS: usize = 4;
/// Longest stop string, in bytes.
const MAX_STOP_BYTES: usize = 1 << 10;
/// Most stop tokens, beside the model's own.
const MAX_STOP_TOKENS: usize = 128;
/// Most tokens with a bias.
const MAX_BIASES: usize = 1024;
/// Most forbidden words, and the longest, in bytes.
const MAX_BAD_WORDS: usize = 128;
const MAX_BAD_WORD_BYTES: usize = 256;
/// Most choices that the protocol knows.
const MAX_CHOICES: i64 = 128;
/// Most log-probabilities a token.
const MAX_TOP: i64 = 20;
/// Longest cache salt, in bytes.
const MAX_SALT_BYTES: usize = 256;
/// Below it temperature is 0: logits divided by less would overflow.
const LEAST_TEMPERATURE: f32 = 1e-4;

/// What a server allows one request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sequences: prompts × choices.
    pub sequences: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sequences: 64 }
    }
}

/// A value, and what the client called it.
#[derive(Clone, Debug, PartialEq)]
pub struct Named<T> {
    /// The parameter.
    pub name: &'static str,
    /// Its value.
    pub value: T,
}

/// What was said about a generation; nothing is checked yet. `None` and empty are the defaults.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    /// Most tokens to generate.
    pub max_tokens: Option<Named<i64>>,
    /// Fewest, before which nothing stops.
    pub min_tokens: Option<i64>,
    /// Choices.
    pub n: Option<i64>,
    /// Choices generated, of which the best `n` are answered.
    pub best_of: Option<i64>,
    /// 0 to 2, default 1.
    pub temperature: Option<f64>,
    /// Above 0, at most 1.
    pub top_p: Option<f64>,
    /// −1 or 0 for all.
    pub top_k: Option<i64>,
    /// 0 to 1.
    pub min_p: Option<f64>,
    /// Above 0, at most 1.
    pub typical_p: Option<f64>,
    /// 0.01 to 100.
    pub repetition_penalty: Option<f64>,
    /// −2 to 2.
    pub presence_penalty: Option<f64>,
    /// −2 to 2.
    pub frequency_penalty: Option<f64>,
    /// Token id → −100 to 100.
    pub logit_bias: BTreeMap<String, f64>,
    /// Words that must not appear.
    pub bad_words: Vec<String>,
    /// Random when not given.
    pub seed: Option<i64>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Tokens that end it.
    pub stop_token_ids: Vec<i64>,
    /// Whether the model's own do not.
    pub ignore_eos: bool,
    /// Whether a stop string is part of the answer.
    pub include_stop_str_in_output: bool,
    /// Whether control tokens have no text; they have none by default.
    pub skip_special_tokens: Option<bool>,
    /// Log-probabilities of each token's so many likeliest alternatives; `None` for no log-probabilities.
    pub logprobs: Option<Named<i64>>,
    /// The same for the prompt.
    pub prompt_logprobs: Option<i64>,
    /// What the answer must match.
    pub constraint: Option<Named<Constraint>>,
    /// Only the prompt's last so many tokens count; −1 for as many as the context holds.
    pub truncate_prompt_tokens: Option<i64>,
    /// Who else may profit from what this request leaves in the cache.
    pub cache_salt: Option<String>,
    /// Among the caller's waiting requests; lower is earlier.
    pub priority: Option<i64>,
}

/// Parameters that are within their bounds. The generation lacks its number of tokens, which the prompt decides.
pub(super) struct Checked {
    pub(super) generation: Generation,
    pub(super) rules: TextRules,
    pub(super) max_tokens: Option<Named<usize>>,
    pub(super) n: u32,
    pub(super) priority: i32,
    pub(super) constraint_name: Option<&'static str>,
}

impl Parameters {
    /// Checks everything that does not depend on the prompt.
    pub(super) fn check(&self, model: &ServedModel, tokenizer: &Tokenizer) -> Result<Checked, ApiError> {
        let n = whole("n", self.n.unwrap_or(1), 1..=MAX_CHOICES)?;
        let best_of = match self.best_of {
            Some(best_of) => whole("best_of", best_of, n..=MAX_TOP)?,
            None => n,
        };
        let max_tokens = match &self.max_tokens {
            Some(Named { name, value }) => {
                Some(Named { name, value: whole(name, *value, 1..=i64::from(u32::MAX))? as usize })
            }
            None => None,
        };
        let logprobs = match &self.logprobs {
            Some(Named { name, value }) => Some(whole(name, *value, 0..=MAX_TOP)? as u32),
            // The best choices are those with the highest log-probability.
            None => (best_of > n).then_some(0),
        };
        let top = |count| whole("prompt_logprobs", count, 0..=MAX_TOP).map(|count| count as u32);
        let generation = Generation {
            min_tokens: whole("min_tokens", self.min_tokens.unwrap_or(0), 0..=model.context as i64)? as usize,
            choices: best_of as u32,
            sampling: self.sampling(model, tokenizer)?,
            stop_tokens: self.stop_tokens(model)?,
            logprobs,
            prompt_logprobs: self.prompt_logprobs.map(top).transpose()?,
            constraint: self.constraint.as_ref().map(|named| named.value.clone()),
            ..Generation::default()
        };
        if self.cache_salt.as_ref().is_some_and(|salt| salt.is_empty() || salt.len() > MAX_SALT_BYTES) {
            return Err(ApiError::param("cache_salt", format!("`cache_salt` must have 1 to {MAX_SALT_BYTES} bytes")));
        }
        let priority = whole("priority", self.priority.unwrap_or(0), i64::from(i32::MIN)..=i64::from(i32::MAX))?;
        Ok(Checked {
            rules: self.rules(generation.min_tokens)?,
            generation,
            max_tokens,
            n: n as u32,
            priority: priority as i32,
            constraint_name: self.constraint.as_ref().map(|named| named.name),
        })
    }

    fn sampling(&self, model: &ServedModel, tokenizer: &Tokenizer) -> Result<Sampling, ApiError> {
        let temperature = real("temperature", self.temperature, 0.0..=2.0, 1.0)?;
        let top_k = match self.top_k {
            Some(k) => Some(whole("top_k", k, -1..=i64::from(u32::MAX))?).filter(|&k| k > 0),
            None => None,
        };
        Ok(Sampling {
            temperature: if temperature < LEAST_TEMPERATURE { 0.0 } else { temperature },
            top_k: top_k.map(|k| k as u32),
            top_p: real_above("top_p", self.top_p, 0.0..=1.0, 1.0)?,
            min_p: real("min_p", self.min_p, 0.0..=1.0, 0.0)?,
            typical_p: real_above("typical_p", self.typical_p, 0.0..=1.0, 1.0)?,
            repetition_penalty: real("repetition_penalty", self.repetition_penalty, 0.01..=100.0, 1.0)?,
            presence_penalty: real("presence_penalty", self.presence_penalty, -2.0..=2.0, 0.0)?,
            frequency_penalty: real("frequency_penalty", self.frequency_penalty, -2.0..=2.0, 0.0)?,
            logit_bias: self.biases(model)?,
            bad_words: self.forbidden(tokenizer)?,
            seed: self.seed.map_or_else(random::number, |seed| seed as u64),
        })
    }

    fn biases(&self, model: &ServedModel) -> Result<Vec<(u32, f32)>, ApiError> {
        const NAME: &str = "logit_bias";
        bounded(NAME, self.logit_bias.len(), MAX_BIASES)?;
        let biases = self.logit_bias.iter().map(|(id, bias)| {
            let id = id.parse().map_err(|_| ApiError::param(NAME, "a key of `logit_bias` is not a token id"))?;
            Ok((token(NAME, id, model.vocab)?, real(NAME, Some(*bias), -100.0..=100.0, 0.0)?))
        });
        biases.collect()
    }

    /// Each word as it stands at the beginning of a text and after a space.
    fn forbidden(&self, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, ApiError> {
        const NAME: &str = "bad_words";
        bounded(NAME, self.bad_words.len(), MAX_BAD_WORDS)?;
        let mut forbidden = Vec::new();
        for word in &self.bad_words {
            let word = word.trim_start();
            if word.is_empty() || word.len() > MAX_BAD_WORD_BYTES {
                let why = format!("a word of `bad_words` must have 1 to {MAX_BAD_WORD_BYTES} bytes");
                return Err(ApiError::param(NAME, why));
            }
            for spelled in [word.to_owned(), format!(" {word}")] {
                let ids = tokenizer.encode(&spelled, Special::None).map_err(|error| of_param(NAME, error))?;
                if !ids.is_empty() && !forbidden.contains(&ids) {
                    forbidden.push(ids);
                }
            }
        }
        Ok(forbidden)
    }

    fn stop_tokens(&self, model: &ServedModel) -> Result<Vec<u32>, ApiError> {
        const NAME: &str = "stop_token_ids";
        bounded(NAME, self.stop_token_ids.len(), MAX_STOP_TOKENS)?;
        let mut tokens = if self.ignore_eos { Vec::new() } else { model.eos.clone() };
        for &id in &self.stop_token_ids {
            let id = token(NAME, id, model.vocab)?;
            if !tokens.contains(&id) {
                tokens.push(id);
            }
        }
        Ok(tokens)
    }

    fn rules(&self, min_tokens: usize) -> Result<TextRules, ApiError> {
        bounded("stop", self.stop.len(), MAX_STOPS)?;
        if self.stop.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            return Err(ApiError::param("stop", format!("a stop string must have 1 to {MAX_STOP_BYTES} bytes")));
        }
        let spelled = self.skip_special_tokens == Some(false);
        Ok(TextRules {
            stops: self.stop.clone(),
            stop_text: if self.include_stop_str_in_output { StopText::Included } else { StopText::Left },
            min_tokens,
            control: if spelled { ControlTokens::Spelled } else { ControlTokens::Silent },
            tools: None,
        })
    }
}

/// Refuses a list of more than `limit` entries.
pub(super) fn bounded(param: &str, found: usize, limit: usize) -> Result<(), ApiError> {
    if found <= limit {
        return Ok(());
    }
    Err(ApiError::param(param, format!("`{param}` has {found} entries, at most {limit}")))
}

/// What the tokenizer says of a parameter's text.
pub(super) fn of_param(param: &str, error: TokenizerError) -> ApiError {
    match ApiError::from(error) {
        ApiError::Invalid { why, .. } => ApiError::param(param, why),
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontdoor::ModelCard;
    use tramontane_cluster::engine::EngineInfo;

    fn check(parameters: &Parameters) -> Result<Checked, ApiError> {
        let info = EngineInfo { model: "m".into(), context: 1024, vocab: 2048, fingerprint: "fp".to_owned() };
        let model = ServedModel::new(&info, vec![2], ModelCard::default());
        let tokenizer = Tokenizer::from_json(include_bytes!("../../../models/breeze/tokenizer.json")).unwrap();
        parameters.check(&model, &tokenizer)
    }

    fn refused(param: &str, parameters: Parameters) {
        let error = check(&parameters).err().unwrap_or_else(|| panic!("{param} was accepted: {parameters:?}"));
        assert_eq!(error.param_name(), Some(param), "{error}");
    }

    #[test]
    fn defaults_are_openais_and_the_seed_is_random() {
        let (one, other) = (check(&Parameters::default()).unwrap(), check(&Parameters::default()).unwrap());
        assert_ne!(one.generation.sampling.seed, other.generation.sampling.seed);
        let sampling = Sampling { seed: 0, temperature: 1.0, ..Sampling::default() };
        assert_eq!(Sampling { seed: 0, ..one.generation.sampling }, sampling);
        assert_eq!((one.n, one.generation.choices, one.generation.stop_tokens), (1, 1, vec![2]));
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        let default = Parameters::default;
        for n in [0, -1, 129, 1_000_000_000, i64::MAX] {
            refused("n", Parameters { n: Some(n), ..default() });
        }
        for max_tokens in [0, -1, i64::MAX] {
            refused(
                "max_tokens",
                Parameters { max_tokens: Some(Named { name: "max_tokens", value: max_tokens }), ..default() },
            );
        }
        for temperature in [-0.5, 2.5, f64::NAN, 1e300] {
            refused("temperature", Parameters { temperature: Some(temperature), ..default() });
        }
        refused("best_of", Parameters { n: Some(3), best_of: Some(2), ..default() });
        refused("best_of", Parameters { best_of: Some(21), ..default() });
        refused("top_p", Parameters { top_p: Some(0.0), ..default() });
        refused("top_k", Parameters { top_k: Some(-2), ..default() });
        refused("min_tokens", Parameters { min_tokens: Some(-1), ..default() });
        refused("logprobs", Parameters { logprobs: Some(Named { name: "logprobs", value: 21 }), ..default() });
        refused("prompt_logprobs", Parameters { prompt_logprobs: Some(-1), ..default() });
        refused("priority", Parameters { priority: Some(1 << 40), ..default() });
        refused("cache_salt", Parameters { cache_salt: Some(String::new()), ..default() });
        refused("stop", Parameters { stop: vec!["x".to_owned(); 10_000], ..default() });
        refused("stop", Parameters { stop: vec![String::new()], ..default() });
        refused("stop_token_ids", Parameters { stop_token_ids: vec![2048], ..default() });
        refused("bad_words", Parameters { bad_words: vec![" ".to_owned()], ..default() });
        for (id, bias) in [("x", 1.0), ("2048", 1.0), ("-1", 1.0), ("1", 101.0), ("1", f64::NAN)] {
            refused("logit_bias", Parameters { logit_bias: [(id.to_owned(), bias)].into(), ..default() });
        }
    }

    #[test]
    fn a_bad_word_is_forbidden_in_each_spelling() {
        let checked = check(&Parameters { bad_words: vec!["Paris".to_owned()], ..Parameters::default() }).unwrap();
        assert!(!checked.generation.sampling.bad_words.is_empty());
        assert!(checked.generation.sampling.bad_words.iter().all(|ids| !ids.is_empty()));
    }

    #[test]
    fn temperatures_that_would_overflow_are_greedy_and_seeds_keep_their_sign() {
        let checked = check(&Parameters { temperature: Some(1e-30), seed: Some(-1), ..Parameters::default() }).unwrap();
        assert_eq!((checked.generation.sampling.temperature, checked.generation.sampling.seed), (0.0, u64::MAX));
    }
}
