//! One container's way to its first instruction: ours and others', in turns.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use runtime::{
    CgroupSpec, ContainerSpec, LogSpec, ProcessSpec, RootfsSpec, Runtime, RuntimeConfig, SandboxSpec,
};

use tokio_util::sync::CancellationToken;

use super::args::BenchPodsArgs;
use super::clock;
use super::oci::{OciRuntime, Work};
use super::report::StartRow;
use crate::bench::histogram::Histogram;
use crate::up::progress::{Step, line};

/// Longest wait for a container to have printed the time.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const POLL_INTERVAL: Duration = Duration::from_micros(200);
/// Starts before the ones that count.
pub(super) const WARM_UP: usize = 3;
pub(super) const MEMORY_BYTES: u64 = 64 << 20;
pub(super) const CPU_SHARES: u64 = 512;
/// The id of the one sandbox.
const SANDBOX: &str = "bench";
/// The program inside, by its path there.
const PROGRAM: &str = "/barque";

/// What makes the containers of one column.
enum Maker {
    Ours,
    Oci(OciRuntime),
}

/// Everything that is made here, removed when dropped.
struct Bench {
    directory: PathBuf,
    runtime: Runtime,
    cgroup: PathBuf,
    pause: i32,
}

/// Measures each runtime that is there, until it is told to stop.
pub(crate) fn measure(
    args: &BenchPodsArgs,
    parent: &Path,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<StartRow>> {
    let bench = Bench::new(parent)?;
    let mut makers = vec![("barque".to_owned(), Maker::Ours)];
    for program in &args.against {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        let runtime = OciRuntime::new(program, bench.directory.join(&name))?;
        if runtime.is_there() {
            makers.push((name, Maker::Oci(runtime)));
        } else {
            line(format_args!("  {} is not there or does not run: left out", program.display()));
        }
    }
    let step = Step::begin(format!("{} containers of each runtime, in turns", args.starts));
    let mut first = vec![Histogram::default(); makers.len()];
    let mut deleted = vec![Histogram::default(); makers.len()];
    for round in 0..args.starts + WARM_UP {
        for (column, (name, maker)) in makers.iter().enumerate() {
            ensure!(!stop.is_cancelled(), "stopped");
            let id = format!("{name}-{round}");
            let (start, delete) = bench.one(maker, &id).with_context(|| format!("a container of {name}"))?;
            if round >= WARM_UP {
                first[column].record(start);
                deleted[column].record(delete);
            }
        }
    }
    step.done();
    let columns = makers.iter().zip(first.iter().zip(&deleted));
    Ok(columns.map(|((name, _), (first, deleted))| StartRow::of(name, first, deleted)).collect())
}

impl Bench {
    fn new(parent: &Path) -> anyhow::Result<Self> {
        let directory = parent.join(format!("barque-bench-{}-containers", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let rootfs = directory.join("rootfs");
        fs::create_dir(&rootfs).context("cannot create the root filesystem")?;
        let binary = std::env::current_exe().context("cannot find out which file this program is")?;
        fs::copy(&binary, rootfs.join("barque")).context("cannot copy this program")?;
        let cgroup = PathBuf::from(format!("barque-bench-{}", std::process::id()));
        let runtime = Runtime::new(RuntimeConfig {
            state_dir: directory.join("state"),
            shim_command: vec!["/proc/self/exe".into(), "shim".into()],
            cgroup_root: cgroup.clone(),
            every_hierarchy: false,
        })?;
        let mut bench = Self { directory, runtime, cgroup, pause: 0 };
        let sandbox = bench.runtime.create_sandbox(&SandboxSpec {
            id: SANDBOX.to_owned(),
            hostname: SANDBOX.to_owned(),
            cgroup: CgroupSpec { path: SANDBOX.into(), ..CgroupSpec::default() },
            ..SandboxSpec::default()
        })?;
        bench.pause = sandbox.process.pid;
        Ok(bench)
    }

    /// From the call to the first instruction; and the deletion.
    fn one(&self, maker: &Maker, id: &str) -> anyhow::Result<(Duration, Duration)> {
        match maker {
            Maker::Ours => self.ours(id),
            Maker::Oci(runtime) => self.others(runtime, id),
        }
    }

    fn ours(&self, id: &str) -> anyhow::Result<(Duration, Duration)> {
        let files = self.directory.join("files").join(id);
        let logs = self.directory.join("logs");
        fs::create_dir_all(&logs).context("cannot create a directory for logs")?;
        let log = logs.join(format!("{id}.log"));
        let spec = ContainerSpec {
            id: id.to_owned(),
            sandbox: SANDBOX.to_owned(),
            rootfs: RootfsSpec {
                lower_dirs: vec![self.rootfs()],
                upper: files.join("upper"),
                work: files.join("work"),
                merged: files.join("merged"),
                ..RootfsSpec::default()
            },
            process: ProcessSpec { args: command(), ..ProcessSpec::default() },
            masked_paths: runtime::default_masked_paths(),
            readonly_paths: runtime::default_readonly_paths(),
            cgroup: CgroupSpec {
                path: PathBuf::from(SANDBOX).join(id),
                memory_limit: Some(MEMORY_BYTES),
                cpu_shares: Some(CPU_SHARES),
                ..CgroupSpec::default()
            },
            log: Some(LogSpec::new(&log)),
            ..ContainerSpec::default()
        };
        let began = clock::now()?;
        self.runtime.start_container(&spec)?;
        let first = wait_for(|| fs::read_to_string(&log).unwrap_or_default())?;
        let deletion = Instant::now();
        self.runtime.delete_container(id)?;
        Ok((first.saturating_sub(began), deletion.elapsed()))
    }

    fn others(&self, runtime: &OciRuntime, id: &str) -> anyhow::Result<(Duration, Duration)> {
        let args = command();
        let work = Work {
            rootfs: &self.rootfs(),
            args: &args,
            pause: self.pause,
            cgroup: &format!("/{}/{id}", self.cgroup.display()),
            memory_bytes: MEMORY_BYTES,
            cpu_shares: CPU_SHARES,
        };
        runtime.prepare(id, &work)?;
        let began = clock::now()?;
        runtime.start(id)?;
        let first = wait_for(|| runtime.output(id))?;
        let deletion = Instant::now();
        runtime.delete(id)?;
        Ok((first.saturating_sub(began), deletion.elapsed()))
    }

    fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(error) = self.runtime.delete_sandbox(SANDBOX) {
            line(format_args!("  the sandbox was not removed: {error}"));
        }
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            line(format_args!("  {} was not removed: {error}", self.directory.display()));
        }
        remove_cgroups(&self.cgroup);
    }
}

fn command() -> Vec<String> {
    vec![PROGRAM.to_owned(), clock::WORD.to_owned()]
}

fn wait_for(output: impl Fn() -> String) -> anyhow::Result<Duration> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let printed = output();
        if let Some(time) = printed.ends_with('\n').then(|| clock::parse(&printed)).flatten() {
            return Ok(time);
        }
        if Instant::now() > deadline {
            bail!("it printed no time within {} s, but {printed:?}", START_TIMEOUT.as_secs());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The parents that runtimes leave, in every hierarchy.
pub(super) fn remove_cgroups(relative: &Path) {
    let Ok(roots) = fs::read_dir("/sys/fs/cgroup") else { return };
    for root in roots.flatten() {
        let group = root.path().join(relative);
        for child in fs::read_dir(&group).into_iter().flatten().flatten() {
            // Files in it are not directories.
            let _ = fs::remove_dir(child.path());
        }
        let _ = fs::remove_dir(group);
    }
}
