//! The house's rules, each a pure function from a file (its path from the repository's root, and its text) to what is
//! wrong with it. A violation says where it is and what to do.

use super::source::{code, without_test_items, words};
use serde_json::Value;
use std::collections::BTreeMap;

/// DESIGN.md's arrows: which of our crates a crate may depend on directly.
const ARROWS: &[(&str, &[&str])] = &[
    ("cli", &["gateway", "coordinator", "expert-node", "cluster", "model", "router", "kernels", "proto"]),
    ("gateway", &["model", "cluster", "proto"]),
    ("coordinator", &["kernels", "model", "router", "cluster", "proto"]),
    ("expert-node", &["kernels", "model", "router", "cluster", "proto"]),
    ("cluster", &["router", "proto"]),
    ("model", &["kernels"]),
    ("router", &["kernels"]),
    ("kernels", &[]),
    ("proto", &[]),
];

/// The most lines a file has.
const MAX_LINES: usize = 400;

/// What a pure decision cannot use: an order that differs from run to run, a clock, another thread.
const IMPURE: &[&str] = &["HashMap", "HashSet", "Instant", "SystemTime", "thread", "tokio", "async"];

/// What only `cluster/` names, as part of an identifier or of a package's name.
const WIRES: &[&str] = &["etcd_client", "nccl", "cudarc"];

/// A number a file or crate may have until it is brought down: a ratchet, which turns one way.
pub(crate) type Allowance<'a> = (&'a str, usize);

