//! `barque container`: single containers on this machine, and the same words for who calls this program `docker`.
//!
//! Results go to standard output, everything else to standard error. Exit codes are Docker's: 125 when a container
//! could not be made or started, 126 and 127 when its program cannot be executed or is not there, else the program's;
//! 1 for what failed otherwise.

mod args;
mod build;
mod docker;
mod image;
mod io;
mod list;
mod login;
mod options;
mod process;
mod template;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use node::engine::{Engine, EngineConfig, EngineError, LogOptions};

pub(crate) use self::args::ContainerCommand;
use self::args::{EngineArgs, LogsArgs, PortArgs, StopArgs};
pub(crate) use self::docker::{NAME as DOCKER, main as docker};
use super::print;

/// The configuration file without another being named.
const CONFIG_FILE: &str = "/etc/barque/engine.yaml";
/// Names a configuration file; the words of `docker` have no flag for it.
const CONFIG_VARIABLE: &str = "BARQUE_ENGINE";
/// No container, or none that runs, came of it.
const EXIT_ENGINE: u8 = 125;
const EXIT_FAILED: u8 = 1;

/// `barque container`.
#[derive(Debug, Args)]
pub(crate) struct ContainerArgs {
    #[command(flatten)]
    engine: EngineArgs,
    #[command(subcommand)]
    command: ContainerCommand,
}

/// Carries the command out; how it ends is how the process is to end.
pub(crate) fn run(args: &ContainerArgs) -> ExitCode {
    dispatch(&args.engine, &args.command, "barque")
}

/// The same for a program of another name.
fn dispatch(engine: &EngineArgs, command: &ContainerCommand, program: &str) -> ExitCode {
    let code_of = |error: &anyhow::Error| match (command, error.downcast_ref::<EngineError>()) {
        (
            ContainerCommand::Run(_) | ContainerCommand::Start(_),
            Some(EngineError::Start { exit_code, .. }),
        ) => u8::try_from(*exit_code).unwrap_or(EXIT_ENGINE),
        (ContainerCommand::Exec(_), Some(EngineError::Runtime(runtime::Error::Start(error)))) => {
            u8::try_from(error.exit_code()).unwrap_or(EXIT_FAILED)
        }
        (ContainerCommand::Run(_), _) => EXIT_ENGINE,
        _ => EXIT_FAILED,
    };
    match open(engine).and_then(|engine| carry_out(&engine, command)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("{program}: {error:#}"));
            ExitCode::from(code_of(&error))
        }
    }
}

/// Opens the engine that is meant.
fn open(args: &EngineArgs) -> anyhow::Result<Engine> {
    let named = args.engine.clone().or_else(|| std::env::var_os(CONFIG_VARIABLE).map(PathBuf::from));
    let file = match named {
        Some(file) => {
            Some(std::path::absolute(file).context("the engine's configuration file has no absolute path")?)
        }
        None => Some(PathBuf::from(CONFIG_FILE)).filter(|file| file.exists()),
    };
    let mut config: EngineConfig = match &file {
        Some(file) => crate::config::load(file)?,
        None => EngineConfig::default(),
    };
    if config.settle_command.is_empty() {
        config.settle_command = settle_command(file.as_deref())?;
    }
    Ok(Engine::open(config)?)
}

fn settle_command(file: Option<&Path>) -> anyhow::Result<Vec<String>> {
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).with_context(|| format!("{} is not text", path.display()))
    };
    let mut command =
        vec![text(&std::env::current_exe().context("this program has no path")?)?, "container".to_owned()];
    if let Some(file) = file {
        command.extend(["--engine".to_owned(), text(file)?]);
    }
    command.push("settle".to_owned());
    Ok(command)
}

