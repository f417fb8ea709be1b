//! What a process says of itself as it runs: its log, on stderr, and the traces that it exports.

mod log;
mod traces;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;

pub(crate) use log::LogArgs;
pub(crate) use traces::{Service, TraceArgs};

use traces::Exporting;

/// Logs and exports until it is finished.
pub(crate) struct Telemetry(Option<Exporting>);

impl Telemetry {
    /// Begins to log as `log` says, and to export what `traced` says. Must be called on the runtime that carries what is exported.
    pub(crate) fn begin(log: &LogArgs, traced: Option<(Service, &TraceArgs)>) -> anyhow::Result<Self> {
        let exporting = traced.map(|(service, args)| Exporting::begin(&service, args)).transpose()?.flatten();
        let subscriber = Registry::default().with(log.layer()).with(exporting.as_ref().map(Exporting::layer));
        tracing::subscriber::set_global_default(subscriber)?;
        Ok(Self(exporting))
    }

    /// Exports what is left, within a bound. Blocks: not for a thread that carries bytes.
    pub(crate) fn finish(self) {
        self.0.into_iter().for_each(Exporting::finish);
    }
}
