//! The command line: what can be asked, and what stands when nothing is said, neither there nor in a file ([`crate::config`]).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tramontane_kernels::KvType;
use tramontane_model::device::DeviceName;
use tramontane_model::weights::Quantize;

use crate::admin::{
    AskArgs, CordonArgs, DrainArgs, EXPERTS_EXAMPLES, KeysArgs, NODES_EXAMPLES, PlacementArgs, RebalanceArgs,
    STATUS_EXAMPLES, TopArgs, UsageArgs,
};
use crate::bench::BenchArgs;
use crate::certs::CertsArgs;
use crate::chat::ChatArgs;
use crate::coordinator::CoordinatorArgs;
use crate::expert_node::NodeArgs;
use crate::gateway::GatewayArgs;
use crate::metrics::MetricsArgs;
use crate::models::ModelsArgs;
use crate::plan::PlanArgs;
use crate::telemetry::{LogArgs, Service, TraceArgs};
use crate::tls::FrontTlsArgs;

/// Threads that carry bytes; the computing ones are the pool's.
pub(crate) const RUNTIME_THREADS: usize = 2;
/// Expert nodes of an embedded cluster, at most.
pub(crate) const MAX_EXPERT_NODES: usize = 256;
/// Nodes that should hold each expert, at most.
const MAX_REPLICAS: usize = 16;

const EXAMPLES: &str = "\
Examples:
  # Serve the demo model over HTTP, on 127.0.0.1:8080
  tramontane up

  # Complete a text with the demo model, in one process
  tramontane up --prompt \"The capital of France is\"

  # The same, each of 8 expert nodes a process of its own
  tramontane up --expert-nodes 8 --processes --prompt \"The capital of France is\"

  # Ask a Mixtral checkpoint of your own, experts quantised at load
  tramontane up --model ./Mixtral-8x7B-Instruct-v0.1 --quantize q8_0 --chat --prompt \"Why does the wind blow?\"

  # Write the demo model as GGUF
  tramontane models quantize --type q4_k_m demo breeze.gguf";

const UP_EXAMPLES: &str = "\
Examples:
  tramontane up --http 127.0.0.1:8000
  tramontane up --prompt \"The capital of France is\"
  tramontane up --chat --prompt \"What is the capital of Peru?\" --json --logprobs 3
  tramontane up --expert-nodes 8 --processes --prompt \"The capital of France is\" --expert-stats
  tramontane up --model ./Mixtral-8x7B-v0.1 --quantize q4_0 --prompt \"Once upon a time\" --temperature 0.8 --seed 7";

/// Serves open Mixture-of-Experts models on a cluster of your own.
#[derive(Debug, Parser)]
#[command(name = "tramontane", version, before_help = EXAMPLES, max_term_width = 120)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole cluster on this machine: coordinator, registry and expert nodes
    Up(UpArgs),
    /// Run one coordinator of a cluster: an engine and its front door
    Coordinator(CoordinatorArgs),
    /// Run one expert node of a cluster
    ExpertNode(NodeArgs),
    /// Run a front door to a cluster's coordinators, whose requests outlive them
    Gateway(GatewayArgs),
    /// Say how a cluster fares; exit code 0 when all is well, 4 when it is not
    #[command(before_help = STATUS_EXAMPLES)]
    Status(AskArgs),
    /// List a cluster's nodes
    #[command(before_help = NODES_EXAMPLES)]
    Nodes(AskArgs),
    /// Show a cluster's experts: how many rows each receives, who holds it
    #[command(before_help = EXPERTS_EXAMPLES)]
    Experts(AskArgs),
    /// Show which nodes should hold which experts, now and before
    Placement(PlacementArgs),
    /// Watch a cluster live: health, load, nodes, the hottest experts
    Top(TopArgs),
    /// Have a node get no new experts; it keeps what it holds
    Cordon(CordonArgs),
    /// Have a cordoned node get experts again
    Uncordon(CordonArgs),
    /// Have a node leave once others hold what it holds
    Drain(DrainArgs),
    /// Move experts to where they should be, at once
    Rebalance(RebalanceArgs),
    /// Make, list and revoke API keys
    Keys(KeysArgs),
    /// Say what API keys have used
    Usage(UsageArgs),
    /// Print a script that completes this program's commands in a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Make the certificates with which a cluster's processes know one another
    Certs(CertsArgs),
    /// Pull, list, convert, make up, cut, look into and check checkpoints
    Models(ModelsArgs),
    /// Talk with a model that is served
    Chat(ChatArgs),
    /// Measure how fast a model runs on this machine
    Bench(BenchArgs),
    /// Compute what a cluster would hold, how fast it would be, and what it would survive
    Plan(Box<PlanArgs>),
}

