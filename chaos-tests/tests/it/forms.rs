//! The files of histories.

use chaos_tests::history::{Event, History, NEMESIS, Phase, Recorder, edn, json};
use proptest::prelude::*;
use serde_json::{Value, json};

#[test]
fn histories_of_jepsen_are_read() {
    let text = r#"
;; written by Jepsen 0.3
#jepsen.history.Op{:index 0, :time 3291485317, :type :invoke, :process 0, :f :txn, :value [[:r 9 nil] [:append 8 1]]}
{:process :nemesis, :type :info, :f :start-partition, :value ["n1" #{"n2" "n3"}], :time 10, :index 1}
{:type :ok, :f :txn, :process 0, :value [[:r 9 [1 2]] [:append 8 1]], :time 3291485400, :index 2} #_ {:ignored 1}
{:type :info, :f :read, :value nil, :process 7, :time 11, :error :timeout, :index 3, :weight -1.5e3}
"#;
    let history = edn::parse(text).unwrap();
    assert_eq!(history.events.len(), 4);
    assert_eq!(history.events[0].value, json!([["r", 9, null], ["append", 8, 1]]));
    assert_eq!(history.events[1].process, NEMESIS);
    assert_eq!(history.events[1].value, json!(["n1", ["n2", "n3"]]));
    assert_eq!(history.events[2].phase, Phase::Ok);
    assert_eq!(history.events[3].error.as_deref(), Some("timeout"));
    assert_eq!(
        edn::parse(&format!("[{}]", &text[text.find('#').unwrap()..])).unwrap(),
        history,
        "in a vector"
    );
}

#[test]
fn what_is_no_history_is_refused_with_its_line() {
    for (text, words) in [
        ("{:type :ok\n :f :read", "line 2: the text ends within a value"),
        ("\n\n{:f :read :process 0}", "line 3: :type"),
        ("{:type :ok :f :read}", ":process"),
        (")", "closes what was not opened"),
        ("{:type :ok :process 1/2}", "1/2 is no number"),
        ("\"", "does not end"),
    ] {
        let error = edn::parse(text).unwrap_err().to_string();
        assert!(error.contains(words), "{text:?}: {error}");
    }
    let deep = "[".repeat(100_000);
    assert!(edn::parse(&deep).unwrap_err().to_string().contains("deeper"));
    let error = json::parse("{\"type\":\"ok\"}\n").unwrap_err().to_string();
    assert!(error.starts_with("line 1: "), "{error}");
}

#[test]
fn a_run_that_was_killed_leaves_a_history() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history.jsonl");
    let recorder = Recorder::to_file(&path).unwrap();
    recorder.invoke(0, "read", json!([1, null]));
    recorder.ok(0, "read", json!([1, 2]));
    let whole = recorder.history();
    assert_eq!(History::read(&path).unwrap(), whole);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() - 5]).unwrap();
    assert_eq!(History::read(&path).unwrap().events, whole.events[..1], "its last line was cut");
}

#[test]
fn ends_without_beginnings_are_errors() {
    let read = |text: &str| edn::parse(text).unwrap().operations().unwrap_err().to_string();
    let error = read("{:type :ok :f :read :process 0}");
    assert!(error.contains("never began"), "{error}");
    let error = read("{:type :invoke :f :read :process 0}{:type :invoke :f :read :process 0}");
    assert!(error.contains("begins again"), "{error}");
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z \"\\\\\n{}:;#é]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,4}|[0-9]{1,3}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(all in prop::collection::vec((values(), -1_i64..5, any::<u32>()), 0..12)) {
        let events = all.into_iter().map(|(value, process, time)| Event {
            phase: if time % 2 == 0 { Phase::Ok } else { Phase::Info },
            f: "read".to_owned(),
            value,
            time: u64::from(time),
            process,
            error: (time % 3 == 0).then(|| "\"quoted\" \\ and\nbroken".to_owned()),
        }).collect();
        let history = History { events };
        prop_assert_eq!(&json::parse(&json::print(&history)).unwrap(), &history);
        prop_assert_eq!(&edn::parse(&edn::print(&history)).unwrap(), &history);
    }
}
