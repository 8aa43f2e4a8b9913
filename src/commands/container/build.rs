//! `build`: the user's side of making an image. What is shown, what is fetched, and the commands that run meanwhile.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use node::engine::{BuildDesk, BuildOptions, DeskError, Engine};
use node::images::{Image, Reference};
use runtime::{AttachSpec, Runtime};

use super::args::BuildArgs;
use super::io::{self, Output};
use super::{image, print, process};
use crate::commands::image::{familiar, size};

/// `build`.
pub(super) fn run(engine: &Engine, args: &BuildArgs) -> anyhow::Result<u8> {
    let options = options(args)?;
    let mut desk = Desk { engine, quiet: args.quiet, at_work: Arc::default() };
    desk.pass_signals_on()?;
    let id = engine.build(&options, &mut desk)?;
    if args.quiet {
        print(&format!("{id}\n"))?;
        return Ok(0);
    }
    desk.say(&format!("Successfully built {}", image::short(&id)));
    for tag in &options.tags {
        desk.say(&format!("Successfully tagged {}", familiar(&tag.to_string())));
    }
    Ok(0)
}

fn options(args: &BuildArgs) -> anyhow::Result<BuildOptions> {
    let context = args.path.as_str();
    if context == "-" || context.contains("://") || context.starts_with("git@") {
        bail!("the build context {context} is not a directory of this machine: give the path of one");
    }
    let tag =
        |name: &String| Reference::parse(name).with_context(|| format!("invalid argument {name:?} for -t"));
    let mut values = BTreeMap::new();
    for argument in &args.build_arg {
        match argument.split_once('=') {
            Some((name, value)) => values.insert(name.to_owned(), value.to_owned()),
            None => std::env::var(argument).ok().and_then(|value| values.insert(argument.clone(), value)),
        };
    }
    Ok(BuildOptions {
        context: PathBuf::from(context),
        file: args.file.clone(),
        tags: args.tag.iter().map(tag).collect::<Result<_, _>>()?,
        args: values,
        labels: args.label.clone(),
        target: args.target.clone(),
        no_cache: args.no_cache,
        pull: args.pull,
    })
}

struct Desk<'a> {
    engine: &'a Engine,
    quiet: bool,
    at_work: Arc<Mutex<AtWork>>,
}

/// What a signal finds.
#[derive(Default)]
struct AtWork {
    /// The container that runs now, or is being started.
    container: Option<String>,
    /// Whether it was to end before it ran.
    interrupted: bool,
}

impl Desk<'_> {
    /// Who is told to end ends what it runs, and with it the build.
    fn pass_signals_on(&self) -> anyhow::Result<()> {
        let signals = io::hold_signals()?;
        let (runtime, at_work) = (self.engine.runtime().clone(), Arc::clone(&self.at_work));
        io::pass_signals_on(signals, None, move |signal| {
            let mut at_work = at_work.lock().unwrap_or_else(PoisonError::into_inner);
            at_work.interrupted = true;
            match &at_work.container {
                Some(container) => kill(&runtime, container),
                None => std::process::exit(128 + signal as i32),
            }
        });
        Ok(())
    }

    fn at_work(&self) -> MutexGuard<'_, AtWork> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry(&self, container: &str) -> anyhow::Result<i32> {
        let spec = AttachSpec { stdin: false, stdout: true, stderr: true };
        let started = self.engine.start(container, Some(spec))?;
        process::warn(&started);
        if self.at_work().interrupted {
            kill(self.engine.runtime(), container);
        }
        let (attachment, watch) = started.attached.context("the container is not attached to")?;
        let to = if self.quiet { Output::Error } else { Output::Standard };
        let outputs = [(attachment.stdout, to), (attachment.stderr, Output::Error)];
        let outputs: Vec<_> =
            outputs.into_iter().filter_map(|(from, to)| Some(io::carry_output(from?, to))).collect();
        io::wait_readable(&watch);
        for output in outputs {
            // What cannot be shown any more is lost to nobody.
            let _broken = output.join();
        }
        Ok(process::exit_code(self.engine, container, &watch)?.into())
    }
}

/// A shell that is process 1 does not end by what it does not handle. One that is not there yet is ended later.
fn kill(runtime: &Runtime, container: &str) {
    let _not_there = runtime.signal(container, Signal::SIGKILL as i32);
}

impl BuildDesk for Desk<'_> {
    fn begins(&mut self, context_bytes: u64) {
        self.say(&format!("Sending build context to Docker daemon  {}", size(context_bytes)));
    }

    fn say(&mut self, line: &str) {
        if !self.quiet {
            // Whoever does not listen any more still wants the image.
            let _closed = Output::Standard.write(format!("{line}\n").as_bytes());
        }
    }

    fn image(&mut self, name: &str, always: bool) -> Result<Image, DeskError> {
        let told = if self.quiet { Output::Error } else { Output::Standard };
        let here = if always { None } else { self.engine.image(name)? };
        match here {
            Some(image) => Ok(image),
            None => Ok(image::fetch(self.engine, &Reference::parse(name)?, told)?),
        }
    }

    fn run(&mut self, container: &str) -> Result<i32, DeskError> {
        self.at_work().container = Some(container.to_owned());
        let code = self.carry(container);
        self.at_work().container = None;
        Ok(code?)
    }
}