impl Command {
    /// What it is called in traces, and where they go; `None` for what serves nobody.
    pub(crate) fn traced(&self) -> Option<(Service, &TraceArgs)> {
        let (name, id, args) = match self {
            Self::Up(args) => ("up", None, &args.traces),
            Self::Coordinator(args) => ("coordinator", args.id.clone(), &args.traces),
            Self::ExpertNode(args) => ("expert-node", args.id.clone(), &args.traces),
            Self::Gateway(args) => ("gateway", None, &args.traces),
            _ => return None,
        };
        Some((Service { name, id }, args))
    }
}

/// Runs a whole cluster on this machine: serves until Ctrl-C, or completes a prompt.
#[derive(Debug, Args)]
#[command(before_help = UP_EXAMPLES)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) prompt: PromptArgs,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
    #[command(flatten)]
    pub(crate) metrics: MetricsArgs,
    #[command(flatten)]
    pub(crate) traces: TraceArgs,

    /// Expert nodes [default: one for each expert of a layer, at most 8]
    #[arg(long, env = "TRAMONTANE_EXPERT_NODES", value_name = "N", help_heading = "Cluster", value_parser = nodes)]
    pub(crate) expert_nodes: Option<usize>,
    /// Make every expert node a process of its own, joined over gRPC on loopback
    #[arg(long, env = "TRAMONTANE_PROCESSES", help_heading = "Cluster")]
    pub(crate) processes: bool,
    /// Threads that compute, in each process [default: all cores; with --processes the cores shared out]
    #[arg(long, env = "TRAMONTANE_THREADS", value_name = "N", help_heading = "Cluster", value_parser = threads)]
    pub(crate) threads: Option<usize>,
    /// Nodes that hold each expert [default: 1]
    #[arg(long, env = "TRAMONTANE_REPLICAS", value_name = "R", help_heading = "Cluster", value_parser = replicas, requires = "processes")]
    pub(crate) replicas: Option<usize>,
    /// Have one dispatch in N computed by a second node too; 0: none; 1: all, and answers are used only when two nodes agree to the bit [default: 256]
    #[arg(long, env = "TRAMONTANE_AUDIT", value_name = "N", help_heading = "Cluster", requires = "processes")]
    pub(crate) audit: Option<u32>,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
}

/// The cache of keys and values.
#[derive(Debug, Args)]
pub(crate) struct KvArgs {
    /// Type in which keys and values are cached
    #[arg(long, env = "TRAMONTANE_KV_TYPE", value_name = "TYPE", default_value = "f16", help_heading = "Engine")]
    pub(crate) kv_type: KvArg,
    /// Bytes of memory for keys and values
    #[arg(long, env = "TRAMONTANE_KV_MEMORY", value_name = "BYTES", default_value_t = 2 << 30, help_heading = "Engine")]
    pub(crate) kv_memory: u64,
}

