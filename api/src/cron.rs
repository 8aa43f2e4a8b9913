//! Schedules of CronJobs.
//!
//! Owns the text form (five fields as crontab(5) has them, `@hourly` and its like, `@every 90m`) and the moments
//! that it names, in a time zone. Promises that the next moment is strictly later. Does not read a clock.

use std::time::Duration;

use cronexpr::{Crontab, FallbackTimezoneOption, MakeTimestamp, ParseOptions};
use jiff::{SignedDuration, Timestamp};

/// Names of schedules, and the fields they stand for.
const NAMED: [(&str, &str); 7] = [
    ("@annually", "0 0 1 1 *"),
    ("@daily", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
    ("@midnight", "0 0 * * *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@yearly", "0 0 1 1 *"),
];
const EVERY: &str = "@every ";
const FIELDS: usize = 5;

/// Why a text is no schedule.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// Not five fields.
    #[error("expected exactly {FIELDS} fields, found {found}: {text:?}")]
    Fields {
        /// How many there are.
        found: usize,
        /// The text.
        text: String,
    },
    /// A descriptor that nobody knows.
    #[error(
        "unrecognized descriptor: {0:?}; known are @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly and \"@every <duration>\""
    )]
    Descriptor(String),
    /// A field makes no sense.
    #[error("{0}")]
    Field(String),
}

/// When something is due, again and again.
#[derive(Debug, Clone)]
pub struct Schedule {
    form: Form,
}

#[derive(Debug, Clone)]
enum Form {
    Crontab(Box<Crontab>),
    Every(Duration),
}

impl Schedule {
    /// Reads a schedule; without a zone it is in UTC.
    pub fn parse(text: &str, zone: Option<&str>) -> Result<Self, ScheduleError> {
        let text = text.trim();
        if let Some(every) = text.strip_prefix(EVERY) {
            let span: SignedDuration =
                every.trim().parse().map_err(|_| ScheduleError::Descriptor(text.to_owned()))?;
            let whole = u64::try_from(span.as_secs()).unwrap_or(0).max(1);
            return Ok(Self { form: Form::Every(Duration::from_secs(whole)) });
        }
        let fields = match NAMED.iter().find(|(name, _)| *name == text) {
            Some((_, fields)) => fields,
            None if text.starts_with('@') => return Err(ScheduleError::Descriptor(text.to_owned())),
            None => text,
        };
        let found = fields.split_whitespace().count();
        if found != FIELDS {
            return Err(ScheduleError::Fields { found, text: text.to_owned() });
        }
        let mut line = fields.replace('?', "*");
        line.push(' ');
        line.push_str(zone.unwrap_or("UTC"));
        let mut options = ParseOptions::default();
        options.fallback_timezone_option = FallbackTimezoneOption::UTC;
        let crontab = cronexpr::parse_crontab_with(&line, options).map_err(|why| {
            ScheduleError::Field(why.to_string().lines().last().unwrap_or_default().to_owned())
        })?;
        Ok(Self { form: Form::Crontab(Box::new(crontab)) })
    }

    /// The first moment after that one; `None` if there is none within the calendar.
    pub fn next_after(&self, at: Timestamp) -> Option<Timestamp> {
        match &self.form {
            Form::Crontab(crontab) => {
                crontab.find_next(MakeTimestamp(at)).ok().map(|zoned| zoned.timestamp())
            }
            Form::Every(span) => {
                let whole = Timestamp::from_second(at.as_second()).ok()?;
                whole.checked_add(SignedDuration::try_from(*span).ok()?).ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(text: &str, zone: Option<&str>, after: &str) -> String {
        let schedule = Schedule::parse(text, zone).unwrap();
        schedule.next_after(after.parse().unwrap()).unwrap().to_string()
    }

    #[test]
    fn the_next_moment_is_later_and_in_the_zone() {
        for (text, zone, after, expected) in [
            ("*/5 * * * *", None, "2024-01-01T00:00:00Z", "2024-01-01T00:05:00Z"),
            ("0 0 * * *", None, "2024-02-28T12:00:00Z", "2024-02-29T00:00:00Z"),
            ("@hourly", None, "2024-01-01T00:30:10Z", "2024-01-01T01:00:00Z"),
            ("30 2 * * *", Some("Europe/Berlin"), "2024-01-01T12:00:00Z", "2024-01-02T01:30:00Z"),
            ("0 0 ? * MON", None, "2024-01-01T00:00:00Z", "2024-01-08T00:00:00Z"),
            ("0 0 13 * 5", None, "2024-01-01T00:00:00Z", "2024-01-05T00:00:00Z"),
            ("@every 90s", None, "2024-01-01T00:00:00.5Z", "2024-01-01T00:01:30Z"),
        ] {
            assert_eq!(next(text, zone, after), expected, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_reason() {
        for (text, expected) in [
            ("* * *", "expected exactly 5 fields, found 3"),
            ("@nightly", "unrecognized descriptor"),
            ("@every soon", "unrecognized descriptor"),
            ("61 * * * *", ""),
            ("a b c d e", ""),
            ("", "expected exactly 5 fields, found 0"),
        ] {
            let why = Schedule::parse(text, None).unwrap_err().to_string();
            assert!(why.contains(expected) && !why.is_empty(), "{text}: {why}");
        }
    }
}
