//! Who asks, as its meter knows him; and what one of his requests is charged.

use std::fmt;
use std::sync::Arc;

use tramontane_cluster::engine::Tenant;
use tramontane_cluster::registry::accounts::{KeyRecord, Usage};

use super::{Meter, Standing};
use crate::error::ApiError;

/// A key and its meter; or nobody in particular, where no keys are asked for. Cheap to clone.
#[derive(Clone, Default)]
pub struct Account(Option<(Arc<Meter>, Arc<KeyRecord>)>);

impl Account {
    pub(super) fn of(meter: Arc<Meter>, key: Arc<KeyRecord>) -> Self {
        Self(Some((meter, key)))
    }

    /// What an engine calls him.
    pub fn tenant(&self) -> Tenant {
        Tenant(self.0.as_ref().map(|(_, key)| key.name.clone()))
    }

    /// Whether he may ask `model`.
    pub(crate) fn may_ask(&self, model: &str) -> bool {
        self.0.as_ref().is_none_or(|(_, key)| key.limits.allows(model))
    }

    /// Lets in a request for `model`: it counts from now on, whatever becomes of it.
    pub(crate) fn begin(&self, model: &str) -> Result<(), ApiError> {
        self.0.as_ref().map_or(Ok(()), |(meter, key)| meter.begin(key, model))
    }

    /// Reserves `tokens` for a request for `model`.
    pub(crate) fn reserve(&self, model: &str, tokens: u64) -> Result<Charge, ApiError> {
        if let Some((meter, key)) = &self.0 {
            meter.reserve(key, tokens)?;
        }
        Ok(Charge { account: self.clone(), model: model.into(), reserved: tokens, used: None })
    }

    /// How he stands to his limits.
    pub(crate) fn standing(&self) -> Standing {
        self.0.as_ref().map_or_else(Standing::default, |(meter, key)| meter.standing(key))
    }
}

impl fmt::Debug for Account {
    /// Without what is known of the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Account" } else { "Account(nobody)" })
    }
}

/// What one request is charged. It is settled when this is dropped, however the request ends.
#[derive(Debug)]
pub(crate) struct Charge {
    account: Account,
    model: Arc<str>,
    reserved: u64,
    used: Option<Usage>,
}

impl Charge {
    /// So many tokens the request has used so far; before this is said it has used nothing, and does not count.
    pub(crate) fn used(&mut self, prompt: usize, completion: usize) {
        let (prompt_tokens, completion_tokens) = (prompt as u64, completion as u64);
        self.used = Some(Usage { requests: 1, prompt_tokens, completion_tokens });
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some((meter, key)) = &self.account.0 {
            meter.settle(key, &self.model, self.reserved, self.used);
        }
    }
}
