//! What the machine is and gives: the CPU's name, its read bandwidth, its arithmetic; and what this process takes of its memory.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use memmap2::{Advice, MmapMut};
use serde::Serialize;
use tramontane_kernels::peak::{Unit, burn};
use tramontane_kernels::{Compute, Pool};

use super::stats::Summary;

/// Bytes that a thread reads at a time.
const PIECE: usize = 1 << 20;
/// How often each arithmetic unit is timed.
const PASSES: usize = 7;
/// What the buffer is filled with: not zeros, which some machines do not fetch.
const FILL: u8 = 0x5a;

/// What the machine's memory gives.
#[derive(Debug, Serialize)]
pub(crate) struct ReadBandwidth {
    /// Bytes that were read at each pass.
    pub(crate) buffer_bytes: u64,
    /// 10⁹ bytes a second, over the passes.
    pub(crate) gigabytes_per_second: Summary,
}

/// How fast the machine multiplies and adds, from registers alone, by the instructions that the engine uses.
#[derive(Debug, Serialize)]
pub(crate) struct Arithmetic {
    /// 10⁹ f32 operations a second, a multiply-add two.
    pub(crate) float_gigaflops: Summary,
    /// 10⁹ operations a second on 8-bit integers.
    pub(crate) int8_gigaops: Summary,
}

/// Rounds of a pass over the arithmetic units: some 50 ms.
const BURN_ROUNDS: usize = 30_000;

/// `None` where the engine runs without an instruction set of its own.
pub(crate) fn arithmetic(compute: &Compute) -> Option<Arithmetic> {
    let pass = |unit| {
        let started = Instant::now();
        let operations = burn(compute, unit, BURN_ROUNDS)?;
        Some(operations as f64 / started.elapsed().as_secs_f64() / 1e9)
    };
    let passes = |unit| Summary::of(&(0..PASSES).map(|_| pass(unit)).collect::<Option<Vec<f64>>>()?);
    Some(Arithmetic { float_gigaflops: passes(Unit::Float)?, int8_gigaops: passes(Unit::Int8)? })
}

/// What this process takes, in bytes; `None` where the system does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    /// The most that was resident.
    pub(crate) peak_rss_bytes: Option<u64>,
    /// What is resident.
    pub(crate) rss_bytes: Option<u64>,
    /// Of it, in anonymous huge pages.
    pub(crate) anon_huge_pages_bytes: Option<u64>,
    /// Of it, files mapped by huge pages.
    pub(crate) file_pmd_mapped_bytes: Option<u64>,
}

/// The CPU's name, where the system says it.
pub(crate) fn cpu() -> Option<String> {
    std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| cpu_name(&text).map(str::to_owned))
}

/// The first `model name` of `/proc/cpuinfo`.
fn cpu_name(cpuinfo: &str) -> Option<&str> {
    let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(name, _)| name.trim() == "model name").map(|(_, value)| value.trim())
}

/// What this process takes now.
pub(crate) fn memory() -> Memory {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    memory_of(&read("/proc/self/status"), &read("/proc/self/smaps_rollup"))
}

fn memory_of(status: &str, rollup: &str) -> Memory {
    Memory {
        peak_rss_bytes: kibibytes(status, "VmHWM"),
        rss_bytes: kibibytes(status, "VmRSS"),
        anon_huge_pages_bytes: kibibytes(rollup, "AnonHugePages"),
        file_pmd_mapped_bytes: kibibytes(rollup, "FilePmdMapped"),
    }
}

/// The bytes of a line `name: N kB` (format: proc(5)).
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A buffer that is read to see what the memory gives at that moment.
pub(crate) struct Reader {
    buffer: MmapMut,
    pool: Arc<Pool>,
}

impl Reader {
    /// A buffer of about `bytes` bytes (whole pieces, one at least), read once, for the threads of `pool`.
    ///
    /// # Errors
    /// When the system does not give the memory.
    pub(crate) fn new(pool: Arc<Pool>, bytes: u64) -> io::Result<Self> {
        let pieces = usize::try_from(bytes / PIECE as u64).map_err(io::Error::other)?.max(1);
        let length = pieces.checked_mul(PIECE).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut buffer = MmapMut::map_anon(length)?;
        // Where the system has no huge pages to give, small ones are what there is to measure.
        if let Err(error) = buffer.advise(Advice::HugePage) {
            tracing::debug!(%error, "no huge pages");
        }
        buffer.fill(FILL);
        let reader = Self { buffer, pool };
        black_box(reader.pass());
        Ok(reader)
    }

    /// 10⁹ bytes a second, of one pass on all threads.
    pub(crate) fn pass(&self) -> f64 {
        let started = Instant::now();
        black_box(sum(&self.pool, &self.buffer));
        self.buffer.len() as f64 / started.elapsed().as_secs_f64() / 1e9
    }

    /// What `passes` came to; `None` of none.
    pub(crate) fn summary(&self, passes: &[f64]) -> Option<ReadBandwidth> {
        Some(ReadBandwidth { buffer_bytes: self.buffer.len() as u64, gigabytes_per_second: Summary::of(passes)? })
    }
}

/// The wrapping sum of `buffer`'s u64, on all threads.
fn sum(pool: &Pool, buffer: &[u8]) -> u64 {
    let total = AtomicU64::new(0);
    pool.run(buffer.len() / PIECE, &|piece| {
        total.fetch_add(piece_sum(&buffer[piece * PIECE..(piece + 1) * PIECE]), Ordering::Relaxed);
    });
    total.into_inner()
}

/// Eight sums side by side, which the compiler puts in vectors.
fn piece_sum(piece: &[u8]) -> u64 {
    let mut sums = [0_u64; 8];
    for line in piece.as_chunks::<64>().0 {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cpu_is_named() {
        let text =
            "processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9B14\n\nprocessor\t: 1\nmodel name\t: other\n";
        assert_eq!(cpu_name(text), Some("AMD EPYC 9B14"));
        assert_eq!(cpu_name("processor : 0\n"), None);
    }

    #[test]
    fn memory_is_read_in_kibibytes_by_exact_name() {
        let status = "VmHWMx:\t 9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let rollup = "Rss: 1 kB\nAnonHugePages:      4 kB\nFilePmdMapped: none\n";
        let expected = Memory {
            peak_rss_bytes: Some(2 << 20),
            rss_bytes: Some(1 << 20),
            anon_huge_pages_bytes: Some(4096),
            file_pmd_mapped_bytes: None,
        };
        assert_eq!(memory_of(status, rollup), expected);
    }

    #[test]
    fn every_word_of_the_buffer_is_read_once() {
        let buffer: Vec<u8> = (0..3 * PIECE as u64 / 8).flat_map(u64::to_ne_bytes).collect();
        let words = 3 * PIECE as u64 / 8;
        assert_eq!(sum(&Pool::new(2), &buffer), words * (words - 1) / 2);
    }

    #[test]
    fn bandwidth_is_found_over_whole_pieces() {
        let reader = Reader::new(Arc::new(Pool::new(2)), PIECE as u64 * 5 / 2).expect("there is memory");
        let passes = [reader.pass(), reader.pass()];
        let found = reader.summary(&passes).expect("two passes");
        assert_eq!(found.buffer_bytes, 2 * PIECE as u64);
        let Summary { median, min, max } = found.gigabytes_per_second;
        assert!(0.0 < min && min <= median && median <= max && max.is_finite(), "{min} {median} {max}");
        assert!(reader.summary(&[]).is_none());
    }
}
