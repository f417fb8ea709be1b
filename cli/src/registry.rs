//! The registry that `--registry` names: another process's embedded one, or etcd.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::time::{Instant, sleep};
use tramontane_cluster::registry::accounts::Accounts;
use tramontane_cluster::registry::directory::Directory;
use tramontane_cluster::registry::etcd::{self, EtcdAccounts, EtcdDirectory, EtcdOptions, EtcdRegistry, EtcdTls};
use tramontane_cluster::registry::served::ServedRegistry;
use tramontane_cluster::registry::{Registry, RegistryError};
use tramontane_router::NodeId;

use crate::Unreachable;
use crate::files::read_text;
use crate::model::Model;

/// How long a process that starts waits for its registry.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it waits between two tries.
const AGAIN: Duration = Duration::from_secs(1);
/// How long it waits between two tries to take a name that is taken.
const TAKEN_AGAIN: Duration = Duration::from_millis(500);
/// How much longer than a lease lasts it tries.
const TAKEN_SLACK: Duration = Duration::from_secs(5);
/// Bytes of a password's or a certificate's file, at most.
const MAX_SECRET: u64 = 1 << 20;
/// Scheme of a registry that `up --processes` serves.
const SERVED: &str = "tramontane://";

/// Which registry, and how to be let in.
#[derive(Debug, Args)]
pub(crate) struct RegistryArgs {
    /// The cluster's registry: etcd://HOST:PORT[,HOST:PORT…], or tramontane://HOST:PORT as `up --processes` serves it
    #[arg(long, env = "TRAMONTANE_REGISTRY", value_name = "URL", help_heading = "Registry")]
    pub(crate) registry: String,
    /// The cluster's name; in etcd its keys are below /tramontane/NAME/
    #[arg(long, env = "TRAMONTANE_CLUSTER", value_name = "NAME", default_value = "local", help_heading = "Registry")]
    pub(crate) cluster: String,
    /// Seconds for which a process that gives no sign of life stays in the cluster
    #[arg(
        long,
        env = "TRAMONTANE_LEASE",
        value_name = "SECONDS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=600),
        help_heading = "Registry"
    )]
    pub(crate) lease: u64,
    /// User of etcd, whose password is in --etcd-password-file
    #[arg(
        long,
        env = "TRAMONTANE_ETCD_USER",
        value_name = "NAME",
        requires = "etcd_password_file",
        help_heading = "Registry"
    )]
    pub(crate) etcd_user: Option<String>,
    /// File with the password of etcd's user
    #[arg(
        long,
        env = "TRAMONTANE_ETCD_PASSWORD_FILE",
        value_name = "FILE",
        requires = "etcd_user",
        help_heading = "Registry"
    )]
    pub(crate) etcd_password_file: Option<PathBuf>,
    /// Speak TLS with etcd, whose certificate an authority in this file has signed (PEM)
    #[arg(long, env = "TRAMONTANE_ETCD_CA_FILE", value_name = "FILE", help_heading = "Registry")]
    pub(crate) etcd_ca_file: Option<PathBuf>,
    /// Certificate for etcd (PEM)
    #[arg(
        long,
        env = "TRAMONTANE_ETCD_CERT_FILE",
        value_name = "FILE",
        requires_all = ["etcd_ca_file", "etcd_key_file"],
        help_heading = "Registry"
    )]
    pub(crate) etcd_cert_file: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(
        long,
        env = "TRAMONTANE_ETCD_KEY_FILE",
        value_name = "FILE",
        requires = "etcd_cert_file",
        help_heading = "Registry"
    )]
    pub(crate) etcd_key_file: Option<PathBuf>,
}

/// Connects for a process that serves `model`. Waits a while for a registry that is not there yet.
pub(crate) async fn open(args: &RegistryArgs, model: &Model) -> anyhow::Result<Arc<dyn Registry>> {
    let url = args.registry.as_str();
    if url.starts_with(SERVED) {
        return Ok(Arc::new(ServedRegistry::connect(url).await.map_err(|error| failed(url, error))?));
    }
    if !url.starts_with("etcd://") {
        bail!("--registry {url}: its address begins with neither etcd:// nor {SERVED}");
    }
    let options = options(args)?;
    let connect = async || EtcdRegistry::connect(&options, model.id.clone(), model.profile.clone()).await;
    Ok(Arc::new(patiently(url, connect).await?))
}

