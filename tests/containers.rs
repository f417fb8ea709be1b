//! The image, and a cluster of containers made from it: built by Debian's own programs from Debian's packages, and run as the manifests in
//! `deploy/` have it. No registry is asked for anything, and Kubernetes is not there: what it would do, podman and this test do.
//!
//! It wants root, for namespaces, and does nothing unless `TRAMONTANE_CONTAINERS` names the binary that is to be in the image
//! (`./test --long` does). Linux only.

#[path = "support/dice.rs"]
mod dice;
#[path = "containers/images.rs"]
mod images;
#[path = "failover/islands.rs"]
mod islands;
#[path = "containers/manifests.rs"]
mod manifests;
#[path = "containers/pods.rs"]
mod pods;
#[path = "processes/run.rs"]
mod run;
#[path = "support/serving.rs"]
mod serving;
#[path = "deploy/tools.rs"]
mod tools;
#[path = "failover/traffic.rs"]
mod traffic;
#[path = "containers/volumes.rs"]
mod volumes;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use images::{Image, Store};
use manifests::Objects;
use pods::{Cluster, ETCD};
use run::{json, until};
use serving::Serving;
use tools::{file, succeeds};
use traffic::{Door, Quiet, Traffic};
use volumes::{KEY, Volumes};

const CONTAINERFILE: &str = "deploy/Containerfile";
/// The image, as the manifests name it.
const IMAGE: &str = "localhost/tramontane:0.1.0";
/// What it may have, compressed.
const MOST: u64 = 120_000_000;
/// Files of the image that are no library's.
const FILES: [&str; 4] = ["usr/bin/tramontane", "etc/passwd", "etc/group", "etc/ssl/certs/ca-certificates.crt"];
/// Streams that run at a time.
const STREAMS: u64 = 4;
const PROMPT: [&str; 4] = ["--prompt", "The capital of France is", "--max-tokens", "60"];

/// The binary to be packed, when containers are asked for.
fn binary() -> Option<PathBuf> {
    std::env::var_os("TRAMONTANE_CONTAINERS").map(PathBuf::from)
}

/// Shown of a test that goes well, too.
fn say(what: &str) {
    _ = writeln!(std::io::stderr(), "containers: {what}");
}

/// A folder with the binary and nothing else, and without what a debugger wants.
fn packed(store: &Store, binary: &Path) -> PathBuf {
    let folder = store.path("context");
    fs::create_dir(&folder).expect("a folder");
    succeeds(Command::new("strip").arg("-o").arg(folder.join("tramontane")).arg(binary));
    folder
}

fn prebuilt(store: &Store, context: &Path) -> Image {
    store.build(CONTAINERFILE, context, IMAGE, &["--build-arg", "BUILD=prebuilt"])
}

/// Holds the image to what it is to be.
fn is_as_it_should(store: &Store, image: &Image) {
    assert_eq!((image.user.as_str(), image.layers.len()), ("65532:65532", 1), "{image:?}");
    assert_eq!(image.entrypoint, ["/usr/bin/tramontane"]);
    let files = store.files(IMAGE);
    let library = |path: &str| path.starts_with("lib") && path.contains(".so");
    let other: Vec<&String> = files.iter().filter(|path| !library(path) && !FILES.contains(&path.as_str())).collect();
    assert!(other.is_empty() && FILES.iter().all(|&path| files.contains(path)), "{files:?}");
    let compressed = store.compressed(IMAGE);
    say(&format!("{compressed} bytes compressed: {files:?}"));
    assert!(compressed < MOST, "{compressed}");
    // It runs, and computes what the binary computes outside.
    let printed = store.prints(IMAGE, &[&["up", "--json"], &PROMPT[..]].concat());
    let printed: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(printed, json(&PROMPT));
}

