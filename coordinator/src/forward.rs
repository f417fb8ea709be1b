//! One step through the whole model: attention and gates here, experts through the dispatcher.

use bytes::Bytes;
use tokio::sync::watch;
use tramontane_cluster::trace::TraceContext;
use tramontane_kernels::{Compute, Q8Buf, QueryRow};
use tramontane_model::config::ModelConfig;
use tramontane_model::decoder::{DecoderBackend, DecoderError, EmbedError, Keep, LayerRows};
use tramontane_router::{GateError, GateWeights, RowFormat, Rows, gate};

use crate::dispatch::{Auditing, DispatchError, Dispatcher, PeerReport};

/// The rows of a step: consecutive tokens of each sequence stand in ascending order of position.
#[derive(Clone, Debug, Default)]
pub struct Step<'a> {
    /// The token of each row.
    pub tokens: Vec<u32>,
    /// Where each row's token stands in its sequence, and the sequence's KV blocks.
    pub rows: Vec<QueryRow<'a>>,
    /// The rows whose logits are wanted, ascending.
    pub wanted: Vec<usize>,
    /// The rows whose last hidden states are wanted, ascending; none of those above.
    pub embedded: Vec<usize>,
    /// Where what it dispatches is shown, if it is.
    pub trace: Option<TraceContext>,
}

/// Why a step could not be computed. Nothing but KV slots of the step's own positions has changed: it may run again.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Fail the row's request: whoever computes it will get there.
    #[error("layer {layer}: the hidden state of row {row} is not finite")]
    NotFinite {
        /// The row within the step.
        row: usize,
        /// Where it was found.
        layer: usize,
    },
    /// Fail the row's request, or the step when the checkpoint is at fault.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// Run the step again, or fail it.
    #[error("layer {layer}: {source}")]
    Experts {
        /// The layer.
        layer: usize,
        /// What happened.
        source: DispatchError,
    },
    /// The model's configuration is at fault.
    #[error(transparent)]
    Gate(GateError),
    /// The device that computes attention is: fail the step.
    #[error("the device failed: {why}")]
    Device {
        /// What it said.
        why: String,
    },
}

impl StepError {
    /// Whether the step may bring something if it runs again as it is.
    pub const fn may_run_again(&self) -> bool {
        matches!(self, Self::Experts { source, .. } if source.may_run_again())
    }
}

/// The decoder with its KV cache, and the way to its experts.
pub struct Forward {
    decoder: Box<dyn DecoderBackend>,
    /// Why the cache is not what it should be, if it is not.
    damaged: Option<DecoderError>,
    /// Encodes rows for the experts.
    compute: Compute,
    dispatcher: Dispatcher,
    encoding: RowFormat,
    hidden: Vec<f32>,
    normed: Vec<f32>,
    gate_logits: Vec<f32>,
    blocks: Q8Buf,
    logits: Vec<f32>,
    embedded: Vec<f32>,
}

impl Forward {
    /// The model `decoder`, whose experts take their rows as `encoding`; `compute` encodes them.
    pub fn new(
        decoder: Box<dyn DecoderBackend>,
        compute: Compute,
        dispatcher: Dispatcher,
        encoding: RowFormat,
    ) -> Self {
        Self {
            decoder,
            damaged: None,
            compute,
            dispatcher,
            encoding,
            hidden: Vec::new(),
            normed: Vec::new(),
            gate_logits: Vec::new(),
            blocks: Q8Buf::default(),
            logits: Vec::new(),
            embedded: Vec::new(),
        }
    }

    /// The same, which has so much computed by second nodes.
    #[must_use]
    pub fn auditing(self, auditing: Auditing) -> Self {
        Self { dispatcher: self.dispatcher.auditing(auditing), ..self }
    }

    /// What the dispatcher holds against nodes, as it changes.
    pub fn peers(&self) -> watch::Receiver<PeerReport> {
        self.dispatcher.report()
    }

    /// The model's dimensions.
    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// Computes the step: stores its rows' keys and values, and returns the logits of the wanted rows (wanted × vocab).
    ///
    /// # Errors
    /// [`StepError`] names the row or layer.
    pub fn run(&mut self, step: &Step<'_>) -> Result<&[f32], StepError> {
        self.compute(step).map(|(logits, _)| logits)
    }

