//! A fleet of engines that die, drain and refuse, against one that does not. Their tokens are a function of what decides tokens
//! (prompt, seed, choice, position), so that a stream which was broken off and taken up must equal the quiet one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join_all;
use tokio::time::timeout;
use tramontane_cluster::engine::{
    Engine, EngineError, EngineInbox, EngineInfo, EngineStatus, Event, EventStream, FinishReason, Generation,
    InProcessEngine, Phase, Sampling, Submission, Task, Token, Usage, ValidRequest, in_process,
};

use super::{Differs, Fleet, MAX_LOSSES, Membership};

/// By when anything that is to happen has happened; only a failing test waits for it.
const LONG: Duration = Duration::from_secs(30);
const QUEUE: usize = 8;

fn info() -> EngineInfo {
    EngineInfo { model: "m".into(), context: 100, vocab: 1 << 20, fingerprint: "fp".into() }
}

/// An engine on a thread of its own that computes so many tokens, and dies.
struct Mortal {
    engine: InProcessEngine,
    asked: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

fn mortal(tokens: usize) -> Mortal {
    let (engine, inbox) = in_process(info(), QUEUE);
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let thread = std::thread::spawn(move || {
        let mut left = tokens;
        while let Some(submission) = inbox.recv() {
            counted.fetch_add(1, Ordering::SeqCst);
            if compute(submission, &mut left).is_none() {
                return;
            }
        }
    });
    Mortal { engine, asked, thread }
}

/// Computes a request to its end; `None` when the engine is out of tokens and dies.
fn compute(submission: Submission, left: &mut usize) -> Option<()> {
    let Submission { request, mut events } = submission;
    let Task::Generate(generation) = &request.task else { panic!("tokens are asked for") };
    let number = |place: usize| generation.first_choice + place as u32;
    let resumed = generation.resume_after.len();
    let mine: Vec<Token> = (0..resumed).map(|at| token(&request, number(0), at)).collect();
    assert!(mine.iter().map(|token| token.id).eq(generation.resume_after.iter().copied()), "what it would have said");
    if generation.prompt_logprobs.is_some() {
        assert_eq!(resumed, 0);
        *left = left.checked_sub(1)?;
        events[0].send_prompt(vec![None]).ok();
    }
    for at in resumed..generation.max_tokens {
        for (place, events) in events.iter_mut().enumerate() {
            *left = left.checked_sub(1)?;
            events.send(token(&request, number(place), at)).ok();
        }
    }
    // It may die between the last token and the end.
    *left = left.checked_sub(1)?;
    let (prompt_tokens, completion_tokens) = (request.prompt.len(), generation.max_tokens);
    for events in events {
        events.finish(FinishReason::Length, Usage { prompt_tokens, completion_tokens, cached_tokens: 0 });
    }
    Some(())
}

fn token(request: &ValidRequest, choice: u32, at: usize) -> Token {
    let Task::Generate(generation) = &request.task else { panic!("tokens are asked for") };
    let id = request.prompt[0] * 10_000 + generation.sampling.seed as u32 * 1000 + choice * 100 + at as u32;
    Token { id, logprob: -(at as f32), top: vec![(choice, -0.5)] }
}

fn request(choices: u32, max_tokens: usize) -> ValidRequest {
    let sampling = Sampling { seed: 7, ..Sampling::default() };
    let generation = Generation { choices, max_tokens, sampling, first_choice: 2, ..Generation::default() };
    ValidRequest::generate(1, vec![3, 4], generation)
}

fn with_prompt(mut request: ValidRequest) -> ValidRequest {
    if let Task::Generate(generation) = &mut request.task {
        generation.prompt_logprobs = Some(0);
    }
    request
}

async fn read(streams: Vec<EventStream>) -> Vec<Vec<Event>> {
    timeout(LONG, join_all(streams.into_iter().map(StreamExt::collect))).await.expect("the streams end")
}

async fn run(engine: &dyn Engine, request: &ValidRequest) -> Vec<Vec<Event>> {
    read(engine.submit(request.clone()).expect("it is taken")).await
}

fn join(fleet: &Fleet, name: &str, engine: &InProcessEngine) -> Membership {
    fleet.members().join(name.into(), Arc::new(engine.clone())).expect("it serves the same")
}

fn loop_of(fleet: &Fleet, name: &str) -> (InProcessEngine, EngineInbox, Membership) {
    let (engine, inbox) = in_process(info(), QUEUE);
    let membership = join(fleet, name, &engine);
    (engine, inbox, membership)
}

async fn submission(inbox: EngineInbox) -> (Submission, EngineInbox) {
    let next = move || (inbox.recv_timeout(LONG).expect("a front door").expect("a request"), inbox);
    tokio::task::spawn_blocking(next).await.expect("no panic")
}

/// The next request, of whichever of these engines it is asked.
async fn whoever<const N: usize>(inboxes: [&EngineInbox; N]) -> Submission {
    let begun = Instant::now();
    while begun.elapsed() < LONG {
        if let Some(submission) = inboxes.iter().find_map(|inbox| inbox.try_recv()) {
            return submission;
        }
        tokio::task::yield_now().await;
    }
    panic!("nobody is asked")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_an_engine_dies_the_streams_are_those_of_a_quiet_run() {
    for request in [request(1, 6), request(3, 4), with_prompt(request(1, 4)), with_prompt(request(2, 3))] {
        let quiet = run(&mortal(usize::MAX).engine, &request).await;
        for lives in 0..16 {
            let fleet = Fleet::new(info());
            let engines = [mortal(lives), mortal(lives), mortal(usize::MAX)];
            let _there: Vec<_> =
                engines.iter().zip(["a", "b", "c"]).map(|(mortal, name)| join(&fleet, name, &mortal.engine)).collect();
            assert_eq!(run(&fleet, &request).await, quiet, "of engines that compute {lives} tokens");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_engine_requests_wait_for_one() {
    let fleet = Fleet::new(info());
    assert_eq!(fleet.status().phase, Phase::Stopped);
    let (fresh, begun) = (request(2, 4), request(1, 6));
    let mut waiting = fleet.submit(fresh.clone()).expect("it is taken");
    assert!(timeout(Duration::from_millis(20), waiting[0].next()).await.is_err(), "nobody computes it");
    let first = mortal(10);
    let there = join(&fleet, "a", &first.engine);
    assert_eq!(read(waiting).await, run(&mortal(usize::MAX).engine, &fresh).await);
    // One token is left, and then there is nobody again.
    let mut broken = fleet.submit(begun.clone()).expect("it is taken");
    let told = timeout(LONG, broken[0].next()).await.expect("in time").expect("a token");
    first.thread.join().expect("it has died");
    drop(there);
    let _there = join(&fleet, "b", &mortal(usize::MAX).engine);
    let rest = read(broken).await.remove(0);
    assert_eq!([vec![told], rest].concat(), run(&mortal(usize::MAX).engine, &begun).await.remove(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_waiting() {
    let fleet = Fleet::new(info());
    let deadline = Some(Instant::now() + Duration::from_millis(20));
    let late = run(&fleet, &ValidRequest { deadline, ..request(2, 4) }).await;
    assert_eq!(late, vec![vec![Event::Failed(EngineError::DeadlineExceeded)]; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_with_other_bits_is_never_asked() {
    let fleet = Fleet::new(info());
    let (other, _inbox) = in_process(EngineInfo { fingerprint: "fp_other".into(), ..info() }, QUEUE);
    let Err(differs @ Differs { .. }) = fleet.members().join("x".into(), Arc::new(other)) else { panic!("taken in") };
    assert_eq!(differs.to_string(), "the engine x serves fingerprint fp_other, not fp");
    let deadline = Some(Instant::now() + Duration::from_millis(20));
    let nobody = run(&fleet, &ValidRequest { deadline, ..request(1, 4) }).await;
    assert_eq!(nobody, [[Event::Failed(EngineError::DeadlineExceeded)]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_drains_is_passed_over_and_finishes_what_it_has() {
    let fleet = Fleet::new(info());
    let (leaving, inbox, _a) = loop_of(&fleet, "a");
    let streams = fleet.submit(request(1, 3)).expect("it is taken");
    let (running, inbox) = submission(inbox).await;
    leaving.drain();
    assert_eq!(fleet.status().phase, Phase::Draining);
    let staying = mortal(usize::MAX);
    let _b = join(&fleet, "b", &staying.engine);
    assert_eq!(fleet.status().phase, Phase::Ready);
    let quiet = run(&mortal(usize::MAX).engine, &request(1, 3)).await;
    assert_eq!(run(&fleet, &request(1, 3)).await, quiet);
    compute(running, &mut usize::MAX.clone()).expect("it lives");
    assert_eq!(read(streams).await, quiet);
    assert!(inbox.try_recv().is_none() && staying.asked.load(Ordering::SeqCst) == 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_everywhere_refuses_who_is_new_and_holds_who_has_begun() {
    let fleet = Fleet::new(info());
    let dying = mortal(2);
    let a = join(&fleet, "a", &dying.engine);
    let mut begun = fleet.submit(request(1, 4)).expect("it is taken");
    let told = vec![begun[0].next().await.expect("a token"), begun[0].next().await.expect("a token")];
    // The only other engine refuses until it is told not to.
    let (_full, inbox, _b) = loop_of(&fleet, "b");
    drop(a);
    let overloaded = |ms| EngineError::Overloaded { retry_after: Duration::from_millis(ms) };
    let (refused, inbox) = submission(inbox).await;
    refused.events.into_iter().for_each(|events| events.fail(overloaded(700)));
    let fresh = fleet.submit(request(2, 4)).expect("it is taken");
    let mut inbox = Some(inbox);
    let rest = loop {
        let (next, back) = submission(inbox.take().expect("the loop")).await;
        inbox = Some(back);
        let Task::Generate(generation) = &next.request.task else { panic!("tokens") };
        if generation.choices == 2 {
            next.events.into_iter().for_each(|events| events.fail(overloaded(300)));
            assert_eq!(read(fresh).await, vec![vec![Event::Failed(overloaded(300))]; 2]);
            let (resumed, _back) = submission(inbox.take().expect("the loop")).await;
            compute(resumed, &mut usize::MAX.clone()).expect("it lives");
            break read(begun).await.remove(0);
        }
        next.events.into_iter().for_each(|events| events.fail(overloaded(700)));
    };
    assert_eq!([told, rest].concat(), run(&mortal(usize::MAX).engine, &request(1, 4)).await.remove(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_ends_engines_does_not_end_all_of_them() {
    let fleet = Fleet::new(info());
    let engines: Vec<_> = (0..3 * MAX_LOSSES).map(|_| mortal(0)).collect();
    let _there: Vec<_> =
        (0..).zip(&engines).map(|(i, mortal)| join(&fleet, &format!("e{i}"), &mortal.engine)).collect();
    assert_eq!(run(&fleet, &request(1, 4)).await, [[Event::Failed(EngineError::Stopped)]]);
    let asked: usize = engines.iter().map(|mortal| mortal.asked.load(Ordering::SeqCst)).sum();
    assert_eq!(asked, MAX_LOSSES + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_itself_is_to_blame_for_is_not_tried_again() {
    let fleet = Fleet::new(info());
    let ((_one, inbox, _a), (_other, more, _b)) = (loop_of(&fleet, "a"), loop_of(&fleet, "b"));
    let streams = fleet.submit(request(2, 4)).expect("it is taken");
    let error = EngineError::InvalidConstraint { why: "no".into() };
    whoever([&inbox, &more]).await.events.into_iter().for_each(|events| events.fail(error.clone()));
    assert_eq!(read(streams).await, vec![vec![Event::Failed(error)]; 2]);
    assert!(inbox.try_recv().is_none() && more.try_recv().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_one_engine_finds_no_experts_another_goes_on_and_where_two_do_the_request_hears_so() {
    let fleet = Fleet::new(info());
    let ((_one, first, _a), (_other, second, _b), (_third, third, _c)) =
        (loop_of(&fleet, "a"), loop_of(&fleet, "b"), loop_of(&fleet, "c"));
    let inboxes = [&first, &second, &third];
    let quiet = run(&mortal(usize::MAX).engine, &request(1, 4)).await.remove(0);
    let unavailable = EngineError::ExpertsUnavailable { why: "L0/E1".into() };
    for outages in [1, 2] {
        let streams = fleet.submit(request(1, 4)).expect("it is taken");
        for _ in 0..outages {
            let Submission { request, mut events } = whoever(inboxes).await;
            let Task::Generate(generation) = &request.task else { panic!("tokens") };
            let said = token(&request, generation.first_choice, generation.resume_after.len());
            events[0].send(said).expect("a reader");
            events.remove(0).fail(unavailable.clone());
        }
        if outages == 1 {
            compute(whoever(inboxes).await, &mut usize::MAX.clone()).expect("it lives");
            assert_eq!(read(streams).await, std::slice::from_ref(&quiet));
        } else {
            let said = read(streams).await.remove(0);
            assert_eq!(said, [&quiet[..2], &[Event::Failed(unavailable.clone())]].concat());
            assert!(inboxes.iter().all(|inbox| inbox.try_recv().is_none()), "a third one is not asked");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_finds_no_experts_and_is_alone_is_heard_at_once() {
    let fleet = Fleet::new(info());
    let (_engine, inbox, _a) = loop_of(&fleet, "a");
    let begun = Instant::now();
    let streams = fleet.submit(request(1, 4)).expect("it is taken");
    let unavailable = EngineError::ExpertsUnavailable { why: "L0/E1".into() };
    whoever([&inbox]).await.events.remove(0).fail(unavailable.clone());
    assert_eq!(read(streams).await, [[Event::Failed(unavailable)]]);
    assert!(begun.elapsed() < super::PATIENCE, "it does not wait for another");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_ends_engines_one_token_after_the_other_is_given_up_too() {
    let fleet = Fleet::new(info());
    let engines: Vec<_> = (0..2 * MAX_LOSSES).map(|_| mortal(1)).collect();
    let _there: Vec<_> =
        (0..).zip(&engines).map(|(i, mortal)| join(&fleet, &format!("e{i}"), &mortal.engine)).collect();
    let said = run(&fleet, &request(1, 40)).await.remove(0);
    assert_eq!((said.len(), said.last()), (MAX_LOSSES + 2, Some(&Event::Failed(EngineError::Stopped))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_no_more_is_computed_for_no_more() {
    let fleet = Fleet::new(info());
    let (_engine, inbox, _a) = loop_of(&fleet, "a");
    let closed = |events: Vec<tramontane_cluster::engine::EventSender>| async move {
        timeout(LONG, join_all(events.iter().map(|events| events.closed()))).await.expect("they are gone");
    };
    // Before the first event,
    let streams = fleet.submit(request(2, 4)).expect("it is taken");
    let (waiting, inbox) = submission(inbox).await;
    drop(streams);
    closed(waiting.events).await;
    // and after: one of two choices.
    let mut streams = fleet.submit(request(2, 4)).expect("it is taken");
    let (mut running, _inbox) = submission(inbox).await;
    for events in &mut running.events {
        events.send(Token { id: 1, logprob: 0.0, top: Vec::new() }).expect("a reader");
    }
    assert!(streams[0].next().await.is_some() && streams[1].next().await.is_some());
    drop(streams.remove(1));
    let kept = running.events.remove(0);
    closed(running.events).await;
    assert!(!kept.is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_status_is_the_sum_and_it_drains_as_one() {
    let fleet = Fleet::new(info());
    let (_one, inbox, _a) = loop_of(&fleet, "a");
    let (_other, more, _b) = loop_of(&fleet, "b");
    let status = EngineStatus { running: 1, waiting: 2, kv_used: 3, kv_total: 4, ..EngineStatus::default() };
    inbox.publish(status);
    more.publish(EngineStatus { prefix_hits: 9, ..status });
    let sum = EngineStatus { running: 2, waiting: 4, kv_used: 6, kv_total: 8, prefix_hits: 9, ..status };
    assert_eq!(fleet.status(), sum);
    fleet.drain();
    assert_eq!(fleet.status(), EngineStatus { phase: Phase::Draining, ..sum });
    assert_eq!(fleet.submit(request(1, 4)).err(), Some(EngineError::Draining));
}
