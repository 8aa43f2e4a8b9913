//! A hundred thousand operations are judged in seconds, also where all are about one key.

use std::time::{Duration, Instant};

use chaos_tests::checker::{Outcome, append, registers};

use crate::models::{append_history, register_history};

/// Many times what it takes in a debug build on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_hundred_thousand_operations_on_one_register() {
    let operations = register_history(7, 100_000, 1).operations().unwrap();
    let began = Instant::now();
    let verdict = registers::check(&operations);
    assert_eq!(verdict.outcome, Outcome::Valid, "{}", verdict.explanation);
    println!("{} operations in {:?}", operations.len(), began.elapsed());
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

#[test]
fn a_hundred_thousand_transactions_over_lists() {
    let operations = append_history(7, 100_000, 10).operations().unwrap();
    let began = Instant::now();
    let verdict = append::check(&operations);
    assert_eq!(verdict.outcome, Outcome::Valid, "{}", verdict.explanation);
    println!("{} transactions in {:?}", operations.len(), began.elapsed());
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}
