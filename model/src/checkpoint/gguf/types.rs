//! ggml's tensor types: the numbers that stand in GGUF files, and their blocks.
//!
//! Source: ggml, `enum ggml_type` and `type_traits` (`ggml.h`, `ggml.c`); blocks in `ggml-common.h`.

use tramontane_kernels::WeightType;

/// One of ggml's types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GgmlType {
    /// Its number in files.
    pub(crate) id: u32,
    /// Its name, as ggml's enumeration spells it.
    pub(crate) name: &'static str,
    /// Values that are stored together; a row's width is a multiple.
    pub(crate) block_values: usize,
    /// Bytes of such a block.
    pub(crate) block_bytes: usize,
    /// `None` for types that weights here cannot have.
    pub(crate) weights: Option<WeightType>,
}

/// The types that weights in GGUF can have.
pub(crate) const SUPPORTED_TYPES: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K";

const TYPES: [GgmlType; 31] = [
    usable("F32", WeightType::F32),
    usable("F16", WeightType::F16),
    usable("Q4_0", WeightType::Q4_0),
    usable("Q4_1", WeightType::Q4_1),
    usable("Q5_0", WeightType::Q5_0),
    usable("Q5_1", WeightType::Q5_1),
    usable("Q8_0", WeightType::Q8_0),
    usable("Q4_K", WeightType::Q4K),
    usable("Q5_K", WeightType::Q5K),
    usable("Q6_K", WeightType::Q6K),
    usable("BF16", WeightType::Bf16),
    other(9, "Q8_1", 32, 36),
    other(10, "Q2_K", 256, 84),
    other(11, "Q3_K", 256, 110),
    other(15, "Q8_K", 256, 292),
    other(16, "IQ2_XXS", 256, 66),
    other(17, "IQ2_XS", 256, 74),
    other(18, "IQ3_XXS", 256, 98),
    other(19, "IQ1_S", 256, 50),
    other(20, "IQ4_NL", 32, 18),
    other(21, "IQ3_S", 256, 110),
    other(22, "IQ2_S", 256, 82),
    other(23, "IQ4_XS", 256, 136),
    other(24, "I8", 1, 1),
    other(25, "I16", 1, 2),
    other(26, "I32", 1, 4),
    other(27, "I64", 1, 8),
    other(28, "F64", 1, 8),
    other(29, "IQ1_M", 256, 56),
    other(34, "TQ1_0", 256, 54),
    other(35, "TQ2_0", 256, 66),
];

const fn usable(name: &'static str, ty: WeightType) -> GgmlType {
    let (block_values, block_bytes) = (ty.block_values(), ty.block_bytes());
    GgmlType { id: GgmlType::id_of(ty), name, block_values, block_bytes, weights: Some(ty) }
}

const fn other(id: u32, name: &'static str, block_values: usize, block_bytes: usize) -> GgmlType {
    GgmlType { id, name, block_values, block_bytes, weights: None }
}

impl GgmlType {
    /// The type with the number `id`; `None` for those we do not know, whose sizes we do not know either.
    pub(crate) fn of_id(id: u32) -> Option<Self> {
        TYPES.into_iter().find(|ty| ty.id == id)
    }

    /// The number in files of `weights`.
    pub(crate) const fn id_of(weights: WeightType) -> u32 {
        match weights {
            WeightType::F32 => 0,
            WeightType::F16 => 1,
            WeightType::Q4_0 => 2,
            WeightType::Q4_1 => 3,
            WeightType::Q5_0 => 6,
            WeightType::Q5_1 => 7,
            WeightType::Q8_0 => 8,
            WeightType::Q4K => 12,
            WeightType::Q5K => 13,
            WeightType::Q6K => 14,
            WeightType::Bf16 => 30,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_weights_stands_in_the_table_with_its_number() {
        for ty in WeightType::ALL {
            let found = GgmlType::of_id(GgmlType::id_of(ty)).unwrap();
            assert_eq!(found.weights, Some(ty));
            assert!(SUPPORTED_TYPES.split(", ").any(|name| name == found.name), "{}", found.name);
            assert_eq!(found.name.to_lowercase(), ty.name());
        }
        assert_eq!(SUPPORTED_TYPES.split(", ").count(), WeightType::ALL.len());
    }

    #[test]
    fn numbers_stand_once() {
        for (i, ty) in TYPES.iter().enumerate() {
            assert!(TYPES[..i].iter().all(|before| before.id != ty.id), "{}", ty.name);
        }
        assert_eq!(GgmlType::of_id(4), None, "Q4_2 was taken out of ggml");
        assert_eq!(GgmlType::of_id(u32::MAX), None);
    }
}
