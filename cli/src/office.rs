//! Where a coordinator answers operators.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::Args;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tramontane_cluster::ServerError;
use tramontane_cluster::admin::serve_admin;
use tramontane_cluster::tls::Security;
use tramontane_coordinator::ClusterAdmin;

use crate::admin::DEFAULT_ADMIN;
use crate::door::Door;

/// Where operators are answered.
#[derive(Debug, Args)]
pub(crate) struct AdminArgs {
    /// Address for the operator's commands (`tramontane status` and others); port 0 takes a free one
    #[arg(long, env = "TRAMONTANE_ADMIN", value_name = "ADDR", default_value = DEFAULT_ADMIN, help_heading = "Serving")]
    pub(crate) admin: SocketAddr,
}

/// An office that is open until it is dropped.
pub(crate) struct Office {
    served: JoinHandle<Result<(), ServerError>>,
    remembering: JoinHandle<()>,
}

impl Office {
    /// Answers for `admin` where `args` say, which `door` announces.
    pub(crate) async fn open(
        args: &AdminArgs,
        security: Security,
        admin: Arc<ClusterAdmin>,
        door: &mut Door,
    ) -> anyhow::Result<Self> {
        let addr = args.admin;
        let listener = TcpListener::bind(addr).await.with_context(|| format!("--admin: cannot listen on {addr}"))?;
        let addr: SocketAddr = listener.local_addr()?;
        door.announce_admin(addr);
        let served = tokio::spawn(serve_admin(admin.clone(), listener, security, std::future::pending()));
        let remembering = tokio::spawn(async move { admin.remember().await });
        Ok(Self { served, remembering })
    }

    /// Waits for the office to close by itself, which it should not.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        match (&mut self.served).await {
            Ok(Ok(())) => anyhow!("the admin service has ended"),
            Ok(Err(error)) => anyhow::Error::from(error).context("the admin service"),
            Err(error) => anyhow::Error::from(error).context("the admin service"),
        }
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        self.served.abort();
        self.remembering.abort();
    }
}
