//! Tests against the real kernel. They need root and skip with a printed reason without it.
//!
//! This one static file plays every part: the test runner, the shim that the runtime executes
//! (`it shim ..`), and, copied into a root filesystem, the program inside the containers
//! (`/bin/workload work ..`).
#![expect(clippy::print_stderr, reason = "a test runner talks to its user")]
#![allow(
    clippy::unwrap_used,
    reason = "tests and test programs fail by panicking; without the test harness clippy cannot tell"
)]

mod attach;
mod escapes;
mod exec;
mod failures;
mod faults;
mod forbidden;
mod isolation;
mod layers;
mod lifecycle;
mod limits;
mod logs;
mod network;
mod policies;
mod rates;
mod services;
mod single;
mod support;
mod tracer;
mod users;
mod workload;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// A test: its name and what it does.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|arg| arg.to_str()) {
        Some("shim") => runtime::shim::main(args),
        Some("work") => workload::main(args),
        Some("traced") => tracer::traced(args),
        Some("trace") => tracer::trace(args),
        Some("tracee") => tracer::tracee(args),
        Some("start-and-die") => lifecycle::start_and_die(args),
        _ => run(std::env::args().skip(1).collect()),
    }
}

fn run(args: Vec<String>) -> ExitCode {
    let tests: Vec<Test> = [
        network::TESTS,
        policies::TESTS,
        rates::TESTS,
        services::TESTS,
        single::TESTS,
        lifecycle::TESTS,
        isolation::TESTS,
        logs::TESTS,
        limits::TESTS,
        failures::TESTS,
        faults::TESTS,
        users::TESTS,
        escapes::TESTS,
        exec::TESTS,
        attach::TESTS,
        layers::TESTS,
    ]
    .concat();
    if args.iter().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: {} kernel tests of the runtime need root", tests.len());
        println!("\ntest result: ok. 0 passed, 0 failed, {} skipped", tests.len());
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter));
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in tests.iter().filter(|(name, _)| wanted(name)) {
        let begin = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(test));
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {word} ({} ms)", begin.elapsed().as_millis());
        match outcome {
            Ok(()) => passed += 1,
            Err(_) => failed.push(*name),
        }
    }
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed, {} failed", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
