//! Configuration files: YAML text into the typed configuration of a package.
//!
//! The types and their rules belong to the packages (`control::Config`, `node::Config`). Here a file is read
//! and errors are given the path, the line and what to do. Unknown keys are refused by the types.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

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

/// Reads what a process is configured by: a file if there is one, and keys that are given one by one
/// (`podNetwork.encapsulation=always`), which come before what the file says.
pub(crate) fn read<T: DeserializeOwned>(file: Option<&Path>, set: &[String]) -> anyhow::Result<T> {
    if let Some(path) = file.filter(|_| set.is_empty()) {
        return load(path);
    }
    let mut configured = match file {
        Some(path) => load(path)?,
        None => Value::Object(Map::new()),
    };
    for given in set {
        put(&mut configured, given).with_context(|| format!("--set {given}"))?;
    }
    serde_json::from_value(configured).context("the configuration of --config and --set cannot be used")
}

/// Puts `a.b=VALUE` into its place.
fn put(configured: &mut Value, given: &str) -> anyhow::Result<()> {
    let (path, text) = given.split_once('=').context("write it as KEY=VALUE")?;
    let value: Value = parse(text).context("the value is not YAML")?;
    let mut keys = keys(path);
    anyhow::ensure!(keys.iter().all(|key| !key.is_empty()), "write the key as a.b.c");
    let last = keys.pop().context("write the key as a.b.c")?;
    let mut place = configured;
    for key in keys {
        place = object(place)?.entry(key).or_insert_with(|| Value::Object(Map::new()));
    }
    object(place)?.insert(last, value);
    Ok(())
}

fn object(place: &mut Value) -> anyhow::Result<&mut Map<String, Value>> {
    place.as_object_mut().context("one of its keys already has a value that has no keys of its own")
}

/// The keys of a path; `\.` is a dot within one.
fn keys(path: &str) -> Vec<String> {
    let mut keys = vec![String::new()];
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        let last = keys.last_mut().expect("there is one from the beginning");
        match character {
            '.' => keys.push(String::new()),
            '\\' => last.extend(characters.next()),
            other => last.push(other),
        }
    }
    keys
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
    fn keys_come_before_what_the_file_says() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "nodeName: n1\nlimits: {cpu: 1, memory: 2}\n").unwrap();
        let read = |set: &[&str]| {
            let set: Vec<String> = set.iter().map(|text| (*text).to_owned()).collect();
            read::<Value>(Some(file.path()), &set).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(read(&[]).unwrap()["nodeName"], "n1");
        let changed =
            read(&["nodeName=n2", "limits.cpu=3", "labels.example\\.com/a=b=c", "ports=[1, 2]"]).unwrap();
        let expected = serde_json::json!({
            "nodeName": "n2", "limits": {"cpu": 3, "memory": 2}, "labels": {"example.com/a": "b=c"}, "ports": [1, 2],
        });
        assert_eq!(changed, expected);
        for (set, word) in [
            ("nodeName", "KEY=VALUE"),
            ("=1", "a.b.c"),
            ("a..b=1", "a.b.c"),
            ("nodeName.a=1", "no keys of its own"),
            ("a=[", "YAML"),
        ] {
            let error = read(&[set]).unwrap_err();
            assert!(error.contains(word) && error.contains(set), "{set}: {error}");
        }
        let alone = super::read::<Sample>(None, &["name=a".to_owned()]).unwrap();
        assert_eq!(alone.name, "a");
        let unknown = super::read::<Sample>(None, &["name=a".to_owned(), "colour=red".to_owned()]);
        assert!(format!("{:#}", unknown.unwrap_err()).contains("colour"));
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("7d").unwrap(), Duration::from_secs(604_800));
        for wrong in ["", "5", "h", "5w", "99999999999999999999d", "-1h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
