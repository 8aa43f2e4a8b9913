//! Control groups of both versions behind one handle: make a group with its limits, enter it, count,
//! kill and remove it. Which hierarchy a controller is in is found out at run time.
//!
//! Promises: a limit that the host cannot enforce is reported as [`Unenforced`]; removing twice is fine.
//! Does not: move the caller's own processes, or touch groups above the runtime's cgroup root other than
//! to switch controllers on for it (version 2).

mod control;
pub(crate) mod detect;
mod limits;
mod outside;
mod v1;
mod v2;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use self::control::ControlDir;
use self::detect::{Hierarchies, V1Mount, V2Mount};
use self::limits::Limit;
pub use self::outside::OutsideGroups;
use crate::container::spec::CgroupSpec;
use crate::container::state::Unenforced;
use crate::error::Error;
use crate::syscall::{self, Forked};

/// Period of CPU quotas when the caller names none.
const CPU_PERIOD_US_DEFAULT: u64 = 100_000;
/// How often a group in use is tried again, and how long after the try before.
const REMOVE_TRIES_MAX: u32 = 60;
const REMOVE_WAIT: Duration = Duration::from_millis(2);
const REMOVE_WAIT_MAX: Duration = Duration::from_millis(50);
/// Processes and threads of a group, in either version.
const PIDS_CURRENT: &str = "pids.current";
/// Rounds of killing: each reaches what the round before saw being born.
const KILL_ROUNDS_MAX: u32 = 100;
const KILL_WAIT: Duration = Duration::from_millis(1);

/// What a group has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time in nanoseconds; `None` where the host does not count it.
    pub cpu_usage_ns: Option<u64>,
    /// Memory in bytes, caches included.
    pub memory_usage_bytes: Option<u64>,
    /// Memory in bytes without file pages that were not used lately.
    pub memory_working_set_bytes: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
}

/// One group, in every hierarchy that matters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cgroup {
    hierarchies: Hierarchies,
    /// Relative to each hierarchy's mount point.
    relative: PathBuf,
}

/// Where a process was when it was forked for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Birth {
    /// In the group of version 2 already, if there is one.
    Inside,
    /// Where its parent is.
    Outside,
}

impl Cgroup {
    pub(crate) fn new(hierarchies: &Hierarchies, root: &Path, path: &Path) -> Cgroup {
        let relative = root.strip_prefix("/").unwrap_or(root).join(path);
        Cgroup { hierarchies: hierarchies.clone(), relative }
    }

    /// The group of this name below this one.
    pub(crate) fn child(&self, name: &str) -> Cgroup {
        Cgroup { hierarchies: self.hierarchies.clone(), relative: self.relative.join(name) }
    }

    /// Makes the group and sets its limits. What is there already is reused.
    pub(crate) fn create(&self, spec: &CgroupSpec) -> Result<Vec<Unenforced>, Error> {
        let limits = limits::limits(spec);
        let mut unenforced = Vec::new();
        let mut acting = Vec::new();
        for mount in &self.hierarchies.v1 {
            match self.create_v1(mount, &limits, &mut unenforced) {
                Ok(()) => acting.extend(mount.controllers.iter().cloned()),
                Err(error) if is_denied(&error) => report_denied(&limits, mount, &error, &mut unenforced),
                Err(error) => return Err(error),
            }
        }
        if let Some(mount) = &self.hierarchies.v2 {
            match self.create_v2(mount, &limits, &mut unenforced) {
                Ok(on) => acting.extend(on),
                Err(error) if is_denied(&error) => {}
                Err(error) => return Err(error),
            }
        }
        for limit in &limits {
            let known = unenforced.iter().any(|found| found.limit == limit.name);
            if !known && !limit.controllers.iter().any(|wanted| acting.iter().any(|found| found == wanted)) {
                let reason = format!("no usable cgroup controller {} on this host", limit.controllers[0]);
                unenforced.push(Unenforced { limit: limit.name.to_owned(), reason });
            }
        }
        Ok(unenforced)
    }

    fn create_v1(
        &self,
        mount: &V1Mount,
        limits: &[Limit],
        unenforced: &mut Vec<Unenforced>,
    ) -> Result<(), Error> {
        let wanted: Vec<&Limit> = limits.iter().filter(|limit| mount.has(limit.controllers[0])).collect();
        if wanted.is_empty() && mount.is_optional() {
            return Ok(());
        }
        let dir = ControlDir::new(mount.path.join(&self.relative));
        make_dirs(&mount.path, &dir.path, |made| v1::prepare(mount, &ControlDir::new(made.to_owned())))?;
        wanted.into_iter().try_for_each(|limit| dir.apply(limit.name, &limit.files[0], unenforced))
    }

