//! Durations as people read them.
//!
//! Owns `AGE` and its like: `5s`, `3m20s`, `45m`, `7h30m`, `2d3h`, `400d`, `2y30d`. Promises the very rules by
//! which `kubectl` shortens.

use jiff::Timestamp;
use serde_json::Value;

use crate::object::parse_timestamp;

/// What is printed where a time is not known.
pub const UNKNOWN: &str = "<unknown>";

/// A span of seconds, shortened. Slightly negative spans (clocks differ) read as `0s`.
pub fn human(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let pair = |whole: i64, unit: &str, rest: i64, rest_unit: &str| {
        if rest == 0 { format!("{whole}{unit}") } else { format!("{whole}{unit}{rest}{rest_unit}") }
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    let years = hours / 24 / 365;
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        pair(minutes, "m", seconds % 60, "s")
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        pair(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 24 * 8 {
        pair(days, "d", hours % 24, "h")
    } else if hours < 24 * 365 * 2 {
        format!("{days}d")
    } else if hours < 24 * 365 * 8 {
        pair(years, "y", days % 365, "d")
    } else {
        format!("{years}y")
    }
}

/// How long ago a moment was.
pub fn since(at: Timestamp, now: Timestamp) -> String {
    let nanos = now.as_nanosecond() - at.as_nanosecond();
    // Toward zero, as a duration's whole seconds are.
    human(i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX))
}

/// How long ago the moment in a timestamp field was, or `<unknown>`.
pub fn since_field(field: Option<&Value>, now: Timestamp) -> String {
    field
        .and_then(Value::as_str)
        .and_then(parse_timestamp)
        .map_or_else(|| UNKNOWN.to_owned(), |at| since(at, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_shorten_as_kubectl_does() {
        let (minute, hour, day) = (60, 3600, 86_400);
        for (seconds, expected) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (5 * minute + 3, "5m3s"),
            (9 * minute + 59, "9m59s"),
            (10 * minute + 30, "10m"),
            (179 * minute, "179m"),
            (3 * hour, "3h"),
            (7 * hour + 59 * minute, "7h59m"),
            (8 * hour + 30 * minute, "8h"),
            (47 * hour, "47h"),
            (2 * day, "2d"),
            (2 * day + 3 * hour, "2d3h"),
            (8 * day + 3 * hour, "8d"),
            (729 * day, "729d"),
            (2 * 365 * day, "2y"),
            (2 * 365 * day + 30 * day, "2y30d"),
            (8 * 365 * day + 30 * day, "8y"),
        ] {
            assert_eq!(human(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn a_missing_time_is_unknown() {
        let now: Timestamp = "2024-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(since_field(None, now), "<unknown>");
        assert_eq!(since_field(Some(&Value::Null), now), "<unknown>");
        assert_eq!(since_field(Some(&"2024-01-01T00:00:00Z".into()), now), "60s");
    }
}
