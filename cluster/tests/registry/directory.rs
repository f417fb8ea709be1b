//! What every directory does; then what only the one in etcd can do.

use tramontane_cluster::engine::EngineInfo;
use tramontane_cluster::registry::directory::{
    Directory, EmbeddedDirectory, EngineId, EngineRecord, Engines, MAX_ENGINES,
};
use tramontane_cluster::registry::etcd::EtcdDirectory;
use tramontane_cluster::registry::{MAX_NAME, RegistryError};

use crate::etcd_server::Etcd;
use crate::{profile, soon};

fn record(name: &str, addr: &str) -> EngineRecord {
    let info = EngineInfo { model: "m".into(), context: 8, vocab: 9, fingerprint: "fp_1".into() };
    EngineRecord { id: name.into(), addr: addr.into(), info, profile: profile(), draining: false }
}

fn at<'a>(engines: &'a Engines, name: &str) -> Option<&'a EngineRecord> {
    engines.get(&EngineId::from(name))
}

fn refusal<T>(result: Result<T, RegistryError>, whose: &str) -> String {
    match result {
        Err(RegistryError::Refused { what, why }) if what == format!("engine {whose}") => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    }
}

async fn an_engine_is_seen_from_announcement_to_drop(directory: &dyn Directory) {
    let mut watch = directory.watch();
    assert!(soon(watch.changed()).await.expect("the engines as they are").is_empty());
    let announced = directory.announce(record("a", "h:1")).await.expect("announced");
    let seen = soon(watch.until(|engines| at(engines, "a").is_some())).await.expect("it is seen");
    assert_eq!(at(&seen, "a"), Some(&record("a", "h:1")));
    let leaving = EngineRecord { draining: true, ..record("a", "h:2") };
    announced.update(leaving.clone()).await.expect("updated");
    soon(watch.until(|engines| at(engines, "a") == Some(&leaving))).await.expect("it is seen");
    drop(announced);
    soon(watch.until(Engines::is_empty)).await.expect("it is gone");
    directory.announce(record("a", "h:3")).await.expect("the name is free again");
}

async fn a_name_is_taken_once_and_stays(directory: &dyn Directory) {
    let announced = directory.announce(record("a", "h:1")).await.expect("announced");
    let taken = directory.announce(record("a", "h:2")).await.err();
    assert_eq!(taken, Some(RegistryError::EngineTaken { engine: "a".into() }));
    refusal(announced.update(record("b", "h:1")).await, "a");
    let _other = directory.announce(record("b", "h:2")).await.expect("announced");
    let seen = soon(directory.watch().until(|engines| engines.len() == 2)).await.expect("both are seen");
    assert_eq!(at(&seen, "a"), Some(&record("a", "h:1")), "the first stays");
}

async fn names_and_numbers_have_bounds(directory: &dyn Directory) {
    refusal(directory.announce(record("", "h:1")).await, "");
    let long = "x".repeat(MAX_NAME + 1);
    refusal(directory.announce(record(&long, "h:1")).await, &long);
    let mut announced = Vec::new();
    for i in 0..MAX_ENGINES {
        announced.push(directory.announce(record(&format!("e{i}"), "h:1")).await.expect("announced"));
    }
    let why = refusal(directory.announce(record("late", "h:1")).await, "late");
    assert!(why.contains("has 256 engines"), "{why}");
}

macro_rules! conformance {
    ($($name:ident)*) => {
        mod embedded {
            $(#[tokio::test] async fn $name() { super::$name(&super::EmbeddedDirectory::default()).await; })*
        }
        mod etcd {
            $(#[tokio::test] async fn $name() {
                let etcd = super::Etcd::start().await;
                super::$name(&super::connect(&etcd).await).await;
            })*
        }
    };
}

conformance! {
    an_engine_is_seen_from_announcement_to_drop
    a_name_is_taken_once_and_stays
    names_and_numbers_have_bounds
}

async fn connect(etcd: &Etcd) -> EtcdDirectory {
    EtcdDirectory::connect(&etcd.options()).await.expect("a directory")
}

#[tokio::test]
async fn processes_share_it_and_the_key_is_readable_json() {
    let etcd = Etcd::start().await;
    let (one, two) = (connect(&etcd).await, connect(&etcd).await);
    let _announced = one.announce(record("c1", "127.0.0.1:7")).await.expect("announced");
    let seen = soon(two.watch().until(|engines| engines.len() == 1)).await.expect("it is seen");
    assert_eq!(at(&seen, "c1"), Some(&record("c1", "127.0.0.1:7")));
    assert!(two.announce(record("c1", "127.0.0.1:8")).await.is_err(), "the name is taken");
    let (_, printed) = etcd.ctl(&["get", "--prefix", "/tramontane/"]);
    let lines: Vec<&str> = printed.lines().collect();
    let json = r#"{"id":"c1","addr":"127.0.0.1:7","info":{"model":"m","context":8,"vocab":9,"fingerprint":"fp_1"},"profile":{"contract":1,"weights":"00ff","quantization":"f32"},"draining":false}"#;
    assert_eq!(lines, ["/tramontane/test/coordinators/c1", json]);
}

#[tokio::test]
async fn an_engine_whose_lease_was_lost_comes_back_and_rubbish_is_passed_over() {
    let etcd = Etcd::start().await;
    let directory = connect(&etcd).await;
    let announced = directory.announce(record("a", "h:1")).await.expect("announced");
    let mut watch = directory.watch();
    soon(watch.until(|engines| engines.len() == 1)).await.expect("it is seen");
    let (_, listed) = etcd.ctl(&["lease", "list"]);
    assert!(etcd.ctl(&["lease", "revoke", listed.lines().nth(1).expect("a lease")]).0);
    soon(watch.until(Engines::is_empty)).await.expect("it is gone");
    assert!(etcd.ctl(&["put", "/tramontane/test/coordinators/b", "{"]).0);
    assert!(
        etcd.ctl(&["put", "/tramontane/test/coordinators/c", &serde_json::to_string(&record("d", "x")).expect("JSON")])
            .0
    );
    let seen = soon(watch.until(|engines| !engines.is_empty())).await.expect("it is back");
    assert_eq!(seen.keys().map(EngineId::as_str).collect::<Vec<_>>(), ["a"]);
    announced.update(record("a", "h:2")).await.expect("its place goes on");
    soon(watch.until(|engines| at(engines, "a") == Some(&record("a", "h:2")))).await.expect("it is seen");
}

#[tokio::test]
async fn who_says_farewell_is_gone_at_once() {
    let etcd = Etcd::start().await;
    let (leaving, other) = (connect(&etcd).await, connect(&etcd).await);
    let announced = leaving.announce(record("a", "h:1")).await.expect("announced");
    drop(announced);
    leaving.farewell().await;
    let _again = other.announce(record("a", "h:2")).await.expect("the name is free");
}

#[tokio::test]
async fn where_no_etcd_is_it_is_lost() {
    let options = crate::etcd_server::options("127.0.0.1:1");
    let lost = EtcdDirectory::connect(&options).await.err();
    assert!(matches!(lost, Some(RegistryError::Lost { .. })), "{lost:?}");
}
