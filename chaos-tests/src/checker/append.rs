//! Transactions over append lists: strict serializability by cycles, as Elle does it.
//!
//! `txn` with micro-operations `["append", key, value]` and `["r", key, list]`. Every value is appended to its key once, so a
//! list tells in which order its writers came, and what a reader had not seen yet. From that follow edges
//! (who must come before whom); the order of real time adds more; a cycle is a contradiction. Anomalies bear Adya's names:
//!
//! | name | what |
//! |---|---|
//! | internal | a transaction does not see its own appends, or sees two states |
//! | duplicate-elements | one append shows twice |
//! | incompatible-order | two lists of one key of which neither begins the other |
//! | G1a | what a failed transaction wrote was read |
//! | G1b | what a transaction had not finished was read |
//! | G0, G1c, G-single, G2 | cycles of writes; and of reads of writes; with one anti-dependency; with several |
//! | …-realtime | the same, with the order of real time |
//!
//! A value that nobody saw comes after every list of its key that is known, since lists only grow: so a lost append is a
//! cycle, too.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::graph::{Because, Cycle, Graph, Kind};
use super::{CounterExample, Edge, Verdict};
use crate::history::{End, Operation};

/// The property's name.
pub const PROPERTY: &str = "strict-serializable";

enum Micro {
    Append(String, Value),
    Read(String, Vec<Value>),
}

struct Txn<'a> {
    operation: &'a Operation,
    micros: Vec<Micro>,
}

/// Judges all transactions.
pub fn check(operations: &[Operation]) -> Verdict {
    let mut txns = Vec::new();
    for operation in operations.iter().filter(|operation| operation.f == "txn") {
        match parse(operation) {
            Some(micros) => txns.push(Txn { operation, micros }),
            None => {
                let reason = format!("cannot understand the transaction {}", operation.told);
                return Verdict::unknown(PROPERTY, txns.len(), reason).showing([operation]);
            }
        }
    }
    let checked = txns.iter().filter(|txn| txn.operation.end == End::Ok).count();
    for txn in &txns {
        if let Some(reason) = internal(txn) {
            return Verdict::invalid(PROPERTY, checked, reason).showing([txn.operation]);
        }
    }
    let lists = match Lists::of(&txns) {
        Ok(lists) => lists,
        Err((reason, shown)) => {
            let operations = shown.into_iter().map(|number| txns[number].operation);
            return Verdict::invalid(PROPERTY, checked, reason).showing(operations);
        }
    };
    match first_cycle(&txns, &lists) {
        None => Verdict::valid(PROPERTY, checked, format!("{} keys", lists.order.len())),
        Some((name, cycle)) => cyclic(&txns, name, &cycle, checked),
    }
}

fn parse(operation: &Operation) -> Option<Vec<Micro>> {
    // Without an answer what was asked counts, with its appends only.
    let micros = operation.told.as_array()?.iter().map(|micro| {
        let [f, key, value] = micro.as_array()?.as_slice() else { return None };
        let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
        match f.as_str()? {
            "append" => Some(Some(Micro::Append(key, value.clone()))),
            "r" if operation.end != End::Ok => Some(None),
            "r" if value.is_null() => Some(Some(Micro::Read(key, Vec::new()))),
            "r" => Some(Some(Micro::Read(key, value.as_array()?.clone()))),
            _ => None,
        }
    });
    micros.collect::<Option<Vec<_>>>().map(|micros| micros.into_iter().flatten().collect())
}

/// What a transaction must see of itself.
fn internal(txn: &Txn<'_>) -> Option<String> {
    let mut expected: HashMap<&str, (bool, Vec<&Value>)> = HashMap::new();
    for micro in &txn.micros {
        match micro {
            Micro::Append(key, value) => expected.entry(key).or_default().1.push(value),
            Micro::Read(key, list) => {
                if let Some((whole, seen)) = expected.get(key.as_str()) {
                    let tail = list.iter().rev().take(seen.len()).collect::<Vec<_>>();
                    let same = tail.iter().rev().eq(seen.iter()) && (!whole || list.len() == seen.len());
                    if !same {
                        let list = Value::from(list.clone());
                        return Some(format!(
                            "internal: within one transaction, key {key} was read as {list}"
                        ));
                    }
                }
                expected.insert(key, (true, list.iter().collect()));
            }
        }
    }
    None
}

type Refusal = (String, Vec<usize>);

