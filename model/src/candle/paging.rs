//! Which queries of a step attend together, and to which slots of the cache: pure.
//!
//! candle multiplies whole matrices, so queries are put in groups of equal shape: `segments` × `queries` over `keys` positions each. A
//! segment is some consecutive rows of one sequence; shorter ones are filled up with slots that the mask hides.

use tramontane_kernels::{KV_BLOCK, QueryRow};

/// Queries of a segment, at most: what a long prompt is cut into.
const MAX_QUERIES: usize = 128;
/// Positions that a group gathers, at most, unless one segment alone has more.
const MAX_GATHERED: usize = 1 << 16;

/// Queries that attend together.
#[derive(Debug, PartialEq)]
pub(super) struct Group {
    /// The queries, by their index in `kept`: segments × queries.
    pub(super) rows: Vec<u32>,
    pub(super) segments: usize,
    pub(super) queries: usize,
    /// Positions that each segment gathers.
    pub(super) keys: usize,
    /// Slots of the cache: segments × keys.
    pub(super) slots: Vec<u32>,
    /// 0 where a query sees a key, −∞ where not: segments × queries × keys.
    pub(super) mask: Vec<f32>,
}

impl Group {
    /// Whether every query sees every key, so that the mask says nothing.
    pub(super) fn sees_all(&self) -> bool {
        self.mask.iter().all(|&mask| mask == 0.0)
    }
}

/// Where the key and value of `row` stand in the cache.
pub(super) fn slot(row: &QueryRow<'_>) -> u32 {
    slot_of(row, row.position)
}

fn slot_of(row: &QueryRow<'_>, position: usize) -> u32 {
    row.blocks[position / KV_BLOCK] * KV_BLOCK as u32 + (position % KV_BLOCK) as u32
}

/// Some consecutive rows of one sequence.
struct Segment<'a> {
    /// The first, by its index in `kept`.
    first: usize,
    rows: Vec<QueryRow<'a>>,
    /// The first and the last position that one of them sees.
    seen: (usize, usize),
}

impl Segment<'_> {
    fn keys(&self) -> usize {
        self.seen.1 - self.seen.0 + 1
    }
}

/// The groups of those of `rows` that are `kept`; `window` as in attention.
pub(super) fn groups(rows: &[QueryRow<'_>], kept: &[usize], window: Option<usize>) -> Vec<Group> {
    let mut segments = segments(rows, kept, window);
    segments.sort_by_key(|segment| (segment.rows.len(), segment.keys()));
    let mut groups: Vec<Vec<Segment<'_>>> = Vec::new();
    for segment in segments {
        let fits = |group: &Vec<Segment<'_>>| {
            group[0].rows.len() == segment.rows.len() && (group.len() + 1) * segment.keys() <= MAX_GATHERED
        };
        match groups.last_mut() {
            Some(group) if fits(group) => group.push(segment),
            _ => groups.push(vec![segment]),
        }
    }
    groups.iter().map(|segments| group(segments, window)).collect()
}

fn segments<'a>(rows: &[QueryRow<'a>], kept: &[usize], window: Option<usize>) -> Vec<Segment<'a>> {
    let mut segments = Vec::new();
    let mut first = 0;
    for sequence in kept.chunk_by(|&a, &b| std::ptr::eq(rows[a].blocks, rows[b].blocks)) {
        for piece in sequence.chunks(MAX_QUERIES) {
            let rows: Vec<QueryRow<'a>> = piece.iter().map(|&row| rows[row]).collect();
            let start = rows.iter().map(|row| start_of(row, window)).min().unwrap_or(0);
            let end = rows.iter().map(|row| row.position).max().unwrap_or(0);
            segments.push(Segment { first, rows, seen: (start, end) });
            first += piece.len();
        }
    }
    segments
}

/// The first position that `row` sees.
fn start_of(row: &QueryRow<'_>, window: Option<usize>) -> usize {
    window.map_or(0, |window| (row.position + 1).saturating_sub(window))
}

