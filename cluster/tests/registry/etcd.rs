//! What only a registry in etcd can do, and what becomes of it when etcd goes.

use std::sync::Arc;
use std::time::Instant;

use tramontane_cluster::registry::etcd::EtcdRegistry;
use tramontane_cluster::registry::{Accepted, Health, Lease, Registry, RegistryError};
use tramontane_router::placement::{Order, Placement, WentBack};
use tramontane_router::{ClusterView, Epoch, ModelId};

use crate::etcd_server::{Etcd, Wire, options};
use crate::{LONG, POLL, placement, profile, record, soon};

async fn connect(etcd: &Etcd) -> EtcdRegistry {
    connect_to(&etcd.endpoint()).await
}

async fn connect_to(endpoint: &str) -> EtcdRegistry {
    EtcdRegistry::connect(&options(endpoint), ModelId::from("m"), profile()).await.expect("a registry")
}

async fn shows(registry: &EtcdRegistry, condition: impl FnMut(&ClusterView) -> bool) -> Arc<ClusterView> {
    soon(registry.watch().until(condition)).await.expect("a view")
}

fn at(epoch: u64) -> impl FnMut(&ClusterView) -> bool {
    move |view| view.placement.as_ref().is_some_and(|placement| placement.epoch == Epoch(epoch))
}

/// Waits until `condition` holds of what etcd or a registry says.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LONG, "still not: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Proposes until etcd answers.
async fn propose(registry: &EtcdRegistry, placement: &Placement) -> Result<Accepted, RegistryError> {
    let begun = Instant::now();
    loop {
        match registry.propose(placement.clone()).await {
            Err(RegistryError::Lost { why }) => assert!(begun.elapsed() < LONG, "{why}"),
            answer => return answer,
        }
    }
}

#[tokio::test]
async fn the_keys_are_readable_json() {
    let etcd = Etcd::start().await;
    let registry = connect(&etcd).await;
    let _lease = registry.join(record("a", [1])).await.expect("joined");
    let _leader = soon(registry.lead("c1")).await.expect("it leads");
    registry.propose(placement(1, 0, "a")).await.expect("accepted");
    registry.order(Order::Cordon("b".into())).await.expect("taken");
    registry.tell_refused("c".into(), "other weights".into()).await;
    let (_, printed) = etcd.ctl(&["get", "--prefix", "/tramontane/"]);
    let lines: Vec<&str> = printed.lines().collect();
    let wanted = [
        "/tramontane/test/leader",
        r#"{"name":"c1"}"#,
        "/tramontane/test/models/m/orders",
        r#"{"version":1,"cordoned":["b"],"rebalance":null,"blocked":null}"#,
        "/tramontane/test/models/m/placement",
        r#"{"model":"m","epoch":1,"parent":0,"replicas":[{"layer":0,"expert":1,"nodes":["a"]}]}"#,
        "/tramontane/test/models/m/profile",
        r#"{"contract":1,"weights":"00ff","quantization":"f32"}"#,
        "/tramontane/test/nodes-refused/c",
        r#"{"why":"other weights"}"#,
        "/tramontane/test/nodes/a",
        r#"{"id":"a","addr":"127.0.0.1:7","held":[{"layer":0,"expert":1}],"profile":{"contract":1,"weights":"00ff","quantization":"f32"},"capacity":1073741824,"speed":7,"zone":"rack 1","draining":false}"#,
    ];
    assert_eq!(lines, wanted);
}

#[tokio::test]
async fn several_processes_share_one_view_and_a_foreign_one_is_refused() {
    let etcd = Etcd::start().await;
    let (one, two) = (connect(&etcd).await, connect(&etcd).await);
    let _lease = one.join(record("a", [1])).await.expect("joined");
    shows(&two, |view| view.nodes.len() == 1).await;
    let twice = two.join(record("a", [2])).await.err();
    assert_eq!(twice, Some(RegistryError::Taken { node: "a".into() }));
    let (options, mut other) = (etcd.options(), profile());
    other.quantization = "q8_0".into();
    let refused = EtcdRegistry::connect(&options, ModelId::from("m"), other)
        .await
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(refused.contains("quantisation f32 here, q8_0 there"), "{refused}");
}

