//! One folder an instruction set, one file an operation. `portable` is the contract's first implementation.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[path = "amx_absent.rs"]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod attention;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(not(target_arch = "x86_64"))]
#[path = "avx2_absent.rs"]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(not(target_arch = "x86_64"))]
#[path = "avx512_absent.rs"]
pub(crate) mod avx512;
mod entries;
pub(crate) mod portable;
#[cfg(target_arch = "x86_64")]
mod prefetch;
#[cfg(target_arch = "x86_64")]
mod softmax;
#[cfg(target_arch = "x86_64")]
mod types;

#[cfg(target_arch = "x86_64")]
pub(crate) use attention::attention;
use entries::entries;

#[cfg(test)]
pub(crate) mod testing;

/// `by_isa!(isa, op(…))`: the operation `op` as this instruction set has it. What AMX has of its own, matmul and `burn_int8`, is not called by this.
macro_rules! by_isa {
    ($isa:expr, $op:ident($($arg:expr),* $(,)?)) => {
        match $isa {
            $crate::Isa::Portable => $crate::arch::portable::$op($($arg),*),
            $crate::Isa::Avx2(proof) => $crate::arch::avx2::$op(proof, $($arg),*),
            $crate::Isa::Avx512(proof) => $crate::arch::avx512::$op(proof, $($arg),*),
            $crate::Isa::Amx(proof) => $crate::arch::avx512::$op(proof.avx512(), $($arg),*),
        }
    };
}
pub(crate) use by_isa;

/// `each_row!(R, r, { … })`: the body once for each r below R (at most 16; with `R of 8` at most 8, with `of 2` at most 2), r a constant,
/// so that arrays indexed with it stay in registers whatever the optimiser thinks of unrolling.
#[cfg(target_arch = "x86_64")]
macro_rules! each_row {
    ($n:ident of 2, $i:ident, $body:block) => {
        $crate::arch::each_row!(@ $n, $i, $body, 0 1)
    };
    ($n:ident of 8, $i:ident, $body:block) => {
        $crate::arch::each_row!(@ $n, $i, $body, 0 1 2 3 4 5 6 7)
    };
    ($rows:ident, $r:ident, $body:block) => {
        $crate::arch::each_row!(@ $rows, $r, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $rows:ident, $r:ident, $body:block, $($i:literal)*) => {{
        $(if $i < $rows {
            let $r: usize = $i;
            $body
        })*
    }};
}
#[cfg(target_arch = "x86_64")]
pub(crate) use each_row;

/// `side_by_side!(strips, panels => …)`: the expression for the i-th panels of all strips, i by i. `panels` is an array of all of them
/// where the strips are [`STREAMS`](crate::strips::STREAMS) or two and all so long, else of one, strip after strip.
#[cfg(target_arch = "x86_64")]
macro_rules! side_by_side {
    ($strips:expr, $panels:ident => $body:expr) => {
        for i in 0..$strips.iter().map(Strip::len).max().unwrap_or(0) {
            if let Some($panels) = Strip::abreast::<{ $crate::strips::STREAMS }>($strips, i) {
                $body;
            } else if let Some($panels) = Strip::abreast::<2>($strips, i) {
                $body;
            } else {
                for strip in $strips.iter().filter(|strip| i < strip.len()) {
                    let $panels = [strip.panel(i)];
                    $body;
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use side_by_side;

/// `in_runs!(strip, N, panels => …)`: the expression for N neighbouring panels after the other as an array, and for each of the rest alone.
#[cfg(target_arch = "x86_64")]
macro_rules! in_runs {
    ($strip:expr, $n:literal, $panels:ident => $body:expr) => {
        let mut i = 0;
        while i < $strip.len() {
            i += if let Some($panels) = $strip.run::<$n>(i) {
                $body;
                $n
            } else {
                let $panels = [$strip.panel(i)];
                $body;
                1
            };
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use in_runs;
