//! Barque: a distributed cluster store and scheduler that serves the Kubernetes API, in one binary.
//!
//! This package is composition only: command line, configuration files, logging, signals, and `up`/`down`,
//! which make and remove a whole cluster on one machine.

mod bench;
mod cli;
mod client;
mod commands;
mod config;
mod demo;
mod endpoint;
mod gathered;
mod kubeconfig;
mod logging;
mod memory;
mod signals;
mod store;
mod table;
mod up;
mod virtual_address;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};

/// A static glibc's own allocator took 12 % of the members' processor time under load (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a failed command exits with. (A wrong command line exits with 2, by clap.)
const EXIT_FAILED: u8 = 1;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let called = args.next();
    // These two live beside every container and sandbox and must stay as small as they can be, so nothing
    // else is set up before them.
    match args.next().as_deref().and_then(|first| first.to_str()) {
        Some("shim") => runtime::shim::main(args),
        Some("pause") => runtime::pause::main(),
        // What it measures is the way here.
        Some(bench::pods::clock::WORD) => return bench::pods::clock::main(),
        // Its flags are etcd's, which are not written as ours are.
        Some("store") => return report(store::run(args)),
        _ => {}
    }
    match called.as_deref().and_then(|called| Path::new(called).file_name()?.to_str()) {
        Some(commands::container::DOCKER) => return commands::container::docker(),
        Some(commands::crictl::NAME) => return commands::crictl::main(),
        _ => {}
    }
    let cli = Cli::parse();
    if let Command::Container(args) = &cli.command {
        return commands::container::run(args);
    }
    if let Command::Chaos(command) = &cli.command {
        // How it ends tells the verdict.
        return commands::chaos::run(command).unwrap_or_else(|error| report(Err(error)));
    }
    report(run(&cli))
}

fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // When standard error is closed there is nobody to tell.
            let _closed = writeln!(std::io::stderr(), "barque: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    if cli.new_session {
        nix::unistd::setsid().map_err(|errno| anyhow::anyhow!("cannot begin a new session: {errno}"))?;
    }
    if let Some(mutant) = &cli.test_mutant {
        raft_store::mutants::choose(mutant).map_err(anyhow::Error::msg)?;
    }
    let long_running = matches!(
        cli.command,
        Command::Control(_) | Command::Node(_) | Command::Cri(_) | Command::Endpoint(_)
    );
    if long_running {
        logging::start(&cli.log_level)?;
    }
    match &cli.command {
        Command::Up(args) => commands::up::run(args, &cli.log_level),
        Command::Down(args) => commands::down::run(args),
        Command::Status(args) => commands::status::run(args),
        Command::Explain(command) => commands::explain::run(command),
        Command::Kubeconfig(args) => commands::kubeconfig::run(args),
        Command::Token(command) => commands::token::run(command),
        Command::Control(args) => commands::control::run(args),
        Command::Node(args) => commands::node::run(args),
        Command::Cri(args) => commands::cri::run(args),
        Command::Endpoint(args) => commands::endpoint::run(args),
        Command::Member(command) => commands::member::run(command),
        Command::Leader(command) => commands::leader::run(command),
        Command::Snapshot(command) => commands::snapshot::run(command),
        Command::Store(args) => store::run(args.flags.iter().cloned()),
        Command::Image(command) => commands::image::run(command),
        Command::Crictl(command) => commands::crictl::run(command),
        Command::Container(args) => {
            let _code = commands::container::run(args);
            Ok(())
        }
        Command::Hello(args) => demo::run_hello(args),
        Command::Demo(command) => demo::run(command),
        Command::Bench(command) => commands::bench::run(command),
        Command::Chaos(command) => commands::chaos::run(command).map(drop),
        Command::Version => commands::version::run(),
    }
}
