//! What operators do to a cluster, and what they see of it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::fleet::{Fleet, NAME, Size};
use crate::run::{Outcome, run, until};
use crate::terminal::Terminal;
use crate::traffic::Quiet;

/// Experts that should be on `node`.
fn placed_on(fleet: &Fleet, node: &str) -> BTreeSet<String> {
    let told = fleet.told();
    told.placed.into_iter().filter(|(_, nodes)| nodes.contains(node)).map(|(expert, _)| expert).collect()
}

fn ask(admin: &str, args: &[&str]) -> Outcome {
    run(&[args, &["--endpoint", admin]].concat())
}

/// What a command that goes well prints as JSON.
fn json(admin: &str, args: &[&str]) -> Value {
    let Outcome { code, stdout, stderr } = ask(admin, &[args, &["--json"]].concat());
    assert!(matches!(code, Some(0 | 4)), "{args:?}: {code:?}: {stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {stdout}"))
}

#[test]
fn a_cordoned_node_keeps_what_it_has_and_gets_nothing_whoever_leads() {
    let mut fleet = Fleet::start(Size { nodes: 2, replicas: 1 });
    let quiet = Quiet::of(fleet.coordinator());
    let first = fleet.coordinator().admin().to_owned();
    let before = placed_on(&fleet, "n0");
    let outcome = ask(&first, &["cordon", "nowhere"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""));
    assert!(outcome.stderr.contains("there is no node nowhere"), "{}", outcome.stderr);
    let said = json(&first, &["cordon", "n0"]);
    assert_eq!((said["cordoned"].as_bool(), said["changed"].as_bool()), (Some(true), Some(true)));
    assert_eq!(json(&first, &["cordon", "n0"])["changed"], false);
    fleet.start_node("n2", &[]);
    fleet.until_settled();
    assert_eq!(placed_on(&fleet, "n0"), before, "it neither gets nor gives");
    // Another process leads by what was ordered.
    let second = fleet.start_coordinator("c1");
    fleet.coordinator().signal("KILL");
    fleet.start_node("n3", &[]);
    fleet.until_settled();
    assert_eq!(placed_on(&fleet, "n0"), before, "whoever leads");
    assert_eq!(json(second.admin(), &["nodes"])[0]["state"], "cordoned");
    let status = json(second.admin(), &["status"]);
    assert!(status["findings"].to_string().contains("node n0 is cordoned"), "{status}");
    // Without etcd nothing is ordered, and what was stands.
    fleet.etcd().kill();
    let outcome = ask(second.admin(), &["uncordon", "n0"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""));
    assert!(outcome.stderr.contains("the registry is lost: etcd"), "{}", outcome.stderr);
    fleet.revive_etcd();
    until("it can be uncordoned", || ask(second.admin(), &["uncordon", "n0"]).code == Some(0));
    fleet.start_node("n4", &[]);
    fleet.until_settled();
    until("it gives again", || placed_on(&fleet, "n0").len() < before.len());
    quiet.check_all(second.addr());
}

#[test]
fn a_rebalance_waits_for_nobody() {
    let mut fleet = Fleet::start(Size { nodes: 3, replicas: 2 });
    let admin = fleet.coordinator().admin().to_owned();
    let nothing = ask(&admin, &["rebalance"]);
    assert_eq!(
        (nothing.code, nothing.stdout.as_str()),
        (Some(0), "nothing to move: everything is where it should be\n")
    );
    fleet.kill("n2");
    until("it is out", || fleet.told().held.len() == 2);
    // By itself the leader waits half a minute for it to come back.
    let plan = json(&admin, &["rebalance", "--dry-run"]);
    let moves = plan["moves"].as_array().expect("moves");
    assert!(!moves.is_empty() && moves.iter().all(|moved| moved["why"] == "n2 is gone"), "{plan}");
    assert!(plan["bytes_to_load"].as_u64().is_some_and(|bytes| bytes > 0), "{plan}");
    assert!(!placed_on(&fleet, "n2").is_empty(), "nothing was done");
    let done = ask(&admin, &["rebalance", "--timeout", "60"]);
    assert_eq!(done.code, Some(0), "{}: {}", done.stdout, done.stderr);
    assert!(done.stdout.contains("n2 is gone") && done.stdout.ends_with("moved\n"), "{}", done.stdout);
    assert!(placed_on(&fleet, "n2").is_empty());
    fleet.until_settled();
    fleet.kill("n1");
    until("it is out", || fleet.told().held.len() == 1);
    let ordered = json(&admin, &["rebalance", "--detach"]);
    assert_eq!(ordered["state"], "ordered");
    until("it is done all the same", || placed_on(&fleet, "n1").is_empty());
}

