//! The command line: every subcommand, its flags and its help text. Nothing happens here.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Where clusters made by `barque up` keep their files, unless told otherwise.
pub(crate) const DATA_DIR: &str = "/var/lib/barque";
/// The name of a cluster made by `barque up`, unless told otherwise.
pub(crate) const CLUSTER_NAME: &str = "barque";

/// A cluster store and scheduler that serves the Kubernetes API, in one binary.
#[derive(Debug, Parser)]
#[command(name = "barque", version, disable_help_subcommand = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// What is logged, to stderr: a level (error, warn, info, debug, trace), or levels by target, as in
    /// `info,raft_store=debug`.
    #[arg(long, global = true, value_name = "FILTER", default_value = "info,openraft=warn")]
    pub(crate) log_level: String,

    /// Leaves the terminal's session before anything else. Used by `barque up` for what it starts.
    #[arg(long, global = true, hide = true)]
    pub(crate) new_session: bool,

    /// Makes a mistake, for tests that see to it that it is noticed.
    #[arg(long, global = true, hide = true, value_name = "NAME")]
    pub(crate) test_mutant: Option<String>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a whole cluster on this machine: masters and nodes, each a host of its own.
    Up(UpArgs),
    /// Removes a cluster made by `up`: processes, containers, mounts, links, files.
    Down(DownArgs),
    /// Shows masters, leader, term, applied index and nodes.
    Status(StatusArgs),
    /// Says why the scheduler put a pod where it is, or nowhere: node by node, rule by rule.
    #[command(subcommand)]
    Explain(crate::commands::explain::ExplainCommand),
    /// Prints the path of a cluster's kubeconfig, for `export KUBECONFIG=$(barque kubeconfig)`.
    Kubeconfig(KubeconfigArgs),
    /// Makes the tokens with which machines become part of a cluster.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Runs one control-plane replica (a master).
    Control(ConfigArgs),
    /// Runs the node agent of a machine that runs pods.
    Node(ConfigArgs),
    /// Serves this machine's container runtime on a unix socket, for crictl or a kubelet (Kubernetes' CRI, v1).
    ///
    /// It has a runtime, images and a network of its own, apart from those of `barque node`. Without --config:
    /// socket /run/barque/cri.sock, data in /var/lib/barque/cri, sandboxes in 10.88.0.0/16 on the bridge cri0.
    /// Containers go on when it ends, and are found again. Needs root.
    Cri(CriArgs),
    /// Runs a local TCP endpoint that follows the healthy masters.
    Endpoint(EndpointArgs),
    /// Runs one member of a store alone, in place of etcd. `barque store --help` lists its flags, which are
    /// etcd's.
    #[command(disable_help_flag = true)]
    Store(StoreArgs),
    /// Lists, adds, removes, promotes and updates members of a store.
    #[command(subcommand)]
    Member(crate::commands::member::MemberCommand),
    /// Hands the leadership of a store over.
    #[command(subcommand)]
    Leader(crate::commands::leader::LeaderCommand),
    /// Saves, checks and restores snapshots of a store.
    #[command(subcommand)]
    Snapshot(crate::commands::snapshot::SnapshotCommand),
    /// Lists, pulls, pushes, imports, exports and removes the images of a node.
    #[command(subcommand)]
    Image(crate::commands::image::ImageCommand),
    /// Shows the pods and containers of a node and their logs, on its machine, in the words of `crictl`.
    #[command(subcommand)]
    Crictl(crate::commands::crictl::CrictlCommand),
    /// Runs single containers on this machine, without any cluster, in the words of `docker`.
    Container(Box<crate::commands::container::ContainerArgs>),
    /// Serves "Hey there" over HTTP: the workload of the built-in image `barque/hello:1.0`.
    Hello(crate::demo::HelloArgs),
    /// Runs the other programs of the books' examples.
    #[command(subcommand)]
    Demo(crate::demo::DemoCommand),
    /// Measures.
    #[command(subcommand)]
    Bench(crate::bench::BenchCommand),
    /// Breaks clusters on purpose, and judges what they did meanwhile.
    #[command(subcommand)]
    Chaos(crate::commands::chaos::ChaosCommand),
    /// Prints the version.
    Version,
}

/// Flags that name a cluster made by `up`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterArgs {
    /// The cluster's name.
    #[arg(long, default_value = CLUSTER_NAME)]
    pub(crate) name: String,

    /// The directory that clusters' files lie in [default: where the cluster of that name is up, or /var/lib/barque].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

impl ClusterArgs {
    /// The directory that was asked for, or the default.
    pub(crate) fn data_dir(&self) -> &Path {
        self.data_dir.as_deref().unwrap_or(Path::new(DATA_DIR))
    }
}

