//! `barque chaos`: runs experiments, judges histories, and says what can be broken.
//!
//! Exit codes: 0 everything held, 1 it could not be found out, 3 a property was violated, 4 a bound was reached before the
//! answer. (2 is a wrong command line.)

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use chaos_tests::checker::{self, Outcome, Verdict, overall};
use chaos_tests::cluster::faulty_disk::FaultyDisk;
use chaos_tests::cluster::group::System;
use chaos_tests::cluster::guest::Guest;
use chaos_tests::cluster::keeper::{self, Duty};
use chaos_tests::experiment::{self, Disks, Experiment, Options, Progress, Run};
use chaos_tests::history::History;
use chaos_tests::nemesis::FAULTS;
use chaos_tests::{report, workload};
use clap::{Args, Subcommand, ValueEnum};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::print;
use crate::cli::ClusterArgs;
use crate::signals::Signals;
use crate::up::plan::Plan;

/// Threads for links and clients; the members are processes of their own.
const WORKER_THREADS_MAX: usize = 4;
/// How often the terminal is told.
const TICK: Duration = Duration::from_millis(200);

const EXIT_INVALID: u8 = 3;
const EXIT_UNKNOWN: u8 = 4;

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum ChaosCommand {
    /// Makes a cluster, loads it, breaks it, heals it, and judges what clients were told.
    Run(RunArgs),
    /// Runs an experiment again from the seed of an earlier run: the same faults at the same times.
    Replay(ReplayArgs),
    /// Lists faults and workloads.
    List,
    /// Judges a history: JSON lines as `run` writes them, or Jepsen's EDN.
    Check(CheckArgs),
    /// Waits for an experiment's end and cleans up after it.
    #[command(hide = true)]
    Keep(KeepArgs),
}

/// Whose store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TargetSystem {
    /// Ours.
    Barque,
    /// etcd, for comparison.
    Etcd,
}

/// Where and how to run.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlaceArgs {
    /// Where reports and histories go: a directory for each run.
    #[arg(long, value_name = "DIR", default_value = "chaos-report")]
    output: PathBuf,

    /// Where members' directories are made. Default: TMPDIR.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Whose store is broken.
    #[arg(long, value_enum, default_value_t = TargetSystem::Barque)]
    target: TargetSystem,

    /// The etcd to start.
    #[arg(long, value_name = "FILE", default_value = "etcd")]
    etcd_binary: PathBuf,

    /// Break this running cluster of `barque up`, instead of one that is made for it. It is whole again at the end, also
    /// when the experiment is killed or takes too long.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["target", "member_flags"])]
    cluster: Option<String>,

    /// Where the running cluster's files lie [default: where the cluster of that name is up].
    #[arg(long, value_name = "DIR", requires = "cluster")]
    data_dir: Option<PathBuf>,

    /// One more flag for each member, as in --member-flag=--snapshot-count=100.
    #[arg(long = "member-flag", value_name = "FLAG", allow_hyphen_values = true)]
    member_flags: Vec<String>,
}

/// Flags of `run`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    place: PlaceArgs,

    /// Experiments: files, or with --all directories of them.
    #[arg(required = true, value_name = "FILE")]
    experiments: Vec<PathBuf>,

    /// Run every experiment of the directories given.
    #[arg(long)]
    all: bool,

    /// Draw faults from this seed instead of the experiment's.
    #[arg(long)]
    seed: Option<u64>,

    /// Begin again with the next seed until so many minutes have passed.
    #[arg(long)]
    minutes: Option<u64>,
}

/// Flags of `replay`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    place: PlaceArgs,

    /// The seed that the report names.
    seed: u64,

    /// The experiment.
    #[arg(value_name = "FILE")]
    experiment: PathBuf,
}

/// Flags of `check`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CheckArgs {
    /// The history; EDN if its name ends with .edn.
    history: PathBuf,

    /// Also write it to this file, in the form that its name asks for.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,

    /// Draw what contradicts a property into this file (SVG).
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Flags of `keep`.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeepArgs {
    directory: PathBuf,

    /// Take this cluster down too.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,

    /// Make a cluster whole that is not the experiment's.
    #[arg(long, value_name = "JSON", conflicts_with = "cluster")]
    restore: Option<String>,
}

/// Does it; the code tells the verdict.
pub(crate) fn run(command: &ChaosCommand) -> anyhow::Result<ExitCode> {
    match command {
        ChaosCommand::Run(args) => run_all(args),
        ChaosCommand::Replay(args) => {
            let experiment = Experiment::read(&args.experiment)?;
            print(&plan(&experiment, args.seed))?;
            let outcome = in_event_loop(run_one(&args.experiment, experiment, args.seed, &args.place))?;
            Ok(exit_code(outcome.unwrap_or(Outcome::Unknown)))
        }
        ChaosCommand::List => print(&list()).map(|()| ExitCode::SUCCESS),
        ChaosCommand::Check(args) => check(args),
        ChaosCommand::Keep(args) => {
            let restoration = args.restore.as_deref().map(serde_json::from_str).transpose();
            let restoration = restoration.context("--restore: not what an experiment tells its keeper")?;
            let duty = args.cluster.clone().map(Duty::TakeDown).or(restoration.map(Duty::Restore));
            keeper::keep(&args.directory, duty.as_ref()).map(|()| ExitCode::SUCCESS)
        }
    }
}

