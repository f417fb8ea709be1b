//! Which pieces a text falls into: symbols, at first characters and user-defined pieces, are merged two by two, always the pair
//! whose merged piece has the highest score, of equal ones the leftmost, until no two neighbours make a piece.
//!
//! The pairs wait in a heap, so a text of n characters takes O(n log n). Source: sentencepiece, `src/bpe_model.cc`.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::{Kind, Lexicon};

/// A stretch of the text; empty once its left neighbour has swallowed it.
struct Symbol {
    begin: usize,
    end: usize,
    left: Option<usize>,
    right: Option<usize>,
    /// A user-defined piece: it never merges.
    frozen: bool,
}

/// Two neighbours that make a piece.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// The piece's length in bytes. One of the two has merged elsewhere meanwhile if theirs is another.
    bytes: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

struct Merging<'a> {
    text: &'a str,
    lexicon: &'a Lexicon,
    symbols: Vec<Symbol>,
    /// At most one pair a character, and two a merge.
    agenda: BinaryHeap<Pair>,
    /// Where unused pieces come apart again: after how many bytes.
    seams: HashMap<&'a str, usize>,
}

/// The pieces that `text` falls into, spaces escaped. They are the lexicon's, or single characters that it lacks.
pub(super) fn segment<'a>(text: &'a str, lexicon: &'a Lexicon) -> Vec<&'a str> {
    let symbols = symbols(text, lexicon);
    let mut merging = Merging { text, lexicon, symbols, agenda: BinaryHeap::new(), seams: HashMap::new() };
    for right in 1..merging.symbols.len() {
        merging.consider(right - 1, right);
    }
    while let Some(pair) = merging.agenda.pop() {
        merging.merge(&pair);
    }
    merging.pieces()
}

/// The text's characters, and user-defined pieces wherever one stands: leftmost first, of several the longest.
fn symbols(text: &str, lexicon: &Lexicon) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
    let mut begin = 0;
    while let Some(first) = text[begin..].chars().next() {
        let user_defined = lexicon.user_defined.longest_at(&text[begin..]);
        let end = begin + user_defined.map_or(first.len_utf8(), |(bytes, _)| bytes);
        let index = symbols.len();
        let right = Some(index + 1).filter(|_| end < text.len());
        symbols.push(Symbol { begin, end, left: index.checked_sub(1), right, frozen: user_defined.is_some() });
        begin = end;
    }
    symbols
}

impl<'a> Merging<'a> {
    /// Puts two neighbours on the agenda if they make a piece.
    fn consider(&mut self, left: usize, right: usize) {
        let (a, b) = (&self.symbols[left], &self.symbols[right]);
        let bytes = b.end - a.begin;
        if a.frozen || b.frozen || bytes > self.lexicon.longest {
            return;
        }
        let piece = &self.text[a.begin..b.end];
        let Some(entry) = self.lexicon.entries.get(piece) else { return };
        self.agenda.push(Pair { score: entry.score, left, right, bytes });
        if entry.kind == Kind::Unused {
            self.seams.insert(piece, a.end - a.begin);
        }
    }

    /// Makes a pair one symbol, if it is still there.
    fn merge(&mut self, pair: &Pair) {
        let (a, b) = (&self.symbols[pair.left], &self.symbols[pair.right]);
        let gone = a.begin == a.end || b.begin == b.end || b.end - a.begin != pair.bytes;
        if gone {
            return;
        }
        let (end, beyond) = (b.end, b.right);
        self.symbols[pair.right].begin = end;
        self.symbols[pair.left].end = end;
        self.symbols[pair.left].right = beyond;
        if let Some(before) = self.symbols[pair.left].left {
            self.consider(before, pair.left);
        }
        if let Some(beyond) = beyond {
            self.symbols[beyond].left = Some(pair.left);
            self.consider(pair.left, beyond);
        }
    }

    /// What is left, unused pieces taken apart.
    fn pieces(&self) -> Vec<&'a str> {
        let mut pieces = Vec::new();
        let mut apart = Vec::new();
        for symbol in self.symbols.iter().filter(|symbol| symbol.begin < symbol.end) {
            apart.push(&self.text[symbol.begin..symbol.end]);
            while let Some(piece) = apart.pop() {
                match self.seams.get(piece) {
                    Some(&seam) => apart.extend([&piece[seam..], &piece[..seam]]),
                    None => pieces.push(piece),
                }
            }
        }
        pieces
    }
}
