//! One tensor: its name, type, shape and bytes, and the checks on them.

use std::fmt;

use tramontane_kernels::WeightType;

use super::CheckpointError;

/// A tensor in its checkpoint, as stored.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    /// Its name in the checkpoint.
    pub name: &'a str,
    /// The file it is in.
    pub file: &'a str,
    /// How its values are stored.
    pub ty: WeightType,
    /// Its dimensions, outermost first (row-major).
    pub shape: &'a [usize],
    /// Its bytes, little endian; not aligned to anything.
    pub data: &'a [u8],
    /// Where these start in the tensor of that name: 0, but for one of several experts stacked in it.
    pub offset: usize,
}

impl Tensor<'_> {
    /// Part `index` along its outermost dimension, with the dimensions below; `None` when there is no such part.
    pub(crate) fn part(self, index: usize) -> Option<Self> {
        let (&parts, shape) = self.shape.split_first()?;
        let bytes = self.data.len().checked_div(parts)?;
        let start = index.checked_mul(bytes)?;
        let data = self.data.get(start..)?.get(..bytes)?;
        (index < parts).then_some(Self { shape, data, offset: self.offset + start, ..self })
    }

    /// Checks that its shape is `shape`, and hands it back.
    ///
    /// # Errors
    /// [`CheckpointError::WrongShape`].
    pub fn expect_shape(self, shape: &[usize]) -> Result<Self, CheckpointError> {
        if self.shape == shape {
            return Ok(self);
        }
        Err(CheckpointError::WrongShape {
            file: self.file.to_owned(),
            tensor: self.name.to_owned(),
            expected: shape.to_vec(),
            found: self.shape.to_vec(),
        })
    }

    /// Checks that no value (of quantised types: no block's scale) is NaN or infinite. Reads all of the tensor.
    ///
    /// # Errors
    /// [`CheckpointError::NotFinite`] with the first element (of quantised types: the first of its block).
    pub fn check_finite(&self) -> Result<(), CheckpointError> {
        let bad = match self.ty {
            WeightType::F32 => first_not_finite(self.data, |v: [u8; 4]| f32::from_le_bytes(v).is_finite()),
            WeightType::Bf16 => first_not_finite(self.data, finite_bf16),
            WeightType::F16 => first_not_finite(self.data, finite_f16),
            WeightType::Q8_0 => first_not_finite(self.data, |b: [u8; 34]| finite_f16([b[0], b[1]])),
            WeightType::Q4_0 => first_not_finite(self.data, |b: [u8; 18]| finite_f16([b[0], b[1]])),
            WeightType::Q5_0 => first_not_finite(self.data, |b: [u8; 22]| finite_f16([b[0], b[1]])),
            WeightType::Q4_1 => first_not_finite(self.data, |b: [u8; 20]| finite_two(b)),
            WeightType::Q5_1 => first_not_finite(self.data, |b: [u8; 24]| finite_two(b)),
            WeightType::Q4K => first_not_finite(self.data, |b: [u8; 144]| finite_two(b)),
            WeightType::Q5K => first_not_finite(self.data, |b: [u8; 176]| finite_two(b)),
            WeightType::Q6K => first_not_finite(self.data, |b: [u8; 210]| finite_f16([b[208], b[209]])),
        };
        match bad {
            None => Ok(()),
            Some(block) => Err(CheckpointError::NotFinite {
                file: self.file.to_owned(),
                tensor: self.name.to_owned(),
                element: block * self.ty.block_values(),
            }),
        }
    }
}

/// All exponent bits set: NaN or an infinity (bf16: 8 exponent bits below the sign).
fn finite_bf16(value: [u8; 2]) -> bool {
    u16::from_le_bytes(value) & 0x7f80 != 0x7f80
}

/// The same of binary16 (5 exponent bits below the sign).
fn finite_f16(value: [u8; 2]) -> bool {
    u16::from_le_bytes(value) & 0x7c00 != 0x7c00
}

/// A block that starts with a scale and an offset.
fn finite_two<const N: usize>(b: [u8; N]) -> bool {
    finite_f16([b[0], b[1]]) & finite_f16([b[2], b[3]])
}

/// Index of the first `N`-byte block of `data` that is not `finite`.
fn first_not_finite<const N: usize>(data: &[u8], finite: impl Fn([u8; N]) -> bool) -> Option<usize> {
    /// Blocks looked at without a branch between them, so that the loop vectorises.
    const STRIDE: usize = 1024;
    let (blocks, _) = data.as_chunks::<N>();
    let all_finite = |blocks: &[[u8; N]]| blocks.iter().fold(true, |all, &block| all & finite(block));
    let stride = blocks.chunks(STRIDE).position(|blocks| !all_finite(blocks))? * STRIDE;
    blocks[stride..].iter().position(|&block| !finite(block)).map(|at| stride + at)
}

