//! Commands that have a process at the other end: `run`, `start`, `exec`, `attach`.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::{SigSet, Signal};
use node::engine::{Engine, EngineError, Started};
use runtime::{AttachSpec, Attachment, ExecSpec, ExecStreams};

use super::args::{AttachArgs, CreateFlags, ExecArgs, RunArgs, StartArgs};
use super::io::{self, Output, RawTerminal};
use super::{image, options, print, say};

/// The end of a program that is run in a container is asked for anew after so long.
const WAIT_STRETCH: Duration = Duration::from_secs(60);
/// Output that others hold open is waited for so long after a program's end.
const DRAIN_TIME_MAX: Duration = Duration::from_millis(500);
const DRAIN_PAUSE: Duration = Duration::from_millis(2);
/// As many digits as lists show are an id to `run`; fewer may be an image's name.
const ID_DIGITS_MIN: usize = 12;

/// Makes a container; its id.
pub(super) fn create(engine: &Engine, flags: &CreateFlags) -> anyhow::Result<String> {
    let options = options::read(flags)?;
    let image = image::get_or_pull(engine, &options.image)?;
    Ok(engine.create(options, &image)?.id)
}

/// `run`.
pub(super) fn run(engine: &Engine, args: &RunArgs) -> anyhow::Result<u8> {
    let flags = &args.create;
    if !args.detach {
        check_terminal(flags.interactive, flags.tty)?;
    }
    let ended = match stopped_container(engine, flags)? {
        Some(id) => id,
        None => create(engine, flags)?,
    };
    run_made(engine, args, &ended).inspect_err(|_| {
        // Who is to be removed at its end has had it.
        if flags.rm
            && let Err(left) = engine.remove(&ended, true)
        {
            say(&format!("container {ended} is left: {left}"));
        }
    })
}