/// Which model, and how it is held.
#[derive(Clone, Debug, Args)]
pub(crate) struct ModelArgs {
    /// Folder of a checkpoint in Hugging Face's layout, a GGUF file, a model that was pulled (ORG/NAME[@COMMIT][:TYPE], in TRAMONTANE_MODELS_DIR), or the word `demo` [default: the demo model, which is in this binary]
    #[arg(long, env = "TRAMONTANE_MODEL", value_name = "PATH", help_heading = "Model", value_parser = crate::model::named)]
    pub(crate) model: Option<PathBuf>,
    /// Convert expert weights at load
    #[arg(long, env = "TRAMONTANE_QUANTIZE", value_name = "TYPE", help_heading = "Model")]
    pub(crate) quantize: Option<QuantizeArg>,
    /// Where the model is computed: `cpu`, by the numeric contract; `cuda:N`, the Nth GPU through candle; `candle-cpu`, the GPU's code on the cores, slow
    #[arg(long, env = "TRAMONTANE_DEVICE", value_name = "DEVICE", default_value = "cpu", help_heading = "Model")]
    pub(crate) device: DeviceName,
    /// Folder in which weights are kept as this program lays them out, and mapped from at the next start [default: none]
    #[arg(long, env = "TRAMONTANE_CACHE_DIR", value_name = "DIR", help_heading = "Model")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Bytes that the cache may hold; the least recently used weights make room
    #[arg(long, env = "TRAMONTANE_CACHE_BYTES", value_name = "BYTES", default_value_t = 256 << 30, help_heading = "Model")]
    pub(crate) cache_bytes: u64,
}

/// What to complete, and how.
#[derive(Debug, Args)]
pub(crate) struct PromptArgs {
    /// Text to complete; its completion goes to stdout, and nothing is served
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    pub(crate) prompt: Option<String>,
    /// Take the prompt as a user's message, in the model's chat template
    #[arg(long, requires = "prompt", help_heading = "Prompt")]
    pub(crate) chat: bool,
    /// Tokens to generate, at most
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Prompt", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,
    /// Go on after the end-of-sequence token
    #[arg(long, requires = "prompt", help_heading = "Prompt")]
    pub(crate) ignore_eos: bool,

    /// Randomness; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0, help_heading = "Sampling", value_parser = temperature)]
    pub(crate) temperature: f32,
    /// Choose among the K most likely tokens only; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Sampling")]
    pub(crate) top_k: u32,
    /// Choose among the most likely tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, help_heading = "Sampling", value_parser = top_p)]
    pub(crate) top_p: f32,
    /// The same seed gives the same text
    #[arg(long, value_name = "S", default_value_t = 0, help_heading = "Sampling")]
    pub(crate) seed: u64,

    /// Print one JSON object: token ids, text, usage; without --prompt, the addresses once it serves
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
    /// With --json: log-probabilities of each token and of the K most likely ones
    #[arg(long, value_name = "K", requires_all = ["json", "prompt"], help_heading = "Output", value_parser = clap::value_parser!(u32).range(0..=20))]
    pub(crate) logprobs: Option<u32>,
    /// Say how many rows each expert received (on stderr; with --json in the object)
    #[arg(long, requires = "prompt", help_heading = "Output")]
    pub(crate) expert_stats: bool,
}

/// Where it serves, and whom.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Address for HTTP; port 0 takes a free one
    #[arg(
        long,
        env = "TRAMONTANE_HTTP",
        value_name = "ADDR",
        default_value = "127.0.0.1:8080",
        help_heading = "Serving"
    )]
    pub(crate) http: SocketAddr,
    /// Address for gRPC; port 0 takes a free one [default: no gRPC]
    #[arg(long, env = "TRAMONTANE_GRPC", value_name = "ADDR", help_heading = "Serving")]
    pub(crate) grpc: Option<SocketAddr>,
    /// File of API keys, a line each: NAME:KEY, or NAME: and the key's SHA-256 in hex (printf %s KEY | sha256sum), then what it may (rpm=N tpm=N monthly-tokens=N expires=YYYY-MM-DD models=A,B). With it, only who has a key is answered
    #[arg(long, env = "TRAMONTANE_API_KEYS_FILE", value_name = "FILE", help_heading = "Serving")]
    pub(crate) api_keys_file: Option<PathBuf>,
    /// Answer only who has a key, also while `tramontane keys create` has made none [default: from the first key on]
    #[arg(long, env = "TRAMONTANE_REQUIRE_API_KEYS", help_heading = "Serving")]
    pub(crate) require_api_keys: bool,
    /// Serve on an address that others can reach although there are no keys
    #[arg(long, env = "TRAMONTANE_INSECURE", help_heading = "Serving")]
    pub(crate) insecure: bool,
    /// Leave out the console, the page at /ui
    #[arg(long, env = "TRAMONTANE_NO_UI", help_heading = "Serving")]
    pub(crate) no_ui: bool,
    #[command(flatten)]
    pub(crate) tls: FrontTlsArgs,
}

