//! Watches: each answer of a stream is one `watch`, told {watcher, stream, from, revision, events, bookmark, fragment}.
//!
//! An event is {type, key, value, mod, create, version, prev}; `prev` is null or {value, mod}. A watcher that has to begin again opens
//! its next stream, from the revision after the last that it saw. Properties, in etcd's words:
//!
//! | name | what |
//! |---|---|
//! | watch-ordered | revisions never fall within a stream |
//! | watch-unique | no event comes twice in a stream |
//! | watch-atomic | the events of one revision come in one answer, unless it says that it is a fragment |
//! | watch-reliable | between a stream's beginning and what it has delivered, nothing is missing; acknowledged puts are there |
//! | watch-resumable | a stream's first event is the first after where it was told to begin |
//! | watch-bookmarks | after a bookmark nothing at or below its revision comes, and all below it had come |
//! | watch-agreed | all streams tell the same of one revision of a key |
//! | watch-prev-kv | `prev` is what the key held before, and a first version was created by its event |

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::Verdict;
use crate::history::{End, Operation};

/// The properties, in the order in which [`check`] returns them.
pub const PROPERTIES: [&str; 8] = [
    "watch-ordered",
    "watch-unique",
    "watch-atomic",
    "watch-reliable",
    "watch-resumable",
    "watch-bookmarks",
    "watch-agreed",
    "watch-prev-kv",
];

/// Revision, then key.
type At = (u64, String);

struct Event<'a> {
    at: At,
    value: &'a Value,
    answer: &'a Operation,
}

struct Stream<'a> {
    from: u64,
    answers: Vec<&'a Operation>,
    events: Vec<Event<'a>>,
}

/// Judges all streams.
pub fn check(operations: &[Operation]) -> Vec<Verdict> {
    let mut streams: BTreeMap<(String, u64), Stream<'_>> = BTreeMap::new();
    let told = operations.iter().filter(|operation| operation.f == "watch" && operation.end == End::Ok);
    for answer in told {
        let value = &answer.told;
        let name = (value["watcher"].to_string(), value["stream"].as_u64().unwrap_or(0));
        let from = value["from"].as_u64().unwrap_or(0);
        let stream = streams.entry(name).or_insert(Stream { from, answers: Vec::new(), events: Vec::new() });
        stream.answers.push(answer);
        for event in value["events"].as_array().into_iter().flatten() {
            let at = (event["mod"].as_u64().unwrap_or(0), event["key"].to_string());
            stream.events.push(Event { at, value: event, answer });
        }
    }
    let streams: Vec<Stream<'_>> = streams.into_values().collect();
    let reference = reference(&streams);
    let count = streams.iter().map(|stream| stream.events.len()).sum();
    let found = [
        streams.iter().find_map(ordered),
        streams.iter().find_map(unique),
        streams.iter().find_map(atomic),
        streams
            .iter()
            .find_map(|stream| reliable(stream, &reference))
            .or_else(|| shown(operations, &streams)),
        streams.iter().find_map(|stream| resumable(stream, &reference)),
        streams.iter().find_map(|stream| bookmarks(stream, &reference)),
        agreed(&streams),
        previous(&streams, &reference),
    ];
    let verdict = |(property, found): (&str, Option<Violation<'_>>)| match found {
        Some((explanation, operations)) => Verdict::invalid(property, count, explanation).showing(operations),
        None if count == 0 => Verdict::unknown(property, 0, "no event was delivered"),
        None => Verdict::valid(property, count, format!("{count} events on {} streams", streams.len())),
    };
    PROPERTIES.into_iter().zip(found).map(verdict).collect()
}

type Violation<'a> = (String, Vec<&'a Operation>);
type Reference<'a> = BTreeMap<At, &'a Value>;

/// Every event that any stream delivered.
fn reference<'a>(streams: &[Stream<'a>]) -> Reference<'a> {
    let events = streams.iter().flat_map(|stream| &stream.events);
    events.map(|event| (event.at.clone(), event.value)).collect()
}

fn ordered<'a>(stream: &Stream<'a>) -> Option<Violation<'a>> {
    let pair = stream.events.windows(2).find(|pair| pair[1].at.0 < pair[0].at.0)?;
    let explanation = format!("revision {} came after revision {}", pair[1].at.0, pair[0].at.0);
    Some((explanation, vec![pair[0].answer, pair[1].answer]))
}

