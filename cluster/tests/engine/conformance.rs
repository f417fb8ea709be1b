//! What every engine does.

use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::select_all;
use http::{HeaderMap, HeaderName, HeaderValue};
use tramontane_cluster::engine::{
    CacheScope, Constraint, EngineError, EngineStatus, Event, FinishReason, Generation, MAX_EVENTS_BEHIND, Mark, Phase,
    Sampling, Task, Tenant, Token, Usage, ValidRequest,
};
use tramontane_cluster::trace::TraceContext;

use crate::harness::{CAPACITY, Harness, LONG, info, of_choices, request, rest, runtime, token, until, until_closed};

type Start = fn() -> Harness;

const USAGE: Usage = Usage { prompt_tokens: 3, completion_tokens: 2, cached_tokens: 1 };
const LENGTH: Event = Event::Finished { reason: FinishReason::Length, usage: USAGE };

fn it_says_what_it_serves_and_how_it_fares(start: Start) {
    let harness = start();
    assert_eq!(*harness.engine.info(), info());
    let status = EngineStatus {
        phase: Phase::Ready,
        running: 1,
        waiting: 2,
        kv_used: 3,
        kv_total: 4,
        preemptions: 5,
        prefix_queries: 6,
        prefix_hits: 7,
        generated: 8,
    };
    harness.inbox.as_ref().expect("the loop is there").publish(status);
    assert_eq!(harness.status_when(|now| now.running == 1), status);
}

fn a_request_arrives_as_it_was_submitted(start: Start) {
    let harness = start();
    let sampling = Sampling {
        temperature: 0.7,
        top_k: Some(40),
        top_p: 0.9,
        min_p: 0.05,
        typical_p: 0.8,
        repetition_penalty: 1.1,
        presence_penalty: -0.5,
        frequency_penalty: 0.25,
        logit_bias: vec![(9, -100.0), (3, 1.5)],
        bad_words: vec![vec![4, 5], vec![6]],
        seed: u64::MAX - 1,
    };
    let generation = Generation {
        resume_after: vec![7, 7, 999],
        max_tokens: 400,
        min_tokens: 10,
        choices: 1,
        first_choice: 3,
        sampling,
        stop_tokens: vec![2, 0],
        logprobs: Some(0),
        prompt_logprobs: Some(5),
        constraint: Some(Constraint::JsonSchema("{\"type\": \"object\"}".into())),
    };
    let deadline = Instant::now() + Duration::from_secs(3600);
    let parent = HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let trace = TraceContext::read(&HeaderMap::from_iter([(HeaderName::from_static("traceparent"), parent)]));
    assert!(trace.is_some());
    let whole = ValidRequest {
        mark: Mark { id: Some("what its client calls it".into()), trace },
        tenant: Tenant(Some("who pays".into())),
        priority: -3,
        cache_scope: CacheScope(u128::MAX / 3),
        deadline: Some(deadline),
        ..ValidRequest::generate(u64::MAX, (0..900).collect(), generation)
    };
    for sent in [whole.clone(), ValidRequest { task: Task::Embed, ..whole }, request(0), of_choices(5)] {
        let streams = harness.submit(sent.clone());
        let submission = harness.submission();
        let arrived = submission.request;
        // What is left of the time goes over the wire, so that the deadline moves by as long as that takes.
        match (arrived.deadline, sent.deadline) {
            (Some(arrived), Some(sent)) => assert!(arrived + Duration::from_millis(1) > sent && arrived < sent + LONG),
            (arrived, sent) => assert_eq!(arrived, sent),
        }
        assert_eq!(submission.events.len(), streams.len());
        assert_eq!(ValidRequest { deadline: sent.deadline, ..arrived }, sent);
    }
}

fn events_come_in_order_to_the_bit(start: Start) {
    let harness = start();
    let mut streams = harness.submit(of_choices(1));
    let mut events = harness.submission().events.remove(0);
    let odd = Token { id: 5, logprob: -f32::MIN_POSITIVE / 2.0, top: vec![(1, -0.0), (2, -1.0e38)] };
    let prompt = vec![None, Some(token(2)), Some(odd.clone())];
    events.send_prompt(prompt.clone()).expect("a reader");
    events.send(token(1)).expect("a reader");
    events.send(odd.clone()).expect("a reader");
    events.finish(FinishReason::Stop { token: Some(2) }, USAGE);
    let end = Event::Finished { reason: FinishReason::Stop { token: Some(2) }, usage: USAGE };
    let heard = rest(streams.remove(0));
    assert_eq!(heard, [Event::Prompt(prompt), Event::Token(token(1)), Event::Token(odd.clone()), end]);
    let Event::Token(last) = &heard[2] else { panic!("a token") };
    assert_eq!((last.logprob.to_bits(), last.top[0].1.to_bits()), (odd.logprob.to_bits(), (-0.0f32).to_bits()));
}

