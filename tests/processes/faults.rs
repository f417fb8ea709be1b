//! Processes that die, and what becomes of the others.

use std::path::Path;

use tempfile::TempDir;

use crate::checkpoint;
use crate::procfs::{Process, children};
use crate::run::{Running, run, until};

const NODES: usize = 4;

/// A cluster of processes amid a completion that lasts until something ends it.
struct Cluster {
    parent: Running,
    nodes: Vec<Process>,
    model: TempDir,
}

impl Cluster {
    fn start() -> Self {
        let model = checkpoint::endless();
        let count = NODES.to_string();
        let mut args = vec!["up", "--processes", "--expert-nodes", &count, "--model", path(&model)];
        args.extend(["--prompt", "The capital of France is", "--temperature", "1", "--ignore-eos"]);
        args.extend(["--max-tokens", "1000000", "--kv-memory", "100000000"]);
        let mut parent = Running::start(&args);
        parent.until_it_says_more();
        let nodes = children(parent.pid());
        assert_eq!(nodes.len(), NODES, "{nodes:?}");
        Self { parent, nodes, model }
    }

    fn registry(&self) -> String {
        self.nodes[0].argument("--registry").expect("nodes are told their registry")
    }
}

fn path(folder: &TempDir) -> &str {
    folder.path().to_str().expect("a path in UTF-8")
}

fn until_gone(processes: &[Process]) {
    until("the nodes are gone", || processes.iter().all(|process| process.is_gone()));
}

#[test]
fn a_killed_node_is_started_again_and_the_stream_goes_on() {
    let mut cluster = Cluster::start();
    let victim = cluster.nodes[2];
    let id = victim.argument("--id").expect("a node has an id");
    victim.kill();
    until("another process has its name", || {
        let names = |node: &Process| (node.pid, node.argument("--id"));
        let named = children(cluster.parent.pid()).iter().map(names).find(|(_, name)| *name == Some(id.clone()));
        named.is_some_and(|(pid, _)| pid != victim.pid)
    });
    for _ in 0..100 {
        cluster.parent.until_it_says_more();
    }
    assert!(cluster.parent.is_running());
}

#[test]
fn a_killed_parent_leaves_no_node_behind() {
    let mut cluster = Cluster::start();
    cluster.parent.kill();
    until_gone(&cluster.nodes);
    let outcome = cluster.parent.outcome();
    assert_eq!(outcome.code, None, "{}", outcome.stderr);
    for id in (0..NODES).map(|i| format!("node-{i}")) {
        let why = format!("tramontane: expert node {id} is not in the cluster: the registry is lost");
        assert!(outcome.stderr.contains(&why), "{id}: {}", outcome.stderr);
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_cluster() {
    let mut cluster = Cluster::start();
    cluster.parent.stop_reading();
    let outcome = cluster.parent.outcome();
    assert!(outcome.code == Some(1) && outcome.stderr.contains("stdout"), "{:?}: {}", outcome.code, outcome.stderr);
    until_gone(&cluster.nodes);
}

#[test]
fn a_node_that_does_not_belong_is_refused_with_the_reason() {
    let mut cluster = Cluster::start();
    let registry = cluster.registry();
    let other = checkpoint::with_flipped_bit();
    let join = |id: &str, more: &[&str]| run(&[&["expert-node", "--registry", &registry, "--id", id], more].concat());
    let own = path(&cluster.model);
    let twice = ["--model", own, "--lease", "1"];
    let cases: [(&str, &[&str], &str); 3] = [
        ("foreign", &["--quantize", "q8_0"], "quantisation bf16 here, q8_0 there"),
        ("flipped", &["--model", path(&other)], "weights"),
        // It waits as long as a lease of its own would last.
        ("node-1", &twice, "a node of this name is in the cluster"),
    ];
    for (id, more, why) in cases {
        let outcome = join(id, more);
        let refused = format!("tramontane: expert node {id} is not in the cluster: node {id} refused: ");
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""), "{}", outcome.stderr);
        let reason = outcome.stderr.strip_prefix(&refused);
        assert!(reason.is_some_and(|reason| reason.contains(why)), "{why}: {}", outcome.stderr);
    }
    // The cluster is none the worse.
    cluster.parent.until_it_says_more();
    assert!(cluster.parent.is_running() && Path::exists(cluster.model.path()));
    assert_eq!(children(cluster.parent.pid()).len(), NODES);
}
