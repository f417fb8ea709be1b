//! Certificates, and a cluster of processes that use them.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tramontane_cluster::admin::AdminClient;
use tramontane_cluster::engine::grpc::GrpcEngine;
use tramontane_cluster::exchange::grpc::NodeControl;
use tramontane_cluster::tls::{Identity, Security, TlsFiles};
use tramontane_router::NodeId;

use crate::ROLES;
use crate::etcd_server::Etcd;
use crate::run::{Running, run, until};
use crate::serving::Serving;

/// The cluster's name.
const NAME: &str = "test";
const NODES: [&str; 2] = ["n0", "n1"];
const LOOPBACK: &str = "127.0.0.1:0";

/// The folder of an authority, which has signed for all roles.
pub(crate) struct Certs {
    folder: TempDir,
}

impl Certs {
    /// A new authority's, for `cluster`.
    pub(crate) fn new(cluster: &str) -> Self {
        let certs = Self { folder: tempfile::tempdir().expect("a folder") };
        certs.command(&["init"]);
        ROLES.iter().for_each(|role| certs.command(&["issue", role, "--cluster", cluster, "--host", "localhost"]));
        certs
    }

    /// The same authority's, for another cluster.
    pub(crate) fn of_cluster(&self, cluster: &str) -> Self {
        let certs = Self { folder: tempfile::tempdir().expect("a folder") };
        for file in ["ca.pem", "ca.key"] {
            fs::copy(self.path(file), certs.path(file)).expect("a file");
        }
        ROLES.iter().for_each(|role| certs.command(&["issue", role, "--cluster", cluster]));
        certs
    }

    /// All as it is now.
    pub(crate) fn copy(&self) -> Self {
        let certs = Self { folder: tempfile::tempdir().expect("a folder") };
        for entry in fs::read_dir(&self.folder).expect("a folder") {
            let entry = entry.expect("a file");
            fs::copy(entry.path(), certs.folder.path().join(entry.file_name())).expect("a file");
        }
        certs
    }

    /// Signs anew, as `args` say.
    pub(crate) fn rotate(&self, args: &[&str]) {
        self.command(&[&["rotate"], args].concat());
    }

    fn command(&self, args: &[&str]) {
        let outcome = run(&[&["certs", "--dir", self.dir()], args].concat());
        assert_eq!(outcome.code, Some(0), "{args:?}: {}", outcome.stderr);
    }

    pub(crate) fn dir(&self) -> &str {
        self.folder.path().to_str().expect("a path in UTF-8")
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// What makes a process a `role`. (Leaked: a few short texts, for as long as a test runs.)
    pub(crate) fn flags(&self, role: &str) -> [&'static str; 6] {
        let path = |file: String| &*format!("{}/{file}", self.dir()).leak();
        let (certificate, key) = (path(format!("{role}.pem")), path(format!("{role}.key")));
        ["--tls-cert", certificate, "--tls-key", key, "--tls-ca", path("ca.pem".to_owned())]
    }
}

/// What a cluster's processes listen with for one another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Port {
    Experts,
    Engine,
    Admin,
}

impl Port {
    /// Who is let in.
    pub(crate) const fn admits(self) -> &'static str {
        match self {
            Self::Experts => "coordinator",
            Self::Engine => "gateway",
            Self::Admin => "admin",
        }
    }
}

/// Whether the one whom `identity` has signed as the role is answered there; `trusted` says whom it trusts.
pub(crate) async fn reaches(
    port: Port,
    addr: &str,
    identity: Option<(&Certs, &str)>,
    trusted: &Certs,
) -> Result<(), String> {
    let security = match identity {
        None => Security::Plaintext,
        Some((certs, role)) => {
            let [certificate, key] = ["pem", "key"].map(|end| certs.path(&format!("{role}.{end}")));
            let files = TlsFiles { certificate, key, authority: trusted.path("ca.pem") };
            Security::Mutual(Identity::load(files).map_err(|error| error.to_string())?)
        }
    };
    match port {
        Port::Experts => {
            let control = NodeControl::connect(NodeId::from("n"), addr, &security).await;
            let mut control = control.map_err(|error| error.to_string())?;
            control.received().await.map(|_| ()).map_err(|error| error.to_string())
        }
        Port::Engine => GrpcEngine::connect(addr, &security).await.map(|_| ()).map_err(|error| error.to_string()),
        Port::Admin => {
            let mut client = AdminClient::connect(addr, &security).await.map_err(|error| error.to_string())?;
            client.status().await.map(|_| ()).map_err(|error| error.to_string())
        }
    }
}

