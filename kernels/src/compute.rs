//! What a computation runs on: an instruction set and a pool of threads, chosen once by the caller.

use std::fmt;
use std::sync::Arc;

use crate::{Pool, arch};

/// An implementation of the numeric contract. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust: the first implementation of the contract.
    Portable,
    /// AVX2 + FMA + F16C. Only [`Isa::detect`] and [`Isa::available`] hand it out where the CPU has it.
    Avx2(Avx2Proof),
    /// AVX-512 (F, BW, DQ, VL, VNNI) beside those.
    Avx512(Avx512Proof),
    /// AMX (tiles of int8) beside those: quantised matmul of many rows.
    Amx(AmxProof),
}

/// Evidence that this CPU has AVX2, FMA and F16C; only this module makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2Proof(Ahead);

/// Evidence that this CPU has AVX-512 F, BW, DQ, VL and VNNI, and AVX2, FMA and F16C; only this module makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512Proof(Ahead);

/// Evidence that this CPU has AMX with int8, which the system lets this process use, and AVX-512; only this module makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AmxProof(Avx512Proof);

/// How many bytes before they are read weights are asked for; 0 where the CPU does best by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ahead(pub(crate) usize);

impl Ahead {
    /// Not at all.
    pub(crate) const NONE: Self = Self(0);

    /// What this CPU wants. Intel's keeps few lines on their way for each stream: asked 4 KiB ahead an Emerald Rapids reads 1.2 to 1.8
    /// times as fast, the more rows the more. A Zen 4 gained nothing and lost up to a third.
    #[cfg(target_arch = "x86_64")]
    fn detect() -> Self {
        let vendor = std::arch::x86_64::__cpuid(0);
        let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
        if name.as_flattened() == b"GenuineIntel" { Self(4096) } else { Self::NONE }
    }
}

impl AmxProof {
    /// Of AVX-512 alone.
    pub(crate) const fn avx512(self) -> Avx512Proof {
        self.0
    }
}

impl Isa {
    /// How weights are to be asked for.
    pub(crate) const fn ahead(self) -> Ahead {
        match self {
            Self::Portable => Ahead::NONE,
            Self::Avx2(Avx2Proof(ahead))
            | Self::Avx512(Avx512Proof(ahead))
            | Self::Amx(AmxProof(Avx512Proof(ahead))) => ahead,
        }
    }

    /// The fastest that this CPU has.
    pub fn detect() -> Self {
        Self::amx().or_else(Self::avx512).or_else(Self::avx2).unwrap_or(Self::Portable)
    }

    /// All that this CPU has, portable first.
    pub fn available() -> Vec<Self> {
        std::iter::once(Self::Portable).chain(Self::avx2()).chain(Self::avx512()).chain(Self::amx()).collect()
    }

    #[cfg(target_arch = "x86_64")]
    fn avx2() -> Option<Self> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then(|| Self::Avx2(Avx2Proof(Ahead::detect())))
    }

    #[cfg(target_arch = "x86_64")]
    fn avx512() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        has.then_some(Self::avx2()?.ahead()).map(|ahead| Self::Avx512(Avx512Proof(ahead)))
    }

    fn amx() -> Option<Self> {
        let Some(Self::Avx512(proof)) = Self::avx512() else { return None };
        arch::amx::is_permitted().then_some(Self::Amx(AmxProof(proof)))
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn avx2() -> Option<Self> {
        None
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn avx512() -> Option<Self> {
        None
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2(_) => "avx2",
            Self::Avx512(_) => "avx512",
            Self::Amx(_) => "amx",
        })
    }
}

/// An instruction set and the threads to use it on. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Compute {
    /// The implementation.
    pub isa: Isa,
    /// The threads.
    pub pool: Arc<Pool>,
}

impl Compute {
    /// `isa` on `threads` threads, the caller's among them.
    pub fn new(isa: Isa, threads: usize) -> Self {
        Self { isa, pool: Arc::new(Pool::new(threads)) }
    }
}
