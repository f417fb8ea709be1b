//! The binary `tramontane`: the embedded cluster, the roles, what is done to checkpoints, measuring, talking with a server, and the
//! operator's commands.
//!
//! *Absent from here*: logic that a library crate should hold.
//!
//! Data goes to stdout, everything else to stderr. Exit codes: 0, 1 failure, 2 usage, 3 unreachable, 4 degraded.

mod admin;
mod args;
mod bench;
mod certs;
mod chat;
mod client;
mod config;
mod coordinator;
mod cost;
mod demo;
mod door;
mod engine;
mod expert_node;
mod files;
mod gateway;
mod hub;
mod metrics;
mod model;
mod models;
mod offer;
mod office;
mod output;
mod panics;
mod placing;
mod plan;
mod progress;
mod registry;
mod signals;
mod telemetry;
mod tls;
mod up;

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tramontane_cluster::admin::Cordon;

use crate::admin::Topic;
use crate::args::{Cli, Command};
use crate::telemetry::Telemetry;

/// The registry or another machine cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Unreachable(anyhow::Error);

/// How long the threads of a process that serves may take to end: longer than an aborted NCCL stream takes to rest.
const ENDING: Duration = Duration::from_secs(2);

const EXIT_FAILURE: u8 = 1;
const EXIT_UNREACHABLE: u8 = 3;
const EXIT_DEGRADED: u8 = 4;

fn main() -> ExitCode {
    panics::install();
    let cli = config::parse(std::env::args_os().collect()).unwrap_or_else(|error| error.exit());
    let serves = cli.command.traced().is_some();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(args::RUNTIME_THREADS)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let begun = runtime.block_on(async { Telemetry::begin(&cli.log, cli.command.traced()) });
            let telemetry = begun?;
            let outcome = runtime.block_on(async {
                // With a handler, a file over the system's limit of sizes is an error of the write, which names the file and has
                // it removed; without one the process would be killed, and leave it.
                let _handled = signal(SignalKind::from_raw(libc::SIGXFSZ))?;
                run(cli).await
            });
            telemetry.finish();
            // A thread that moves rows by NCCL has to leave it before the process ends. A blocked reader or a loading thread must
            // not keep it for longer than that may take.
            if serves {
                runtime.shutdown_timeout(ENDING)
            } else {
                runtime.shutdown_background()
            }
            outcome
        });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // One write, for a cluster's processes share their stderr.
            let line = format!("tramontane: {}\n", with_causes(&error));
            eprint!("{line}");
            ExitCode::from(if error.is::<Unreachable>() { EXIT_UNREACHABLE } else { EXIT_FAILURE })
        }
    }
}

/// Does what is asked; returns the exit code.
async fn run(Cli { command, log }: Cli) -> anyhow::Result<u8> {
    match command {
        Command::Up(args) => up::run(args, &log).await,
        Command::Coordinator(args) => coordinator::run(args).await,
        Command::ExpertNode(args) => expert_node::run(args).await,
        Command::Gateway(args) => gateway::run(args).await,
        Command::Certs(args) => certs::run(&args),
        Command::Models(args) => models::run(args.command).await,
        Command::Chat(args) => chat::run(args).await,
        Command::Bench(args) => bench::run(args.command).await,
        Command::Plan(args) => plan::run(&args),
        Command::Status(args) => return admin::tell(&args, Topic::Status).await,
        Command::Nodes(args) => return admin::tell(&args, Topic::Nodes).await,
        Command::Experts(args) => return admin::tell(&args, Topic::Experts).await,
        Command::Placement(args) => return admin::placement(&args).await,
        Command::Top(args) => return admin::top(&args).await,
        Command::Drain(args) => return admin::drain(&args).await,
        Command::Cordon(args) => return admin::cordon(&args, Cordon::Set).await,
        Command::Uncordon(args) => return admin::cordon(&args, Cordon::Lift).await,
        Command::Rebalance(args) => return admin::rebalance(&args).await,
        Command::Keys(args) => return admin::keys(&args).await,
        Command::Usage(args) => return admin::usage(&args).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut config::definition(), "tramontane", &mut script);
            output::out(&String::from_utf8_lossy(&script))
        }
    }?;
    Ok(0)
}

/// The error and its causes in one line, without those whose text stands there already.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string).filter(|cause| !cause.is_empty()) {
        if !text.contains(&cause) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
    }
    text
}
