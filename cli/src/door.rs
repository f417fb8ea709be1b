//! Serving: the front door on an engine, from the first connection to the last answer.

use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tramontane_cluster::engine::Engine;
use tramontane_cluster::registry::accounts::{Accounts, EmbeddedAccounts};
use tramontane_cluster::tls::{Acceptor, Security};
use tramontane_gateway::frontdoor::{FrontDoor, Limits, ModelCard, ServedModel};
use tramontane_gateway::grpc::{GrpcServer, Health};
use tramontane_gateway::http::{CLOSING, Console, Gateway, Pages, Speaks, Timeouts, bind, routes, serve};
use tramontane_gateway::keys::{Keys, MAX_FILE_BYTES};
use tramontane_gateway::metering::{Asks, Meter};
use tramontane_model::chat::ChatTemplate;
use tramontane_model::checkpoint::Checkpoint;
use tramontane_model::config::ModelConfig;
use tramontane_model::tokenizer::Tokenizer;
use tramontane_router::NumericProfile;

use crate::args::ServeArgs;
use crate::files::read_text;
use crate::metrics::{Metrics, MetricsArgs, ModelLabels};
use crate::output;
use crate::signals::Signals;

/// How long the registry has to take the last of the usage.
const FAREWELL: Duration = Duration::from_secs(5);

/// A front door that listens, and says that the model is being loaded until it is. Dropping it closes it at once.
pub(crate) struct Door {
    gateway: Arc<Gateway>,
    addr: SocketAddr,
    admin: Option<SocketAddr>,
    metrics: Metrics,
    console: Console,
    accounts: Arc<dyn Accounts>,
    scheme: &'static str,
    announce: Announce,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
    grpc: Option<GrpcDoor>,
}

/// How it is said that a door is open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Announce {
    /// On stderr.
    ForPeople,
    /// On stdout too, as an object.
    AsJson,
}

impl Announce {
    /// What the flag `--json` asks for.
    pub(crate) const fn json(asked: bool) -> Self {
        if asked { Self::AsJson } else { Self::ForPeople }
    }
}

/// The same for gRPC, where it was asked for.
struct GrpcDoor {
    addr: SocketAddr,
    health: Health,
    served: JoinHandle<()>,
}

impl GrpcDoor {
    async fn open(
        addr: SocketAddr,
        acceptor: Acceptor,
        gateway: Arc<Gateway>,
        stopped: watch::Receiver<bool>,
    ) -> anyhow::Result<Self> {
        let listener = bind(addr).with_context(|| format!("cannot listen on {addr}"))?;
        let addr = listener.local_addr()?;
        let server = GrpcServer::new(gateway).await?;
        let health = server.health();
        Ok(Self { addr, health, served: tokio::spawn(server.run(listener, acceptor, Timeouts::default(), stopped)) })
    }
}

impl Door {
    /// Listens where `args` say.
    pub(crate) async fn open(args: &ServeArgs, metrics: &MetricsArgs, announce: Announce) -> anyhow::Result<Self> {
        let metrics = Metrics::open(metrics)?;
        let ServeArgs { http, grpc, api_keys_file, require_api_keys, insecure, no_ui, tls } = args;
        let acceptor = tls.open()?;
        let keys = api_keys_file.as_deref().map(read_keys).transpose()?;
        for (flag, addr) in [("--http", Some(http)), ("--grpc", grpc.as_ref())] {
            let Some(addr) = addr else { continue };
            if !addr.ip().is_loopback() && keys.is_none() && !require_api_keys && !insecure {
                bail!(
                    "{flag} {addr}: others can reach this address; give --api-keys-file or --require-api-keys, or --insecure if that is meant"
                );
            }
        }
        let asks = if *require_api_keys { Asks::Always } else { Asks::OnceThereIsAKey };
        let with_keys = keys.is_some() || *require_api_keys;
        let pages = if with_keys || *insecure { Pages::OfAnybody } else { Pages::OfThisMachine };
        let console = if *no_ui { Console::LeftOut } else { Console::Served };
        let gateway = Gateway::new(Meter::new(keys.unwrap_or_default(), asks));
        let listener: TcpListener = bind(*http).with_context(|| format!("cannot listen on {http}"))?;
        let addr = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let served = tokio::spawn(serve(
            listener,
            acceptor.clone(),
            routes(&gateway, console, pages),
            Speaks::Http,
            Timeouts::default(),
            stopped.clone(),
        ));
        let grpc = match grpc {
            Some(addr) => Some(GrpcDoor::open(*addr, acceptor, gateway.clone(), stopped).await?),
            None => None,
        };
        Ok(Self {
            gateway,
            addr,
            admin: None,
            metrics,
            console,
            // What is used is counted for a month's limits anyway.
            accounts: Arc::new(EmbeddedAccounts::default()),
            scheme: tls.scheme(),
            announce,
            stop,
            served,
            grpc,
        })
    }

    /// Has it said where operators are answered, too.
    pub(crate) fn announce_admin(&mut self, addr: SocketAddr) {
        self.admin = Some(addr);
    }

    /// Has it learn the cluster's keys, and bring what they use there.
    pub(crate) fn look_after(&mut self, accounts: Arc<dyn Accounts>) {
        self.accounts = accounts;
    }

