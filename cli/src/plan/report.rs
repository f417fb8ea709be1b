//! A plan as one JSON object or as tables.

use std::fmt::Write as _;

use serde::Serialize;

use super::estimate::{Memory, Network, Rate};
use super::failures::Failure;
use super::simulate::Simulation;
use crate::output::bytes;

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) model: ModelReport,
    pub(super) machine: MachineReport,
    pub(super) memory: Memory,
    pub(super) rates: Vec<Rate>,
    /// `None` where there is no network between.
    pub(super) network: Option<Network>,
    pub(super) failures: Vec<Failure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) simulation: Option<Simulation>,
}

/// Which model.
#[derive(Debug, Serialize)]
pub(super) struct ModelReport {
    pub(super) name: String,
    pub(super) types: String,
    pub(super) layers: usize,
    pub(super) experts: usize,
    pub(super) experts_per_token: usize,
}

/// What the plan takes a machine to give.
#[derive(Debug, Serialize)]
pub(super) struct MachineReport {
    pub(super) machines: usize,
    pub(super) measured: bool,
    pub(super) gigabytes_per_second: f64,
    pub(super) read_share: f64,
    pub(super) gigaoperations_per_second: f64,
    pub(super) compute_share: f64,
}

/// For people.
pub(super) fn table(report: &Report) -> String {
    let mut text = String::new();
    let ModelReport { name, types, layers, experts, experts_per_token } = &report.model;
    line(
        &mut text,
        format_args!("model    {name}, {types}; {layers} layers of {experts} experts, {experts_per_token} a token"),
    );
    let machine = &report.machine;
    let (reads, computes) = (machine.read_share * 100.0, machine.compute_share * 100.0);
    let how = if machine.measured { "measured" } else { "as told" };
    line(
        &mut text,
        format_args!(
            "machines {}, each ({how}) {:.1} GB/s, of which {reads:.0} % are counted on, and {:.0} GOP/s, of which {computes:.0} %",
            machine.machines, machine.gigabytes_per_second, machine.gigaoperations_per_second
        ),
    );
    memory(&mut text, &report.memory);
    rates(&mut text, &report.rates);
    if let Some(network) = &report.network {
        line(
            &mut text,
            format_args!(
                "\nnetwork  {} a token; tokens/s at most: a coordinator {:.0}, all of them {:.0}, the nodes {:.0}",
                bytes(network.bytes_per_token as u64),
                network.coordinator_tokens_per_second,
                network.coordinators_tokens_per_second,
                network.nodes_tokens_per_second
            ),
        );
    }
    if !report.failures.is_empty() {
        line(&mut text, format_args!("\nLOST                            WHAT COMES OF IT"));
    }
    for Failure { lost, outcome } in &report.failures {
        line(&mut text, format_args!("{lost:<30}  {}", outcome.text()));
    }
    if let Some(found) = &report.simulation {
        simulation(&mut text, found);
    }
    text
}

fn memory(text: &mut String, memory: &Memory) {
    let Memory { replicas, replicas_that_fit, nodes_needed, kv_tokens, .. } = memory;
    let [expert, experts, node, room, attention, kv] = [
        memory.expert_bytes,
        memory.experts_bytes,
        memory.node_bytes,
        memory.node_memory,
        memory.attention_bytes,
        memory.kv_bytes_per_token,
    ]
    .map(bytes);
    line(
        text,
        format_args!(
            "experts  {expert} each, {experts} in all; {replicas} replicas are {node} a node, which has room for {room}: {replicas_that_fit} fit, and {nodes_needed} nodes hold all once"
        ),
    );
    line(
        text,
        format_args!(
            "beside   {attention} of weights a coordinator; {kv} of keys and values a token, room for {kv_tokens} tokens"
        ),
    );
}

fn rates(text: &mut String, rates: &[Rate]) {
    line(
        text,
        format_args!(
            "\n{:<20} {:>10}  {:>12} {:>10} {:>10}  {:>8}",
            "AT MOST", "TOKENS/S", "ATTENTION ms", "EXPERTS ms", "WIRE ms", "J/TOKEN"
        ),
    );
    for Rate { case, tokens_per_second, step_seconds: step, joules_per_token } in rates {
        let [attention, experts, wire] = [step.attention, step.experts, step.wire].map(|seconds| seconds * 1e3);
        line(
            text,
            format_args!(
                "{case:<20} {tokens_per_second:>10.1}  {attention:>12.2} {experts:>10.2} {wire:>10.2}  {joules_per_token:>8.2}"
            ),
        );
    }
}

fn simulation(text: &mut String, found: &Simulation) {
    let Simulation { nodes, racks, experts, replicas, least, most, sharing_a_rack, .. } = found;
    line(
        text,
        format_args!(
            "\nplaced   {experts} experts, {replicas} replicas each, on {nodes} nodes in {racks} racks, in {:.3} s: {least} to {most} on a node; of {sharing_a_rack} experts two share a rack; a document of {}",
            found.solve_seconds,
            bytes(found.document_bytes as u64)
        ),
    );
    for change in &found.changes {
        let [moved, least] = [change.moved_bytes, change.least_bytes].map(bytes);
        line(
            text,
            format_args!(
                "         {:<26} {moved} move, at least {least} must; solved in {:.3} s",
                change.what, change.solve_seconds
            ),
        );
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{arguments}");
}
