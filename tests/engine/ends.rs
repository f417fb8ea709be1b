//! How requests end before they are whole: cancelled, late, refused, or with the engine.

use std::time::{Duration, Instant};

use tramontane_cluster::engine::{
    Constraint, Engine, EngineError, Event, FinishReason, Generation, Phase, ValidRequest, in_process,
};
use tramontane_coordinator::{EngineLoop, EngineOptions, Limits};

use super::support::cluster::{Cluster, Setup};
use super::support::completions::info;
use super::support::engine::{ROOMY, Running, generate, read};
use super::support::model::Model;
use super::{setup, text};

/// As long as the context allows: nothing here waits for its end.
fn endless() -> Generation {
    Generation { max_tokens: 900, ..Generation::default() }
}

#[test]
fn a_stream_that_is_dropped_frees_its_sequence_from_any_state() {
    let model = Model::breeze();
    let engine = Running::start(&model, &setup(), Limits { max_running: 1, chunk: 1, step_tokens: 1, ..ROOMY });
    // While it decodes, and another waits.
    let mut decoding = engine.submit(generate(&text(&model, 20), endless()));
    let waiting = engine.submit(generate(&text(&model, 60), endless()));
    assert!(matches!(decoding[0].blocking_next(), Some(Event::Started { .. })));
    assert!(matches!(decoding[0].blocking_next(), Some(Event::Token(_))));
    engine.status_when("one waits", |s| (s.running, s.waiting) == (1, 1));
    drop(waiting);
    engine.status_when("nobody waits", |s| (s.running, s.waiting) == (1, 0));
    drop(decoding);
    engine.assert_empty();
    let status = engine.status();
    assert_eq!(status.prefix_queries, 20, "what waited was never let in");
    // While its prompt is computed.
    let prefill = engine.submit(generate(&text(&model, 900), endless()));
    engine.status_when("it runs", |s| s.running == 1);
    drop(prefill);
    engine.assert_empty();
    let again = engine.output(generate(&text(&model, 900), Generation { max_tokens: 1, ..endless() }));
    assert!(again.finished().1.cached_tokens < 896, "it was computed to its end");
    // While its constraint is compiled, if that is slow enough, and with nothing else to do.
    let schema = format!("{{\"type\":\"string\",\"pattern\":\"(a|b)*a(a|b){{400}}{}\"}}", "c?".repeat(100));
    let constraint = Some(Constraint::JsonSchema(schema.into()));
    drop(engine.submit(generate(&text(&model, 20), Generation { constraint, ..endless() })));
    engine.assert_empty();
    let last = engine.output(generate(&text(&model, 20), Generation::default()));
    assert_eq!(last.finished().0, FinishReason::Length);
}

#[test]
fn a_deadline_ends_a_request_wherever_it_is() {
    let model = Model::breeze();
    let engine = Running::start(&model, &setup(), Limits { max_running: 1, ..ROOMY });
    let late = |deadline: Instant, generation| ValidRequest {
        deadline: Some(deadline),
        ..generate(&text(&model, 40), generation)
    };
    // Before it is there.
    assert_eq!(engine.output(late(Instant::now(), endless())).end, Err(EngineError::DeadlineExceeded));
    // Running; on a machine that is busy it may take some time until it does.
    let times = (0..10).map(|doubled| Duration::from_millis(40 << doubled));
    let mut running = times.map(|time| engine.output(late(Instant::now() + time, endless())));
    let begun = running.find(|output| !output.tokens.is_empty()).expect("it begins some time");
    assert_eq!(begun.end, Err(EngineError::DeadlineExceeded));
    engine.assert_empty();
    // Queued behind one that takes longer.
    let before = engine.status().prefix_queries;
    let first = engine.submit(generate(&text(&model, 20), endless()));
    engine.status_when("it runs", |s| s.running == 1);
    let queued = engine.output(late(Instant::now() + Duration::from_millis(40), endless()));
    assert_eq!((queued.end, queued.tokens.len()), (Err(EngineError::DeadlineExceeded), 0));
    assert_eq!(engine.status().prefix_queries - before, 20, "what was late before it ran was never scheduled");
    drop(first);
    engine.assert_empty();
    let in_time = engine.output(late(Instant::now() + Duration::from_secs(600), Generation::default()));
    assert_eq!(in_time.finished().0, FinishReason::Length);
}

