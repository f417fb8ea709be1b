//! The watch: a list, then what changes from the next revision on; when that ends, for whatever reason, a list again.
//!
//! A broken watch is never taken up at its last revision. A list costs one answer, and is right after a compaction, after a
//! restored snapshot (whose revisions begin lower, so that a watch on an old one would stay silent) and after a gap alike.

use std::sync::Arc;

use std::time::Duration;

use etcd_client::{AlarmAction, AlarmType, Client, EventType, GetOptions, WatchOptions};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::options::kv;
use super::{MAX_ANSWER, RETRY, within};
use crate::registry::{Health, RegistryError};

/// How often etcd is asked whether it has raised an alarm: its watches say nothing of one.
const LOOK_FOR_ALARMS: Duration = Duration::from_secs(2);

/// What is made of the keys and values that are followed.
pub(super) trait Seen {
    /// What watchers see of it.
    type View: Clone + PartialEq;

    /// The keys to follow, from and to.
    fn range(&self) -> (String, String);
    /// Takes a whole list of keys and values.
    fn list<'a>(&mut self, entries: impl Iterator<Item = (&'a [u8], &'a [u8])>);
    /// Takes one written key.
    fn put(&mut self, key: &[u8], value: &[u8]);
    /// Takes one deleted key.
    fn delete(&mut self, key: &[u8]);
    /// What it has come to.
    fn view(&self) -> &Self::View;
    /// How it stands with what was read, etcd being there.
    fn health(&self) -> Health;
}

/// Where the views go.
pub(super) struct Follower<V> {
    pub(super) client: Client,
    pub(super) views: watch::Sender<Arc<V>>,
    pub(super) health: watch::Sender<Health>,
}

impl<V: Clone + PartialEq> Follower<V> {
    /// Follows what changes after `revision`, until nobody watches any more.
    pub(super) async fn follow(self, mut seen: impl Seen<View = V>, revision: i64) {
        let mut listed: Result<i64, RegistryError> = Ok(revision);
        let nobody = self.views.clone();
        tokio::select! {
            // A process that ends loses its connections too: that is no news when nobody watches.
            biased;
            () = nobody.closed() => {}
            () = async {
                loop {
                    let why = match listed {
                        Ok(revision) => self.changes(&mut seen, revision + 1).await,
                        Err(error) => {
                            let why = error.to_string();
                            self.health.send_replace(Health::Disconnected { why: why.clone() });
                            sleep(RETRY).await;
                            why
                        }
                    };
                    tracing::warn!(why, "the watch ended; listing anew");
                    listed = self.list(&mut seen).await;
                }
            } => {}
        }
    }

    /// Reads everything; returns the revision it was read at, from which [`Follower::follow`] goes on.
    pub(super) async fn list(&self, seen: &mut impl Seen<View = V>) -> Result<i64, RegistryError> {
        let (from, to) = seen.range();
        let mut kv = kv(&self.client);
        let listed = within(kv.get(from, Some(GetOptions::new().with_range(to)))).await?;
        let revision = listed.header().map_or(0, |header| header.revision());
        seen.list(listed.kvs().iter().map(|kv| (kv.key(), kv.value())));
        self.publish(seen, None);
        Ok(revision)
    }

    /// Takes changes from `revision` on; returns why there are no more.
    async fn changes(&self, seen: &mut impl Seen<View = V>, revision: i64) -> String {
        let (from, to) = seen.range();
        let options = WatchOptions::new().with_range(to).with_start_revision(revision).with_fragment();
        let mut client = self.client.watch_client().max_decoding_message_size(MAX_ANSWER);
        let mut stream = match within(client.watch(from, Some(options))).await {
            Ok(stream) => stream,
            Err(error) => return error.to_string(),
        };
        let (mut alarms, mut alarm) = (interval(LOOK_FOR_ALARMS), None);
        alarms.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                _ = alarms.tick() => {
                    alarm = self.alarm().await;
                    self.publish(seen, alarm.as_deref());
                    continue;
                }
            };
            let changed = match message {
                Ok(Some(changed)) => changed,
                Ok(None) => return "etcd ended the stream".into(),
                Err(error) => return super::lost(&error).to_string(),
            };
            if changed.canceled() {
                let compacted = changed.compact_revision();
                return format!("etcd cancelled the watch ({}; compacted to {compacted})", changed.cancel_reason());
            }
            for event in changed.events() {
                match (event.event_type(), event.kv()) {
                    (EventType::Put, Some(kv)) => seen.put(kv.key(), kv.value()),
                    (EventType::Delete, Some(kv)) => seen.delete(kv.key()),
                    (_, None) => {}
                }
            }
            self.publish(seen, alarm.as_deref());
        }
    }

    /// Why etcd takes no changes, if it has raised an alarm. `None` also where it does not say: not every user may ask.
    async fn alarm(&self) -> Option<String> {
        let mut client = self.client.maintenance_client();
        let raised = within(client.alarm(AlarmAction::Get, AlarmType::None, None)).await.ok()?;
        raised.alarms().iter().find_map(|member| match member.alarm() {
            AlarmType::Nospace => Some("etcd has no space left (alarm NOSPACE)".to_owned()),
            AlarmType::Corrupt => Some("etcd's members differ (alarm CORRUPT)".to_owned()),
            AlarmType::None => None,
        })
    }

    fn publish(&self, seen: &impl Seen<View = V>, alarm: Option<&str>) {
        let health = match (seen.health(), alarm) {
            (Health::Connected, Some(why)) => Health::ReadOnly { why: why.to_owned() },
            (health, _) => health,
        };
        self.health.send_if_modified(|now| {
            let changed = *now != health;
            *now = health;
            changed
        });
        self.views.send_if_modified(|now| {
            let changed = **now != *seen.view();
            if changed {
                *now = Arc::new(seen.view().clone());
            }
            changed
        });
    }
}
