//! Covering arrays: few tests in which any few axes meet in all their values.

use std::collections::HashSet;

/// Values that an axis may have, at most: one of them and "none" fit in [`DIGIT`] bits.
const MAX_LEVEL: usize = 15;
const DIGIT: usize = 4;

/// Some axes' values, a digit an axis: the value plus 1, or 0 for an axis that is left out.
type Tuple = u64;

/// Rows of one value an axis (axis i has values below `levels[i]`) such that any `strength` axes meet in all their values.
/// Greedy: each row is the first of those with the most tuples that no earlier row has. With as many axes as `strength`,
/// or fewer, it is every combination.
pub(crate) fn covering(levels: &[usize], strength: usize) -> Vec<Vec<usize>> {
    assert!(levels.len() <= Tuple::BITS as usize / DIGIT && levels.iter().all(|&level| level <= MAX_LEVEL));
    let strength = strength.min(levels.len()) as u32;
    let subsets: Vec<u32> = (0..1 << levels.len()).filter(|subset: &u32| subset.count_ones() == strength).collect();
    let rows = product(levels);
    let tuples: Vec<Vec<Tuple>> =
        rows.iter().map(|row| subsets.iter().map(|&subset| tuple(row, subset)).collect()).collect();
    let mut missing: HashSet<Tuple> = tuples.iter().flatten().copied().collect();
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let gain = |row: &usize| tuples[*row].iter().filter(|tuple| missing.contains(tuple)).count();
        // `max_by_key` takes the last of equals.
        let Some(best) = (0..rows.len()).rev().max_by_key(gain) else { break };
        tuples[best].iter().for_each(|tuple| {
            missing.remove(tuple);
        });
        chosen.push(rows[best].clone());
    }
    chosen
}

/// Every combination of the axes' values.
fn product(levels: &[usize]) -> Vec<Vec<usize>> {
    levels.iter().fold(vec![Vec::new()], |rows, &level| {
        rows.iter().flat_map(|row| (0..level).map(|value| [row.as_slice(), &[value]].concat())).collect()
    })
}

/// The values that `row` has on the axes in `subset`, a bit an axis.
fn tuple(row: &[usize], subset: u32) -> Tuple {
    let digits = row.iter().enumerate().filter(|(axis, _)| subset >> axis & 1 == 1);
    digits.map(|(axis, &value)| (value as Tuple + 1) << (axis * DIGIT)).sum()
}

#[test]
fn any_two_axes_meet_in_all_their_values_in_few_rows() {
    let levels = [4, 2, 4, 2, 2, 1];
    let rows = covering(&levels, 2);
    for (i, j) in (0..levels.len()).flat_map(|j| (0..j).map(move |i| (i, j))) {
        let met: HashSet<_> = rows.iter().map(|row| (row[i], row[j])).collect();
        assert_eq!(met.len(), levels[i] * levels[j], "axes {i} and {j}");
    }
    assert!(rows.len() <= 20, "{} rows where 16 are the fewest possible", rows.len());
}

#[test]
fn all_axes_together_are_every_combination() {
    let all = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]];
    assert_eq!(covering(&[1, 2, 2], 3), all);
    assert_eq!(covering(&[1, 2, 2], 9), all);
}
