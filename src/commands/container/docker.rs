//! This program called `docker`: the words of books and scripts as they are printed there. Those of containers are
//! `barque container`'s; those of images mean the engine's.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use super::args::{BuildArgs, EngineArgs, References};
use super::{ContainerCommand, EXIT_ENGINE, EXIT_FAILED, build, dispatch, image, login, open, print, say};

/// The name that this program is called by.
pub(crate) const NAME: &str = "docker";
/// Hex digits of a build.
const BUILD_LENGTH: usize = 7;

/// Single containers on this machine.
#[derive(Debug, Parser)]
#[command(name = NAME, disable_help_subcommand = true)]
struct Docker {
    #[command(flatten)]
    engine: EngineArgs,
    /// Print the version.
    #[arg(short, long)]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Plain(ContainerCommand),
    /// The words about containers.
    #[command(subcommand)]
    Container(ContainerCommand),
    /// Lists images.
    Images(ImagesArgs),
    /// The words about images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Shows how an image came to be.
    History(HistoryArgs),
    /// Fetches an image from its registry.
    Pull(ImageArgs),
    /// Sends an image to its registry.
    Push(ImageArgs),
    /// Gives an image another name.
    Tag(TagArgs),
    /// Removes images.
    Rmi(References),
    /// Takes images out of an archive.
    Load(LoadArgs),
    /// Writes an image to an archive.
    Save(SaveArgs),
    /// Keeps name and password for a registry, once it has taken them.
    Login(login::LoginArgs),
    /// Prints the version.
    Version,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Lists images.
    #[command(visible_alias = "list")]
    Ls(ImagesArgs),
    /// Makes an image of a Dockerfile and the files beside it.
    Build(BuildArgs),
    /// Shows how an image came to be.
    History(HistoryArgs),
    /// Fetches an image from its registry.
    Pull(ImageArgs),
    /// Sends an image to its registry.
    Push(ImageArgs),
    /// Gives an image another name.
    Tag(TagArgs),
    /// Removes images.
    Rm(References),
    /// Removes images that have no name, and what builds kept that no image needs.
    Prune(PruneArgs),
    /// Takes images out of an archive.
    Load(LoadArgs),
    /// Writes an image to an archive.
    Save(SaveArgs),
}

#[derive(Debug, Args)]
struct HistoryArgs {
    /// Whole ids and commands.
    #[arg(long)]
    no_trunc: bool,
    /// The image.
    image: String,
}

#[derive(Debug, Args)]
struct PruneArgs {
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
struct ImagesArgs {
    /// Ids only.
    #[arg(short, long)]
    quiet: bool,
    /// Those of one repository, or one of them: NAME or NAME:TAG.
    repository: Option<String>,
}

#[derive(Debug, Args)]
struct ImageArgs {
    /// The image.
    image: String,
}

#[derive(Debug, Args)]
struct TagArgs {
    /// The image.
    source: String,
    /// Its other name.
    target: String,
}

#[derive(Debug, Args)]
struct LoadArgs {
    /// The archive.
    #[arg(short, long)]
    input: PathBuf,
}

#[derive(Debug, Args)]
struct SaveArgs {
    /// The archive. Default: standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The image.
    image: String,
}

/// Carries out what the command line says.
pub(crate) fn main() -> ExitCode {
    let docker = match Docker::try_parse() {
        Ok(docker) => docker,
        Err(error) => {
            // Nobody may be there to read it.
            let _closed = error.print();
            let makes_containers = std::env::args().nth(1).is_some_and(|word| word == "run");
            return match (error.use_stderr(), makes_containers) {
                (false, _) => ExitCode::SUCCESS,
                (true, true) => ExitCode::from(EXIT_ENGINE),
                (true, false) => ExitCode::from(EXIT_FAILED),
            };
        }
    };
    let done = match (&docker.command, docker.version) {
        (_, true) | (Some(Command::Version), _) => version(),
        (Some(Command::Plain(command) | Command::Container(command)), _) => {
            return dispatch(&docker.engine, command, NAME);
        }
        (Some(command), _) => open(&docker.engine).and_then(|engine| match command {
            Command::Images(args) | Command::Image(ImageCommand::Ls(args)) => {
                image::images(&engine, args.quiet, args.repository.as_deref())
            }
            Command::Image(ImageCommand::Build(args)) => build::run(&engine, args),
            Command::Image(ImageCommand::Prune(args)) => image::prune(&engine, args.force),
            Command::History(args) | Command::Image(ImageCommand::History(args)) => {
                image::history(&engine, &args.image, args.no_trunc)
            }
            Command::Pull(args) | Command::Image(ImageCommand::Pull(args)) => {
                image::pull(&engine, &args.image)
            }
            Command::Push(args) | Command::Image(ImageCommand::Push(args)) => {
                image::send(&engine, &args.image)
            }
            Command::Tag(args) | Command::Image(ImageCommand::Tag(args)) => {
                image::tag(&engine, &args.source, &args.target)
            }
            Command::Rmi(images) | Command::Image(ImageCommand::Rm(images)) => image::remove(&engine, images),
            Command::Load(args) | Command::Image(ImageCommand::Load(args)) => {
                image::load(&engine, &args.input)
            }
            Command::Save(args) | Command::Image(ImageCommand::Save(args)) => {
                image::save(&engine, &args.image, args.output.as_deref())
            }
            Command::Login(args) => login::run(&engine, args),
            Command::Version | Command::Plain(_) | Command::Container(_) => Ok(0),
        }),
        (None, _) => {
            say("docker: a command is missing: see docker --help");
            Ok(EXIT_FAILED)
        }
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("Error: {error:#}"));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Needs no engine. A build is told by the digest of its program.
fn version() -> anyhow::Result<u8> {
    let mut program = std::fs::File::open("/proc/self/exe").context("cannot read this program")?;
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut program, &mut buffer).context("cannot read this program")? {
            0 => break,
            length => digest.update(&buffer[..length]),
        }
    }
    let hex: String = digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    print(&format!("Docker version {}, build {}\n", env!("CARGO_PKG_VERSION"), &hex[..BUILD_LENGTH]))?;
    Ok(0)
}
