//! `bench exchange`: says what became of each thing that the exchange between GPUs needs and one GPU can show.

use serde_json::json;
use tramontane_cluster::exchange::{Checked, self_check};

use super::args::ExchangeArgs;
use crate::output::{bytes, out};

/// Tries everything, then says so; fails with the first thing that does not do as it should.
pub(crate) fn run(args: &ExchangeArgs) -> anyhow::Result<()> {
    for Checked { what, bytes: moved, took } in self_check()? {
        let seconds = took.as_secs_f64();
        let rate = (moved > 0).then(|| moved as f64 / seconds);
        out(&match args.json {
            true => {
                format!("{}\n", json!({"what": what, "bytes": moved, "seconds": seconds, "bytes_per_second": rate}))
            }
            false => {
                let rate = rate.map(|rate| format!("{}, {}/s", bytes(moved as u64), bytes(rate as u64)));
                format!(
                    "{:>12.1} us  {what}{}\n",
                    seconds * 1e6,
                    rate.map(|rate| format!(": {rate}")).unwrap_or_default()
                )
            }
        })?;
    }
    Ok(())
}
