//! Points in time: nanoseconds since the Unix epoch, and their RFC 3339 text as logs carry it. Leap
//! seconds are not known, as in `CLOCK_REALTIME`.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

const NANOS_PER_SECOND: i64 = 1_000_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// A point in time with nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp {
    unix_nanos: i64,
}

impl Timestamp {
    /// The host's clock now.
    pub fn now() -> Timestamp {
        let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("the real-time clock is always there");
        Timestamp { unix_nanos: now.tv_sec() * NANOS_PER_SECOND + now.tv_nsec() }
    }

    /// From nanoseconds since the epoch.
    pub const fn from_unix_nanos(unix_nanos: i64) -> Timestamp {
        Timestamp { unix_nanos }
    }

    /// Nanoseconds since the epoch.
    pub fn unix_nanos(&self) -> i64 {
        self.unix_nanos
    }

    /// Date and time of day in UTC, to the second: year, month, day, hour, minute, second.
    fn civil(&self) -> (i64, u8, u8, u8, u8, u8) {
        let seconds = self.unix_nanos.div_euclid(NANOS_PER_SECOND);
        let days = seconds.div_euclid(SECONDS_PER_DAY);
        let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
        // Days since 0000-03-01, so that the leap day is the last of its year (Hinnant's algorithm).
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let of_era = shifted.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        let clock = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        (year, month as u8, day as u8, clock.0 as u8, clock.1 as u8, clock.2 as u8)
    }

    /// As a suffix of file names that sorts by time: `20260101-000000.000000000`.
    pub(crate) fn file_suffix(&self) -> String {
        let (year, month, day, hour, minute, second) = self.civil();
        let nanos = self.unix_nanos.rem_euclid(NANOS_PER_SECOND);
        format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}.{nanos:09}")
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day, hour, minute, second) = self.civil();
        let nanos = self.unix_nanos.rem_euclid(NANOS_PER_SECOND);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
    }
}

impl From<Timestamp> for SystemTime {
    fn from(timestamp: Timestamp) -> SystemTime {
        let distance = Duration::from_nanos(timestamp.unix_nanos.unsigned_abs());
        if timestamp.unix_nanos >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seconds: i64, nanos: i64) -> String {
        Timestamp::from_unix_nanos(seconds * NANOS_PER_SECOND + nanos).to_string()
    }

    #[test]
    fn text_matches_known_dates() {
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_400, 7), "2000-02-29T00:00:00.000000007Z");
        assert_eq!(text(1_767_225_599, 999_999_999), "2025-12-31T23:59:59.999999999Z");
        assert_eq!(text(1_709_251_200, 0), "2024-03-01T00:00:00.000000000Z");
        assert_eq!(text(-1, 0), "1969-12-31T23:59:59.000000000Z");
    }

    #[test]
    fn file_suffixes_sort_by_time() {
        let early = Timestamp::from_unix_nanos(1_767_225_599 * NANOS_PER_SECOND);
        let late = Timestamp::from_unix_nanos(1_767_225_599 * NANOS_PER_SECOND + 5);
        assert_eq!(early.file_suffix(), "20251231-235959.000000000");
        assert!(early.file_suffix() < late.file_suffix());
    }
}