    /// Where it listens for HTTP.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Shows metrics of `front`'s requests, and what `register` adds.
    pub(crate) fn show(&self, front: &FrontDoor, security: &Security, register: impl FnOnce(&mut Registry)) {
        let card = &front.model().card;
        let of = ModelLabels {
            model: front.model().id().to_owned(),
            hash: front.model().named_hash(),
            quantization: card.quantization.clone(),
            license: card.license.clone(),
        };
        self.metrics.show(of, security, |registry| {
            self.gateway.metrics().register(registry);
            register(registry);
        });
    }

    /// Serves `front` until a signal comes, then lets what runs end: `drain` tells its engine to take no more.
    pub(crate) async fn serve(self, front: FrontDoor, drain: impl FnOnce()) -> anyhow::Result<()> {
        let (meter, accounts) = (self.gateway.meter().clone(), self.accounts.clone());
        // What was used before is known before anybody asks for more, unless the registry is away: it is asked again then.
        meter.learn(&accounts.watch().borrow().clone());
        _ = meter.exchange(accounts.as_ref()).await;
        let served = tokio::select! {
            served = self.answer(front, drain) => served,
            () = meter.keep(accounts.as_ref()) => Ok(()),
        };
        match timeout(FAREWELL, meter.exchange(accounts.as_ref())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the last of the usage is lost"),
            Err(_) => tracing::error!("the last of the usage is lost: the registry does not answer"),
        }
        served
    }

    async fn answer(mut self, front: FrontDoor, drain: impl FnOnce()) -> anyhow::Result<()> {
        let model = front.model().id().to_owned();
        self.gateway.open(Arc::new(front.counted_by(self.gateway.metrics().clone())));
        // Until now a signal ended the process, for nothing was running.
        let mut signals = Signals::new()?;
        if let Some(grpc) = &self.grpc {
            grpc.health.ready().await;
        }
        self.announce(&model)?;
        tokio::select! {
            _ = signals.next() => {}
            why = grpc_ended(&mut self.grpc) => return Err(why),
        }
        if let Some(grpc) = &self.grpc {
            grpc.health.leaving().await;
        }
        drain();
        if self.gateway.in_flight() > 0 {
            eprintln!("tramontane: finishing what runs; once more to stop at once");
        }
        tokio::select! {
            () = self.gateway.idle() => {}
            () = signals.next() => return Ok(()),
        }
        _ = self.stop.send(true);
        tokio::select! {
            ended = self.served => ended.context("the front door")?,
            () = signals.next() => return Ok(()),
        }
        let Some(grpc) = self.grpc else { return Ok(()) };
        tokio::select! {
            // Whoever holds a connection open without a call does not hold the process.
            ended = timeout(CLOSING, grpc.served) => ended.map_or(Ok(()), |ended| ended.context("the gRPC server")),
            () = signals.next() => Ok(()),
        }
    }

    /// Says where it serves: on stderr for people, with `--json` on stdout for programs.
    fn announce(&self, model: &str) -> anyhow::Result<()> {
        let (addr, scheme) = (self.addr, self.scheme);
        let grpc = self.grpc.as_ref().map(|grpc| grpc.addr.to_string());
        let beside = grpc.as_ref().map_or_else(String::new, |addr| format!(" and, for gRPC, on {addr}"));
        let page = match self.console {
            Console::Served => format!("; in a browser: {scheme}://{addr}/ui"),
            Console::LeftOut => String::new(),
        };
        let key = if self.gateway.meter().asks() { " -H \"authorization: Bearer $KEY\"" } else { "" };
        eprintln!(
            "{model} is ready on {scheme}://{addr}/v1{beside}{page}; Ctrl-C stops it. Try:\n\n  curl {scheme}://{addr}/v1/chat/completions{key} -H 'content-type: application/json' \\\n    -d '{{\"temperature\": 0, \"messages\": [{{\"role\": \"user\", \"content\": \"What is the capital of France?\"}}]}}'\n"
        );
        if self.announce == Announce::AsJson {
            output::out(&format!(
                "{}\n",
                json!({"model": model, "http": addr.to_string(), "grpc": grpc, "admin": self.admin.map(|addr| addr.to_string()), "metrics": self.metrics.addr().map(|addr| addr.to_string())})
            ))?;
        }
        Ok(())
    }
}

/// Waits for the gRPC server to end by itself, which it should not; for ever where there is none.
async fn grpc_ended(grpc: &mut Option<GrpcDoor>) -> anyhow::Error {
    let Some(grpc) = grpc else { return pending().await };
    match (&mut grpc.served).await {
        Ok(()) => anyhow!("the gRPC server has ended"),
        Err(error) => anyhow::Error::from(error).context("the gRPC server"),
    }
}

/// The front door of the model whose checkpoint and configuration these are, which `engine` runs with weights of `profile`.
pub(crate) fn front_door(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    profile: &NumericProfile,
    engine: Arc<dyn Engine>,
) -> anyhow::Result<FrontDoor> {
    let tokenizer = Tokenizer::of(checkpoint)?;
    tokenizer.check_fits(config.vocab)?;
    let chat = checkpoint.chat_template()?.map(|source| ChatTemplate::compile(&source)).transpose()?;
    let card = ModelCard {
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        hash: profile.weights.clone(),
        quantization: profile.quantization.clone(),
        license: checkpoint.license(),
    };
    let served = ServedModel::new(engine.info(), config.eos.clone(), card);
    Ok(FrontDoor::new(engine, tokenizer, chat, served, Limits::default()))
}

fn read_keys(path: &Path) -> anyhow::Result<Keys> {
    let failed = || format!("cannot use the keys in {}", path.display());
    Keys::parse(&read_text(path, MAX_FILE_BYTES).with_context(failed)?).with_context(failed)
}
