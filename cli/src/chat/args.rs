//! The command line of `tramontane chat`.

use clap::Args;

use crate::client::EndpointArgs;

const EXAMPLES: &str = "\
Examples:
  # Talk with the server that `tramontane up` starts; Ctrl-C ends an answer, Ctrl-D the conversation
  tramontane chat

  # One question, one answer
  tramontane chat \"What is the capital of France?\"
  git diff | tramontane chat --system \"Say in one sentence what changes.\"

  # Another server, with a key
  tramontane chat --endpoint http://10.0.0.1:8080 --api-key-file key.txt --model mixtral";

/// Talks with a model over any server's OpenAI-compatible HTTP API. Without a message: a conversation on a terminal, else what stands on
/// stdin as one message.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct ChatArgs {
    /// What to say; the answer is printed, and that is all
    pub(crate) message: Option<String>,

    #[command(flatten)]
    pub(crate) server: EndpointArgs,

    /// What stands before the conversation
    #[arg(long, value_name = "TEXT", help_heading = "Answer")]
    pub(crate) system: Option<String>,
    /// Tokens of an answer, at most [default: what the context has room for]
    #[arg(long, value_name = "N", help_heading = "Answer", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: Option<u32>,
    /// Randomness, 0 to 2; 0 always takes the most likely token [default: the server's]
    #[arg(long, value_name = "T", help_heading = "Answer", value_parser = temperature)]
    pub(crate) temperature: Option<f64>,
    /// The same seed gives the same answer [default: a random one]
    #[arg(long, value_name = "S", allow_negative_numbers = true, help_heading = "Answer")]
    pub(crate) seed: Option<i64>,

    /// Print one JSON object an answer, when it is whole
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

fn temperature(text: &str) -> Result<f64, String> {
    let valid = text.parse().ok().filter(|t| (0.0..=2.0).contains(t));
    valid.ok_or_else(|| "a number from 0 to 2 is wanted".to_owned())
}
