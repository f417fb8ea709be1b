//! What keys have used and the registry has not taken yet, and what they have used this month as far as it is known. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tramontane_cluster::registry::accounts::{Day, Month, Usage, UsageEntry, UsageId};

/// Records that wait for the registry, at most: those of ten thousand keys for ten days without one.
const MAX_WAITING: usize = 100_000;

/// One front door's book.
#[derive(Debug)]
pub(super) struct Book {
    /// Who writes it: no other process has this name.
    writer: Arc<str>,
    /// The number of the last entry.
    last: u64,
    waiting: BTreeMap<UsageId, Waiting>,
    months: BTreeMap<Arc<str>, Known>,
    /// Keys whose month is to be read.
    unread: BTreeSet<Arc<str>>,
    /// Tokens for which there was no room.
    lost: u64,
}

/// What is to be added to one record.
#[derive(Debug, Default)]
struct Waiting {
    /// Given to the registry, which has not said yet that it took it. It may have: so it is never changed.
    sent: Option<(u64, Usage)>,
    /// What has come since.
    fresh: Usage,
}

/// Tokens of a month, as the registry said.
#[derive(Clone, Copy, Debug)]
struct Known {
    month: Month,
    tokens: u64,
}

impl Book {
    pub(super) fn new(writer: Arc<str>) -> Self {
        let (waiting, months, unread) = Default::default();
        Self { writer, last: 0, waiting, months, unread, lost: 0 }
    }

    /// A request has ended.
    pub(super) fn record(&mut self, id: UsageId, usage: Usage) {
        if self.waiting.len() >= MAX_WAITING && !self.waiting.contains_key(&id) {
            self.lost = self.lost.saturating_add(usage.tokens());
            return;
        }
        self.waiting.entry(id).or_default().fresh += usage;
    }

    /// Tokens that `key` has used in the month of `today`, as far as is known here.
    pub(super) fn used(&self, key: &Arc<str>, today: Day) -> u64 {
        let month = today.month();
        let known = self.months.get(key).filter(|known| known.month == month).map_or(0, |known| known.tokens);
        let begin = UsageId { key: key.clone(), day: month.first(), model: "".into() };
        let own = self.waiting.range(begin..).take_while(|(id, _)| id.key == *key && id.day <= month.last());
        own.fold(known, |sum, (_, Waiting { sent, fresh })| {
            let sent = sent.map_or(0, |(_, usage)| usage.tokens());
            sum.saturating_add(sent).saturating_add(fresh.tokens())
        })
    }

    /// What is to be added now, with what was given before and not taken.
    pub(super) fn entries(&mut self) -> Vec<UsageEntry> {
        let Self { writer, last, waiting, .. } = self;
        let entry = |(id, waiting): (&UsageId, &mut Waiting)| {
            let (number, usage) = *waiting.sent.get_or_insert_with(|| {
                *last += 1;
                (*last, std::mem::take(&mut waiting.fresh))
            });
            UsageEntry { id: id.clone(), writer: writer.clone(), number, usage }
        };
        waiting.iter_mut().map(entry).collect()
    }

    /// The registry has taken `entry`.
    pub(super) fn taken(&mut self, entry: &UsageEntry) {
        let Some(waiting) = self.waiting.get_mut(&entry.id) else { return };
        if waiting.sent.is_none_or(|(number, _)| number != entry.number) {
            return;
        }
        waiting.sent = None;
        if waiting.fresh == Usage::default() {
            self.waiting.remove(&entry.id);
        }
        let month = entry.id.day.month();
        if let Some(known) = self.months.get_mut(&entry.id.key).filter(|known| known.month == month) {
            known.tokens = known.tokens.saturating_add(entry.usage.tokens());
        }
    }

    /// Whether a month of `key` has been read.
    pub(super) fn knows(&self, key: &Arc<str>) -> bool {
        self.months.contains_key(key)
    }

    /// The month of `key` is to be read with the next exchange.
    pub(super) fn wants(&mut self, key: &Arc<str>) {
        self.unread.insert(key.clone());
    }

    /// Whose months are to be read.
    pub(super) fn wanted(&self) -> Vec<Arc<str>> {
        self.unread.iter().cloned().collect()
    }

