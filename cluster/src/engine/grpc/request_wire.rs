//! Requests to messages and back. What comes is checked for what no engine may be asked: numbers that are none, more choices
//! than there is memory for. What a model can run, its engine judges.

use std::time::{Duration, Instant};

use tramontane_proto::v1 as pb;

use super::MAX_CHOICES;
use crate::Malformed;
use crate::engine::{CacheScope, Constraint, Generation, Mark, Sampling, Task, Tenant, ValidRequest};

/// `request` as a message that is sent at `now`.
pub(super) fn request_to_pb(request: ValidRequest, now: Instant) -> pb::EngineRequest {
    let ValidRequest { id, prompt, tenant, priority, cache_scope, deadline, task, mark: _ } = request;
    let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
    pb::EngineRequest {
        id,
        prompt,
        tenant: tenant.0.map(|name| name.as_ref().to_owned()),
        priority,
        cache_scope: if cache_scope.0 == 0 { Vec::new() } else { cache_scope.0.to_le_bytes().to_vec() }.into(),
        time_left_us: left.map(|left| u64::try_from(left.as_micros()).unwrap_or(u64::MAX)),
        task: Some(match task {
            Task::Generate(generation) => pb::engine_request::Task::Generate(generation_to_pb(*generation)),
            Task::Embed => pb::engine_request::Task::Embed(pb::EngineEmbed {}),
        }),
    }
}

/// The request of a message that came at `now`.
pub(super) fn request_from_pb(request: pb::EngineRequest, now: Instant) -> Result<ValidRequest, Malformed> {
    let pb::EngineRequest { id, prompt, tenant, priority, cache_scope, time_left_us, task } = request;
    if prompt.is_empty() {
        return Err(Malformed::missing("prompt"));
    }
    let cache_scope = match (cache_scope.len(), <[u8; 16]>::try_from(cache_scope.as_ref())) {
        (0, _) => CacheScope::default(),
        (_, Ok(bytes)) => CacheScope(u128::from_le_bytes(bytes)),
        (length, Err(_)) => return Err(Malformed(format!("a cache scope of {length} bytes"))),
    };
    // One too far away for the clock is none.
    let deadline = time_left_us.and_then(|left| now.checked_add(Duration::from_micros(left)));
    let task = match task.ok_or_else(|| Malformed::missing("task"))? {
        pb::engine_request::Task::Generate(generation) => Task::Generate(Box::new(generation_from_pb(generation)?)),
        pb::engine_request::Task::Embed(pb::EngineEmbed {}) => Task::Embed,
    };
    let tenant = Tenant(tenant.map(Into::into));
    Ok(ValidRequest { id, prompt, tenant, priority, cache_scope, deadline, task, mark: Mark::default() })
}

fn generation_to_pb(generation: Generation) -> pb::EngineGeneration {
    let Generation {
        resume_after,
        max_tokens,
        min_tokens,
        choices,
        first_choice,
        sampling,
        stop_tokens,
        logprobs,
        prompt_logprobs,
        constraint,
    } = generation;
    pb::EngineGeneration {
        resume_after,
        max_tokens: max_tokens as u64,
        min_tokens: min_tokens as u64,
        choices,
        first_choice,
        sampling: Some(sampling_to_pb(sampling)),
        stop_tokens,
        logprobs,
        prompt_logprobs,
        constraint: constraint.map(constraint_to_pb),
    }
}

fn generation_from_pb(generation: pb::EngineGeneration) -> Result<Generation, Malformed> {
    let pb::EngineGeneration { choices, first_choice, max_tokens, min_tokens, .. } = generation;
    if !(1..=MAX_CHOICES).contains(&choices) || first_choice.checked_add(choices).is_none() {
        return Err(Malformed(format!("{choices} choices from {first_choice} on, of at most {MAX_CHOICES}")));
    }
    if choices > 1 && !generation.resume_after.is_empty() {
        return Err(Malformed(format!("{choices} choices are resumed at once")));
    }
    if max_tokens == 0 {
        return Err(Malformed("no tokens are to be generated".into()));
    }
    Ok(Generation {
        resume_after: generation.resume_after,
        max_tokens: usize::try_from(max_tokens).unwrap_or(usize::MAX),
        min_tokens: usize::try_from(min_tokens).unwrap_or(usize::MAX),
        choices,
        first_choice,
        sampling: sampling_from_pb(generation.sampling.ok_or_else(|| Malformed::missing("sampling"))?)?,
        stop_tokens: generation.stop_tokens,
        logprobs: generation.logprobs,
        prompt_logprobs: generation.prompt_logprobs,
        constraint: generation.constraint.map(constraint_from_pb).transpose()?,
    })
}