    /// The same, and the last hidden states of the rows that are embedded (embedded × hidden).
    ///
    /// # Errors
    /// [`StepError`] names the row or layer.
    pub fn compute(&mut self, step: &Step<'_>) -> Result<(&[f32], &[f32]), StepError> {
        if let Some(damage) = &self.damaged {
            return Err(StepError::Device { why: damage.to_string() });
        }
        self.dispatcher.show_under(step.trace.as_ref());
        self.decoder.begin(&step.tokens, &step.rows, &mut self.hidden)?;
        let mut kept = [&step.wanted[..], &step.embedded].concat();
        kept.sort_unstable();
        let layers = self.decoder.config().layers;
        for layer in 0..layers {
            let last = layer + 1 == layers;
            let keep = if last { Keep::Rows(&kept) } else { Keep::All };
            let what = LayerRows { layer, rows: &step.rows, keep };
            self.decoder.attend(what, &mut self.hidden).map_err(|error| at(layer, |row| row, error))?;
            if !self.hidden.is_empty() {
                self.experts(layer).map_err(|error| match error {
                    StepError::NotFinite { row, layer } if last => StepError::NotFinite { row: kept[row], layer },
                    error => error,
                })?;
            }
        }
        self.split_embedded(step, &kept)?;
        let computed = self.decoder.logits(&self.hidden, &mut self.logits);
        computed.map_err(|error| at(layers - 1, |row| step.wanted[row], error))?;
        Ok((&self.logits, &self.embedded))
    }

    /// Takes the embedded rows out of `hidden`, whose rows are `kept`, and norms them.
    fn split_embedded(&mut self, step: &Step<'_>, kept: &[usize]) -> Result<(), StepError> {
        self.embedded.clear();
        if step.embedded.is_empty() {
            return Ok(());
        }
        let width = self.decoder.config().hidden;
        let (mut wanted, mut embedded) = (Vec::new(), Vec::new());
        for (row, values) in kept.iter().zip(self.hidden.chunks_exact(width)) {
            let to = if step.embedded.binary_search(row).is_ok() { &mut embedded } else { &mut wanted };
            to.extend_from_slice(values);
        }
        self.hidden = wanted;
        let layer = self.decoder.config().layers - 1;
        let computed = self.decoder.last_hidden(&embedded, &mut self.embedded);
        computed.map_err(|error| at(layer, |row| step.embedded[row], error))?;
        match self.embedded.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(StepError::NotFinite { row: step.embedded[at / width], layer }),
            None => Ok(()),
        }
    }

    /// Makes KV block `to` hold what block `from` does, in all layers. Where the device cannot, no step succeeds any more.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        if let Err(error) = self.decoder.copy_block(from, to) {
            tracing::error!(%error, "a block of keys and values could not be copied: this engine can compute no more");
            self.damaged = Some(error);
        }
    }

    /// The experts' half of a layer.
    fn experts(&mut self, layer: usize) -> Result<(), StepError> {
        let (normed, logits) = (&mut self.normed, &mut self.gate_logits);
        let gated = self.decoder.gate(layer, &self.hidden, normed, logits);
        gated.map_err(|error| at(layer, |row| row, error))?;
        let config = self.decoder.config();
        let weights = if config.renormalise { GateWeights::Renormalised } else { GateWeights::Softmax };
        let routing =
            gate(&self.gate_logits, config.experts, config.experts_per_token, weights).map_err(
                |error| match error {
                    GateError::NotFinite { row, .. } => StepError::NotFinite { row, layer },
                    error => StepError::Gate(error),
                },
            )?;
        let width = config.hidden;
        let data = self.encode(width).map_err(|row| StepError::NotFinite { row, layer })?;
        let rows = Rows { format: self.encoding, width, data };
        self.dispatcher.experts(layer as u32, &routing, &rows, &mut self.hidden).map_err(|source| match source {
            DispatchError::NotFinite { row } => StepError::NotFinite { row, layer },
            source => StepError::Experts { layer, source },
        })
    }

    /// The experts' input as it crosses the wire; `Err` with the row that cannot be encoded.
    fn encode(&mut self, width: usize) -> Result<Bytes, usize> {
        let mut data = Vec::with_capacity(self.normed.len() / width * self.encoding.row_bytes(width));
        if self.encoding == RowFormat::Q8 {
            self.blocks.quantize(&self.compute, &self.normed, width).map_err(|bad| bad.row)?;
            (0..self.blocks.rows()).for_each(|row| self.blocks.write_wire(row, &mut data));
        } else {
            data.extend(self.normed.iter().flat_map(|v| v.to_le_bytes()));
        }
        Ok(Bytes::from(data))
    }
}

/// What the decoder's error at `layer` is to the step, whose row `row(i)` stood i-th there.
fn at(layer: usize, row: impl Fn(usize) -> usize, error: DecoderError) -> StepError {
    match error {
        DecoderError::NotFinite { row: at } => StepError::NotFinite { row: row(at), layer },
        DecoderError::Device { why } => StepError::Device { why },
    }
}
