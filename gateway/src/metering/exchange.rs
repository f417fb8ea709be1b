//! What goes between a meter and the registry: keys come, usage goes, and sums of the month come back.

use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::time::{MissedTickBehavior, interval};
use tramontane_cluster::registry::RegistryError;
use tramontane_cluster::registry::accounts::{Accounts, Day, UsageQuery, utc_now};

use super::Meter;

/// How often usage is brought to the registry.
const EVERY: Duration = Duration::from_secs(2);
/// Calls of the registry that are under way at once, at most.
const AT_ONCE: usize = 16;

impl Meter {
    /// Learns the keys of `accounts`, and brings usage there, until it is dropped. What is under way then may be begun again: it counts once.
    pub async fn keep(&self, accounts: &dyn Accounts) {
        tokio::join!(self.follow(accounts), self.bring(accounts));
    }

    async fn follow(&self, accounts: &dyn Accounts) {
        let mut keys = accounts.watch();
        // When there is no more to be heard, the last ones stand.
        while keys.changed().await.is_ok() {
            let records = keys.borrow_and_update().clone();
            self.learn(&records);
        }
    }

    async fn bring(&self, accounts: &dyn Accounts) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut fails = false;
        loop {
            ticks.tick().await;
            let outcome = self.exchange(accounts).await;
            match &outcome {
                // Said once an outage.
                Err(error) if !fails => tracing::warn!(%error, "usage waits until the registry takes it"),
                _ => {}
            }
            fails = outcome.is_err();
        }
    }

    /// One exchange: gives what has been used, then reads the months of the keys that have asked.
    ///
    /// # Errors
    /// What the registry says; what it has not taken is given again with the next exchange.
    pub async fn exchange(&self, accounts: &dyn Accounts) -> Result<(), RegistryError> {
        let (entries, lost) = {
            let book = &mut self.state().book;
            (book.entries(), book.lost())
        };
        if lost > 0 {
            tracing::error!(tokens = lost, "usage is lost: too much of it waits for the registry");
        }
        let mut refused = Ok(());
        let given = entries.into_iter().map(|entry| async {
            let outcome = accounts.add(entry.clone()).await;
            (entry, outcome)
        });
        let mut given = stream::iter(given).buffer_unordered(AT_ONCE);
        while let Some((entry, outcome)) = given.next().await {
            match outcome {
                Ok(()) => self.state().book.taken(&entry),
                Err(error @ RegistryError::Lost { .. }) => return Err(error),
                // One record that is no record holds up none of the others.
                Err(error) => refused = Err(error),
            }
        }
        self.read_months(accounts).await?;
        refused
    }

    async fn read_months(&self, accounts: &dyn Accounts) -> Result<(), RegistryError> {
        let month = Day::at(utc_now()).month();
        let wanted = self.state().book.wanted();
        let read = wanted.into_iter().map(|key| async {
            let query = UsageQuery { key: Some(key.clone()), from: month.first(), to: month.last() };
            (key, accounts.usage(query).await)
        });
        let mut read = stream::iter(read).buffer_unordered(AT_ONCE);
        while let Some((key, rows)) = read.next().await {
            let tokens = rows?.iter().fold(0_u64, |sum, (_, usage)| sum.saturating_add(usage.tokens()));
            self.state().book.read(key, month, tokens);
        }
        Ok(())
    }
}
