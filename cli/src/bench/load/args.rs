//! The command line of `tramontane bench serve`.

use clap::Args;

use crate::args::within;
use crate::bench::args::OutputArg;
use crate::client::EndpointArgs;

/// Requests of a run, at most; also those at once.
const MAX_REQUESTS: usize = 100_000;
/// Tokens of an answer, words of a prompt, at most.
const MAX_TOKENS: usize = tramontane_model::config::MAX_CONTEXT;

const EXAMPLES: &str = "\
Examples:
  # 64 requests, 8 at once, to the server that `tramontane up` starts
  tramontane bench serve

  # 200 requests that arrive at random, 4 a second on average; which of them would please their users
  tramontane bench serve --requests 200 --rate 4 --ttft 500 --itl 50

  # Another server, numbers for a program
  tramontane bench serve --endpoint http://10.0.0.1:8000 --model mixtral --concurrency 32 --output json";

/// Loads a server with streams over its OpenAI-compatible HTTP API, and measures what their readers see.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct LoadArgs {
    #[command(flatten)]
    pub(crate) server: EndpointArgs,

    /// Requests in all
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Load", value_parser = requests)]
    pub(crate) requests: usize,
    /// Requests at once: a new one begins when one has ended
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Load", value_parser = requests, conflicts_with = "rate")]
    pub(crate) concurrency: usize,
    /// Requests a second on average, whether or not others have ended; times between them are random (a Poisson process)
    #[arg(long, value_name = "R", help_heading = "Load", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Words of each prompt, random ones; how many tokens that makes is the server's affair, and reported
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = "Load", value_parser = tokens)]
    pub(crate) prompt_words: usize,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Load", value_parser = tokens)]
    pub(crate) output_tokens: usize,
    /// Let answers end when the model ends them, which servers without vLLM's `ignore_eos` want
    #[arg(long, help_heading = "Load")]
    pub(crate) allow_eos: bool,
    /// The same seed gives the same prompts at the same times, and seeds for sampling
    #[arg(long, value_name = "S", default_value_t = 0, help_heading = "Load")]
    pub(crate) seed: u64,

    /// A request pleases if its first token comes within so many milliseconds
    #[arg(long, value_name = "MS", help_heading = "Goodput", value_parser = milliseconds)]
    pub(crate) ttft: Option<f64>,
    /// And if its tokens come so many milliseconds apart, on average
    #[arg(long, value_name = "MS", help_heading = "Goodput", value_parser = milliseconds)]
    pub(crate) itl: Option<f64>,

    /// Form of the result
    #[arg(short, long, value_name = "FORM", default_value = "table", help_heading = "Output")]
    pub(crate) output: OutputArg,
    /// The same as --output json
    #[arg(long, help_heading = "Output", conflicts_with = "output")]
    pub(crate) json: bool,
}

impl LoadArgs {
    /// The form that was asked for.
    pub(super) const fn form(&self) -> OutputArg {
        if self.json { OutputArg::Json } else { self.output }
    }
}

fn requests(text: &str) -> Result<usize, String> {
    within(text, 1..=MAX_REQUESTS)
}

fn tokens(text: &str) -> Result<usize, String> {
    within(text, 1..=MAX_TOKENS)
}

fn rate(text: &str) -> Result<f64, String> {
    positive(text, 1e6)
}

fn milliseconds(text: &str) -> Result<f64, String> {
    positive(text, 1e9)
}

fn positive(text: &str, most: f64) -> Result<f64, String> {
    let valid = text.parse().ok().filter(|number| *number > 0.0 && *number <= most);
    valid.ok_or_else(|| format!("a number above 0, at most {most}, is wanted"))
}
