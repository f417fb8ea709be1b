//! The command line of `tramontane models`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use tramontane_model::tools::{Like, Recipe};

use crate::args::{nodes, threads, within};
use crate::hub::{Address, Reference};
use crate::model::named;

const EXAMPLES: &str = "\
Examples:
  # The demo model in GGUF, for this program or llama.cpp
  tramontane models quantize --type q8_0 demo breeze-q8_0.gguf

  # A checkpoint of your own, about 4.8 bits a weight
  tramontane models quantize --type q4_k_m ./Mixtral-8x7B-Instruct-v0.1 mixtral-q4_k_m.gguf

  # Random weights in Mixtral's shapes, to measure with
  tramontane models synth --like mixtral-8x7b --layers 4 --type q4_0 mixtral-4-layers.gguf

  # A dense model as one with 8 experts
  tramontane models split --experts 8 SmolLM2-135M-Q8_0.gguf smol-8-experts.gguf

  # A model from Hugging Face, kept in the folder of models; what is in that folder; one of them served
  tramontane models pull Qwen/Qwen3-30B-A3B
  tramontane models list
  tramontane up --model Qwen/Qwen3-30B-A3B

  # What is in it, what 4 nodes would hold; whether it is sound
  tramontane models inspect mixtral-q4_k_m.gguf --expert-nodes 4
  tramontane models verify mixtral-q4_k_m.gguf --write-manifest";

const QUANTIZE_EXAMPLES: &str = "\
Examples:
  tramontane models quantize --type q8_0 demo breeze-q8_0.gguf
  tramontane models quantize --type q4_k_m ./Mixtral-8x7B-Instruct-v0.1 mixtral-q4_k_m.gguf
  tramontane models quantize --type q4_0 mixtral-f16.gguf mixtral-q4_0.gguf";

const SYNTH_EXAMPLES: &str = "\
Examples:
  tramontane models synth --like tiny tiny.gguf
  tramontane models synth --like qwen3-30b-a3b --layers 4 --type q4_k_m qwen3-4-layers.gguf";

const SPLIT_EXAMPLES: &str = "\
Examples:
  tramontane models split --experts 8 SmolLM2-135M-Q8_0.gguf smol-8-experts.gguf";

const INSPECT_EXAMPLES: &str = "\
Examples:
  tramontane models inspect demo
  tramontane models inspect mixtral-q4_k_m.gguf --expert-nodes 4 --json";

const VERIFY_EXAMPLES: &str = "\
Examples:
  tramontane models verify demo
  tramontane models verify ./Mixtral-8x7B-v0.1 --write-manifest";

const PULL_EXAMPLES: &str = "\
Examples:
  tramontane models pull mistralai/Mixtral-8x7B-Instruct-v0.1 --token-file ~/token
  tramontane models pull Qwen/Qwen3-30B-A3B@0d7cf23991f47feeb3a57ecb4c9cee8ea4a17bfe
  tramontane models pull Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M";

const LIST_EXAMPLES: &str = "\
Examples:
  tramontane models list
  tramontane models list --models-dir /srv/models --json";

/// Pulls, lists, converts, makes up, cuts, looks into and checks checkpoints.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    pub(crate) command: ModelsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// Get a model from Hugging Face, or from another hub or mirror, into the folder of models
    Pull(PullArgs),
    /// Show the folder of models
    List(ListArgs),
    /// Write a checkpoint as GGUF, its weights in smaller types
    Quantize(QuantizeArgs),
    /// Write a model with random weights in the shapes of a known one
    Synth(SynthArgs),
    /// Cut a dense Llama model in GGUF into experts; it computes the same
    Split(SplitArgs),
    /// Show tensors, types, shapes, and bytes by layer and expert
    Inspect(InspectArgs),
    /// Check every file and tensor: sums, hashes, finite weights, shapes; show the licence
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
#[command(before_help = PULL_EXAMPLES)]
pub(crate) struct PullArgs {
    /// The hub
    #[arg(long, env = "HF_ENDPOINT", value_name = "URL", default_value = "https://huggingface.co", value_parser = Address::parse)]
    pub(crate) endpoint: Address,
    /// File that holds the token for the hub, and nothing else [default: HF_TOKEN, or the file that Hugging Face's own tools write]
    #[arg(long, env = "HF_TOKEN_PATH", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Which GGUF model: the end of its name, without .gguf
    #[arg(long, value_name = "TYPE", conflicts_with = "file")]
    pub(crate) quantization: Option<String>,
    /// Which GGUF model: its file, or one of them
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<String>,
    /// Folder of models [default: tramontane/models among the user's data]
    #[arg(long, env = "TRAMONTANE_MODELS_DIR", value_name = "DIR")]
    pub(crate) models_dir: Option<PathBuf>,
    /// Which model; a commit behind @ gives the same one always
    #[arg(value_name = "ORG/NAME[@REVISION][:TYPE]", value_parser = Reference::parse)]
    pub(crate) reference: Reference,
}

