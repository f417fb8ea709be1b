//! What all accounts do; then what only those in etcd can do.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tramontane_cluster::registry::RegistryError;
use tramontane_cluster::registry::accounts::{
    Accounts, Day, EmbeddedAccounts, KeyHash, KeyLimits, KeyRecord, KeyRecords, Usage, UsageEntry, UsageId, UsageQuery,
};
use tramontane_cluster::registry::etcd::EtcdAccounts;

use crate::etcd_server::{Etcd, Wire, options};
use crate::soon;

fn record(name: &str) -> KeyRecord {
    let limits = KeyLimits {
        rpm: 60.try_into().ok(),
        tpm: None,
        monthly_tokens: 1_000_000.try_into().ok(),
        expires: Some(1_900_000_000),
        models: BTreeSet::from(["m".to_owned()]),
    };
    KeyRecord { name: name.into(), sha256: KeyHash([7; 32]), limits, created: 1_800_000_000 }
}

fn day(text: &str) -> Day {
    text.parse().expect("a day")
}

fn id(key: &str, on: &str, model: &str) -> UsageId {
    UsageId { key: key.into(), day: day(on), model: model.into() }
}

fn entry(id: &UsageId, writer: &str, number: u64, tokens: u64) -> UsageEntry {
    let usage = Usage { requests: 1, prompt_tokens: tokens, completion_tokens: 1 };
    UsageEntry { id: id.clone(), writer: writer.into(), number, usage }
}

fn november(key: Option<&str>) -> UsageQuery {
    UsageQuery { key: key.map(Into::into), from: day("2026-11-01"), to: day("2026-11-30") }
}

fn why<T>(result: Result<T, RegistryError>) -> String {
    match result {
        Err(RegistryError::Refused { why, .. }) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    }
}

async fn until(keys: &mut watch::Receiver<Arc<KeyRecords>>, condition: impl Fn(&KeyRecords) -> bool) {
    soon(keys.wait_for(|keys| condition(keys))).await.expect("the registry is there");
}

async fn a_key_is_seen_from_its_making_to_its_revocation(accounts: &dyn Accounts) {
    let mut keys = accounts.watch();
    soon(keys.changed()).await.expect("the keys as they are");
    assert!(keys.borrow_and_update().is_empty());
    accounts.create(record("alice")).await.expect("made");
    assert_eq!(accounts.watch().borrow().get("alice").map(|seen| (**seen).clone()), Some(record("alice")));
    until(&mut keys, |keys| keys.len() == 1).await;
    assert!(accounts.revoke("alice").await.expect("revoked"));
    assert!(accounts.watch().borrow().is_empty());
    until(&mut keys, KeyRecords::is_empty).await;
    assert!(!accounts.revoke("alice").await.expect("asked"), "there is none any more");
    accounts.create(record("alice")).await.expect("the name is free again");
}

async fn a_name_is_taken_once_and_must_be_one(accounts: &dyn Accounts) {
    accounts.create(record("alice")).await.expect("made");
    let other = KeyRecord { sha256: KeyHash([8; 32]), ..record("alice") };
    assert!(why(accounts.create(other).await).contains("a key of this name"));
    assert_eq!(
        accounts.watch().borrow().get("alice").map(|seen| seen.sha256),
        Some(KeyHash([7; 32])),
        "the first stays"
    );
    for wrong in ["", "a/b", "../x"] {
        assert!(why(accounts.create(record(wrong)).await).contains("a name has"), "{wrong}");
    }
}

async fn usage_is_added_up_by_key_day_and_model(accounts: &dyn Accounts) {
    let (first, last) = (id("a", "2026-11-01", "m"), id("a", "2026-11-30", "org/m"));
    let others = [id("a", "2026-10-31", "m"), id("a", "2026-12-01", "m"), id("a-b", "2026-11-05", "m")];
    for record in others.iter().chain([&first, &last]) {
        accounts.add(entry(record, "w", 1, 10)).await.expect("added");
    }
    accounts.add(entry(&first, "w", 2, 5)).await.expect("added");
    accounts.add(entry(&first, "v", 1, 2)).await.expect("added");
    let sum = |requests, prompt_tokens, completion_tokens| Usage { requests, prompt_tokens, completion_tokens };
    let of_a = vec![(first, sum(3, 17, 3)), (last, sum(1, 10, 1))];
    assert_eq!(accounts.usage(november(Some("a"))).await.expect("rows"), of_a);
    let all = [of_a, vec![(others[2].clone(), sum(1, 10, 1))]].concat();
    assert_eq!(accounts.usage(november(None)).await.expect("rows"), all);
    assert_eq!(accounts.usage(november(Some("b"))).await.expect("rows"), []);
}

async fn an_entry_counts_once_however_often_it_comes(accounts: &dyn Accounts) {
    let of = id("a", "2026-11-01", "m");
    for (writer, number) in [("w", 1), ("w", 1), ("v", 7), ("w", 2), ("w", 1), ("v", 7), ("w", 2)] {
        accounts.add(entry(&of, writer, number, 10)).await.expect("added");
    }
    let rows = accounts.usage(november(None)).await.expect("rows");
    assert_eq!(rows, [(of, Usage { requests: 3, prompt_tokens: 30, completion_tokens: 3 })]);
}

