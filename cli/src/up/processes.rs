//! Expert nodes as child processes on loopback: started, started again when they end, and gone with this process. A child that
//! loses the registry, which lives here, ends; so even SIGKILL of this process leaves none behind.

use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tramontane_cluster::registry::served::serve_registry;
use tramontane_cluster::registry::{EmbeddedRegistry, Registry};
use tramontane_router::NodeId;

use super::assemble::node_id;
use super::nodes::{Nodes, first_to_end};
use crate::args::ModelArgs;
use crate::config;
use crate::model::Model;
use crate::progress::Progress;

/// What a child is.
const NODE: &str = "expert-node";
/// How long a child may take to join: it hashes the model first.
const JOIN_TIMEOUT: Duration = Duration::from_secs(600);
/// How long after its end a child is started again the first time; it doubles from end to end.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// How long it is at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A child that has run for so long was well: its next end is the first one again.
const WELL: Duration = Duration::from_secs(60);

/// How children are started.
struct Spawner {
    registry: String,
    model: ModelArgs,
    threads: usize,
    /// What is said of logs and traces.
    telemetry: Vec<String>,
}

/// Starts `count` children, and waits until all have joined.
pub(crate) async fn start(
    model: &Model,
    args: &ModelArgs,
    count: usize,
    threads: usize,
    telemetry: Vec<String>,
) -> anyhow::Result<Nodes> {
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
    let settled = watch::Sender::new(false);
    let spawner = Arc::new(Spawner { registry: url, model: args.clone(), threads, telemetry });
    for id in (0..count).map(node_id) {
        let child = spawner.spawn(&id)?;
        alive.spawn(spawner.clone().keep(id, child, settled.subscribe()));
    }
    joined(registry.as_ref(), count, &mut alive).await?;
    Ok(Nodes::over_grpc(registry, model.profile.clone(), alive, serving, settled))
}

impl Spawner {
    fn spawn(&self, id: &NodeId) -> anyhow::Result<Child> {
        let Self { registry, model, threads, telemetry } = self;
        let failed = || format!("cannot start expert node {id}");
        let mut command = Command::new(std::env::current_exe().with_context(failed)?);
        command.args([NODE, "--cluster", "local", "--listen", "127.0.0.1:0", "--registry", registry]);
        command.args(["--id", id.as_str(), "--threads", &threads.to_string()]).args(telemetry);
        if let Some(path) = &model.model {
            command.arg("--model").arg(path);
        }
        if let Some(dir) = &model.cache_dir {
            command.arg("--cache-dir").arg(dir).args(["--cache-bytes", &model.cache_bytes.to_string()]);
        }
        command.args(["--device", &model.device.to_string()]);
        if let Some(quantize) = model.quantize {
            command.args(["--quantize", quantize.name()]);
        }
        // A child is told all its flags: what variables set is meant for this process.
        config::variables(NODE).iter().for_each(|name| _ = command.env_remove(name));
        // A group of its own: Ctrl-C is the parent's, which lets requests end before its nodes do.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn().with_context(failed)
    }

    /// Starts `child` again whenever it ends. Completes, with how it ended, only while not all is `settled`: then its model or
    /// its flags are wrong, and it would end again.
    async fn keep(self: Arc<Self>, id: NodeId, mut child: Child, settled: watch::Receiver<bool>) -> anyhow::Error {
        let mut pause = FIRST_PAUSE;
        loop {
            let started = Instant::now();
            let end = end_of(&id, &mut child).await;
            if !*settled.borrow() {
                return end;
            }
            tracing::warn!("{end:#}; starting it again");
            pause = if started.elapsed() >= WELL { FIRST_PAUSE } else { pause };
            child = loop {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                match self.spawn(&id) {
                    Ok(child) => break child,
                    Err(error) => tracing::error!("{error:#}"),
                }
            };
        }
    }
}

/// Completes when the child ends, with how it did.
async fn end_of(id: &NodeId, child: &mut Child) -> anyhow::Error {
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

/// Waits until `count` nodes have joined.
async fn joined(registry: &dyn Registry, count: usize, alive: &mut JoinSet<anyhow::Error>) -> anyhow::Result<()> {
    let progress = Progress::start("starting expert nodes", count as u64);
    let mut watch = registry.watch();
    let all = watch.until(|view| {
        progress.set(view.nodes.len() as u64);
        view.nodes.len() == count
    });
    let view = tokio::select! {
        biased;
        error = first_to_end(alive) => return Err(error),
        view = timeout(JOIN_TIMEOUT, all) => view,
    };
    match view {
        Ok(view) => view.map(|_| ()).map_err(Into::into),
        Err(_) => {
            let missing: Vec<_> =
                (0..count).map(node_id).filter(|id| !registry.watch().current().nodes.contains_key(id)).collect();
            bail!("after {} s these expert nodes have not joined: {missing:?}", JOIN_TIMEOUT.as_secs())
        }
    }
}
