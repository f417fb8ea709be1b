//! An expert on a device.

use candle_core::{Result, Tensor};
use tramontane_kernels::Q8Buf;

use super::CandleDevice;
use super::linear::{Linear, Precision};
use crate::checkpoint::{Checkpoint, ExpertTensors};
use crate::expert::{ExpertError, ExpertRun};
use crate::weights::{LoadError, Quantize};

/// An expert's three matrices on a device.
#[derive(Debug)]
pub struct CandleExpert {
    /// Both, side by side.
    gate_up: Linear,
    down: Linear,
}

impl CandleExpert {
    pub(super) fn load(
        on: &CandleDevice,
        checkpoint: &Checkpoint,
        tensors: &ExpertTensors<'_>,
        quantize: Quantize,
    ) -> std::result::Result<Self, LoadError> {
        let stored = Precision::Stored;
        Ok(Self {
            gate_up: Linear::load(on, checkpoint, [&tensors.w1, &tensors.w3], quantize, stored)?,
            down: Linear::load(on, checkpoint, [&tensors.w2], quantize, stored)?,
        })
    }

    /// Bytes on the device.
    pub(crate) fn bytes(&self) -> usize {
        self.gate_up.bytes() + self.down.bytes()
    }

    /// The expert's answer to the rows `x` (rows × hidden).
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let both = self.gate_up.forward(x)?.chunk(2, 1)?;
        self.down.forward(&(both[0].silu()? * &both[1])?)
    }
}

/// Computes each expert on all of its rows at once. All experts' rows go to the device in one piece, and all results come back in one, so
/// that it is waited for once.
pub(super) fn forward<'a, 'b: 'a>(
    on: &CandleDevice,
    runs: impl Iterator<Item = (&'a CandleExpert, &'a mut ExpertRun<'b>)>,
) -> Vec<std::result::Result<(), ExpertError>> {
    let mut runs: Vec<_> = runs.collect();
    let computed = compute(on, &runs);
    let split = computed.map_err(|error| ExpertError::Device { why: error.to_string() }).map(|values| {
        let mut rest = &values[..];
        for (_, run) in &mut runs {
            let taken = rest.split_off(..run.rows.len() * width(run));
            run.workspace.out.clear();
            run.workspace.out.extend_from_slice(taken.unwrap_or_default());
        }
    });
    runs.iter().map(|(_, run)| split.clone().and_then(|()| finite(run))).collect()
}

/// The results of all runs, one after another.
fn compute(on: &CandleDevice, runs: &[(&CandleExpert, &mut ExpertRun<'_>)]) -> Result<Vec<f32>> {
    let Some(width) = runs.iter().find(|(_, run)| !run.rows.is_empty()).map(|(_, run)| width(run)) else {
        return Ok(Vec::new());
    };
    let rows: usize = runs.iter().map(|(_, run)| run.rows.len()).sum();
    let mut values = vec![0.0; rows * width];
    let to = values.chunks_exact_mut(width);
    let from = runs.iter().flat_map(|(_, run)| run.rows.iter().map(|row| (run.expert.is_quantized(), *row)));
    from.zip(to)
        .for_each(|((quantized, row), to)| if quantized { Q8Buf::decode_wire(row, to) } else { floats(row, to) });
    let x = Tensor::from_vec(values, (rows, width), &on.device)?;
    let (mut answers, mut first) = (Vec::with_capacity(runs.len()), 0);
    for (expert, run) in runs.iter().filter(|(_, run)| !run.rows.is_empty()) {
        answers.push(expert.forward(&x.narrow(0, first, run.rows.len())?)?);
        first += run.rows.len();
    }
    Tensor::cat(&answers, 0)?.flatten_all()?.to_vec1()
}

/// Values in a row.
fn width(run: &ExpertRun<'_>) -> usize {
    let bytes = run.rows.first().map_or(0, |row| row.len());
    if run.expert.is_quantized() { Q8Buf::wire_values(bytes) } else { bytes / size_of::<f32>() }
}

fn floats(row: &[u8], to: &mut [f32]) {
    row.as_chunks::<4>().0.iter().zip(to).for_each(|(bytes, to)| *to = f32::from_le_bytes(*bytes));
}

/// A quantised expert names the row whose result is not finite; a float one lets it through.
fn finite(run: &ExpertRun<'_>) -> std::result::Result<(), ExpertError> {
    let bad = run.workspace.out.iter().position(|value| !value.is_finite());
    match bad.filter(|_| run.expert.is_quantized()) {
        Some(at) => Err(ExpertError::NotFinite { row: at / width(run) }),
        None => Ok(()),
    }
}