/// The group of `segments`, of which the last has the most keys.
fn group(segments: &[Segment<'_>], window: Option<usize>) -> Group {
    let keys = segments.iter().map(Segment::keys).max().unwrap_or(0);
    let queries = segments.first().map_or(0, |segment| segment.rows.len());
    let mut group =
        Group { rows: Vec::new(), segments: segments.len(), queries, keys, slots: Vec::new(), mask: Vec::new() };
    for segment in segments {
        group.rows.extend((segment.first..segment.first + queries).map(|row| row as u32));
        let first = &segment.rows[0];
        let slots = (segment.seen.0..=segment.seen.1).map(|position| slot_of(first, position));
        // Any slot will do where the mask hides it.
        let filler = std::iter::repeat_n(0, keys - segment.keys());
        group.slots.extend(slots.chain(filler));
        for row in &segment.rows {
            let sees = start_of(row, window)..=row.position;
            let positions = segment.seen.0..segment.seen.0 + keys;
            group.mask.extend(positions.map(|position| if sees.contains(&position) { 0.0 } else { f32::NEG_INFINITY }));
        }
    }
    group
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kept row stands in one group once, and sees exactly the positions that it should, at their slots.
    fn check(rows: &[QueryRow<'_>], kept: &[usize], window: Option<usize>) {
        let mut seen = vec![false; kept.len()];
        for group in groups(rows, kept, window) {
            assert_eq!(group.rows.len(), group.segments * group.queries);
            assert_eq!(group.slots.len(), group.segments * group.keys);
            assert_eq!(group.mask.len(), group.rows.len() * group.keys);
            for (i, (&row, mask)) in group.rows.iter().zip(group.mask.chunks(group.keys)).enumerate() {
                assert!(!std::mem::replace(&mut seen[row as usize], true), "row {row} twice");
                let row = &rows[kept[row as usize]];
                let slots = &group.slots[i / group.queries * group.keys..][..group.keys];
                let visible: Vec<u32> =
                    slots.iter().zip(mask).filter(|(_, mask)| **mask == 0.0).map(|(slot, _)| *slot).collect();
                let expected: Vec<u32> =
                    (start_of(row, window)..=row.position).map(|position| slot_of(row, position)).collect();
                assert_eq!(visible, expected);
            }
        }
        assert!(seen.into_iter().all(|seen| seen));
    }

    #[test]
    fn every_row_sees_what_it_should() {
        let blocks: Vec<Vec<u32>> = (0..4).map(|s| (0..12).map(|b| 50 * s + 7 * b + 1).collect()).collect();
        let rows = |of: &[(usize, std::ops::Range<usize>)]| -> Vec<QueryRow<'_>> {
            let row = |s: usize, position| QueryRow { position, blocks: &blocks[s] };
            of.iter().flat_map(|(s, range)| range.clone().map(move |position| row(*s, position))).collect()
        };
        for window in [None, Some(1), Some(40), Some(1000)] {
            let decode = rows(&[(0, 5..6), (1, 300..301), (2, 31..32), (3, 0..1)]);
            check(&decode, &[0, 1, 2, 3], window);
            check(&decode, &[1, 3], window);
            let mixed = rows(&[(0, 0..290), (1, 17..18), (2, 100..140), (3, 9..10)]);
            let all: Vec<usize> = (0..mixed.len()).collect();
            check(&mixed, &all, window);
            check(&mixed, &[0, 3, 288, 289, 290, 330, 331], window);
            check(&mixed, &[], window);
        }
    }

    #[test]
    fn sequences_that_decode_share_a_group_until_it_is_full() {
        let blocks: Vec<u32> = (0..1024).collect();
        let other = blocks.clone();
        let rows = [QueryRow { position: 9, blocks: &blocks }, QueryRow { position: 12, blocks: &other }];
        let shared = groups(&rows, &[0, 1], None);
        assert_eq!((shared.len(), shared[0].segments, shared[0].queries, shared[0].keys), (1, 2, 1, 13));
        let long = rows.map(|row| QueryRow { position: 32 * 1024 - 1, ..row });
        assert_eq!(groups(&long, &[0, 1], None).len(), 1);
        let third = [long[0], long[1], QueryRow { position: 32 * 1024 - 1, blocks: &blocks[..] }];
        assert_eq!(groups(&third, &[0, 1, 2], None).len(), 2);
    }
}
