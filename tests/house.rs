//! Holds the whole repository to DESIGN.md's invariants: arrows between crates, module docs, file length, a pure router,
//! where wires, `unsafe` and panics may live. The rules are pure functions in `house/rules.rs`; here they meet the tree.

#[path = "house/rules.rs"]
mod rules;
#[path = "house/source.rs"]
mod source;

use rules::Allowance;
use source::Source;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files over the bound of lines, with what they have today. Entries shrink and go; none comes.
const LONG_FILES: &[Allowance] = &[("model/src/checkpoint/tests.rs", 424), ("router/src/flight/tests.rs", 431)];

/// Files outside kernels that call the operating system, the GPU's driver or NCCL with `unsafe`, or stand in for them.
const FOREIGN_CALLS: &[&str] = &[
    "cluster/src/exchange/nccl/communicator/enabled.rs",
    "cluster/src/exchange/nccl/communicator/staging.rs",
    "cluster/src/exchange/nccl/communicator/library.rs",
    "cluster/tests/nccl_standin/comm.rs",
    "cluster/tests/nccl_standin/driver.rs",
    "cluster/tests/nccl_standin/nccl.rs",
    "model/src/checkpoint/bus_error.rs",
    "model/src/checkpoint/bus_error/tests.rs",
];

/// Files that read the wall clock: when an answer was made or a placement seen, which cached weights were used last, which day it is.
const WALL_CLOCKS: &[&str] = &[
    "cli/src/admin/show.rs",
    "cli/src/certs/mod.rs",
    "cli/src/door.rs",
    "cluster/src/registry/accounts/day.rs",
    "coordinator/src/admin/mod.rs",
    "gateway/src/http/answer/mod.rs",
    "model/src/cache.rs",
];

/// `.unwrap()` and `.expect(` outside tests, by crate. Entries shrink and go; none comes.
const PANICS: &[Allowance] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Judges every file of the repository by `rule`.
fn hold(rule: impl Fn(&Source) -> Vec<String>) {
    let sources = source::read(&root());
    assert!(sources.iter().any(|source| source.path == "router/src/lib.rs"), "the walk missed the repository");
    none(sources.iter().flat_map(rule).collect());
}

/// Fails with all of `violations`, if there are any.
fn none(violations: Vec<String>) {
    assert!(violations.is_empty(), "{} violations:\n  {}", violations.len(), violations.join("\n  "));
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let asked = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(asked.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&asked.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&asked.stdout).expect("cargo metadata prints JSON");
    assert!(
        metadata["packages"].as_array().is_some_and(|packages| packages.len() > 1),
        "cargo metadata has no packages"
    );
    none(rules::arrows(&metadata));
}

#[test]
fn files_say_what_they_are_and_crates_what_is_absent() {
    hold(|source| rules::module_doc(&source.path, &source.text));
}

#[test]
fn files_are_short() {
    hold(|source| rules::length(&source.path, &source.text, LONG_FILES));
}

#[test]
fn the_router_is_pure() {
    hold(|source| rules::pure_router(&source.path, &source.text));
}

#[test]
fn only_the_cluster_names_the_wires() {
    hold(|source| rules::wires_in_cluster(&source.path, &source.text));
}

#[test]
fn unsafe_stays_home_and_says_why() {
    hold(|source| rules::unsafe_code(&source.path, &source.text, FOREIGN_CALLS));
}

#[test]
fn no_decision_reads_the_wall_clock() {
    hold(|source| rules::wall_clock(&source.path, &source.text, WALL_CLOCKS));
}

#[test]
fn nothing_is_left_for_later() {
    hold(|source| rules::no_stubs(&source.path, &source.text));
}

#[test]
fn panics_stay_under_their_ceilings() {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for source in source::read(&root()) {
        let folder = source.path.split('/').next().unwrap_or_default().to_owned();
        *counts.entry(folder).or_default() += rules::panics(&source.path, &source.text);
    }
    assert!(counts.contains_key("router"), "the walk missed the repository");
    none(rules::panic_ceilings(&counts, PANICS));
}

#[test]
fn lists_name_files_that_exist() {
    let listed = LONG_FILES
        .iter()
        .map(|(path, _)| *path)
        .chain(FOREIGN_CALLS.iter().copied())
        .chain(WALL_CLOCKS.iter().copied());
    none(listed.filter(|path| !root().join(path).is_file()).map(|path| format!("{path}: gone; unlist it")).collect());
}