    /// The registry says that `key` has used `tokens` in `month`, when it had taken all that was given to it.
    pub(super) fn read(&mut self, key: Arc<str>, month: Month, tokens: u64) {
        self.unread.remove(&key);
        self.months.insert(key, Known { month, tokens });
    }

    /// Forgets the months of keys that are not known any more. What they have used still waits.
    pub(super) fn keep(&mut self, is_known: impl Fn(&str) -> bool) {
        self.months.retain(|name, _| is_known(name));
        self.unread.retain(|name| is_known(name));
    }

    /// Tokens that had no room since the last time this was asked.
    pub(super) fn lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tramontane_cluster::registry::accounts::UsageRecord;

    use super::*;

    fn day(text: &str) -> Day {
        text.parse().expect("a day")
    }

    fn id(key: &str, on: &str, model: &str) -> UsageId {
        UsageId { key: key.into(), day: day(on), model: model.into() }
    }

    fn usage(tokens: u64) -> Usage {
        Usage { requests: 1, prompt_tokens: tokens, completion_tokens: 0 }
    }

    #[test]
    fn a_month_is_what_the_registry_said_and_what_it_has_not_heard_of() {
        let (mut book, key) = (Book::new("w".into()), Arc::from("a"));
        let today = day("2026-11-26");
        book.record(id("a", "2026-11-01", "m"), usage(1));
        book.record(id("a", "2026-11-26", "n"), usage(2));
        for (key, on) in [("a", "2026-10-31"), ("a", "2026-12-01"), ("aa", "2026-11-26"), ("Z", "2026-11-26")] {
            book.record(id(key, on, "m"), usage(100));
        }
        assert_eq!(book.used(&key, today), 3);
        book.read(key.clone(), today.month(), 1000);
        assert_eq!(book.used(&key, today), 1003);
        let entries = book.entries();
        book.record(id("a", "2026-11-26", "n"), usage(30));
        assert_eq!(book.used(&key, today), 1033, "what is under way counts once");
        entries.iter().for_each(|entry| book.taken(entry));
        entries.iter().for_each(|entry| book.taken(entry));
        assert_eq!(book.used(&key, today), 1033, "and what was taken too");
        assert_eq!(book.entries().len(), 1);
        assert_eq!(book.used(&key, day("2026-12-01")), 0, "a month begins with nothing");
    }

    #[test]
    fn there_is_room_for_so_many_records_and_what_had_none_is_told() {
        let mut book = Book::new("w".into());
        for i in 0..MAX_WAITING + 3 {
            book.record(id(&format!("k{i}"), "2026-11-26", "m"), usage(5));
        }
        book.record(id("k0", "2026-11-26", "m"), usage(5));
        assert_eq!((book.entries().len(), book.lost(), book.lost()), (MAX_WAITING, 15, 0));
    }

    proptest! {
        /// Whatever the registry takes, answers, or takes without an answer: in the end it has everything, once, and at no time
        /// is less known here than was used.
        #[test]
        fn nothing_is_lost_and_nothing_counts_twice(steps in prop::collection::vec((0_usize..3, 0_u64..100, 0_u8..3), 1..60)) {
            let (mut book, mut registry) = (Book::new("w".into()), BTreeMap::<UsageId, UsageRecord>::new());
            let (key, today, mut used) = (Arc::from("a"), day("2026-11-26"), 0);
            let exchange = |book: &mut Book, registry: &mut BTreeMap<UsageId, UsageRecord>, outcome: u8| {
                for entry in book.entries() {
                    if outcome == 0 {
                        continue;
                    }
                    let record = registry.entry(entry.id.clone()).or_default();
                    if let Some(next) = record.clone().after(&entry) {
                        *record = next;
                    }
                    if outcome == 2 {
                        book.taken(&entry);
                    }
                }
            };
            for (model, tokens, outcome) in steps {
                book.record(id("a", "2026-11-26", &format!("m{model}")), usage(tokens));
                used += tokens;
                exchange(&mut book, &mut registry, outcome);
                prop_assert!(book.used(&key, today) + registry.values().map(|r| r.sum.tokens()).sum::<u64>() >= used);
            }
            exchange(&mut book, &mut registry, 2);
            exchange(&mut book, &mut registry, 2);
            prop_assert_eq!(registry.values().map(|record| record.sum.tokens()).sum::<u64>(), used);
            prop_assert!(book.entries().is_empty());
        }
    }
}