impl fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?} in {}", self.name, self.ty.name(), self.shape, self.file)
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    fn tensor<'a>(ty: WeightType, shape: &'a [usize], data: &'a [u8]) -> Tensor<'a> {
        Tensor { name: "t", file: "f", ty, shape, data, offset: 0 }
    }

    /// Values of which number `at` is `bad`.
    fn bytes<const N: usize>(count: usize, at: usize, good: [u8; N], bad: [u8; N]) -> Vec<u8> {
        (0..count).flat_map(|i| if i == at { bad } else { good }).collect()
    }

    fn not_finite_at(ty: WeightType, data: &[u8]) -> Option<usize> {
        match tensor(ty, &[], data).check_finite() {
            Ok(()) => None,
            Err(CheckpointError::NotFinite { element, .. }) => Some(element),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn names_the_first_value_that_is_not_finite() {
        for at in [0, 1, 1023, 1024, 2999] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let f32s = bytes(3000, at, f32::MAX.to_le_bytes(), bad.to_le_bytes());
                assert_eq!(not_finite_at(WeightType::F32, &f32s), Some(at));
                let bf16s = bytes(3000, at, bf16::MAX.to_le_bytes(), bf16::from_f32(bad).to_le_bytes());
                assert_eq!(not_finite_at(WeightType::Bf16, &bf16s), Some(at));
                let f16s = bytes(3000, at, f16::MIN.to_le_bytes(), f16::from_f32(bad).to_le_bytes());
                assert_eq!(not_finite_at(WeightType::F16, &f16s), Some(at));
            }
        }
    }

    #[test]
    fn finite_values_pass() {
        for value in [0.0, -0.0, 1.0, f32::MIN_POSITIVE / 2.0, -65504.0] {
            assert_eq!(not_finite_at(WeightType::F32, &value.to_le_bytes()), None);
            assert_eq!(not_finite_at(WeightType::Bf16, &bf16::from_f32(value).to_le_bytes()), None);
            assert_eq!(not_finite_at(WeightType::F16, &f16::from_f32(value).to_le_bytes()), None);
        }
        assert_eq!(not_finite_at(WeightType::F32, &[]), None);
    }

    #[test]
    fn a_quantised_block_is_judged_by_its_scales() {
        let quantized: Vec<WeightType> = WeightType::ALL.into_iter().filter(|ty| ty.is_quantized()).collect();
        assert_eq!(quantized.len(), 8);
        for ty in quantized {
            let scales: &[usize] = match ty {
                WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => &[0, 2],
                WeightType::Q6K => &[208],
                _ => &[0],
            };
            let mut good = vec![0xff; ty.block_bytes() * 3];
            for at in (0..3).flat_map(|block| scales.iter().map(move |at| block * ty.block_bytes() + at)) {
                good[at..at + 2].copy_from_slice(&f16::ONE.to_le_bytes());
            }
            assert_eq!(not_finite_at(ty, &good), None, "{}", ty.name());
            for (block, at) in (0..3).flat_map(|block| scales.iter().map(move |&at| (block, at))) {
                for value in [f16::NAN, f16::NEG_INFINITY] {
                    let mut bad = good.clone();
                    let at = block * ty.block_bytes() + at;
                    bad[at..at + 2].copy_from_slice(&value.to_le_bytes());
                    assert_eq!(not_finite_at(ty, &bad), Some(block * ty.block_values()), "{}", ty.name());
                }
            }
        }
    }

    #[test]
    fn parts_are_cut_along_the_outermost_dimension() {
        let data: Vec<u8> = (0..24).collect();
        let whole = tensor(WeightType::F16, &[3, 2, 2], &data);
        let part = whole.part(1).unwrap();
        assert_eq!((part.shape, part.data), (&[2, 2][..], &data[8..16]));
        assert!(whole.part(2).is_some() && whole.part(3).is_none() && whole.part(usize::MAX).is_none());
        assert!(tensor(WeightType::F16, &[0, 2], &[]).part(0).is_none());
        assert!(tensor(WeightType::F16, &[], &data[..2]).part(0).is_none());
    }

    #[test]
    fn a_wrong_shape_is_named() {
        let wrong = tensor(WeightType::F32, &[2, 3], &[0; 24]).expect_shape(&[3, 2]).unwrap_err();
        assert_eq!(wrong.to_string(), "f: tensor t: shape [3, 2] expected, [2, 3] found");
        assert!(tensor(WeightType::F32, &[2, 3], &[0; 24]).expect_shape(&[2, 3]).is_ok());
    }
}
