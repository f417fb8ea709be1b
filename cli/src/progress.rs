//! How far a start has come: a bar on a terminal, plain lines elsewhere; on stderr.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::bytes;

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

/// Bytes that come over the network, file by file.
pub(crate) struct Transfer {
    shown: Shown,
    total: u64,
}

enum Shown {
    Bar(ProgressBar),
    /// Lines, and the tenth that the last one told of.
    Lines {
        tenth: u64,
    },
}

impl Transfer {
    pub(crate) fn start(total: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { shown: Shown::Lines { tenth: 0 }, total };
        }
        let bar = ProgressBar::new(total);
        let style = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Self { shown: Shown::Bar(bar), total }
    }

    /// The file `name` comes next.
    pub(crate) fn begin(&mut self, name: &str) {
        match &self.shown {
            Shown::Bar(bar) => bar.set_message(name.to_owned()),
            Shown::Lines { .. } => eprintln!("{name}"),
        }
    }

    /// `done` of all bytes are there.
    pub(crate) fn set(&mut self, done: u64) {
        match &mut self.shown {
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Lines { tenth } => {
                let now = (u128::from(done) * 10).checked_div(self.total.into()).unwrap_or(0) as u64;
                if now > *tenth {
                    *tenth = now;
                    eprintln!("{} of {}", bytes(done), bytes(self.total));
                }
            }
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}
