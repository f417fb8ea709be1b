//! Events, errors, status and what an engine serves: to messages and back.

use std::time::Duration;

use tramontane_proto::v1 as pb;
use tramontane_router::ModelId;

use crate::Malformed;
use crate::engine::{EngineError, EngineInfo, EngineStatus, Event, FinishReason, Phase, Token, Usage};

/// `event` of the choice at `place`.
pub(super) fn event_to_pb(place: usize, event: Event) -> pb::EngineEvent {
    use pb::engine_event::Event as Pb;
    let event = match event {
        Event::Started { cached_tokens } => Pb::Started(pb::EngineStarted { cached_tokens: cached_tokens as u64 }),
        Event::Prompt(tokens) => {
            let position = |token: Option<Token>| pb::EnginePromptToken { token: token.map(token_to_pb) };
            Pb::Prompt(pb::EnginePromptTokens { positions: tokens.into_iter().map(position).collect() })
        }
        Event::Embedding(values) => Pb::Embedding(pb::EngineVector { values }),
        Event::Token(token) => Pb::Token(token_to_pb(token)),
        Event::Finished { reason, usage } => Pb::Finished(finished_to_pb(reason, usage)),
        Event::Failed(error) => Pb::Failed(error_to_pb(error)),
    };
    // A request has fewer choices than there are numbers.
    pb::EngineEvent { choice: u32::try_from(place).unwrap_or(u32::MAX), event: Some(event) }
}

/// The place of the choice, and what happened to it.
pub(super) fn event_from_pb(event: pb::EngineEvent) -> Result<(usize, Event), Malformed> {
    use pb::engine_event::Event as Pb;
    let what = match event.event.ok_or_else(|| Malformed::missing("event"))? {
        // More than there are is as many as there can be.
        Pb::Started(started) => {
            Event::Started { cached_tokens: usize::try_from(started.cached_tokens).unwrap_or(usize::MAX) }
        }
        Pb::Prompt(prompt) => {
            let positions = prompt.positions.into_iter().map(|position| position.token.map(token_from_pb).transpose());
            Event::Prompt(positions.collect::<Result<_, _>>()?)
        }
        Pb::Embedding(vector) => Event::Embedding(vector.values),
        Pb::Token(token) => Event::Token(token_from_pb(token)?),
        Pb::Finished(finished) => finished_from_pb(&finished)?,
        Pb::Failed(failure) => Event::Failed(error_from_pb(failure)?),
    };
    Ok((event.choice as usize, what))
}

fn token_to_pb(token: Token) -> pb::EngineToken {
    let (top_ids, top_logprobs) = token.top.into_iter().unzip();
    pb::EngineToken { id: token.id, logprob: token.logprob, top_ids, top_logprobs }
}

fn token_from_pb(token: pb::EngineToken) -> Result<Token, Malformed> {
    let pb::EngineToken { id, logprob, top_ids, top_logprobs } = token;
    if top_ids.len() != top_logprobs.len() {
        return Err(Malformed(format!("{} tokens with {} log-probabilities", top_ids.len(), top_logprobs.len())));
    }
    Ok(Token { id, logprob, top: top_ids.into_iter().zip(top_logprobs).collect() })
}

fn finished_to_pb(reason: FinishReason, usage: Usage) -> pb::EngineFinished {
    let (reason, stop_token) = match reason {
        FinishReason::Stop { token } => (pb::EngineFinishReason::Stop, token),
        FinishReason::Length => (pb::EngineFinishReason::Length, None),
        FinishReason::Embedded => (pb::EngineFinishReason::Embedded, None),
    };
    pb::EngineFinished {
        reason: reason.into(),
        stop_token,
        prompt_tokens: usage.prompt_tokens as u64,
        completion_tokens: usage.completion_tokens as u64,
        cached_tokens: usage.cached_tokens as u64,
    }
}

