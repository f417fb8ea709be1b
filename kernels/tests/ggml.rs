//! Stored blocks are read as ggml reads them: against what PyPI's `gguf` says of random blocks (`tests/ggml/make.py`).

use tramontane_kernels::WeightType;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn blocks_decode_as_ggml_decodes_them() {
    let mut checked = std::collections::BTreeSet::new();
    for line in include_str!("ggml/blocks.txt").lines() {
        let [name, stored, values] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("three fields: {line}") };
        let ty = WeightType::ALL.into_iter().find(|ty| ty.name() == name).unwrap();
        let expected: Vec<f32> = bytes(values).as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let mut out = vec![0.0; ty.block_values()];
        ty.decode_row(&bytes(stored), &mut out);
        assert_eq!(out, expected, "{name}");
        checked.insert(name);
    }
    assert_eq!(checked.len(), 8, "every quantised type");
}
