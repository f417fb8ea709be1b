//! What a forward pass leaves behind: nothing. Many decode steps of several sequences, and the memory before and after.
//!
//! 1,000 steps; with `TRAMONTANE_LONG` set, 10,000.

mod support;

use std::fs;

use support::cluster::{Cluster, Reach, Setup};
use support::model::Model;
use tramontane_coordinator::{KV_BLOCK, Step};
use tramontane_kernels::{Isa, KvType, QueryRow};
use tramontane_model::weights::Quantize;

/// Sequences that decode together.
const SEQUENCES: usize = 5;
/// Positions of each, over and over.
const POSITIONS: usize = 3 * KV_BLOCK;
/// Steps in which buffers find their size.
const WARM_UP: usize = POSITIONS;
/// What allocators may keep for themselves; a leak of 64 bytes a step comes to more in 10,000 steps.
const SLACK: u64 = 512 << 10;

#[test]
fn steps_leave_no_memory_behind() {
    let steps = if std::env::var_os("TRAMONTANE_LONG").is_some() { 10_000 } else { 1_000 };
    let model = Model::breeze();
    for (quantize, reach) in [(Quantize::AsStored, Reach::InProcess), (Quantize::Q8_0, Reach::Grpc)] {
        let kv_blocks = SEQUENCES * POSITIONS.div_ceil(KV_BLOCK);
        let setup =
            Setup { kv_blocks, nodes: 3, reach, isa: Isa::detect(), threads: 2, ..Setup::plain(quantize, KvType::F16) };
        let mut cluster = Cluster::start(&model, &setup);
        (0..WARM_UP).for_each(|step| decode(&mut cluster, step));
        let before = resident();
        (0..steps).for_each(|step| decode(&mut cluster, step));
        let grown = resident().saturating_sub(before);
        assert!(grown <= SLACK, "{steps} steps, {reach:?}: {grown} bytes more are resident");
    }
}

/// One token of each sequence; step and sequence say which.
fn decode(cluster: &mut Cluster, step: usize) {
    let vocab = cluster.forward.config().vocab;
    let blocks_each = POSITIONS.div_ceil(KV_BLOCK);
    let tables: Vec<Vec<u32>> =
        (0..SEQUENCES).map(|s| (s * blocks_each..(s + 1) * blocks_each).map(|b| b as u32).collect()).collect();
    let position = step % POSITIONS;
    let step = Step {
        tokens: (0..SEQUENCES).map(|s| ((step * 31 + s * 977) % vocab) as u32).collect(),
        rows: tables.iter().map(|blocks| QueryRow { position, blocks }).collect(),
        wanted: (0..SEQUENCES).collect(),
        ..Step::default()
    };
    let logits = cluster.forward.run(&step).expect("the step succeeds");
    assert_eq!(logits.len(), SEQUENCES * vocab);
}

/// Bytes of this process's own memory that are resident (proc_pid_status(5)).
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    let kib: u64 = line.split_whitespace().next().expect("a number").parse().expect("a number");
    1024 * kib
}
