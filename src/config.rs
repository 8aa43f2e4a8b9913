//! Configuration files: YAML text into the typed configuration of a package.
//!
//! The types and their rules belong to the packages (`control::Config`, `node::Config`). Here a file is read
//! and errors are given the path, the line and what to do. Unknown keys are refused by the types.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::de::DeserializeOwned;

/// A configuration file is text written by hand; a larger one is something else.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Reads a configuration file.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let size = std::fs::metadata(path)
        .with_context(|| format!("cannot read the configuration file {}", path.display()))?
        .len();
    anyhow::ensure!(
        size <= CONFIG_BYTES_MAX,
        "{} holds {size} bytes and is no configuration file; give the right file with --config",
        path.display()
    );
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
    parse(&text).with_context(|| {
        format!("the configuration file {} cannot be used; correct it and start again", path.display())
    })
}

fn parse<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    serde_saphyr::from_str(text).map_err(|error| match error.location() {
        Some(place) => anyhow::anyhow!("line {}, column {}: {error}", place.line(), place.column()),
        None => anyhow::anyhow!("{error}"),
    })
}

/// Reads a duration as people write it: `90s`, `30m`, `24h`, `7d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: write 90s, 30m, 24h or 7d");
    let split = text.find(|character: char| !character.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    Ok(Duration::from_secs(number.checked_mul(seconds).ok_or_else(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
    }

    #[test]
    fn errors_say_where() {
        assert_eq!(parse::<Sample>("name: a\n").unwrap().name, "a");
        let error = parse::<Sample>("name: a\ncolour: red\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("colour"), "{error}");
        let error = format!("{:#}", load::<Sample>(Path::new("/nowhere/x.yaml")).unwrap_err());
        assert!(error.contains("/nowhere/x.yaml"), "{error}");
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("7d").unwrap(), Duration::from_secs(604_800));
        for wrong in ["", "5", "h", "5w", "99999999999999999999d", "-1h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
