//! Hashes: `hash` (told {member, revision, compact, hash}). Members that hash the same revision, compacted alike, tell the same.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::Verdict;
use crate::history::{End, Operation};

/// The property's name.
pub const PROPERTY: &str = "equal-hashes";

/// Judges all hashes.
pub fn check(operations: &[Operation]) -> Verdict {
    let mut known: HashMap<(i64, i64), (u64, &Operation)> = HashMap::new();
    let mut members: HashSet<&Value> = HashSet::new();
    let mut checked = 0;
    for operation in operations.iter().filter(|operation| operation.f == "hash" && operation.end == End::Ok) {
        let number = |name: &str| operation.told[name].as_i64().unwrap_or_default();
        let hash = operation.told["hash"].as_u64().unwrap_or_default();
        checked += 1;
        members.insert(&operation.told["member"]);
        let at = (number("revision"), number("compact"));
        let (other, first) = *known.entry(at).or_insert((hash, operation));
        if other != hash {
            let explanation = format!(
                "revision {} hashes to {other:x} at member {} and to {hash:x} at member {}",
                at.0, first.told["member"], operation.told["member"]
            );
            return Verdict::invalid(PROPERTY, checked, explanation).showing([first, operation]);
        }
    }
    let explanation = format!("{checked} hashes of {} members at {} revisions", members.len(), known.len());
    if members.len() < 2 || known.len() == checked {
        return Verdict::unknown(PROPERTY, checked, format!("nothing to compare: {explanation}"));
    }
    Verdict::valid(PROPERTY, checked, explanation)
}
