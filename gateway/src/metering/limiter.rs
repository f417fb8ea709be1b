//! Requests and tokens a minute, by key. Pure: the clock is an argument.
//!
//! A request is taken when it comes, whatever becomes of it. Tokens are taken when the prompt has been counted, with those that were asked
//! for by number; at its end a request has what it has used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tramontane_cluster::registry::accounts::{KeyLimits, KeyRecord};

use super::bucket::{Bucket, Window};
use crate::error::PerMinute;

/// Of each key that has asked and is still known: as many at most as there are keys.
#[derive(Debug, Default)]
pub(super) struct Limiter(BTreeMap<Arc<str>, Buckets>);

#[derive(Debug)]
struct Buckets {
    requests: Bucket,
    tokens: Bucket,
}

/// How a key stands to its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Requests, where they are limited.
    pub(crate) requests: Option<Window>,
    /// Tokens, where they are limited.
    pub(crate) tokens: Option<Window>,
}

/// What there is too little of, and when there will be enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exceeded {
    pub(super) what: PerMinute,
    pub(super) limit: u32,
    pub(super) wait: Duration,
}

impl Limiter {
    /// Takes a request.
    pub(super) fn request(&mut self, key: &KeyRecord, now: Instant) -> Result<(), Exceeded> {
        let Some(limit) = key.limits.rpm else { return Ok(()) };
        let taken = self.of(key, now).requests.take(1, limit.get(), now);
        taken.map_err(|wait| Exceeded { what: PerMinute::Requests, limit: limit.get(), wait })
    }

    /// Takes tokens.
    pub(super) fn reserve(&mut self, key: &KeyRecord, tokens: u64, now: Instant) -> Result<(), Exceeded> {
        let Some(limit) = key.limits.tpm else { return Ok(()) };
        let taken = self.of(key, now).tokens.take(tokens, limit.get(), now);
        taken.map_err(|wait| Exceeded { what: PerMinute::Tokens, limit: limit.get(), wait })
    }

    /// Of the tokens `reserved`, `used` were used, or more.
    pub(super) fn settle(&mut self, key: &KeyRecord, reserved: u64, used: u64, now: Instant) {
        if let (Some(limit), Some(buckets)) = (key.limits.tpm, self.0.get_mut(&key.name)) {
            buckets.tokens.settle(reserved, used, limit.get(), now);
        }
    }

    /// How `key` stands.
    pub(super) fn standing(&mut self, key: &KeyRecord, now: Instant) -> Standing {
        let KeyLimits { rpm, tpm, .. } = key.limits;
        if rpm.is_none() && tpm.is_none() {
            return Standing::default();
        }
        let buckets = self.of(key, now);
        Standing {
            requests: rpm.map(|limit| buckets.requests.window(limit.get(), now)),
            tokens: tpm.map(|limit| buckets.tokens.window(limit.get(), now)),
        }
    }

    /// Forgets those that are not known any more.
    pub(super) fn keep(&mut self, is_known: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| is_known(name));
    }

    fn of(&mut self, key: &KeyRecord, now: Instant) -> &mut Buckets {
        let full = || Buckets { requests: Bucket::new(now), tokens: Bucket::new(now) };
        self.0.entry(key.name.clone()).or_insert_with(full)
    }
}

#[cfg(test)]
mod tests {
    use tramontane_cluster::registry::accounts::KeyHash;

    use super::*;

    fn key(name: &str, rpm: u32, tpm: u32) -> KeyRecord {
        let limits = KeyLimits { rpm: rpm.try_into().ok(), tpm: tpm.try_into().ok(), ..KeyLimits::default() };
        KeyRecord { name: name.into(), sha256: KeyHash([0; 32]), limits, created: 0 }
    }

    #[test]
    fn each_key_has_its_own_limits_and_none_is_none() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let (one, two, free) = (key("one", 1, 10), key("two", 2, 0), key("free", 0, 0));
        assert_eq!(limiter.request(&one, now), Ok(()));
        let wait = Duration::from_secs(60);
        assert_eq!(limiter.request(&one, now), Err(Exceeded { what: PerMinute::Requests, limit: 1, wait }));
        for _ in 0..2 {
            assert_eq!(limiter.request(&two, now), Ok(()));
        }
        assert!(limiter.request(&two, now).is_err());
        for _ in 0..1000 {
            assert_eq!((limiter.request(&free, now), limiter.reserve(&free, 1 << 40, now)), (Ok(()), Ok(())));
        }
        assert_eq!(limiter.standing(&free, now), Standing::default());
        assert!(limiter.standing(&two, now).tokens.is_none());
        assert_eq!(limiter.0.len(), 2, "who has no limits takes no memory");
    }

    #[test]
    fn what_was_reserved_and_not_used_comes_back_and_what_was_used_beyond_it_is_owed() {
        let (mut limiter, now, key) = (Limiter::default(), Instant::now(), key("k", 0, 100));
        let remaining = |limiter: &mut Limiter| limiter.standing(&key, now).tokens.map(|window| window.remaining);
        assert_eq!(limiter.reserve(&key, 80, now), Ok(()));
        let refused = limiter.reserve(&key, 30, now).expect_err("too much");
        assert_eq!((refused.what, refused.wait), (PerMinute::Tokens, Duration::from_secs(6)));
        limiter.settle(&key, 80, 10, now);
        assert_eq!(remaining(&mut limiter), Some(90));
        assert_eq!(limiter.reserve(&key, 10, now), Ok(()));
        limiter.settle(&key, 10, 130, now);
        assert_eq!(remaining(&mut limiter), Some(0));
        assert!(limiter.reserve(&key, 1, now + Duration::from_secs(23)).is_err(), "40 are owed, and come in 24 s");
        assert_eq!(limiter.reserve(&key, 1, now + Duration::from_secs(25)), Ok(()));
    }

    #[test]
    fn keys_that_are_gone_are_forgotten() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        for name in ["a", "b"] {
            assert_eq!(limiter.request(&key(name, 1, 0), now), Ok(()));
        }
        limiter.keep(|name| name == "a");
        assert!(limiter.request(&key("a", 1, 0), now).is_err());
        assert_eq!(limiter.request(&key("b", 1, 0), now), Ok(()), "a new key of the name begins anew");
    }
}