/// What the lists that were read say of the order of appends.
struct Lists<'a> {
    /// The longest list of each key.
    order: HashMap<&'a str, Vec<String>>,
    /// Who appended what.
    writer: HashMap<(&'a str, String), usize>,
    /// Readers with the length of what they saw, before their own appends.
    reads: Vec<(usize, &'a str, usize)>,
}

impl<'a> Lists<'a> {
    fn of(txns: &'a [Txn<'a>]) -> Result<Self, Refusal> {
        let mut writer = HashMap::new();
        let mut last_of: HashMap<(usize, &str), String> = HashMap::new();
        for (number, txn) in txns.iter().enumerate() {
            for micro in &txn.micros {
                if let Micro::Append(key, value) = micro {
                    let value = value.to_string();
                    last_of.insert((number, key), value.clone());
                    if let Some(other) = writer.insert((key.as_str(), value.clone()), number) {
                        let reason = format!("the workload appended {value} to key {key} twice");
                        return Err((reason, vec![other, number]));
                    }
                }
            }
        }
        let mut lists = Self { order: HashMap::new(), writer, reads: Vec::new() };
        let mut read_by: HashMap<&str, usize> = HashMap::new();
        for (number, txn) in txns.iter().enumerate().filter(|(_, txn)| txn.operation.end == End::Ok) {
            lists.take(txns, (number, txn), &mut read_by, &last_of)?;
        }
        Ok(lists)
    }

    fn take(
        &mut self,
        txns: &[Txn<'_>],
        (number, txn): (usize, &'a Txn<'a>),
        read_by: &mut HashMap<&'a str, usize>,
        last_of: &HashMap<(usize, &str), String>,
    ) -> Result<(), Refusal> {
        let mut own: HashMap<&str, usize> = HashMap::new();
        for micro in &txn.micros {
            let (key, list) = match micro {
                Micro::Append(key, _) => {
                    *own.entry(key).or_default() += 1;
                    continue;
                }
                Micro::Read(key, list) => {
                    (key.as_str(), list.iter().map(Value::to_string).collect::<Vec<_>>())
                }
            };
            self.known(txns, (number, key), &list)?;
            let longest = self.order.entry(key).or_default();
            let shorter = longest.len().min(list.len());
            if longest[..shorter] != list[..shorter] {
                let other = read_by.get(key).copied().unwrap_or(number);
                let reason = format!("incompatible-order: key {key} was read as {longest:?} and as {list:?}");
                return Err((reason, vec![other, number]));
            }
            // Its own appends at the end were looked at before; what stands in front of them is what it read.
            let before = list.len() - own.get(key).copied().unwrap_or(0).min(list.len());
            self.finished(key, &list[..before], number, last_of)?;
            self.reads.push((number, key, before));
            if list.len() > self.order[key].len() {
                self.order.insert(key, list);
                read_by.insert(key, number);
            }
        }
        Ok(())
    }

    /// Nothing twice, nothing that failed, nothing from nowhere.
    fn known(&self, txns: &[Txn<'_>], (number, key): (usize, &str), list: &[String]) -> Result<(), Refusal> {
        let mut there = HashSet::new();
        for value in list {
            if !there.insert(value) {
                return Err((format!("duplicate-elements: {value} is in key {key} twice"), vec![number]));
            }
            match self.writer.get(&(key, value.clone())) {
                None => {
                    let reason = format!("phantom: nobody appended {value} to key {key}");
                    return Err((reason, vec![number]));
                }
                Some(writer) if txns[*writer].operation.end == End::Fail => {
                    let reason = format!("G1a: {value} of key {key} was read, whose append had failed");
                    return Err((reason, vec![*writer, number]));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The end of a list is the last that its writer appended.
    fn finished(
        &self,
        key: &str,
        list: &[String],
        number: usize,
        last_of: &HashMap<(usize, &str), String>,
    ) -> Result<(), Refusal> {
        let Some(end) = list.last() else { return Ok(()) };
        let Some(writer) = self.writer.get(&(key, end.clone())) else { return Ok(()) };
        if *writer != number && last_of.get(&(*writer, key)) != Some(end) {
            let reason =
                format!("G1b: key {key} was read as ending with {end}, in the middle of a transaction");
            return Err((reason, vec![*writer, number]));
        }
        Ok(())
    }
}

const DATA: &[Because] = &[Because::WriteWrite, Because::WriteRead, Because::ReadWrite];
const ALL: &[Because] = &[Because::WriteWrite, Because::WriteRead, Because::ReadWrite, Because::Realtime];

/// The kinds of cycles, the worst first.
const KINDS: &[(&str, Kind)] = &[
    ("G0", Kind { allowed: &[Because::WriteWrite], special: None, specials_min: 0, specials_max: 0 }),
    (
        "G1c",
        Kind {
            allowed: &[Because::WriteWrite, Because::WriteRead],
            special: None,
            specials_min: 0,
            specials_max: 0,
        },
    ),
    ("G-single", Kind { allowed: DATA, special: Some(Because::ReadWrite), specials_min: 1, specials_max: 1 }),
    ("G2", Kind { allowed: DATA, special: Some(Because::ReadWrite), specials_min: 2, specials_max: 2 }),
    (
        "G0-realtime",
        Kind {
            allowed: &[Because::WriteWrite, Because::Realtime],
            special: None,
            specials_min: 0,
            specials_max: 0,
        },
    ),
    (
        "G1c-realtime",
        Kind {
            allowed: &[Because::WriteWrite, Because::WriteRead, Because::Realtime],
            special: None,
            specials_min: 0,
            specials_max: 0,
        },
    ),
    (
        "G-single-realtime",
        Kind { allowed: ALL, special: Some(Because::ReadWrite), specials_min: 1, specials_max: 1 },
    ),
    (
        "G2-realtime",
        Kind { allowed: ALL, special: Some(Because::ReadWrite), specials_min: 2, specials_max: 2 },
    ),
];

fn first_cycle(txns: &[Txn<'_>], lists: &Lists<'_>) -> Option<(&'static str, Cycle)> {
    let mut graph = Graph::new(txns.len());
    add_data(&mut graph, txns, lists);
    add_realtime(&mut graph, txns);
    let components = graph.components();
    for (name, kind) in KINDS {
        let cycles = components.iter().filter_map(|component| graph.shortest_cycle(component, kind));
        if let Some(cycle) = cycles.min_by_key(Vec::len) {
            return Some((name, cycle));
        }
    }
    None
}

fn add_data(graph: &mut Graph, txns: &[Txn<'_>], lists: &Lists<'_>) {
    let writer = |key: &str, value: &String| lists.writer.get(&(key, value.clone())).copied();
    for (key, order) in &lists.order {
        let writers: Vec<usize> = order.iter().filter_map(|value| writer(key, value)).collect();
        for pair in writers.windows(2) {
            graph.add(pair[0], pair[1], Because::WriteWrite);
        }
    }
    // Acknowledged appends that no list shows: they come after every list of their key.
    let seen: HashSet<(&str, &String)> =
        lists.order.iter().flat_map(|(key, order)| order.iter().map(|value| (*key, value))).collect();
    let mut unseen: HashMap<&str, Vec<usize>> = HashMap::new();
    for ((key, value), number) in &lists.writer {
        if txns[*number].operation.end == End::Ok && !seen.contains(&(*key, value)) {
            unseen.entry(key).or_default().push(*number);
        }
    }
    for (key, later) in &unseen {
        let last = lists.order.get(key).and_then(|order| order.last()).and_then(|value| writer(key, value));
        for (last, later) in last.iter().flat_map(|last| later.iter().map(move |later| (*last, *later))) {
            graph.add(last, later, Because::WriteWrite);
        }
    }
    for (reader, key, length) in &lists.reads {
        let order = &lists.order[key];
        if *length > 0
            && let Some(last) = writer(key, &order[*length - 1])
        {
            graph.add(last, *reader, Because::WriteRead);
        }
        match order.get(*length).and_then(|next| writer(key, next)) {
            Some(next) => graph.add(*reader, next, Because::ReadWrite),
            None => {
                for later in unseen.get(key).into_iter().flatten() {
                    graph.add(*reader, *later, Because::ReadWrite);
                }
            }
        }
    }
}

/// Edges from what ended to what began later, without those that follow from others.
fn add_realtime(graph: &mut Graph, txns: &[Txn<'_>]) {
    let mut moments: Vec<(usize, bool, usize)> = Vec::new();
    for (number, txn) in txns.iter().enumerate() {
        moments.push((txn.operation.call, false, number));
        if txn.operation.end == End::Ok {
            moments.extend(txn.operation.ret.map(|ret| (ret, true, number)));
        }
    }
    moments.sort_unstable();
    // Ended, and nobody that began after one of them has ended yet.
    let mut frontier: Vec<usize> = Vec::new();
    let mut before: HashMap<usize, Vec<usize>> = HashMap::new();
    for (_, is_end, number) in moments {
        if is_end {
            if let Some(earlier) = before.get(&number) {
                frontier.retain(|node| !earlier.contains(node));
            }
            frontier.push(number);
        } else {
            for earlier in &frontier {
                graph.add(*earlier, number, Because::Realtime);
            }
            before.insert(number, frontier.clone());
        }
    }
}

fn cyclic(txns: &[Txn<'_>], name: &str, cycle: &Cycle, checked: usize) -> Verdict {
    let mut operations: Vec<Operation> =
        cycle.iter().map(|(number, _)| txns[*number].operation.clone()).collect();
    let place = |operation: &Operation, all: &[Operation]| {
        all.iter().position(|other| other.call == operation.call).unwrap_or_default()
    };
    let order = operations.clone();
    operations.sort_by_key(|operation| operation.call);
    let mut edges = Vec::new();
    let mut words = Vec::new();
    for (at, (_, because)) in cycle.iter().enumerate() {
        let (from, to) = (place(&order[at], &operations), place(&order[(at + 1) % order.len()], &operations));
        let label = match because {
            Because::WriteWrite => "appended before",
            Because::WriteRead => "was read by",
            Because::ReadWrite => "did not see",
            Because::Realtime => "ended before",
        };
        words.push(format!("T{} {label} T{}", from + 1, to + 1));
        edges.push(Edge { from, to, label: label.to_owned() });
    }
    let explanation = format!("{name}: a cycle of {} transactions: {}", cycle.len(), words.join(", "));
    let mut verdict = Verdict::invalid(PROPERTY, checked, explanation);
    verdict.counter_example = Some(CounterExample { operations, edges });
    verdict
}
