//! What was measured, as one JSON object or as tables.

use std::fmt::Write as _;

use serde::Serialize;
use tramontane_kernels::KvType;
use tramontane_model::config::ModelConfig;

use super::machine::{Arithmetic, Memory, ReadBandwidth};
use super::measure::Samples;
use super::plan::{Case, Work};
use super::stats::{Summary, ratio};
use crate::cost::{ModelWeights, kv_bytes};
use crate::output::bytes;

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Of this program.
    pub(super) version: &'static str,
    /// `debug` figures say nothing.
    pub(super) build: &'static str,
    pub(super) model: ModelReport,
    pub(super) engine: EngineReport,
    pub(super) machine: MachineReport,
    pub(super) memory: Memory,
    pub(super) cases: Vec<CaseReport>,
}

/// Which model.
#[derive(Debug, Serialize)]
pub(super) struct ModelReport {
    pub(super) name: String,
    pub(super) experts_type: String,
    pub(super) layers: usize,
    pub(super) experts: usize,
    pub(super) experts_per_token: usize,
    pub(super) hidden: usize,
    pub(super) vocab: usize,
}

/// What the engine was made of, and how it was measured.
#[derive(Debug, Serialize)]
pub(super) struct EngineReport {
    pub(super) isa: String,
    pub(super) threads: usize,
    pub(super) expert_nodes: usize,
    pub(super) kv_type: &'static str,
    pub(super) repeats: usize,
    pub(super) seed: u64,
    /// Tokens of a step of a prefill, at most.
    pub(super) chunk: Option<usize>,
}

/// What it ran on.
#[derive(Debug, Serialize)]
pub(super) struct MachineReport {
    pub(super) cpu: Option<String>,
    /// Cores given to this process.
    pub(super) cores: usize,
    pub(super) read_bandwidth: Option<ReadBandwidth>,
    pub(super) arithmetic: Option<Arithmetic>,
}

/// A case, and how fast it went.
#[derive(Debug, Serialize)]
pub(super) struct CaseReport {
    /// Its name.
    case: String,
    /// Sequences that are computed together.
    sequences: usize,
    /// Positions that each has before.
    depth: usize,
    /// Tokens of each.
    tokens: usize,
    tokens_per_second: Summary,
    /// One entry a round.
    samples: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<Cost>,
    others: Vec<OtherReport>,
}

/// What a case needs, and how fast that went at the median.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cost {
    Prefill {
        operations: f64,
        gigaoperations_per_second: f64,
    },
    /// Of one sequence: which weights several read depends on the experts that they share.
    Decode {
        weight_bytes_per_token: f64,
        kv_bytes_per_token: f64,
        gigabytes_per_second: f64,
        /// Of what the memory gave around the same sample: the rounds' shares.
        share_of_read_bandwidth: Option<Summary>,
    },
}

/// How fast another engine did the same.
#[derive(Debug, Serialize)]
pub(super) struct OtherReport {
    label: String,
    tokens_per_second: Summary,
    samples: Vec<f64>,
    /// Ours ÷ theirs: the medians' ratio, and the ends of the rounds' ratios.
    ratio: Summary,
    /// The rounds' ratios, each side divided by what the memory gave around it.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_by_bandwidth: Option<Summary>,
}

/// What costs are reckoned from.
pub(super) struct Sizes<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) weights: &'a ModelWeights,
    pub(super) kv_type: KvType,
}

impl Sizes<'_> {
    /// What `work` needs when it goes as `samples` say, `rate` tokens a second at the median.
    fn cost(&self, work: Work, samples: &Samples, rate: f64) -> Option<Cost> {
        match work {
            Work::Prefill { tokens, .. } => {
                let operations = self.weights.prefill_operations(tokens);
                let gigaoperations_per_second = operations * rate / tokens as f64 / 1e9;
                Some(Cost::Prefill { operations, gigaoperations_per_second })
            }
            Work::Decode { sequences: 1, depth, tokens } => {
                let weight_bytes_per_token = self.weights.decode_bytes();
                let kv_bytes_per_token = kv_bytes(self.config, self.kv_type, depth, tokens);
                let gigabytes = |rate: f64| (weight_bytes_per_token + kv_bytes_per_token) * rate / 1e9;
                let shares: Vec<f64> = shares(&samples.ours, &samples.read).into_iter().map(gigabytes).collect();
                Some(Cost::Decode {
                    weight_bytes_per_token,
                    kv_bytes_per_token,
                    gigabytes_per_second: gigabytes(rate),
                    share_of_read_bandwidth: Summary::of(&shares),
                })
            }
            Work::Decode { .. } => None,
        }
    }
}

