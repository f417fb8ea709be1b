//! How long a stream stands still when an expert node is killed under it: a cluster of processes on a real etcd, the demo model.
//!
//! `cargo bench --bench failover` prints a table: with two replicas of every expert, with one, and with one while etcd is down too.
//! `TRAMONTANE_KILLS` says how many nodes are killed in each case, one after the other. It needs
//! etcd and etcdctl, as the tests do. Nothing is judged: that nothing is lost is a test's business (`tests/failover.rs`), how long
//! it takes is the machine's.
#![allow(dead_code, reason = "the tests use the rest of what is shared")]

#[path = "../tests/support/dice.rs"]
mod dice;
#[path = "../cluster/tests/registry/etcd_server.rs"]
mod etcd_server;
#[path = "../tests/failover/fleet.rs"]
mod fleet;
#[path = "../tests/failover/islands.rs"]
mod islands;
#[path = "../tests/failover/proxy.rs"]
mod proxy;
#[path = "../tests/processes/run.rs"]
mod run;
#[path = "../tests/support/serving.rs"]
mod serving;

use std::io::{BufRead, BufReader, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use dice::Dice;
use fleet::{Fleet, Size};
use serde_json::json;
use serving::connect;

/// How long etcd may take to come up.
const LONG: Duration = Duration::from_secs(60);
/// How often etcd is asked whether it has.
const POLL: Duration = Duration::from_millis(10);
/// Streams that run.
const STREAMS: u64 = 8;
/// Nodes that are killed, unless it is said otherwise.
const KILLS: usize = 20;
/// The same where a survivor has to load what the dead node held: each takes longer.
const LOADING_KILLS: usize = 5;
/// Time in quiet before the first one is.
const QUIET: Duration = Duration::from_secs(5);
/// A gap belongs to a kill when it ends within this time after it.
const WINDOW: Duration = Duration::from_secs(2);
/// The same where a survivor has to load.
const LOADING_WINDOW: Duration = Duration::from_secs(10);

/// What happens with etcd when a node is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Registry {
    Stays,
    IsKilledToo,
}

/// From one token of a stream to its next.
struct Gap {
    end: Instant,
    length: Duration,
}

fn main() {
    // Only `cargo bench` says `--bench`. Among the tests it is enough that this builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let asked: Option<usize> = std::env::var("TRAMONTANE_KILLS").ok().and_then(|kills| kills.parse().ok());
    println!("{STREAMS} streams on 4 expert nodes, some of which are killed; milliseconds      p50      p99      max");
    let mut fleet = Fleet::start(Size { nodes: 4, replicas: 2 });
    let (quiet, longest) = measure(&mut fleet, asked.unwrap_or(KILLS), WINDOW, Registry::Stays);
    print("between two tokens, in quiet", quiet);
    print("2 replicas: longest of all streams after each kill", longest);
    drop(fleet);
    let (kills, mut fleet) = (asked.unwrap_or(LOADING_KILLS), Fleet::start(Size { nodes: 4, replicas: 1 }));
    let (_, longest) = measure(&mut fleet, kills, LOADING_WINDOW, Registry::Stays);
    print("1 replica, which survivors load again: the same", longest);
    let (_, longest) = measure(&mut fleet, kills, LOADING_WINDOW, Registry::IsKilledToo);
    print("1 replica, etcd killed before: the same", longest);
}

/// Kills nodes one after the other while streams run: the times between two tokens in quiet, and the longest after each kill.
fn measure(fleet: &mut Fleet, kills: usize, window: Duration, registry: Registry) -> (Vec<Duration>, Vec<Duration>) {
    let (stop, (gaps, measured)) = (Arc::new(AtomicBool::new(false)), channel());
    let readers: Vec<_> = (0..STREAMS)
        .map(|seed| {
            let (addr, stop, gaps) = (fleet.coordinator().addr().to_owned(), stop.clone(), gaps.clone());
            thread::spawn(move || read(&addr, seed, &stop, &gaps))
        })
        .collect();
    drop(gaps);
    thread::sleep(QUIET);
    let (began, mut killed, mut dice) = (Instant::now(), Vec::new(), Dice(1));
    for _ in 0..kills {
        thread::sleep(Duration::from_millis(dice.below(500)));
        let victim = fleet.nodes()[dice.below(4) as usize].clone();
        if registry == Registry::IsKilledToo {
            fleet.etcd().kill();
        }
        killed.push(Instant::now());
        fleet.kill(&victim);
        thread::sleep(window);
        if registry == Registry::IsKilledToo {
            fleet.revive_etcd();
        }
        fleet.start_node(&victim, &[]);
        fleet.until_settled();
    }
    stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().expect("no stream fails"));
    let gaps: Vec<Gap> = measured.into_iter().collect();
    let quiet = gaps.iter().filter(|gap| gap.end < began).map(|gap| gap.length).collect();
    let after = |kill: &Instant| {
        let (kill, end) = (*kill, *kill + window);
        gaps.iter().filter(move |gap| (kill..end).contains(&gap.end)).map(|gap| gap.length).max()
    };
    (quiet, killed.iter().filter_map(after).collect())
}

fn print(what: &str, mut lengths: Vec<Duration>) {
    lengths.sort();
    let at = |share: f64| {
        let rank = ((lengths.len() as f64 * share).ceil() as usize).clamp(1, lengths.len().max(1)) - 1;
        lengths.get(rank).map_or(0.0, |length| length.as_secs_f64() * 1e3)
    };
    println!("{what:<62} {:>8.1} {:>8.1} {:>8.1}", at(0.5), at(0.99), at(1.0));
}

/// Reads streams one after the other until it is told to stop, and says how far apart their tokens are.
fn read(addr: &str, seed: u64, stop: &AtomicBool, gaps: &Sender<Gap>) {
    while !stop.load(Ordering::Relaxed) {
        let body = json!({"prompt": "The capital of France is", "max_tokens": 400, "temperature": 1, "seed": seed,
            "ignore_eos": true, "stream": true});
        let body = body.to_string();
        let length = body.len();
        let mut stream = connect(addr);
        let head =
            "POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nconnection: close";
        write!(stream, "{head}\r\ncontent-length: {length}\r\n\r\n{body}").expect("the server reads");
        let (mut last, mut done) = (None, false);
        for line in BufReader::new(stream).lines() {
            let line = line.expect("the stream goes on");
            done |= line == "data: [DONE]";
            if line.starts_with("data: {") {
                let now = Instant::now();
                let since = last.replace(now);
                // Fails only when nobody measures any more.
                _ = since.map(|since| gaps.send(Gap { end: now, length: now - since }));
            }
        }
        assert!(done, "the stream ended early");
    }
}