/// Types that expert weights can be converted to.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum QuantizeArg {
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

impl QuantizeArg {
    /// As the flag wants it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// What it asks for.
    pub(crate) const fn quantize(self) -> Quantize {
        match self {
            Self::Q8_0 => Quantize::Q8_0,
            Self::Q4_0 => Quantize::Q4_0,
        }
    }
}

impl ModelArgs {
    pub(crate) fn quantize(&self) -> Quantize {
        self.quantize.map_or(Quantize::AsStored, QuantizeArg::quantize)
    }
}

/// Types that keys and values can be cached in.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum KvArg {
    F16,
    F32,
}

impl From<KvArg> for KvType {
    fn from(arg: KvArg) -> Self {
        match arg {
            KvArg::F16 => Self::F16,
            KvArg::F32 => Self::F32,
        }
    }
}

pub(crate) fn nodes(text: &str) -> Result<usize, String> {
    within(text, 1..=MAX_EXPERT_NODES)
}

pub(crate) fn threads(text: &str) -> Result<usize, String> {
    within(text, 1..=512)
}

pub(crate) fn host_and_port(text: &str) -> Result<String, String> {
    let sound = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', '@', ' ']) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    sound.then(|| text.to_owned()).ok_or_else(|| "HOST:PORT is wanted".to_owned())
}

pub(crate) fn replicas(text: &str) -> Result<usize, String> {
    within(text, 1..=MAX_REPLICAS)
}

pub(crate) fn within(text: &str, range: std::ops::RangeInclusive<usize>) -> Result<usize, String> {
    let (low, high) = (range.start(), range.end());
    text.parse().ok().filter(|n| range.contains(n)).ok_or_else(|| format!("a number from {low} to {high} is wanted"))
}

fn temperature(text: &str) -> Result<f32, String> {
    number(text, |t: f32| (0.0..=2.0).contains(&t), "a number from 0 to 2")
}

fn top_p(text: &str) -> Result<f32, String> {
    number(text, |p: f32| p > 0.0 && p <= 1.0, "a number above 0, at most 1")
}

pub(crate) fn number<T: FromStr + Copy>(text: &str, valid: impl Fn(T) -> bool, wanted: &str) -> Result<T, String> {
    text.parse().ok().filter(|&x| valid(x)).ok_or_else(|| format!("{wanted} is wanted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_refused() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["tramontane", "up", "--prompt", "x"], args].concat());
        assert!(parse(&[]).is_ok());
        for bad in [
            ["--temperature", "-1"],
            ["--temperature", "NaN"],
            ["--temperature", "1e400"],
            ["--top-p", "0"],
            ["--top-p", "1.1"],
            ["--max-tokens", "0"],
            ["--expert-nodes", "0"],
            ["--expert-nodes", "257"],
            ["--threads", "0"],
            ["--logprobs", "3"],
            ["--http", "localhost"],
            ["--grpc", "50051"],
            ["--quantize", "q3_k"],
            ["--kv-type", "bf16"],
        ] {
            let error = parse(&bad).expect_err(bad[1]);
            assert_eq!(error.exit_code(), 2, "{bad:?}");
        }
        assert!(parse(&["--json", "--logprobs", "20"]).is_ok());
        assert!(parse(&["--json", "--logprobs", "21"]).is_err());
    }
}
