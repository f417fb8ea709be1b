//! The attention half on this machine's cores, by the numeric contract.

use tramontane_kernels::{Compute, KvLayer, KvType, QueryRow};

use super::{Decoder, DecoderBackend, DecoderError, DecoderScratch, EmbedError, LayerRows};
use crate::config::ModelConfig;

/// A [`Decoder`] with its KV cache.
pub struct CpuDecoder {
    decoder: Decoder,
    compute: Compute,
    kv: Vec<KvLayer>,
    scratch: DecoderScratch,
}

impl CpuDecoder {
    /// `decoder` on `compute`, with room for `kv_blocks` blocks of keys and values.
    pub fn new(decoder: Decoder, compute: Compute, kv: KvType, kv_blocks: usize) -> Self {
        let kv = decoder.kv_cache(kv, kv_blocks);
        Self { decoder, compute, kv, scratch: DecoderScratch::default() }
    }
}

impl DecoderBackend for CpuDecoder {
    fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    fn begin(&mut self, tokens: &[u32], rows: &[QueryRow<'_>], hidden: &mut Vec<f32>) -> Result<(), EmbedError> {
        self.decoder.begin(tokens, rows, &mut self.scratch, hidden)
    }

    fn attend(&mut self, what: LayerRows<'_>, hidden: &mut Vec<f32>) -> Result<(), DecoderError> {
        let kv = &mut self.kv[what.layer];
        Ok(self.decoder.attend(&self.compute, what, kv, &mut self.scratch, hidden)?)
    }

    fn gate(
        &mut self,
        layer: usize,
        hidden: &[f32],
        normed: &mut Vec<f32>,
        logits: &mut Vec<f32>,
    ) -> Result<(), DecoderError> {
        Ok(self.decoder.gate(&self.compute, layer, hidden, &mut self.scratch, normed, logits)?)
    }

    fn last_hidden(&mut self, hidden: &[f32], normed: &mut Vec<f32>) -> Result<(), DecoderError> {
        self.decoder.last_hidden(&self.compute, hidden, normed);
        Ok(())
    }

    fn logits(&mut self, hidden: &[f32], logits: &mut Vec<f32>) -> Result<(), DecoderError> {
        Ok(self.decoder.logits(&self.compute, hidden, &mut self.scratch, logits)?)
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<(), DecoderError> {
        self.kv.iter_mut().for_each(|layer| layer.copy_block(from, to));
        Ok(())
    }
}
