//! A completion's place in its grammar.

use llguidance::Matcher;
use toktrie::SimpleVob;

use super::compile::shorten;

/// Follows a completion through its grammar. A clone shares nothing with it, so that what others do cannot be seen.
pub(crate) struct Follower(Matcher);

/// The grammar cannot go on: end the completion with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) String);

impl Follower {
    pub(super) fn new(matcher: Matcher) -> Self {
        Self(matcher)
    }

    /// Another completion at the same place.
    pub(crate) fn fork(&self) -> Self {
        Self(self.0.deep_clone())
    }

    /// Which tokens may follow; the model's end tokens are among them where the completion may end.
    pub(crate) fn allowed(&mut self) -> Result<SimpleVob, Refusal> {
        self.0.compute_mask_or_eos().map_err(|error| Refusal(shorten(&error.to_string())))
    }

    /// The completion goes on with `token`.
    pub(crate) fn push(&mut self, token: u32) -> Result<(), Refusal> {
        self.0.consume_token(token).map_err(|error| Refusal(shorten(&error.to_string())))
    }

    /// Whether nothing can follow.
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_stopped() && !self.0.is_error()
    }

    /// Whether the completion may end here.
    pub(crate) fn may_end(&mut self) -> bool {
        self.is_finished() || self.0.is_accepting().unwrap_or(false)
    }
}
