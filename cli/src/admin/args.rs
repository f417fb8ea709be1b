//! What operators can ask of a cluster.

use clap::{Args, Subcommand, ValueEnum};

use crate::tls::CertificateArgs;

/// Where a coordinator answers operators unless it is told otherwise.
pub(crate) const DEFAULT_ADMIN: &str = "127.0.0.1:7077";

/// Whom to ask, and how to print what comes.
#[derive(Clone, Debug, Args)]
pub(crate) struct AskArgs {
    /// HOST:PORT of a coordinator's admin listener
    #[arg(long, env = "TRAMONTANE_ADMIN_ENDPOINT", value_name = "ADDR", default_value = DEFAULT_ADMIN, global = true)]
    pub(crate) endpoint: String,
    /// Print a table, a wider one, or JSON
    #[arg(short, long, value_name = "FORM", default_value = "table", global = true)]
    pub(crate) output: Output,
    /// The same as -o json
    #[arg(long, conflicts_with = "output", global = true)]
    pub(crate) json: bool,
    /// Print again every two seconds, until Ctrl-C
    #[arg(short, long, global = true)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) tls: CertificateArgs,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Wide,
    Json,
}

impl AskArgs {
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
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) deadline: u64,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  tramontane rebalance --dry-run")]
pub(crate) struct RebalanceArgs {
    /// Only say what would move, why, and how many bytes. (The leader moves it by itself; nobody has to ask for that.)
    #[arg(long, required = true)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}