fn sampling_to_pb(sampling: Sampling) -> pb::EngineSampling {
    let Sampling {
        temperature,
        top_k,
        top_p,
        min_p,
        typical_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        logit_bias,
        bad_words,
        seed,
    } = sampling;
    pb::EngineSampling {
        temperature,
        top_k,
        top_p,
        min_p,
        typical_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        logit_bias: logit_bias.into_iter().map(|(token, bias)| pb::EngineBias { token, bias }).collect(),
        bad_words: bad_words.into_iter().map(|ids| pb::EngineTokens { ids }).collect(),
        seed,
    }
}

fn sampling_from_pb(sampling: pb::EngineSampling) -> Result<Sampling, Malformed> {
    let sampling = Sampling {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        typical_p: sampling.typical_p,
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        logit_bias: sampling.logit_bias.into_iter().map(|pb::EngineBias { token, bias }| (token, bias)).collect(),
        bad_words: sampling.bad_words.into_iter().map(|pb::EngineTokens { ids }| ids).collect(),
        seed: sampling.seed,
    };
    let share = |value: f32| (0.0..=1.0).contains(&value);
    let sound = [
        ("temperature", sampling.temperature.is_finite() && sampling.temperature >= 0.0),
        ("top_k", sampling.top_k != Some(0)),
        ("top_p", share(sampling.top_p) && sampling.top_p > 0.0),
        ("min_p", share(sampling.min_p)),
        ("typical_p", share(sampling.typical_p) && sampling.typical_p > 0.0),
        ("repetition_penalty", sampling.repetition_penalty.is_finite() && sampling.repetition_penalty > 0.0),
        ("presence_penalty", sampling.presence_penalty.is_finite()),
        ("frequency_penalty", sampling.frequency_penalty.is_finite()),
        ("logit_bias", sampling.logit_bias.iter().all(|(_, bias)| bias.is_finite())),
        ("bad_words", sampling.bad_words.iter().all(|ids| !ids.is_empty())),
    ];
    match sound.into_iter().find(|(_, sound)| !sound) {
        Some((what, _)) => Err(Malformed(format!("{what} is out of bounds"))),
        None => Ok(sampling),
    }
}

fn constraint_to_pb(constraint: Constraint) -> pb::EngineConstraint {
    use pb::engine_constraint::Kind;
    let text = |text: &str| text.to_owned();
    let kind = match constraint {
        Constraint::JsonObject => Kind::JsonObject(pb::EngineJsonObject {}),
        Constraint::JsonSchema(schema) => Kind::JsonSchema(text(&schema)),
        Constraint::Regex(regex) => Kind::Regex(text(&regex)),
        Constraint::Lark(grammar) => Kind::Lark(text(&grammar)),
    };
    pb::EngineConstraint { kind: Some(kind) }
}

