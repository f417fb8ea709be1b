//! Many requests of all kinds at the same time, in an engine that is short of room, some of them dropped: whoever finishes has what
//! it would have had alone. With `TRAMONTANE_LONG` set, for ten minutes.

use std::time::{Duration, Instant};

use tramontane_cluster::engine::{
    CacheScope, Constraint, Event, EventStream, FinishReason, Generation, Sampling, Task, Tenant, ValidRequest,
};
use tramontane_coordinator::Limits;

use super::support::cluster::{Reach, Setup};
use super::support::completions::TokenBits;
use super::support::dice::Dice;
use super::support::engine::{Output, ROOMY, Running, generate, read};
use super::support::model::{Model, corpus};
use super::{setup, spiced};

/// Requests at the same time.
const REQUESTS: u64 = 64;
/// Blocks of the crowded engine: a few requests' worth.
const FEW_BLOCKS: usize = 16;
const CROWDED: Limits = Limits { max_running: 12, step_tokens: 48, chunk: 16, max_waiting: 256 };

/// Request `number` of a round, and after how many events each of its streams is dropped, if it is.
fn request(model: &Model, texts: &[Vec<u32>], number: u64, dice: &mut Dice) -> (ValidRequest, Option<usize>) {
    let mut prompt = texts[dice.below(4) as usize].clone();
    prompt.truncate(1 + dice.below(110) as usize);
    let sampling = match dice.below(3) {
        0 => Sampling::default(),
        1 => Sampling { temperature: 1.0, seed: number, ..Sampling::default() },
        _ => spiced(number),
    };
    let constraint = match dice.below(6) {
        0 => Some(Constraint::Regex("[a-z ]{3,30}[.!]".into())),
        1 => Some(Constraint::JsonSchema(r#"{"type":"array","items":{"type":"integer"},"maxItems":4}"#.into())),
        _ => None,
    };
    let generation = Generation {
        max_tokens: 1 + dice.below(40) as usize,
        min_tokens: dice.below(4) as usize,
        choices: [1, 1, 3][dice.below(3) as usize],
        sampling,
        stop_tokens: if dice.below(2) == 0 { model.config.eos.clone() } else { Vec::new() },
        logprobs: Some(2),
        prompt_logprobs: (dice.below(8) == 0).then_some(1),
        constraint,
        ..Generation::default()
    };
    let request = ValidRequest {
        tenant: Tenant(None),
        cache_scope: CacheScope(dice.below(2).into()),
        ..generate(&prompt, generation)
    };
    (request, (dice.below(4) == 0).then(|| dice.below(20) as usize))
}

/// What came of a stream that was read to its end, or dropped after some tokens.
enum Read {
    Whole(Box<Output>),
    Dropped(Vec<TokenBits>),
}

/// Reads `stream`, and drops it after `events`.
fn read_some(mut stream: EventStream, events: Option<usize>) -> Read {
    let Some(events) = events else { return Read::Whole(Box::new(read(stream))) };
    let next = |stream: &mut EventStream| loop {
        match stream.blocking_next() {
            Some(Event::Token(token)) => return Some(token.into()),
            Some(Event::Started { .. }) => {}
            _ => return None,
        }
    };
    Read::Dropped((0..events).map_while(|_| next(&mut stream)).collect())
}

/// Choice `choice` of `request`, request `number` of a round, in a scope of its own, so that nothing is shared.
fn alone(request: &ValidRequest, choice: u32, number: u128) -> ValidRequest {
    let Task::Generate(generation) = &request.task else { panic!("a request to generate") };
    let prompt_logprobs = generation.prompt_logprobs.filter(|_| choice == 0);
    let generation = Generation { choices: 1, first_choice: choice, prompt_logprobs, ..(**generation).clone() };
    let cache_scope = CacheScope(1_000 + 10 * number + u128::from(choice));
    ValidRequest { cache_scope, task: Task::Generate(Box::new(generation)), ..request.clone() }
}

/// One round: all requests of `seed` at the same time, against each alone.
fn round(model: &Model, texts: &[Vec<u32>], crowded: &Running, quiet: &Running, seed: u64) {
    let mut dice = Dice(seed);
    let requests: Vec<_> = (0..REQUESTS).map(|number| request(model, texts, number, &mut dice)).collect();
    let reads: Vec<Vec<Read>> = std::thread::scope(|scope| {
        let threads: Vec<_> = requests
            .iter()
            .map(|(request, events)| {
                let streams = crowded.submit(request.clone());
                let readers: Vec<_> =
                    streams.into_iter().map(|stream| scope.spawn(move || read_some(stream, *events))).collect();
                readers
            })
            .collect();
        let join = |readers: Vec<std::thread::ScopedJoinHandle<'_, Read>>| {
            readers.into_iter().map(|reader| reader.join().expect("a reader")).collect()
        };
        threads.into_iter().map(join).collect()
    });
    crowded.assert_empty();
    for (number, ((request, _), reads)) in (0_u128..).zip(requests.into_iter().zip(reads)) {
        let prompt = request.prompt.len();
        for (choice, read) in (0..).zip(reads) {
            let expected = quiet.output(alone(&request, choice, number));
            let named = format!("seed {seed}, request {number}, choice {choice}");
            match read {
                Read::Dropped(tokens) => {
                    assert!(tokens.len() <= expected.tokens.len(), "{named}");
                    assert_eq!(tokens, expected.tokens[..tokens.len()], "{named}");
                }
                Read::Whole(found) => {
                    let (reason, usage) = found.finished();
                    let stop = usize::from(matches!(reason, FinishReason::Stop { token: Some(_) }));
                    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (prompt, found.tokens.len() + stop));
                    assert_eq!(found.uncached(), expected.uncached(), "{named}");
                }
            }
        }
    }
    quiet.assert_empty();
}

#[test]
fn crowded_requests_are_what_they_are_alone() {
    let model = Model::breeze();
    let texts: Vec<Vec<u32>> = (0..4).map(|skip| corpus(&model, 40)[skip * 9..].concat()).collect();
    let setup = setup();
    let few = Setup { kv_blocks: FEW_BLOCKS, nodes: 3, reach: Reach::Grpc, threads: 2, ..setup };
    let (crowded, quiet) = (Running::start(&model, &few, CROWDED), Running::start(&model, &setup, ROOMY));
    let long = std::env::var_os("TRAMONTANE_LONG").is_some();
    let (start, patience) = (Instant::now(), Duration::from_secs(if long { 600 } else { 0 }));
    let mut rounds = 0;
    while rounds == 0 || start.elapsed() < patience {
        round(&model, &texts, &crowded, &quiet, rounds);
        rounds += 1;
    }
    let status = crowded.status();
    println!("{rounds} rounds in {:?}: {status:?}", start.elapsed());
    assert!(status.preemptions > 0 && status.prefix_hits > 0, "there was room, or nothing in common: {status:?}");
}
