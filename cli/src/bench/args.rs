//! The command line of `tramontane bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use tramontane_kernels::Isa;

use super::load::LoadArgs;
use crate::args::{KvArg, ModelArgs, nodes, threads, within};

/// Tokens of a prompt, of a decode, positions before it, at most; the model's context bounds them further.
const MAX_TOKENS: usize = tramontane_model::config::MAX_CONTEXT;
/// Sequences that are decoded together, at most.
const MAX_SEQUENCES: usize = 1024;
/// Times that everything is measured, at most.
const MAX_REPEATS: usize = 1000;

const EXAMPLES: &str = "\
Examples:
  tramontane bench engine
  tramontane bench engine --model mixtral-q4_0.gguf --prompt-tokens 512 --tokens 64 --batch 1,8 --json
  tramontane bench engine --model mixtral-q4_0.gguf --llama-bench ./llama.cpp/build/bin/llama-bench
  tramontane bench exchange
  tramontane bench serve --endpoint http://127.0.0.1:8080 --requests 200 --rate 4";

/// Measures.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Prefill and decode of random tokens in this process, with the code that `up` runs
    Engine(Box<EngineArgs>),
    /// Streams over a server's HTTP API, at a rate or so many at once: what their readers see
    Serve(Box<LoadArgs>),
    /// What a machine with one GPU can show of `--exchange nccl`: communicators of this process alone, made, used, broken, made anew
    Exchange(ExchangeArgs),
}

/// Tries NCCL on this machine's first GPU.
#[derive(Debug, Args)]
pub(crate) struct ExchangeArgs {
    /// Print one JSON object for each thing that was tried
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Measures the engine on a model, alone or in turn with others.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct EngineArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) work: WorkArgs,

    /// Expert nodes, all in this process [default: one for each expert of a layer, at most 8, as `up` has]
    #[arg(long, env = "TRAMONTANE_EXPERT_NODES", value_name = "N", help_heading = "Engine", value_parser = nodes)]
    pub(crate) expert_nodes: Option<usize>,
    /// Threads that compute [default: all cores given to this process]
    #[arg(long, env = "TRAMONTANE_THREADS", value_name = "N", help_heading = "Engine", value_parser = threads)]
    pub(crate) threads: Option<usize>,
    /// Instruction set: one that this CPU has, by name, or `auto` for the fastest
    #[arg(long, value_name = "ISA", default_value = "auto", help_heading = "Engine", value_parser = isa)]
    pub(crate) isa: Isa,
    /// Type in which keys and values are cached
    #[arg(long, env = "TRAMONTANE_KV_TYPE", value_name = "TYPE", default_value = "f16", help_heading = "Engine")]
    pub(crate) kv_type: KvArg,
    /// Bytes of memory that keys and values may take
    #[arg(long, env = "TRAMONTANE_KV_MEMORY", value_name = "BYTES", default_value_t = 2 << 30, help_heading = "Engine")]
    pub(crate) kv_memory: u64,

    /// Bytes that are read to find the machine's read bandwidth, many times its caches; 0 leaves that out
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30, help_heading = "Comparison")]
    pub(crate) read_buffer: u64,
    /// A program `llama-bench` to run in turn with ours on the same GGUF file; may be given several times
    #[arg(long, value_name = "PATH", requires = "model", conflicts_with = "quantize", help_heading = "Comparison")]
    pub(crate) llama_bench: Vec<PathBuf>,

    /// Form of the result
    #[arg(short, long, value_name = "FORM", default_value = "table", help_heading = "Output")]
    pub(crate) output: OutputArg,
    /// The same as --output json
    #[arg(long, help_heading = "Output", conflicts_with = "output")]
    pub(crate) json: bool,
}

