//! `barque image`: the images of one node, whether its agent runs or not.

use std::collections::HashMap;
use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use node::images::{
    self, Format, ImageStore, ImagesConfig, Keyring, LayerProgress, Progress, Puller, Reference,
};

use super::print;
use crate::cli::ClusterArgs;
use crate::table::Table;
use crate::up::plan::Plan;

/// Where a node keeps its files unless its configuration says otherwise.
const NODE_DIR: &str = "/var/lib/barque/node";
/// The configuration of a machine that is a node.
const NODE_CONFIG: &str = "/etc/barque/node.yaml";
/// Hex digits of an image's id that are shown.
const ID_LENGTH: usize = 12;
const THREADS: usize = 2;

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Lists the images of a node.
    Ls(LsArgs),
    /// Fetches an image from its registry.
    Pull(PullArgs),
    /// Sends an image to a registry.
    Push(PushArgs),
    /// Takes images out of an archive: an OCI layout (directory or tar) or what `docker save` writes.
    Import(ImportArgs),
    /// Writes an image to an archive.
    Export(ExportArgs),
    /// Removes images that no container uses.
    Rm(RmArgs),
    /// Shows everything about an image, as JSON.
    Inspect(InspectArgs),
}

/// Which node.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// A node of a cluster made by `up`.
    #[arg(long)]
    node: Option<String>,
    /// The configuration file of a node's agent.
    #[arg(long, value_name = "FILE", conflicts_with = "node")]
    config: Option<PathBuf>,
}

/// Flags of `ls`.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Print names only.
    #[arg(short, long)]
    quiet: bool,
}

/// Flags of `pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// The image, as in `nginx:1.27` or `registry.lab:5000/team/app`.
    image: String,
}

/// Flags of `push`.
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// Write the manifest in this form. Default: as it came.
    #[arg(long, value_enum)]
    format: Option<FormatArg>,
    /// The image on the node.
    image: String,
    /// The name to push it under. Default: its own.
    target: Option<String>,
}

/// Who one is.
#[derive(Debug, Args)]
pub(crate) struct CredentialArgs {
    /// A `config.json` as `docker login` writes it. Default: the one that the node's configuration names.
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
}

/// Flags of `import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The name of the image, where the archive does not give one.
    #[arg(short, long)]
    tag: Option<String>,
    /// The archive or directory.
    file: PathBuf,
}

/// Flags of `export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The form of the archive.
    #[arg(long, value_enum, default_value_t = FormatArg::Oci)]
    format: FormatArg,
    /// The file to write. Default: standard output, if that is no terminal.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// The image.
    image: String,
}

/// Flags of `rm`.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The images.
    #[arg(required = true)]
    images: Vec<String>,
}

/// Flags of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The image.
    image: String,
}

/// The forms of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    /// OCI's.
    Oci,
    /// Docker's: schema 2, and what `docker load` reads.
    Docker,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Oci => Self::Oci,
            FormatArg::Docker => Self::Docker,
        }
    }
}

/// A node's files, as far as images go.
struct Home {
    data_dir: PathBuf,
    config: ImagesConfig,
    store: Arc<ImageStore>,
}

/// Carries the command out.
pub(crate) fn run(command: &ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Ls(args) => list(args),
        ImageCommand::Pull(args) => super::event_loop(THREADS)?.block_on(pull(args)),
        ImageCommand::Push(args) => super::event_loop(THREADS)?.block_on(push(args)),
        ImageCommand::Import(args) => import(args),
        ImageCommand::Export(args) => export(args),
        ImageCommand::Rm(args) => remove(args),
        ImageCommand::Inspect(args) => {
            let home = Home::open(&args.node)?;
            let about = images::inspect(&home.store, &Reference::parse(&args.image)?)?;
            print(&format!("{}\n", serde_json::to_string_pretty(&about)?))
        }
    }
}

impl Home {
    fn open(args: &NodeArgs) -> anyhow::Result<Self> {
        let (data_dir, config) = match config_file(args)? {
            Some(file) => {
                let config: node::Config = crate::config::load(&file)?;
                (config.data_dir, config.images)
            }
            None => (NODE_DIR.into(), ImagesConfig::default()),
        };
        ensure!(
            data_dir.exists(),
            "there is no node at {}; name one with --node or --config",
            data_dir.display()
        );
        let store = Arc::new(ImageStore::open(data_dir.join("images"))?);
        Ok(Self { data_dir, config, store })
    }
}

/// The configuration of the node that is meant.
pub(super) fn config_of(args: &NodeArgs) -> anyhow::Result<node::Config> {
    let file = config_file(args)?;
    crate::config::load(&file.unwrap_or_else(|| NODE_CONFIG.into()))
}

