//! Days and months, all UTC, as usage is counted by.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use time::{Date, OffsetDateTime};

/// Years that are known.
const YEARS: std::ops::RangeInclusive<i32> = 1970..=9999;

/// Seconds since 1970-01-01 UTC.
pub fn utc_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A day, written `2027-01-31`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(Date);

/// A month, written `2027-01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month {
    year: i32,
    month: u8,
}

/// A text names no day, or no month.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is wanted")]
pub struct NoDate(&'static str);

impl Day {
    /// The day of a moment, in seconds since 1970-01-01; the last one there is for moments after it.
    pub fn at(seconds: u64) -> Self {
        let moment = i64::try_from(seconds).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
        Self(moment.map_or(Date::MAX, OffsetDateTime::date))
    }

    /// When it begins, in seconds since 1970-01-01.
    pub fn start(self) -> u64 {
        u64::try_from(self.0.midnight().assume_utc().unix_timestamp()).unwrap_or(0)
    }

    /// Its month.
    pub fn month(self) -> Month {
        Month { year: self.0.year(), month: self.0.month().into() }
    }
}

impl Month {
    /// Its first day.
    pub fn first(self) -> Day {
        let month = time::Month::try_from(self.month).unwrap_or(time::Month::January);
        Day(Date::from_calendar_date(self.year, month, 1).unwrap_or(Date::MAX))
    }

    /// Its last day.
    pub fn last(self) -> Day {
        Day(self.next().first().0.previous_day().unwrap_or(Date::MAX))
    }

    /// The month after it.
    pub fn next(self) -> Self {
        match self.month {
            12 => Self { year: self.year + 1, month: 1 },
            month => Self { month: month + 1, ..self },
        }
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:02}", self.month(), self.0.day())
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl FromStr for Day {
    type Err = NoDate;

    fn from_str(text: &str) -> Result<Self, NoDate> {
        let wrong = NoDate("a day such as 2027-01-31");
        let (month, day) = text.rsplit_once('-').ok_or(wrong)?;
        let month = Month::from_str(month).map_err(|_| wrong)?;
        let day: u8 = digits(day, 2).ok_or(wrong)?;
        month.first().0.replace_day(day).map(Self).map_err(|_| wrong)
    }
}

impl FromStr for Month {
    type Err = NoDate;

    fn from_str(text: &str) -> Result<Self, NoDate> {
        let wrong = NoDate("a month such as 2027-01");
        let (year, month) = text.split_once('-').ok_or(wrong)?;
        let (year, month) = (digits(year, 4).ok_or(wrong)?, digits(month, 2).ok_or(wrong)?);
        if !YEARS.contains(&year) || !(1..=12).contains(&month) {
            return Err(wrong);
        }
        Ok(Self { year, month })
    }
}

/// The number that exactly `length` digits are.
fn digits<T: FromStr>(text: &str, length: usize) -> Option<T> {
    let plain = text.len() == length && text.bytes().all(|digit| digit.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn days_and_months_are_read_and_written() {
        let day: Day = "2028-02-29".parse().expect("a day");
        assert_eq!((day.to_string(), day.month().to_string()), ("2028-02-29".to_owned(), "2028-02".to_owned()));
        assert_eq!(day.start(), 1_835_395_200);
        assert_eq!(day.month().last(), day);
        let december: Month = "2026-12".parse().expect("a month");
        assert_eq!((december.last().to_string(), december.next().to_string()), ("2026-12-31".into(), "2027-01".into()));
        for wrong in ["", "2027-02-29", "2027-1-01", "2027-13-01", "1969-12-31", "27-01-01", "2027-01", "2027-01-+1"] {
            assert!(wrong.parse::<Day>().is_err(), "{wrong}");
        }
        for wrong in ["", "2027", "2027-0", "2027-00", "2027-01-01"] {
            assert!(wrong.parse::<Month>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn every_moment_is_in_its_day_and_its_day_in_its_month(seconds in 0_u64..200_000_000_000) {
            let day = Day::at(seconds);
            prop_assert!(day.start() <= seconds && seconds < day.start() + 86_400);
            prop_assert!(day.month().first() <= day && day <= day.month().last());
            prop_assert_eq!(day.to_string().parse(), Ok(day));
            prop_assert_eq!(Day::at(day.month().next().first().start() - 1), day.month().last());
        }
    }
}
