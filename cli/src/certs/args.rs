//! What can be asked of the certificate authority.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tramontane_cluster::tls::Role;

/// Days, at most: a century.
const MAX_DAYS: i64 = 36_525;

/// Makes the certificates with which a cluster's processes know one another.
#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  tramontane certs init --dir certs
  tramontane certs issue coordinator --cluster prod --dir certs
  tramontane certs issue expert-node --cluster prod --dir certs
  tramontane certs issue gateway --cluster prod --dir certs --host api.example.com
  tramontane certs issue admin --cluster prod --dir certs --days 7
  tramontane certs list --dir certs
  tramontane certs rotate --dir certs

  # A new authority, in three steps, each followed by copying the files to where they are used
  tramontane certs rotate --authority --dir certs
  tramontane certs rotate --dir certs
  tramontane certs rotate --retire --dir certs")]
pub(crate) struct CertsArgs {
    #[command(subcommand)]
    pub(crate) command: CertsCommand,
    /// Folder of the authority and of what it has signed
    #[arg(long, env = "TRAMONTANE_CERTS_DIR", value_name = "DIR", default_value = "certs", global = true)]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Make an authority: ca.pem, which all trust, and ca.key, which stays where it is
    Init {
        /// Its name, for people
        #[arg(long, default_value = "tramontane")]
        name: String,
        /// Days for which it holds
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=MAX_DAYS))]
        days: u32,
    },
    /// Sign a certificate: NAME.pem and NAME.key
    Issue(IssueArgs),
    /// Sign certificates anew, with new keys, as they were
    Rotate(RotateArgs),
    /// List what has been signed, and when it ends
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct IssueArgs {
    /// What its owner may do: coordinator, expert-node, gateway, admin
    pub(crate) role: Role,
    /// The cluster in which it holds
    #[arg(long, env = "TRAMONTANE_CLUSTER", default_value = "local")]
    pub(crate) cluster: String,
    /// The files' name [default: the role]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Host name or address that it is for too, where other programs than ours look at it; may be repeated
    #[arg(long = "host", value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
    /// Days for which it holds
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=MAX_DAYS))]
    pub(crate) days: u32,
}

#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    /// Those to sign anew [default: all]
    pub(crate) names: Vec<String>,
    /// Days for which they hold
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=MAX_DAYS))]
    pub(crate) days: u32,
    /// Make a new authority instead, which is trusted beside the one before and signs from now on
    #[arg(long, conflicts_with_all = ["names", "retire"])]
    pub(crate) authority: bool,
    /// Trust the newest authority only, once nothing is in use that an older one has signed
    #[arg(long, conflicts_with = "names")]
    pub(crate) retire: bool,
}