#[derive(Debug, Args)]
#[command(before_help = LIST_EXAMPLES)]
pub(crate) struct ListArgs {
    /// Print one JSON array
    #[arg(long)]
    pub(crate) json: bool,
    /// Folder of models [default: tramontane/models among the user's data]
    #[arg(long, env = "TRAMONTANE_MODELS_DIR", value_name = "DIR")]
    pub(crate) models_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(before_help = QUANTIZE_EXAMPLES)]
pub(crate) struct QuantizeArgs {
    /// Types of the weights
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) ty: TypeArg,
    /// Threads that compute [default: all cores]
    #[arg(long, env = "TRAMONTANE_THREADS", value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<usize>,
    /// Folder of a checkpoint, a GGUF file, a model that was pulled, or the word `demo` for the demo model
    #[arg(value_name = "IN", value_parser = named)]
    pub(crate) input: PathBuf,
    /// File to write
    #[arg(value_name = "OUT.gguf")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Args)]
#[command(before_help = SYNTH_EXAMPLES)]
pub(crate) struct SynthArgs {
    /// The model whose shapes it gets
    #[arg(long, value_name = "MODEL")]
    pub(crate) like: LikeArg,
    /// How many layers [default: as many as the model has]
    #[arg(long, value_name = "N", value_parser = layers)]
    pub(crate) layers: Option<usize>,
    /// Types of the weights
    #[arg(long = "type", value_name = "TYPE", default_value = "q8_0")]
    pub(crate) ty: TypeArg,
    /// The same seed gives the same weights
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// File to write
    #[arg(value_name = "OUT.gguf")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Args)]
#[command(before_help = SPLIT_EXAMPLES)]
pub(crate) struct SplitArgs {
    /// Into how many experts; a power of two
    #[arg(long, value_name = "E")]
    pub(crate) experts: usize,
    /// A dense Llama model in GGUF
    #[arg(value_name = "DENSE.gguf", value_parser = named)]
    pub(crate) dense: PathBuf,
    /// File to write
    #[arg(value_name = "OUT.gguf")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Args)]
#[command(before_help = INSPECT_EXAMPLES)]
pub(crate) struct InspectArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Say what each of N expert nodes would hold
    #[arg(long, value_name = "N", value_parser = nodes)]
    pub(crate) expert_nodes: Option<usize>,
    /// Folder of a checkpoint, a GGUF file, a model that was pulled, or `demo`
    #[arg(value_name = "PATH", value_parser = named)]
    pub(crate) path: PathBuf,
}

#[derive(Debug, Args)]
#[command(before_help = VERIFY_EXAMPLES)]
pub(crate) struct VerifyArgs {
    /// Write the hashes beside the weights, so that a start need not read them all
    #[arg(long)]
    pub(crate) write_manifest: bool,
    /// Folder of a checkpoint, a GGUF file, a model that was pulled, or `demo`
    #[arg(value_name = "PATH", value_parser = named)]
    pub(crate) path: PathBuf,
}

/// Types that a whole file can be written in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TypeArg(Recipe);

impl TypeArg {
    pub(crate) const fn recipe(self) -> Recipe {
        self.0
    }
}

impl ValueEnum for TypeArg {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [TypeArg; Recipe::ALL.len()] = {
            let [a, b, c, d] = Recipe::ALL;
            [TypeArg(a), TypeArg(b), TypeArg(c), TypeArg(d)]
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.name()))
    }
}

/// Models whose shapes a synthetic one can have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LikeArg(Like);

impl LikeArg {
    pub(crate) const fn like(self) -> Like {
        self.0
    }
}

impl ValueEnum for LikeArg {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [LikeArg; Like::ALL.len()] = {
            let [a, b, c] = Like::ALL;
            [LikeArg(a), LikeArg(b), LikeArg(c)]
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.name()))
    }
}

fn layers(text: &str) -> Result<usize, String> {
    within(text, 1..=tramontane_model::config::MAX_LAYERS)
}
