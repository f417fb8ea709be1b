//! The log: lines on stderr, for people on a terminal, else an object of JSON each.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::Registry;
use tramontane_cluster::trace::TARGET;

/// What is logged when nothing is said.
const LEVEL: &str = "warn";

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// How lines of the log look; auto: text on a terminal, else JSON
    #[arg(
        long,
        global = true,
        env = "TRAMONTANE_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "auto",
        help_heading = "Log"
    )]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or more in RUST_LOG's words [default: RUST_LOG, or warn]
    #[arg(long, global = true, env = "TRAMONTANE_LOG_LEVEL", value_name = "LEVEL", value_parser = level, help_heading = "Log")]
    log_level: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Auto,
    Text,
    Json,
}

impl LogArgs {
    /// The same, for a child process.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let format = self.log_format.to_possible_value().map(|format| format.get_name().to_owned());
        let format = format.into_iter().flat_map(|format| ["--log-format".to_owned(), format]);
        format.chain(self.log_level.iter().flat_map(|level| ["--log-level".to_owned(), level.clone()])).collect()
    }

    /// What writes it.
    pub(super) fn layer(&self) -> impl Layer<Registry> + use<> {
        let terminal = std::io::stderr().is_terminal();
        let format = match self.log_format {
            LogFormat::Auto if terminal => LogFormat::Text,
            LogFormat::Auto => LogFormat::Json,
            said => said,
        };
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let lines = if format == LogFormat::Json {
            lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
        } else {
            lines.with_ansi(terminal && std::env::var_os("NO_COLOR").is_none()).boxed()
        };
        // What is exported says things of its own.
        let exported = filter_fn(|what| what.target() != TARGET).with_max_level_hint(LevelFilter::TRACE);
        lines.with_filter(self.filter().and(exported))
    }

    fn filter(&self) -> EnvFilter {
        match &self.log_level {
            Some(said) => EnvFilter::new(said),
            None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LEVEL)),
        }
    }
}

fn level(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}
