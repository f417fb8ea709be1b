//! A real expert node on a checkpoint in a file: it reads what it holds and nothing else, however large the file; and it ends with the
//! file's name when that is cut off beneath it. Linux only: it reads `/proc`.
//!
//! With `TRAMONTANE_BIG_FILE` set (`./test --long` does, in a release build) the file has all of Mixtral 8x7B's shapes: 26 GB in the folder for temporary
//! files. A machine with less memory than that is just right.

#[path = "mapped/cluster.rs"]
mod cluster;
#[path = "mapped/procfs.rs"]
mod procfs;
#[path = "processes/run.rs"]
mod run;
mod support;

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cluster::{Cluster, open};
use procfs::Usage;
use run::{Outcome, Running};
use support::model::Model;
use tramontane_cluster::exchange::ExpertServer;
use tramontane_expert_node::ExpertStore;
use tramontane_kernels::{Compute, Isa, Q8Buf};
use tramontane_model::decoder::Decoder;
use tramontane_model::expert::ExpertBackend;
use tramontane_model::weights::{Packing, Quantize};
use tramontane_router::{Epoch, ExpertBatch, ExpertId, ExpertWork, RowFormat, Rows};

/// The expert that the node holds of each layer: neither the first nor the last.
const EXPERT: u32 = 2;
/// Rows in a batch.
const ROWS: usize = 3;
const MIB: u64 = 1 << 20;

/// A file to be written, and what goes with its size.
struct Size {
    synth: &'static [&'static str],
    /// How long one step may take.
    limit: Duration,
    /// Resident pages of the file when nothing of it is being loaded, at most: its header, and what the system maps beside.
    header: u64,
    /// Read from the disk beside what is held, at most: the header, and what the system reads ahead.
    ahead: u64,
    /// What a process needs beside weights, at most: code, threads, buffers.
    process: u64,
}

const SMALL: Size = Size {
    synth: &["--like", "tiny", "--layers", "32"],
    limit: Duration::from_secs(120),
    header: MIB,
    ahead: 4 * MIB,
    process: 64 * MIB,
};

const BIG: Size = Size {
    synth: &["--like", "mixtral-8x7b"],
    limit: Duration::from_secs(1800),
    header: 8 * MIB,
    ahead: 128 * MIB,
    process: 256 * MIB,
};

/// Runs `tramontane models` with `args`, which must go well.
fn models(size: &Size, args: &[&str]) -> String {
    let start = Instant::now();
    let Outcome { code, stdout, stderr } = Running::start_within(size.limit, &[&["models"], args].concat()).outcome();
    assert_eq!(code, Some(0), "{args:?}: {stderr}");
    println!("models {}: {:.1?}", args[0], start.elapsed());
    stdout
}

/// Writes the file and its manifest.
fn write(size: &Size, file: &Path) {
    let path = text(file);
    models(size, &[&["synth", "--type", "q4_0"], size.synth, &[path]].concat());
    models(size, &["verify", "--write-manifest", path]);
    models(size, &["inspect", path]);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of a test is UTF-8")
}

/// Has the system forget what it keeps of `file` in memory.
fn forget(file: &Path) {
    // The GNU tool's own way to ask for it (posix_fadvise, POSIX_FADV_DONTNEED).
    let dd =
        Command::new("dd").arg(format!("if={}", text(file))).args(["iflag=nocache", "count=0", "status=none"]).status();
    assert!(dd.is_ok_and(|status| status.success()), "dd can drop a file from the cache");
}

/// One expert of each layer.
fn held(model: &Model) -> Vec<ExpertId> {
    (0..model.config.layers as u32).map(|layer| ExpertId::new(layer, EXPERT)).collect()
}

/// Bytes of `expert` in the file.
fn stored_bytes(model: &Model, expert: ExpertId) -> u64 {
    let tensors = model.checkpoint.expert(&model.config, expert.layer as usize, expert.expert as usize);
    let tensors = tensors.expect("the expert is there");
    [tensors.w1, tensors.w2, tensors.w3].iter().map(|tensor| tensor.data.len() as u64).sum()
}

/// Rows for `expert`, others for each layer.
fn batch(model: &Model, expert: ExpertId) -> ExpertBatch {
    let (width, seed) = (model.config.hidden, expert.layer as usize);
    let values: Vec<f32> = (0..ROWS * width).map(|i| ((i * 7 + seed * 13) % 23) as f32 / 11.0 - 1.0).collect();
    let (mut blocks, mut data) = (Q8Buf::default(), Vec::new());
    blocks.quantize(&Compute::new(Isa::Portable, 1), &values, width).expect("the rows are finite");
    (0..ROWS).for_each(|row| blocks.write_wire(row, &mut data));
    let rows = Rows { format: RowFormat::Q8, width, data: data.into() };
    let work = vec![ExpertWork { expert: expert.expert, rows: (0..ROWS as u32).collect() }];
    ExpertBatch { model: model.id.clone(), epoch: Epoch(1), layer: expert.layer, rows, work, trace: None }
}

