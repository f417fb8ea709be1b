//! `tramontane bench serve`: load on a server over HTTP, and what its readers see.

mod args;
mod measure;
mod plan;
mod report;

use std::sync::Arc;

use anyhow::bail;

pub(crate) use args::LoadArgs;

use super::args::OutputArg;
use crate::client::with_exit_code;
use crate::output::out;

/// Loads, measures and prints. Fails where nothing at all was answered.
pub(super) async fn run(args: LoadArgs) -> anyhow::Result<()> {
    let endpoint = args.server.open()?;
    // Also, that a server is there at all is known before any load.
    let listed = endpoint.first_model().await.map_err(|error| with_exit_code(error.into()))?;
    let model = args.server.model.clone().unwrap_or(listed);
    let args = Arc::new(args);
    let run = measure::run(&args, &endpoint, &model).await;
    let report = report::report(&args, endpoint.to_string(), model, &run);
    out(&match args.form() {
        OutputArg::Table => report::table(&report),
        OutputArg::Json => format!("{}\n", serde_json::to_string(&report)?),
    })?;
    if !report.has_completed() {
        bail!("no request was answered");
    }
    Ok(())
}
