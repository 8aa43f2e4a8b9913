//! `barque crictl`: the pods and containers of a node, on its machine, in the words of `crictl`; and the same for who calls
//! this program by that name.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use node::engine::LogOptions;
use node::local::LocalNode;

use super::image::{NodeArgs, config_of};
use super::print;
use super::words::{duration, seconds_since};
use crate::table::Table;

/// The name that this program is called by.
pub(crate) const NAME: &str = "crictl";
/// Hex digits of an id that are shown.
const ID_LENGTH: usize = 13;

/// The pods and containers of a node.
#[derive(Debug, Parser)]
#[command(name = NAME, version)]
struct Crictl {
    #[command(subcommand)]
    command: CrictlCommand,
}

/// What can be asked.
#[derive(Debug, Subcommand)]
pub(crate) enum CrictlCommand {
    /// Lists pods.
    Pods(PodsArgs),
    /// Lists containers.
    Ps(PsArgs),
    /// Prints what a container has written.
    Logs(LogsArgs),
}

/// Flags of `pods`.
#[derive(Debug, Args)]
pub(crate) struct PodsArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Print ids only.
    #[arg(short, long)]
    quiet: bool,
}

/// Flags of `ps`.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Ended ones as well.
    #[arg(short, long)]
    all: bool,
    /// Print ids only.
    #[arg(short, long)]
    quiet: bool,
    /// Print whole ids.
    #[arg(long)]
    no_trunc: bool,
}

/// Flags of `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Go on until the container ends.
    #[arg(short, long)]
    follow: bool,
    /// The last lines only.
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Begin each line with its time.
    #[arg(short, long)]
    timestamps: bool,
    /// The beginning of the container's id, or its name.
    container: String,
}

/// This program called `crictl`.
pub(crate) fn main() -> ExitCode {
    match run(&Crictl::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // When standard error is closed there is nobody to tell.
            let _closed = writeln!(std::io::stderr(), "{NAME}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Carries the command out.
pub(crate) fn run(command: &CrictlCommand) -> anyhow::Result<()> {
    match command {
        CrictlCommand::Pods(args) => pods(args),
        CrictlCommand::Ps(args) => containers(args),
        CrictlCommand::Logs(args) => logs(args),
    }
}

fn open(args: &NodeArgs) -> anyhow::Result<LocalNode> {
    Ok(LocalNode::open(&config_of(args)?)?)
}

fn pods(args: &PodsArgs) -> anyhow::Result<()> {
    let pods = open(&args.node)?.pods()?;
    if args.quiet {
        return print(&pods.iter().map(|pod| format!("{}\n", pod.id)).collect::<String>());
    }
    let mut table = Table::new(&["POD ID", "CREATED", "STATE", "NAME", "NAMESPACE"]);
    for pod in pods {
        let state = if pod.is_ready { "Ready" } else { "NotReady" };
        table.row(vec![
            short(&pod.id, false),
            ago(pod.created_at),
            state.to_owned(),
            pod.name,
            pod.namespace,
        ]);
    }
    print(&table.to_string())
}

fn containers(args: &PsArgs) -> anyhow::Result<()> {
    let mut containers = open(&args.node)?.containers()?;
    containers.retain(|container| args.all || container.state == "Running");
    if args.quiet {
        return print(&containers.iter().map(|found| format!("{}\n", found.id)).collect::<String>());
    }
    let titles =
        ["CONTAINER ID", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID", "POD", "NAMESPACE"];
    let mut table = Table::new(&titles);
    for container in containers {
        table.row(vec![
            short(&container.id, args.no_trunc),
            container.image,
            ago(container.created_at),
            container.state.to_owned(),
            container.name,
            container.attempt.to_string(),
            short(&container.pod_id, args.no_trunc),
            container.pod,
            container.namespace,
        ]);
    }
    print(&table.to_string())
}

fn logs(args: &LogsArgs) -> anyhow::Result<()> {
    let node = open(&args.node)?;
    let options = LogOptions { follow: args.follow, tail: args.tail, timestamps: args.timestamps };
    let mut logs = node.logs(&args.container, options)?;
    while let Some(pieces) = logs.next_pieces()? {
        for piece in pieces {
            let written = match piece.is_error {
                true => std::io::stderr().write_all(&piece.text),
                false => std::io::stdout().write_all(&piece.text),
            };
            written.context("cannot write the log")?;
        }
    }
    Ok(())
}

fn short(id: &str, whole: bool) -> String {
    if whole { id.to_owned() } else { id.chars().take(ID_LENGTH).collect() }
}

fn ago(nanos: Option<i64>) -> String {
    nanos.map_or_else(|| "-".to_owned(), |nanos| format!("{} ago", duration(seconds_since(nanos))))
}
