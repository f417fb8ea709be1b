//! Types of weights as const parameters: a kernel is compiled once a type.

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

/// A float [`WeightType`].
pub(crate) type FloatTy = u8;
pub(crate) const F32: FloatTy = 0;
pub(crate) const BF16: FloatTy = 1;
pub(crate) const F16: FloatTy = 2;

/// `by_type!(quantized ty, f(…))`, `by_type!(float ty, f(…))`: calls `f` compiled for `ty`; `f[N](…)` for `ty` and the const N.
macro_rules! by_type {
    (quantized $ty:expr, $f:ident $([$n:expr])? ($($args:tt)*)) => {
        $crate::arch::types::by_type!(@ $ty, $f [$($n)?] ($($args)*), Q4_0 = Q4_0, Q4_1 = Q4_1, Q5_0 = Q5_0, Q5_1 = Q5_1, Q4K = Q4K, Q5K = Q5K, Q6K = Q6K; Q8_0)
    };
    (float $ty:expr, $f:ident $([$n:expr])? ($($args:tt)*)) => {
        $crate::arch::types::by_type!(@ $ty, $f [$($n)?] ($($args)*), F32 = F32, Bf16 = BF16; F16)
    };
    (@ $ty:expr, $f:ident $n:tt $args:tt, $($variant:ident = $const:ident),*; $rest:ident) => {
        match $ty {
            $($crate::WeightType::$variant => $crate::arch::types::by_type!(@@ $const, $f $n $args),)*
            _ => $crate::arch::types::by_type!(@@ $rest, $f $n $args),
        }
    };
    (@@ $const:ident, $f:ident [$($n:expr)?] $args:tt) => {
        $f::<{ $crate::arch::types::$const } $(, { $n })?> $args
    };
}
pub(crate) use by_type;
