//! Registers: `read` [key, value], `write` [key, value], `cas` [key, [old, new]]; each key an object of its own.
//!
//! A key alone is `null` as value. A `cas` whose comparison failed ends *fail*, and says nothing. Owns the
//! partition by key, what is known of calls without an answer, and the smallest example.
//!
//! Calls without an answer are what makes this search dear. Where every value is written once, two things are certain: an
//! unanswered write whose value nobody saw may be left out, and one whose value was seen took effect before
//! the first that saw it returned. So no call stays open for ever.

use std::collections::HashMap;

use serde_json::Value;

use super::linearizable::{Call, Found, Model, check as search};
use super::{CounterExample, Edge, SHOWN_MAX, Verdict};
use crate::history::{End, Operation};

/// The property's name.
pub const PROPERTY: &str = "linearizable";
/// Searches spent on making an example smaller.
const SHRINKS_MAX: usize = 300;
/// Calls of one key above which an example is cut to its end instead of searched for a smaller one.
const SHRINK_CALLS_MAX: usize = 4_000;

/// What one call did to a register.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    Read(Option<i64>),
    Write(i64),
    Cas(i64, i64),
}

impl Op {
    fn writes(&self) -> Option<i64> {
        match self {
            Self::Write(value) | Self::Cas(_, value) => Some(*value),
            Self::Read(_) => None,
        }
    }

    fn sees(&self) -> Option<i64> {
        match self {
            Self::Read(value) => *value,
            Self::Cas(old, _) => Some(*old),
            Self::Write(_) => None,
        }
    }
}

struct Register;

impl Model for Register {
    type State = Option<i64>;
    type Op = Op;

    fn initial(&self) -> Option<i64> {
        None
    }

    fn step(&self, state: &Option<i64>, op: &Op) -> Option<Option<i64>> {
        match op {
            Op::Read(value) => (state == value).then_some(*state),
            Op::Write(value) => Some(Some(*value)),
            Op::Cas(old, new) => (*state == Some(*old)).then_some(Some(*new)),
        }
    }
}

type Calls = Vec<Call<Op>>;

/// Judges every key.
pub fn check(operations: &[Operation]) -> Verdict {
    let mut keys: HashMap<String, Vec<(&Operation, Op)>> = HashMap::new();
    let mut checked = 0;
    for operation in operations {
        match parse(operation) {
            Ok(Some((key, op))) => {
                checked += 1;
                keys.entry(key).or_default().push((operation, op));
            }
            Ok(None) => {}
            Err(reason) => {
                return Verdict::unknown(PROPERTY, checked, reason).showing([operation]);
            }
        }
    }
    let mut names: Vec<&String> = keys.keys().collect();
    names.sort();
    let mut unknown = None;
    for name in names {
        let (operations, calls) = prepare(&keys[name]);
        match search(&Register, &calls) {
            Found::Linearizable => {}
            Found::Unknown(reason) => unknown = Some(format!("key {name}: {reason}")),
            Found::Not { .. } => return rejected(name, &operations, calls, checked),
        }
    }
    match unknown {
        Some(reason) => Verdict::unknown(PROPERTY, checked, reason),
        None => Verdict::valid(PROPERTY, checked, format!("{} keys", keys.len())),
    }
}

fn parse(operation: &Operation) -> Result<Option<(String, Op)>, String> {
    if !matches!(operation.f.as_str(), "read" | "write" | "cas") || operation.end == End::Fail {
        return Ok(None);
    }
    // A set's or a bank's read has no key in front.
    let Some([key, value]) = operation.told.as_array().map(Vec::as_slice) else { return Ok(None) };
    let strange = || format!("cannot understand {} {}", operation.f, operation.told);
    let op = match operation.f.as_str() {
        "read" if operation.end == End::Info => return Ok(None),
        "read" if value.is_null() => Op::Read(None),
        "read" => Op::Read(Some(value.as_i64().ok_or_else(strange)?)),
        "write" => Op::Write(value.as_i64().ok_or_else(strange)?),
        _ => {
            let pair = value.as_array().filter(|pair| pair.len() == 2).ok_or_else(strange)?;
            let at = |n: usize| pair[n].as_i64().ok_or_else(strange);
            Op::Cas(at(0)?, at(1)?)
        }
    };
    Ok(Some((key_text(key), op)))
}

fn key_text(key: &Value) -> String {
    key.as_str().map_or_else(|| key.to_string(), str::to_owned)
}

/// Calls as the search wants them, with their operations.
fn prepare<'a>(all: &[(&'a Operation, Op)]) -> (Vec<&'a Operation>, Calls) {
    let mut writers: HashMap<i64, usize> = HashMap::new();
    for (_, op) in all {
        if let Some(value) = op.writes() {
            *writers.entry(value).or_default() += 1;
        }
    }
    let by = deadlines(all, &writers);
    let (mut operations, mut calls) = (Vec::new(), Vec::new());
    for (number, (operation, op)) in all.iter().enumerate() {
        let mut ret = operation.ret.filter(|_| operation.end == End::Ok);
        if operation.end == End::Info && op.writes().is_some_and(|value| writers[&value] == 1) {
            match by.get(&number) {
                Some(deadline) => ret = Some((*deadline).max(operation.call + 1)),
                None => continue,
            }
        }
        operations.push(*operation);
        calls.push(Call { op: op.clone(), call: operation.call, ret });
    }
    (operations, calls)
}