fn constraint_from_pb(constraint: pb::EngineConstraint) -> Result<Constraint, Malformed> {
    use pb::engine_constraint::Kind;
    Ok(match constraint.kind.ok_or_else(|| Malformed::missing("constraint"))? {
        Kind::JsonObject(pb::EngineJsonObject {}) => Constraint::JsonObject,
        Kind::JsonSchema(schema) => Constraint::JsonSchema(schema.into()),
        Kind::Regex(regex) => Constraint::Regex(regex.into()),
        Kind::Lark(grammar) => Constraint::Lark(grammar.into()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn constraints() -> impl Strategy<Value = Constraint> {
        prop_oneof![
            Just(Constraint::JsonObject),
            ".{0,8}".prop_map(|text: String| Constraint::JsonSchema(text.into())),
            ".{0,8}".prop_map(|text: String| Constraint::Regex(text.into())),
            ".{0,8}".prop_map(|text: String| Constraint::Lark(text.into())),
        ]
    }

    fn samplings() -> impl Strategy<Value = Sampling> {
        let bias = prop::collection::vec((any::<u32>(), -100.0f32..100.0), 0..3);
        let words = prop::collection::vec(prop::collection::vec(any::<u32>(), 1..3), 0..3);
        let shares = (0.001f32..=1.0, 0.0f32..=1.0, 0.001f32..=1.0);
        let penalties = (0.1f32..2.0, -2.0f32..2.0, -2.0f32..2.0);
        (0.0f32..2.0, prop::option::of(1u32..), shares, penalties, bias, words, any::<u64>()).prop_map(
            |(temperature, top_k, (top_p, min_p, typical_p), penalties, logit_bias, bad_words, seed)| Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                typical_p,
                repetition_penalty: penalties.0,
                presence_penalty: penalties.1,
                frequency_penalty: penalties.2,
                logit_bias,
                bad_words,
                seed,
            },
        )
    }

    fn tasks() -> impl Strategy<Value = Task> {
        let resumed = prop::collection::vec(any::<u32>(), 1..5);
        let choices = prop_oneof![(Just(Vec::new()), 1..=MAX_CHOICES), (resumed, Just(1u32))];
        let counts = (1usize.., any::<usize>(), 0u32..1000, any::<Option<u32>>(), any::<Option<u32>>());
        let stops = prop::collection::vec(any::<u32>(), 0..3);
        let generation = (choices, counts, samplings(), stops, prop::option::of(constraints())).prop_map(
            |((resume_after, choices), counts, sampling, stop_tokens, constraint)| {
                let (max_tokens, min_tokens, first_choice, logprobs, prompt_logprobs) = counts;
                Task::Generate(Box::new(Generation {
                    resume_after,
                    max_tokens,
                    min_tokens,
                    choices,
                    first_choice,
                    sampling,
                    stop_tokens,
                    logprobs,
                    prompt_logprobs,
                    constraint,
                }))
            },
        );
        prop_oneof![8 => generation, 1 => Just(Task::Embed)]
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(
            (id, prompt, tenant) in (any::<u64>(), prop::collection::vec(any::<u32>(), 1..9), any::<Option<String>>()),
            (priority, scope, left) in (any::<i32>(), any::<u128>(), prop::option::of(0u64..1 << 50)),
            task in tasks(),
        ) {
            let now = Instant::now();
            let deadline = left.map(|left| now + Duration::from_micros(left));
            let (tenant, cache_scope) = (Tenant(tenant.map(Into::into)), CacheScope(scope));
            let mark = Mark::default();
            let request = ValidRequest { id, prompt, tenant, priority, cache_scope, deadline, task, mark };
            prop_assert_eq!(request_from_pb(request_to_pb(request.clone(), now), now), Ok(request));
        }
    }

    #[test]
    fn requests_that_make_no_sense_are_refused() {
        let now = Instant::now();
        let sound = || request_to_pb(ValidRequest::generate(1, vec![1], Generation::default()), now);
        type Change = fn(&mut pb::EngineRequest, &mut pb::EngineGeneration, &mut pb::EngineSampling);
        let changes: [(&str, Change); 12] = [
            ("prompt", |request, _, _| request.prompt.clear()),
            ("cache scope", |request, _, _| request.cache_scope = vec![0; 15].into()),
            ("0 choices", |_, generation, _| generation.choices = 0),
            ("choices", |_, generation, _| generation.choices = u32::MAX),
            ("choices", |_, generation, _| generation.first_choice = u32::MAX),
            ("at once", |_, generation, _| (generation.choices, generation.resume_after) = (2, vec![1])),
            ("no tokens", |_, generation, _| generation.max_tokens = 0),
            ("constraint", |_, generation, _| generation.constraint = Some(pb::EngineConstraint { kind: None })),
            ("temperature", |_, _, sampling| sampling.temperature = f32::NAN),
            ("top_p", |_, _, sampling| sampling.top_p = 0.0),
            ("logit_bias", |_, _, sampling| {
                sampling.logit_bias = vec![pb::EngineBias { token: 1, bias: f32::INFINITY }]
            }),
            ("bad_words", |_, _, sampling| sampling.bad_words = vec![pb::EngineTokens::default()]),
        ];
        for (word, change) in changes {
            let mut request = sound();
            let Some(pb::engine_request::Task::Generate(mut generation)) = request.task.take() else {
                panic!("tokens")
            };
            let mut sampling = generation.sampling.take().expect("it has one");
            change(&mut request, &mut generation, &mut sampling);
            generation.sampling = Some(sampling);
            request.task = Some(pb::engine_request::Task::Generate(generation));
            let refused = request_from_pb(request, now).expect_err(word);
            assert!(refused.0.contains(word), "{refused}");
        }
        assert!(request_from_pb(pb::EngineRequest { task: None, ..sound() }, now).is_err());
        assert!(request_from_pb(sound(), now).is_ok());
    }
}