/// `metadata` (of `cargo metadata`): dependencies of every kind go only along [`ARROWS`]. The `tests/` hang on `cli`,
/// which may use everything, so that no other crate needs a forbidden dev-dependency.
pub(crate) fn arrows(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut wrong = Vec::new();
    for package in packages {
        let from = short(package["name"].as_str().unwrap_or_default());
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == from) else {
            wrong.push(format!("{from}: a crate without arrows; decide them in DESIGN.md and in ARROWS"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let name = dependency["name"].as_str().unwrap_or_default();
            if name.starts_with("tramontane") && !allowed.contains(&short(name)) {
                wrong.push(format!("{from}/Cargo.toml: depends on {}; DESIGN.md allows {allowed:?}", short(name)));
            }
        }
    }
    wrong
}

/// A crate's folder from its package name.
fn short(package: &str) -> &str {
    match package {
        "tramontane" => "cli",
        other => other.strip_prefix("tramontane-").unwrap_or(other),
    }
}

/// A file starts by saying what it is; a crate's root also says what is absent from the crate.
pub(crate) fn module_doc(path: &str, text: &str) -> Vec<String> {
    let doc: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
    let root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    if !is_rust(path) || path.contains("/gen/") {
        Vec::new()
    } else if doc.is_empty() {
        vec![format!("{path}: start the file with a `//!` doc that says what its one job is")]
    } else if root && !doc.iter().any(|line| line.contains("Absent")) {
        vec![format!("{path}: say in the crate's doc what is *Absent from here*")]
    } else {
        Vec::new()
    }
}

/// A file has at most [`MAX_LINES`] lines, or exactly as many as its exception says.
pub(crate) fn length(path: &str, text: &str, exceptions: &[Allowance]) -> Vec<String> {
    let lines = text.lines().count();
    if !is_rust(path) || path.contains("/gen/") {
        return Vec::new();
    }
    let wrong = match exceptions.iter().find(|(excepted, _)| *excepted == path) {
        Some(_) if lines <= MAX_LINES => format!("{lines} lines; take it off the list of long files"),
        Some((_, bound)) if lines < *bound => format!("{lines} lines; lower its entry from {bound} to {lines}"),
        Some((_, bound)) if lines > *bound => format!("{lines} lines where {bound} were excused; split it"),
        None if lines > MAX_LINES => format!("{lines} lines, over {MAX_LINES}; split it by job"),
        _ => return Vec::new(),
    };
    vec![format!("{path}: {wrong}")]
}

/// `router/` decides and does nothing else.
pub(crate) fn pure_router(path: &str, text: &str) -> Vec<String> {
    if !path.starts_with("router/src/") {
        return Vec::new();
    }
    let advice = "the router is pure: take it as an argument, or use BTreeMap";
    forbidden(path, &code(text), |word| IMPURE.contains(&word), advice)
}

/// Only `cluster/` names the wires. The workspace's Cargo.toml holds their versions.
pub(crate) fn wires_in_cluster(path: &str, text: &str) -> Vec<String> {
    if path.starts_with("cluster/") || path == "Cargo.toml" {
        return Vec::new();
    }
    let text = if is_rust(path) { code(text) } else { without_the_cluster(&uncommented(text).replace('-', "_")) };
    let named = |word: &str| WIRES.iter().any(|wire| word.to_lowercase().contains(wire));
    forbidden(path, &text, named, "only cluster/ names it: go through a seam of the crate `cluster`")
}

/// `unsafe` lives in kernels, in files that map memory, and in the `foreign` ones; each says why it is sound.
pub(crate) fn unsafe_code(path: &str, text: &str, foreign: &[&str]) -> Vec<String> {
    if !is_rust(path) {
        return Vec::new();
    }
    let found = forbidden(path, &code(text), |word| word == "unsafe", "");
    let home = path.starts_with("kernels/") || path.ends_with("/map.rs") || foreign.contains(&path);
    if found.is_empty() && foreign.contains(&path) {
        vec![format!("{path}: no `unsafe` any more; take it off the list of foreign calls")]
    } else if !home {
        found.into_iter().map(|at| at + "do it in kernels/, in a map.rs, or list the file as a foreign call").collect()
    } else if !found.is_empty() && !text.contains("// SAFETY:") && !text.contains("/// # Safety") {
        vec![format!("{path}: has `unsafe` without a `// SAFETY:` comment; say why it is sound")]
    } else {
        Vec::new()
    }
}

/// The wall clock, which jumps, is read for people to see and for nothing else: only in the files that are `listed`.
pub(crate) fn wall_clock(path: &str, text: &str, listed: &[&str]) -> Vec<String> {
    if !is_rust(path) || is_test(path) {
        return Vec::new();
    }
    let shipped = without_test_items(&code(text));
    let is_read =
        ["SystemTime::now", "UNIX_EPOCH.elapsed", "Utc::now", "Local::now"].iter().any(|read| shipped.contains(read));
    match (is_read, listed.contains(&path)) {
        (true, false) => vec![format!("{path}: reads the wall clock, which jumps: take an Instant, or list the file")],
        (false, true) => vec![format!("{path}: reads no wall clock any more; take it off the list")],
        _ => Vec::new(),
    }
}

/// A manifest without what it says of the cluster: it may ask for its features, and hand them on.
fn without_the_cluster(manifest: &str) -> String {
    let kept = manifest.lines().map(|line| if line.contains("tramontane_cluster") { "" } else { line });
    kept.collect::<Vec<_>>().join("\n")
}

/// Nothing is left for later.
pub(crate) fn no_stubs(path: &str, text: &str) -> Vec<String> {
    let text = if is_rust(path) { code(text) } else { String::new() };
    let stubs = ["todo!(", "unimplemented!(", "#[ignore"];
    let lines = text.lines().enumerate().flat_map(|(index, line)| {
        let found = stubs.iter().filter(move |stub| line.contains(**stub));
        found.map(move |stub| format!("{path}:{}: `{stub}`: finish it, or remove it", index + 1))
    });
    lines.collect()
}

/// The `.unwrap()` and `.expect(` of a file outside its tests and benches.
pub(crate) fn panics(path: &str, text: &str) -> usize {
    if !is_rust(path) || is_test(path) {
        return 0;
    }
    let shipped = without_test_items(&code(text));
    shipped.matches(".unwrap()").count() + shipped.matches(".expect(").count()
}

/// `counts` of [`panics`] a crate (by folder) are what `ceilings` say, 0 where they say nothing.
pub(crate) fn panic_ceilings(counts: &BTreeMap<String, usize>, ceilings: &[Allowance]) -> Vec<String> {
    let ceiling = |name: &str| ceilings.iter().find(|(folder, _)| *folder == name).map_or(0, |(_, bound)| *bound);
    let unseen = ceilings.iter().map(|(name, _)| (*name, 0)).filter(|(name, _)| !counts.contains_key(*name));
    let seen = counts.iter().map(|(name, count)| (name.as_str(), *count));
    let judged = seen.chain(unseen).filter_map(|(name, count)| match ceiling(name) {
        bound if count > bound => {
            Some(format!("{name}/: {count} unwrap() or expect() outside tests, over {bound}; return an error instead"))
        }
        bound if count < bound => Some(format!("{name}/: lower its ceiling of panics from {bound} to {count}")),
        _ => None,
    });
    judged.collect()
}

/// One violation a line of `code` that has a word which `is_forbidden`.
fn forbidden(path: &str, code: &str, is_forbidden: impl Fn(&str) -> bool, advice: &str) -> Vec<String> {
    let mut found: Vec<(usize, &str)> = words(code).filter(|(_, word)| is_forbidden(word)).collect();
    found.dedup_by_key(|(line, _)| *line);
    found.into_iter().map(|(line, word)| format!("{path}:{line}: `{word}`: {advice}")).collect()
}

/// TOML without its comments (and without what follows a `#` in a string, which no manifest of ours has).
fn uncommented(toml: &str) -> String {
    toml.lines().map(|line| line.split('#').next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Whether a file belongs to tests, fuzzing or benches alone.
fn is_test(path: &str) -> bool {
    ["/tests.rs", "/testing.rs"].iter().any(|name| path.ends_with(name))
        || ["tests/", "benches/", "fuzz/"].iter().any(|dir| path.starts_with(dir) || path.contains(&format!("/{dir}")))
}

fn is_rust(path: &str) -> bool {
    path.ends_with(".rs")
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