/// A running cluster; its processes are killed when it is dropped.
pub(crate) struct Cluster {
    gateway: Serving,
    coordinators: Vec<Serving>,
    _nodes: Vec<Running>,
    etcd: Etcd,
    runtime: Runtime,
}

impl Cluster {
    /// Starts two nodes, a coordinator and a gateway.
    pub(crate) fn start(certs: &Certs) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let etcd = runtime.block_on(Etcd::start());
        let registry = format!("etcd://{}", etcd.endpoint());
        let common = ["--registry", &registry, "--cluster", NAME];
        let nodes = NODES.map(|id| {
            let own = ["--id", id, "--threads", "1"];
            Running::start(&[&["expert-node"], &common[..], &own, &certs.flags("expert-node")].concat())
        });
        let coordinator = start_coordinator(&registry, "c0", certs);
        let own = ["--http", LOOPBACK, "--json"];
        let gateway = Serving::start_role(&[&["gateway"], &common[..], &own, &certs.flags("gateway")].concat());
        let cluster = Self { gateway, coordinators: vec![coordinator], _nodes: nodes.into(), etcd, runtime };
        cluster.until_ready();
        cluster
    }

    pub(crate) fn start_another_coordinator(&mut self, certs: &Certs) {
        let registry = format!("etcd://{}", self.etcd.endpoint());
        self.coordinators.push(start_coordinator(&registry, "c1", certs));
        self.until_ready();
    }

    /// Waits until the gateway has all coordinators: it counts their blocks of keys and values together.
    fn until_ready(&self) {
        let blocks = |engine: Value| engine["kv_total"].as_u64();
        let each = blocks(self.coordinators[0].engine()).expect("a count");
        let all = Some(each * self.coordinators.len() as u64);
        until("the gateway has its coordinators", || blocks(self.gateway.engine()) == all);
        until("all are announced", || self.ports().len() == NODES.len() + self.coordinators.len() + 1);
    }

    pub(crate) fn gateway(&self) -> &Serving {
        &self.gateway
    }

    pub(crate) fn admin(&self) -> &str {
        self.coordinators[0].admin()
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// All listeners that are for the cluster's own processes, and where they are.
    pub(crate) fn ports(&self) -> Vec<(Port, String)> {
        let (well, text) = self.etcd.ctl(&["get", "--prefix", &format!("/tramontane/{NAME}/"), "-w", "simple"]);
        assert!(well, "etcd does not answer");
        let lines: Vec<&str> = text.lines().collect();
        let records = lines.as_chunks::<2>().0.iter();
        let mut ports: Vec<_> = records
            .filter_map(|[key, value]| {
                let port = [("/nodes/", Port::Experts), ("/coordinators/", Port::Engine)];
                let (_, port) = port.into_iter().find(|(part, _)| key.contains(part))?;
                let record: Value = serde_json::from_str(value).expect("JSON");
                Some((port, record["addr"].as_str()?.to_owned()))
            })
            .collect();
        ports.push((Port::Admin, self.admin().to_owned()));
        ports
    }
}

fn start_coordinator(registry: &str, id: &str, certs: &Certs) -> Serving {
    let args = ["coordinator", "--registry", registry, "--cluster", NAME, "--id", id, "--threads", "1"];
    let own = ["--http", LOOPBACK, "--admin", LOOPBACK, "--json"];
    Serving::start_role(&[&args[..], &own, &certs.flags("coordinator")].concat())
}