/// What is computed, and how often.
#[derive(Debug, Args)]
pub(crate) struct WorkArgs {
    /// Tokens of the prompt; 0 leaves prefill out
    #[arg(long, value_name = "P", default_value_t = 512, help_heading = "Work", value_parser = tokens)]
    pub(crate) prompt_tokens: usize,
    /// Cut the prompt in steps of N tokens, as a scheduler does [default: one step]
    #[arg(long, value_name = "N", help_heading = "Work", value_parser = at_least_one)]
    pub(crate) chunk: Option<usize>,
    /// Tokens that each sequence decodes
    #[arg(long, value_name = "D", default_value_t = 64, help_heading = "Work", value_parser = at_least_one)]
    pub(crate) tokens: usize,
    /// Decode one sequence also after N positions; 0 leaves that out [default: 2048, or what the context has room for]
    #[arg(long, value_name = "N", help_heading = "Work", value_parser = tokens)]
    pub(crate) depth: Option<usize>,
    /// How many sequences decode together, from empty contexts
    #[arg(long, value_name = "N,…", default_value = "1,4,16,32", value_delimiter = ',', help_heading = "Work", value_parser = sequences)]
    pub(crate) batch: Vec<usize>,
    /// How often everything is measured, after one round that is not counted
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = "Work", value_parser = repeats)]
    pub(crate) repeats: usize,
    /// The same seed gives the same tokens
    #[arg(long, value_name = "S", default_value_t = 0, help_heading = "Work")]
    pub(crate) seed: u64,
}

/// Forms of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputArg {
    /// Tables for people
    Table,
    /// One JSON object
    Json,
}

impl EngineArgs {
    /// The form that was asked for.
    pub(crate) const fn form(&self) -> OutputArg {
        if self.json { OutputArg::Json } else { self.output }
    }
}

fn isa(text: &str) -> Result<Isa, String> {
    if text == "auto" {
        return Ok(Isa::detect());
    }
    let available = Isa::available();
    available.iter().find(|isa| isa.to_string() == text).copied().ok_or_else(|| {
        let names: Vec<String> = available.iter().map(ToString::to_string).collect();
        format!("this CPU has auto, {}", names.join(", "))
    })
}

fn tokens(text: &str) -> Result<usize, String> {
    within(text, 0..=MAX_TOKENS)
}

fn at_least_one(text: &str) -> Result<usize, String> {
    within(text, 1..=MAX_TOKENS)
}

fn sequences(text: &str) -> Result<usize, String> {
    within(text, 1..=MAX_SEQUENCES)
}

fn repeats(text: &str) -> Result<usize, String> {
    within(text, 1..=MAX_REPEATS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn parse(args: &[&str]) -> Result<EngineArgs, clap::Error> {
        let cli = Cli::try_parse_from([&["tramontane", "bench", "engine"], args].concat())?;
        match cli.command {
            Command::Bench(BenchArgs { command: BenchCommand::Engine(args) }) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_instruction_set_of_the_cpu_is_known_by_its_name() {
        for available in Isa::available() {
            assert_eq!(parse(&["--isa", &available.to_string()]).map(|args| args.isa).ok(), Some(available));
        }
        assert_eq!(parse(&[]).map(|args| args.isa).ok(), Some(Isa::detect()));
        assert!(parse(&["--isa", "mmx"]).is_err_and(|error| error.to_string().contains("portable")));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            &["--tokens", "0"][..],
            &["--chunk", "0"],
            &["--batch", "1,0"],
            &["--batch", "4096"],
            &["--repeats", "0"],
            &["--llama-bench", "x"],
            &["--model", "x", "--quantize", "q4_0", "--llama-bench", "x"],
            &["--json", "--output", "table"],
        ] {
            assert_eq!(parse(bad).map(drop).expect_err("refused").exit_code(), 2, "{bad:?}");
        }
        let args = parse(&["--batch", "2,8", "-o", "json", "--model", "x", "--llama-bench", "a", "--llama-bench", "b"]);
        let args = args.expect("it makes sense");
        assert_eq!(
            (args.work.batch.as_slice(), args.form(), args.llama_bench.len()),
            (&[2, 8][..], OutputArg::Json, 2)
        );
    }
}
