//! The numeric profile: what must be equal for two nodes' results to be equal.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Everything that decides the bits of an expert's output. Two nodes with equal profiles answer a row with equal bits;
/// a node whose profile differs is refused by name and reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumericProfile {
    /// Version of the numeric contract (`kernels::CONTRACT_VERSION`).
    pub contract: u32,
    /// Root of the per-tensor hashes of the checkpoint, lower-case hex.
    pub weights: String,
    /// How expert weights are stored and multiplied: `f32`, `bf16`, `f16`, `q8_0`, `q4_0`, or `mixed`.
    pub quantization: String,
    /// Whose arithmetic it is: `cpu` (the numeric contract's), `candle-cpu`, `candle-cuda`. Only the first is equal bit by bit among all who have
    /// the same profile.
    #[serde(default = "cpu", skip_serializing_if = "is_cpu")]
    pub arithmetic: String,
}

/// The arithmetic of the numeric contract.
pub const CPU_ARITHMETIC: &str = "cpu";

fn is_cpu(arithmetic: &str) -> bool {
    arithmetic == CPU_ARITHMETIC
}

fn cpu() -> String {
    CPU_ARITHMETIC.to_owned()
}

impl NumericProfile {
    /// Whether equal profiles mean equal bits: results may be compared with one another.
    pub fn is_exact(&self) -> bool {
        self.arithmetic == CPU_ARITHMETIC
    }

    /// Says which field of `other` differs from this (the cluster's) profile, as text for the refused node's operator.
    /// `None` when they are equal.
    pub fn difference(&self, other: &Self) -> Option<String> {
        if self.contract != other.contract {
            Some(format!("numeric contract {} here, {} there", self.contract, other.contract))
        } else if self.arithmetic != other.arithmetic {
            Some(format!("arithmetic {} here, {} there", self.arithmetic, other.arithmetic))
        } else if self.quantization != other.quantization {
            Some(format!("quantisation {} here, {} there", self.quantization, other.quantization))
        } else if self.weights != other.weights {
            Some(format!("weights {} here, {} there", short(&self.weights), short(&other.weights)))
        } else {
            None
        }
    }
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

impl fmt::Display for NumericProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "contract {} / {} / {}", self.contract, self.quantization, short(&self.weights))?;
        if self.is_exact() { Ok(()) } else { write!(f, " / {}", self.arithmetic) }
    }
}
