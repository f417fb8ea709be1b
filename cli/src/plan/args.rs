//! The command line of `tramontane plan`.

use clap::Args;

use crate::args::{KvArg, QuantizeArg, number, threads, within};
use crate::bench::OutputArg;
use crate::models::TypeArg;

/// Machines of a kind, at most.
const MAX_MACHINES: usize = 100_000;
/// Sequences that are decoded together, at most.
const MAX_BATCH: usize = 1 << 20;

const EXAMPLES: &str = "\
Examples:
  # Mixtral in 4 bits on 4 machines that read 200 GB/s each
  tramontane plan --model mixtral-8x7b --type q4_0 --nodes 4 --bandwidth 200 --gops 4000 --nic 25

  # A file of yours, in one process on this machine, as `up` runs it and `bench engine` measures it
  tramontane plan --model mixtral-q4_0.gguf --embedded --measure --batch 1,8

  # Nothing but a configuration, and what the placement of 10,000 nodes takes
  tramontane plan --model ./config.json --type q4_k_m --nodes 10000 --replicas 2 --simulate -o json";

/// Computes from a model's configuration what a cluster of it would hold, how fast it could be at most, and what it would survive.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct PlanArgs {
    /// A known model's name (mixtral-8x7b, qwen3-30b-a3b, tiny), a `config.json`, a checkpoint, or `demo`
    #[arg(long, value_name = "MODEL", default_value = "mixtral-8x7b", help_heading = "Model")]
    pub(super) model: String,
    /// Types of the weights, where the model is no checkpoint that has them [default: q8_0]
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "quantize", help_heading = "Model")]
    pub(super) ty: Option<TypeArg>,
    /// Expert weights of a checkpoint converted at load
    #[arg(long, value_name = "TYPE", help_heading = "Model")]
    pub(super) quantize: Option<QuantizeArg>,

    /// Expert nodes, a machine each
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Cluster", value_parser = machines)]
    pub(super) nodes: usize,
    /// Coordinators, a machine each
    #[arg(long, value_name = "M", default_value_t = 2, help_heading = "Cluster", value_parser = machines)]
    pub(super) coordinators: usize,
    /// Nodes that hold each expert
    #[arg(long, value_name = "R", default_value_t = 2, help_heading = "Cluster", value_parser = machines)]
    pub(super) replicas: usize,
    /// Everything in one process on one machine instead, as `up` has it
    #[arg(long, conflicts_with_all = ["nodes", "coordinators", "replicas", "simulate"], help_heading = "Cluster")]
    pub(super) embedded: bool,
    /// Bytes of experts that a node may hold
    #[arg(long, value_name = "BYTES", default_value_t = 48 << 30, help_heading = "Cluster")]
    pub(super) node_memory: u64,
    /// Bytes for keys and values of a coordinator
    #[arg(long, value_name = "BYTES", default_value_t = 2 << 30, help_heading = "Cluster")]
    pub(super) kv_memory: u64,
    /// Type in which keys and values are cached
    #[arg(long, value_name = "TYPE", default_value = "f16", help_heading = "Cluster")]
    pub(super) kv_type: KvArg,

    /// 10⁹ bytes a second that a machine's memory gives
    #[arg(long, value_name = "GB/S", default_value_t = 100.0, help_heading = "Machine", value_parser = positive)]
    pub(super) bandwidth: f64,
    /// 10⁹ operations a second that a machine computes, in the types of the weights
    #[arg(long, value_name = "GOP/S", default_value_t = 2000.0, help_heading = "Machine", value_parser = positive)]
    pub(super) gops: f64,
    /// Measure both on this machine, as `bench engine` does
    #[arg(long, conflicts_with_all = ["bandwidth", "gops"], help_heading = "Machine")]
    pub(super) measure: bool,
    /// Threads that measure [default: all cores]
    #[arg(long, value_name = "N", requires = "measure", help_heading = "Machine", value_parser = threads)]
    pub(super) threads: Option<usize>,
    /// Of that bandwidth, what the engine gets (docs/BENCHMARKS.md)
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, help_heading = "Machine", value_parser = share)]
    pub(super) read_share: f64,
    /// Of those operations, what the engine gets (docs/BENCHMARKS.md)
    #[arg(long, value_name = "SHARE", default_value_t = 0.65, help_heading = "Machine", value_parser = share)]
    pub(super) compute_share: f64,
    /// 10⁹ bits a second of a machine's network, in each direction
    #[arg(long, value_name = "GBIT/S", default_value_t = 25.0, help_heading = "Machine", value_parser = positive)]
    pub(super) nic: f64,
    /// Microseconds from a layer's dispatch to its first answer, beside computing
    #[arg(long, value_name = "US", default_value_t = 100.0, help_heading = "Machine", value_parser = positive)]
    pub(super) latency: f64,
    /// Watts that a machine draws under load
    #[arg(long, value_name = "W", default_value_t = 400.0, help_heading = "Machine", value_parser = positive)]
    pub(super) watts: f64,

    /// Sequences that each coordinator decodes together
    #[arg(long, value_name = "N,…", default_value = "1,8,32,128", value_delimiter = ',', help_heading = "Work", value_parser = batch)]
    pub(super) batch: Vec<usize>,
    /// Positions that each of them has before
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Work")]
    pub(super) depth: u32,
    /// Tokens of a prompt
    #[arg(long, value_name = "P", default_value_t = 512, help_heading = "Work", value_parser = batch)]
    pub(super) prompt_tokens: usize,

    /// Solve the placement of all nodes, and that after a rack is lost, a node is lost, a node joins
    #[arg(long, help_heading = "Simulation")]
    pub(super) simulate: bool,
    /// Nodes of a rack, which is a zone of its own
    #[arg(long, value_name = "N", default_value_t = 40, help_heading = "Simulation", value_parser = machines)]
    pub(super) rack_size: usize,

    /// Form of the result
    #[arg(short, long, value_name = "FORM", default_value = "table", help_heading = "Output")]
    pub(super) output: OutputArg,
    /// The same as --output json
    #[arg(long, help_heading = "Output", conflicts_with = "output")]
    pub(super) json: bool,
}

impl PlanArgs {
    /// The form that was asked for.
    pub(super) const fn form(&self) -> OutputArg {
        if self.json { OutputArg::Json } else { self.output }
    }
}

fn machines(text: &str) -> Result<usize, String> {
    within(text, 1..=MAX_MACHINES)
}

fn batch(text: &str) -> Result<usize, String> {
    within(text, 1..=MAX_BATCH)
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, |x: f64| x.is_finite() && x > 0.0, "a number above 0")
}

fn share(text: &str) -> Result<f64, String> {
    number(text, |x: f64| x > 0.0 && x <= 1.0, "a number above 0, at most 1")
}