fn embeddings_come_whole(start: Start) {
    let harness = start();
    let streams = harness.submit(ValidRequest { task: Task::Embed, ..request(0) });
    let mut events = harness.submission().events.remove(0);
    let values: Vec<f32> = (0..8192).map(|i| i as f32 / 3.0).collect();
    events.send_embedding(values.clone()).expect("a reader");
    events.finish(FinishReason::Embedded, USAGE);
    let heard: Vec<_> = streams.into_iter().flat_map(rest).collect();
    assert_eq!(heard, [Event::Embedding(values), Event::Finished { reason: FinishReason::Embedded, usage: USAGE }]);
}

fn a_long_prompts_log_probabilities_are_one_event(start: Start) {
    let harness = start();
    let streams = harness.submit(request(0));
    let mut events = harness.submission().events.remove(0);
    let top: Vec<(u32, f32)> = (0..20).map(|id| (id + 30_000, -1.5)).collect();
    let prompt: Vec<_> = (0..32_768).map(|id| Some(Token { id, logprob: -0.5, top: top.clone() })).collect();
    events.send_prompt(prompt.clone()).expect("a reader");
    events.finish(FinishReason::Length, USAGE);
    let heard: Vec<_> = streams.into_iter().flat_map(rest).collect();
    // `assert_eq` would print megabytes.
    assert!(heard == [Event::Prompt(prompt), LENGTH]);
}

fn each_choice_has_its_own_events(start: Start) {
    let harness = start();
    let streams = harness.submit(of_choices(3));
    let senders = harness.submission().events;
    for (number, mut events) in (0..3).zip(senders).rev() {
        (0..=number).for_each(|id| events.send(token(10 * number + id)).expect("a reader"));
        match number {
            1 => events.fail(EngineError::Numeric { why: "too large".into() }),
            _ => events.finish(FinishReason::Length, USAGE),
        }
    }
    let heard: Vec<Vec<Event>> = streams.into_iter().map(rest).collect();
    let tokens = |ids: &[u32]| ids.iter().map(|id| Event::Token(token(*id))).collect::<Vec<_>>();
    let failed = Event::Failed(EngineError::Numeric { why: "too large".into() });
    assert_eq!(heard[0], [tokens(&[0]), vec![LENGTH]].concat());
    assert_eq!(heard[1], [tokens(&[10, 11]), vec![failed]].concat());
    assert_eq!(heard[2], [tokens(&[20, 21, 22]), vec![LENGTH]].concat());
}

fn dropping_a_stream_cancels_its_choice_and_no_other(start: Start) {
    let harness = start();
    let mut streams = harness.submit(of_choices(3));
    let mut senders = harness.submission().events;
    drop(streams.remove(1));
    until_closed(&senders[1]);
    assert!(!senders[0].is_closed() && !senders[2].is_closed());
    assert!(senders[1].send(token(1)).is_err());
    senders[2].send(token(7)).expect("a reader");
    drop(senders.remove(0));
    senders.remove(1).finish(FinishReason::Length, USAGE);
    assert_eq!(rest(streams.remove(1)), [Event::Token(token(7)), LENGTH]);
    assert_eq!(rest(streams.remove(0)), [Event::Failed(EngineError::Stopped)]);
}

fn dropping_all_streams_cancels_what_waits_and_what_runs(start: Start) {
    let harness = start();
    let running = harness.submit(of_choices(2));
    let senders = harness.submission().events;
    let waiting = harness.submit(request(1));
    let waits = harness.submission().events;
    drop((running, waiting));
    senders.iter().chain(&waits).for_each(until_closed);
}

fn every_error_arrives_as_what_it_is(start: Start) {
    let harness = start();
    let why = || "because: ü".to_owned();
    for error in [
        EngineError::Overloaded { retry_after: Duration::from_millis(1234) },
        EngineError::Draining,
        EngineError::DeadlineExceeded,
        EngineError::InvalidConstraint { why: why() },
        EngineError::InvalidRequest { why: why() },
        EngineError::ExpertsUnavailable { why: why() },
        EngineError::Numeric { why: why() },
        EngineError::SlowReader,
        EngineError::Stopped,
    ] {
        let streams = harness.submit(request(0));
        harness.submission().events.remove(0).fail(error.clone());
        assert_eq!(streams.into_iter().flat_map(rest).collect::<Vec<_>>(), [Event::Failed(error)]);
    }
}

