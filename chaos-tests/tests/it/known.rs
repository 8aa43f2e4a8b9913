//! Histories whose verdict is known, one file per family.

use chaos_tests::checker::{self, Outcome};
use chaos_tests::history::{Event, History, Phase, edn};

/// Runs every case of a file.
fn run(text: &str) {
    let mut cases = 0;
    for case in text.split("== ").skip(1) {
        let (head, lines) = case.split_once('\n').unwrap();
        let head: Vec<&str> = head.split('|').map(str::trim).collect();
        let [name, property, outcome, words] = head[..] else { panic!("{head:?}") };
        let history = History {
            events: lines.lines().filter(|line| !line.is_empty()).enumerate().map(event).collect(),
        };
        let verdicts = checker::check(&history).unwrap();
        let verdict = verdicts.iter().find(|verdict| verdict.property == property);
        let verdict = verdict.unwrap_or_else(|| panic!("{name}: {property} was not judged: {verdicts:?}"));
        let expected = match outcome {
            "valid" => Outcome::Valid,
            "invalid" => Outcome::Invalid,
            _ => Outcome::Unknown,
        };
        assert_eq!(verdict.outcome, expected, "{name}: {}", verdict.explanation);
        assert!(verdict.explanation.contains(words), "{name}: {:?} lacks {words:?}", verdict.explanation);
        cases += 1;
    }
    assert!(cases > 5, "{cases} cases");
}

/// `process type f value`, a millisecond after the line before it, or at `@milliseconds`.
fn event((number, line): (usize, &str)) -> Event {
    let (line, time) = match line.rsplit_once(" @") {
        Some((line, at)) => (line, at.parse::<u64>().unwrap() * 1_000_000),
        None => (line, number as u64 * 1_000_000),
    };
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().unwrap();
    let (process, phase, f, value) = (word(), word(), word(), word());
    let text = format!("{{:type :{phase}, :f :{f}, :value {value}, :process {process}}}");
    let mut event = edn::parse(&text).unwrap().events.remove(0);
    event.time = time;
    assert!(matches!(event.phase, Phase::Invoke | Phase::Ok | Phase::Fail | Phase::Info));
    event
}

#[test]
fn registers() {
    run(include_str!("../../testdata/registers.txt"));
}

#[test]
fn append_lists() {
    run(include_str!("../../testdata/append.txt"));
}

#[test]
fn sets_banks_locks_leases_revisions_hashes() {
    run(include_str!("../../testdata/others.txt"));
}

#[test]
fn pods() {
    run(include_str!("../../testdata/pods.txt"));
}

#[test]
fn watches() {
    run(include_str!("../../testdata/watch.txt"));
}

#[test]
fn a_cycle_is_shown_as_small_as_it_is() {
    let text = include_str!("../../testdata/append.txt");
    let case = text.split("== ").find(|case| case.starts_with("write skew")).unwrap();
    let events = case.lines().skip(1).filter(|line| !line.is_empty()).enumerate().map(event).collect();
    let verdicts = checker::check(&History { events }).unwrap();
    let verdict = verdicts.iter().find(|verdict| verdict.property == "strict-serializable").unwrap();
    let example = verdict.counter_example.as_ref().unwrap();
    assert_eq!(example.operations.len(), 2, "the reader is no part of the cycle");
    let labels: Vec<&str> = example.edges.iter().map(|edge| edge.label.as_str()).collect();
    assert_eq!(labels, ["did not see", "did not see"]);
}