#[test]
fn a_node_reads_what_it_holds_and_answers_from_it() {
    let size = if std::env::var_os("TRAMONTANE_BIG_FILE").is_some() { BIG } else { SMALL };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.gguf");
    write(&size, &file);
    let model = open(&file);
    let experts = held(&model);
    let bytes: u64 = experts.iter().map(|&expert| stored_bytes(&model, expert)).sum();
    forget(&file);

    let start = Instant::now();
    let cluster = Cluster::start(&model, &file, bytes + bytes / 50, size.limit);
    let usage = || Usage::of(cluster.node.pid(), &file);
    let (joined, joined_after) = (usage(), start.elapsed());
    cluster.place(&model, &experts);
    cluster.until_held(experts.len());
    let (loaded, loaded_after) = (usage(), start.elapsed());
    let whole = file.metadata().expect("the file is there").len();
    println!("of {whole} bytes the node holds {bytes}\njoined after {joined_after:.1?}: {joined:?}");
    println!("holds them after {loaded_after:.1?}: {loaded:?}");
    assert!(joined.mapped.max(loaded.mapped) <= size.header, "pages of the file that nobody needs");
    assert!(joined.own <= size.process && loaded.own <= bytes + size.process, "memory beside the experts");
    // While one is packed its pages are there too.
    assert!(loaded.peak <= bytes + bytes / experts.len() as u64 + size.process, "memory while they were loaded");
    assert!(loaded.read <= bytes + size.ahead, "read beside the experts");

    coordinator_half(&size, &model, &file);

    let batches: Vec<ExpertBatch> = experts.iter().map(|&expert| batch(&model, expert)).collect();
    let (answers, took) = cluster.ask(&batches);
    println!("{} dispatches of {ROWS} rows: {took:.1?}", batches.len());
    let (checkpoint, config) = (model.checkpoint.clone(), model.config.clone());
    let backend = ExpertBackend::cpu(Compute::new(Isa::detect(), 1));
    let store = ExpertStore::new(model.id.clone(), checkpoint, config, Quantize::AsStored, u64::MAX, backend);
    for ((&expert, batch), answer) in experts.iter().zip(&batches).zip(&answers) {
        store.load(expert).expect("the expert loads");
        assert_eq!(store.serve(std::slice::from_ref(batch))[0].as_ref(), Ok(answer), "{expert}");
        store.retain(|_| false);
    }
}

/// What a coordinator loads, in this process.
fn coordinator_half(size: &Size, model: &Model, file: &Path) {
    let (before, start) = (Usage::of(std::process::id(), file), Instant::now());
    let decoder =
        Decoder::load(&Packing::on_one_thread(), model.checkpoint.clone(), &model.config).expect("the decoder loads");
    let (took, after) = (start.elapsed(), Usage::of(std::process::id(), file));
    let (own, read) = (after.own.saturating_sub(before.own), after.read - before.read);
    println!("the coordinator's half: {took:.1?}, {own} bytes of memory, {read} read, {} mapped", after.mapped);
    assert!(after.mapped <= size.header, "pages of the file that nobody needs");
    let experts: u64 = (0..model.config.experts as u32)
        .flat_map(|expert| (0..model.config.layers as u32).map(move |layer| ExpertId::new(layer, expert)))
        .map(|expert| stored_bytes(model, expert))
        .sum();
    let others = file.metadata().expect("the file is there").len() - experts;
    assert!(own <= others + size.process, "memory beside the decoder");
    assert!(read <= others + size.ahead, "read beside the decoder");
    drop(decoder);
}

#[test]
fn a_file_that_is_cut_off_ends_its_node_with_the_files_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.gguf");
    write(&SMALL, &file);
    let model = open(&file);
    let cluster = Cluster::start(&model, &file, u64::MAX, SMALL.limit);
    // It has mapped the file, and none of the experts is read before it is placed.
    File::options().write(true).open(&file).and_then(|file| file.set_len(4096)).expect("the file can be cut off");
    cluster.place(&model, &held(&model));
    let Outcome { code, stdout, stderr } = cluster.node.outcome();
    let path = file.canonicalize().expect("the file is there");
    let expected = format!("tramontane: {} was truncated or became unreadable while it was mapped\n", text(&path));
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(1), "", expected.as_str()));
}