fn unique<'a>(stream: &Stream<'a>) -> Option<Violation<'a>> {
    let mut seen: HashMap<&At, &Operation> = HashMap::new();
    for event in &stream.events {
        if let Some(first) = seen.insert(&event.at, event.answer) {
            let explanation = format!("revision {} of key {} came twice", event.at.0, event.at.1);
            return Some((explanation, vec![first, event.answer]));
        }
    }
    None
}

fn atomic<'a>(stream: &Stream<'a>) -> Option<Violation<'a>> {
    for pair in stream.answers.windows(2) {
        let edge = |answer: &Operation, last: bool| {
            let events = answer.told["events"].as_array()?;
            let event = if last { events.last() } else { events.first() };
            event?["mod"].as_u64()
        };
        let fragment = pair[0].told["fragment"].as_bool() == Some(true);
        if let (Some(before), Some(after)) = (edge(pair[0], true), edge(pair[1], false))
            && before == after
            && !fragment
        {
            let explanation =
                format!("revision {before} came in two answers, neither of them called a fragment");
            return Some((explanation, vec![pair[0], pair[1]]));
        }
    }
    None
}

/// How far a stream has certainly come.
fn reached(stream: &Stream<'_>) -> u64 {
    let last = stream.events.iter().map(|event| event.at.0).max().unwrap_or(0);
    // More of the last revision may have been under way when the stream broke in the middle of fragments.
    let partial = stream.answers.last().is_some_and(|answer| answer.told["fragment"].as_bool() == Some(true));
    let last = if partial { last.saturating_sub(1) } else { last };
    stream.answers.iter().filter_map(|answer| bookmark(answer)).max().unwrap_or(0).max(last)
}

fn bookmark(answer: &Operation) -> Option<u64> {
    (answer.told["bookmark"].as_bool() == Some(true)).then(|| answer.told["revision"].as_u64()).flatten()
}

fn reliable<'a>(stream: &Stream<'a>, reference: &Reference<'_>) -> Option<Violation<'a>> {
    let there: HashSet<&At> = stream.events.iter().map(|event| &event.at).collect();
    let reached = reached(stream);
    let mut expected = reference.range((stream.from, String::new())..).take_while(|(at, _)| at.0 <= reached);
    let (missing, _) = expected.find(|(at, _)| !there.contains(at))?;
    let after = stream.events.iter().find(|event| event.at > *missing).map(|event| event.answer);
    let explanation = format!(
        "revision {} of key {}, which another stream delivered, is missing in one from {} that reached {reached}",
        missing.0, missing.1, stream.from
    );
    let before = stream.events.iter().rev().find(|event| event.at < *missing).map(|event| event.answer);
    Some((explanation, before.into_iter().chain(after.or(stream.answers.last().copied())).collect()))
}

