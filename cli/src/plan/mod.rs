//! `tramontane plan`: what a cluster of a model would hold, how fast it could be at most, what it would survive; from a configuration
//! alone. `estimate` and `failures` are pure; `simulate` asks the cluster's own solver.

mod args;
mod estimate;
mod failures;
mod report;
mod simulate;
mod subject;

use anyhow::Context;
use tramontane_kernels::{Compute, Isa};

pub(crate) use args::PlanArgs;
use estimate::{Estimator, Machine, Shape};
use failures::failures;
use report::{MachineReport, ModelReport, Report};
use simulate::{Scale, simulate};
use subject::Subject;

use crate::bench::OutputArg;
use crate::bench::machine::{Reader, arithmetic};
use crate::bench::stats::Summary;
use crate::expert_node::cores;
use crate::output::out;

/// Bytes that are read to find the bandwidth: many times a cache.
const READ_BUFFER: u64 = 1 << 30;
/// How often.
const PASSES: usize = 7;

/// Computes what was asked for.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let subject = Subject::of(args)?;
    let (bandwidth, gops) = if args.measure { measure(args, &subject)? } else { (args.bandwidth, args.gops) };
    let shape = match args.embedded {
        true => Shape::Embedded,
        false => Shape::Cluster { nodes: args.nodes, coordinators: args.coordinators },
    };
    let machine = Machine {
        bandwidth: bandwidth * 1e9 * args.read_share,
        operations: gops * 1e9 * args.compute_share,
        nic: args.nic * 1e9 / 8.0,
        latency: args.latency / 1e6,
        watts: args.watts,
    };
    let estimator = Estimator { subject: &subject, machine, shape, kv_type: args.kv_type.into() };
    let memory = estimator.memory(args.replicas, args.node_memory, args.kv_memory);
    let mut rates = vec![estimator.prefill(args.prompt_tokens)];
    rates.extend(args.batch.iter().map(|&batch| estimator.decode(batch, args.depth as usize)));
    let scale =
        Scale { nodes: args.nodes, rack_size: args.rack_size, replicas: args.replicas, node_memory: args.node_memory };
    let simulation = args.simulate.then(|| simulate(&subject, scale)).transpose()?;
    let config = &subject.config;
    let report = Report {
        model: ModelReport {
            name: subject.name.clone(),
            types: subject.types.clone(),
            layers: config.layers,
            experts: config.experts,
            experts_per_token: config.experts_per_token,
        },
        machine: MachineReport {
            machines: shape.machines(),
            measured: args.measure,
            gigabytes_per_second: bandwidth,
            read_share: args.read_share,
            gigaoperations_per_second: gops,
            compute_share: args.compute_share,
        },
        failures: match shape {
            Shape::Embedded => Vec::new(),
            Shape::Cluster { nodes, coordinators } => failures(nodes, args.rack_size, coordinators, &memory),
        },
        network: estimator.network(),
        memory,
        rates,
        simulation,
    };
    out(&match args.form() {
        OutputArg::Table => report::table(&report),
        OutputArg::Json => format!("{}\n", serde_json::to_string(&report)?),
    })
}

/// What this machine gives: 10⁹ bytes and 10⁹ operations a second, medians.
fn measure(args: &PlanArgs, subject: &Subject) -> anyhow::Result<(f64, f64)> {
    let compute = Compute::new(Isa::detect(), args.threads.unwrap_or_else(cores));
    let reader = Reader::new(compute.pool.clone(), READ_BUFFER).context("no memory to measure with")?;
    let passes: Vec<f64> = (0..PASSES).map(|_| reader.pass()).collect();
    let read = Summary::of(&passes).context("nothing was read")?;
    let units = arithmetic(&compute)
        .context("--measure: this CPU's arithmetic cannot be measured; give --bandwidth and --gops")?;
    let unit = if subject.quantized { units.int8_gigaops } else { units.float_gigaflops };
    Ok((read.median, unit.median))
}