    fn create_v2(
        &self,
        mount: &V2Mount,
        limits: &[Limit],
        unenforced: &mut Vec<Unenforced>,
    ) -> Result<Vec<String>, Error> {
        let is_asked = |name: &str| limits.iter().any(|limit| limit.controllers[1] == name);
        let controllers: Vec<&str> = mount.controllers.iter().map(String::as_str).collect();
        let needed: Vec<&str> =
            controllers.into_iter().filter(|name| !detect::is_optional(name) || is_asked(name)).collect();
        let mut level = mount.path.clone();
        for part in self.relative.components() {
            v2::delegate(&ControlDir::new(level.clone()), &needed)?;
            level.push(part);
            make_dir(&level)?;
        }
        let dir = ControlDir::new(level);
        let acting: Vec<String> = v2::controllers(&dir).split_ascii_whitespace().map(str::to_owned).collect();
        for limit in limits {
            if acting.iter().any(|found| found == limit.controllers[1]) {
                dir.apply(limit.name, &limit.files[1], unenforced)?;
            }
        }
        Ok(acting)
    }

    /// Forks a process for the group, which has to [`Self::enter`] it with what is said here first of all.
    pub(crate) fn fork(&self, namespaces: CloneFlags) -> io::Result<(Forked, Birth)> {
        match self.fork_inside(namespaces) {
            Some(forked) => Ok((forked, Birth::Inside)),
            None => Ok((syscall::fork_into(namespaces, None)?, Birth::Outside)),
        }
    }

    /// Forks a process into the group. The calling process, which has one thread, goes there as well, as far as it must.
    pub(crate) fn fork_along(&self, namespaces: CloneFlags) -> Result<Forked, Error> {
        self.enter(Birth::Inside)?;
        if let Some(forked) = self.fork_inside(namespaces) {
            return Ok(forked);
        }
        self.enter(Birth::Outside)?;
        syscall::fork_into(namespaces, None).map_err(|error| Error::io("fork into", &self.relative, error))
    }

    /// Forks into the group of version 2. `None`: there is none, or the kernel does not do that.
    fn fork_inside(&self, namespaces: CloneFlags) -> Option<Forked> {
        let group = File::open(&self.v2_dir()?.path).ok()?;
        syscall::fork_into(namespaces, Some(group.as_fd())).ok()
    }

    /// Moves the calling process, which has one thread, into the group.
    pub(crate) fn enter(&self, birth: Birth) -> Result<(), Error> {
        for (controllers, dir) in self.dirs() {
            let is_v2 = controllers.is_empty();
            // A hierarchy in which the group could not be made was reported when it was created.
            if (is_v2 && birth == Birth::Inside) || !dir.path.exists() {
                continue;
            }
            // Moving a process stops the whole machine's forks for a grace period (10 to 30 ms); moving
            // the calling thread does not. Version 2 knows threads in special groups only.
            dir.write(if is_v2 { "cgroup.procs" } else { "tasks" }, "0")?;
        }
        Ok(())
    }