fn finished_from_pb(finished: &pb::EngineFinished) -> Result<Event, Malformed> {
    let reason = match finished.reason() {
        pb::EngineFinishReason::Stop => FinishReason::Stop { token: finished.stop_token },
        pb::EngineFinishReason::Length => FinishReason::Length,
        pb::EngineFinishReason::Embedded => FinishReason::Embedded,
        pb::EngineFinishReason::Unspecified => return Err(Malformed::missing("reason")),
    };
    let usage = Usage {
        prompt_tokens: count(finished.prompt_tokens),
        completion_tokens: count(finished.completion_tokens),
        cached_tokens: count(finished.cached_tokens),
    };
    Ok(Event::Finished { reason, usage })
}

fn error_to_pb(error: EngineError) -> pb::EngineFailure {
    use pb::EngineFailureCode as Code;
    let (mut why, mut retry_after_us) = (String::new(), 0);
    let code = match error {
        EngineError::Overloaded { retry_after } => {
            retry_after_us = u64::try_from(retry_after.as_micros()).unwrap_or(u64::MAX);
            Code::Overloaded
        }
        EngineError::Draining => Code::Draining,
        EngineError::DeadlineExceeded => Code::DeadlineExceeded,
        EngineError::InvalidConstraint { why: said } => {
            why = said;
            Code::InvalidConstraint
        }
        EngineError::InvalidRequest { why: said } => {
            why = said;
            Code::InvalidRequest
        }
        EngineError::ExpertsUnavailable { why: said } => {
            why = said;
            Code::ExpertsUnavailable
        }
        EngineError::Numeric { why: said } => {
            why = said;
            Code::Numeric
        }
        EngineError::SlowReader => Code::SlowReader,
        EngineError::Stopped => Code::Stopped,
    };
    pb::EngineFailure { code: code.into(), why, retry_after_us }
}

fn error_from_pb(failure: pb::EngineFailure) -> Result<EngineError, Malformed> {
    use pb::EngineFailureCode as Code;
    let (code, why) = (failure.code(), failure.why);
    Ok(match code {
        Code::Overloaded => EngineError::Overloaded { retry_after: Duration::from_micros(failure.retry_after_us) },
        Code::Draining => EngineError::Draining,
        Code::DeadlineExceeded => EngineError::DeadlineExceeded,
        Code::InvalidConstraint => EngineError::InvalidConstraint { why },
        Code::InvalidRequest => EngineError::InvalidRequest { why },
        Code::ExpertsUnavailable => EngineError::ExpertsUnavailable { why },
        Code::Numeric => EngineError::Numeric { why },
        Code::SlowReader => EngineError::SlowReader,
        Code::Stopped => EngineError::Stopped,
        Code::Unspecified => return Err(Malformed::missing("code")),
    })
}

/// What an engine says of itself.
pub(super) fn report_to_pb(info: &EngineInfo, status: EngineStatus) -> pb::EngineReport {
    let serves = pb::EngineServes {
        model: info.model.as_str().to_owned(),
        context: info.context as u64,
        vocab: info.vocab as u64,
        fingerprint: info.fingerprint.clone(),
    };
    let phase = match status.phase {
        Phase::Ready => pb::EnginePhase::Ready,
        Phase::Draining => pb::EnginePhase::Draining,
        Phase::Stopped => pb::EnginePhase::Stopped,
    };
    let status = pb::EngineStatus {
        phase: phase.into(),
        running: status.running as u64,
        waiting: status.waiting as u64,
        kv_used: status.kv_used as u64,
        kv_total: status.kv_total as u64,
        preemptions: status.preemptions,
        prefix_queries: status.prefix_queries,
        prefix_hits: status.prefix_hits,
        generated: status.generated,
    };
    pb::EngineReport { serves: Some(serves), status: Some(status) }
}

