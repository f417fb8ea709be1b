//! What operators can ask of a cluster.

use clap::{Args, Subcommand, ValueEnum};

use crate::tls::CertificateArgs;

/// Where a coordinator answers operators unless it is told otherwise.
pub(crate) const DEFAULT_ADMIN: &str = "127.0.0.1:7077";

pub(crate) const STATUS_EXAMPLES: &str = "\
Examples:
  tramontane status
  tramontane status --watch=5
  tramontane status --json | jq .findings
  tramontane status --endpoint c1:7077 || echo \"something is wrong: exit code $?\"";

pub(crate) const NODES_EXAMPLES: &str = "\
Examples:
  tramontane nodes
  tramontane nodes -o wide --watch
  tramontane nodes -o yaml";

pub(crate) const EXPERTS_EXAMPLES: &str = "\
Examples:
  tramontane experts
  tramontane experts -o wide
  tramontane experts --json | jq '.[] | select(.holders == [])'";

/// Which coordinator to ask, and how to print what it says.
#[derive(Clone, Debug, Args)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) form: FormArgs,
    /// Print again every N seconds [2 unless said] when something has changed, until Ctrl-C
    #[arg(
        short,
        long,
        value_name = "N",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3600),
        help_heading = "Output",
        global = true
    )]
    pub(crate) watch: Option<u64>,
}

/// The same of what is printed once.
#[derive(Clone, Debug, Args)]
pub(crate) struct FormArgs {
    /// HOST:PORT of a coordinator's admin listener
    #[arg(
        long,
        env = "TRAMONTANE_ADMIN_ENDPOINT",
        value_name = "ADDR",
        default_value = DEFAULT_ADMIN,
        help_heading = "Cluster",
        global = true
    )]
    pub(crate) endpoint: String,
    /// Print a table, a wider one, JSON, YAML, or (lists of keys and usage) CSV
    #[arg(
        short,
        long,
        env = "TRAMONTANE_OUTPUT",
        value_name = "FORM",
        default_value = "table",
        help_heading = "Output",
        global = true
    )]
    pub(crate) output: Output,
    /// The same as -o json
    #[arg(long, help_heading = "Output", global = true)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) tls: CertificateArgs,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Wide,
    Json,
    Yaml,
    Csv,
}

impl Output {
    /// Whether it is text to read.
    pub(crate) fn is_for_people(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

impl FormArgs {
    pub(crate) fn output(&self) -> Output {
        if self.json { Output::Json } else { self.output }
    }
}

#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  tramontane placement
  tramontane placement history
  tramontane placement diff 3 7
  tramontane placement restore --from-live")]
pub(crate) struct PlacementArgs {
    #[command(subcommand)]
    pub(crate) what: Option<PlacementCommand>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlacementCommand {
    /// List the placements that the coordinator has seen
    History,
    /// Say how one placement differs from another
    Diff {
        /// The older one's epoch
        from: u64,
        /// The newer one's epoch
        to: u64,
    },
    /// Write the newest placement that the coordinator has seen over an older one with which etcd came back
    Restore {
        /// That this is meant
        #[arg(long, required = true)]
        from_live: bool,
    },
}

#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  tramontane drain node-3
  tramontane drain node-3 --deadline 600
  tramontane drain node-3 --detach")]
pub(crate) struct DrainArgs {
    /// The node
    pub(crate) node: String,
    /// Have it leave although the other nodes have no room for what it holds
    #[arg(long)]
    pub(crate) force: bool,
    /// Do not wait until it has left
    #[arg(long)]
    pub(crate) detach: bool,
    /// Seconds to wait until it has left; it goes on leaving after them
    #[arg(long, visible_alias = "timeout", value_name = "SECONDS", default_value_t = 300)]
    pub(crate) deadline: u64,
    #[command(flatten)]
    pub(crate) form: FormArgs,
}

#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  tramontane cordon node-3
  tramontane uncordon node-3
  tramontane cordon node-3 --endpoint c1:7077 --json")]
pub(crate) struct CordonArgs {
    /// The node
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) form: FormArgs,
}

#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  tramontane rebalance --dry-run
  tramontane rebalance
  tramontane rebalance --timeout 1800
  tramontane rebalance --detach")]
pub(crate) struct RebalanceArgs {
    /// Only say what would move, why, and how many bytes
    #[arg(long, conflicts_with_all = ["detach", "timeout"])]
    pub(crate) dry_run: bool,
    /// Do not wait until everything has moved
    #[arg(long)]
    pub(crate) detach: bool,
    /// Seconds to wait until everything has moved; it goes on moving after them, and after Ctrl-C
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) form: FormArgs,
}

/// How a cluster is watched.
#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  tramontane top
  tramontane top --endpoint c1:7077,c2:7077 --every 5

Keys: q or Ctrl-C ends, p or space pauses, s or the arrow keys sort nodes by another column, r turns the order round.")]
pub(crate) struct TopArgs {
    /// HOST:PORT of coordinators' admin listeners; the first one's view of the nodes is shown
    #[arg(
        long,
        env = "TRAMONTANE_ADMIN_ENDPOINT",
        value_name = "ADDR",
        default_value = DEFAULT_ADMIN,
        value_delimiter = ',',
        num_args = 1
    )]
    pub(crate) endpoint: Vec<String>,
    /// Seconds between two looks
    #[arg(
        long,
        env = "TRAMONTANE_TOP_EVERY",
        value_name = "SECONDS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    pub(crate) every: u64,
    #[command(flatten)]
    pub(crate) tls: CertificateArgs,
}
