//! The gap between the tokens of running streams while a long prompt comes in, with chunked prefill and without. On the demo model.
//!
//! `cargo bench --bench gap` prints a table. Nothing is judged: what the scheduler does is a test's business, how long it takes is
//! the machine's.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use support::cluster::Setup;
use support::engine::{Running, generate};
use support::model::Model;
use tramontane_cluster::engine::{Event, EventStream, Generation};
use tramontane_coordinator::Limits;
use tramontane_kernels::{Isa, KvType};
use tramontane_model::weights::Quantize;

/// Streams that run.
const STREAMS: u64 = 8;
/// Tokens of the prompt that comes in.
const PROMPT: usize = 900;
/// Tokens that each stream has before it comes.
const BEFORE: usize = 50;
/// Tokens of each stream.
const TOKENS: usize = 400;
/// Tokens of one sequence in a step; the last is all of the prompt.
const CHUNKS: [usize; 4] = [32, 64, 256, 1024];

fn main() {
    // Only `cargo bench` says `--bench`. Among the tests it is enough that this builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let model = Model::breeze();
    println!("{STREAMS} streams, a prompt of {PROMPT} tokens; times in ms");
    println!("chunk   median gap before   largest gap with the prompt   the prompt's first token");
    for chunk in CHUNKS {
        let (before, largest, first) = measure(&model, chunk);
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        println!("{chunk:>5}   {:>17.1}   {:>27.1}   {:>24.1}", ms(before), ms(largest), ms(first));
    }
}

/// The median gap before the prompt comes, the largest until its first token, and how long that took.
fn measure(model: &Model, chunk: usize) -> (Duration, Duration, Duration) {
    let setup = Setup { isa: Isa::detect(), threads: 2, ..Setup::plain(Quantize::AsStored, KvType::F16) };
    let setup = Setup { kv_blocks: 211, ..setup };
    let limits = Limits { max_running: 16, step_tokens: chunk + STREAMS as usize, chunk, max_waiting: 64 };
    let engine = Running::start(model, &setup, limits);
    let generation = |max_tokens| Generation { max_tokens, ..Generation::default() };
    let streams = (0..STREAMS)
        .flat_map(|seed| engine.submit(generate(&model.random_ids(10, seed), generation(TOKENS))))
        .collect::<Vec<_>>();
    let (started, came) = std::sync::mpsc::channel();
    let readers: Vec<_> = streams
        .into_iter()
        .map(|stream| {
            let started = started.clone();
            std::thread::spawn(move || arrivals(stream, &started))
        })
        .collect();
    (0..STREAMS).for_each(|_| came.recv().expect("a stream begins"));
    let begun = Instant::now();
    let mut prompt = engine.submit(generate(&model.random_ids(PROMPT, 99), generation(1)));
    assert!(matches!(prompt[0].blocking_next(), Some(Event::Started { .. })), "the prompt is computed");
    assert!(matches!(prompt[0].blocking_next(), Some(Event::Token(_))), "the prompt's first token");
    let first = Instant::now();
    let arrivals: Vec<Vec<Instant>> = readers.into_iter().map(|reader| reader.join().expect("a reader")).collect();
    let gaps = |from: Option<Instant>, to: Instant| {
        let pairs = arrivals.iter().flat_map(|times| times.windows(2).map(|pair| (pair[0], pair[1])));
        let within = pairs.filter(move |(_, end)| from.is_none_or(|from| *end > from) && *end <= to);
        let mut gaps: Vec<Duration> = within.map(|(start, end)| end - start).collect();
        gaps.sort_unstable();
        gaps
    };
    let (before, with) = (gaps(None, begun), gaps(Some(begun), first));
    (before[before.len() / 2], with.last().copied().unwrap_or_default(), first - begun)
}

/// When each token of `stream` came; says so when there are [`BEFORE`].
fn arrivals(mut stream: EventStream, started: &std::sync::mpsc::Sender<()>) -> Vec<Instant> {
    let mut times = Vec::new();
    assert!(matches!(stream.blocking_next(), Some(Event::Started { .. })), "its prompt is computed");
    while let Some(Event::Token(_)) = stream.blocking_next() {
        times.push(Instant::now());
        if times.len() == BEFORE {
            started.send(()).expect("the bench waits");
        }
    }
    times
}
