//! One folder an instruction set, one file an operation. `portable` is the contract's first implementation.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(not(target_arch = "x86_64"))]
#[path = "avx2_absent.rs"]
pub(crate) mod avx2;
pub(crate) mod portable;

#[cfg(test)]
pub(crate) mod testing;
