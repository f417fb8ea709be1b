//! The watch: a list, then what changes from the next revision on; when that ends, for whatever reason, a list again.
//!
//! A broken watch is never taken up at its last revision. A list costs one answer, and is right after a compaction, after a
//! restored snapshot (whose revisions begin lower, so that a watch on an old one would stay silent) and after a gap alike.

use std::sync::Arc;

use etcd_client::{Client, EventType, GetOptions, WatchOptions};
use tokio::sync::watch;
use tokio::time::sleep;
use tramontane_router::ClusterView;

use super::keys::Keys;
use super::options::kv;
use super::seen::Seen;
use super::{MAX_ANSWER, RETRY, within};
use crate::registry::{Health, RegistryError};

/// Where the views go.
pub(super) struct Follower {
    pub(super) client: Client,
    pub(super) keys: Keys,
    pub(super) views: watch::Sender<Arc<ClusterView>>,
    pub(super) health: watch::Sender<Health>,
}

impl Follower {
    /// Reads everything a first time; [`Follower::follow`] goes on from there.
    pub(super) async fn begin(&self) -> Result<(Seen, i64), RegistryError> {
        let mut seen = Seen::default();
        let revision = self.list(&mut seen).await?;
        Ok((seen, revision))
    }

    /// Follows what changes after `revision`, until nobody watches any more.
    pub(super) async fn follow(self, mut seen: Seen, revision: i64) {
        let mut listed: Result<i64, RegistryError> = Ok(revision);
        let nobody = self.views.clone();
        tokio::select! {
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

    /// Reads everything; returns the revision it was read at.
    async fn list(&self, seen: &mut Seen) -> Result<i64, RegistryError> {
        let (from, to) = self.keys.watched();
        let mut kv = kv(&self.client);
        let listed = within(kv.get(from, Some(GetOptions::new().with_range(to)))).await?;
        let revision = listed.header().map_or(0, |header| header.revision());
        seen.list(&self.keys, listed.kvs().iter().map(|kv| (kv.key(), kv.value())));
        self.publish(seen);
        Ok(revision)
    }

    /// Takes changes from `revision` on; returns why there are no more.
    async fn changes(&self, seen: &mut Seen, revision: i64) -> String {
        let (from, to) = self.keys.watched();
        let options = WatchOptions::new().with_range(to).with_start_revision(revision).with_fragment();
        let mut client = self.client.watch_client().max_decoding_message_size(MAX_ANSWER);
        let mut stream = match within(client.watch(from, Some(options))).await {
            Ok(stream) => stream,
            Err(error) => return error.to_string(),
        };
        loop {
            let changed = match stream.message().await {
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
                    (EventType::Put, Some(kv)) => seen.put(&self.keys, kv.key(), kv.value()),
                    (EventType::Delete, Some(kv)) => seen.delete(&self.keys, kv.key()),
                    (_, None) => {}
                }
            }
            self.publish(seen);
        }
    }

    fn publish(&self, seen: &Seen) {
        let health = seen.went_back.map_or(Health::Connected, Health::WentBack);
        self.health.send_if_modified(|now| {
            let changed = *now != health;
            *now = health;
            changed
        });
        self.views.send_if_modified(|now| {
            let changed = **now != seen.view;
            if changed {
                *now = Arc::new(seen.view.clone());
            }
            changed
        });
    }
}
