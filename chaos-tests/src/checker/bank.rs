//! Bank: `transfer` {from, to, amount} between accounts, `read` of all balances {account: balance}.
//!
//! A read shows one moment, so the sum of balances is the same in each, and none is below zero.

use super::Verdict;
use crate::history::{End, Operation};

/// The property's name.
pub const PROPERTY: &str = "bank";

/// Judges all reads.
pub fn check(operations: &[Operation]) -> Verdict {
    let mut first: Option<(i64, &Operation)> = None;
    let mut checked = 0;
    for read in operations.iter().filter(|read| read.f == "read" && read.end == End::Ok) {
        let Some(balances) = read.told.as_object() else { continue };
        if balances.is_empty() {
            continue;
        }
        checked += 1;
        let mut sum = 0;
        for (account, balance) in balances {
            let Some(balance) = balance.as_i64() else {
                let explanation = format!("process {} read no balance of account {account}", read.process);
                return Verdict::invalid(PROPERTY, checked, explanation).showing([read]);
            };
            if balance < 0 {
                let explanation =
                    format!("account {account} holds {balance}, though transfers may not overdraw");
                return Verdict::invalid(PROPERTY, checked, explanation).showing([read]);
            }
            sum += balance;
        }
        match first {
            None => first = Some((sum, read)),
            Some((before, earlier)) if before != sum => {
                let explanation =
                    format!("all accounts held {before} together in one read and {sum} in another");
                return Verdict::invalid(PROPERTY, checked, explanation).showing([earlier, read]);
            }
            Some(_) => {}
        }
    }
    match first {
        None => Verdict::unknown(PROPERTY, 0, "the accounts were never read"),
        Some((sum, _)) => Verdict::valid(PROPERTY, checked, format!("{sum} in each of {checked} reads")),
    }
}