#[tokio::test]
async fn a_node_whose_lease_was_lost_joins_again_by_itself() {
    let etcd = Etcd::start().await;
    let registry = connect(&etcd).await;
    let lease = registry.join(record("a", [1])).await.expect("joined");
    shows(&registry, |view| view.nodes.len() == 1).await;
    let (_, listed) = etcd.ctl(&["lease", "list"]);
    let id = listed.lines().nth(1).expect("a lease");
    assert!(etcd.ctl(&["lease", "revoke", id]).0);
    shows(&registry, |view| view.nodes.is_empty()).await;
    let back = shows(&registry, |view| view.nodes.len() == 1).await;
    assert_eq!(back.nodes[&"a".into()], record("a", [1]));
    lease.update(record("a", [2])).await.expect("the lease goes on");
    shows(&registry, |view| view.nodes.values().any(|node| *node == record("a", [2]))).await;
}

#[tokio::test]
async fn a_node_whose_name_was_taken_meanwhile_gives_up() {
    let etcd = Etcd::start().await;
    let wire = Wire::to(etcd.endpoint()).await;
    let (cut_off, other) = (connect_to(&wire.endpoint).await, connect(&etcd).await);
    let lost = cut_off.join(record("a", [1])).await.expect("joined");
    // Only who has seen it come can see it go.
    shows(&other, |view| view.nodes.len() == 1).await;
    wire.cut();
    shows(&other, |view| view.nodes.is_empty()).await;
    let kept = other.join(record("a", [2])).await.expect("the name is free");
    wire.mend();
    soon(lost.lost()).await;
    assert!(lost.update(record("a", [3])).await.is_err());
    drop(lost);
    kept.update(record("a", [4])).await.expect("the second stays");
    shows(&other, |view| view.nodes.values().any(|node| *node == record("a", [4]))).await;
}

#[tokio::test]
async fn while_etcd_is_down_the_view_stays_and_changes_are_refused_and_afterwards_all_goes_on() {
    let mut etcd = Etcd::start().await;
    let registry = connect(&etcd).await;
    let lease = registry.join(record("a", [1])).await.expect("joined");
    let leader = soon(registry.lead("c1")).await.expect("it leads");
    registry.propose(placement(1, 0, "a")).await.expect("accepted");
    let before = shows(&registry, |view| view.nodes.len() == 1 && view.placement.is_some()).await;
    etcd.kill();
    until("noticed", || matches!(registry.health(), Health::Disconnected { .. })).await;
    assert_eq!(registry.watch().current(), before);
    let refused = registry.propose(placement(2, 1, "b")).await;
    assert!(matches!(&refused, Err(RegistryError::Lost { why }) if why.contains("etcd")), "{refused:?}");
    let update = tokio::spawn(async move { lease.update(record("a", [2])).await.map(|()| lease) });
    etcd.run().await;
    let _lease: Box<dyn Lease> = soon(update).await.expect("no panic").expect("written when etcd is back");
    shows(&registry, |view| view.nodes.values().any(|node| *node == record("a", [2]))).await;
    until("noticed", || registry.health() == Health::Connected).await;
    drop(leader);
    // The leadership may have ended meanwhile; then it is to be won again.
    let (second, mut leadership) = (placement(2, 1, "b"), None);
    let outcome = loop {
        match propose(&registry, &second).await {
            Err(RegistryError::NotLeader { .. }) => {
                drop(leadership.take());
                leadership = Some(soon(registry.lead("c1")).await.expect("it leads"));
            }
            outcome => break outcome,
        }
    };
    assert_eq!(outcome, Ok(Accepted { epoch: Epoch(2) }));
}

