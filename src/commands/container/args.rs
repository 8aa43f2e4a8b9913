//! The words of `container` and of `docker`: flags as users of Docker know them.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand};

/// What can be done with single containers.
#[derive(Debug, Subcommand)]
pub(crate) enum ContainerCommand {
    /// Makes a container of an image and starts it.
    Run(RunArgs),
    /// Makes a container of an image, to be started later.
    Create(CreateArgs),
    /// Makes an image of a Dockerfile and the files beside it.
    Build(BuildArgs),
    /// Starts containers that do not run.
    Start(StartArgs),
    /// Asks containers to end, and sees to it that they do.
    Stop(StopArgs),
    /// Stops containers and starts them again.
    Restart(StopArgs),
    /// Sends the first processes of containers a signal: KILL, unless another is named.
    Kill(KillArgs),
    /// Removes containers that have ended.
    Rm(RmArgs),
    /// Lists containers.
    #[command(visible_alias = "ls")]
    Ps(PsArgs),
    /// Prints what a container has written.
    Logs(LogsArgs),
    /// Runs a further program in a running container.
    Exec(ExecArgs),
    /// Uses the input and output of a running container.
    Attach(AttachArgs),
    /// Shows everything about containers, as JSON.
    Inspect(InspectArgs),
    /// Waits until containers have ended, and prints their exit codes.
    Wait(References),
    /// Shows where a container's ports are.
    Port(PortArgs),
    /// Shows what this engine and this machine are.
    Info,
    /// Frees what a container held that has ended. Its shim does this.
    #[command(hide = true)]
    Settle(References),
}

/// Flags of `build`.
#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// A name for the image: NAME or NAME:TAG. May be given several times.
    #[arg(short, long, value_name = "NAME:TAG")]
    pub(super) tag: Vec<String>,
    /// The Dockerfile. Default: Dockerfile in the directory.
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// A value for an ARG: NAME=VALUE, or NAME for the value that the variable has here.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(super) build_arg: Vec<String>,
    /// A label for the image: NAME=VALUE.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(super) label: Vec<String>,
    /// The stage to end with, by name or number.
    #[arg(long, value_name = "STAGE")]
    pub(super) target: Option<String>,
    /// Do every step anew, though it was done before.
    #[arg(long)]
    pub(super) no_cache: bool,
    /// Ask the registry for newer base images.
    #[arg(long)]
    pub(super) pull: bool,
    /// Print the image's id only.
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Intermediate containers are always removed.
    #[arg(long, hide = true)]
    rm: bool,
    /// The directory whose files can be copied into the image.
    #[arg(value_name = "PATH")]
    pub(super) path: String,
}

/// One container or more.
#[derive(Debug, Args)]
pub(crate) struct References {
    /// By name, id, or the beginning of an id.
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
}

/// Flags of `run`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, args_override_self = true)]
pub(crate) struct RunArgs {
    /// Do not stay: print the id.
    #[arg(short, long)]
    pub(super) detach: bool,
    #[command(flatten)]
    pub(super) create: CreateFlags,
}

/// Flags of `create`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, args_override_self = true)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(super) create: CreateFlags,
}

/// What a new container is to be like.
#[derive(Debug, Args)]
pub(crate) struct CreateFlags {
    /// Print help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// Its name.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(super) name: String,
    /// Its host name. Default: the beginning of its id.
    #[arg(short = 'h', long, default_value = "", hide_default_value = true)]
    pub(super) hostname: String,
    /// Keep its input open.
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give it a terminal.
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Remove it when it has ended.
    #[arg(long)]
    pub(super) rm: bool,
    /// A port of this machine that leads to it: PORT:PORT, perhaps with ADDRESS: before and /PROTOCOL behind.
    #[arg(short, long, value_name = "PORT:PORT")]
    pub(super) publish: Vec<String>,
    /// A port that it listens at.
    #[arg(long, value_name = "PORT")]
    pub(super) expose: Vec<String>,
    /// A directory of this machine in it: DIRECTORY:DIRECTORY, perhaps with :ro behind.
    #[arg(short, long, value_name = "HOST:CONTAINER")]
    pub(super) volume: Vec<String>,
    /// A variable of its environment: NAME=VALUE, or NAME for the value here.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(super) env: Vec<String>,
    /// Its network: bridge, host, none, container:NAME.
    #[arg(long, visible_alias = "net", default_value = "bridge")]
    pub(super) network: String,
    /// Whose processes it sees: host, container:NAME. Default: its own.
    #[arg(long)]
    pub(super) pid: Option<String>,
    /// Whose System V IPC it has: host. Default: its own.
    #[arg(long)]
    pub(super) ipc: Option<String>,
    /// Whose host name it has: host, with the host's network. Default: its own.
    #[arg(long)]
    pub(super) uts: Option<String>,
    /// How it is held: seccomp=unconfined, seccomp=FILE, no-new-privileges.
    #[arg(long, value_name = "OPTION")]
    pub(super) security_opt: Vec<String>,
    /// host: its users are this machine's, although the engine maps those of others.
    #[arg(long)]
    pub(super) userns: Option<String>,
    /// A running container that it knows by name: CONTAINER, or CONTAINER:NAME.
    #[arg(long, value_name = "CONTAINER:NAME")]
    pub(super) link: Vec<String>,
    #[command(flatten)]
    pub(super) limits: LimitFlags,
    /// The program to start, in place of the image's.
    #[arg(long)]
    pub(super) entrypoint: Option<String>,
    /// The user to run as: NAME or NUMBER, and perhaps :GROUP.
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(super) user: String,
    /// The directory to start in.
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(super) workdir: String,
    /// A word for the user: NAME=VALUE.
    #[arg(short, long)]
    pub(super) label: Vec<String>,
    /// All rights and devices of this machine.
    #[arg(long)]
    pub(super) privileged: bool,
    /// Its files cannot be changed.
    #[arg(long)]
    pub(super) read_only: bool,
    /// A capability that it gets.
    #[arg(long)]
    pub(super) cap_add: Vec<String>,
    /// A capability that it does not get.
    #[arg(long)]
    pub(super) cap_drop: Vec<String>,
    /// The signal that asks it to stop.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(super) stop_signal: String,
    /// The image, and what to run in place of its command.
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE [COMMAND]")]
    pub(super) words: Vec<String>,
}

