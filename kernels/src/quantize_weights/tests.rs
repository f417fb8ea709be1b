//! What comes back of a quantised row, and what is refused.

use super::*;
use crate::arch::testing::{Random, moderate};

const QUANTIZED: [WeightType; 8] = [
    WeightType::Q8_0,
    WeightType::Q4_0,
    WeightType::Q4_1,
    WeightType::Q5_0,
    WeightType::Q5_1,
    WeightType::Q4K,
    WeightType::Q5K,
    WeightType::Q6K,
];

/// About normal: the sum of twelve uniform values.
fn gaussian(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..n).map(|_| (0..12).map(|_| random.unit()).sum::<f32>() * 0.01).collect()
}

fn there_and_back(ty: WeightType, row: &[f32]) -> Vec<f32> {
    let mut stored = Vec::new();
    encode_row(ty, row, &mut stored).unwrap();
    assert_eq!(Some(stored.len()), ty.row_bytes(row.len()));
    let mut back = vec![f32::NAN; row.len()];
    ty.decode_row(&stored, &mut back);
    back
}

/// Root of the mean squared error over that of the mean square.
fn relative_error(row: &[f32], back: &[f32]) -> f32 {
    let error: f32 = row.iter().zip(back).map(|(a, b)| (a - b) * (a - b)).sum();
    (error / row.iter().map(|x| x * x).sum::<f32>()).sqrt()
}

#[test]
fn gaussian_rows_come_back_as_well_as_from_ggml() {
    for (ty, reference) in REFERENCE {
        let row = gaussian(1 << 16, 7);
        let error = relative_error(&row, &there_and_back(ty, &row));
        assert!(error <= reference * 1.001, "{}: {error}", ty.name());
    }
}

/// The error that ggml's `quantize_row_*_ref` leave on the same row, measured by hand.
const REFERENCE: [(WeightType, f32); 8] = [
    (WeightType::Q8_0, 0.0052698),
    (WeightType::Q4_0, 0.0848912),
    (WeightType::Q4_1, 0.0774231),
    (WeightType::Q5_0, 0.0421071),
    (WeightType::Q5_1, 0.0375921),
    (WeightType::Q4K, 0.0706774),
    (WeightType::Q5K, 0.0358045),
    (WeightType::Q6K, 0.0175097),
];

#[test]
fn plain_blocks_come_back_within_half_a_step() {
    for (ty, steps) in [(WeightType::Q8_0, 127.0), (WeightType::Q4_0, 8.0), (WeightType::Q5_0, 16.0)] {
        let row = moderate(256, 5);
        for (block, back) in row.chunks(32).zip(there_and_back(ty, &row).chunks(32)) {
            let amax = extreme(block).abs();
            // Half a step, and up to 127 × 2^-11 of one for the rounded scale. Others than Q8_0 are a whole step short at the far end.
            let bound = amax / steps * if ty == WeightType::Q8_0 { 0.57 } else { 1.01 };
            assert!(block.iter().zip(back).all(|(a, b)| (a - b).abs() <= bound), "{}", ty.name());
        }
    }
}

#[test]
fn zeros_constants_and_one_sided_rows_come_back() {
    for ty in QUANTIZED {
        assert!(there_and_back(ty, &[0.0; 256]).iter().all(|x| *x == 0.0), "{}", ty.name());
        for row in [vec![0.75; 256], vec![-0.75; 256], (0..256).map(|i| 1.0 + i as f32 / 256.0).collect()] {
            let error = relative_error(&row, &there_and_back(ty, &row));
            assert!(error < 0.07, "{}: {error}", ty.name());
        }
        let tiny = there_and_back(ty, &[1e-30; 256]);
        assert!(tiny.iter().all(|x| x.abs() < 1e-6), "{}", ty.name());
    }
}

#[test]
fn what_does_not_fit_is_named() {
    for ty in QUANTIZED {
        for bad in [f32::NAN, f32::INFINITY, 1e30, -1e30, f32::MAX] {
            let mut row = vec![0.0f32; 512];
            row[300] = bad;
            let error = quantize_row(ty, &row, &mut Vec::new()).unwrap_err();
            assert_eq!(error, Unquantizable { index: 300 / ty.block_values() * ty.block_values(), ty }, "{bad}");
        }
    }
}

#[test]
fn float_types_round_to_nearest_and_refuse_what_they_lack() {
    let row = [1.0, -2.5, 65504.0, 1e-7, 0.1];
    assert_eq!(there_and_back(WeightType::F32, &row), row);
    for ty in [WeightType::F16, WeightType::Bf16] {
        let back = there_and_back(ty, &row);
        assert!(row.iter().zip(&back).all(|(a, b)| (a - b).abs() <= a.abs() / 256.0 + 1e-7), "{}", ty.name());
        assert_eq!(there_and_back(ty, &back), back);
    }
    let error = encode_row(WeightType::F16, &[1.0, 65520.0], &mut Vec::new()).unwrap_err();
    assert_eq!(error, Unquantizable { index: 1, ty: WeightType::F16 });
    assert!(encode_row(WeightType::Bf16, &[f32::NAN], &mut Vec::new()).is_err());
}
