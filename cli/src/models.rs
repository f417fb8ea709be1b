//! `tramontane models …`: what an operator does to checkpoints. The work is `tramontane_model::tools`' and `hub`'s; here it is asked
//! for, and its results are printed.

mod args;
mod print;
mod pull;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tramontane_kernels::Pool;
use tramontane_model::checkpoint::Checkpoint;
use tramontane_model::manifest::{Manifest, ManifestError};
use tramontane_model::tools::{self, Report, SynthOptions};
use tramontane_router::placement::{ExpertSize, NodeRoom, Problem, solve};
use tramontane_router::{ExpertId, ModelId};

use args::{InspectArgs, ModelsCommand, QuantizeArgs, SplitArgs, SynthArgs, VerifyArgs};
pub(crate) use args::{ModelsArgs, TypeArg};

use crate::demo;
use crate::expert_node::cores;
use crate::output::{bytes, out};
use crate::progress::Progress;
use crate::up::assemble::node_id;

/// Does what was asked. `Err` is also what `verify` finds wrong.
pub(crate) async fn run(command: ModelsCommand) -> anyhow::Result<()> {
    match command {
        ModelsCommand::Pull(args) => pull::pull(&args).await,
        ModelsCommand::List(args) => pull::show(&args),
        ModelsCommand::Quantize(args) => quantize(&args),
        ModelsCommand::Synth(args) => synth(&args),
        ModelsCommand::Split(args) => split(&args),
        ModelsCommand::Inspect(args) => inspect(&args),
        ModelsCommand::Verify(args) => verify(&args),
    }
}

/// A checkpoint and what it is called; `path` is `None` for the demo model.
struct Source {
    name: String,
    path: Option<PathBuf>,
    checkpoint: Checkpoint,
}

impl Source {
    fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new(demo::WORD) {
            let checkpoint = Checkpoint::from_files(&demo::FILES)?;
            return Ok(Self { name: demo::NAME.to_owned(), path: None, checkpoint });
        }
        let checkpoint = Checkpoint::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { name: crate::model::name_of(path), path: Some(path.to_owned()), checkpoint })
    }
}

/// Runs `work` with a bar that it moves.
fn with_progress<T>(what: &'static str, work: impl FnOnce(tools::OnProgress<'_>) -> T) -> T {
    let mut progress: Option<Progress> = None;
    work(&mut |done, total| progress.get_or_insert_with(|| Progress::start(what, total)).set(done))
}

fn quantize(args: &QuantizeArgs) -> anyhow::Result<()> {
    let source = Source::open(&args.input)?;
    let pool = Pool::new(args.threads.unwrap_or_else(cores));
    with_progress("quantizing", |progress| {
        tools::quantize(&source.checkpoint, &source.name, args.ty.recipe(), &args.output, &pool, progress)
    })?;
    written(&args.output)
}

fn synth(args: &SynthArgs) -> anyhow::Result<()> {
    let (like, recipe) = (args.like.like(), args.ty.recipe());
    let options = SynthOptions { like, layers: args.layers, recipe, seed: args.seed };
    with_progress("writing", |progress| tools::synth(options, &args.output, progress))?;
    written(&args.output)
}

fn split(args: &SplitArgs) -> anyhow::Result<()> {
    let dense = Source::open(&args.dense)?;
    with_progress("splitting", |progress| tools::split(&dense.checkpoint, args.experts, &args.output, progress))?;
    written(&args.output)
}

fn written(path: &Path) -> anyhow::Result<()> {
    let size = std::fs::metadata(path).with_context(|| path.display().to_string())?.len();
    out(&format!("{}  {}\n", path.display(), bytes(size)))
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let source = Source::open(&args.path)?;
    let report = tools::inspect(&source.checkpoint);
    let nodes = match args.expert_nodes {
        None => Vec::new(),
        Some(count) => shares(&source.name, &report, count)?,
    };
    out(&if args.json { print::report_json(&report, &nodes)? } else { print::report(&report, &nodes) })
}

/// What one expert node would hold.
#[derive(Debug, serde::Serialize)]
struct Share {
    node: String,
    experts: usize,
    bytes: u64,
}

/// What each of `count` expert nodes without bounds would hold, by the placement that `up` would make.
fn shares(name: &str, report: &Report, count: usize) -> anyhow::Result<Vec<Share>> {
    if let Some(problem) = &report.problem {
        bail!("its experts cannot be placed: {problem}");
    }
    let sizes: BTreeMap<ExpertId, u64> = report
        .layers
        .iter()
        .flat_map(|layer| layer.experts.iter().map(|e| (ExpertId::new(layer.layer as u32, e.expert as u32), e.bytes)))
        .collect();
    let room = |i: usize| NodeRoom::open(node_id(i), u64::MAX);
    let problem = Problem {
        model: ModelId::from(name.to_owned()),
        experts: sizes.iter().map(|(&id, &bytes)| ExpertSize { id, bytes }).collect(),
        nodes: (0..count).map(room).collect(),
        replicas: 1,
    };
    let placement = solve(&problem, None)?;
    let share = |i: usize| {
        let node = node_id(i);
        let held = placement.replicas.iter().filter(|(_, nodes)| nodes.contains(&node));
        let held: Vec<u64> = held.filter_map(|(id, _)| sizes.get(id)).copied().collect();
        Share { node: node.to_string(), experts: held.len(), bytes: held.iter().sum() }
    };
    Ok((0..count).map(share).collect())
}

fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let source = Source::open(&args.path)?;
    let mut problems = Vec::new();
    let manifest = match source.path.as_deref().map(|path| Manifest::load(path, &source.checkpoint)) {
        None => None,
        Some(Ok(manifest)) => manifest,
        // Of other files, or damaged: a new one may be what is asked for.
        Some(Err(ManifestError::Stale { .. } | ManifestError::Malformed { .. })) if args.write_manifest => None,
        Some(Err(error)) => {
            problems.push(error.to_string());
            None
        }
    };
    let pulled = source.path.as_deref().and_then(crate::hub::record_of);
    if let Some((record, folder)) = &pulled {
        problems.extend(with_progress("comparing sums", |progress| record.check(folder, progress)));
    }
    let known = manifest.is_some();
    let verdict = with_progress("reading", |progress| tools::verify(&source.checkpoint, manifest.as_ref(), progress));
    problems.extend(verdict.problems);
    if !problems.is_empty() {
        bail!("{} problems:\n  {}", problems.len(), problems.join("\n  "));
    }
    let manifest = verdict.manifest;
    let license = source.checkpoint.license().or_else(|| pulled.as_ref()?.0.license.clone());
    let sums = if pulled.is_some() { "; its files are as the hub gave them" } else { "" };
    let against = match (&source.path, args.write_manifest) {
        (Some(path), true) => {
            manifest.store(path)?;
            format!("manifest written to {}", Manifest::path_for(path).display())
        }
        (None, true) => bail!("the demo model is in this binary, and has no place for a manifest"),
        _ if known => "as its manifest says".to_owned(),
        _ => "no manifest to compare with".to_owned(),
    };
    let license = license.unwrap_or_else(|| "not named: ask its makers what you may do with it".to_owned());
    out(&format!(
        "{} tensors are sound; {against}{sums}\nweights {}\nlicence {license}\n",
        verdict.tensors,
        manifest.root()
    ))
}
