//! One run of `bench store`: which systems, which works, whose turn it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;

use super::args::{BenchStoreArgs, Rival};
use super::client::Plan;
use super::group::Group;
use super::load::{self, Measured, Shape, Target};
use super::report::{Cell, MemoryRow, OutageRow, Report, tell};
use super::work::Work;
use super::{fanout, leader_kill, memory, plot, systems};
use crate::signals::Signals;
use crate::up::progress::{Step, line};

/// Values are cut out of etcd's largest request.
const VALUE_BYTES_MAX: usize = 1 << 20;
/// Rests between measurements, so that what one left behind does not weigh on the next.
const PAUSE: Duration = Duration::from_millis(100);

/// Something to measure.
struct System {
    name: &'static str,
    target: Target,
    /// Held for its processes, where this run started them.
    _group: Option<Group>,
}

/// Measures and reports. On a signal everything is ended and removed, and that is an error.
pub(crate) async fn run(args: &BenchStoreArgs) -> anyhow::Result<()> {
    validate(args)?;
    let mut signals = Signals::listen()?;
    let mut report = Report::default();
    let measured = tokio::select! {
        measured = measure_all(args, &mut report) => measured,
        name = signals.next() => Err(anyhow::anyhow!("stopped by {name}")),
    };
    tell(&report, args.json.as_deref())?;
    if let Some(path) = &args.svg {
        plot::write(&report, path)?;
    }
    measured
}

fn validate(args: &BenchStoreArgs) -> anyhow::Result<()> {
    anyhow::ensure!(args.seconds > 0.0 && args.seconds <= 3600.0, "--seconds: more than 0, up to 3600");
    anyhow::ensure!(args.rounds > 0, "--rounds: at least 1");
    anyhow::ensure!(args.keys > 0, "--keys: at least 1");
    anyhow::ensure!(args.clients.iter().all(|count| *count > 0), "--clients: each at least 1");
    anyhow::ensure!(
        (1..=VALUE_BYTES_MAX).contains(&args.value_bytes),
        "--value-bytes: 1 to {VALUE_BYTES_MAX}"
    );
    let alone = args.work.iter().find(|work| work.needs_group());
    if let (Some(work), false) = (alone, args.endpoints.is_empty()) {
        anyhow::bail!("{} kills and restarts members: leave --endpoints out", work.name());
    }
    Ok(())
}

async fn measure_all(args: &BenchStoreArgs, report: &mut Report) -> anyhow::Result<()> {
    let works = if args.work.is_empty() { Work::DEFAULT.to_vec() } else { args.work.clone() };
    let value = Bytes::from(vec![b'v'; args.value_bytes]);
    let loads: Vec<Work> = works.iter().copied().filter(|work| !work.needs_group()).collect();
    if !loads.is_empty() {
        let mut systems = start(args).await?;
        for system in &systems {
            let step = Step::begin(format!("{}: loading {} keys", system.name, args.keys));
            systems::load(&system.target.endpoints, args.keys, &value).await?;
            step.done();
        }
        let mut epoch = 0;
        for work in loads {
            let counts = if args.clients.is_empty() { work.default_clients() } else { &args.clients };
            for clients in counts {
                let cells = take_turns(args, &mut systems, (work, *clients), &value, &mut epoch).await?;
                report.cells.extend(cells);
            }
        }
    }
    for work in works.into_iter().filter(|work| work.needs_group()) {
        for kind in kinds(args) {
            match work {
                Work::Memory => report.memory.push(measure_memory(args, kind, &value).await?),
                _ => measure_outages(args, kind, &value, report).await?,
            }
        }
    }
    Ok(())
}

