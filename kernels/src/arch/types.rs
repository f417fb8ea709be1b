//! Quantised types as const parameters: a kernel is compiled once a type.

use crate::WeightType;
use crate::packed::PanelBlock;

/// A quantised [`WeightType`].
pub(crate) type Ty = u8;
pub(crate) const Q8_0: Ty = 0;
pub(crate) const Q4_0: Ty = 1;
pub(crate) const Q4_1: Ty = 2;
pub(crate) const Q5_0: Ty = 3;
pub(crate) const Q5_1: Ty = 4;
pub(crate) const Q4K: Ty = 5;
pub(crate) const Q5K: Ty = 6;
pub(crate) const Q6K: Ty = 7;

/// How its blocks stand in a panel.
pub(crate) const fn layout<const TY: Ty>() -> PanelBlock {
    PanelBlock::of(match TY {
        Q8_0 => WeightType::Q8_0,
        Q4_0 => WeightType::Q4_0,
        Q4_1 => WeightType::Q4_1,
        Q5_0 => WeightType::Q5_0,
        Q5_1 => WeightType::Q5_1,
        Q4K => WeightType::Q4K,
        Q5K => WeightType::Q5K,
        _ => WeightType::Q6K,
    })
}
