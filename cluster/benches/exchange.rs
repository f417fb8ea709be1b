//! How long rows are away: from the dispatch to the answer of the last node, over every carrier, from nodes that compute nothing.
//!
//! `cargo bench -p tramontane-cluster --bench exchange` prints a table; with `--features nccl`, on a machine that has NCCL and
//! GPUs, NCCL is in it. Nothing is judged.
// The harness is the tests'; the bench needs a part of it.
#![allow(dead_code, reason = "each target uses its own part of the harness")]

#[path = "../tests/exchange/nccl/cluster.rs"]
mod cluster;
#[path = "../tests/exchange/harness.rs"]
mod harness;
#[path = "../tests/exchange/node.rs"]
mod node;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tramontane_cluster::exchange::{Carrier, Exchange, ExpertServer, ServeError};
use tramontane_router::{ExpertBatch, ExpertId, ExpertRows, ModelId, NodeId, RowFormat, Rows};

use cluster::Cluster;
use harness::{Harness, Nodes, collect};
use node::batch;

/// Mixtral's hidden width.
const WIDTH: usize = 4096;
/// (nodes, rows of each): steps of one sequence and of a batch, a chunk of a prefill.
const SHAPES: [(usize, usize); 5] = [(1, 1), (2, 1), (4, 8), (2, 256), (1, 2048)];
/// Dispatches that are timed, and those before them that are not.
const TIMED: usize = 200;
const WARMING: usize = 20;

/// How an exchange to some nodes is made.
type Start = fn(Nodes) -> Harness;

/// Answers with rows that it has ready.
struct Ready;

impl ExpertServer for Ready {
    fn serve(&self, batches: &[ExpertBatch]) -> Vec<Result<ExpertRows, ServeError>> {
        let ready = |batch: &ExpertBatch| {
            let rows: usize = batch.work.iter().map(|work| work.rows.len()).sum();
            let data = Bytes::from(vec![0; rows * WIDTH * 2]);
            Ok(ExpertRows { rows: Rows { format: RowFormat::Bf16, width: WIDTH, data } })
        };
        batches.iter().map(ready).collect()
    }

    fn ensure_held(&self, _: &ModelId, _: &[ExpertId]) -> Result<(), ServeError> {
        Ok(())
    }

    fn received(&self) -> BTreeMap<ExpertId, u64> {
        BTreeMap::new()
    }

    fn leave(&self) {}
}

fn main() {
    // Only `cargo bench` says `--bench`. Among the tests it is enough that this builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut carriers: Vec<(&str, Start)> = vec![("in-process", Harness::in_process), ("grpc", Harness::grpc)];
    match Carrier::Nccl.available() {
        Ok(()) => carriers.push(("nccl", nccl)),
        Err(error) => println!("without NCCL: {error}"),
    }
    println!("rows of {WIDTH} values, int8 there and bf16 back; microseconds, {TIMED} times each");
    println!("{:<12}{:>7}{:>12}{:>10}{:>10}{:>10}", "carrier", "nodes", "rows each", "median", "p99", "MB/s");
    for (nodes, rows) in SHAPES {
        for (name, start) in &carriers {
            print(name, nodes, rows, *start);
        }
    }
}

/// An exchange whose communicator stands.
fn nccl(nodes: Nodes) -> Harness {
    Harness::over(nodes, |runtime, addrs| {
        let mut cluster = Cluster::over(runtime, &addrs);
        cluster.stands(addrs.len());
        cluster.exchange
    })
}

fn print(carrier: &str, nodes: usize, rows: usize, start: Start) {
    let ids: Vec<NodeId> = (0..nodes).map(|i| NodeId::from(format!("n{i}").as_str())).collect();
    let servers = ids.iter().map(|id| (id.clone(), Arc::new(Ready) as Arc<dyn ExpertServer>)).collect();
    let mut harness = start(servers);
    let batch = batch(RowFormat::Q8, WIDTH, rows, &[0], 1);
    let mut times: Vec<Duration> =
        (0..WARMING + TIMED).map(|_| round(&mut *harness.exchange, &ids, &batch)).skip(WARMING).collect();
    times.sort();
    let (median, late) = (times[TIMED / 2], times[TIMED * 99 / 100]);
    let moved = nodes * (batch.rows.data.len() + rows * WIDTH * 2);
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    println!(
        "{carrier:<12}{nodes:>7}{rows:>12}{:>10.0}{:>10.0}{:>10.0}",
        us(median),
        us(late),
        moved as f64 / us(median)
    );
}

/// One dispatch to each node, until all have answered.
fn round(exchange: &mut dyn Exchange, nodes: &[NodeId], batch: &ExpertBatch) -> Duration {
    let begun = Instant::now();
    for node in nodes {
        exchange.submit(node, batch.clone());
    }
    let completions = collect(exchange, nodes.len());
    let took = begun.elapsed();
    assert!(completions.values().all(|completion| completion.result.is_ok()), "every node answers");
    took
}
