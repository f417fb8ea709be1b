//! What `tramontane models` prints.

use std::fmt::Write as _;

use tramontane_model::tools::Report;

use super::Share;
use super::pull::Listed;
use crate::output::bytes;

/// One JSON object: the report, and `nodes` where they were asked for.
pub(super) fn report_json(report: &Report, nodes: &[Share]) -> anyhow::Result<String> {
    let mut json = serde_json::to_value(report)?;
    if !nodes.is_empty() {
        json["nodes"] = serde_json::to_value(nodes)?;
    }
    Ok(format!("{json}\n"))
}

/// Tables for people.
pub(super) fn report(report: &Report, nodes: &[Share]) -> String {
    let mut text = String::new();
    let types: Vec<String> = report.types.iter().map(|(ty, n)| format!("{ty} {}", bytes(*n))).collect();
    line(&mut text, format_args!("{} in {} file(s): {}", report.format, report.files.len(), bytes(report.bytes)));
    line(&mut text, format_args!("types: {}", types.join(", ")));
    if let Some(problem) = &report.problem {
        line(&mut text, format_args!("not a model that can be served: {problem}"));
    }
    if !report.layers.is_empty() {
        line(&mut text, format_args!("\n{:>5}  {:>10}  {:>7}  {:>10}", "LAYER", "ATTENTION", "EXPERTS", "EACH"));
    }
    for layer in &report.layers {
        let each = layer.experts.iter().map(|expert| expert.bytes).max().unwrap_or(0);
        let (attention, experts) = (bytes(layer.attention_bytes), layer.experts.len());
        line(&mut text, format_args!("{:>5}  {attention:>10}  {experts:>7}  {:>10}", layer.layer, bytes(each)));
    }
    if !nodes.is_empty() {
        line(&mut text, format_args!("\n{:<8}  {:>7}  {:>10}", "NODE", "EXPERTS", "HOLDS"));
    }
    for share in nodes {
        line(&mut text, format_args!("{:<8}  {:>7}  {:>10}", share.node, share.experts, bytes(share.bytes)));
    }
    let width = report.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
    line(&mut text, format_args!("\n{:<width$}  {:<5}  {:>10}  SHAPE", "TENSOR", "TYPE", "BYTES"));
    for tensor in &report.tensors {
        let size = bytes(tensor.bytes);
        line(&mut text, format_args!("{:<width$}  {:<5}  {size:>10}  {:?}", tensor.name, tensor.ty, tensor.shape));
    }
    text
}

/// The models in the folder of models.
pub(super) fn models(listed: &[Listed]) -> String {
    let width = listed.iter().map(|model| model.repo.len()).max().unwrap_or(0).max("REPO".len());
    let mut text = String::new();
    line(
        &mut text,
        format_args!(
            "{:<width$}  {:<12}  {:<11}  {:<5}  {:>10}  {:<14}  STATE",
            "REPO", "COMMIT", "FORMAT", "TYPE", "SIZE", "LICENCE"
        ),
    );
    for Listed { repo, commit, format, quantization, bytes: size, license, state, .. } in listed {
        let (ty, license) = (quantization.as_deref().unwrap_or("-"), license.as_deref().unwrap_or("-"));
        line(
            &mut text,
            format_args!(
                "{repo:<width$}  {commit:<12.12}  {format:<11}  {ty:<5}  {:>10}  {license:<14}  {state}",
                bytes(*size)
            ),
        );
    }
    text
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{arguments}");
}