/// A B A B: every system the same work, again and again; one cell each.
async fn take_turns(
    args: &BenchStoreArgs,
    systems: &mut [System],
    (work, clients): (Work, usize),
    value: &Bytes,
    epoch: &mut u64,
) -> anyhow::Result<Vec<Cell>> {
    let threads = args.threads.unwrap_or_else(default_threads).clamp(1, clients);
    let duration = Duration::from_secs_f64(args.seconds);
    let shape = Shape { clients, connections: args.connections, threads, duration };
    let mut turns: Vec<Vec<Measured>> = systems.iter().map(|_| Vec::new()).collect();
    for _ in 0..args.rounds {
        for (system, turns) in systems.iter_mut().zip(&mut turns) {
            // Who leads may have changed.
            systems::leader_first(&mut system.target.endpoints).await;
            *epoch += 1;
            let plan = Arc::new(Plan { work, keys: args.keys, value: value.clone(), epoch: *epoch });
            let step = Step::begin(format!("{}: {}, {clients} clients", system.name, work.name()));
            let measured = match work {
                Work::WatchFanout => fanout::measure(&system.target, shape, &plan).await,
                _ => load::measure(&system.target, shape, &plan).await,
            };
            let measured = measured
                .with_context(|| format!("{}: {} with {clients} clients", system.name, work.name()))?;
            step.done();
            let rate = measured.tally.latencies.count() as f64 / measured.window.as_secs_f64();
            let errors = measured.tally.first_error.as_deref().map(|text| format!(", errors: {text}"));
            line(format_args!("      {rate:.0}/s{}", errors.unwrap_or_default()));
            turns.push(measured);
            systems::compact(&system.target.endpoints[0]).await;
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(systems
        .iter()
        .zip(turns)
        .map(|(system, turns)| Cell::of(system.name, work, clients, &turns))
        .collect())
}

/// The systems of this run, started.
async fn start(args: &BenchStoreArgs) -> anyhow::Result<Vec<System>> {
    if !args.endpoints.is_empty() {
        let mut endpoints: Vec<String> =
            args.endpoints.iter().map(|given| given.trim_start_matches("http://").to_owned()).collect();
        systems::leader_first(&mut endpoints).await;
        let target = Target { endpoints, pids: args.pids.clone(), disk: None };
        return Ok(vec![System { name: "given", target, _group: None }]);
    }
    let mut systems = Vec::new();
    for kind in kinds(args) {
        let group = start_group(args, kind).await?;
        systems.push(System { name: kind.name(), target: group.target().await, _group: Some(group) });
    }
    Ok(systems)
}

/// What can be started.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Etcd,
    Barque,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Barque => "barque",
        }
    }
}

fn kinds(args: &BenchStoreArgs) -> Vec<Kind> {
    match args.against {
        Some(Rival::Etcd) => vec![Kind::Etcd, Kind::Barque],
        None => vec![Kind::Barque],
    }
}

async fn start_group(args: &BenchStoreArgs, kind: Kind) -> anyhow::Result<Group> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let step = Step::begin(format!("{}: starting three members in {}", kind.name(), parent.display()));
    let group = match kind {
        Kind::Etcd => Group::start("etcd", &args.etcd_binary, &[], &parent).await,
        Kind::Barque => Group::start("barque", &own_binary()?, &["store"], &parent).await,
    };
    match group {
        Ok(group) => {
            step.done();
            Ok(group)
        }
        Err(error) => {
            step.failed();
            Err(error)
        }
    }
}

fn own_binary() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find out which file this program is")
}

async fn measure_memory(args: &BenchStoreArgs, kind: Kind, value: &Bytes) -> anyhow::Result<MemoryRow> {
    let mut group = start_group(args, kind).await?;
    let step = Step::begin(format!("{}: memory and restart with {} keys", kind.name(), args.keys));
    let found = memory::measure(&mut group, args.keys, value).await?;
    step.done();
    Ok(MemoryRow { system: kind.name(), found })
}

async fn measure_outages(
    args: &BenchStoreArgs,
    kind: Kind,
    value: &Bytes,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut group = start_group(args, kind).await?;
    let row = report.outages.len();
    report.outages.push(OutageRow { system: kind.name(), seconds: Vec::new() });
    for number in 1..=args.kills {
        let step = Step::begin(format!("{}: killing the leader, {number} of {}", kind.name(), args.kills));
        let outage = leader_kill::kill_once(&mut group, value).await?;
        step.done();
        line(format_args!("      next acknowledged write after {:.3} s", outage.as_secs_f64()));
        report.outages[row].seconds.push(outage.as_secs_f64());
    }
    Ok(())
}

/// Servers need processors too.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2))
}
