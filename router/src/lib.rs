//! Pure decisions: gate, dispatch plan, combine, flight (what to do when a reply comes, fails or is late), placement.
//!
//! *Absent from here*: I/O, clocks, async, threads, `HashMap` (its order is not ours), model weights. Time comes in as
//! an argument. The `house` test holds this.

mod combine;
pub mod flight;
mod gate;
mod load;
mod names;
pub mod peers;
pub mod placement;
mod plan;
mod profile;
mod rows;
#[cfg(test)]
mod testing;
mod view;

pub use combine::{CombineError, combine};
pub use gate::{GateError, GateWeights, Routing, gate};
pub use load::ExpertLoad;
pub use names::{Epoch, ExpertId, ModelId, NodeId};
pub use plan::{Costs, Dispatch, DispatchPlan, Pair, PlanError, plan, replan, rescue_plan};
pub use profile::{CPU_ARITHMETIC, NumericProfile};
pub use rows::{ExpertBatch, ExpertRows, ExpertWork, RowFormat, Rows, TraceIds};
pub use view::{ClusterView, NodeRecord};