/// Tells the cluster, if there is one to tell, that `node` may not be in it, for the reason that `error` gives.
pub(crate) async fn tell_refused(args: &RegistryArgs, model: &Model, node: &NodeId, error: &anyhow::Error) {
    let Some(RegistryError::Refused { why, .. }) = error.downcast_ref() else { return };
    if let Ok(options) = options(args) {
        etcd::tell_refused(&options, model.id.clone(), node, why.clone()).await;
    }
}

/// Connects to the directory of the cluster's engines; `None` where there is none, beside an embedded registry.
pub(crate) async fn open_directory(args: &RegistryArgs) -> anyhow::Result<Option<Arc<dyn Directory>>> {
    if args.registry.starts_with(SERVED) {
        return Ok(None);
    }
    let options = options(args)?;
    let directory = patiently(&args.registry, async || EtcdDirectory::connect(&options).await).await?;
    Ok(Some(Arc::new(directory)))
}

/// Connects to the cluster's API keys and what they have used; `None` where it keeps none, beside an embedded registry.
pub(crate) async fn open_accounts(args: &RegistryArgs) -> anyhow::Result<Option<Arc<dyn Accounts>>> {
    if args.registry.starts_with(SERVED) {
        return Ok(None);
    }
    let options = options(args)?;
    let accounts = patiently(&args.registry, async || EtcdAccounts::connect(&options).await).await?;
    Ok(Some(Arc::new(accounts)))
}

/// Connects to what may not be there yet.
async fn patiently<T>(url: &str, connect: impl AsyncFn() -> Result<T, RegistryError>) -> anyhow::Result<T> {
    let end = Instant::now() + PATIENCE;
    let mut said = false;
    loop {
        match connect().await {
            Ok(connected) => return Ok(connected),
            Err(RegistryError::Lost { why }) if Instant::now() < end => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(url, why, "the registry is not there yet");
                }
                sleep(AGAIN).await;
            }
            Err(error) => return Err(failed(url, error)),
        }
    }
}

/// Takes a name by `take`, which tells a name that is taken by an error that `is_taken`. It may be this process's own, from
/// before it was started again, and ends with that one's lease: so long, and a little longer, it is tried again.
pub(crate) async fn take_name<T, E>(
    args: &RegistryArgs,
    is_taken: impl Fn(&E) -> bool,
    take: impl AsyncFn() -> Result<T, E>,
) -> Result<T, E> {
    let end = Instant::now() + Duration::from_secs(args.lease) + TAKEN_SLACK;
    loop {
        match take().await {
            Err(error) if is_taken(&error) && Instant::now() < end => sleep(TAKEN_AGAIN).await,
            outcome => return outcome,
        }
    }
}

/// What stands in a record for others to reach this process at, which listens on `listening`.
pub(crate) fn reached_at(advertised: Option<String>, listening: SocketAddr) -> anyhow::Result<String> {
    match advertised {
        Some(addr) => Ok(addr),
        None if listening.ip().is_unspecified() => {
            bail!(
                "--listen {listening} is no address to be reached at: say with --advertise HOST:PORT where others reach this process"
            )
        }
        None => Ok(listening.to_string()),
    }
}

fn failed(url: &str, error: RegistryError) -> anyhow::Error {
    let lost = matches!(error, RegistryError::Lost { .. });
    let error = anyhow::Error::new(error).context(format!("registry {url}"));
    if lost { Unreachable(error).into() } else { error }
}

fn options(args: &RegistryArgs) -> anyhow::Result<EtcdOptions> {
    let mut options = EtcdOptions::parse(&args.registry, &args.cluster)?;
    options.ttl = Duration::from_secs(args.lease);
    if let (Some(user), Some(file)) = (&args.etcd_user, &args.etcd_password_file) {
        options.user = Some((user.clone(), secret(file)?.trim_end_matches(['\r', '\n']).to_owned()));
    }
    if let Some(authority) = &args.etcd_ca_file {
        let identity = match (&args.etcd_cert_file, &args.etcd_key_file) {
            (Some(certificate), Some(key)) => Some((secret(certificate)?.into(), secret(key)?.into())),
            _ => None,
        };
        options.tls = Some(EtcdTls { authority: secret(authority)?.into(), identity, domain: None });
    }
    Ok(options)
}

fn secret(path: &Path) -> anyhow::Result<String> {
    read_text(path, MAX_SECRET).with_context(|| format!("cannot read {}", path.display()))
}
