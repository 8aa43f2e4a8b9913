//! Locks: `acquire` (told [lock, token]), `release` [lock, token], `guarded-write` [lock, token], `lost` [lock, token].
//!
//! Two properties. *fencing*: a token is given once, tokens rise from one holder to the next, and a guarded write with an
//! older token never succeeds after one with a newer token did. *mutual-exclusion*: nobody is told that he holds what another
//! holds. A lock ends with its lease, whatever its holder believes; so a holder counts from the answer until he
//! asks to release, or records `lost`, or, if his lease's time is told as third element (seconds), until that may have passed.

use std::collections::HashMap;

use serde_json::Value;

use super::Verdict;
use crate::history::{End, Operation};

/// The name of the property of tokens.
pub const FENCING: &str = "fencing";
/// The name of the property of holders.
pub const EXCLUSION: &str = "mutual-exclusion";

struct Held<'a> {
    lock: String,
    token: i64,
    acquired: &'a Operation,
    from: u64,
    until: u64,
}

/// Judges all locks.
pub fn check(operations: &[Operation]) -> Vec<Verdict> {
    let done = |f: &'static str| {
        operations.iter().filter(move |operation| operation.f == f && operation.end == End::Ok)
    };
    let acquired: Vec<(&Operation, String, i64)> = done("acquire").filter_map(parts).collect();
    let guarded: Vec<(&Operation, String, i64)> = done("guarded-write").filter_map(parts).collect();
    vec![fencing(&acquired, &guarded), exclusion(operations, &acquired)]
}

fn parts(operation: &Operation) -> Option<(&Operation, String, i64)> {
    let told = operation.told.as_array()?;
    Some((operation, told.first()?.to_string(), told.get(1)?.as_i64()?))
}

type Named<'a> = (&'a Operation, String, i64);

fn fencing(acquired: &[Named<'_>], guarded: &[Named<'_>]) -> Verdict {
    let checked = acquired.len() + guarded.len();
    let mut given: HashMap<(&str, i64), &Operation> = HashMap::new();
    for (operation, lock, token) in acquired {
        if let Some(other) = given.insert((lock, *token), operation) {
            let explanation = format!("token {token} of lock {lock} was given twice");
            return Verdict::invalid(FENCING, checked, explanation).showing([other, *operation]);
        }
    }
    for (what, list) in [("was acquired", acquired), ("guarded a write", guarded)] {
        if let Some((earlier, later)) = falls(list) {
            let explanation = format!(
                "token {} of lock {} {what} after token {}, which is newer",
                later.2, later.1, earlier.2
            );
            return Verdict::invalid(FENCING, checked, explanation).showing([earlier.0, later.0]);
        }
    }
    Verdict::valid(FENCING, checked, format!("{} tokens, {} guarded writes", acquired.len(), guarded.len()))
}

/// Two of one lock, of which the one that certainly came later has the older token.
fn falls<'a>(list: &'a [Named<'a>]) -> Option<(&'a Named<'a>, &'a Named<'a>)> {
    let mut ends: Vec<&Named<'_>> = list.iter().collect();
    ends.sort_by_key(|(operation, _, _)| operation.ret);
    let mut begins: Vec<&Named<'_>> = list.iter().collect();
    begins.sort_by_key(|(operation, _, _)| operation.call);
    let mut newest: HashMap<&str, &Named<'_>> = HashMap::new();
    let mut ended = ends.into_iter().peekable();
    for later in begins {
        while let Some(earlier) = ended.next_if(|earlier| earlier.0.ret < Some(later.0.call)) {
            let newest = newest.entry(&earlier.1).or_insert(earlier);
            if earlier.2 > newest.2 {
                *newest = earlier;
            }
        }
        if let Some(earlier) = newest.get(later.1.as_str()).filter(|earlier| earlier.2 > later.2) {
            return Some((earlier, later));
        }
    }
    None
}

fn exclusion(operations: &[Operation], acquired: &[Named<'_>]) -> Verdict {
    let mut ended: HashMap<(String, i64), u64> = HashMap::new();
    for operation in operations.iter().filter(|operation| ["release", "lost"].contains(&operation.f.as_str()))
    {
        let asked = operation.asked.as_array();
        let lock = asked.and_then(|asked| asked.first()).map(Value::to_string);
        let token = asked.and_then(|asked| asked.get(1)).and_then(Value::as_i64);
        if let (Some(lock), Some(token)) = (lock, token) {
            let until = ended.entry((lock, token)).or_insert(operation.call_ns);
            *until = operation.call_ns.min(*until);
        }
    }
    let mut held: Vec<Held<'_>> = Vec::new();
    for (operation, lock, token) in acquired {
        let from = operation.ret_ns.unwrap_or(operation.call_ns);
        let released = ended.get(&(lock.clone(), *token)).copied().unwrap_or(u64::MAX);
        let seconds = operation.told.as_array().and_then(|told| told.get(2)).and_then(Value::as_f64);
        // The lease was granted before the lock was asked for, and is not renewed.
        let expires = seconds.map_or(u64::MAX, |seconds| operation.call_ns + (seconds * 1e9) as u64);
        held.push(Held {
            lock: lock.clone(),
            token: *token,
            acquired: operation,
            from,
            until: released.min(expires),
        });
    }
    held.sort_by(|a, b| (&a.lock, a.from).cmp(&(&b.lock, b.from)));
    let mut last: Option<&Held<'_>> = None;
    for holder in &held {
        if let Some(other) = last.filter(|other| other.lock == holder.lock && other.until > holder.from) {
            let explanation = format!(
                "lock {}: process {} (token {}) was told that it holds it while process {} (token {}) did",
                holder.lock, holder.acquired.process, holder.token, other.acquired.process, other.token
            );
            return Verdict::invalid(EXCLUSION, held.len(), explanation)
                .showing([other.acquired, holder.acquired]);
        }
        if last.is_none_or(|last| last.lock != holder.lock || last.until < holder.until) {
            last = Some(holder);
        }
    }
    Verdict::valid(EXCLUSION, held.len(), format!("{} times held", held.len()))
}
