//! Pods that run: a container each, in a network namespace of its own, as kubelet would run it.

use std::net::TcpStream;
use std::process::Command;

use serde_json::Value;

use crate::images::Store;
use crate::islands::{Archipelago, Island};
use crate::manifests::{Objects, Pod};
use crate::run::{Running, holds_in_time};
use crate::serving::get;
use crate::tools::succeeds;
use crate::volumes::Volumes;

/// etcd's image here, whatever the manifests name.
pub(crate) const ETCD: &str = "localhost/etcd";
/// Where a coordinator answers operators, in its own network.
const ADMIN: &str = "--endpoint=127.0.0.1:7077";

/// Pods of each kind, in the order in which they are started.
const KINDS: [(&str, usize); 4] =
    [("tramontane-etcd", 1), ("tramontane-coordinator", 2), ("tramontane-expert-node", 4), ("tramontane-gateway", 1)];

/// A cluster of containers; they are killed when this is dropped.
pub(crate) struct Cluster<'a> {
    store: &'a Store,
    volumes: &'a Volumes,
    net: Archipelago,
    pods: Vec<Pod>,
}

impl<'a> Cluster<'a> {
    /// Makes the networks; `None`, loudly, where the system gives us none.
    pub(crate) fn networks() -> Option<Archipelago> {
        Archipelago::make(KINDS.iter().map(|(_, count)| count).sum())
    }

    /// Starts all pods of `objects`, and waits until they are ready.
    pub(crate) fn start(store: &'a Store, volumes: &'a Volumes, net: Archipelago, objects: &Objects) -> Self {
        let mut addrs = net.islands.iter().map(|island| island.addr.parse().expect("an address"));
        let pods = KINDS.iter().flat_map(|&(kind, count)| {
            let addrs: Vec<_> = addrs.by_ref().take(count).collect();
            objects.pods(kind, &addrs, &volumes.folder)
        });
        let pods = pods.collect();
        let cluster = Self { store, volumes, net, pods };
        cluster.pods.iter().for_each(|pod| cluster.run(pod));
        cluster.pods.iter().for_each(|pod| cluster.until_ready(&pod.name));
        cluster
    }

    fn pod(&self, name: &str) -> (&Pod, &Island) {
        let number = self.pods.iter().position(|pod| pod.name == name).expect("a pod");
        (&self.pods[number], &self.net.islands[number])
    }

    /// Starts the pod's container.
    fn run(&self, pod: &Pod) {
        let network = format!("--network=ns:/run/netns/{}", self.pod(&pod.name).1.namespace);
        let hosts = self.pods.iter().filter_map(|pod| Some(format!("--add-host={}:{}", pod.host.as_ref()?, pod.addr)));
        let image = if pod.image.contains("/etcd:") { ETCD } else { &pod.image };
        let mut podman = self.store.podman();
        podman.args(["run", "--detach", "--pull=never", &network]).args(hosts).args(&pod.flags);
        succeeds(podman.arg(image).args(&pod.args));
    }

    fn until_ready(&self, name: &str) {
        let ready = || {
            assert_eq!(self.inspect(name)["State"]["Running"], true, "{name} has ended: {}", self.log(name));
            self.is_ready(name)
        };
        assert!(holds_in_time(ready), "{name} is not ready: {}", self.log(name));
    }

    /// Its readiness probe.
    fn is_ready(&self, name: &str) -> bool {
        let (Pod { addr, ready: (port, path), .. }, _) = self.pod(name);
        let at = format!("{addr}:{port}");
        TcpStream::connect(&at).is_ok() && get(&at, path).status == 200
    }

    fn log(&self, name: &str) -> String {
        let ended = self.store.podman().args(["logs", name]).output().expect("podman starts");
        format!("{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr))
    }

    pub(crate) fn inspect(&self, name: &str) -> Value {
        let told = succeeds(self.store.podman().args(["container", "inspect", name]));
        serde_json::from_str::<Value>(&told).expect("JSON")[0].take()
    }

    /// Names of the pods that run our binary.
    pub(crate) fn ours(&self) -> impl Iterator<Item = &str> {
        self.pods.iter().map(|pod| pod.name.as_str()).filter(|name| !name.contains("etcd"))
    }

    /// Where the gateway serves HTTP.
    pub(crate) fn gateway(&self) -> String {
        format!("{}:8080", self.pod("tramontane-gateway-0").0.addr)
    }

    /// Requests that a coordinator computes, by what it tells Prometheus.
    pub(crate) fn running(&self, coordinator: &str) -> f64 {
        let (Pod { addr, ready: (port, _), .. }, _) = self.pod(coordinator);
        let metrics = get(&format!("{addr}:{port}"), "/metrics").body;
        let running = metrics.lines().filter(|line| line.starts_with("tramontane_num_requests_running{"));
        running.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Kills the pod's container with SIGKILL.
    pub(crate) fn kill(&self, name: &str) {
        succeeds(self.store.podman().args(["kill", "--signal=KILL", name]));
        succeeds(self.store.podman().args(["wait", name]));
        assert_eq!(self.inspect(name)["State"]["ExitCode"], 137, "SIGKILL ended it");
    }

    /// Has the pod end, in the time that it has; its exit code.
    pub(crate) fn stop(&self, name: &str) -> Value {
        let grace = self.pod(name).0.grace.to_string();
        succeeds(self.store.podman().args(["stop", "--time", &grace, name]));
        self.inspect(name)["State"]["ExitCode"].clone()
    }

    /// Starts a pod of the same name in place of one that has ended.
    pub(crate) fn replace(&self, name: &str) {
        succeeds(self.store.podman().args(["rm", name]));
        self.run(self.pod(name).0);
        self.until_ready(name);
    }

    /// What has been written to the root of the pod's container.
    pub(crate) fn written(&self, name: &str) -> String {
        succeeds(self.store.podman().args(["diff", name]))
    }

    /// What a coordinator tells an operator who comes through its own loopback, as by `kubectl port-forward`.
    pub(crate) fn asked(&self, coordinator: &str, command: &str) -> Value {
        let admin = self.volumes.admin();
        let args = [&[command, "--json", ADMIN][..], &admin.each_ref().map(String::as_str)].concat();
        let outcome = Running::start_within_namespace(&self.pod(coordinator).1.namespace, &args).outcome();
        assert!(matches!(outcome.code, Some(0 | 4)), "{command}: {}", outcome.stderr);
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {}", outcome.stdout))
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.pods.iter().for_each(|pod| eprintln!("{}:\n{}", pod.name, self.log(&pod.name)));
        }
        // Those that were never started are none.
        let mut podman: Command = self.store.podman();
        _ = podman.args(["rm", "--force", "--time=0", "--ignore"]).args(self.pods.iter().map(|pod| &pod.name)).output();
    }
}