fn exit_code(outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Valid => ExitCode::SUCCESS,
        Outcome::Invalid => ExitCode::from(EXIT_INVALID),
        Outcome::Unknown => ExitCode::from(EXIT_UNKNOWN),
    }
}

fn in_event_loop<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    super::event_loop(WORKER_THREADS_MAX)?.block_on(work)
}

fn run_all(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let mut files = Vec::new();
    for path in &args.experiments {
        if path.is_dir() {
            ensure!(args.all, "{} is a directory: give --all to run all of its experiments", path.display());
            files.extend(experiments_of(path)?);
        } else {
            files.push(path.clone());
        }
    }
    let mut experiments = files
        .into_iter()
        .map(|path| Ok((Experiment::read(&path)?, path)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if args.all {
        experiments.retain(|(experiment, _)| {
            let why = why_not(experiment, args.place.target);
            if let Some(why) = &why {
                crate::up::progress::line(format_args!("{}: left out, {why}", experiment.name));
            }
            why.is_none()
        });
    }
    ensure!(!experiments.is_empty(), "there is no experiment in the directories given");
    let until = args.minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let mut outcomes = Vec::new();
    'rounds: for round in 0_u64.. {
        for (experiment, path) in &experiments {
            let seed = args.seed.unwrap_or(experiment.seed).wrapping_add(round);
            match in_event_loop(run_one(path, experiment.clone(), seed, &args.place))? {
                Some(outcome) => outcomes.push(outcome),
                None => break 'rounds,
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                break 'rounds;
            }
        }
        if until.is_none() {
            break;
        }
    }
    let of = |wanted: Outcome| outcomes.iter().filter(|outcome| **outcome == wanted).count();
    let (valid, invalid) = (of(Outcome::Valid), of(Outcome::Invalid));
    if outcomes.len() > 1 {
        print(&format!("{} runs: {valid} valid, {invalid} invalid\n", outcomes.len()))?;
    }
    Ok(exit_code(match () {
        () if invalid > 0 => Outcome::Invalid,
        () if valid == outcomes.len() && valid > 0 => Outcome::Valid,
        () => Outcome::Unknown,
    }))
}

/// Why an experiment cannot be run here, or with that target. etcd maps its file into memory to write to it, which disks that
/// can fail do not offer; and it runs no pods.
fn why_not(experiment: &Experiment, target: TargetSystem) -> Option<String> {
    let has_nodes = experiment.cluster.nodes > 0;
    let has_disks = experiment.cluster.disks == Disks::Faulty;
    match target {
        TargetSystem::Etcd if has_nodes => Some("etcd has no nodes".to_owned()),
        TargetSystem::Etcd if has_disks => Some("etcd does not run on its disks".to_owned()),
        _ if has_disks => FaultyDisk::missing().map(str::to_owned),
        _ if has_nodes && !nix::unistd::geteuid().is_root() => Some("its cluster needs root".to_owned()),
        _ => None,
    }
}

fn experiments_of(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    Ok(files)
}

/// One run with its report; none if it was broken off by a signal.
async fn run_one(
    path: &Path,
    experiment: Experiment,
    seed: u64,
    place: &PlaceArgs,
) -> anyhow::Result<Option<Outcome>> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let output = place.output.join(format!("{}-{seed}", experiment.name));
    std::fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    let options = Options {
        system: match place.target {
            TargetSystem::Barque => System::Barque(program.clone()),
            TargetSystem::Etcd => System::Etcd(place.etcd_binary.clone()),
        },
        keeper: program,
        parent: place.dir.clone().unwrap_or_else(std::env::temp_dir),
        output: output.clone(),
        seed,
        flags: place.member_flags.clone(),
        guest: guest(place)?,
    };
    let (progress, watched) = watch::channel(Progress::default());
    let stop = CancellationToken::new();
    let mut signals = Signals::listen()?;
    let signalled = stop.clone();
    let _listener = AbortOnDropHandle::new(tokio::spawn(async move {
        signals.next().await;
        signalled.cancel();
    }));
    let screen = AbortOnDropHandle::new(tokio::spawn(show(experiment.name.clone(), watched)));
    let run = experiment::run(&experiment, &options, &progress, &stop).await;
    drop(screen);
    clear_line();
    let run = run.with_context(|| format!("experiment {}", experiment.name))?;
    report::write(&run, &command(path, seed, place), &output)?;
    print(&summary(&run, &output))?;
    Ok((!stop.is_cancelled()).then(|| overall(&run.verdicts)))
}

