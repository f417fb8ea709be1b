//! A lease and its heartbeat: renewed at a third of its time; what fails is tried again at half of what then remains.

use std::time::Duration;

use etcd_client::{Client, Error, LeaseKeepAliveStream, LeaseKeeper};
use tokio::time::{Instant, sleep_until, timeout};

use super::{CALL_TIMEOUT, RETRY, within};
use crate::registry::RegistryError;

/// A heartbeat's share of the lease's time.
const BEATS: u32 = 3;

/// What etcd says to a heartbeat.
enum Answer {
    /// The lease lives on.
    Kept,
    /// There is no such lease any more.
    Gone,
    /// Nothing.
    Nothing,
}

/// A lease that etcd has granted.
pub(super) struct Heart {
    client: Client,
    pub(super) lease: i64,
    ttl: Duration,
    /// When etcd was last asked and confirmed it.
    confirmed: Instant,
    next: Instant,
    /// What heartbeats go over. One for all of them: HTTP/2 bears only so many streams that are given up.
    line: Option<(LeaseKeeper, LeaseKeepAliveStream)>,
}

impl Heart {
    /// Asks etcd for a lease.
    pub(super) async fn begin(client: &Client, ttl_seconds: i64) -> Result<Self, RegistryError> {
        let (mut client, confirmed) = (client.clone(), Instant::now());
        let granted = within(client.lease_grant(ttl_seconds, None)).await?;
        // What etcd grants may be longer than what was asked for.
        let ttl = Duration::from_secs(granted.ttl().try_into().unwrap_or(1));
        Ok(Self { client, lease: granted.id(), ttl, confirmed, next: confirmed + ttl / BEATS, line: None })
    }

    /// When the lease is over, unless etcd confirms it before.
    pub(super) fn expires(&self) -> Instant {
        self.confirmed + self.ttl
    }

    /// Keeps the lease; completes when etcd says that it is gone. While etcd is away it is not gone: it lives on there.
    /// Safe to cancel and call again.
    pub(super) async fn beat(&mut self) {
        loop {
            sleep_until(self.next).await;
            let asked = Instant::now();
            let left = self.expires().saturating_duration_since(asked).clamp(2 * RETRY, 2 * CALL_TIMEOUT);
            let had_line = self.line.is_some();
            match timeout(left / 2, self.ask()).await.unwrap_or(Answer::Nothing) {
                Answer::Kept => {
                    self.confirmed = asked;
                    self.next = asked + self.ttl / BEATS;
                }
                Answer::Gone => return,
                // A line that broke in between two heartbeats says nothing of etcd: a new one is tried at once.
                Answer::Nothing if had_line => self.next = Instant::now(),
                Answer::Nothing => {
                    let now = Instant::now();
                    self.next = now + again_after(self.expires().saturating_duration_since(now));
                }
            }
        }
    }

    /// One heartbeat. What fails or is given up takes its line along, so that no late answer is taken for a newer one's.
    async fn ask(&mut self) -> Answer {
        let line = match self.line.take() {
            // The first heartbeat comes with a new line.
            None => match self.client.lease_keep_alive(self.lease).await {
                Ok(line) => line,
                Err(Error::LeaseKeepAliveError(_)) => return Answer::Gone,
                Err(_) => return Answer::Nothing,
            },
            Some((mut keeper, mut answers)) => {
                if keeper.keep_alive().await.is_err() {
                    return Answer::Nothing;
                }
                match answers.message().await {
                    Ok(Some(answer)) if answer.ttl() > 0 => (keeper, answers),
                    Ok(Some(_)) => return Answer::Gone,
                    Ok(None) | Err(_) => return Answer::Nothing,
                }
            }
        };
        self.line = Some(line);
        Answer::Kept
    }

    /// Gives the lease back, and everything under it.
    pub(super) async fn end(mut self) {
        // Best effort: if etcd is away the lease ends by itself.
        let _ = within(self.client.lease_revoke(self.lease)).await;
    }
}

/// How long to wait with the next try, of a lease that has `left` to live.
fn again_after(left: Duration) -> Duration {
    (left / 2).max(RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_that_fails_is_tried_several_times_before_the_lease_ends() {
        let (mut left, mut tries) = (Duration::from_secs(10) * 2 / 3, 0);
        while let Some(rest) = left.checked_sub(again_after(left)).filter(|rest| !rest.is_zero()) {
            (left, tries) = (rest, tries + 1);
        }
        assert!(tries >= 4, "{tries}");
    }
}