    /// How many of the group's processes the kernel killed for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let v1 = self.v1_dir("memory").and_then(|dir| v1::oom_kills(&dir));
        v1.or_else(|| self.v2_dir().and_then(|dir| v2::oom_kills(&dir))).unwrap_or(0)
    }

    /// What the group has used.
    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        let mut inactive = None;
        if let Some(dir) = self.v2_dir() {
            stats.cpu_usage_ns = v2::cpu_usage_ns(&dir);
            stats.memory_usage_bytes = v2::memory_usage_bytes(&dir);
            inactive = v2::inactive_file_bytes(&dir);
            stats.pids = dir.number(PIDS_CURRENT);
        }
        if let Some(dir) = self.v1_dir("cpuacct") {
            stats.cpu_usage_ns = v1::cpu_usage_ns(&dir);
        }
        if let Some(dir) = self.v1_dir("memory") {
            stats.memory_usage_bytes = v1::memory_usage_bytes(&dir);
            inactive = v1::inactive_file_bytes(&dir);
        }
        if let Some(dir) = self.v1_dir("pids") {
            stats.pids = dir.number(PIDS_CURRENT);
        }
        stats.memory_working_set_bytes =
            stats.memory_usage_bytes.map(|usage| usage.saturating_sub(inactive.unwrap_or(0)));
        stats
    }

    /// The processes of the group and of the groups below it.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let Some((_, dir)) = self.dirs().into_iter().find(|(_, dir)| dir.path.exists()) else {
            return Vec::new();
        };
        let mut pids = dir.processes();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Kills all processes of the group and below, and waits until none is left. Returns whether none
    /// is.
    pub(crate) fn kill_all(&self) -> bool {
        let at_once = self.v2_dir().is_some_and(|dir| v2::kill(&dir));
        let freezer = self.v1_dir("freezer");
        for round in 0..KILL_ROUNDS_MAX {
            let pids = self.processes();
            if pids.is_empty() {
                return true;
            }
            if !at_once {
                let freeze = |frozen| freezer.iter().for_each(|dir| v1::set_frozen(dir, frozen));
                freeze(true);
                for pid in self.processes() {
                    // It may have ended by itself.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                freeze(false);
            }
            thread::sleep(KILL_WAIT * round.min(20));
        }
        self.processes().is_empty()
    }

    /// Removes the group and those below it, in every hierarchy. Its processes must have ended, or be
    /// about to: a group in use is tried again for a while.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        for (_, dir) in self.dirs() {
            remove_tree(&dir)?;
        }
        Ok(())
    }

    /// Where the group is in each hierarchy, with that hierarchy's controllers for the mount inside a
    /// container (version 1 names them; empty stands for version 2).
    pub(crate) fn views(&self) -> Vec<(String, PathBuf)> {
        self.dirs()
            .into_iter()
            .filter(|(_, dir)| dir.path.exists())
            .map(|(controllers, dir)| (controllers, dir.path))
            .collect()
    }

    fn dirs(&self) -> Vec<(String, ControlDir)> {
        let v1 = self.hierarchies.v1.iter().map(|mount| (mount.controllers.join(","), &mount.path));
        let v2 = self.hierarchies.v2.iter().map(|mount| (String::new(), &mount.path));
        v1.chain(v2)
            .map(|(controllers, mount)| (controllers, ControlDir::new(mount.join(&self.relative))))
            .collect()
    }

    fn v1_dir(&self, controller: &str) -> Option<ControlDir> {
        let mounts = &self.hierarchies.v1;
        let mount = mounts.iter().find(|mount| mount.controllers.iter().any(|found| found == controller))?;
        Some(ControlDir::new(mount.path.join(&self.relative)))
    }

    fn v2_dir(&self) -> Option<ControlDir> {
        let mount = self.hierarchies.v2.as_ref()?;
        Some(ControlDir::new(mount.path.join(&self.relative)))
    }
}

/// Whether the host keeps us out of a hierarchy (it is mounted read-only, or not delegated).
fn is_denied(error: &Error) -> bool {
    let Error::Io { source, .. } = error else { return false };
    let denials = [Errno::EROFS, Errno::EACCES, Errno::EPERM];
    source.raw_os_error().is_some_and(|code| denials.contains(&Errno::from_raw(code)))
}

fn report_denied(limits: &[Limit], mount: &V1Mount, error: &Error, unenforced: &mut Vec<Unenforced>) {
    for limit in limits.iter().filter(|limit| mount.has(limit.controllers[0])) {
        unenforced.push(Unenforced { limit: limit.name.to_owned(), reason: error.to_string() });
    }
}

/// Makes a group and those that lead to it, and calls back for each that was made now.
fn make_dirs(
    top: &Path,
    path: &Path,
    on_made: impl Fn(&Path) -> Result<(), Error> + Copy,
) -> Result<(), Error> {
    let made = match make_dir(path) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound && path != top => {
            make_dirs(top, path.parent().unwrap_or(top), on_made)?;
            make_dir(path)?
        }
        made => made?,
    };
    if made { on_made(path) } else { Ok(()) }
}

/// Returns whether it was made now.
fn make_dir(path: &Path) -> Result<bool, Error> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io("create cgroup", path, error)),
    }
}

