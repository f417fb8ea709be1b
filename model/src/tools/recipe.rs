//! Which type each tensor gets: llama.cpp's recipes (`llama_tensor_get_type` in `src/llama-quant.cpp`, as of 2025), for models with experts.

use tramontane_kernels::WeightType;

use super::slots::{Role, Slot};
use crate::config::{ModelConfig, OutputHead};

/// A recipe: what a whole file is called by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// All matrices in F16.
    F16,
    /// All matrices in Q8_0.
    Q8_0,
    /// Q4_0, the output in Q6_K.
    Q4_0,
    /// Q4_K, and more bits where they help most.
    Q4KM,
}

impl Recipe {
    /// All recipes.
    pub const ALL: [Self; 4] = [Self::F16, Self::Q8_0, Self::Q4_0, Self::Q4KM];

    /// Its name in flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4KM => "q4_k_m",
        }
    }

    /// Its number under `general.file_type` (llama.h, `llama_ftype`).
    pub(super) const fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
        }
    }

    /// The type of the tensor `slot`. Norms and the gate stay F32: they are small, and an error in them costs most.
    pub fn type_of(self, slot: &Slot, config: &ModelConfig) -> WeightType {
        let wanted = match slot.role {
            Role::AttentionNorm
            | Role::OutputNorm
            | Role::ExpertNorm
            | Role::QueryNorm
            | Role::KeyNorm
            | Role::Gate => {
                return WeightType::F32;
            }
            Role::Output => self.output(),
            Role::Embeddings if config.tied_embeddings == OutputHead::TiedToEmbeddings => self.output(),
            _ => match self {
                Self::F16 => WeightType::F16,
                Self::Q8_0 => WeightType::Q8_0,
                Self::Q4_0 => q4_0(slot, config),
                Self::Q4KM => q4_k_m(slot, config),
            },
        };
        fitting(wanted, slot.width())
    }

    const fn output(self) -> WeightType {
        match self {
            Self::F16 => WeightType::F16,
            Self::Q8_0 => WeightType::Q8_0,
            Self::Q4_0 | Self::Q4KM => WeightType::Q6K,
        }
    }
}

/// Experts of the models (Mixtral 8x7B and its like) whose keys and values are few beside the experts, and get more bits.
const EIGHT: usize = 8;

fn q4_0(slot: &Slot, config: &ModelConfig) -> WeightType {
    match slot.role {
        Role::Key | Role::Value if config.experts == EIGHT => WeightType::Q8_0,
        _ => WeightType::Q4_0,
    }
}

fn q4_k_m(slot: &Slot, config: &ModelConfig) -> WeightType {
    match slot.role {
        Role::Key | Role::Value if config.experts == EIGHT => WeightType::Q8_0,
        Role::AttentionOutput if config.experts == EIGHT => WeightType::Q5K,
        Role::Value | Role::Experts(1) if more_bits(slot.layer, config.layers) => WeightType::Q6K,
        _ => WeightType::Q4K,
    }
}

/// The layers that get more bits: the first and the last eighth, and every third between.
const fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// `wanted`, or what takes its place where rows are no whole number of its blocks.
fn fitting(wanted: WeightType, width: usize) -> WeightType {
    let fits = |ty: WeightType| width.is_multiple_of(ty.block_values());
    let smaller = match wanted {
        _ if fits(wanted) => return wanted,
        WeightType::Q4K => WeightType::Q5_0,
        WeightType::Q5K => WeightType::Q5_1,
        WeightType::Q6K => WeightType::Q8_0,
        _ => WeightType::F16,
    };
    if fits(smaller) { smaller } else { WeightType::F16 }
}

#[cfg(test)]
mod tests {
    use super::super::slots::slots;
    use super::super::synth::Like;
    use super::*;

    fn types(recipe: Recipe, config: &ModelConfig, name: &str) -> Vec<WeightType> {
        let slots = slots(config);
        slots.iter().filter(|slot| slot.name.contains(name)).map(|slot| recipe.type_of(slot, config)).collect()
    }

    #[test]
    fn q4_k_m_of_mixtral_is_as_llama_cpp_makes_it() {
        let config = Like::Mixtral8x7b.config();
        let of = |name: &str| types(Recipe::Q4KM, &config, name);
        // 32 layers: 0…3 and 28…31, and 6, 9, … between.
        let six = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];
        let down = of("ffn_down_exps");
        let with_more: Vec<usize> = (0..32).filter(|&layer| down[layer] == WeightType::Q6K).collect();
        assert_eq!(with_more, six);
        assert_eq!(down.iter().filter(|ty| **ty == WeightType::Q4K).count(), 32 - six.len());
        for (name, ty) in [
            ("attn_v", WeightType::Q8_0),
            ("attn_k", WeightType::Q8_0),
            ("attn_q", WeightType::Q4K),
            ("attn_output", WeightType::Q5K),
            ("ffn_gate_exps", WeightType::Q4K),
            ("ffn_up_exps", WeightType::Q4K),
            ("ffn_gate_inp", WeightType::F32),
            ("norm", WeightType::F32),
            ("token_embd", WeightType::Q4K),
        ] {
            assert!(of(name).iter().all(|found| *found == ty), "{name}");
        }
        assert_eq!(of("output.weight").last(), Some(&WeightType::Q6K));
    }

    #[test]
    fn other_numbers_of_experts_share_the_bits_by_layer() {
        let config = Like::Qwen3_30bA3b.config();
        let value = types(Recipe::Q4KM, &config, "attn_v");
        assert_eq!(
            (value[0], value[6], value[8], value[47]),
            (WeightType::Q6K, WeightType::Q4K, WeightType::Q6K, WeightType::Q6K)
        );
        assert!(types(Recipe::Q4KM, &config, "attn_output").iter().all(|ty| *ty == WeightType::Q4K));
    }

    #[test]
    fn rows_that_do_not_fit_fall_back() {
        let cases = [
            (WeightType::Q4K, 576, WeightType::Q5_0),
            (WeightType::Q5K, 576, WeightType::Q5_1),
            (WeightType::Q6K, 576, WeightType::Q8_0),
            (WeightType::Q6K, 512, WeightType::Q6K),
            (WeightType::Q4_0, 48, WeightType::F16),
            (WeightType::Q4K, 48, WeightType::F16),
        ];
        for (wanted, width, found) in cases {
            assert_eq!(fitting(wanted, width), found, "{} at {width}", wanted.name());
        }
    }

    #[test]
    fn tied_embeddings_are_stored_as_the_output_would_be() {
        let config = ModelConfig { tied_embeddings: OutputHead::TiedToEmbeddings, ..Like::Tiny.config() };
        assert_eq!(types(Recipe::Q4_0, &config, "token_embd"), [WeightType::Q6K]);
        assert!(
            types(Recipe::Q4_0, &config, "output.weight").iter().all(|ty| *ty == WeightType::Q4_0),
            "attn_output alone"
        );
    }
}
