//! A checked request of any kind, ready to go to the engine.

use std::sync::Arc;
use std::time::Instant;

use futures::stream;
use tramontane_cluster::engine::{Task, ValidRequest};

use super::answer::{Answer, ChoiceEvents, Group};
use super::choice::{Choice, TextRules};
use super::params::{Checked, Named, Parameters};
use super::prompt::{Prompt, Truncate};
use super::{Caller, FrontDoor};
use crate::error::ApiError;
use crate::metering::Charge;
use crate::shown::{Operation, Shown};

/// Tokens that a text completion has when nothing is said.
const DEFAULT_COMPLETION: usize = 16;

/// A request to go on with texts.
#[derive(Clone, Debug)]
pub struct CompletionRequest {
    /// The texts.
    pub prompts: Vec<Prompt>,
    /// How.
    pub parameters: Parameters,
    /// Whether the answer begins with the prompt.
    pub echo: bool,
}

/// Requests to the engine, a prompt each, and what becomes of their events.
pub struct Job {
    front: Arc<FrontDoor>,
    requests: Vec<ValidRequest>,
    prompts: Vec<Arc<[u32]>>,
    rules: TextRules,
    /// Choices to answer, a prompt.
    n: u32,
    constraint: Option<&'static str>,
    length: Length,
    charge: Charge,
    shown: Shown,
}

/// Whether anything is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// It is.
    Some,
    /// Only the prompt is wanted.
    PromptOnly,
}

impl FrontDoor {
    /// Checks a request to go on with texts.
    ///
    /// # Errors
    /// [`ApiError::Invalid`], [`ApiError::ContextLength`]; what the key's limits say.
    pub fn completion(self: &Arc<Self>, request: CompletionRequest, caller: &Caller) -> Result<Job, ApiError> {
        let CompletionRequest { prompts, mut parameters, echo } = request;
        caller.shown.asks(Operation::Completion, self.model.id());
        caller.shown.parameters(&parameters);
        caller.account.begin(self.model.id())?;
        if prompts.is_empty() {
            return Err(ApiError::param("prompt", "`prompt` is empty"));
        }
        let nothing = echo && parameters.max_tokens.as_ref().is_some_and(|named| named.value == 0);
        if nothing {
            parameters.max_tokens = Some(Named { name: "max_tokens", value: 1 });
        }
        if echo && parameters.prompt_logprobs.is_none() {
            parameters.prompt_logprobs = parameters.logprobs.as_ref().map(|named| named.value);
        }
        let checked = parameters.check(&self.model, &self.tokenizer)?;
        self.check_sequences("prompt", prompts.len(), &checked)?;
        let truncate = Truncate::read(parameters.truncate_prompt_tokens, self.model.context)?;
        let ids = prompts.iter().map(|prompt| Ok(truncate.apply(self.ids("prompt", prompt)?)));
        let ids = ids.collect::<Result<Vec<_>, ApiError>>()?;
        let length = if nothing { Length::PromptOnly } else { Length::Some };
        self.job("prompt", ids, &parameters, checked, Some(DEFAULT_COMPLETION), caller, length)
    }

    /// Refuses more sequences than one request may have: before there are any.
    pub(super) fn check_sequences(&self, param: &str, prompts: usize, checked: &Checked) -> Result<(), ApiError> {
        let (each, limit) = (checked.generation.choices as usize, self.limits.sequences);
        match prompts.checked_mul(each) {
            Some(all) if all <= limit => Ok(()),
            _ if each > limit => Err(ApiError::param("n", format!("`n` is {each}, at most {limit} here"))),
            _ => {
                let why = format!("{prompts} prompts with {each} choices each are too many; at most {limit} together");
                Err(ApiError::param(param, why))
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what two kinds of request have found out by themselves")]
    pub(super) fn job(
        self: &Arc<Self>,
        param: &'static str,
        prompts: Vec<Vec<u32>>,
        parameters: &Parameters,
        checked: Checked,
        default_length: Option<usize>,
        caller: &Caller,
        length: Length,
    ) -> Result<Job, ApiError> {
        let cache_scope = self.cache_scope(caller, parameters.cache_salt.as_deref());
        // What is generated up to the end of the context, for nobody said how much, is charged when it is there.
        let is_said = checked.max_tokens.is_some() || default_length.is_some();
        let (mut requests, mut reserved) = (Vec::with_capacity(prompts.len()), 0_usize);
        for prompt in &prompts {
            let mut generation = checked.generation.clone();
            generation.max_tokens = self.room(param, prompt.len(), checked.max_tokens.as_ref(), default_length)?;
            if generation.min_tokens > generation.max_tokens {
                let why = format!("`min_tokens` is more than the {} tokens to generate", generation.max_tokens);
                return Err(ApiError::param("min_tokens", why));
            }
            let generated = if is_said { generation.max_tokens * generation.choices as usize } else { 0 };
            reserved += prompt.len() + generated;
            requests.push(ValidRequest {
                tenant: caller.account.tenant(),
                priority: checked.priority,
                cache_scope,
                deadline: caller.deadline,
                mark: caller.shown.mark(),
                ..ValidRequest::generate(self.next_id(), prompt.clone(), generation)
            });
        }
        Ok(Job {
            front: self.clone(),
            requests,
            prompts: prompts.into_iter().map(Arc::from).collect(),
            rules: checked.rules,
            n: checked.n,
            constraint: checked.constraint_name,
            length,
            charge: caller.account.reserve(self.model.id(), reserved as u64)?,
            shown: caller.shown.clone(),
        })
    }
}

impl Job {
    /// The prompts' ids.
    pub fn prompts(&self) -> &[Arc<[u32]>] {
        &self.prompts
    }

    /// Choices a prompt.
    pub fn n(&self) -> u32 {
        self.n
    }

    /// What is shown of it.
    pub(crate) fn shown(&self) -> &Shown {
        &self.shown
    }

    /// The front door it came through.
    pub fn front(&self) -> &Arc<FrontDoor> {
        &self.front
    }

    /// Hands everything to the engine.
    ///
    /// # Errors
    /// [`ApiError::Engine`]: it takes no requests, or not so many. Then it has none of these.
    pub fn start(self) -> Result<Answer, ApiError> {
        let each = self.requests.first().map_or(1, ValidRequest::streams);
        let group = Group { prompts: self.prompts, each, n: self.n, constraint: self.constraint };
        let shown = self.shown.answer(self.front.model.id());
        if self.length == Length::PromptOnly && self.requests.iter().all(|request| !wants_prompt(request)) {
            return Ok(Answer::of_prompts_alone(group, self.front.metrics.clone(), self.charge, shown));
        }
        let (mut choices, now) = (Vec::new(), Instant::now());
        for (request, prompt) in self.requests.into_iter().zip(&group.prompts) {
            let streams = self.front.engine.submit(request)?;
            self.front.metrics.prompt(prompt.len());
            for events in streams {
                let choice = Choice::new(&self.front.tokenizer, prompt, &self.rules)?;
                choices.push(ChoiceEvents::new(
                    choices.len(),
                    events,
                    choice,
                    self.length,
                    self.front.metrics.choice(now),
                ));
            }
        }
        Ok(Answer::new(group, stream::select_all(choices), self.front.metrics.clone(), self.charge, shown))
    }
}

fn wants_prompt(request: &ValidRequest) -> bool {
    matches!(&request.task, Task::Generate(generation) if generation.prompt_logprobs.is_some())
}
