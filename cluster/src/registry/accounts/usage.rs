//! What keys have used: a sum for each key, day and model, and how one is added to. Pure.

use std::ops::AddAssign;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Day;

/// Records of one answer, at most.
pub const MAX_ROWS: usize = 50_000;
/// Writers that a record remembers, at most: the last ones.
const MAX_WRITERS: usize = 64;

/// Requests and tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Requests that an engine took.
    pub requests: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
}

impl Usage {
    /// All tokens.
    pub const fn tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, more: Self) {
        self.requests = self.requests.saturating_add(more.requests);
        self.prompt_tokens = self.prompt_tokens.saturating_add(more.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(more.completion_tokens);
    }
}

/// Whose usage, when, and of what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsageId {
    /// The key's name.
    pub key: Arc<str>,
    /// The day on which the requests ended.
    pub day: Day,
    /// The model.
    pub model: Arc<str>,
}

/// Usage to be added to a record. However often it is added, it counts once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageEntry {
    /// The record.
    pub id: UsageId,
    /// Who adds: a name that no other process has, nor had.
    pub writer: Arc<str>,
    /// Its number: to each record a writer adds one entry after the other, in ascending order.
    pub number: u64,
    /// How much.
    pub usage: Usage,
}

/// Which records are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageQuery {
    /// Those of one key; `None`: of all.
    pub key: Option<Arc<str>>,
    /// The first day.
    pub from: Day,
    /// The last day.
    pub to: Day,
}

impl UsageQuery {
    /// Whether `id` is one of them.
    pub fn covers(&self, id: &UsageId) -> bool {
        self.key.as_ref().is_none_or(|key| *key == id.key) && (self.from..=self.to).contains(&id.day)
    }
}

/// What stands in the registry: a sum, and up to which of its entries each writer's are in it. So an entry whose writing had an outcome that
/// nobody heard of can be added again, and counts once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    /// The sum.
    #[serde(flatten)]
    pub sum: Usage,
    /// The last writers, each with the number of its last entry; who wrote last stands last.
    writers: Vec<(Arc<str>, u64)>,
}

impl UsageRecord {
    /// The record with `entry` in it; `None` when it is in it already.
    #[must_use]
    pub fn after(mut self, entry: &UsageEntry) -> Option<Self> {
        let place = self.writers.iter().position(|(writer, _)| *writer == entry.writer);
        if let Some(place) = place {
            if self.writers[place].1 >= entry.number {
                return None;
            }
            self.writers.remove(place);
        }
        self.sum += entry.usage;
        self.writers.push((entry.writer.clone(), entry.number));
        let forgotten = self.writers.len().saturating_sub(MAX_WRITERS);
        self.writers.drain(..forgotten);
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(writer: &str, number: u64, tokens: u64) -> UsageEntry {
        UsageEntry {
            id: UsageId { key: "k".into(), day: Day::at(0), model: "m".into() },
            writer: writer.into(),
            number,
            usage: Usage { requests: 1, prompt_tokens: tokens, completion_tokens: 2 * tokens },
        }
    }

    #[test]
    fn a_record_is_short_json() {
        let record = UsageRecord::default().after(&entry("w", 3, 5)).expect("it is new");
        let text = r#"{"requests":1,"prompt_tokens":5,"completion_tokens":10,"writers":[["w",3]]}"#;
        assert_eq!(serde_json::to_string(&record).expect("JSON"), text);
        assert_eq!(serde_json::from_str::<UsageRecord>(text).expect("a record"), record);
    }

    #[test]
    fn the_writers_that_wrote_last_are_remembered() {
        let mut record = UsageRecord::default();
        for i in 0..=MAX_WRITERS {
            record = record.after(&entry(&format!("w{i}"), 1, 1)).expect("it is new");
        }
        assert_eq!(record.writers.len(), MAX_WRITERS);
        assert_eq!(record.clone().after(&entry("w1", 1, 1)), None, "still known");
        assert_eq!(record.sum.requests, MAX_WRITERS as u64 + 1);
    }

    proptest! {
        /// Each writer's entries in order, any of them again at any time later.
        #[test]
        fn every_entry_counts_once(steps in prop::collection::vec((0_usize..4, any::<prop::sample::Index>(), 0_u64..100), 0..60)) {
            let (mut record, mut written) = (UsageRecord::default(), vec![Vec::new(); 4]);
            let mut sum = 0;
            for (writer, again, tokens) in steps {
                let number = written[writer].len() as u64 + 1;
                let new = entry(&format!("w{writer}"), number, tokens);
                sum += new.usage.tokens();
                record = record.after(&new).expect("it is new");
                written[writer].push(new);
                let old = &written[writer][again.index(written[writer].len())];
                prop_assert_eq!(record.clone().after(old), None);
            }
            prop_assert_eq!(record.sum.tokens(), sum);
        }
    }
}