#[tokio::test]
async fn after_a_compaction_a_watcher_that_was_away_sees_what_is() {
    let etcd = Etcd::start().await;
    let wire = Wire::to(etcd.endpoint()).await;
    let (away, other) = (connect_to(&wire.endpoint).await, connect(&etcd).await);
    let gone = other.join(record("gone", [1])).await.expect("joined");
    shows(&away, |view| view.nodes.len() == 1).await;
    wire.cut();
    drop(gone);
    let _lease = other.join(record("new", [2])).await.expect("joined");
    shows(&other, |view| view.nodes.len() == 1 && view.nodes.contains_key(&"new".into())).await;
    let (_, status) = etcd.ctl(&["get", "x", "-w", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let revision = status["header"]["revision"].as_i64().expect("a revision");
    assert!(etcd.ctl(&["compact", &revision.to_string()]).0);
    wire.mend();
    let view = shows(&away, |view| view.nodes.contains_key(&"new".into())).await;
    assert_eq!(view.nodes.len(), 1);
}

#[tokio::test]
async fn a_leader_that_was_away_is_fenced() {
    let etcd = Etcd::start().await;
    let wire = Wire::to(etcd.endpoint()).await;
    let (old, new) = (connect_to(&wire.endpoint).await, connect(&etcd).await);
    let old_leadership = soon(old.lead("old")).await.expect("it leads");
    old.propose(placement(1, 0, "a")).await.expect("accepted");
    let unelected = new.propose(placement(2, 1, "b")).await;
    assert_eq!(unelected, Err(RegistryError::NotLeader { why: "old leads".into() }));
    wire.cut();
    let _new_leadership = soon(new.lead("new")).await.expect("it leads when the old lease is over");
    wire.mend();
    let stale = propose(&old, &placement(2, 1, "stale")).await;
    assert_eq!(stale, Err(RegistryError::NotLeader { why: "new leads".into() }));
    assert_eq!(new.propose(placement(2, 1, "b")).await, Ok(Accepted { epoch: Epoch(2) }));
    soon(old_leadership.lost()).await;
}

#[tokio::test]
async fn a_leadership_given_up_is_taken_over() {
    let etcd = Etcd::start().await;
    let (one, two) = (connect(&etcd).await, connect(&etcd).await);
    let first = soon(one.lead("one")).await.expect("it leads");
    let waiting = tokio::spawn(async move { two.lead("two").await.map(|led| (led, two)) });
    drop(first);
    let (_led, two) = soon(waiting).await.expect("no panic").expect("it leads");
    assert_eq!(two.propose(placement(1, 0, "b")).await, Ok(Accepted { epoch: Epoch(1) }));
}

#[tokio::test]
async fn a_restored_snapshot_is_noticed_refused_and_repaired() {
    let mut etcd = Etcd::start().await;
    let registry = connect(&etcd).await;
    let leader = soon(registry.lead("c1")).await.expect("it leads");
    registry.propose(placement(1, 0, "a")).await.expect("accepted");
    let snapshot = etcd.save();
    registry.propose(placement(2, 1, "b")).await.expect("accepted");
    registry.propose(placement(3, 2, "c")).await.expect("accepted");
    shows(&registry, at(3)).await;
    etcd.restore(&snapshot).await;
    let went_back = Health::WentBack(WentBack { seen: Epoch(3), found: Epoch(1) });
    until("noticed", || registry.health() == went_back).await;
    assert_eq!(registry.watch().current().placement, Some(placement(3, 2, "c")), "what was seen stays");
    let refused = propose(&registry, &placement(2, 1, "x")).await;
    assert!(matches!(&refused, Err(RegistryError::Refused { why, .. }) if why.contains("--from-live")), "{refused:?}");
    // The snapshot holds the old leader's key, without a lease that lives.
    drop(leader);
    let _leader = soon(registry.lead("c1")).await.expect("it leads");
    assert_eq!(registry.restore().await, Ok(Accepted { epoch: Epoch(4) }));
    let view = shows(&registry, at(4)).await;
    assert_eq!(view.placement.as_ref().map(|p| &p.replicas), Some(&placement(4, 3, "c").replicas));
    until("noticed", || registry.health() == Health::Connected).await;
    assert!(matches!(registry.restore().await, Err(RegistryError::Refused { .. })));
}

#[tokio::test]
async fn who_may_not_come_in_is_told_so() {
    let etcd = Etcd::start().await;
    assert!(etcd.ctl(&["user", "add", "root:swordfish"]).0);
    assert!(etcd.ctl(&["user", "grant-role", "root", "root"]).0 || etcd.ctl(&["role", "add", "root"]).0);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    assert!(etcd.ctl(&["auth", "enable"]).0);
    let mut options = etcd.options();
    let mut connect = async |user: Option<(&str, &str)>| {
        options.user = user.map(|(name, password)| (name.into(), password.into()));
        EtcdRegistry::connect(&options, ModelId::from("m"), profile()).await
    };
    let nameless = connect(None).await.err();
    assert!(nameless.is_some(), "without a name");
    let wrong = connect(Some(("root", "trout"))).await.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(!wrong.is_empty() && !wrong.contains("trout"), "{wrong}");
    let registry = connect(Some(("root", "swordfish"))).await.expect("let in");
    let _lease = registry.join(record("a", [1])).await.expect("joined");
    shows(&registry, |view| view.nodes.len() == 1).await;
}
