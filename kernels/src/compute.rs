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
pub struct Avx2Proof(Prefetch);

/// Evidence that this CPU has AVX-512 F, BW, DQ, VL and VNNI, and AVX2, FMA and F16C; only this module makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512Proof(Prefetch);

/// Evidence that this CPU has AMX with int8, which the system lets this process use, and AVX-512; only this module makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AmxProof(Avx512Proof);

/// Who asks for weights before they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) enum Prefetch {
    /// The CPU by itself: beside four streams, and of some types always, a Zen 4 gained nothing by more, and lost up to a third.
    Hardware,
    /// Kernels too. Intel's CPUs keep few lines of a stream on their way: asked 4 KiB ahead, an Emerald Rapids reads up to 1.8 times
    /// as fast.
    Software,
}

impl Prefetch {
    /// As this CPU wants it.
    #[cfg(target_arch = "x86_64")]
    fn detect() -> Self {
        let vendor = std::arch::x86_64::__cpuid(0);
        let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
        if name.as_flattened() == b"GenuineIntel" { Self::Software } else { Self::Hardware }
    }
}

impl AmxProof {
    /// Of AVX-512 alone.
    pub(crate) const fn avx512(self) -> Avx512Proof {
        self.0
    }
}

impl Isa {
    /// Who asks for weights before it reads them.
    pub(crate) const fn prefetch(self) -> Prefetch {
        match self {
            Self::Portable => Prefetch::Hardware,
            Self::Avx2(Avx2Proof(prefetch))
            | Self::Avx512(Avx512Proof(prefetch))
            | Self::Amx(AmxProof(Avx512Proof(prefetch))) => prefetch,
        }
    }

    /// The same instructions, asked for weights by `prefetch`.
    #[cfg(test)]
    pub(crate) const fn with(self, prefetch: Prefetch) -> Self {
        match self {
            Self::Portable => Self::Portable,
            Self::Avx2(_) => Self::Avx2(Avx2Proof(prefetch)),
            Self::Avx512(_) => Self::Avx512(Avx512Proof(prefetch)),
            Self::Amx(_) => Self::Amx(AmxProof(Avx512Proof(prefetch))),
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
        has.then(|| Self::Avx2(Avx2Proof(Prefetch::detect())))
    }

    #[cfg(target_arch = "x86_64")]
    fn avx512() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        let avx2 = Self::avx2()?;
        has.then(|| Self::Avx512(Avx512Proof(avx2.prefetch())))
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