/// Flags of `up`.
#[derive(Debug, Clone, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,

    /// How many masters: 1, 3, 5, 7 or 9.
    #[arg(long, default_value_t = 3)]
    pub(crate) masters: u8,

    /// How many nodes.
    #[arg(long, default_value_t = 2)]
    pub(crate) nodes: u8,

    /// The network of masters and nodes, /24 or larger, as in 10.89.0.0/24. Default: the first of
    /// 10.89.0.0/24 to 10.89.255.0/24 that this machine does not use.
    #[arg(long, value_name = "PREFIX")]
    pub(crate) subnet: Option<runtime::net::Prefix>,

    /// The port on 127.0.0.1 at which the cluster's API is served.
    #[arg(long, default_value_t = 6443)]
    pub(crate) port: u16,

    /// Run a node on every master too. It takes only pods that tolerate the taint node-role.kubernetes.io/master, unless
    /// there is no other node.
    #[arg(long)]
    pub(crate) master_nodes: bool,

    /// Give the API one address on that network, its tenth, which the leading master holds.
    #[arg(long)]
    pub(crate) virtual_address: bool,

    /// How many addresses of that network Services of type LoadBalancer may get, at most 20. Default: none, and such
    /// Services stay pending.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(crate) load_balancer_addresses: u8,

    /// When something fails, leave what was made, for a look at its logs.
    #[arg(long)]
    pub(crate) keep_failed: bool,

    /// One more flag for each master, before its own: for experiments.
    #[arg(long = "master-flag", value_name = "FLAG", allow_hyphen_values = true, hide = true)]
    pub(crate) master_flags: Vec<String>,

    /// Start only this process of a cluster that is there, and wait for nothing: for experiments.
    #[arg(long, value_name = "PROCESS", hide = true)]
    pub(crate) only: Option<String>,
}

/// Flags of `down`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

/// Flags of `status`.
#[derive(Debug, Clone, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,

    /// Ask the cluster of this kubeconfig instead of one made by `up` on this machine.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Also show every process and its memory.
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// Flags of `kubeconfig`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct KubeconfigArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,

    #[command(subcommand)]
    pub(crate) command: Option<KubeconfigCommand>,
}

/// What else can be done with kubeconfigs.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum KubeconfigCommand {
    /// Makes an administrator's kubeconfig out of the control token and prints it.
    Create(KubeconfigCreateArgs),
}

/// Flags of `kubeconfig create`.
#[derive(Debug, Clone, Args)]
pub(crate) struct KubeconfigCreateArgs {
    /// The file that holds the cluster's control token.
    #[arg(long, value_name = "FILE")]
    pub(crate) from: PathBuf,

    /// Address and port of a master, or of an endpoint in front of the masters.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) server: SocketAddr,

    /// The user's name, as it stands in the certificate.
    #[arg(long, default_value = "admin")]
    pub(crate) user: String,

    /// The cluster's name, as kubectl shows it.
    #[arg(long, default_value = CLUSTER_NAME)]
    pub(crate) cluster_name: String,
}

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Makes a token and prints it.
    Create(TokenCreateArgs),
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenRole {
    /// The cluster's root secret: the same one on every master, and nowhere else.
    Control,
    /// Lets machines join as nodes until it expires.
    Node,
}

/// Flags of `token create`.
#[derive(Debug, Args)]
pub(crate) struct TokenCreateArgs {
    /// What the token is for.
    #[arg(long, value_enum)]
    pub(crate) role: TokenRole,

    /// How long a node token is valid: 30m, 24h, 7d.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = crate::config::parse_duration)]
    pub(crate) ttl: std::time::Duration,

    /// The file that holds the cluster's control token; needed for a node token.
    #[arg(long, value_name = "FILE", required_if_eq("role", "node"))]
    pub(crate) from: Option<PathBuf>,
}

/// What a long-running process is configured by.
#[derive(Debug, Default, Args)]
pub(crate) struct ConfigArgs {
    /// The configuration file (YAML).
    #[arg(long, value_name = "FILE", required_unless_present = "set")]
    pub(crate) config: Option<PathBuf>,
    /// A key of the configuration, before what the file says: maxPods=50, podNetwork.encapsulation=always.
    ///
    /// The value is YAML; `\.` is a dot within a key. May be given more than once; what comes later counts.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

/// Flags of `cri`.
#[derive(Debug, Args)]
pub(crate) struct CriArgs {
    /// The configuration file (YAML); every key has a default.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// A key of the configuration, before what the file says, as of `barque node`.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// The socket to serve on, instead of what the configuration says.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

/// Flags of `endpoint`.
#[derive(Debug, Clone, Args)]
pub(crate) struct EndpointArgs {
    /// The configuration file (YAML): `listen`, `ca`, `masters`. Flags come before what it says.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Where to listen. Default: 127.0.0.1:6443.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,

    /// The cluster's CA certificate.
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    pub(crate) ca: Option<PathBuf>,

    /// A master; give one for each.
    #[arg(long = "master", value_name = "ADDRESS:PORT", required_unless_present = "config")]
    pub(crate) masters: Vec<SocketAddr>,
}

/// Flags of `store`, read elsewhere: they are etcd's.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// Flags of etcd.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) flags: Vec<std::ffi::OsString>,
}
