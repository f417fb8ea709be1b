//! The coordinator: the engine that turns requests into tokens, step by step.
//!
//! A step is admit → plan → forward → sample → emit. What a step *decides* is pure and lives in four places:
//! [`Sequence`] (what is computed of a request), [`KvPool`] (who holds which KV block), [`Scheduler`] (which tokens are
//! computed next) and [`sampler`] (which token follows).
//!
//! *Absent from here*: expert FFNs (`expert-node`), HTTP, tokenising and stop strings (`gateway`), arithmetic (`kernels`).

mod admin;
mod dispatch;
mod engine;
mod forward;
mod grammar;
mod kv_pool;
pub mod metrics;
pub mod placement;
pub mod sampler;
mod scheduler;
mod sequence;

pub use admin::ClusterAdmin;
pub use dispatch::{AUDIT_EVERY, Auditing, Clock, DispatchError, Dispatcher, PeerReport, SystemClock};
pub use engine::{EngineLoop, EngineOptions};
pub use forward::{Forward, Step, StepError};
pub use grammar::{Vocabulary, VocabularyError};
pub use kv_pool::{BlockHash, BlockId, KV_BLOCK, KvPool, blocks_for};
pub use scheduler::{
    BlockCopy, Chunk, Counts, Fork, Limits, LimitsError, Logits, Progress, Refused, Scheduler, Stale, StepPlan,
};
pub use sequence::{Origin, Reuse, Sequence, SequenceId};
