//! The node agent against the real kernel and a fake control plane. Needs root; skips with a printed reason
//! without it.
//!
//! This one static file plays every part: the test runner, the shim that the runtime executes
//! (`it shim ..`), and, copied into an image, the program inside the containers (`/barque work ..`). The
//! runner works in a network namespace of its own, so that bridges and routes meet nobody else's.
#![expect(clippy::print_stderr, reason = "a test runner talks to its user")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and test programs fail by panicking; without the test harness clippy cannot tell"
)]

mod adoption;
mod cni;
mod containerd;
mod control;
mod cri;
mod faults;
mod hooks;
mod host;
mod host_ports;
mod images;
mod instances;
mod killed;
mod leadership;
mod lifecycle;
mod order;
mod other_runtime;
mod peers;
mod pressure;
mod probes;
mod proxy;
mod pull_policies;
mod pulls;
mod pushes;
mod registry;
mod restarts;
mod shutdown;
mod static_pods;
mod tracer;
mod users;
mod volumes;
mod workload;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Instant;

/// A test: its name and what it does.
type Test = (&'static str, fn());

/// What tests write that may still be written to when they end; removed after the last.
static SCRATCH: OnceLock<PathBuf> = OnceLock::new();

/// A new directory in the scratch of this run.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(SCRATCH.get().expect("made before the tests")).unwrap()
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|arg| arg.to_str()) {
        Some("shim") => runtime::shim::main(args),
        Some("work") => workload::main(args),
        Some("agent") => host::agent(args),
        Some("trace-agent") => tracer::trace(args),
        Some("tracee-agent") => tracer::tracee(args),
        _ => run(std::env::args().skip(1).collect()),
    }
}

fn run(args: Vec<String>) -> ExitCode {
    let tests: Vec<Test> = [
        images::TESTS,
        lifecycle::TESTS,
        restarts::TESTS,
        hooks::TESTS,
        order::TESTS,
        instances::TESTS,
        probes::TESTS,
        pulls::TESTS,
        proxy::TESTS,
        pushes::TESTS,
        pull_policies::TESTS,
        adoption::TESTS,
        leadership::TESTS,
        volumes::TESTS,
        users::TESTS,
        faults::TESTS,
        killed::TESTS,
        pressure::TESTS,
        host_ports::TESTS,
        cni::TESTS,
        peers::TESTS,
        static_pods::TESTS,
        shutdown::TESTS,
        cri::life::TESTS,
        cri::processes::TESTS,
        other_runtime::TESTS,
    ]
    .concat();
    if args.iter().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: {} tests of the node agent need root", tests.len());
        println!("\ntest result: ok. 0 passed, 0 failed, {} skipped", tests.len());
        return ExitCode::SUCCESS;
    }
    host::own_network();
    let scratch = tempfile::Builder::new().prefix("barque-node-scratch-").tempdir().unwrap();
    SCRATCH.get_or_init(|| scratch.path().to_owned());
    // `NODE_TEST_LOG=1` shows what the agents say, the steps' times among it.
    if std::env::var_os("NODE_TEST_LOG").is_some() {
        tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG).init();
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