#[test]
fn replicas_stand_in_different_zones_and_forms_agree() {
    let fleet = Fleet::start_in_zones(Size { nodes: 4, replicas: 2 }, &["east", "east", "west", "west"]);
    let admin = fleet.coordinator().admin();
    let nodes = json(admin, &["nodes"]);
    let zone = |node: &str| {
        let nodes = nodes.as_array().expect("nodes");
        let found = nodes.iter().find(|it| it["id"] == node).map(|it| it["zone"].as_str().expect("a zone").to_owned());
        found.unwrap_or_else(|| panic!("{node}: {nodes:?}"))
    };
    until("every expert is in both", || {
        fleet
            .told()
            .placed
            .values()
            .all(|nodes| nodes.iter().map(|node| zone(node)).collect::<BTreeSet<_>>().len() == 2)
    });
    fleet.until_settled();
    let table = ask(admin, &["nodes"]).stdout;
    assert!(table.lines().any(|line| line.starts_with("n3 ") && line.ends_with("west")), "{table}");
    // The same in YAML, of which JSON's scalars are a part.
    let yaml = ask(admin, &["nodes", "-o", "yaml"]).stdout;
    assert!(
        yaml.lines().filter(|line| line.trim_start().trim_start_matches("- ") == "zone: west").count() == 2,
        "{yaml}"
    );
    for args in [&["status"][..], &["experts"], &["placement"], &["placement", "history"], &["rebalance", "--dry-run"]]
    {
        for form in ["table", "wide", "json", "yaml"] {
            let outcome = ask(admin, &[args, &["-o", form]].concat());
            assert!(outcome.code == Some(0) && !outcome.stdout.is_empty(), "{args:?} {form}: {}", outcome.stderr);
        }
    }
}

#[test]
fn a_node_that_was_refused_is_named_with_what_differs() {
    let fleet = Fleet::start(Size { nodes: 1, replicas: 1 });
    let registry = fleet.registry();
    let joins = ["expert-node", "--registry", &registry, "--cluster", NAME, "--lease", "1", "--id", "foreign"];
    let outcome = run(&[&joins[..], &["--quantize", "q8_0"]].concat());
    assert_eq!(outcome.code, Some(1));
    let differs = "quantisation bf16 here, q8_0 there";
    assert!(outcome.stderr.contains(differs), "{}", outcome.stderr);
    let admin = fleet.coordinator().admin();
    until("it is named", || {
        let status = json(admin, &["status"]);
        status["findings"].to_string().contains(&format!("node foreign was refused: {differs}"))
    });
    let nodes = json(admin, &["nodes"]);
    assert!(nodes.as_array().is_some_and(|nodes| nodes.iter().any(|node| node["state"] == "refused")), "{nodes}");
}

#[test]
fn top_draws_on_a_terminal_and_gives_it_back() {
    let fleet = Fleet::start(Size { nodes: 2, replicas: 1 });
    let admin = fleet.coordinator().admin();
    let outcome = ask(admin, &["top"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""));
    assert!(outcome.stderr.contains("status --watch"), "{}", outcome.stderr);
    for end in ["q", "\x03"] {
        let mut terminal = Terminal::start(&["top", "--endpoint", admin]);
        let wanted = ["HEALTH_OK", "coordinators", "c0", "nodes: 2", "n0", "n1", "hottest", "q quit"];
        terminal.shows("the cluster", |seen| wanted.iter().all(|words| seen.contains(words)));
        terminal.types("p");
        terminal.shows("that it stands still", |seen| seen.contains("PAUSED"));
        terminal.types(end);
        terminal.shows("the screen before", |seen| seen.contains("\x1b[?1049l"));
        assert_eq!(terminal.ends(), Some(0));
    }
    let nobody = Terminal::start(&["top", "--endpoint", "127.0.0.1:1"]);
    assert_eq!(nobody.ends(), Some(3));
}
