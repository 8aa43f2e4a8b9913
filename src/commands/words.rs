//! Times and commands in the words of `docker ps`.

use std::time::{SystemTime, UNIX_EPOCH};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// Letters of a command that a list shows.
const COMMAND_LETTERS: usize = 20;

/// Seconds since a time, in nanoseconds since 1970.
pub(super) fn seconds_since(nanos: i64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs().saturating_sub(u64::try_from(nanos / 1_000_000_000).unwrap_or_default())
}

/// A length of time, roughly.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..MINUTE => format!("{seconds} seconds"),
        MINUTE..120 => "About a minute".to_owned(),
        120..HOUR => format!("{} minutes", seconds / MINUTE),
        // From half an hour on to the nearest.
        HOUR..5400 => "About an hour".to_owned(),
        5400..172_800 => format!("{} hours", (seconds + HOUR / 2) / HOUR),
        172_800..1_209_600 => format!("{} days", seconds / DAY),
        1_209_600..5_184_000 => format!("{} weeks", seconds / DAY / 7),
        5_184_000..63_072_000 => format!("{} months", seconds / DAY / 30),
        _ => format!("{} years", seconds / DAY / 365),
    }
}

/// A command as one quoted word.
pub(super) fn command(args: &[String], whole: bool) -> String {
    let text = args.join(" ");
    if whole || text.chars().count() <= COMMAND_LETTERS {
        return format!("\"{text}\"");
    }
    let begin: String = text.chars().take(COMMAND_LETTERS - 1).collect();
    format!("\"{begin}…\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rough() {
        let found =
            [0, 1, 59, 60, 119, 120, 3599, 3600, 5400, 86_400, 172_800, 1_209_600, 5_184_000, 63_072_000]
                .map(duration);
        let wanted = [
            "Less than a second",
            "1 second",
            "59 seconds",
            "About a minute",
            "About a minute",
            "2 minutes",
            "59 minutes",
            "About an hour",
            "2 hours",
            "24 hours",
            "2 days",
            "2 weeks",
            "2 months",
            "2 years",
        ];
        assert_eq!(found, wanted.map(str::to_owned));
    }

    #[test]
    fn commands_are_quoted_and_cut() {
        let args = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(command(&args("/k8s-for-beginners"), false), "\"/k8s-for-beginners\"");
        assert_eq!(command(&args("/barque demo pings --port 80"), false), "\"/barque demo pings …\"");
        assert_eq!(command(&args("/barque demo pings --port 80"), true), "\"/barque demo pings --port 80\"");
    }
}
