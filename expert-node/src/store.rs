//! The experts a node holds, and what it computes with them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use tokio::sync::{Notify, watch};
use tramontane_cluster::exchange::{ExpertServer, ServeError};
use tramontane_model::checkpoint::Checkpoint;
use tramontane_model::config::ModelConfig;
use tramontane_model::expert::{Expert, ExpertBackend, Workspace};
use tramontane_model::weights::Quantize;
use tramontane_router::{ExpertBatch, ExpertId, ExpertRows, ModelId, RowFormat};

use self::call::{Call, Work};
use crate::speed::Speedometer;

mod call;
mod neighbours;

pub use neighbours::Neighbours;

/// A node's experts. Shared between the threads that load, serve and report.
pub struct ExpertStore {
    model: ModelId,
    checkpoint: Arc<Checkpoint>,
    config: ModelConfig,
    quantize: Quantize,
    /// Bytes of experts that it may hold.
    capacity: u64,
    backend: ExpertBackend,
    held: RwLock<BTreeMap<ExpertId, Arc<Expert>>>,
    /// Woken when an expert was loaded.
    loaded: Notify,
    /// Experts loaded for a rescue, and when they were last asked for. Bounded by the experts there are.
    rescued: Mutex<BTreeMap<ExpertId, Instant>>,
    /// Whether the node is to leave.
    leaving: watch::Sender<bool>,
    received: Mutex<BTreeMap<ExpertId, u64>>,
    speed: Mutex<Speedometer>,
    /// One for each expert that computed in the largest call so far.
    workspaces: Mutex<Vec<Workspace>>,
}

impl ExpertStore {
    /// A store without experts.
    pub fn new(
        model: ModelId,
        checkpoint: Arc<Checkpoint>,
        config: ModelConfig,
        quantize: Quantize,
        capacity: u64,
        backend: ExpertBackend,
    ) -> Self {
        Self {
            model,
            checkpoint,
            config,
            quantize,
            capacity,
            backend,
            held: RwLock::default(),
            loaded: Notify::new(),
            rescued: Mutex::default(),
            leaving: watch::Sender::new(false),
            received: Mutex::default(),
            speed: Mutex::default(),
            workspaces: Mutex::default(),
        }
    }

    /// Loads `expert` from the checkpoint unless it is held.
    ///
    /// # Errors
    /// [`ServeError::CannotHold`] when there is no such expert, its weights are damaged, or there is no room.
    pub fn load(&self, expert: ExpertId) -> Result<(), ServeError> {
        if self.holds(expert) {
            return Ok(());
        }
        let refused = |why: String| ServeError::CannotHold { expert, why };
        let (layer, index) = (expert.layer as usize, expert.expert as usize);
        if layer >= self.config.layers || index >= self.config.experts {
            return Err(refused(format!(
                "the model has {} layers of {} experts",
                self.config.layers, self.config.experts
            )));
        }
        let loaded = self.backend.load(&self.checkpoint, &self.config, layer, index, self.quantize);
        let loaded = loaded.map_err(|error| refused(error.to_string()))?;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let bytes: usize = held.values().map(|e| e.bytes()).sum();
        if (bytes + loaded.bytes()) as u64 > self.capacity {
            return Err(refused(format!("it needs {} bytes; {bytes} of {} are in use", loaded.bytes(), self.capacity)));
        }
        held.insert(expert, Arc::new(loaded));
        self.loaded.notify_one();
        Ok(())
    }

    /// Waits until an expert has been loaded since this was last awaited to its end. For one caller at a time.
    pub(crate) async fn loaded(&self) {
        self.loaded.notified().await;
    }

    /// The experts that were loaded for a rescue and asked for since `since`, and when each was last. Others are no longer
    /// taken for rescued.
    pub(crate) fn rescued(&self, since: Instant) -> BTreeMap<ExpertId, Instant> {
        let mut rescued = lock(&self.rescued);
        rescued.retain(|_, asked| *asked >= since);
        rescued.clone()
    }

    /// Rows that it computes in a second, as it measured; 0 when it did not yet.
    pub(crate) fn speed(&self) -> u32 {
        lock(&self.speed).speed()
    }

    /// Whether the node is to leave, and when that changes.
    pub(crate) fn leaving(&self) -> watch::Receiver<bool> {
        self.leaving.subscribe()
    }

    /// Gives up the experts for which `keep` says no.
    pub fn retain(&self, keep: impl Fn(ExpertId) -> bool) {
        self.held.write().unwrap_or_else(PoisonError::into_inner).retain(|&id, _| keep(id));
    }

    /// The experts it answers for.
    pub fn held(&self) -> std::collections::BTreeSet<ExpertId> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    fn holds(&self, expert: ExpertId) -> bool {
        self.held.read().unwrap_or_else(PoisonError::into_inner).contains_key(&expert)
    }

    fn expert(&self, id: ExpertId) -> Option<Arc<Expert>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// What is wrong with `batch` for this node, if anything is.
    fn refuse(&self, batch: &ExpertBatch) -> Option<ServeError> {
        if batch.model != self.model {
            return Some(ServeError::WrongModel {
                why: format!("model {} is asked for, {} is served", batch.model, self.model),
            });
        }
        if batch.rows.width != self.config.hidden {
            let why = format!("rows of {} values, the model's have {}", batch.rows.width, self.config.hidden);
            return Some(ServeError::Corrupt { why });
        }
        batch.work.iter().find_map(|work| {
            let id = ExpertId::new(batch.layer, work.expert);
            let Some(expert) = self.expert(id) else { return Some(ServeError::NotHeld { expert: id }) };
            let expected = if expert.is_quantized() { RowFormat::Q8 } else { RowFormat::F32 };
            (batch.rows.format != expected).then(|| ServeError::Corrupt {
                why: format!("{id} takes {expected:?} rows, these are {:?}", batch.rows.format),
            })
        })
    }

    /// Notes that an expert has computed its rows.
    fn count(&self, work: &Work) {
        *lock(&self.received).entry(work.id).or_default() += work.rows.len() as u64;
        if let Some(asked) = lock(&self.rescued).get_mut(&work.id) {
            *asked = Instant::now();
        }
    }
}

impl ExpertServer for ExpertStore {
    fn serve(&self, batches: &[ExpertBatch]) -> Vec<Result<ExpertRows, ServeError>> {
        let mut call = [Call::new(self, batches)];
        call::compute(&mut call);
        call.into_iter().flat_map(Call::answers).collect()
    }

    fn ensure_held(&self, model: &ModelId, experts: &[ExpertId]) -> Result<(), ServeError> {
        if *model != self.model {
            return Err(ServeError::WrongModel {
                why: format!("model {model} is asked for, {} is served", self.model),
            });
        }
        experts.iter().try_for_each(|&expert| {
            lock(&self.rescued).insert(expert, Instant::now());
            self.load(expert)
        })
    }

    fn received(&self) -> BTreeMap<ExpertId, u64> {
        lock(&self.received).clone()
    }

    fn leave(&self) {
        self.leaving.send_replace(true);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