/// By when calls without an answer must have taken effect: before the return of the first call that saw what they wrote. Such a call, if
/// it compared, saw something itself.
fn deadlines(all: &[(&Operation, Op)], writers: &HashMap<i64, usize>) -> HashMap<usize, usize> {
    let mut unanswered: HashMap<i64, usize> = HashMap::new();
    let mut seen: Vec<(i64, usize)> = Vec::new();
    for (number, (operation, op)) in all.iter().enumerate() {
        match (operation.end, op.writes(), op.sees(), operation.ret) {
            (End::Info, Some(value), _, _) if writers[&value] == 1 => {
                unanswered.insert(value, number);
            }
            (End::Ok, _, Some(value), Some(ret)) => seen.push((value, ret)),
            _ => {}
        }
    }
    let mut by: HashMap<usize, usize> = HashMap::new();
    while let Some((value, ret)) = seen.pop() {
        let Some(number) = unanswered.get(&value) else { continue };
        if by.get(number).is_none_or(|known| ret < *known) {
            by.insert(*number, ret);
            seen.extend(all[*number].1.sees().map(|before| (before, ret)));
        }
    }
    by
}

fn rejected(key: &str, operations: &[&Operation], calls: Calls, checked: usize) -> Verdict {
    let kept = shrink(calls);
    let Found::Not { call, open, states } = search(&Register, &kept.calls) else {
        return Verdict::invalid(PROPERTY, checked, format!("key {key} is not linearizable"));
    };
    let shown = |number: usize| operations[kept.numbers[number]];
    let culprit = shown(call);
    let states: Vec<String> =
        states.iter().map(|state| state.map_or("nothing".to_owned(), |value| value.to_string())).collect();
    let explanation = format!(
        "key {key}: process {} was told {} {} at {:.3} s, but the register can only have held {}",
        culprit.process,
        culprit.f,
        culprit.told,
        culprit.ret_ns.unwrap_or(culprit.call_ns) as f64 / 1e9,
        states.join(" or ")
    );
    // The last ones that could still be placed, what was open, and the one that could not.
    let mut numbers: Vec<usize> =
        (0..kept.calls.len()).filter(|number| kept.calls[*number].ret.is_some()).collect();
    numbers.sort_by_key(|number| std::cmp::Reverse(kept.calls[*number].ret.min(kept.calls[call].ret)));
    numbers.truncate(SHOWN_MAX - 1);
    numbers.extend(open.iter().chain([&call]));
    numbers.sort_by_key(|number| kept.calls[*number].call);
    numbers.dedup();
    let at = numbers.iter().position(|number| *number == call).unwrap_or_default();
    let edges = numbers
        .iter()
        .enumerate()
        .filter(|(_, number)| kept.calls[**number].op.writes().is_some())
        .filter(|(_, number)| shown(**number).precedes(culprit))
        .map(|(from, _)| Edge { from, to: at, label: "ended before".to_owned() })
        .collect();
    let mut verdict = Verdict::invalid(PROPERTY, checked, explanation);
    let operations = numbers.iter().map(|number| shown(*number).clone()).collect();
    verdict.counter_example = Some(CounterExample { operations, edges });
    verdict
}

struct Kept {
    calls: Calls,
    numbers: Vec<usize>,
}

/// Leaves calls out as long as what remains cannot be ordered either. Reads may go: an order of all would be one of the rest.
/// So may writes whose value nobody sees.
fn shrink(calls: Calls) -> Kept {
    let mut kept = Kept { numbers: (0..calls.len()).collect(), calls };
    // Nothing after the failing return matters.
    if let Found::Not { call, .. } = search(&Register, &kept.calls) {
        let until = kept.calls[call].ret.unwrap_or(usize::MAX);
        keep(&mut kept, |call| call.call <= until);
        for call in &mut kept.calls {
            call.ret = call.ret.filter(|ret| *ret <= until);
        }
    }
    if kept.calls.len() > SHRINK_CALLS_MAX {
        return kept;
    }
    let (mut chunk, mut searches) = (kept.calls.len() / 2, 0);
    while chunk > 0 {
        let mut begin = 0;
        while begin < kept.calls.len() && searches < SHRINKS_MAX {
            let end = (begin + chunk).min(kept.calls.len());
            let may_go = |number: usize| match &kept.calls[number].op {
                Op::Read(_) => true,
                other => {
                    let value = other.writes();
                    !kept.calls.iter().enumerate().any(|(at, call)| {
                        let stays = !(begin..end).contains(&at) || call.op.writes().is_some();
                        stays && call.op.sees() == value
                    })
                }
            };
            let rest: Vec<usize> = (0..kept.calls.len())
                .filter(|number| !(begin..end).contains(number) || !may_go(*number))
                .collect();
            let calls: Calls = rest.iter().map(|number| kept.calls[*number].clone()).collect();
            searches += 1;
            if rest.len() < kept.calls.len() && matches!(search(&Register, &calls), Found::Not { .. }) {
                kept = Kept { numbers: rest.iter().map(|number| kept.numbers[*number]).collect(), calls };
            } else {
                begin = end;
            }
        }
        chunk /= 2;
    }
    kept
}

fn keep(kept: &mut Kept, wanted: impl Fn(&Call<Op>) -> bool) {
    let rest: Vec<usize> = (0..kept.calls.len()).filter(|number| wanted(&kept.calls[*number])).collect();
    kept.numbers = rest.iter().map(|number| kept.numbers[*number]).collect();
    kept.calls = rest.iter().map(|number| kept.calls[*number].clone()).collect();
}
