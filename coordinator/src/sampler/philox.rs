//! Random numbers without state: Philox-4x32-10, a hash of (seed, position, choice).
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC11, section 3.3 and table 1.

/// A round's multipliers, for words 0 and 2.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What a round adds to the key: the fractions of the golden ratio and of √3.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// A number of [0, 1), a multiple of 2⁻⁵³, for absolute position `position` of choice `choice` of a request that draws with `seed`.
///
/// Key = (low, high word of the seed); counter = (low, high word of the position, choice, 0); the result's first word is the
/// high half of 64 bits, the second word the low half, and the upper 53 bits are used.
pub fn uniform(seed: u64, position: u64, choice: u32) -> f64 {
    let [position_low, position_high] = halves(position);
    let [first, second, ..] = philox4x32_10([position_low, position_high, choice, 0], halves(seed));
    let bits = u64::from(first) << 32 | u64::from(second);
    (bits >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let [low_0, high_0] = halves(u64::from(MULTIPLIERS[0]) * u64::from(counter[0]));
        let [low_1, high_1] = halves(u64::from(MULTIPLIERS[1]) * u64::from(counter[2]));
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// Low word, high word.
fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with their library Random123 (`kat_vectors`, "philox4x32 10").
    #[test]
    fn published_known_answers() {
        let zeros = philox4x32_10([0; 4], [0; 2]);
        assert_eq!(zeros, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox4x32_10([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn uniform_is_the_upper_53_bits() {
        assert_eq!(uniform(0, 0, 0), (0x6627_e8d5_e169_c58d_u64 >> 11) as f64 / 2_f64.powi(53));
    }

    #[test]
    fn all_bits_of_seed_position_and_choice_count() {
        let base = uniform(1, 1, 1);
        for bit in 0..64 {
            assert_ne!(uniform(1 ^ 1 << bit, 1, 1), base, "seed bit {bit}");
            assert_ne!(uniform(1, 1 ^ 1 << bit, 1), base, "position bit {bit}");
            assert!(bit >= 32 || uniform(1, 1, 1 ^ 1 << bit) != base, "choice bit {bit}");
        }
        assert_ne!(uniform(1, 2, 0), uniform(2, 1, 0));
    }

    #[test]
    fn numbers_are_spread_over_the_unit_interval() {
        let mut tenths = [0_u32; 10];
        for position in 0..10_000 {
            tenths[(uniform(42, position, 0) * 10.0) as usize] += 1;
        }
        // The standard deviation is √(10000 · 0.1 · 0.9) = 30; the numbers are fixed, so five of them never flake.
        assert!(tenths.iter().all(|n| n.abs_diff(1_000) < 150), "{tenths:?}");
    }
}