/// What a new container may use.
#[derive(Debug, Args)]
pub(crate) struct LimitFlags {
    /// Memory: 100m, 1g.
    #[arg(short, long)]
    pub(super) memory: Option<String>,
    /// Memory and swap together; -1: no limit of swap. Default: twice the memory.
    #[arg(long, allow_hyphen_values = true)]
    pub(super) memory_swap: Option<String>,
    /// Memory that is taken away last.
    #[arg(long)]
    pub(super) memory_reservation: Option<String>,
    /// Processors: 0.5, 2.
    #[arg(long)]
    pub(super) cpus: Option<String>,
    /// Weight of its processor time against others'; 1024 is usual.
    #[arg(short, long)]
    pub(super) cpu_shares: Option<u64>,
    /// The processors to run on: 0-2,5.
    #[arg(long)]
    pub(super) cpuset_cpus: Option<String>,
    /// The memory nodes to allocate from.
    #[arg(long)]
    pub(super) cpuset_mems: Option<String>,
    /// Processes and threads.
    #[arg(long, allow_hyphen_values = true)]
    pub(super) pids_limit: Option<i64>,
    /// Bytes a second read from a device: /dev/sda:1mb.
    #[arg(long, value_name = "DEVICE:RATE")]
    pub(super) device_read_bps: Vec<String>,
    /// Bytes a second written to a device.
    #[arg(long, value_name = "DEVICE:RATE")]
    pub(super) device_write_bps: Vec<String>,
    /// Reads a second from a device.
    #[arg(long, value_name = "DEVICE:RATE")]
    pub(super) device_read_iops: Vec<String>,
    /// Writes a second to a device.
    #[arg(long, value_name = "DEVICE:RATE")]
    pub(super) device_write_iops: Vec<String>,
}

/// Flags of `start`.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Show its output and end with it.
    #[arg(short, long)]
    pub(super) attach: bool,
    /// Write its input.
    #[arg(short, long)]
    pub(super) interactive: bool,
    #[command(flatten)]
    pub(super) of: References,
}

/// Flags of `stop` and `restart`.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Seconds before they are killed.
    #[arg(short, long, visible_alias = "timeout", default_value_t = 10)]
    pub(super) time: u64,
    #[command(flatten)]
    pub(super) of: References,
}

/// Flags of `kill`.
#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// The signal, by name or number.
    #[arg(short, long, default_value = "KILL")]
    pub(super) signal: String,
    #[command(flatten)]
    pub(super) of: References,
}

/// Flags of `rm`.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Also those that run.
    #[arg(short, long)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) of: References,
}

/// Flags of `ps`.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Also those that do not run.
    #[arg(short, long)]
    pub(super) all: bool,
    /// Ids only.
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Whole ids and commands.
    #[arg(long)]
    pub(super) no_trunc: bool,
    /// What to print for each: a template, or json.
    #[arg(long)]
    pub(super) format: Option<String>,
}

/// Flags of `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Go on until it has ended.
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Begin each line with its time.
    #[arg(short, long)]
    pub(super) timestamps: bool,
    /// So many lines from the end, or all.
    #[arg(short = 'n', long, default_value = "all")]
    pub(super) tail: String,
    /// The container.
    pub(super) container: String,
}

/// Flags of `exec`.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub(crate) struct ExecArgs {
    /// Do not stay; its output goes nowhere.
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub(super) detach: bool,
    /// Write its input.
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give it a terminal.
    #[arg(short, long)]
    pub(super) tty: bool,
    /// The container, and what to run in it.
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_name = "CONTAINER COMMAND")]
    pub(super) words: Vec<String>,
}

/// Flags of `attach`.
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Do not write its input.
    #[arg(long)]
    pub(super) no_stdin: bool,
    /// The container.
    pub(super) container: String,
}

/// Flags of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// What to print: a template.
    #[arg(short, long)]
    pub(super) format: Option<String>,
    #[command(flatten)]
    pub(super) of: References,
}

/// Flags of `port`.
#[derive(Debug, Args)]
pub(crate) struct PortArgs {
    /// The container.
    pub(super) container: String,
    /// One port of it: 80 or 80/tcp.
    pub(super) port: Option<String>,
}

/// Which engine.
#[derive(Debug, Args)]
pub(crate) struct EngineArgs {
    /// The engine's configuration file (YAML). Default: the one that BARQUE_ENGINE names, or /etc/barque/engine.yaml
    /// if there is one.
    #[arg(long, value_name = "FILE", global = true)]
    pub(super) engine: Option<PathBuf>,
}