/// Tokens for each 10⁹ bytes that the memory gave: rates beside the bandwidth around them.
fn shares(rates: &[f64], read: &[f64]) -> Vec<f64> {
    rates.iter().zip(read).map(|(rate, read)| rate / read).collect()
}

/// Of one case; `labels` are the other engines'. `None` when there are no samples of ours.
pub(super) fn case(case: &Case, samples: &Samples, labels: &[&str], sizes: &Sizes<'_>) -> Option<CaseReport> {
    let tokens_per_second = Summary::of(&samples.ours)?;
    let other = |(label, (theirs, their_read)): (&&str, (&Vec<f64>, &Vec<f64>))| {
        let (ours, theirs_shares) = (shares(&samples.ours, &samples.read), shares(theirs, their_read));
        let rounds: Vec<f64> = ours.iter().zip(&theirs_shares).map(|(ours, theirs)| ours / theirs).collect();
        Some(OtherReport {
            label: (*label).to_owned(),
            tokens_per_second: Summary::of(theirs)?,
            samples: theirs.clone(),
            ratio: ratio(&samples.ours, theirs)?,
            ratio_by_bandwidth: Summary::of(&rounds),
        })
    };
    let work = case.work;
    Some(CaseReport {
        case: work.name(),
        sequences: work.sequences(),
        depth: work.depth(),
        tokens: work.tokens() / work.sequences(),
        tokens_per_second,
        samples: samples.ours.clone(),
        cost: sizes.cost(work, samples, tokens_per_second.median),
        others: labels.iter().zip(samples.theirs.iter().zip(&samples.their_read)).filter_map(other).collect(),
    })
}

/// Tables for people.
pub(super) fn table(report: &Report) -> String {
    let mut text = head(report);
    line(&mut text, format_args!("\n{:<14}  {:>10}  {:>10}  {:>10}  AT THAT RATE", "CASE", "TOKENS/S", "MIN", "MAX"));
    for case in &report.cases {
        let Summary { median, min, max } = case.tokens_per_second;
        let cost = case.cost.as_ref().map_or_else(String::new, cost);
        line(&mut text, format_args!("{:<14}  {median:>10.2}  {min:>10.2}  {max:>10.2}  {cost}", case.case));
    }
    if report.cases.iter().any(|case| !case.others.is_empty()) {
        let columns = ("CASE", "OTHER ENGINE", "TOKENS/S", "OURS/THEIRS", "MIN", "MAX");
        let (case, other, rate, ratio, min, max) = columns;
        let head = format_args!("\n{case:<14}  {other:<20}  {rate:>10}  {ratio:>11}  {min:>7}  {max:>7}  BY BANDWIDTH");
        line(&mut text, head);
    }
    for (case, other) in report.cases.iter().flat_map(|case| case.others.iter().map(move |other| (case, other))) {
        let (name, label, rate) = (&case.case, &other.label, other.tokens_per_second.median);
        let Summary { median, min, max } = other.ratio;
        let by_bandwidth = other
            .ratio_by_bandwidth
            .map_or_else(String::new, |Summary { median, min, max }| format!("  {median:.3} ({min:.3} to {max:.3})"));
        let row =
            format_args!("{name:<14}  {label:<20}  {rate:>10.2}  {median:>11.3}  {min:>7.3}  {max:>7.3}{by_bandwidth}");
        line(&mut text, row);
    }
    text
}

fn head(report: &Report) -> String {
    let Report { model, engine, machine, memory, .. } = report;
    let mut text = String::new();
    let experts = format!("{} of {} experts a token, {}", model.experts_per_token, model.experts, model.experts_type);
    line(&mut text, format_args!("model    {}: {} layers, {experts}", model.name, model.layers));
    let reads = machine.read_bandwidth.as_ref().map_or_else(String::new, |read| {
        let Summary { median, max, .. } = read.gigabytes_per_second;
        format!("; reads {max:.1} GB/s at best, {median:.1} at the median, of {}", bytes(read.buffer_bytes))
    });
    let units = machine.arithmetic.as_ref().map_or_else(String::new, |units| {
        let (float, int8) = (units.float_gigaflops.max, units.int8_gigaops.max);
        format!("; {float:.0} GFLOP/s in f32, {int8:.0} GOP/s in 8 bits")
    });
    let cpu = machine.cpu.as_deref().unwrap_or("unknown CPU");
    line(&mut text, format_args!("machine  {cpu}, {} cores{reads}{units}", machine.cores));
    let EngineReport { isa, threads, expert_nodes, kv_type, repeats, .. } = engine;
    let nodes = format!("{expert_nodes} expert nodes in process");
    let rounds = format!("{repeats} rounds, {} build", report.build);
    line(&mut text, format_args!("engine   {isa}, {threads} threads, {nodes}, KV {kv_type}; {rounds}"));
    let size = |size: Option<u64>| size.map_or_else(|| "unknown".to_owned(), bytes);
    let (peak, now) = (size(memory.peak_rss_bytes), size(memory.rss_bytes));
    let (anonymous, file) = (size(memory.anon_huge_pages_bytes), size(memory.file_pmd_mapped_bytes));
    line(
        &mut text,
        format_args!("memory   {now} resident, {peak} at most; in huge pages: {anonymous}, of files {file}"),
    );
    text
}

