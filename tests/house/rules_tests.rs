//! Each rule on a snippet that breaks it, and on the nearest one that does not.

use super::*;
use serde_json::json;

/// Metadata of one package with one dependency.
fn depends(from: &str, to: &str, kind: Value) -> Value {
    json!({"packages": [{"name": from, "dependencies": [{"name": "serde"}, {"name": to, "kind": kind}]}]})
}

fn lines(count: usize) -> String {
    "//!\n".repeat(count)
}

#[test]
fn arrows_that_design_forbids_are_named() {
    let wrong = arrows(&depends("tramontane-gateway", "tramontane-coordinator", Value::Null));
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0].starts_with("gateway/Cargo.toml: depends on coordinator"), "{wrong:?}");
    assert_eq!(arrows(&depends("tramontane-kernels", "tramontane-proto", json!("dev"))).len(), 1);
    assert_eq!(arrows(&depends("tramontane-router", "tramontane", json!("build"))).len(), 1);
    assert_eq!(arrows(&depends("tramontane-sidecar", "serde", Value::Null)).len(), 1);
}

#[test]
fn arrows_that_design_allows_pass() {
    assert!(arrows(&depends("tramontane", "tramontane-coordinator", json!("dev"))).is_empty());
    assert!(arrows(&depends("tramontane-cluster", "tramontane-router", Value::Null)).is_empty());
}

#[test]
fn no_two_front_crates_may_ever_meet() {
    let apart = ["gateway", "coordinator", "expert-node"];
    for (from, allowed) in ARROWS.iter().filter(|(from, _)| apart.contains(from)) {
        assert!(!allowed.iter().any(|to| apart.contains(to)), "{from}");
    }
}

#[test]
fn files_without_a_doc_are_named() {
    assert_eq!(module_doc("model/src/a.rs", "use std::fs;\n//! late").len(), 1);
    assert_eq!(module_doc("model/src/a.rs", "").len(), 1);
    assert!(module_doc("model/src/a.rs", "//! What it is.\nuse std::fs;").is_empty());
    assert!(module_doc("proto/src/gen/a.rs", "use std::fs;").is_empty());
}

#[test]
fn roots_that_do_not_say_what_is_absent_are_named() {
    assert_eq!(module_doc("model/src/lib.rs", "//! What it is.\n// Absent").len(), 1);
    assert_eq!(module_doc("cli/src/main.rs", "//! What it is.").len(), 1);
    assert!(module_doc("model/src/lib.rs", "//! What it is.\n//!\n//! *Absent from here*: I/O.").is_empty());
}

#[test]
fn long_files_are_named() {
    assert_eq!(length("a.rs", &lines(MAX_LINES + 1), &[]).len(), 1);
    assert!(length("a.rs", &lines(MAX_LINES), &[]).is_empty());
    assert!(length("proto/src/gen/a.rs", &lines(MAX_LINES + 1), &[]).is_empty());
}

#[test]
fn exceptions_to_the_length_may_only_shrink() {
    let exceptions = [("a.rs", MAX_LINES + 10)];
    assert!(length("a.rs", &lines(MAX_LINES + 10), &exceptions).is_empty());
    for (count, advice) in [(MAX_LINES + 11, "split it"), (MAX_LINES + 9, "lower"), (MAX_LINES, "take it off")] {
        let wrong = length("a.rs", &lines(count), &exceptions);
        assert!(wrong.len() == 1 && wrong[0].contains(advice), "{count}: {wrong:?}");
    }
}

#[test]
fn a_router_with_a_clock_is_named() {
    for word in IMPURE {
        assert_eq!(pure_router("router/src/a.rs", &format!("use x::{word};")).len(), 1, "{word}");
    }
    assert_eq!(pure_router("router/src/a.rs", "// Instant\nfn f(now: std::time::Instant) {}")[0].find(":2:"), Some(15));
    assert!(pure_router("router/src/a.rs", "/// No `HashMap`.\nfn asynchronous() { \"tokio\"; }").is_empty());
    assert!(pure_router("cluster/src/a.rs", "use tokio::spawn;").is_empty());
}

