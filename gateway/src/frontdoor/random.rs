//! Randomness for names and seeds: unguessable enough to be unique, no secret.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A random number. The standard library seeds its hasher from the system's randomness once a thread, and steps it for each new one.
pub(super) fn number() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// `length` random letters and digits.
pub fn alphanumeric(length: usize) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    /// Characters taken from one number: 62^10 < 2^64.
    const EACH: usize = 10;
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut rest = number();
        for _ in 0..EACH.min(length - text.len()) {
            text.push(char::from(ALPHABET[(rest % 62) as usize]));
            rest /= 62;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_differ_and_have_the_length_asked_for() {
        let names: BTreeSet<String> = (0..1000).map(|_| alphanumeric(29)).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == 29 && name.chars().all(|c| c.is_ascii_alphanumeric())));
        assert_eq!(alphanumeric(0), "");
    }
}