fn a_full_queue_refuses(start: Start) {
    let harness = start();
    const OVER: usize = 2;
    let (mut refused, mut taken) = (Vec::new(), Vec::new());
    // Over a wire it is open which of them come too late.
    for id in 0..(CAPACITY + OVER) as u64 {
        match harness.engine.submit(request(id)) {
            Ok(streams) => taken.extend(streams),
            Err(error) => refused.push(error),
        }
    }
    let mut events = select_all(&mut taken);
    while refused.len() < OVER {
        match runtime().block_on(events.next()) {
            Some(Event::Failed(error)) => refused.push(error),
            other => panic!("neither taken nor refused: {other:?}"),
        }
    }
    let overloaded =
        |error: &EngineError| matches!(error, EngineError::Overloaded { retry_after } if *retry_after > Duration::ZERO);
    assert!(refused.iter().all(overloaded), "{refused:?}");
    let inbox = harness.inbox.as_ref().expect("the loop is there");
    (0..CAPACITY).for_each(|_| drop(harness.submission()));
    assert!(inbox.try_recv().is_none());
}

fn a_draining_engine_finishes_what_it_has_and_takes_no_more(start: Start) {
    let harness = start();
    let streams = harness.submit(request(0));
    let mut events = harness.submission().events.remove(0);
    harness.near.drain();
    assert_eq!(harness.refusal(of_choices(2)), EngineError::Draining);
    harness.status_when(|status| status.phase == Phase::Draining);
    assert_eq!(harness.refusal(request(1)), EngineError::Draining);
    events.send(token(1)).expect("a reader");
    events.finish(FinishReason::Length, USAGE);
    let heard: Vec<_> = streams.into_iter().flat_map(rest).collect();
    assert_eq!(heard, [Event::Token(token(1)), LENGTH]);
}

fn a_loop_that_ends_fails_what_runs_and_what_waits(start: Start) {
    let mut harness = start();
    let running = harness.submit(of_choices(2));
    let mut senders = harness.submission().events;
    senders[0].send(token(1)).expect("a reader");
    let waiting = harness.submit(request(1));
    drop((senders, harness.inbox.take()));
    let heard: Vec<Vec<Event>> = running.into_iter().chain(waiting).map(rest).collect();
    let stopped = || Event::Failed(EngineError::Stopped);
    assert_eq!(heard, [vec![Event::Token(token(1)), stopped()], vec![stopped()], vec![stopped()]]);
    harness.status_when(|status| status.phase == Phase::Stopped);
    assert_eq!(harness.refusal(request(2)), EngineError::Stopped);
}

fn a_reader_too_far_behind_gets_what_was_sent_and_is_told(start: Start) {
    let harness = start();
    let mut streams = harness.submit(of_choices(2));
    let mut senders = harness.submission().events;
    let mut fast = streams.remove(1);
    let mut sent = 0;
    // Over a wire some are on their way; in the end nobody takes any more.
    until(|| {
        let gone = senders[0].send(token(1)).is_err();
        sent += usize::from(!gone);
        senders[1].send(token(2)).expect("a reader");
        assert_eq!(fast.blocking_next(), Some(Event::Token(token(2))), "its neighbour goes on");
        (gone || sent > 100 * MAX_EVENTS_BEHIND).then_some(())
    });
    assert!((MAX_EVENTS_BEHIND..10 * MAX_EVENTS_BEHIND).contains(&sent), "{sent}");
    let heard = rest(streams.remove(0));
    let (end, tokens) = heard.split_last().expect("an end");
    assert_eq!(*end, Event::Failed(EngineError::SlowReader));
    assert_eq!(tokens, vec![Event::Token(token(1)); MAX_EVENTS_BEHIND]);
}

macro_rules! conformance {
    ($($name:ident)*) => {
        mod in_process {
            $(#[test] fn $name() { super::$name(super::Harness::in_process); })*
        }
        mod grpc {
            $(#[test] fn $name() { super::$name(super::Harness::grpc); })*
        }
    };
}

conformance! {
    it_says_what_it_serves_and_how_it_fares
    a_request_arrives_as_it_was_submitted
    events_come_in_order_to_the_bit
    embeddings_come_whole
    a_long_prompts_log_probabilities_are_one_event
    each_choice_has_its_own_events
    dropping_a_stream_cancels_its_choice_and_no_other
    dropping_all_streams_cancels_what_waits_and_what_runs
    every_error_arrives_as_what_it_is
    a_full_queue_refuses
    a_draining_engine_finishes_what_it_has_and_takes_no_more
    a_loop_that_ends_fails_what_runs_and_what_waits
    a_reader_too_far_behind_gets_what_was_sent_and_is_told
}