#[test]
fn containers_die_and_nothing_is_lost() {
    let Some(binary) = binary() else { return };
    let Some(net) = Cluster::networks() else { return };
    let (store, begun) = (Store::new(), Instant::now());
    let context = packed(&store, &binary);
    let image = prebuilt(&store, &context);
    assert_eq!(prebuilt(&store, &context), image, "built again it is the same, bit for bit");
    is_as_it_should(&store, &image);
    store.build("tests/containers/etcd.Containerfile", &context, ETCD, &[]);
    say(&format!("images after {:.0?}", begun.elapsed()));

    // What is said in one process.
    let quiet = Arc::new(Quiet::of(&Serving::start(&[])));
    let objects = Objects::render("overlays/single-node", &store.path(""));
    let etcd = ["tramontane-etcd-0.tramontane-etcd".to_owned()];
    let volumes = Volumes::make(store.path("volumes"), "main", &etcd, &["data-tramontane-etcd-0"]);
    let cluster = Cluster::start(&store, &volumes, net, &objects);
    say(&format!("all pods are ready after {:.0?}", begun.elapsed()));
    let status = |coordinator: &str| cluster.asked(coordinator, "status");
    let is_well = || status("tramontane-coordinator-1")["health"] == "HEALTH_OK";
    until("all is well", is_well);
    are_locked(&cluster);
    let door = Door { addr: cluster.gateway(), key: Some(KEY.to_owned()) };
    assert_eq!(serving::get(&door.addr, "/v1/models").status, 401, "who has no key is not answered");
    quiet.check_all(door.clone());

    let traffic = Traffic::start(door.clone(), &quiet, STREAMS);
    let kill = |victim: &str| {
        until("streams run", || in_flight(&cluster, victim));
        cluster.kill(victim);
        assert!(traffic.is_well(), "{victim} is dead");
    };
    for node in ["tramontane-expert-node-1", "tramontane-expert-node-3"] {
        kill(node);
        let is_gone = || !nodes(&cluster).contains(&node.to_owned());
        until("its lease ends", is_gone);
        cluster.replace(node);
        until("it is back, and all is well", || nodes(&cluster).contains(&node.to_owned()) && is_well());
        assert!(traffic.is_well());
    }
    kill("tramontane-coordinator-0");
    quiet.check_all(door.clone());
    cluster.replace("tramontane-coordinator-0");
    until("all is well", is_well);
    // The other one: streams go to the new one.
    kill("tramontane-coordinator-1");
    quiet.check_all(door.clone());
    cluster.replace("tramontane-coordinator-1");
    until("all is well", is_well);
    // A node that is told to end hands over what it holds.
    assert_eq!(cluster.stop("tramontane-expert-node-2"), 0);
    assert!(traffic.is_well());
    let streams = traffic.stop();
    assert!(streams > 0);
    quiet.check_all(door);
    are_untouched(&cluster);
    say(&format!("{streams} streams while containers died; {:.0?} in all", begun.elapsed()));
}

/// Whether a coordinator computes for somebody, the `victim` if it is one.
fn in_flight(cluster: &Cluster<'_>, victim: &str) -> bool {
    let coordinators: Vec<&str> = cluster.ours().filter(|name| name.contains("coordinator")).collect();
    let asked = if victim.contains("coordinator") { vec![victim] } else { coordinators };
    asked.into_iter().any(|name| cluster.running(name) > 0.0)
}

/// The nodes that are in the cluster.
fn nodes(cluster: &Cluster<'_>) -> Vec<String> {
    let nodes = cluster.asked("tramontane-coordinator-1", "nodes");
    nodes.as_array().into_iter().flatten().filter_map(|node| node["id"].as_str().map(str::to_owned)).collect()
}

/// Every process is nobody's in particular, and may do nothing that it need not.
fn are_locked(cluster: &Cluster<'_>) {
    for name in cluster.ours() {
        let told = cluster.inspect(name);
        assert_eq!(told["HostConfig"]["ReadonlyRootfs"], true, "{name}");
        let status = fs::read_to_string(format!("/proc/{}/status", told["State"]["Pid"])).expect("it runs");
        let field = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("it is there");
            line.split_whitespace().collect::<Vec<_>>()
        };
        assert_eq!(field("Uid:"), ["65532"; 4], "{name}");
        assert_eq!(field("Gid:"), ["65532"; 4], "{name}");
        for capabilities in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(field(capabilities), ["0000000000000000"], "{name}");
        }
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), (vec!["1"], vec!["2"]), "{name}");
    }
}

/// Nothing was written in any container.
fn are_untouched(cluster: &Cluster<'_>) {
    for name in cluster.ours() {
        // What podman mounts needs a place.
        let written = cluster.written(name);
        let own =
            |line: &str| ["/etc", "/run", "/dev", "/proc", "/sys"].iter().any(|place| line[2..].starts_with(place));
        assert!(written.lines().all(own), "{name}: {written}");
    }
}

#[test]
fn the_image_is_compiled_from_debians_packages_alone() {
    if binary().is_none() {
        return;
    }
    let (store, begun) = (Store::new(), Instant::now());
    // Crates come from where cargo has them already; Cargo.lock says what they have to be.
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))).expect("a home");
    let crates = format!("{}:/root/.cargo/registry:O", home.join("registry").display());
    let image = store.build(CONTAINERFILE, &file("."), IMAGE, &["--build-arg", "BUILD=compiled", "--volume", &crates]);
    say(&format!("compiled after {:.0?}", begun.elapsed()));
    is_as_it_should(&store, &image);
}
