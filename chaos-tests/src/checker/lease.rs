//! Leases: `grant` (told [lease, seconds]), `keep-alive` (told [lease, seconds]), `revoke` lease, `look` (told [lease, there]).
//!
//! A lease lives for its time from the moment it was granted or kept alive. That moment lies after the call
//! began; so a key that is gone before that beginning plus the time, and that nobody asked to revoke, went too early. When a
//! lease ends late is no concern of this checker.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::Verdict;
use crate::history::{End, Operation};

/// The property's name.
pub const PROPERTY: &str = "lease-never-early";

struct Life<'a> {
    /// Nobody may see it gone before this.
    until: u64,
    renewed: &'a Operation,
}

/// Judges all looks.
pub fn check(operations: &[Operation]) -> Verdict {
    let mut in_order: Vec<&Operation> = operations.iter().collect();
    // What was certain first: a look counts when it ended, a renewal when it was answered, a revocation when it was asked.
    in_order
        .sort_by_key(|operation| if operation.f == "revoke" { Some(operation.call) } else { operation.ret });
    let mut lives: HashMap<i64, Life<'_>> = HashMap::new();
    let mut revoked: HashSet<i64> = HashSet::new();
    let (mut checked, mut seen_gone) = (0, 0);
    for operation in in_order {
        let id = lease(operation);
        match (operation.f.as_str(), operation.end, id) {
            ("grant" | "keep-alive", End::Ok, Some(id)) => {
                let seconds = operation.told[1].as_f64().unwrap_or_default();
                let until = operation.call_ns + (seconds * 1e9) as u64;
                let life = lives.entry(id).or_insert(Life { until, renewed: operation });
                if until > life.until {
                    *life = Life { until, renewed: operation };
                }
            }
            ("revoke", _, Some(id)) => {
                revoked.insert(id);
            }
            ("look", End::Ok, Some(id)) => {
                checked += 1;
                let there = operation.told[1].as_bool().unwrap_or(true);
                if there || revoked.contains(&id) {
                    continue;
                }
                seen_gone += 1;
                let ended = operation.ret_ns.unwrap_or(operation.call_ns);
                if let Some(life) = lives.get(&id).filter(|life| ended < life.until) {
                    let early = (life.until - ended) as f64 / 1e9;
                    let explanation = format!(
                        "the key of lease {id} was gone at least {early:.3} s before its lease could end, and nobody \
                         revoked it"
                    );
                    return Verdict::invalid(PROPERTY, checked, explanation)
                        .showing([life.renewed, operation]);
                }
            }
            _ => {}
        }
    }
    Verdict::valid(PROPERTY, checked, format!("{checked} looks, {seen_gone} after the end"))
}

fn lease(operation: &Operation) -> Option<i64> {
    match &operation.told {
        Value::Array(items) => items.first()?.as_i64(),
        one => one.as_i64(),
    }
}
