//! Where a hidden state is not finite and weights are quantised, the row is named.

use tramontane_kernels::{Isa, WeightType};

use super::*;
use crate::checkpoint::gguf::testing::{open, tiny};
use crate::checkpoint::gguf::{GgufWriter, TensorInfo};

const HIDDEN: usize = 32;

/// One layer, two query heads and one key head of width 16, all weights zero; `kv` is the type of the key and value
/// projections, all other matrices are Q8_0.
fn decoder(kv: WeightType) -> Decoder {
    let mut model = tiny("llama");
    for (key, value) in [
        ("embedding_length", HIDDEN as u32),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 16),
        ("attention.value_length", 16),
        ("rope.dimension_count", 16),
    ] {
        model.set(&format!("llama.{key}"), value);
    }
    let infos = [
        ("token_embd", WeightType::Q8_0, &[5, HIDDEN][..]),
        ("output_norm", WeightType::F32, &[HIDDEN]),
        ("output", WeightType::Q8_0, &[5, HIDDEN]),
        ("blk.0.attn_norm", WeightType::F32, &[HIDDEN]),
        ("blk.0.attn_q", WeightType::Q8_0, &[32, HIDDEN]),
        ("blk.0.attn_k", kv, &[16, HIDDEN]),
        ("blk.0.attn_v", kv, &[16, HIDDEN]),
        ("blk.0.attn_output", WeightType::Q8_0, &[HIDDEN, 32]),
        ("blk.0.ffn_norm", WeightType::F32, &[HIDDEN]),
        ("blk.0.ffn_gate_inp", WeightType::Q8_0, &[2, HIDDEN]),
    ]
    .map(|(name, ty, shape)| TensorInfo { name: format!("{name}.weight"), ty, shape: shape.to_vec() });
    let mut writer = GgufWriter::new(Vec::new(), &model.metadata, &infos).unwrap();
    for info in &infos {
        writer.append(&info.name, &vec![0; info.bytes().unwrap() as usize]).unwrap();
    }
    let checkpoint = open(writer.finish().unwrap()).unwrap();
    let config = checkpoint.config().unwrap();
    Decoder::load(&Packing::on_one_thread(), Arc::new(checkpoint), &config).unwrap()
}

/// Three rows, of which row `bad` has a NaN.
fn rows(bad: usize) -> Vec<f32> {
    let mut hidden = vec![1.0; 3 * HIDDEN];
    hidden[bad * HIDDEN + 5] = f32::NAN;
    hidden
}

#[test]
fn attention_names_the_row_of_the_step() {
    let compute = Compute::new(Isa::Portable, 1);
    for (kv, keep, expected) in [
        (WeightType::Q8_0, Keep::All, Err(NotFinite { row: 2 })),
        (WeightType::Q8_0, Keep::Rows(&[0, 1]), Err(NotFinite { row: 2 })),
        // Found by the queries, in the second of the rows kept.
        (WeightType::F32, Keep::Rows(&[0, 2]), Err(NotFinite { row: 2 })),
        (WeightType::F32, Keep::Rows(&[0, 1]), Ok(())),
    ] {
        let decoder = decoder(kv);
        let (mut scratch, mut hidden) = (DecoderScratch::default(), Vec::new());
        let rows_of_step: Vec<_> = (0..3).map(|position| QueryRow { position, blocks: &[0] }).collect();
        decoder.begin(&[0; 3], &rows_of_step, &mut scratch, &mut hidden).unwrap();
        let (mut cache, mut hidden) = (decoder.kv_cache(KvType::F32, 1), rows(2));
        let what = LayerRows { layer: 0, rows: &rows_of_step, keep };
        let found = decoder.attend(&compute, what, &mut cache[0], &mut scratch, &mut hidden);
        assert_eq!(found, expected, "{}, {keep:?}", kv.name());
    }
}

#[test]
fn the_gate_and_the_head_name_the_row() {
    let (compute, decoder) = (Compute::new(Isa::Portable, 1), decoder(WeightType::F32));
    let (mut scratch, mut normed, mut out) = (DecoderScratch::default(), Vec::new(), Vec::new());
    for bad in 0..3 {
        let found = decoder.gate(&compute, 0, &rows(bad), &mut scratch, &mut normed, &mut out);
        assert_eq!(found, Err(NotFinite { row: bad }));
        assert_eq!(decoder.logits(&compute, &rows(bad), &mut scratch, &mut out), Err(NotFinite { row: bad }));
    }
    assert_eq!(decoder.logits(&compute, &[1.0; HIDDEN], &mut scratch, &mut out), Ok(()));
    assert_eq!(out, [0.0; 5]);
}
