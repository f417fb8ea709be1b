//! How far a start has come: a bar on a terminal, plain lines elsewhere; on stderr.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Progress of one thing that is counted.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts at 0 of `total`; `what` is what is being done.
    pub(crate) fn start(what: &'static str, total: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            tracing::info!(total, "{what}");
            return Self { bar: None };
        }
        let bar = ProgressBar::new(total).with_message(what);
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
            bar.set_style(style);
        }
        Self { bar: Some(bar) }
    }

    /// `done` of the total are done.
    pub(crate) fn set(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