pub(super) fn report_from_pb(report: pb::EngineReport) -> Result<(EngineInfo, EngineStatus), Malformed> {
    let serves = report.serves.ok_or_else(|| Malformed::missing("serves"))?;
    let status = report.status.ok_or_else(|| Malformed::missing("status"))?;
    let phase = match status.phase() {
        pb::EnginePhase::Ready => Phase::Ready,
        pb::EnginePhase::Draining => Phase::Draining,
        pb::EnginePhase::Stopped => Phase::Stopped,
        pb::EnginePhase::Unspecified => return Err(Malformed::missing("phase")),
    };
    let info = EngineInfo {
        model: ModelId::from(serves.model),
        context: count(serves.context),
        vocab: count(serves.vocab),
        fingerprint: serves.fingerprint,
    };
    let status = EngineStatus {
        phase,
        running: count(status.running),
        waiting: count(status.waiting),
        kv_used: count(status.kv_used),
        kv_total: count(status.kv_total),
        preemptions: status.preemptions,
        prefix_queries: status.prefix_queries,
        prefix_hits: status.prefix_hits,
        generated: status.generated,
    };
    Ok((info, status))
}

fn count(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, top: Vec<(u32, f32)>) -> Token {
        Token { id, logprob: -0.1, top }
    }

    #[test]
    fn events_survive_the_wire() {
        let usage = Usage { prompt_tokens: 3, completion_tokens: 2, cached_tokens: 1 };
        let why = || "why".to_owned();
        let errors = [
            EngineError::Overloaded { retry_after: Duration::from_millis(1500) },
            EngineError::Draining,
            EngineError::DeadlineExceeded,
            EngineError::InvalidConstraint { why: why() },
            EngineError::InvalidRequest { why: why() },
            EngineError::ExpertsUnavailable { why: why() },
            EngineError::Numeric { why: why() },
            EngineError::SlowReader,
            EngineError::Stopped,
        ];
        let ends = [
            FinishReason::Stop { token: Some(0) },
            FinishReason::Stop { token: None },
            FinishReason::Length,
            FinishReason::Embedded,
        ];
        let events = [
            Event::Started { cached_tokens: 96 },
            Event::Prompt(vec![None, Some(token(7, vec![(1, -1e-30), (2, -9.5)]))]),
            Event::Embedding(vec![0.25, -1e30, f32::MIN_POSITIVE / 2.0]),
            Event::Token(token(u32::MAX, Vec::new())),
        ];
        let events = events
            .into_iter()
            .chain(ends.map(|reason| Event::Finished { reason, usage }))
            .chain(errors.map(Event::Failed));
        for (place, event) in events.enumerate() {
            assert_eq!(event_from_pb(event_to_pb(place, event.clone())), Ok((place, event)));
        }
    }

    #[test]
    fn reports_survive_the_wire() {
        let info = EngineInfo { model: "m".into(), context: 9, vocab: 8, fingerprint: "fp".into() };
        for phase in [Phase::Ready, Phase::Draining, Phase::Stopped] {
            let status = EngineStatus {
                phase,
                running: 1,
                waiting: 2,
                kv_used: 3,
                kv_total: 4,
                preemptions: 5,
                prefix_queries: 6,
                prefix_hits: 7,
                generated: 8,
            };
            assert_eq!(report_from_pb(report_to_pb(&info, status)), Ok((info.clone(), status)));
        }
    }

    #[test]
    fn messages_that_say_nothing_are_refused() {
        use pb::engine_event::Event as Pb;
        let event = |event| event_from_pb(pb::EngineEvent { choice: 0, event });
        assert!(event(None).is_err());
        assert!(event(Some(Pb::Failed(pb::EngineFailure::default()))).is_err());
        assert!(event(Some(Pb::Finished(pb::EngineFinished::default()))).is_err());
        let torn = pb::EngineToken { top_ids: vec![1], ..pb::EngineToken::default() };
        assert!(event(Some(Pb::Token(torn))).is_err());
        assert!(report_from_pb(pb::EngineReport::default()).is_err());
    }
}
