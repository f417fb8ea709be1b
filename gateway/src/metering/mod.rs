//! Metering: which keys there are, what each may still ask for, and what it has used.
//!
//! A request meets its [`Meter`] four times: who sends it is found out ([`Meter::authenticate`]), it is let in ([`Account::begin`]), its
//! tokens are reserved ([`Account::reserve`]), and when it ends, however it does, its [`Charge`] is dropped, which counts what it used.
//! [`exchange`] brings that to the registry.

mod account;
mod book;
mod bucket;
mod exchange;
mod limiter;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use tramontane_cluster::registry::accounts::{Day, KeyRecord, KeyRecords, Usage, UsageId, utc_now};

pub use account::Account;
pub(crate) use account::Charge;
pub(crate) use bucket::Window;
pub(crate) use limiter::Standing;

use crate::error::ApiError;
use crate::frontdoor::alphanumeric;
use crate::keys::Keys;
use book::Book;
use limiter::{Exceeded, Limiter};

/// Letters of this process's name among those that write usage.
const WRITER_LETTERS: usize = 16;

/// Who is asked for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// Everybody.
    Always,
    /// Nobody, until there is a key; from then on everybody, also when that key is revoked.
    OnceThereIsAKey,
}

/// A front door's meter.
pub struct Meter {
    /// The keys of its own file.
    own: Keys,
    state: Mutex<State>,
}

struct State {
    asks: Asks,
    keys: Arc<Keys>,
    limiter: Limiter,
    book: Book,
}

impl Meter {
    /// A meter that knows `own`, the keys of a file, and will learn those of a registry.
    pub fn new(own: Keys, asks: Asks) -> Arc<Self> {
        let book = Book::new(alphanumeric(WRITER_LETTERS).into());
        let state = State { asks, keys: Arc::default(), limiter: Limiter::default(), book };
        let meter = Arc::new(Self { own, state: Mutex::new(state) });
        meter.learn(&KeyRecords::new());
        meter
    }

    /// One of a front door that everybody may use.
    pub fn open() -> Arc<Self> {
        Self::new(Keys::default(), Asks::OnceThereIsAKey)
    }

    /// Whether only who has a key may ask.
    pub fn asks(&self) -> bool {
        self.state().asks == Asks::Always
    }

    /// These are the registry's keys from now on.
    pub fn learn(&self, records: &KeyRecords) {
        let keys = self.own.with(records);
        let names = keys.names();
        let is_known = |name: &str| names.contains(name);
        let mut state = self.state();
        if !keys.is_empty() {
            state.asks = Asks::Always;
        }
        state.limiter.keep(is_known);
        state.book.keep(is_known);
        // What was used before this process was there is read before anybody asks for it.
        for key in keys.iter().filter(|key| key.limits.monthly_tokens.is_some()) {
            if !state.book.knows(&key.name) {
                state.book.wants(&key.name);
            }
        }
        state.keys = Arc::new(keys);
    }

    /// Who sends `headers`.
    ///
    /// # Errors
    /// [`ApiError::MissingKey`], [`ApiError::InvalidKey`], [`ApiError::ExpiredKey`].
    pub fn authenticate(self: &Arc<Self>, headers: &HeaderMap) -> Result<Account, ApiError> {
        let keys = {
            let state = self.state();
            match state.asks {
                Asks::OnceThereIsAKey => return Ok(Account::default()),
                Asks::Always => state.keys.clone(),
            }
        };
        let key = keys.authenticate(headers)?;
        if key.limits.expires.is_some_and(|end| utc_now() >= end) {
            return Err(ApiError::ExpiredKey);
        }
        Ok(Account::of(self.clone(), key.clone()))
    }

    /// Lets in a request for `model`, and counts it.
    fn begin(&self, key: &KeyRecord, model: &str) -> Result<(), ApiError> {
        if !key.limits.allows(model) {
            return Err(ApiError::ModelNotAllowed { model: model.to_owned() });
        }
        let (now, seconds) = (Instant::now(), utc_now());
        let today = Day::at(seconds);
        let mut state = self.state();
        if let Some(limit) = key.limits.monthly_tokens {
            state.book.wants(&key.name);
            if state.book.used(&key.name, today) >= limit.get() {
                let wait = today.month().next().first().start().saturating_sub(seconds);
                let retry_after = Duration::from_secs(wait);
                return Err(ApiError::QuotaSpent { limit: limit.get(), retry_after });
            }
        }
        state.limiter.request(key, now).map_err(limited)
    }

    fn reserve(&self, key: &KeyRecord, tokens: u64) -> Result<(), ApiError> {
        self.state().limiter.reserve(key, tokens, Instant::now()).map_err(limited)
    }

    /// A request that `reserved` tokens has ended; `None`: before an engine did anything for it.
    fn settle(&self, key: &KeyRecord, model: &Arc<str>, reserved: u64, used: Option<Usage>) {
        let tokens = used.map_or(0, |used| used.tokens());
        let mut state = self.state();
        state.limiter.settle(key, reserved, tokens, Instant::now());
        if let Some(used) = used {
            let id = UsageId { key: key.name.clone(), day: Day::at(utc_now()), model: model.clone() };
            state.book.record(id, used);
        }
    }

    fn standing(&self, key: &KeyRecord) -> Standing {
        self.state().limiter.standing(key, Instant::now())
    }

    /// Nothing that is done under the lock can leave it half done.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn limited(Exceeded { what, limit, wait }: Exceeded) -> ApiError {
    ApiError::RateLimited { what, limit, retry_after: wait }
}
