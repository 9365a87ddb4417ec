//! Medians and percentiles.

/// Sorts `values` and returns the one that `per_mille` of a thousand are not above.
pub(crate) fn percentile(values: &mut [f64], per_mille: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let index = (values.len() * per_mille).div_ceil(1000).saturating_sub(1);
    values.get(index).copied().unwrap_or(f64::NAN)
}

/// The middle one.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    percentile(values, 500)
}
