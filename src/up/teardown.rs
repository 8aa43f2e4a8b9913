//! Removing a cluster from this machine, whatever state it is in.
//!
//! Promises that it may run at any time and any number of times, after a crash of `up` at any point and of
//! `down` itself, with masters dead or alive; that it touches nothing but what belongs to the cluster; and
//! that the plan file goes last, so that an unfinished removal can be repeated. What belongs to the cluster
//! is found by four marks: pid files, its network namespaces, its cgroups, its directories.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use runtime::net::{Netlink, netns};

use super::mounts;
use super::plan::Plan;
use super::process::{ProcessId, all_pids, wait_gone};

/// How long a process has after TERM before it gets KILL. Short: nothing that it could still save is kept.
const TERM_GRACE: Duration = Duration::from_secs(1);
/// How long a process has to be gone after KILL.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// How often residents (containers, shims) are looked for and killed: each round sees what the round before
/// saw being born.
const RESIDENT_ROUNDS_MAX: u32 = 50;
/// How long the kernel may take to empty a cgroup whose processes were killed.
const CGROUP_WAIT: Duration = Duration::from_secs(3);
const CGROUP_POLL: Duration = Duration::from_millis(10);

/// What was removed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Removed {
    /// Masters, agents, the endpoint.
    pub(crate) processes: usize,
    /// Processes of containers, and those that watch over them.
    pub(crate) residents: usize,
    /// Mounts below the cluster's directories.
    pub(crate) mounts: usize,
    /// Network namespaces of machines.
    pub(crate) namespaces: usize,
    /// Links of this machine.
    pub(crate) links: usize,
    /// Cgroup directories.
    pub(crate) cgroups: usize,
    /// Directories.
    pub(crate) directories: Vec<PathBuf>,
}

/// Removes everything; on errors goes on with the rest and reports them together at the end.
pub(crate) fn remove(plan: &Plan) -> anyhow::Result<Removed> {
    type Part = fn(&Plan, &mut Removed) -> anyhow::Result<()>;
    let parts: [(&str, Part); 6] = [
        ("processes", stop_processes),
        ("containers", stop_residents),
        ("mounts", unmount),
        ("links", delete_links),
        ("network namespaces", delete_namespaces),
        ("cgroups", delete_cgroups),
    ];
    let mut removed = Removed::default();
    let mut errors: Vec<String> = parts
        .into_iter()
        .filter_map(|(what, part)| part(plan, &mut removed).err().map(|error| format!("{what}: {error:#}")))
        .collect();
    if errors.is_empty() {
        // Files last, and only when nothing is mounted in them any more.
        errors.extend(delete_files(plan, &mut removed).err().map(|error| format!("files: {error:#}")));
    }
    anyhow::ensure!(
        errors.is_empty(),
        "not everything of cluster {} could be removed; run `barque down` again. What failed:\n  {}",
        plan.name,
        errors.join("\n  ")
    );
    Ok(removed)
}

/// The processes that pid files name and that run.
pub(crate) fn processes(plan: &Plan) -> Vec<(String, ProcessId)> {
    let pid_dir = plan.pid_file("any").parent().map(Path::to_owned).unwrap_or_default();
    let mut found: Vec<(String, ProcessId)> = fs::read_dir(pid_dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let path = entry.path();
            let id = ProcessId::read(&path).filter(ProcessId::is_alive)?;
            Some((path.file_stem()?.to_str()?.to_owned(), id))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn stop_processes(plan: &Plan, removed: &mut Removed) -> anyhow::Result<()> {
    let running: Vec<ProcessId> = processes(plan).into_iter().map(|(_, id)| id).collect();
    removed.processes += running.len();
    for process in &running {
        process.signal(Signal::SIGTERM);
    }
    let stubborn = wait_gone(&running, TERM_GRACE);
    for process in &stubborn {
        process.signal(Signal::SIGKILL);
    }
    let left = wait_gone(&stubborn, KILL_WAIT);
    anyhow::ensure!(left.is_empty(), "still there after KILL: {}", numbers(&left));
    Ok(())
}

fn stop_residents(plan: &Plan, removed: &mut Removed) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    let mut left = Vec::new();
    for _ in 0..RESIDENT_ROUNDS_MAX {
        left = residents(plan)?;
        if left.is_empty() {
            break;
        }
        for process in &left {
            process.signal(Signal::SIGKILL);
            seen.insert(process.clone());
        }
        wait_gone(&left, KILL_WAIT);
    }
    removed.residents += seen.len();
    anyhow::ensure!(left.is_empty(), "still there after KILL: {}", numbers(&left));
    Ok(())
}

/// Every process that lives in one of the cluster's network namespaces or cgroups.
pub(crate) fn residents(plan: &Plan) -> anyhow::Result<Vec<ProcessId>> {
    let namespaces = namespace_inodes(plan)?;
    let in_namespace = |pid: i32| {
        fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|found| namespaces.contains(&found.ino()))
    };
    let in_cgroup = |pid: i32| {
        fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .is_ok_and(|text| text.lines().any(|line| is_ours(plan, line)))
    };
    Ok(all_pids()
        .into_iter()
        .filter(|&pid| in_namespace(pid) || in_cgroup(pid))
        .filter_map(ProcessId::of)
        .collect())
}

