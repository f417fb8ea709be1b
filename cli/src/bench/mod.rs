//! `tramontane bench`: how fast a model runs. `engine` measures the forward pass that `up` serves with, in this process; `serve` a server,
//! from outside; `exchange` tries what carries rows between GPUs.

mod args;
mod exchange;
mod llama_bench;
mod load;
pub(crate) mod machine;
mod measure;
mod plan;
mod report;
pub(crate) mod stats;

use anyhow::{Context, bail};
use tokio::task::spawn_blocking;
use tramontane_kernels::{Compute, KvType};

pub(crate) use args::{BenchArgs, OutputArg};
use args::{BenchCommand, EngineArgs};
use llama_bench::{Given, Program, is_gguf};
use machine::{Arithmetic, Memory, ReadBandwidth, Reader};
use measure::{Engine, Others, Samples, measure, warm_up};
use plan::Plan;
use report::{EngineReport, MachineReport, ModelReport, Report, Sizes};

use crate::cost::ModelWeights;
use crate::expert_node::cores;
use crate::model::Model;
use crate::output::out;
use crate::placing::{place_once, until_held};
use crate::up::assemble::{default_nodes, forward, kv_block_bytes};
use crate::up::nodes;

/// Measures what was asked for.
pub(crate) async fn run(command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Engine(args) => engine(*args).await,
        BenchCommand::Serve(args) => load::run(*args).await,
        BenchCommand::Exchange(args) => spawn_blocking(move || exchange::run(&args)).await?,
    }
}

/// What the engine is made of, settled.
struct Setup {
    expert_nodes: usize,
    threads: usize,
    kv_type: KvType,
    kv_blocks: u32,
}

/// What came of a measurement.
struct Measured {
    samples: Vec<Samples>,
    plan: Plan,
    labels: Vec<String>,
    memory: Memory,
    read_bandwidth: Option<ReadBandwidth>,
}

async fn engine(args: EngineArgs) -> anyhow::Result<()> {
    let threads = args.threads.unwrap_or_else(cores);
    let kv_type = args.kv_type.into();
    let others = others(&args, threads, kv_type)?;
    let model = Model::open(&args.model)?;
    let plan = plan::plan(&args.work, model.config.context)?;
    let kv_blocks = plan.blocks_within(args.kv_memory, kv_block_bytes(&model.config, kv_type))?;
    let expert_nodes = args.expert_nodes.unwrap_or_else(|| default_nodes(&model));
    let setup = Setup { expert_nodes, threads, kv_type, kv_blocks };
    let compute = Compute::new(args.isa, threads);
    let measured = measure_model(&args, &model, &setup, compute.clone(), plan, others).await?;
    let arithmetic = machine::arithmetic(&compute);
    let report = report(&args, &model, &setup, measured, arithmetic)?;
    out(&match args.form() {
        OutputArg::Table => report::table(&report),
        OutputArg::Json => format!("{}\n", serde_json::to_string(&report)?),
    })
}

/// The other engines that were asked for, and what they are given.
fn others(args: &EngineArgs, threads: usize, kv_type: KvType) -> anyhow::Result<Others> {
    let model = match &args.model.model {
        _ if args.llama_bench.is_empty() => return Ok(Others { programs: Vec::new(), given: None }),
        Some(path) if is_gguf(path) => path.clone(),
        _ => bail!("--llama-bench: name a GGUF file by --model; others cannot open anything else"),
    };
    let given = Given { model, threads, kv_type: kv_type.name() };
    Ok(Others { programs: Program::find(&args.llama_bench)?, given: Some(given) })
}

/// Starts the cluster that `up` would, and measures on a thread of its own, as the engine has one.
async fn measure_model(
    args: &EngineArgs,
    model: &Model,
    setup: &Setup,
    compute: Compute,
    plan: Plan,
    others: Others,
) -> anyhow::Result<Measured> {
    let mut nodes = nodes::start(model, setup.expert_nodes, &compute).await?;
    let registry = nodes.registry.clone();
    place_once(model, registry.as_ref()).await?;
    nodes.until(until_held(model, registry.as_ref())).await?;
    let forward = forward(model, compute.clone(), setup.kv_type, setup.kv_blocks, nodes.exchange(), registry.watch())?;
    let (seed, repeats, buffer) = (args.work.seed, args.work.repeats, args.read_buffer);
    let work = spawn_blocking(move || {
        let mut engine = Engine { forward, seed };
        warm_up(&mut engine, &plan.cases)?;
        // Before the buffer, which is none of the engine's.
        let memory = machine::memory();
        let reader = (buffer > 0).then(|| Reader::new(compute.pool.clone(), buffer)).transpose();
        let reader = reader.with_context(|| format!("--read-buffer {buffer}"))?;
        let samples = measure(&mut engine, &others, &plan.cases, repeats, reader.as_ref())?;
        let read: Vec<f64> = samples.iter().flat_map(|samples| samples.read.iter().copied()).collect();
        let read_bandwidth = reader.and_then(|reader| reader.summary(&read));
        let labels = others.programs.iter().map(|program| program.label().to_owned()).collect();
        Ok(Measured { samples, plan, labels, memory, read_bandwidth })
    });
    let measured = nodes.until(async { work.await.context("the measuring thread")? }).await;
    nodes.stop().await;
    measured
}

fn report(
    args: &EngineArgs,
    model: &Model,
    setup: &Setup,
    measured: Measured,
    arithmetic: Option<Arithmetic>,
) -> anyhow::Result<Report> {
    let config = &model.config;
    let weights = ModelWeights::of(&model.checkpoint, config, model.quantize)?;
    let sizes = Sizes { config, weights: &weights, kv_type: setup.kv_type };
    let labels: Vec<&str> = measured.labels.iter().map(String::as_str).collect();
    let cases = measured.plan.cases.iter().zip(&measured.samples);
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        model: ModelReport {
            name: model.id.as_str().to_owned(),
            experts_type: model.experts.name.clone(),
            layers: config.layers,
            experts: config.experts,
            experts_per_token: config.experts_per_token,
            hidden: config.hidden,
            vocab: config.vocab,
        },
        engine: EngineReport {
            isa: args.isa.to_string(),
            threads: setup.threads,
            expert_nodes: setup.expert_nodes,
            kv_type: setup.kv_type.name(),
            repeats: args.work.repeats,
            seed: args.work.seed,
            chunk: args.work.chunk,
        },
        machine: MachineReport {
            cpu: machine::cpu(),
            cores: cores(),
            read_bandwidth: measured.read_bandwidth,
            arithmetic,
        },
        memory: measured.memory,
        cases: cases.filter_map(|(case, samples)| report::case(case, samples, &labels, &sizes)).collect(),
    })
}
