//! Waiting for a time that there may not be.

use tokio::time::{Instant, sleep_until};

/// Completes at `time`, or never.
pub(crate) async fn at(time: Option<impl Into<Instant>>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