fn carry_out(engine: &Engine, command: &ContainerCommand) -> anyhow::Result<u8> {
    match command {
        ContainerCommand::Run(args) => return process::run(engine, args),
        ContainerCommand::Build(args) => return build::run(engine, args),
        ContainerCommand::Start(args) => return process::start(engine, args),
        ContainerCommand::Exec(args) => return process::exec(engine, args),
        ContainerCommand::Attach(args) => return process::attach(engine, args),
        ContainerCommand::Create(args) => {
            let id = process::create(engine, &args.create)?;
            print(&format!("{id}\n"))?;
        }
        ContainerCommand::Ps(args) => list::containers(engine, args)?,
        ContainerCommand::Inspect(args) => return list::inspect(engine, args),
        ContainerCommand::Info => list::info(engine)?,
        ContainerCommand::Logs(args) => logs(engine, args)?,
        ContainerCommand::Port(args) => ports(engine, args)?,
        ContainerCommand::Stop(args) => {
            return Ok(each(&args.of.containers, |container| stop(engine, args, container)));
        }
        ContainerCommand::Restart(args) => {
            return Ok(each(&args.of.containers, |container| {
                stop(engine, args, container)?;
                engine.start(container, None).map(drop)
            }));
        }
        ContainerCommand::Kill(args) => {
            return Ok(each(&args.of.containers, |container| engine.kill(container, &args.signal)));
        }
        ContainerCommand::Rm(args) => {
            return Ok(each(&args.of.containers, |container| engine.remove(container, args.force)));
        }
        ContainerCommand::Settle(of) => {
            for container in &of.containers {
                match engine.settle(container) {
                    // Removed already: nothing is held.
                    Ok(()) | Err(EngineError::NoSuchContainer(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        ContainerCommand::Wait(of) => {
            for container in &of.containers {
                print(&format!("{}\n", engine.wait(container)?))?;
            }
        }
    }
    Ok(0)
}

fn stop(engine: &Engine, args: &StopArgs, container: &str) -> Result<(), EngineError> {
    engine.stop(container, Duration::from_secs(args.time))
}

/// Does something with each container and prints its name as it was given; what fails does not keep the others.
fn each(containers: &[String], act: impl Fn(&str) -> Result<(), EngineError>) -> u8 {
    let mut code = 0;
    for container in containers {
        let done =
            act(container).map_err(anyhow::Error::from).and_then(|()| print(&format!("{container}\n")));
        if let Err(error) = done {
            say(&format!("Error: {error:#}"));
            code = EXIT_FAILED;
        }
    }
    code
}

fn logs(engine: &Engine, args: &LogsArgs) -> anyhow::Result<()> {
    let tail = match args.tail.as_str() {
        "all" => None,
        lines => Some(lines.parse().with_context(|| format!("{lines:?} is no number of lines"))?),
    };
    let options = LogOptions { follow: args.follow, tail, timestamps: args.timestamps };
    let mut logs = engine.logs(&args.container, options)?;
    while let Some(pieces) = logs.next_pieces()? {
        for piece in pieces {
            let output = if piece.is_error { io::Output::Error } else { io::Output::Standard };
            output.write(&piece.text).context("cannot write the log")?;
        }
    }
    Ok(())
}

fn ports(engine: &Engine, args: &PortArgs) -> anyhow::Result<()> {
    let about = engine.inspect(&args.container)?;
    let wanted =
        args.port.as_ref().map(|port| if port.contains('/') { port.clone() } else { format!("{port}/tcp") });
    let ports = about["NetworkSettings"]["Ports"].as_object().cloned().unwrap_or_default();
    let mut text = String::new();
    for (inside, bindings) in &ports {
        if wanted.as_ref().is_some_and(|wanted| wanted != inside) {
            continue;
        }
        for binding in bindings.as_array().into_iter().flatten() {
            let word = |key: &str| binding[key].as_str().unwrap_or_default().to_owned();
            let place = format!("{}:{}", word("HostIp"), word("HostPort"));
            text += &if wanted.is_some() { format!("{place}\n") } else { format!("{inside} -> {place}\n") };
        }
    }
    if let Some(wanted) = wanted {
        anyhow::ensure!(
            !text.is_empty(),
            "port {wanted} of {} leads nowhere: it is not published",
            args.container
        );
    }
    print(&text)
}

/// Tells on standard error.
fn say(text: &str) {
    use std::io::Write as _;
    let _closed = writeln!(std::io::stderr(), "{text}");
}
