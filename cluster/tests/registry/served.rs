//! Parents and children that go, seen from the other side.

use tramontane_cluster::registry::served::ServedRegistry;
use tramontane_cluster::registry::{Registry, RegistryError};

use crate::{LONG, placement, record, serve, served, soon};

#[tokio::test]
async fn when_the_parent_goes_watch_and_lease_are_lost() {
    let (client, _registry, stop) = served().await;
    let mut watch = client.watch();
    let lease = client.join(record("a", [1])).await.expect("joined");
    let before = soon(watch.until(|view| !view.nodes.is_empty())).await.expect("a view");
    assert!(!watch.is_lost());
    drop(stop);
    soon(lease.lost()).await;
    let lost = soon(watch.until(|_| false)).await;
    assert!(matches!(lost, Err(RegistryError::Lost { .. })), "{lost:?}");
    assert!(watch.is_lost() && matches!(watch.changed().await, Err(RegistryError::Lost { .. })));
    assert_eq!(before.nodes[&"a".into()], record("a", [1]), "what was seen stays");
    assert!(matches!(lease.update(record("a", [2])).await, Err(RegistryError::Lost { .. })));
    assert!(matches!(client.propose(placement(1, 0, "a")).await, Err(RegistryError::Lost { .. })));
    assert!(matches!(client.join(record("b", [])).await, Err(RegistryError::Lost { .. })));
}

#[tokio::test]
async fn when_a_child_dies_its_node_leaves() {
    let (url, registry, _stop) = serve().await;
    let (joined, done) = tokio::sync::oneshot::channel();
    let child = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let lease = runtime.block_on(async {
            let client = ServedRegistry::connect(&url).await.expect("a registry");
            client.join(record("a", [1])).await.expect("joined")
        });
        joined.send(()).expect("the test waits");
        // The connection breaks under the lease, which nobody drops before.
        runtime.shutdown_timeout(LONG);
        drop(lease);
    });
    soon(done).await.expect("joined");
    soon(registry.watch().until(|view| view.nodes.is_empty())).await.expect("a view");
    child.join().expect("the child ends");
}

#[tokio::test]
async fn children_see_each_other_and_the_parent() {
    let (url, registry, _stop) = serve().await;
    let one = ServedRegistry::connect(&url).await.expect("a registry");
    let two = ServedRegistry::connect(&url).await.expect("a registry");
    let _first = one.join(record("a", [1])).await.expect("joined");
    let _second = two.join(record("b", [2])).await.expect("joined");
    registry.propose(placement(1, 0, "a")).await.expect("accepted");
    for mut watch in [one.watch(), two.watch(), registry.watch()] {
        let view = soon(watch.until(|view| view.nodes.len() == 2 && view.placement.is_some())).await.expect("a view");
        assert_eq!(view.nodes[&"b".into()], record("b", [2]));
        assert_eq!(view.placement, Some(placement(1, 0, "a")));
    }
}

#[tokio::test]
async fn addresses_that_lead_nowhere_are_told_apart() {
    let nobody = ServedRegistry::connect("tramontane://127.0.0.1:1").await.err();
    assert!(matches!(nobody, Some(RegistryError::Lost { .. })), "{nobody:?}");
    let other = ServedRegistry::connect("etcd://127.0.0.1:1").await.err();
    assert!(matches!(&other, Some(RegistryError::Refused { what, .. }) if what == "registry etcd://127.0.0.1:1"));
}