/// The running cluster that is to be broken.
fn guest(place: &PlaceArgs) -> anyhow::Result<Option<Guest>> {
    let Some(name) = place.cluster.clone() else { return Ok(None) };
    let plan = Plan::load(&ClusterArgs { name: name.clone(), data_dir: place.data_dir.clone() })?;
    let data_dir =
        plan.directory.parent().and_then(Path::parent).context("files of clusters lie together")?;
    Ok(Some(Guest { name, data_dir: data_dir.to_owned() }))
}

/// The command that repeats a run.
fn command(path: &Path, seed: u64, place: &PlaceArgs) -> String {
    let mut command = format!("barque chaos replay {seed} {}", path.display());
    if place.target == TargetSystem::Etcd {
        command += " --target etcd";
    }
    if let Some(cluster) = &place.cluster {
        let _ = write!(command, " --cluster {cluster}");
    }
    for flag in &place.member_flags {
        let _ = write!(command, " --member-flag={flag}");
    }
    command
}

/// A line of the terminal that shows how far it is; where nobody watches, a line when something begins.
async fn show(name: String, mut progress: watch::Receiver<Progress>) {
    let terminal = std::io::stderr().is_terminal();
    let mut stage = "";
    loop {
        let now = progress.borrow_and_update().clone();
        let [ok, fail, info] = now.counts;
        let mut line = format!("{name}: {:<10}", now.stage);
        if !now.duration.is_zero() {
            let _ = write!(
                line,
                " {:5.1}/{:.0} s  {ok} ok {fail} refused {info} unknown  leader {}",
                now.elapsed.as_secs_f64(),
                now.duration.as_secs_f64(),
                now.leader.as_deref().unwrap_or("?")
            );
        }
        if !now.faults.is_empty() {
            let _ = write!(line, "  ⚡ {}", now.faults.join(", "));
        }
        // When standard error is closed there is nobody to tell.
        if terminal {
            let _closed = write!(std::io::stderr(), "\r\x1b[2K{line}");
        } else if now.stage != stage {
            stage = now.stage;
            let _closed = writeln!(std::io::stderr(), "{}", line.trim_end());
        }
        tokio::time::sleep(TICK).await;
    }
}

fn clear_line() {
    if std::io::stderr().is_terminal() {
        let _closed = write!(std::io::stderr(), "\r\x1b[2K");
    }
}

fn summary(run: &Run, output: &Path) -> String {
    let counts = report::counts(run);
    let mut text = format!(
        "{} (seed {}): {} operations done, {} refused, {} without an answer\n",
        run.experiment.name, run.seed, counts.ok, counts.fail, counts.info
    );
    text += &table(&run.verdicts);
    let _ = writeln!(text, "  report: {}", output.join("report.html").display());
    text
}

fn table(verdicts: &[Verdict]) -> String {
    let width = verdicts.iter().map(|verdict| verdict.property.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for verdict in verdicts {
        let mark = match verdict.outcome {
            Outcome::Valid => '✔',
            Outcome::Invalid => '✘',
            Outcome::Unknown => '?',
        };
        let _ = writeln!(text, "  {mark} {:<width$}  {}", verdict.property, verdict.explanation);
    }
    text
}

fn plan(experiment: &Experiment, seed: u64) -> String {
    let mut text = String::new();
    for entry in experiment.plan(seed) {
        let _ = writeln!(
            text,
            "  {:8.3} s  {} ({:?}) for {:.3} s",
            entry.at.as_secs_f64(),
            entry.fault.name(),
            entry.of,
            entry.lasting.as_secs_f64()
        );
    }
    text
}

fn list() -> String {
    let mut text = "faults:\n".to_owned();
    for (_, name, about) in FAULTS {
        let _ = writeln!(text, "  {name:<20} {about}");
    }
    for (about, kinds) in [
        ("workloads of a store", &workload::KINDS[..]),
        ("workloads of a cluster with nodes", &workload::CLUSTER_KINDS[..]),
    ] {
        let _ = writeln!(text, "{about}:");
        for kind in kinds {
            let _ = writeln!(text, "  {}", kind.name());
        }
    }
    text
}

fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let history = History::read(&args.history).with_context(|| args.history.display().to_string())?;
    if let Some(path) = &args.write {
        history.write(path)?;
    }
    let verdicts = checker::check(&history).with_context(|| args.history.display().to_string())?;
    print(&table(&verdicts))?;
    if let Some(path) = &args.svg {
        let Some(example) = verdicts.iter().find_map(|verdict| verdict.counter_example.as_ref()) else {
            bail!("nothing contradicts anything, so there is nothing to draw into {}", path.display());
        };
        std::fs::write(path, report::draw_counter_example(example))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(exit_code(overall(&verdicts)))
}