/// The books run a container that has ended once more by its id; nothing else can be meant when no image has that
/// name.
fn stopped_container(engine: &Engine, flags: &CreateFlags) -> anyhow::Result<Option<String>> {
    let [word] = flags.words.as_slice() else { return Ok(None) };
    if word.len() < ID_DIGITS_MIN || !word.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let about = match engine.inspect(word) {
        Ok(about) if engine.image(word).ok().flatten().is_none() => about,
        Ok(_) | Err(EngineError::NoSuchContainer(_) | EngineError::Ambiguous(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let running = about["State"]["Running"].as_bool() == Some(true);
    Ok(about["Id"].as_str().filter(|_| !running).map(str::to_owned))
}

fn run_made(engine: &Engine, args: &RunArgs, id: &str) -> anyhow::Result<u8> {
    if args.detach {
        let started = engine.start(id, None)?;
        warn(&started);
        print(&format!("{id}\n"))?;
        return Ok(0);
    }
    follow(engine, id, Ends { stdin: args.create.interactive, terminal: args.create.tty })
}

/// `start`.
pub(super) fn start(engine: &Engine, args: &StartArgs) -> anyhow::Result<u8> {
    if !args.attach && !args.interactive {
        return Ok(super::each(&args.of.containers, |container| {
            engine.start(container, None).map(|started| warn(&started))
        }));
    }
    let [container] = args.of.containers.as_slice() else {
        anyhow::bail!("only one container can be attached to at once");
    };
    let terminal = has_terminal(engine, container)?;
    follow(engine, container, Ends { stdin: args.interactive, terminal })
}

/// `attach`.
pub(super) fn attach(engine: &Engine, args: &AttachArgs) -> anyhow::Result<u8> {
    let terminal = has_terminal(engine, &args.container)?;
    let signals = io::hold_signals()?;
    let ends = Ends { stdin: !args.no_stdin, terminal };
    let started = engine.attach(&args.container, ends.spec())?;
    carry(engine, started, ends, signals)
}

fn has_terminal(engine: &Engine, container: &str) -> anyhow::Result<bool> {
    Ok(engine.inspect(container)?["Config"]["Tty"].as_bool() == Some(true))
}

fn check_terminal(interactive: bool, tty: bool) -> anyhow::Result<()> {
    ensure!(!(interactive && tty) || std::io::stdin().is_terminal(), "the input device is not a TTY");
    Ok(())
}

/// Tells what the user should know of a start.
pub(super) fn warn(started: &Started) {
    started.warnings.iter().for_each(|warning| say(&format!("WARNING: {warning}")));
}

/// What of a container's main process the user has.
#[derive(Debug, Clone, Copy)]
struct Ends {
    stdin: bool,
    terminal: bool,
}

impl Ends {
    fn spec(self) -> AttachSpec {
        AttachSpec { stdin: self.stdin, stdout: true, stderr: !self.terminal }
    }
}

/// Starts a container and stays with it to its end.
fn follow(engine: &Engine, container: &str, ends: Ends) -> anyhow::Result<u8> {
    let signals = io::hold_signals()?;
    let started = engine.start(container, Some(ends.spec()))?;
    warn(&started);
    carry(engine, started, ends, signals)
}

/// Carries input and output until the container has ended; its exit code.
fn carry(engine: &Engine, started: Started, ends: Ends, signals: SigSet) -> anyhow::Result<u8> {
    let id = started.id;
    let (attachment, watch) = started.attached.context("the container is not attached to")?;
    let Attachment { connection, stdin, stdout, stderr, terminal } = attachment;
    let raw = if ends.terminal && ends.stdin { RawTerminal::enter()? } else { None };
    let (sender, target) = (engine.runtime().clone(), id.clone());
    io::pass_signals_on(signals, terminal, move |signal: Signal| {
        // Whoever has just ended takes no more signals.
        let _ended = sender.signal(&target, signal as i32);
    });
    if let Some(stdin) = stdin {
        io::carry_input(Arc::new(File::from(stdin)));
    }
    let outputs: Vec<_> = [(stdout, Output::Standard), (stderr, Output::Error)]
        .into_iter()
        .filter_map(|(from, to)| from.map(|from| io::carry_output(from, to)))
        .collect();
    io::wait_readable(&watch);
    for output in outputs {
        // What cannot be shown any more is in the log.
        let _broken = output.join();
    }
    drop((connection, raw));
    exit_code(engine, &id, &watch)
}

/// Frees what an ended container held; what it exited with.
pub(super) fn exit_code(engine: &Engine, id: &str, watch: &OwnedFd) -> anyhow::Result<u8> {
    let told = engine.exit_told(watch).map(|exit| exit.code);
    match engine.settle(id) {
        Ok(()) | Err(EngineError::NoSuchContainer(_)) => {}
        Err(error) => say(&format!("what container {id} held is not all free yet: {error}")),
    }
    let code = match told {
        Some(code) => code,
        None => engine.wait(id).context("how the container ended is lost")?,
    };
    Ok(u8::try_from(code).unwrap_or(super::EXIT_ENGINE))
}

/// `exec`.
pub(super) fn exec(engine: &Engine, args: &ExecArgs) -> anyhow::Result<u8> {
    let (container, command) = args.words.split_first().context("a container is missing")?;
    check_terminal(args.interactive, args.tty)?;
    let id = engine.running(container)?;
    let spec = ExecSpec {
        args: command.to_vec(),
        terminal: args.tty.then(io::window),
        stdin: args.interactive && !args.tty,
        detached: args.detach,
    };
    let signals = (!args.detach).then(io::hold_signals).transpose()?;
    let (process, streams) = engine.runtime().exec(&id, &spec).map_err(EngineError::from)?;
    let Some(signals) = signals else { return Ok(0) };
    let raw = if args.tty && args.interactive { RawTerminal::enter()? } else { None };
    let mut outputs = Vec::new();
    match streams {
        ExecStreams::Terminal(terminal) => {
            let window = terminal.try_clone().context("cannot copy a descriptor")?;
            // The user's keys reach the program by its terminal; other signals end this command, and with it the program.
            pass_window_on(signals, Some(window));
            let terminal = Arc::new(File::from(terminal));
            if args.interactive {
                io::carry_input(Arc::clone(&terminal));
            }
            outputs.push(io::carry(terminal, Output::Standard));
        }
        ExecStreams::Pipes { stdin, stdout, stderr } => {
            pass_window_on(signals, None);
            if let Some(stdin) = stdin {
                io::carry_input(Arc::new(File::from(stdin)));
            }
            outputs.push(io::carry_output(stdout, Output::Standard));
            outputs.push(io::carry_output(stderr, Output::Error));
        }
    }
    let exit = loop {
        let ended = process.wait(Instant::now() + WAIT_STRETCH).context("the program's end was not told")?;
        if let Some(exit) = ended {
            break exit;
        }
    };
    // What a program left behind may hold its output open for ever; what there is has been read soon.
    let deadline = Instant::now() + DRAIN_TIME_MAX;
    while outputs.iter().any(|output| !output.is_finished()) && Instant::now() < deadline {
        std::thread::sleep(DRAIN_PAUSE);
    }
    drop(raw);
    Ok(u8::try_from(exit.code).unwrap_or(super::EXIT_FAILED))
}

fn pass_window_on(signals: SigSet, terminal: Option<OwnedFd>) {
    io::pass_signals_on(signals, terminal, |signal| {
        // With the connection to the shim, the program ends.
        std::process::exit(128 + signal as i32);
    });
}
