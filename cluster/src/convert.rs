//! Messages to our own types and back, for what both gRPC seams carry: expert ids and profiles.

use tramontane_proto::v1 as pb;
use tramontane_router::{CPU_ARITHMETIC, ExpertId, NumericProfile};

/// A message that arrived whole but says something it may not: its sender is broken, or the path to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Malformed {
    /// That `what` is absent, though every message of its kind has one.
    pub(crate) fn missing(what: &str) -> Self {
        Self(format!("{what} is missing"))
    }
}

pub(crate) fn expert_to_pb(id: ExpertId) -> pb::ExpertId {
    pb::ExpertId { layer: id.layer, expert: id.expert }
}

pub(crate) fn expert_from_pb(id: Option<pb::ExpertId>) -> Result<ExpertId, Malformed> {
    id.map(|id| ExpertId::new(id.layer, id.expert)).ok_or_else(|| Malformed::missing("expert"))
}

pub(crate) fn profile_to_pb(profile: &NumericProfile) -> pb::NumericProfile {
    let NumericProfile { contract, weights, quantization, arithmetic } = profile.clone();
    pb::NumericProfile { contract, weights, quantization, arithmetic }
}

pub(crate) fn profile_from_pb(profile: Option<pb::NumericProfile>) -> Result<NumericProfile, Malformed> {
    let pb::NumericProfile { contract, weights, quantization, arithmetic } =
        profile.ok_or_else(|| Malformed::missing("profile"))?;
    // Who does not know the word computes by the contract.
    let arithmetic = if arithmetic.is_empty() { CPU_ARITHMETIC.to_owned() } else { arithmetic };
    Ok(NumericProfile { contract, weights, quantization, arithmetic })
}
