//! What deploys a cluster: the manifests (Kustomize's and the chart's), the alerts, the dashboard, the Containerfile. They are held to
//! Kubernetes' own schemas, to each other, and to what the binary knows. `./test` fetches the tools (`tests/deploy/install`) into
//! `deploy` of the target folder; by hand: `tests/deploy/install target/deploy`.

#[path = "deploy/tools.rs"]
mod tools;

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;
use tools::{file, succeeds, tools};

/// The binary.
const PROGRAM: &str = env!("CARGO_BIN_EXE_tramontane");

/// A program of Python's, from tests/deploy.
fn python(script: &str) -> Command {
    let mut command = tools::python();
    command.arg(file("tests/deploy").join(script));
    command
}

/// Everything that Kustomize and the chart render, once for all tests.
fn rendered() -> &'static Path {
    static RENDERED: OnceLock<TempDir> = OnceLock::new();
    let folder = RENDERED.get_or_init(|| {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
        succeeds(python("render.py").arg(tools()).arg(folder.path()));
        folder
    });
    folder.path()
}

/// Makes the check `check` of tests/deploy/check.py, which gets `more`.
fn holds(check: &str, more: &[&str]) {
    succeeds(python("check.py").arg(rendered()).arg(check).args(more));
}

#[test]
fn kustomize_and_the_chart_render_the_same_objects() {
    holds("same", &[]);
}

#[test]
fn what_is_made_from_the_chart_is_up_to_date() {
    holds("made", &[]);
}

#[test]
fn kubernetes_knows_every_object_and_field() {
    holds("schemas", &[]);
}

#[test]
fn what_objects_name_is_there() {
    holds("references", &[]);
}

#[test]
fn pods_are_locked_down_and_end_in_time() {
    holds("locked", &[]);
}

#[test]
fn the_network_lets_through_what_is_needed_and_nothing_else() {
    holds("edges", &[]);
}

#[test]
fn flags_settings_ports_and_probes_are_the_binarys() {
    holds("in_binary", &[PROGRAM]);
}

#[test]
fn metrics_in_rules_autoscalers_and_dashboard_are_ours() {
    holds("metrics", &[]);
}

#[test]
fn rules_are_sound_and_alerts_fire_when_they_should() {
    let promtool = || Command::new(tools().join("promtool"));
    succeeds(promtool().args(["check", "rules"]).arg(file("deploy/helm/tramontane/files/rules.yaml")));
    succeeds(promtool().args(["test", "rules"]).arg(file("tests/deploy/rules_test.yaml")));
}

#[test]
fn every_query_of_the_dashboard_can_be_parsed() {
    let rules = rendered().join("queries.yaml");
    holds("queries", &[rules.to_str().expect("a path in UTF-8")]);
    let said = succeeds(Command::new(tools().join("promtool")).args(["check", "rules"]).arg(rules));
    assert!(said.contains("rules found"), "{said}");
}

#[test]
fn the_chart_has_no_faults_of_form() {
    succeeds(Command::new(tools().join("helm")).args(["lint", "--strict"]).arg(file("deploy/helm/tramontane")));
}

#[test]
fn the_containerfile_has_no_faults() {
    succeeds(Command::new(tools().join("venv/bin/hadolint")).arg(file("deploy/Containerfile")));
}
