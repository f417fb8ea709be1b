//! Bounds of numbers: each check names the parameter and what was wanted.

use std::ops::RangeInclusive;

use crate::error::ApiError;

/// `value` if it is a number in `range`; `default` when there is none.
pub(super) fn real(param: &str, value: Option<f64>, range: RangeInclusive<f64>, default: f32) -> Result<f32, ApiError> {
    match value {
        None => Ok(default),
        // NaN is in no range.
        Some(value) if range.contains(&value) => Ok(value as f32),
        Some(_) => Err(ApiError::param(param, format!("`{param}` must be from {} to {}", range.start(), range.end()))),
    }
}

/// The same, without the lower bound itself.
pub(super) fn real_above(
    param: &str,
    value: Option<f64>,
    range: RangeInclusive<f64>,
    default: f32,
) -> Result<f32, ApiError> {
    let checked = real(param, value, range.clone(), default)?;
    if value.is_some_and(|value| value <= *range.start() || checked <= *range.start() as f32) {
        let why = format!("`{param}` must be above {}, at most {}", range.start(), range.end());
        return Err(ApiError::param(param, why));
    }
    Ok(checked)
}

/// `value` if it is in `range`.
pub(super) fn whole(param: &str, value: i64, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
    if range.contains(&value) {
        return Ok(value);
    }
    let why = match *range.end() {
        i64::MAX => format!("`{param}` must be at least {}", range.start()),
        end => format!("`{param}` must be from {} to {end}", range.start()),
    };
    Err(ApiError::param(param, why))
}

/// A token id of a vocabulary of `vocab`.
pub(super) fn token(param: &str, value: i64, vocab: usize) -> Result<u32, ApiError> {
    u32::try_from(value).ok().filter(|&id| (id as usize) < vocab).ok_or_else(|| {
        ApiError::param(param, format!("`{param}` holds a token id that is not from 0 to {}", vocab - 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_bounds_and_nan_has_no_place() {
        assert_eq!(real("t", None, 0.0..=2.0, 1.0), Ok(1.0));
        assert_eq!(real("t", Some(2.0), 0.0..=2.0, 1.0), Ok(2.0));
        for bad in [-0.1, 2.1, f64::NAN, f64::INFINITY] {
            assert_eq!(
                real("t", Some(bad), 0.0..=2.0, 1.0).map_err(|e| e.param_name().map(str::to_owned)),
                Err(Some("t".to_owned()))
            );
        }
        assert!(real_above("p", Some(0.0), 0.0..=1.0, 1.0).is_err());
        assert!(real_above("p", Some(1e-300), 0.0..=1.0, 1.0).is_err(), "it would be 0 as f32");
        assert_eq!(real_above("p", Some(0.5), 0.0..=1.0, 1.0), Ok(0.5));
    }

    #[test]
    fn ids_are_below_the_vocabulary() {
        assert_eq!(token("x", 7, 8), Ok(7));
        for bad in [-1, 8, i64::MAX, i64::MIN, 1 << 32] {
            assert!(token("x", bad, 8).is_err(), "{bad}");
        }
    }

    #[test]
    fn whole_numbers_say_their_range() {
        assert_eq!(whole("n", 1, 1..=3), Ok(1));
        assert_eq!(whole("n", 4, 1..=3).map_err(|e| e.to_string()), Err("`n` must be from 1 to 3".to_owned()));
        assert_eq!(whole("n", 0, 1..=i64::MAX).map_err(|e| e.to_string()), Err("`n` must be at least 1".to_owned()));
    }
}