/// The configuration file of the node that is meant; `None`: a machine that is a node, without special wishes.
fn config_file(args: &NodeArgs) -> anyhow::Result<Option<PathBuf>> {
    if let Some(file) = &args.config {
        return Ok(Some(file.clone()));
    }
    let plan = Plan::find(&args.cluster)?;
    let Some(plan) = plan else {
        ensure!(args.node.is_none(), "there is no cluster {} on this machine", args.cluster.name);
        return Ok(None);
    };
    let names: Vec<&str> = plan.nodes().map(|node| node.name.as_str()).collect();
    let wanted = match (&args.node, names.as_slice()) {
        (Some(name), _) => name.as_str(),
        (None, [only]) => only,
        (None, _) => {
            bail!("the cluster {} has several nodes: choose one with --node {}", plan.name, names.join("|"))
        }
    };
    let node = plan.nodes().find(|node| node.name == wanted);
    let node =
        node.with_context(|| format!("there is no node {wanted:?}; there are {}", names.join(", ")))?;
    Ok(Some(plan.config_file(&node.agent())))
}

fn list(args: &LsArgs) -> anyhow::Result<()> {
    let home = Home::open(&args.node)?;
    let mut table = Table::new(&["REPOSITORY", "TAG", "IMAGE ID", "ADDED", "SIZE"]);
    let mut names = String::new();
    for image in home.store.list() {
        let tags: Vec<&String> = image.names.iter().filter(|name| !name.contains('@')).collect();
        let shown = if tags.is_empty() { image.names.iter().take(1).collect() } else { tags };
        for name in shown {
            names += &format!("{name}\n");
            let (repository, tag) = match name.split_once('@') {
                Some((repository, _)) => (repository, "<none>"),
                None => name.rsplit_once(':').unwrap_or((name, "<none>")),
            };
            let id = image.id.trim_start_matches("sha256:").chars().take(ID_LENGTH).collect();
            let row = [familiar(repository), tag.to_owned(), id, ago(image.added_at), size(image.size_bytes)];
            table.row(row.into());
        }
    }
    print(&if args.quiet { names } else { table.to_string() })
}

async fn pull(args: &PullArgs) -> anyhow::Result<()> {
    let home = Home::open(&args.node)?;
    let reference = Reference::parse(&args.image)?;
    let keyring = keyring(args.credentials.credentials.as_deref())?;
    say(&format!("Pulling {reference}"));
    let bars = Bars::new("Pulling");
    let puller = Puller::new(Arc::clone(&home.store), home.config.clone(), bars.progress());
    let pulled = puller.pull(&reference, &keyring).await.map_err(|e| anyhow::anyhow!("{e}"))?;
    bars.clear();
    home.store.flush()?;
    let digest = pulled.image.image_id.rsplit_once('@').map_or("", |(_, digest)| digest);
    say(&format!("Digest: {digest}"));
    say(&match pulled.fetched {
        true => format!("Status: Downloaded newer image for {reference}"),
        false => format!("Status: Image is up to date for {reference}"),
    });
    print(&format!("{reference}\n"))
}

async fn push(args: &PushArgs) -> anyhow::Result<()> {
    let home = Home::open(&args.node)?;
    let source = Reference::parse(&args.image)?;
    let target = Reference::parse(args.target.as_deref().unwrap_or(&args.image))?;
    let file = args.credentials.credentials.as_deref().or(home.config.credentials_file.as_deref());
    let keyring = keyring(file)?;
    say(&format!("The push refers to repository [{}]", target.repository()));
    let bars = Bars::new("Pushing");
    let format = (args.format.map(Format::from), bars.progress());
    let pushed = images::push(&home.store, home.config, (&source, &target), &keyring, format).await?;
    bars.clear();
    print(&format!("{}: digest: {} size: {}\n", target.tag().unwrap_or("latest"), pushed.digest, pushed.size))
}

fn import(args: &ImportArgs) -> anyhow::Result<()> {
    let home = Home::open(&args.node)?;
    let imported = images::import(&home.store, &args.file, args.tag.as_deref())?;
    home.store.flush()?;
    for image in imported {
        print(&format!("Loaded image: {} ({})\n", image.names.join(", "), image.digest))?;
    }
    Ok(())
}

fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let home = Home::open(&args.node)?;
    let reference = Reference::parse(&args.image)?;
    write_archive(&home.store, &reference, args.format.into(), args.output.as_deref())
}

