//! The simulation itself: that a seed is a run, that the store holds in many, and that mistakes are noticed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Command, Output};

/// Seeds that the short suite runs.
const SEEDS: &str = "200";
/// Seeds within which a mistake must show.
const SEEDS_TO_CATCH: &str = "60";

fn simulate(args: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_simulation")).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

#[test]
fn a_seed_is_a_run() {
    let trace = |seed: &str| {
        let (_, text) = simulate(&["--seed", seed]);
        text.lines().find(|line| line.contains("trace")).unwrap().to_owned()
    };
    for seed in ["1", "2", "3", "7", "8", "10", "20"] {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
    assert_ne!(trace("1"), trace("2"));
}

#[test]
fn the_store_holds() {
    let (output, text) = simulate(&["--seeds", SEEDS, "--jobs", "2"]);
    println!("measured: simulation: {}", text.lines().last().unwrap_or_default());
    assert!(output.status.success(), "{text}");
}

fn is_caught(mutant: &str) {
    is_caught_among(mutant, &["--seeds", SEEDS_TO_CATCH]);
}

fn is_caught_in_clusters(mutant: &str) {
    is_caught_among(mutant, &["--seed", "200", "--step", "10", "--seeds", SEEDS_TO_CATCH]);
}

fn is_caught_among(mutant: &str, seeds: &[&str]) {
    let (output, text) = simulate(&[&["--mutant", mutant, "--jobs", "2", "--fail-fast"], seeds].concat());
    assert_eq!(output.status.code(), Some(1), "{text}");
    println!(
        "measured: {mutant}: {}",
        text.lines().find(|line| line.contains("Invalid") || line.contains("Error")).unwrap_or_default()
    );
}

#[test]
fn an_acknowledgement_before_the_flush_is_caught() {
    is_caught("acknowledge-before-fsync");
}

#[test]
fn a_forgotten_vote_is_caught() {
    is_caught("forget-vote");
}

#[test]
fn a_lease_that_ends_early_is_caught() {
    is_caught("end-leases-early");
}

#[test]
fn a_change_that_watchers_are_not_told_of_is_caught() {
    is_caught("drop-watch-event");
}

#[test]
fn a_pod_that_is_bound_by_who_leads_no_more_is_caught() {
    is_caught_in_clusters("bind-without-fence");
}

#[test]
fn a_pod_that_counts_as_ended_with_its_node_is_caught() {
    is_caught_in_clusters("forget-dead-nodes");
}

#[test]
fn nodes_that_are_given_more_than_they_can_hold_are_caught() {
    is_caught_in_clusters("forget-requests");
}

#[test]
fn a_log_that_is_cut_back_too_early_is_caught() {
    is_caught("purge-before-checkpoint");
}

/// And what failed is found with fewer faults, by the command that is printed.
#[test]
fn reads_that_ask_nobody_are_caught_and_shrunk() {
    let (output, text) =
        simulate(&["--mutant", "skip-read-index", "--seeds", SEEDS_TO_CATCH, "--jobs", "2", "--fail-fast"]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let command = text.lines().last().unwrap();
    let (_, args) = command.split_once(" -- ").unwrap();
    let (again, text) = simulate(&args.split(' ').collect::<Vec<_>>());
    assert_eq!(again.status.code(), Some(1), "{command}: {text}");
    assert!(text.contains("Invalid"), "{text}");
}
