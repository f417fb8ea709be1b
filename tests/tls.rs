//! A cluster whose processes show one another certificates, made by `tramontane certs`: who is not meant is let in nowhere, and
//! certificates and authorities are changed while it serves.

#[path = "tls/cluster.rs"]
mod cluster;
#[path = "../cluster/tests/registry/etcd_server.rs"]
mod etcd_server;
#[path = "tls/front.rs"]
mod front;
#[path = "processes/run.rs"]
mod run;
#[path = "support/serving.rs"]
mod serving;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use cluster::{Certs, Cluster, Port, reaches};
use run::{run, until};
use serving::post;

/// By when anything that is to happen has happened; only a failing test waits for it.
const LONG: Duration = Duration::from_secs(60);
/// How often what nobody tells us of is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Roles, as commands take them.
const ROLES: [&str; 4] = ["coordinator", "expert-node", "gateway", "admin"];

#[test]
fn who_is_not_meant_is_let_in_nowhere() {
    let certs = Certs::new("test");
    let cluster = Cluster::start(&certs);
    let (elsewhere, stranger) = (certs.of_cluster("staging"), Certs::new("test"));
    for (port, addr) in cluster.ports() {
        let reached = |what: &str, identity: Option<(&Certs, &str)>| {
            let reached = cluster.runtime().block_on(reaches(port, &addr, identity, &certs));
            let meant = what == "the one who is meant";
            assert_eq!(reached.is_ok(), meant, "{what} at {port:?}: {reached:?}");
        };
        for role in ROLES {
            let what = if role == port.admits() { "the one who is meant" } else { role };
            reached(what, Some((&certs, role)));
        }
        reached("nobody", None);
        reached("one of another cluster", Some((&elsewhere, port.admits())));
        reached("one of another authority", Some((&stranger, port.admits())));
    }
    // The same by command.
    let status = |more: &[&str]| run(&[&["status", "--endpoint", cluster.admin()], more].concat());
    let admin = status(&certs.flags("admin"));
    assert_eq!(admin.code, Some(0), "{}{}", admin.stdout, admin.stderr);
    assert_eq!(status(&[]).code, Some(3));
    let gateway = status(&certs.flags("gateway"));
    assert_eq!(gateway.code, Some(1), "{}", gateway.stderr);
    assert!(gateway.stderr.contains("it is for gateway of cluster test"), "{}", gateway.stderr);
}

/// Says so when it is dropped.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn certificates_and_authorities_change_while_streams_run() {
    let certs = Certs::new("test");
    let old = certs.copy();
    let mut cluster = Cluster::start(&certs);
    let body =
        json!({"prompt": "Peru", "max_tokens": 200, "ignore_eos": true, "temperature": 0.7, "seed": 7, "stream": true});
    let addr = cluster.gateway().addr().to_owned();
    let text = || {
        let reply = post(&addr, "/v1/completions", &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        let events = reply.events();
        let pieces = events.iter().filter_map(|event| event["choices"][0]["text"].as_str().map(str::to_owned));
        pieces.collect::<String>()
    };
    let quiet = text();
    assert!(!quiet.is_empty());
    let done = AtomicBool::new(false);
    let everywhere = |identity: &Certs, trusted: &Certs, let_in: bool| {
        let reached = |(port, addr): (Port, String)| {
            cluster.runtime().block_on(reaches(port, &addr, Some((identity, port.admits())), trusted)).is_ok()
        };
        until("all ports have read their files again", || {
            cluster.ports().into_iter().all(|port| reached(port) == let_in)
        });
    };
    let streams = thread::scope(|scope| {
        let streams = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::SeqCst) {
                assert_eq!(text(), quiet);
                count += 1;
            }
            count
        });
        // Also when something below fails: the streams would go on for ever.
        let telling = Done(&done);
        // A new authority is trusted beside the old one: what it signs is let in, and what the old one has signed still is.
        certs.rotate(&["--authority"]);
        let new = certs.copy();
        new.rotate(&[]);
        everywhere(&new, &certs, true);
        everywhere(&old, &certs, true);
        // Certificates are signed by the new one: who trusts it alone finds all ports genuine.
        certs.rotate(&[]);
        let only_new = certs.copy();
        only_new.rotate(&["--retire"]);
        everywhere(&only_new, &only_new, true);
        // The old one is forgotten.
        certs.rotate(&["--retire"]);
        everywhere(&old, &certs, false);
        drop(telling);
        streams.join().expect("every stream is the quiet one")
    });
    assert!(streams > 0);
    // Who comes now is known by the new authority alone, also to the gateway and to the nodes.
    cluster.start_another_coordinator(&certs);
    assert_eq!(text(), quiet);
}

#[test]
fn what_is_no_good_is_refused_before_anything_listens() {
    let certs = Certs::new("test");
    let at = |role: &'static str, more: &[&str]| {
        run(&[&[role, "--registry", "etcd://127.0.0.1:1", "--cluster", "test"], more].concat())
    };
    for (role, more) in [
        ("expert-node", &["--listen", "0.0.0.0:0"][..]),
        ("coordinator", &["--http", "127.0.0.1:0", "--listen", "0.0.0.0:0"]),
        ("coordinator", &["--http", "127.0.0.1:0", "--admin", "0.0.0.0:0"]),
    ] {
        let open = at(role, more);
        assert_eq!(open.code, Some(1), "{}", open.stderr);
        assert!(open.stderr.contains("--plaintext if that is meant"), "{}", open.stderr);
    }
    let other_role = at("expert-node", &certs.flags("coordinator"));
    assert!(other_role.stderr.contains("it is for coordinator of cluster test"), "{}", other_role.stderr);
    let elsewhere = certs.of_cluster("staging");
    let other_cluster = at("expert-node", &elsewhere.flags("expert-node"));
    assert!(other_cluster.stderr.contains("--cluster is test"), "{}", other_cluster.stderr);
    let half = at("expert-node", &["--tls-cert", "x.pem"]);
    assert_eq!((half.code, other_role.code, other_cluster.code), (Some(2), Some(1), Some(1)), "{}", half.stderr);
}

#[test]
fn the_authority_keeps_what_it_is_given() {
    let certs = Certs::new("prod");
    let dir = certs.dir();
    let refused = |args: &[&str], words: &str| {
        let outcome = run(&[&["certs", "--dir", dir], args].concat());
        assert!(outcome.code == Some(1) && outcome.stderr.contains(words), "{args:?}: {}", outcome.stderr);
    };
    refused(&["init"], "there is an authority");
    refused(&["issue", "admin", "--cluster", "prod"], "`certs rotate admin`");
    refused(&["issue", "admin", "--name", "../admin"], "no name for a file");
    refused(&["issue", "admin", "--name", "two", "--cluster", "a/b"], "no name of a cluster");
    refused(&["rotate", "nobody"], "nobody.pem");
    assert_eq!(run(&["certs", "issue", "root", "--dir", dir]).code, Some(2));
    let list = run(&["certs", "list", "--json", "--dir", dir]);
    let list: serde_json::Value = serde_json::from_str(&list.stdout).expect("JSON");
    let signed: Vec<_> = list["certificates"].as_array().expect("a list").iter().map(|one| &one["role"]).collect();
    assert_eq!(signed, ["admin", "coordinator", "expert-node", "gateway"]);
    let gateway = &list["certificates"][3];
    assert_eq!(gateway["hosts"], json!(["localhost"]));
    // It begins when it is signed, a moment ago.
    assert!(gateway["days_left"] == 89 || gateway["days_left"] == 90, "{gateway}");
    for file in ["ca.key", "gateway.key"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(format!("{dir}/{file}")).expect(file).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}