fn cost(cost: &Cost) -> String {
    match cost {
        Cost::Prefill { gigaoperations_per_second: rate, .. } => format!("{rate:.1} GOP/s"),
        Cost::Decode { gigabytes_per_second: rate, share_of_read_bandwidth, .. } => {
            let share = share_of_read_bandwidth.map_or_else(String::new, |Summary { median, min, max }| {
                let [median, min, max] = [median, min, max].map(|share| share * 100.0);
                format!(", {median:.0} % ({min:.0} to {max:.0}) of what the memory gave meanwhile")
            });
            format!("{rate:.2} GB/s{share}")
        }
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{arguments}");
}

#[cfg(test)]
mod tests {
    use tramontane_model::checkpoint::Checkpoint;
    use tramontane_model::weights::Quantize;

    use super::super::args::WorkArgs;
    use super::super::plan::plan;
    use super::*;
    use crate::demo;

    /// Reports of `pp8`, `tg4` and `tg4 x 2` on Breeze, at 3 tokens a second where another engine has 2 in the first two.
    fn cases(read: &[f64]) -> (Vec<CaseReport>, ModelWeights) {
        let checkpoint = Checkpoint::from_files(&demo::FILES).expect("the demo model opens");
        let config = checkpoint.config().expect("it has a configuration");
        let weights = ModelWeights::of(&checkpoint, &config, Quantize::AsStored).expect("it is whole");
        let sizes = Sizes { config: &config, weights: &weights, kv_type: KvType::F16 };
        let work = WorkArgs {
            prompt_tokens: 8,
            chunk: None,
            tokens: 4,
            depth: Some(0),
            batch: vec![1, 2],
            repeats: 1,
            seed: 0,
        };
        let plan = plan(&work, config.context).expect("it fits");
        let theirs = [vec![2.0], vec![2.0], vec![]];
        let of = |(of, theirs): (&Case, &Vec<f64>)| {
            let samples = Samples {
                ours: vec![3.0],
                read: read.to_vec(),
                theirs: vec![theirs.clone()],
                their_read: vec![read.to_vec()],
            };
            case(of, &samples, &["other"], &sizes).expect("it has samples")
        };
        (plan.cases.iter().zip(&theirs).map(of).collect(), weights)
    }

    #[test]
    fn rates_are_told_in_operations_and_bytes() {
        let (cases, weights) = cases(&[1e-3]);
        let Some(Cost::Prefill { operations, gigaoperations_per_second: rate }) = &cases[0].cost else {
            panic!("{:?}", cases[0]);
        };
        assert_eq!(
            (*operations, *rate),
            (weights.prefill_operations(8), weights.prefill_operations(8) * 3.0 / 8.0 / 1e9)
        );
        let Some(Cost::Decode { gigabytes_per_second: rate, share_of_read_bandwidth, .. }) = &cases[1].cost else {
            panic!("{:?}", cases[1]);
        };
        // Positions 0 … 3 see 1 … 4 of 2048 bytes.
        assert_eq!(*rate, (weights.decode_bytes() + 2.5 * 2048.0) * 3.0 / 1e9);
        let Some(Summary { median, min, max }) = *share_of_read_bandwidth else { panic!("{:?}", cases[1]) };
        assert!((median / (*rate / 1e-3) - 1.0).abs() < 1e-12 && (min, max) == (median, median), "{median}");
        assert!(cases[2].cost.is_none(), "{:?}", cases[2]);
    }

    #[test]
    fn other_engines_stand_beside_the_cases_that_they_did() {
        let (cases, _) = cases(&[]);
        let others = |case: &CaseReport| -> Vec<(String, f64)> {
            case.others.iter().map(|other| (other.label.clone(), other.ratio.median)).collect()
        };
        let one = vec![("other".to_owned(), 1.5)];
        assert_eq!(cases.iter().map(others).collect::<Vec<_>>(), [one.clone(), one, vec![]]);
    }
}
