//! Expert nodes as child processes on loopback: started, watched, and gone with this process. A child that loses the
//! registry, which lives here, ends; so even SIGKILL of this process leaves none behind.

use std::collections::BTreeMap;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tramontane_cluster::registry::served::serve_registry;
use tramontane_cluster::registry::{EmbeddedRegistry, Registry};
use tramontane_router::NodeId;

use super::assemble::node_id;
use super::nodes::{Nodes, first_to_end};
use crate::args::ModelArgs;
use crate::model::Model;
use crate::progress::Progress;

/// How long a child may take to join: it hashes the model first.
const JOIN_TIMEOUT: Duration = Duration::from_secs(600);

/// Starts `count` children, and waits until all have joined.
pub(crate) async fn start(model: &Model, args: &ModelArgs, count: usize, threads: usize) -> anyhow::Result<Nodes> {
    let registry: Arc<dyn Registry> = Arc::new(EmbeddedRegistry::new(model.id.clone(), model.profile.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen on loopback for the registry")?;
    let url = format!("tramontane://{}", listener.local_addr()?);
    let (mut alive, mut serving) = (JoinSet::new(), JoinSet::new());
    let served = registry.clone();
    serving.spawn(async move {
        match serve_registry(served, listener, std::future::pending()).await {
            Ok(()) => anyhow!("the registry has stopped"),
            Err(error) => anyhow::Error::from(error).context("the registry"),
        }
    });
    for id in (0..count).map(node_id) {
        let child = spawn(&id, &url, args, threads).with_context(|| format!("cannot start expert node {id}"))?;
        alive.spawn(watch_over(id, child));
    }
    let addrs = joined(registry.as_ref(), count, &mut alive).await?;
    Ok(Nodes::over_grpc(registry, addrs, model.profile.clone(), alive, serving))
}

fn spawn(id: &NodeId, registry: &str, args: &ModelArgs, threads: usize) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["expert-node", "--cluster", "local", "--listen", "127.0.0.1:0", "--registry", registry]);
    command.args(["--id", id.as_str(), "--threads", &threads.to_string()]);
    if let Some(path) = &args.model {
        command.arg("--model").arg(path);
    }
    if let Some(dir) = &args.cache_dir {
        command.arg("--cache-dir").arg(dir).args(["--cache-bytes", &args.cache_bytes.to_string()]);
    }
    if let Some(quantize) = args.quantize {
        command.args(["--quantize", quantize.name()]);
    }
    // A group of its own: Ctrl-C is the parent's, which lets requests end before its nodes do.
    command.process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn()
}

/// Completes when the child ends, with how it did.
async fn watch_over(id: NodeId, mut child: Child) -> anyhow::Error {
    let pid = child.id().unwrap_or_default();
    tracing::info!(node = %id, pid, "expert node started");
    match child.wait().await {
        Ok(status) => anyhow!("expert node {id} (process {pid}) {}", ending(status)),
        Err(error) => anyhow::Error::from(error).context(format!("expert node {id} (process {pid})")),
    }
}

fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Waits until `count` nodes have joined; returns where they listen.
async fn joined(
    registry: &dyn Registry,
    count: usize,
    alive: &mut JoinSet<anyhow::Error>,
) -> anyhow::Result<BTreeMap<NodeId, String>> {
    let progress = Progress::start("starting expert nodes", count as u64);
    let mut watch = registry.watch();
    let all = watch.until(|view| {
        progress.set(view.nodes.len() as u64);
        view.nodes.len() == count
    });
    let view = tokio::select! {
        biased;
        error = first_to_end(alive) => return Err(error),
        view = tokio::time::timeout(JOIN_TIMEOUT, all) => view,
    };
    match view {
        Ok(view) => Ok(view?.nodes.values().map(|n| (n.id.clone(), n.addr.clone())).collect()),
        Err(_) => {
            let missing: Vec<_> =
                (0..count).map(node_id).filter(|id| !registry.watch().current().nodes.contains_key(id)).collect();
            bail!("after {} s these expert nodes have not joined: {missing:?}", JOIN_TIMEOUT.as_secs())
        }
    }
}
