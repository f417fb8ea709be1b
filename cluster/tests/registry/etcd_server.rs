//! A real etcd of the test's own, on loopback with a temporary folder; and a wire to it that can be cut.
#![allow(dead_code, reason = "each test target uses its own part of it")]

use std::net::TcpListener as Listener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tramontane_cluster::registry::etcd::EtcdOptions;

use crate::{LONG, POLL};

/// How an etcd is run.
#[derive(Default)]
pub(crate) struct How {
    /// Further flags.
    pub(crate) flags: Vec<String>,
    /// Where it listens beside loopback.
    pub(crate) hosts: Vec<String>,
    /// With these it speaks TLS, and wants a certificate of its clients.
    pub(crate) tls: Option<Certificates>,
    /// Who `etcdctl` is, as `name:password`.
    pub(crate) user: Option<String>,
}

/// Files with certificates, as PEM: who signed all of them, and one with its key that serves for both ends.
#[derive(Clone)]
pub(crate) struct Certificates {
    pub(crate) authority: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// A running etcd; it is killed, by its pid, when this is dropped.
pub(crate) struct Etcd {
    child: Option<Child>,
    folder: TempDir,
    client: u16,
    peer: u16,
    pub(crate) how: How,
}

impl Etcd {
    /// Starts one and waits until it answers.
    pub(crate) async fn start() -> Self {
        Self::start_as(How::default()).await
    }

    /// The same of one that is run so.
    pub(crate) async fn start_as(how: How) -> Self {
        // In memory where there is such a place: what is tested is not the disk.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        let (client, peer) = (free_port(), free_port());
        let mut etcd = Self { child: None, folder: folder.expect("a folder"), client, peer, how };
        etcd.run().await;
        etcd
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts it again, on its data.
    pub(crate) async fn run(&mut self) {
        let scheme = if self.how.tls.is_some() { "https" } else { "http" };
        let hosts = std::iter::once("127.0.0.1").chain(self.how.hosts.iter().map(String::as_str));
        let client: Vec<String> = hosts.map(|host| format!("{scheme}://{host}:{}", self.client)).collect();
        let (client, peer) = (client.join(","), format!("http://127.0.0.1:{}", self.peer));
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(self.data())
            .args(["--name", "m", "--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m={peer}")])
            // Short ones, so that leases of a second are granted as such.
            .args(["--heartbeat-interval", "10", "--election-timeout", "100"])
            .args(&self.how.flags)
            .args(self.how.tls.iter().flat_map(Certificates::for_etcd))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("etcd starts (Debian: etcd-server; ./test installs it)"));
        let begun = Instant::now();
        while !self.ctl(&["endpoint", "health"]).0 {
            assert!(begun.elapsed() < LONG, "etcd does not answer");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Sends SIGKILL and waits.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fails only when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// `etcdctl` with `args`: whether it went well, and what it printed.
    pub(crate) fn ctl(&self, args: &[&str]) -> (bool, String) {
        let endpoint = self.endpoint();
        let secured = self.how.tls.iter().flat_map(Certificates::for_etcdctl);
        let user = self.how.user.iter().flat_map(|user| ["--user".to_owned(), user.clone()]);
        let mut ctl = Command::new("etcdctl");
        ctl.env("ETCDCTL_API", "3").args(["--endpoints", &endpoint]).args(secured).args(user).args(args);
        let ran = ctl.output();
        let ran = ran.expect("etcdctl starts (Debian: etcd-client; ./test installs it)");
        (ran.status.success(), String::from_utf8_lossy(&ran.stdout).into_owned())
    }

    /// Saves a snapshot of everything.
    pub(crate) fn save(&self) -> PathBuf {
        let file = self.folder.path().join("snapshot");
        assert!(self.ctl(&["snapshot", "save", file.to_str().expect("UTF-8")]).0);
        file
    }

    /// Kills it and starts it with what `snapshot` holds.
    pub(crate) async fn restore(&mut self, snapshot: &Path) {
        self.kill();
        std::fs::remove_dir_all(self.data()).expect("the data can be removed");
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let ran = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore"])
            .arg(snapshot)
            .arg("--data-dir")
            .arg(self.data())
            .args(["--name", "m", "--initial-cluster", &format!("m={peer}"), "--initial-advertise-peer-urls", &peer])
            .output();
        assert!(ran.expect("etcdctl starts").status.success());
        self.run().await;
    }

    pub(crate) fn endpoint(&self) -> String {
        self.endpoint_at("127.0.0.1")
    }

    /// Where it is reached at one of its addresses.
    pub(crate) fn endpoint_at(&self, host: &str) -> String {
        format!("{host}:{}", self.client)
    }

    /// How to reach it directly.
    pub(crate) fn options(&self) -> EtcdOptions {
        options(&self.endpoint())
    }
}

/// A cluster in the etcd at `endpoint`, with the shortest leases there are.
pub(crate) fn options(endpoint: &str) -> EtcdOptions {
    let mut options = EtcdOptions::parse(&format!("etcd://{endpoint}"), "test").expect("an address");
    options.ttl = std::time::Duration::from_secs(1);
    options
}

impl Certificates {
    fn named(&self, names: [&str; 3]) -> Vec<String> {
        let files = [&self.authority, &self.certificate, &self.key];
        names.into_iter().zip(files).map(|(name, file)| format!("--{name}={}", file.display())).collect()
    }

    fn for_etcd(&self) -> Vec<String> {
        [self.named(["trusted-ca-file", "cert-file", "key-file"]), vec!["--client-cert-auth".to_owned()]].concat()
    }

    fn for_etcdctl(&self) -> Vec<String> {
        self.named(["cacert", "cert", "key"])
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody listens on now.
pub(crate) fn free_port() -> u16 {
    Listener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port()
}

/// A wire to somewhere, through which connections go until it is cut.
pub(crate) struct Wire {
    pub(crate) endpoint: String,
    whole: watch::Sender<bool>,
}

impl Wire {
    pub(crate) async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = listener.local_addr().expect("its address").to_string();
        let (whole, state) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (target, mut state) = (target.clone(), state.clone());
                tokio::spawn(async move {
                    if !*state.borrow_and_update() {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = state.wait_for(|whole| !whole) => {}
                    }
                });
            }
        });
        Self { endpoint, whole }
    }

    /// Breaks all connections, and lets none through.
    pub(crate) fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// Lets new connections through.
    pub(crate) fn mend(&self) {
        self.whole.send_replace(true);
    }
}
