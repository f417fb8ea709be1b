//! An engine offered to gateways: served on an address of its own, announced, and withdrawn when what they have there has ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tramontane_cluster::ServerError;
use tramontane_cluster::engine::grpc::serve_engine;
use tramontane_cluster::engine::{Engine, InProcessEngine, Phase};
use tramontane_cluster::registry::RegistryError;
use tramontane_cluster::registry::directory::{Announcement, Directory, EngineId, EngineRecord};
use tramontane_cluster::tls::Security;
use tramontane_router::NumericProfile;

use crate::registry::{RegistryArgs, reached_at, take_name};
use crate::signals::Signals;

/// How often it is looked whether the engine drains, or has nothing any more.
const LOOK: Duration = Duration::from_millis(20);
/// How long gateways' requests have to end once the engine drains; then they are taken up elsewhere.
const PATIENCE: Duration = Duration::from_secs(45);

/// Where gateways will reach the engine.
pub(crate) struct Listener {
    listener: TcpListener,
    /// `host:port`.
    addr: String,
    security: Security,
}

/// What an engine is offered with.
pub(crate) struct Offer<'a> {
    pub(crate) id: EngineId,
    pub(crate) listener: Listener,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) registry: &'a RegistryArgs,
}

/// An engine that is offered.
pub(crate) struct Offered {
    engine: InProcessEngine,
    record: EngineRecord,
    announcement: Box<dyn Announcement>,
    directory: Arc<dyn Directory>,
    served: JoinHandle<Result<(), ServerError>>,
    stop: oneshot::Sender<()>,
}

impl Listener {
    /// Listens on `addr`, for gateways that reach it at `advertised`, where that is another address.
    pub(crate) async fn bind(addr: SocketAddr, advertised: Option<String>, security: Security) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))?;
        let addr = reached_at(advertised, listener.local_addr()?)?;
        Ok(Self { listener, addr, security })
    }
}

impl Offer<'_> {
    /// Serves `engine`, whose experts have `profile`, and announces it.
    pub(crate) async fn begin(self, engine: &InProcessEngine, profile: NumericProfile) -> anyhow::Result<Offered> {
        let Self { id, listener: Listener { listener, addr, security }, directory, registry } = self;
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async { _ = stopped.await };
        let served = tokio::spawn(serve_engine(Arc::new(engine.clone()), listener, security, shutdown));
        let info = engine.info().clone();
        let record = EngineRecord { id, addr, info, profile, draining: false };
        let is_taken = |error: &_| matches!(error, RegistryError::EngineTaken { .. });
        let announcement = take_name(registry, is_taken, async || directory.announce(record.clone()).await).await?;
        tracing::info!(engine = %record.id, addr = record.addr, "announced");
        Ok(Offered { engine: engine.clone(), record, announcement, directory, served, stop })
    }
}

impl Offered {
    /// Offers the engine until `work` is done; then lets what gateways have there end, and withdraws it.
    pub(crate) async fn until(mut self, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        tokio::pin!(work);
        tokio::select! {
            done = &mut work => done?,
            ended = &mut self.served => return Err(anyhow!("the engine's server has ended: {ended:?}")),
            () = self.announcement.lost() => return Err(anyhow!("another has taken the name {}", self.record.id)),
            () = until_phase(&self.engine, Phase::Draining) => {
                // Who does not hear of it is refused, and told so.
                let record = EngineRecord { draining: true, ..self.record.clone() };
                let (done, _) = tokio::join!(&mut work, timeout(PATIENCE, self.announcement.update(record)));
                done?;
            }
        }
        let mut signals = Signals::new()?;
        tokio::select! {
            _ = timeout(PATIENCE, until_idle(&self.engine)) => {}
            () = signals.next() => {}
        }
        drop(self.announcement);
        self.directory.farewell().await;
        _ = self.stop.send(());
        self.served.await.context("the engine's server")?.context("the engine's server")
    }
}

async fn until_phase(engine: &InProcessEngine, phase: Phase) {
    while engine.status().phase != phase {
        sleep(LOOK).await;
    }
}

async fn until_idle(engine: &InProcessEngine) {
    while engine.status().running + engine.status().waiting > 0 {
        sleep(LOOK).await;
    }
}
