//! A node whose answers are easy to foretell, and batches for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use tramontane_cluster::exchange::{ExpertServer, ServeError};
use tramontane_router::{
    Epoch, ExpertBatch, ExpertId, ExpertRows, ExpertWork, ModelId, NumericProfile, RowFormat, Rows,
};

pub(crate) const MODEL: &str = "test-model";
/// The layer of all batches.
pub(crate) const LAYER: u32 = 3;

pub(crate) fn profile() -> NumericProfile {
    NumericProfile { contract: 1, weights: "00ff".into(), quantization: "f32".into(), arithmetic: "cpu".into() }
}

/// Holds experts of [`LAYER`]; expert e answers a row x with x · (e + 1), in f32 for f32 rows, in bf16 for Q8 rows.
pub(crate) struct TestNode {
    held: Mutex<BTreeSet<u32>>,
    received: Mutex<BTreeMap<ExpertId, u64>>,
    gate: Option<Arc<Gate>>,
}

/// Where a gated node's compute thread waits.
struct Gate {
    entered: Sender<()>,
    is_open: Mutex<bool>,
    opened: Condvar,
}

/// Holds a gated node's compute thread in `serve` until opened or dropped.
pub(crate) struct GateKeeper {
    gate: Arc<Gate>,
    pub(crate) entered: Receiver<()>,
}

impl GateKeeper {
    pub(crate) fn open(&self) {
        *self.gate.is_open.lock().expect("not poisoned") = true;
        self.gate.opened.notify_all();
    }
}

impl Drop for GateKeeper {
    fn drop(&mut self) {
        self.open();
    }
}

impl TestNode {
    pub(crate) fn holding(experts: impl IntoIterator<Item = u32>) -> Self {
        Self { held: Mutex::new(experts.into_iter().collect()), received: Mutex::default(), gate: None }
    }

    pub(crate) fn gated(experts: impl IntoIterator<Item = u32>) -> (Self, GateKeeper) {
        let (entered, entries) = channel();
        let gate = Arc::new(Gate { entered, is_open: Mutex::new(false), opened: Condvar::new() });
        let node = Self { gate: Some(gate.clone()), ..Self::holding(experts) };
        (node, GateKeeper { gate, entered: entries })
    }

    fn answer(&self, batch: &ExpertBatch) -> Result<ExpertRows, ServeError> {
        let held = self.held.lock().expect("not poisoned");
        let lacking = batch.work.iter().find(|work| !held.contains(&work.expert));
        if let Some(&ExpertWork { expert, .. }) = lacking {
            return Err(ServeError::NotHeld { expert: ExpertId::new(batch.layer, expert) });
        }
        let mut received = self.received.lock().expect("not poisoned");
        for work in &batch.work {
            *received.entry(ExpertId::new(batch.layer, work.expert)).or_default() += work.rows.len() as u64;
        }
        Ok(expected(batch))
    }
}

impl ExpertServer for TestNode {
    fn serve(&self, batches: &[ExpertBatch]) -> Vec<Result<ExpertRows, ServeError>> {
        if let Some(gate) = &self.gate {
            // Nobody may be listening.
            let _ = gate.entered.send(());
            let closed = gate.is_open.lock().expect("not poisoned");
            drop(gate.opened.wait_while(closed, |is_open| !*is_open).expect("not poisoned"));
        }
        batches.iter().map(|batch| self.answer(batch)).collect()
    }

    fn ensure_held(&self, _: &ModelId, experts: &[ExpertId]) -> Result<(), ServeError> {
        if let Some(&expert) = experts.iter().find(|id| id.layer != LAYER) {
            return Err(ServeError::CannotHold { expert, why: "no such layer".into() });
        }
        self.held.lock().expect("not poisoned").extend(experts.iter().map(|id| id.expert));
        Ok(())
    }

    fn received(&self) -> BTreeMap<ExpertId, u64> {
        self.received.lock().expect("not poisoned").clone()
    }

    fn leave(&self) {}
}

/// What any node that holds its experts answers to `batch`.
pub(crate) fn expected(batch: &ExpertBatch) -> ExpertRows {
    let Rows { format, width, .. } = batch.rows;
    let mut data = Vec::new();
    for work in &batch.work {
        let factor = (work.expert + 1) as f32;
        for &row in &work.rows {
            let row = batch.rows.row(row as usize);
            match format {
                RowFormat::F32 => data.extend(floats(row).flat_map(|x| (x * factor).to_le_bytes())),
                RowFormat::Q8 => {
                    let (values, scales) = row.split_at(width);
                    let scaled = values.chunks(32).zip(floats(scales));
                    let values =
                        scaled.flat_map(|(block, scale)| block.iter().map(move |&v| f32::from(v as i8) * scale));
                    data.extend(values.flat_map(|x| ((x * factor).to_bits() >> 16).to_le_bytes()[..2].to_vec()));
                }
                RowFormat::Bf16 => unreachable!("checked on the way"),
            }
        }
    }
    let format = if format == RowFormat::F32 { RowFormat::F32 } else { RowFormat::Bf16 };
    ExpertRows { rows: Rows { format, width, data: data.into() } }
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b))
}

/// `count` rows of `width` values that depend on `seed`, each computed by all of `experts`.
pub(crate) fn batch(format: RowFormat, width: usize, count: usize, experts: &[u32], seed: u32) -> ExpertBatch {
    let value = |i: usize| (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8;
    let row = |r: usize| -> Vec<u8> {
        let values = r * width..(r + 1) * width;
        match format {
            RowFormat::Q8 => {
                let scales = (0..width / 32).flat_map(|s| (0.25 + s as f32).to_le_bytes());
                values
                    .map(|i| (value(i) % 255) as u8 ^ 0x80)
                    .map(|b| if b == 0x80 { 0 } else { b })
                    .chain(scales)
                    .collect()
            }
            _ => values.flat_map(|i| (value(i) as f32 / 1000.0).to_le_bytes()).collect(),
        }
    };
    let work = experts.iter().map(|&expert| ExpertWork { expert, rows: (0..count as u32).collect() });
    ExpertBatch {
        model: ModelId::from(MODEL),
        epoch: Epoch(1),
        layer: LAYER,
        rows: Rows { format, width, data: (0..count).flat_map(row).collect::<Bytes>() },
        work: work.collect(),
        trace: None,
    }
}
