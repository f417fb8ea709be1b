//! The k largest of a row.

/// Writes the indices of the `k` largest `values` to `out`: by value descending, ties by the lower index. The values are not NaN.
///
/// # Panics
/// When `k` exceeds the number of values.
pub fn top_k(values: &[f32], k: usize, out: &mut Vec<u32>) {
    assert!(k <= values.len(), "{k} of {}", values.len());
    out.clear();
    for (i, &value) in values.iter().enumerate() {
        if out.len() == k && out.last().is_none_or(|&last| value <= values[last as usize]) {
            continue;
        }
        let at = out.partition_point(|&o| values[o as usize] >= value);
        out.truncate(k.saturating_sub(1));
        out.insert(at, i as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_stable_sort_cut_at_k() {
        for seed in 0..200u64 {
            let values: Vec<f32> = (0..40).map(|i| ((i * 7 + seed * 13) % 11) as f32 - 5.0).collect();
            let mut sorted: Vec<u32> = (0..40).collect();
            sorted.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]));
            for k in [0, 1, 2, 8, 40] {
                let mut out = vec![99; 3];
                top_k(&values, k, &mut out);
                assert_eq!(out, sorted[..k], "k = {k}");
            }
        }
    }
}