#[test]
fn what_cannot_be_run_is_refused_with_a_reason_and_the_next_one_works() {
    let model = Model::breeze();
    let engine = Running::start(&model, &Setup { kv_blocks: 5, ..setup() }, ROOMY);
    let vocab = model.config.vocab as u32;
    let short = text(&model, 20);
    let bad = [
        (vec![], Generation::default(), "empty"),
        (vec![vocab], Generation::default(), "vocabulary"),
        (short.clone(), Generation { resume_after: vec![vocab], ..Generation::default() }, "vocabulary"),
        (vec![5; model.config.context], Generation::default(), "context"),
        (short.clone(), endless(), "KV blocks"),
    ];
    for (prompt, generation, reason) in bad {
        let output = engine.output(generate(&prompt, generation));
        let why = match output.end {
            Err(EngineError::InvalidRequest { why }) => why,
            end => panic!("{end:?}"),
        };
        assert!(why.contains(reason), "{why}");
        assert_eq!(engine.output(generate(&short, Generation::default())).finished().0, FinishReason::Length);
    }
}

#[test]
fn over_the_queues_bound_requests_are_refused_at_once_and_told_when_to_come_back() {
    let model = Model::breeze();
    let limits = Limits { max_running: 1, max_waiting: 3, ..ROOMY };
    let request = |choices| generate(&text(&model, 20), Generation { choices, ..Generation::default() });
    let requests = vec![request(2), request(1), request(1), request(3)];
    let (engine, streams) = Running::start_after(&model, &setup(), limits, requests);
    let ends: Vec<_> = streams.into_iter().flatten().map(|stream| read(stream).end).collect();
    assert!(ends[..3].iter().all(|end| matches!(end, Ok((FinishReason::Length, _)))), "{ends:?}");
    for end in &ends[3..] {
        let Err(EngineError::Overloaded { retry_after }) = end else { panic!("{end:?}") };
        assert!((1..=60).contains(&retry_after.as_secs()), "{retry_after:?}");
    }
    assert_eq!(engine.output(request(1)).finished().0, FinishReason::Length);
}

#[test]
fn a_draining_engine_finishes_what_it_has() {
    let model = Model::breeze();
    let Cluster { forward, nodes, kv_blocks } = Cluster::start(&model, &setup());
    let (engine, inbox) = in_process(info(&model), 4);
    let options = EngineOptions { limits: ROOMY, kv_blocks: kv_blocks as u32 };
    let engine_loop = EngineLoop::new(inbox, forward, options).expect("limits that go together");
    assert_eq!((engine.status().phase, engine.status().kv_total), (Phase::Ready, kv_blocks));
    let mut streams = engine.submit(generate(&text(&model, 40), Generation::default())).expect("room");
    engine.drain();
    let refused = engine.submit(generate(&text(&model, 40), Generation::default()));
    assert_eq!(refused.expect_err("it drains"), EngineError::Draining);
    let thread = std::thread::spawn(move || engine_loop.run());
    assert_eq!(read(streams.remove(0)).finished().0, FinishReason::Length);
    assert_eq!(engine.status().phase, Phase::Draining);
    drop(engine);
    thread.join().expect("the loop ends well");
    drop(nodes);
}

#[test]
fn a_panic_in_the_loop_ends_every_stream_and_the_engine_says_so() {
    let model = Model::breeze();
    let Cluster { forward, nodes, kv_blocks } = Cluster::start(&model, &setup());
    let (engine, inbox) = in_process(info(&model), 4);
    // The cache has fewer blocks than the loop is told: it will write beyond its end.
    let options = EngineOptions { limits: ROOMY, kv_blocks: 2 * kv_blocks as u32 };
    let engine_loop = EngineLoop::new(inbox, forward, options).expect("limits that go together");
    let prompt = |id: u32| vec![id; 900];
    let streams: Vec<_> =
        (5..9).flat_map(|id| engine.submit(generate(&prompt(id), endless())).expect("room")).collect();
    let thread = std::thread::spawn(move || engine_loop.run());
    let ends: Vec<_> = streams.into_iter().map(|stream| read(stream).end).collect();
    assert_eq!(ends, vec![Err(EngineError::Stopped); 4]);
    assert!(thread.join().is_err(), "it panicked");
    let status = engine.status();
    assert_eq!((status.phase, status.running, status.kv_used), (Phase::Stopped, 0, 0));
    assert_eq!(engine.submit(generate(&prompt(5), endless())).expect_err("stopped"), EngineError::Stopped);
    drop(nodes);
}