/// Acknowledged puts that no stream delivered, though one has come past their revision.
fn shown<'a>(operations: &'a [Operation], streams: &[Stream<'a>]) -> Option<Violation<'a>> {
    for put in operations.iter().filter(|operation| operation.f == "put" && operation.end == End::Ok) {
        let Some([key, _, revision, ..]) = put.told.as_array().map(Vec::as_slice) else { continue };
        let at = (revision.as_u64()?, key.to_string());
        let passed = |stream: &&Stream<'_>| stream.from <= at.0 && at.0 <= reached(stream);
        if let Some(stream) = streams.iter().find(passed)
            && !stream.events.iter().any(|event| event.at == at)
        {
            let explanation = format!("the acknowledged put of key {} at revision {} never came", at.1, at.0);
            return Some((explanation, vec![put]));
        }
    }
    None
}

fn resumable<'a>(stream: &Stream<'a>, reference: &Reference<'_>) -> Option<Violation<'a>> {
    let first = stream.events.first()?;
    if first.at.0 < stream.from {
        let explanation = format!("a stream from revision {} began with {}", stream.from, first.at.0);
        return Some((explanation, vec![first.answer]));
    }
    let (expected, _) = reference.range((stream.from, String::new())..).next()?;
    (first.at.0 > expected.0).then(|| {
        let explanation = format!(
            "a stream from revision {} began with {}, though {} is there",
            stream.from, first.at.0, expected.0
        );
        (explanation, vec![first.answer])
    })
}

fn bookmarks<'a>(stream: &Stream<'a>, reference: &Reference<'_>) -> Option<Violation<'a>> {
    let mut marked: Option<(u64, &Operation)> = None;
    let mut delivered = stream.from.saturating_sub(1);
    for answer in &stream.answers {
        for event in answer.told["events"].as_array().into_iter().flatten() {
            let revision = event["mod"].as_u64().unwrap_or(0);
            delivered = delivered.max(revision);
            if let Some((mark, earlier)) = marked.filter(|(mark, _)| revision <= *mark) {
                let explanation = format!("revision {revision} came after a bookmark said {mark}");
                return Some((explanation, vec![earlier, answer]));
            }
        }
        if let Some(mark) = bookmark(answer) {
            let ahead = reference.range((delivered + 1, String::new())..).next();
            if let Some((missing, _)) = ahead.filter(|(at, _)| at.0 <= mark) {
                let explanation =
                    format!("a bookmark said {mark} before revision {} was delivered", missing.0);
                return Some((explanation, vec![answer]));
            }
            marked = Some((mark, answer));
        }
    }
    None
}

fn agreed<'a>(streams: &[Stream<'a>]) -> Option<Violation<'a>> {
    let mut first: HashMap<&At, &Event<'a>> = HashMap::new();
    for event in streams.iter().flat_map(|stream| &stream.events) {
        let other = *first.entry(&event.at).or_insert(event);
        let same =
            ["type", "value", "create", "version"].iter().all(|name| event.value[name] == other.value[name]);
        if !same {
            let explanation =
                format!("two streams tell different things of revision {} of key {}", event.at.0, event.at.1);
            return Some((explanation, vec![other.answer, event.answer]));
        }
    }
    None
}

/// Revisions of which everything was delivered by one stream or another: the first and the last of each piece. What lies between
/// pieces was compacted before any watcher saw it.
fn covered(streams: &[Stream<'_>]) -> Vec<(u64, u64)> {
    let reached = |stream: &Stream<'_>| {
        let events = stream.events.iter().map(|event| event.at.0);
        events.chain(stream.answers.iter().filter_map(|answer| bookmark(answer))).max()
    };
    let mut all: Vec<(u64, u64)> =
        streams.iter().filter_map(|stream| Some((stream.from, reached(stream)?))).collect();
    all.sort_unstable();
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    for (from, reached) in all {
        match pieces.last_mut() {
            Some((_, end)) if from <= *end + 1 => *end = reached.max(*end),
            _ => pieces.push((from, reached)),
        }
    }
    pieces
}

/// Each event against the one before it of the same key, if that was delivered too and nothing between was missed by all.
fn previous<'a>(streams: &[Stream<'_>], reference: &Reference<'_>) -> Option<Violation<'a>> {
    let pieces = covered(streams);
    let mut last: HashMap<&str, (u64, &Value)> = HashMap::new();
    for ((revision, key), event) in reference {
        let is_next = |before: u64| pieces.iter().any(|(from, end)| *from <= before && revision <= end);
        let before = last.insert(key, (*revision, event)).filter(|(before, _)| is_next(*before));
        let before = before.map(|(_, event)| event);
        let prev = &event["prev"];
        let version = event["version"].as_u64().unwrap_or(0);
        let is_put = event["type"] == "put";
        let wrong = if is_put && (version == 1) != (event["create"] == event["mod"]) {
            Some(format!("version {version} was created at {}", event["create"]))
        } else if is_put && version == 1 && !prev.is_null() {
            Some(format!("its first version is said to follow {prev}"))
        } else {
            match before.filter(|before| before["type"] == "put") {
                Some(before)
                    if !prev.is_null()
                        && (prev["mod"] != before["mod"] || prev["value"] != before["value"]) =>
                {
                    Some(format!(
                        "it is said to follow {prev}, but {} of {} does",
                        before["value"], before["mod"]
                    ))
                }
                Some(before) if is_put && version > 1 && before["version"].as_u64() != Some(version - 1) => {
                    Some(format!("version {version} follows version {}", before["version"]))
                }
                _ => None,
            }
        };
        if let Some(wrong) = wrong {
            return Some((format!("key {key} at revision {revision}: {wrong}"), Vec::new()));
        }
    }
    None
}