async fn revoking_a_key_keeps_what_it_has_used(accounts: &dyn Accounts) {
    accounts.create(record("a")).await.expect("made");
    accounts.add(entry(&id("a", "2026-11-01", "m"), "w", 1, 10)).await.expect("added");
    assert!(accounts.revoke("a").await.expect("revoked"));
    assert_eq!(accounts.usage(november(None)).await.expect("rows").len(), 1);
}

macro_rules! conformance {
    ($($name:ident)*) => {
        mod embedded {
            $(#[tokio::test] async fn $name() { super::$name(&super::EmbeddedAccounts::default()).await; })*
        }
        mod etcd {
            $(#[tokio::test] async fn $name() {
                let etcd = super::Etcd::start().await;
                super::$name(&super::connect(&etcd.endpoint()).await).await;
            })*
        }
    };
}

conformance! {
    a_key_is_seen_from_its_making_to_its_revocation
    a_name_is_taken_once_and_must_be_one
    usage_is_added_up_by_key_day_and_model
    an_entry_counts_once_however_often_it_comes
    revoking_a_key_keeps_what_it_has_used
}

async fn connect(endpoint: &str) -> EtcdAccounts {
    EtcdAccounts::connect(&options(endpoint)).await.expect("accounts")
}

#[tokio::test]
async fn processes_share_them_and_what_stands_there_is_readable_json() {
    let etcd = Etcd::start().await;
    let (one, two) = (connect(&etcd.endpoint()).await, connect(&etcd.endpoint()).await);
    one.create(record("alice")).await.expect("made");
    until(&mut two.watch(), |keys| keys.contains_key("alice")).await;
    one.add(entry(&id("alice", "2026-11-26", "org/m"), "w", 3, 5)).await.expect("added");
    let (_, printed) = etcd.ctl(&["get", "--prefix", "/tramontane/"]);
    let lines: Vec<&str> = printed.lines().collect();
    let key = format!(
        r#"{{"name":"alice","sha256":"{}","limits":{{"rpm":60,"monthly_tokens":1000000,"expires":1900000000,"models":["m"]}},"created":1800000000}}"#,
        "07".repeat(32)
    );
    let usage = r#"{"requests":1,"prompt_tokens":5,"completion_tokens":1,"writers":[["w",3]]}"#;
    assert_eq!(lines, ["/tramontane/test/keys/alice", &key, "/tramontane/test/usage/alice/2026-11-26/org/m", usage]);
    assert!(two.revoke("alice").await.expect("revoked"));
    until(&mut one.watch(), KeyRecords::is_empty).await;
}

/// Many writers, each with many entries, all to one record at once.
#[tokio::test]
async fn those_who_add_to_one_record_at_once_lose_nothing() {
    const WRITERS: u64 = 6;
    const ENTRIES: u64 = 10;
    let etcd = Etcd::start().await;
    let accounts = Arc::new(connect(&etcd.endpoint()).await);
    let of = id("a", "2026-11-01", "m");
    let writers = (0..WRITERS).map(|writer| {
        let (accounts, of) = (accounts.clone(), of.clone());
        tokio::spawn(async move {
            for number in 1..=ENTRIES {
                let entry = entry(&of, &format!("w{writer}"), number, writer);
                soon(accounts.add(entry)).await.expect("added");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("it added all of its own");
    }
    let rows = accounts.usage(november(None)).await.expect("rows");
    let prompt_tokens = ENTRIES * (0..WRITERS).sum::<u64>();
    assert_eq!(
        rows,
        [(of, Usage { requests: WRITERS * ENTRIES, prompt_tokens, completion_tokens: WRITERS * ENTRIES })]
    );
}

#[tokio::test]
async fn the_last_keys_stand_while_etcd_is_away_and_rubbish_is_no_key() {
    let etcd = Etcd::start().await;
    let wire = Wire::to(etcd.endpoint()).await;
    let (near, far) = (connect(&wire.endpoint).await, connect(&etcd.endpoint()).await);
    far.create(record("alice")).await.expect("made");
    let mut keys = near.watch();
    until(&mut keys, |keys| keys.contains_key("alice")).await;
    wire.cut();
    let of = id("alice", "2026-11-01", "m");
    let lost = near.add(entry(&of, "w", 1, 10)).await;
    assert!(matches!(lost, Err(RegistryError::Lost { .. })), "{lost:?}");
    far.create(record("bob")).await.expect("made");
    assert!(etcd.ctl(&["put", "/tramontane/test/keys/carol", r#"{"name":"carol","sha256":"sk-no-hash"}"#]).0);
    assert!(etcd.ctl(&["put", "/tramontane/test/keys/dave", &serde_json::to_string(&record("eve")).expect("JSON")]).0);
    assert_eq!(keys.borrow().keys().map(|name| &**name).collect::<Vec<_>>(), ["alice"]);
    wire.mend();
    until(&mut keys, |keys| keys.keys().map(|name| &**name).eq(["alice", "bob"])).await;
    // A record that was whole and is no more, is no key any more.
    assert!(etcd.ctl(&["put", "/tramontane/test/keys/bob", "{"]).0);
    until(&mut keys, |keys| keys.keys().map(|name| &**name).eq(["alice"])).await;
    near.add(entry(&of, "w", 1, 10)).await.expect("added at last");
    assert_eq!(far.usage(november(None)).await.expect("rows").len(), 1);
}