/// Whether a line of `/proc/<pid>/cgroup` (`4:memory:/barque/lab/…`) names a cgroup of the cluster.
fn is_ours(plan: &Plan, line: &str) -> bool {
    let Some(path) = line.splitn(3, ':').nth(2) else { return false };
    path.strip_prefix(&plan.cgroup).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The inodes of the network namespaces of machines and pods: those pinned by name, and those pinned below
/// the cluster's directories.
fn namespace_inodes(plan: &Plan) -> anyhow::Result<HashSet<u64>> {
    let mut inodes: HashSet<u64> = plan
        .machines
        .iter()
        .filter_map(|machine| fs::metadata(netns::named_path(&machine.netns).ok()?).ok())
        .map(|found| found.ino())
        .collect();
    for mount in mounts::all()? {
        if mount.kind == "nsfs" && belongs(plan, &mount.point) {
            inodes.extend(
                mount.root.strip_prefix("net:[").and_then(|rest| rest.strip_suffix(']')?.parse::<u64>().ok()),
            );
        }
    }
    Ok(inodes)
}

fn belongs(plan: &Plan, path: &Path) -> bool {
    path.starts_with(&plan.directory) || path.starts_with(&plan.run_directory)
}

fn unmount(plan: &Plan, removed: &mut Removed) -> anyhow::Result<()> {
    let mut points: Vec<PathBuf> =
        mounts::all()?.into_iter().map(|mount| mount.point).filter(|point| belongs(plan, point)).collect();
    // Newest first, so that a mount goes before the one it lies on.
    points.reverse();
    for point in points {
        umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .with_context(|| format!("cannot unmount {}", point.display()))?;
        removed.mounts += 1;
    }
    Ok(())
}

fn delete_links(plan: &Plan, removed: &mut Removed) -> anyhow::Result<()> {
    let mut host = Netlink::open()?;
    let names = plan.machines.iter().map(|machine| &machine.link).chain([&plan.bridge]);
    for name in names {
        removed.links += usize::from(host.delete_link(name)?);
    }
    Ok(())
}

fn delete_namespaces(plan: &Plan, removed: &mut Removed) -> anyhow::Result<()> {
    for machine in &plan.machines {
        removed.namespaces += usize::from(netns::delete(&machine.netns)?);
    }
    Ok(())
}

fn delete_cgroups(plan: &Plan, removed: &mut Removed) -> anyhow::Result<()> {
    let relative = plan.cgroup.trim_start_matches('/');
    for mount in
        mounts::all()?.into_iter().filter(|mount| matches!(mount.kind.as_str(), "cgroup" | "cgroup2"))
    {
        let own = mount.point.join(relative);
        if own.is_dir() {
            removed.cgroups += delete_cgroup(&own)?;
        }
        // The one that all clusters share goes with the last of them; while it is in use, it stays.
        if let Some(shared) = own.parent().filter(|shared| *shared != mount.point) {
            let _in_use = fs::remove_dir(shared);
        }
    }
    Ok(())
}

fn delete_cgroup(directory: &Path) -> anyhow::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", directory.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            count += delete_cgroup(&entry.path())?;
        }
    }
    let deadline = Instant::now() + CGROUP_WAIT;
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(count + 1),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(count),
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(CGROUP_POLL);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot remove {}", directory.display()));
            }
        }
    }
}

fn delete_files(plan: &Plan, removed: &mut Removed) -> anyhow::Result<()> {
    let still_mounted = mounts::all()?.into_iter().find(|mount| belongs(plan, &mount.point));
    if let Some(mount) = still_mounted {
        anyhow::bail!("{} is mounted again", mount.point.display());
    }
    if remove_tree(&plan.run_directory)? {
        removed.directories.push(plan.run_directory.clone());
    }
    let plan_file = plan.plan_file();
    for entry in fs::read_dir(&plan.directory).into_iter().flatten().filter_map(Result::ok) {
        if entry.path() != plan_file {
            remove_tree(&entry.path())?;
        }
    }
    if remove_tree(&plan.directory)? {
        removed.directories.push(plan.directory.clone());
    }
    // Directories that all clusters share go with the last of them; while others are in use, they stay.
    for shared in plan.shared_directories() {
        let _in_use = fs::remove_dir(shared);
    }
    Ok(())
}

fn remove_tree(path: &Path) -> anyhow::Result<bool> {
    let outcome = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

fn numbers(processes: &[ProcessId]) -> String {
    processes.iter().map(|process| process.pid.to_string()).collect::<Vec<_>>().join(", ")
}