fn remove_tree(dir: &ControlDir) -> Result<(), Error> {
    for child in dir.children() {
        remove_tree(&child)?;
    }
    let mut wait = REMOVE_WAIT;
    for _ in 0..REMOVE_TRIES_MAX {
        match fs::remove_dir(&dir.path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {}
            Err(error) => return Err(Error::io("remove cgroup", &dir.path, error)),
        }
        thread::sleep(wait);
        wait = (wait * 2).min(REMOVE_WAIT_MAX);
    }
    Err(Error::Busy { what: "cgroup", path: dir.path.clone(), tries: REMOVE_TRIES_MAX })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::IoLimit;

    /// A directory that looks like a version 2 hierarchy with one group made beforehand (plain
    /// directories do not fill themselves with control files).
    fn fake_v2(controllers: &str, group: &str) -> (tempfile::TempDir, Cgroup) {
        let dir = tempfile::tempdir().unwrap();
        let mut level = dir.path().to_owned();
        let files = ["cgroup.subtree_control", "cgroup.procs", "cpu.weight", "cpu.max", "memory.max"];
        for part in std::iter::once("").chain(group.split('/')) {
            level = if part.is_empty() { level } else { level.join(part) };
            fs::create_dir_all(&level).unwrap();
            fs::write(level.join("cgroup.controllers"), controllers).unwrap();
            for file in files.iter().chain(&["memory.swap.max", "pids.max"]) {
                fs::write(level.join(file), "").unwrap();
            }
        }
        let controllers = controllers.split_ascii_whitespace().map(str::to_owned).collect();
        let v2 = Some(V2Mount { path: dir.path().to_owned(), controllers });
        let hierarchies = Hierarchies { v1: Vec::new(), v2 };
        let cgroup = Cgroup::new(&hierarchies, Path::new("/barque/n1"), Path::new("pod/c"));
        (dir, cgroup)
    }

    fn spec() -> CgroupSpec {
        CgroupSpec {
            path: "pod/c".into(),
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            cpu_period_us: None,
            memory_limit: Some(64 << 20),
            pids_limit: Some(100),
            ..CgroupSpec::default()
        }
    }

    #[test]
    fn version_2_limits_are_written_in_its_terms() {
        let (dir, cgroup) = fake_v2("cpu memory pids", "barque/n1/pod/c");
        assert_eq!(cgroup.create(&spec()).unwrap(), []);
        let read = |file: &str| fs::read_to_string(dir.path().join("barque/n1/pod/c").join(file)).unwrap();
        assert_eq!(read("cpu.weight"), "39");
        assert_eq!(read("cpu.max"), "50000 100000");
        assert_eq!(read("memory.max"), "67108864");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("pids.max"), "100");
        let switched = fs::read_to_string(dir.path().join("barque/cgroup.subtree_control")).unwrap();
        assert!(switched.starts_with('+'), "{switched}");
        assert_eq!(read("cgroup.subtree_control"), "", "a group with processes delegates nothing");
    }

    #[test]
    fn limits_without_a_controller_are_reported() {
        let (_dir, cgroup) = fake_v2("cpu", "barque/n1/pod/c");
        let unenforced = cgroup.create(&spec()).unwrap();
        let limits: Vec<_> = unenforced.iter().map(|found| found.limit.as_str()).collect();
        assert_eq!(limits, ["memory.limit", "memory.swap", "pids.limit"]);
        assert!(unenforced[0].reason.contains("controller memory"));

        let nothing = Cgroup::new(&Hierarchies::default(), Path::new("b"), Path::new("c"));
        assert_eq!(nothing.create(&spec()).unwrap().len(), 5);
    }

    #[test]
    fn version_2_switches_rare_controllers_on_when_they_are_asked_for() {
        let (dir, cgroup) = fake_v2("cpu cpuset io memory pids", "barque/n1/pod/c");
        let group = dir.path().join("barque/n1/pod/c");
        for file in ["cpuset.cpus", "io.max", "memory.low"] {
            fs::write(group.join(file), "").unwrap();
        }
        let asked = CgroupSpec {
            cpuset_cpus: Some("0-1".into()),
            memory_reservation: Some(1 << 20),
            memory_swappiness: Some(10),
            io_limits: vec![IoLimit { major: 8, write_bytes_per_second: Some(5), ..IoLimit::default() }],
            ..spec()
        };
        let unenforced = cgroup.create(&asked).unwrap();
        assert_eq!(unenforced.len(), 1, "{unenforced:?}");
        assert_eq!(unenforced[0].limit, "memory.swappiness");
        let read = |file: &str| fs::read_to_string(group.join(file)).unwrap();
        assert_eq!((read("cpuset.cpus").as_str(), read("memory.low").as_str()), ("0-1", "1048576"));
        assert_eq!(read("io.max"), "8:0 wbps=5");
    }

    #[test]
    fn version_2_counts_and_oom_kills_are_read() {
        let (dir, cgroup) = fake_v2("cpu memory pids", "barque/n1/pod/c");
        let write = |file: &str, text: &str| {
            fs::write(dir.path().join("barque/n1/pod/c").join(file), text).unwrap();
        };
        write("cpu.stat", "usage_usec 1500\nuser_usec 1000\n");
        write("memory.current", "5000\n");
        write("memory.stat", "anon 1\ninactive_file 2000\nactive_file 7\n");
        write("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n");
        write("pids.current", "4\n");
        let stats = cgroup.stats();
        assert_eq!(stats.cpu_usage_ns, Some(1_500_000));
        assert_eq!(stats.memory_usage_bytes, Some(5000));
        assert_eq!(stats.memory_working_set_bytes, Some(3000));
        assert_eq!(stats.pids, Some(4));
        assert_eq!(cgroup.oom_kills(), 2);
    }
}
