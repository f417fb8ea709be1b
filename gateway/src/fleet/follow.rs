//! A directory's engines as members: connected to as long as they are announced, again when a connection is lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tramontane_cluster::engine::grpc::GrpcEngine;
use tramontane_cluster::registry::RegistryError;
use tramontane_cluster::registry::directory::{EngineId, EngineRecord, EngineWatch};
use tramontane_cluster::tls::Security;

use super::LOOK_AGAIN;
use super::members::Members;

/// An engine that is, or was, announced.
struct Followed {
    /// Where, and what it serves.
    as_of: EngineRecord,
    announced: watch::Sender<bool>,
}

/// Makes the engines that `watch` shows, of the model that `members` serve, their members, for as long as it is polled. An engine
/// that is no longer announced stays while its connection does: that a directory has lost it is no reason to lose its requests.
///
/// # Errors
/// [`RegistryError::Lost`] when no more is heard of engines.
pub async fn follow(
    mut watch: EngineWatch,
    security: &Security,
    members: &Members,
) -> Result<std::convert::Infallible, RegistryError> {
    let mut followed: BTreeMap<EngineId, Followed> = BTreeMap::new();
    // They end with this future.
    let mut tasks = JoinSet::new();
    loop {
        let engines = watch.changed().await?;
        for (id, Followed { announced, .. }) in &followed {
            announced.send_replace(engines.contains_key(id));
        }
        // Whose task has ended, and all the more who has become another, is begun anew.
        followed.retain(|id, one| {
            let same = |record: &EngineRecord| (&record.addr, &record.info) == (&one.as_of.addr, &one.as_of.info);
            !one.announced.is_closed() && engines.get(id).is_none_or(same)
        });
        for record in engines.values().filter(|record| record.info.model == members.info().model) {
            if followed.contains_key(&record.id) {
                continue;
            }
            let (announced, still) = watch::channel(true);
            tasks.spawn(keep(record.clone(), security.clone(), members.clone(), still));
            followed.insert(record.id.clone(), Followed { as_of: record.clone(), announced });
        }
        while tasks.try_join_next().is_some() {}
    }
}

/// Keeps a connection to the engine of `record` until that is no longer announced and the connection is lost.
async fn keep(record: EngineRecord, security: Security, members: Members, mut announced: watch::Receiver<bool>) {
    let EngineRecord { id, addr, .. } = record;
    loop {
        match GrpcEngine::connect(&addr, &security).await {
            Ok(engine) => {
                let engine = Arc::new(engine);
                match members.join(id.clone(), engine.clone()) {
                    Ok(membership) => {
                        tracing::info!(engine = %id, addr, "an engine is there");
                        engine.stopped().await;
                        drop(membership);
                    }
                    Err(differs) => {
                        tracing::error!(%differs, addr, "an engine is not used");
                        _ = announced.wait_for(|announced| !announced).await;
                    }
                }
            }
            Err(unreachable) => tracing::debug!(engine = %id, %unreachable, "an engine is announced and not there"),
        }
        let gone = announced.wait_for(|announced| !announced);
        tokio::select! {
            // Also when it is announced elsewhere, and followed there.
            _ = gone => return,
            () = sleep(LOOK_AGAIN) => {}
        }
    }
}