#[test]
fn wires_outside_the_cluster_are_named() {
    for text in ["use etcd_client::Client;", "fn f(x: NcclExchange) {}", "use cudarc::nccl;"] {
        assert_eq!(wires_in_cluster("coordinator/src/a.rs", text).len(), 1, "{text}");
        assert!(wires_in_cluster("cluster/src/a.rs", text).is_empty());
    }
    assert_eq!(wires_in_cluster("cli/Cargo.toml", "etcd-client.workspace = true").len(), 1);
    assert!(wires_in_cluster("Cargo.toml", "cudarc = \"0.1\"").is_empty());
    assert!(wires_in_cluster("cli/Cargo.toml", "# no cudarc here").is_empty());
    for own in ["nccl = [\"tramontane-cluster/nccl\"]", "tramontane-cluster = { features = [\"nccl\"] }"] {
        assert!(wires_in_cluster("cli/Cargo.toml", own).is_empty(), "{own}");
    }
    assert!(wires_in_cluster("cli/src/a.rs", "f(\"nccl\") // cudarc").is_empty());
}

#[test]
fn unsafe_away_from_home_is_named() {
    let text = "// SAFETY: f upholds it.\nlet x = unsafe { f() };";
    assert_eq!(unsafe_code("router/src/a.rs", text, &[]).len(), 1);
    assert_eq!(unsafe_code("model/src/bitmap.rs", text, &[]).len(), 1);
    for home in ["kernels/src/a.rs", "model/src/checkpoint/map.rs", "cli/src/a.rs"] {
        assert!(unsafe_code(home, text, &["cli/src/a.rs"]).is_empty(), "{home}");
    }
    assert!(unsafe_code("router/src/a.rs", "#![deny(unsafe_code)] // no unsafe", &[]).is_empty());
}

#[test]
fn unsafe_without_a_reason_is_named() {
    assert_eq!(unsafe_code("kernels/src/a.rs", "let x = unsafe { f() };", &[]).len(), 1);
    assert!(unsafe_code("kernels/src/a.rs", "/// # Safety\n/// AVX2.\nunsafe fn f() {}", &[]).is_empty());
}

#[test]
fn a_foreign_call_that_is_gone_leaves_the_list() {
    assert_eq!(unsafe_code("cli/src/a.rs", "fn f() {}", &["cli/src/a.rs"]).len(), 1);
}

#[test]
fn the_wall_clock_is_read_in_listed_files_only() {
    let reads = "fn f() { let now = SystemTime::now(); }";
    assert_eq!(wall_clock("router/src/a.rs", reads, &[]).len(), 1);
    assert!(wall_clock("cli/src/a.rs", reads, &["cli/src/a.rs"]).is_empty());
    assert_eq!(wall_clock("cli/src/a.rs", "fn f() { Instant::now(); }", &["cli/src/a.rs"]).len(), 1);
    assert!(wall_clock("tests/a.rs", reads, &[]).is_empty());
    assert!(wall_clock("cli/src/a.rs", "#[cfg(test)]\nmod t { fn g() { SystemTime::now(); } }", &[]).is_empty());
}

#[test]
fn stubs_are_named() {
    for stub in ["fn f() { todo!() }", "fn f() { unimplemented!(\"x\") }", "#[ignore = \"slow\"]", "#[ignore]"] {
        assert_eq!(no_stubs("cli/src/a.rs", stub).len(), 1, "{stub}");
    }
    assert!(no_stubs("cli/src/a.rs", "// todo!()\nfn ignore() { \"#[ignore]\"; }").is_empty());
}

#[test]
fn panics_are_counted_outside_tests_only() {
    let text =
        "fn f() { a.unwrap(); b\n.expect(\"c\"); d.unwrap_or(0); }\n#[cfg(test)]\nmod t { fn g() { e.unwrap(); } }";
    assert_eq!(panics("model/src/a.rs", text), 2);
    for test in ["model/src/a/tests.rs", "model/src/testing.rs", "model/tests/a.rs", "tests/house.rs"] {
        assert_eq!(panics(test, text), 0, "{test}");
    }
}

#[test]
fn ceilings_of_panics_may_only_shrink() {
    let counts = |count| BTreeMap::from([("model".to_owned(), count)]);
    assert!(panic_ceilings(&counts(2), &[("model", 2)]).is_empty());
    assert!(panic_ceilings(&counts(0), &[]).is_empty());
    for (wrong, advice) in [
        (panic_ceilings(&counts(3), &[("model", 2)]), "return an error"),
        (panic_ceilings(&counts(1), &[("model", 2)]), "lower"),
        (panic_ceilings(&counts(1), &[]), "return an error"),
        (panic_ceilings(&BTreeMap::new(), &[("model", 2)]), "lower"),
    ] {
        assert!(wrong.len() == 1 && wrong[0].contains(advice), "{wrong:?}");
    }
}
