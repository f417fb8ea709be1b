//! A set of spellings, to find the longest that begins at a place.

use std::collections::{BTreeMap, HashMap};

/// Spellings with their ids.
#[derive(Debug, Default)]
pub(super) struct Spellings {
    ids: HashMap<String, u32>,
    /// By first character, the lengths in bytes, longest first: a place costs one lookup a length, not one a spelling.
    lengths: BTreeMap<char, Vec<usize>>,
}

impl Spellings {
    /// The longest spelling that `text` begins with: its length in bytes and its id.
    pub(super) fn longest_at(&self, text: &str) -> Option<(usize, u32)> {
        let lengths = self.lengths.get(&text.chars().next()?)?;
        let found = |&length: &usize| Some((length, *self.ids.get(text.get(..length)?)?));
        lengths.iter().find_map(found)
    }
}

impl FromIterator<(String, u32)> for Spellings {
    /// Empty spellings stand nowhere and are left out; of several ids for one spelling the first counts.
    fn from_iter<I: IntoIterator<Item = (String, u32)>>(spellings: I) -> Self {
        let mut set = Self::default();
        for (text, id) in spellings {
            let Some(first) = text.chars().next() else { continue };
            set.lengths.entry(first).or_default().push(text.len());
            set.ids.entry(text).or_insert(id);
        }
        for lengths in set.lengths.values_mut() {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_counts() {
        let texts = ["<a>", "<", "", "é", "<ab", "<a>"];
        let set: Spellings = texts.iter().zip(0..).map(|(text, id)| ((*text).to_owned(), id)).collect();
        let at = |text| set.longest_at(text);
        assert_eq!((at("<a>b"), at("<ab>"), at("<é")), (Some((3, 0)), Some((3, 4)), Some((1, 1))));
        assert_eq!((at("éa"), at(""), at("a<")), (Some((2, 3)), None, None));
    }
}
