//! Histories made by a sequential model whose clients overlap at random: they are right by construction, so they are always
//! accepted. Then one answer is changed, and they are rejected.

use std::collections::BTreeMap;

use chaos_tests::checker::{Outcome, Verdict, append, registers, set};
use chaos_tests::history::{Event, History, Phase};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

/// A client's call, from its beginning to the moment at which it takes effect to its end.
struct Open {
    f: &'static str,
    asked: Value,
    told: Option<Value>,
}

/// Makes a history: `ask` makes calls, `apply` carries them out, at one moment each.
fn overlap(
    seed: u64,
    calls: usize,
    mut ask: impl FnMut(&mut StdRng, usize) -> (&'static str, Value),
    mut apply: impl FnMut(&str, &Value) -> Value,
) -> History {
    let mut random = StdRng::seed_from_u64(seed);
    let clients = random.random_range(1..7);
    let lossy = random.random_bool(0.5);
    let mut open: BTreeMap<i64, Open> = BTreeMap::new();
    let mut next_process: Vec<i64> = (0..clients).collect();
    let (mut history, mut begun) = (History::default(), 0);
    while begun < calls || !open.is_empty() {
        let client = random.random_range(0..clients as usize);
        let process = next_process[client];
        let time = history.events.len() as u64 * 1000;
        let mut push = |phase, f: &str, value| {
            history.events.push(Event { phase, f: f.to_owned(), value, time, process, error: None });
        };
        match open.get_mut(&process) {
            None if begun < calls => {
                let (f, asked) = ask(&mut random, begun);
                begun += 1;
                push(Phase::Invoke, f, asked.clone());
                open.insert(process, Open { f, asked, told: None });
            }
            None => {}
            Some(call) if call.told.is_none() => {
                if lossy && random.random_bool(0.05) {
                    // Nobody will know; sometimes it is carried out.
                    if random.random_bool(0.5) {
                        apply(call.f, &call.asked);
                    }
                    push(Phase::Info, call.f, call.asked.clone());
                    open.remove(&process);
                    next_process[client] += clients;
                } else if lossy && random.random_bool(0.05) {
                    push(Phase::Fail, call.f, call.asked.clone());
                    open.remove(&process);
                } else {
                    call.told = Some(apply(call.f, &call.asked));
                }
            }
            Some(call) => {
                let told = call.told.take().unwrap();
                // A comparison that did not hold.
                let phase = if told == json!("no") { Phase::Fail } else { Phase::Ok };
                push(phase, call.f, if phase == Phase::Ok { told } else { call.asked.clone() });
                open.remove(&process);
            }
        }
    }
    history
}

pub(crate) fn register_history(seed: u64, calls: usize, keys: i64) -> History {
    let mut state: BTreeMap<i64, i64> = BTreeMap::new();
    let ask = move |random: &mut StdRng, number: usize| {
        let key = random.random_range(0..keys);
        let value = number as i64;
        match random.random_range(0..10) {
            0..5 => ("read", json!([key, null])),
            5..8 => ("write", json!([key, value])),
            _ => ("cas", json!([key, [random.random_range(0..=value), value]])),
        }
    };
    overlap(seed, calls, ask, move |f, asked| {
        let key = asked[0].as_i64().unwrap();
        match f {
            "read" => json!([key, state.get(&key)]),
            "write" => {
                state.insert(key, asked[1].as_i64().unwrap());
                asked.clone()
            }
            _ if state.get(&key).copied() == asked[1][0].as_i64() => {
                state.insert(key, asked[1][1].as_i64().unwrap());
                asked.clone()
            }
            _ => json!("no"),
        }
    })
}

pub(crate) fn append_history(seed: u64, calls: usize, keys: i64) -> History {
    let mut state: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    let ask = move |random: &mut StdRng, number: usize| {
        let micros: Vec<Value> = (0..random.random_range(1..4))
            .map(|at| {
                // Keys change over time, so that lists stay short.
                let key = random.random_range(0..keys) + (number as i64 / 200) * keys;
                if random.random_bool(0.5) {
                    json!(["r", key, null])
                } else {
                    json!(["append", key, number as i64 * 10 + at])
                }
            })
            .collect();
        ("txn", Value::from(micros))
    };
    overlap(seed, calls, ask, move |_, asked| {
        let micros = asked.as_array().unwrap().iter().map(|micro| {
            let list = state.entry(micro[1].as_i64().unwrap()).or_default();
            if micro[0] == "append" {
                list.push(micro[2].as_i64().unwrap());
                micro.clone()
            } else {
                json!(["r", micro[1], list])
            }
        });
        Value::from(micros.collect::<Vec<_>>())
    })
}

fn set_history(seed: u64, calls: usize) -> History {
    let mut state: Vec<i64> = Vec::new();
    let ask = |random: &mut StdRng, number: usize| {
        if random.random_bool(0.3) { ("read", Value::Null) } else { ("add", json!(number)) }
    };
    overlap(seed, calls, ask, move |f, asked| {
        if f == "read" {
            return json!(state);
        }
        state.push(asked.as_i64().unwrap());
        asked.clone()
    })
}

fn judge(history: &History, judge: impl Fn(&[chaos_tests::history::Operation]) -> Verdict) -> Verdict {
    judge(&history.operations().unwrap())
}

/// Positions of answers that satisfy a condition.
fn answers(history: &History, wanted: impl Fn(&Event) -> bool) -> Vec<usize> {
    let positions = history.events.iter().enumerate();
    positions.filter(|(_, event)| event.phase == Phase::Ok && wanted(event)).map(|(at, _)| at).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn registers_of_a_model_are_linearizable(seed: u64, keys in 1_i64..4) {
        let verdict = judge(&register_history(seed, 120, keys), registers::check);
        prop_assert_eq!(verdict.outcome, Outcome::Valid, "{}", verdict.explanation);
    }

    #[test]
    fn a_read_of_what_was_never_written_is_rejected(seed: u64, pick: prop::sample::Index) {
        let mut history = register_history(seed, 120, 2);
        let reads = answers(&history, |event| event.f == "read");
        prop_assume!(!reads.is_empty());
        let at = reads[pick.index(reads.len())];
        history.events[at].value[1] = json!(1_000_000);
        let verdict = judge(&history, registers::check);
        prop_assert_eq!(verdict.outcome, Outcome::Invalid);
        prop_assert!(verdict.counter_example.unwrap().operations.len() <= 16);
    }

    /// A read that is given, long after, the answer of one that came before a later acknowledged write.
    #[test]
    fn a_stale_read_is_rejected(seed: u64) {
        let mut history = register_history(seed, 60, 1);
        let newest = history.operations().unwrap().iter().filter(|op| op.f == "write").map(|op| op.asked[1].clone()).next();
        prop_assume!(newest.is_some());
        for (phase, f, value) in [
            (Phase::Invoke, "write", json!([0, 5000])), (Phase::Ok, "write", json!([0, 5000])),
            (Phase::Invoke, "read", json!([0, null])), (Phase::Ok, "read", json!([0, newest])),
        ] {
            history.events.push(Event { phase, f: f.into(), value, time: 1, process: 999, error: None });
        }
        // A write without an answer could come after the last one: leave those out.
        let lossy = history.events.iter().any(|event| event.phase == Phase::Info);
        let verdict = judge(&history, registers::check);
        prop_assert!(lossy || verdict.outcome == Outcome::Invalid, "{:?}", verdict);
    }

    #[test]
    fn lists_of_a_model_are_serializable(seed: u64, keys in 1_i64..5) {
        let verdict = judge(&append_history(seed, 120, keys), append::check);
        prop_assert_eq!(verdict.outcome, Outcome::Valid, "{}", verdict.explanation);
    }

    /// An acknowledged transaction is taken out of every list: as if it had been lost.
    #[test]
    fn a_lost_append_is_rejected(seed: u64, pick: prop::sample::Index) {
        let mut history = append_history(seed, 150, 2);
        let reads: Vec<Value> = history.events.iter().filter(|event| event.phase == Phase::Ok)
            .flat_map(|event| event.value.as_array().unwrap().clone())
            .filter(|micro| micro[0] == "r").collect();
        // An append that two transactions read, in the middle of a list.
        let candidates: Vec<(Value, Value)> = reads.iter()
            .flat_map(|micro| micro[2].as_array().unwrap().iter().rev().skip(1).map(|value| (micro[1].clone(), value.clone())).collect::<Vec<_>>())
            .filter(|(_, value)| history.events.iter().any(|event| event.phase == Phase::Ok && event.value.as_array().unwrap().iter().any(|micro| micro[0] == "append" && micro[2] == *value)))
            .collect();
        prop_assume!(!candidates.is_empty());
        let (key, lost) = candidates[pick.index(candidates.len())].clone();
        for event in &mut history.events {
            for micro in event.value.as_array_mut().unwrap() {
                if micro[0] == "r" && micro[1] == key && micro[2].is_array() {
                    micro[2].as_array_mut().unwrap().retain(|value| *value != lost);
                }
            }
        }
        let verdict = judge(&history, append::check);
        // Lost before anybody who began later read the key: nobody can tell.
        let told = history.operations().unwrap();
        let writer = told.iter().find(|op| op.told.as_array().unwrap().iter().any(|micro| micro[0] == "append" && micro[2] == lost)).unwrap();
        let read_later = told.iter().any(|op| writer.precedes(op) && op.end == chaos_tests::history::End::Ok
            && op.told.as_array().unwrap().iter().any(|micro| micro[0] == "r" && micro[1] == key));
        prop_assert!(!read_later || verdict.outcome == Outcome::Invalid, "{:?}", verdict);
    }

    #[test]
    fn sets_of_a_model_are_sets(seed: u64) {
        let verdict = judge(&set_history(seed, 120), set::check);
        prop_assert_ne!(verdict.outcome, Outcome::Invalid, "{}", verdict.explanation);
    }

    #[test]
    fn a_lost_element_is_rejected(seed: u64, pick: prop::sample::Index) {
        let mut history = set_history(seed, 120);
        let added = history.operations().unwrap();
        let last_read = answers(&history, |event| event.f == "read").last().copied();
        prop_assume!(last_read.is_some());
        let call = added.iter().find(|op| op.ret == last_read).unwrap().call;
        let sure: Vec<Value> = added.iter()
            .filter(|op| op.f == "add" && op.end == chaos_tests::history::End::Ok && op.ret < Some(call))
            .map(|op| op.asked.clone()).collect();
        prop_assume!(!sure.is_empty());
        let lost = &sure[pick.index(sure.len())];
        history.events[last_read.unwrap()].value.as_array_mut().unwrap().retain(|value| value != lost);
        prop_assert_eq!(judge(&history, set::check).outcome, Outcome::Invalid);
    }
}