/// Writes an archive to a file, which is whole as soon as it is there, or to standard output.
pub(super) fn write_archive(
    store: &ImageStore,
    reference: &Reference,
    format: Format,
    path: Option<&Path>,
) -> anyhow::Result<()> {
    let Some(path) = path else {
        let output = std::io::stdout();
        ensure!(!output.is_terminal(), "an archive on a terminal helps nobody: use -o FILE or a pipe");
        return Ok(images::export(store, reference, format, output.lock())?);
    };
    let part = path.with_extension("part");
    let file = fs::File::create(&part).with_context(|| format!("cannot create {}", part.display()))?;
    let written = images::export(store, reference, format, std::io::BufWriter::new(&file));
    if let Err(error) = written {
        drop(fs::remove_file(&part));
        return Err(error.into());
    }
    file.sync_all()
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn remove(args: &RmArgs) -> anyhow::Result<()> {
    let home = Home::open(&args.node)?;
    let in_use = images::images_in_use(&home.data_dir.join("pods"))?;
    for image in &args.images {
        let removed = home.store.remove(&Reference::parse(image)?, &in_use)?;
        for name in removed.untagged {
            print(&format!("Untagged: {name}\n"))?;
        }
        match removed.bytes {
            Some(bytes) => print(&format!("Freed: {}\n", size(bytes)))?,
            None => say("its content is removed later: an image is being brought in just now"),
        }
    }
    Ok(())
}

fn keyring(file: Option<&Path>) -> anyhow::Result<Keyring> {
    let Some(file) = file else { return Ok(Keyring::default()) };
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Keyring::parse(&text).with_context(|| format!("{} cannot be used", file.display()))
}

/// Tells on standard error; results go to standard output.
fn say(text: &str) {
    let _closed = writeln!(std::io::stderr(), "{text}");
}

/// What happens to layers: a bar each on a terminal, a line each for what is done elsewhere.
struct Bars {
    all: MultiProgress,
    by_layer: Arc<Mutex<HashMap<String, ProgressBar>>>,
    watched: bool,
    verb: &'static str,
}

impl Bars {
    fn new(verb: &'static str) -> Self {
        let watched = std::io::stderr().is_terminal();
        Self { all: MultiProgress::new(), by_layer: Arc::default(), watched, verb }
    }

    fn progress(&self) -> Progress {
        let (all, by_layer, watched, verb) =
            (self.all.clone(), Arc::clone(&self.by_layer), self.watched, self.verb);
        Arc::new(move |digest, progress| {
            let short: String = digest.trim_start_matches("sha256:").chars().take(ID_LENGTH).collect();
            let line = match progress {
                LayerProgress::Present => "Already exists",
                LayerProgress::Bytes(..) => verb,
                LayerProgress::Unpacking => "Extracting",
                LayerProgress::Done => "Complete",
            };
            if !watched {
                if matches!(progress, LayerProgress::Present | LayerProgress::Done) {
                    say(&format!("{short}: {line}"));
                }
                return;
            }
            let mut bars = by_layer.lock().expect("no holder of the bars panics");
            let bar = bars.entry(digest.to_owned()).or_insert_with(|| all.add(new_bar(&short)));
            bar.set_message(line);
            match progress {
                LayerProgress::Bytes(at, size) => {
                    bar.set_length(size);
                    bar.set_position(at);
                }
                LayerProgress::Present | LayerProgress::Done => bar.abandon(),
                LayerProgress::Unpacking => {}
            }
        })
    }

    fn clear(&self) {
        for bar in self.by_layer.lock().expect("no holder of the bars panics").values() {
            bar.abandon();
        }
    }
}

fn new_bar(name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix}: {msg:<14} [{bar:30}] {bytes}/{total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style).with_prefix(name.to_owned())
}

/// As people write it: without what every tool adds.
pub(super) fn familiar(repository: &str) -> String {
    let short = repository.strip_prefix("docker.io/").unwrap_or(repository);
    short.strip_prefix("library/").unwrap_or(short).to_owned()
}

pub(super) fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 1000.0 && unit + 1 < units.len() {
        amount /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes}B") } else { format!("{amount:.1}{}", units[unit]) }
}

fn ago(at: SystemTime) -> String {
    let seconds = at.elapsed().unwrap_or_default().as_secs();
    let (amount, unit) = match seconds {
        0..=119 => (seconds, "seconds"),
        120..=7199 => (seconds / 60, "minutes"),
        7200..=172_799 => (seconds / 3600, "hours"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{amount} {unit} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_names_are_as_docker_shows_them() {
        assert_eq!([size(12), size(1500), size(72_080_558)], ["12B", "1.5kB", "72.1MB"]);
        assert_eq!(familiar("docker.io/library/nginx"), "nginx");
        assert_eq!(familiar("docker.io/barque/hello"), "barque/hello");
        assert_eq!(familiar("r.lab:5000/library/x"), "r.lab:5000/library/x");
    }
}
