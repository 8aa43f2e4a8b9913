//! Every step of a start fails once, and every process that takes one is killed before it once: the failure
//! is told, nothing is left, and the next try succeeds.

use std::fs;
use std::path::Path;
use std::time::Duration;

use runtime::{ContainerSpec, Error, Mount, MountKind, Rlimit, Runtime, UserSpec};

use crate::Test;
use crate::support::{Host, eventually, processes_naming};
use crate::tracer;

pub(crate) const TESTS: &[Test] = &[
    ("faults::every_step_of_a_container_may_fail", every_step_of_a_container_may_fail),
    ("faults::every_step_of_a_sandbox_may_fail", every_step_of_a_sandbox_may_fail),
    ("faults::every_step_into_a_user_namespace_may_fail", every_step_into_a_user_namespace_may_fail),
    ("faults::a_full_disk_is_told_and_left", a_full_disk_is_told_and_left),
];

/// A step of so many is made to fail, unless all are asked for.
const STRIDE: usize = 4;
/// What a disk says that is broken.
const EIO: &str = "5";

/// How often, and after what time, what is left is counted anew.
const SETTLE_TRIES: u32 = 500;
const SETTLE_WAIT: Duration = Duration::from_millis(4);

/// What exists beside the host's own files.
#[derive(Debug, PartialEq, Eq)]
struct Counted {
    mounts: usize,
    groups: Vec<String>,
    bundles: Vec<String>,
    roots: usize,
    namespaces: usize,
}

fn count(host: &Host) -> Counted {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = mounts.lines().filter(|line| line.contains(host.dir.path().to_str().unwrap())).count();
    let mut groups = Vec::new();
    for group in host.groups() {
        below(&group, &mut groups);
    }
    groups.sort();
    let mut bundles = Vec::new();
    below(&host.dir.path().join("state"), &mut bundles);
    bundles.sort();
    let mut roots = Vec::new();
    below(&host.dir.path().join("files"), &mut roots);
    let namespaces = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid = entry.unwrap().file_name().into_string().ok()?.parse::<u32>().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let own = String::from_utf8_lossy(&line).contains(host.dir.path().to_str()?);
        own.then(|| fs::read_link(format!("/proc/{pid}/ns/net")).ok())?
    });
    let mut namespaces: Vec<_> = namespaces.collect();
    namespaces.sort();
    namespaces.dedup();
    Counted { mounts, groups, bundles, roots: roots.len(), namespaces: namespaces.len() }
}

fn below(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path().display().to_string());
            below(&entry.path(), found);
        }
    }
}

/// A runtime over the same state whose shims have a fault.
fn faulty(host: &Host, fault: &str, at: usize, notes: &Path) -> Runtime {
    let mut config = host.runtime.config().clone();
    config.shim_command = tracer::command(fault, at, notes);
    Runtime::new(config).unwrap()
}

fn supported() -> bool {
    if cfg!(target_arch = "x86_64") {
        return true;
    }
    println!("skipped: the tracer knows the registers of x86_64 only");
    false
}

/// A failure names its cause: the kernel's words, or how the process was lost.
fn is_told(fault: &str, error: &Error) -> bool {
    let text = error.to_string();
    let words: &[&str] = match fault {
        tracer::KILL | tracer::ORPHAN => &["killed by SIGKILL", "ended without a report"],
        // What cannot be told is known by the silence.
        _ => &["nput/output error", "ended without a report", "ended before it was ready"],
    };
    words.iter().any(|word| text.contains(word))
}

/// Lets every step of something fail in every way: `make` with a fault must fail or succeed truthfully, `undo`
/// removes what succeeded, and `make` without a fault must succeed afterwards.
fn every_step(
    host: &Host,
    make: impl Fn(&Runtime) -> Result<(), Error>,
    undo: impl Fn(&Runtime),
) -> Vec<String> {
    let notes = host.dir.path().join("notes");
    let quiet = || eventually("its processes are gone", || processes_naming("/notes").is_empty());
    // The first makes what stays: the groups of the host.
    make(&host.runtime).unwrap();
    undo(&host.runtime);
    let before = count(host);
    let counting = faulty(host, tracer::KILL, 0, &notes);
    make(&counting).unwrap();
    undo(&counting);
    quiet();
    let steps = tracer::noted(&notes);
    let mut tolerated = Vec::new();
    let mut tried = 0;
    // `BARQUE_FAULTS=all` takes every step, which takes minutes.
    let stride = if std::env::var_os("BARQUE_FAULTS").is_some() { 1 } else { STRIDE };
    for fault in [EIO, tracer::KILL, tracer::ORPHAN] {
        for at in 1..=steps.len() {
            if is_like_those_before(&steps, at, fault) || at % stride != (at / stride) % stride {
                continue;
            }
            tried += 1;
            fs::remove_file(&notes).unwrap();
            let place = || format!("{fault} at step {at}, {}", steps[at - 1]);
            let broken = faulty(host, fault, at, &notes);
            match make(&broken) {
                Err(error) => assert!(is_told(fault, &error), "{}: {error}", place()),
                Ok(()) => {
                    tolerated.push(place());
                    undo(&host.runtime);
                }
            }
            quiet();
            // Killed processes take a moment to let go.
            let settled = (0..SETTLE_TRIES).any(|_| {
                let clean = count(host) == before;
                clean || {
                    std::thread::sleep(SETTLE_WAIT);
                    false
                }
            });
            assert!(settled, "left after {}: {:?} beside {before:?}", place(), count(host));
            make(&host.runtime).unwrap_or_else(|error| panic!("after {}: {error}", place()));
            undo(&host.runtime);
        }
    }
    println!("{} steps, {tried} faults, {} of them tolerated", steps.len(), tolerated.len());
    steps
}

/// Whether a fault at a step is the same as one at the step before: between two lookups nothing changes that a
/// death could leave, and the third of the same kind in a row fails as the second does.
fn is_like_those_before(steps: &[String], at: usize, fault: &str) -> bool {
    let name = &steps[at - 1];
    let in_a_row = |many: usize| at > many && steps[at - 1 - many..at - 1].iter().all(|step| step == name);
    if fault == EIO { in_a_row(2) } else { name == "openat2" || in_a_row(1) }
}

fn rich_spec(host: &Host) -> ContainerSpec {
    let volume = host.dir.path().join("volume");
    fs::create_dir_all(volume.join("part")).unwrap();
    let mut spec = host.spec("c", "s", &["sleep"]);
    let bind = |target: &str| Mount { source: volume.clone(), target: target.into(), ..Mount::default() };
    spec.mounts = vec![
        Mount { read_only: true, ..bind("/data/guarded") },
        Mount { sub_path: Some("part".into()), ..bind("/part") },
        Mount { target: "/scratch".into(), kind: MountKind::Tmpfs, ..Mount::default() },
    ];
    spec.process.user = UserSpec::parse("web");
    spec.process.cwd = "/tmp/new".into();
    spec.process.rlimits = vec![Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 64, hard: 128 }];
    spec.cgroup.memory_limit = Some(256 << 20);
    spec.cgroup.pids_limit = Some(100);
    spec.oom_score_adj = Some(900);
    spec
}

fn every_step_of_a_container_may_fail() {
    if !supported() {
        return;
    }
    let host = Host::new();
    host.sandbox("s");
    let spec = rich_spec(&host);
    let make = |runtime: &Runtime| runtime.start_container(&spec).map(drop);
    let steps = every_step(&host, make, |runtime| runtime.delete_container("c").unwrap());
    for wanted in ["unshare", "setns", "mount", "pivot_root", "mkdir", "write", "rename", "execve", "bind"] {
        assert!(steps.iter().any(|step| step == wanted), "{wanted} is no step: {steps:?}");
    }
    host.finish();
}

fn every_step_of_a_sandbox_may_fail() {
    if !supported() {
        return;
    }
    let host = Host::new();
    let mut spec = host.sandbox_spec("s");
    spec.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
    let make = |runtime: &Runtime| runtime.create_sandbox(&spec).map(drop);
    let steps = every_step(&host, make, |runtime| runtime.delete_sandbox("s").unwrap());
    for wanted in ["unshare", "sethostname", "mount", "sendto", "pivot_root", "rename"] {
        assert!(steps.iter().any(|step| step == wanted), "{wanted} is no step: {steps:?}");
    }
    host.finish();
}

/// The same with a user namespace, which takes steps of its own.
fn every_step_into_a_user_namespace_may_fail() {
    if !supported() {
        return;
    }
    let host = Host::new();
    let users = Some(runtime::UserIds { first: 1_000_000_000, length: 65536 });
    let sandbox = runtime::SandboxSpec { users, ..host.sandbox_spec("s") };
    let volume = host.dir.path().join("volume");
    fs::create_dir_all(&volume).unwrap();
    let mut spec = host.spec("c", "s", &["sleep"]);
    spec.mounts = vec![Mount { source: volume, target: "/data".into(), ..Mount::default() }];
    host.runtime.create_sandbox(&sandbox).unwrap();
    if let Err(error) = host.runtime.start_container(&spec) {
        assert!(error.to_string().contains("idmapped mounts"), "{error}");
        println!("skipped: {error}");
        return host.finish();
    }
    host.runtime.delete_sandbox("s").unwrap();
    let make = |runtime: &Runtime| {
        runtime.create_sandbox(&sandbox)?;
        let started = runtime.start_container(&spec).map(drop);
        started.inspect_err(|_| runtime.delete_sandbox("s").unwrap())
    };
    let steps = every_step(&host, make, |runtime| runtime.delete_sandbox("s").unwrap());
    for wanted in ["clone", "mount_setattr", "move_mount", "setresuid", "unshare", "setns"] {
        assert!(steps.iter().any(|step| step == wanted), "{wanted} is no step: {steps:?}");
    }
    host.finish();
}

/// The state directory on a small memory filesystem that fills up.
fn a_full_disk_is_told_and_left() {
    let host = Host::new();
    host.sandbox("s");
    let state = host.dir.path().join("state");
    let filler = state.join("filler");
    let small = "size=256k";
    let none = nix::mount::MsFlags::empty();
    // The sandbox's network namespace and memory are mounted below; they are made anew on the small one.
    host.runtime.delete_sandbox("s").unwrap();
    nix::mount::mount(Some("tmpfs"), &state, Some("tmpfs"), none, Some(small)).unwrap();
    for kind in ["containers", "sandboxes"] {
        fs::create_dir(state.join(kind)).unwrap();
    }
    host.sandbox("s");
    let mut left = 1 << 20;
    let mut full = Vec::new();
    while left > 0 && fs::write(&filler, &full).is_ok() {
        full.extend(std::iter::repeat_n(0, 4096));
        left -= 4096;
    }
    let spec = host.spec("c", "s", &["exit", "0"]);
    let error = host.runtime.start_container(&spec).unwrap_err().to_string();
    assert!(error.contains("No space left on device") && error.contains("plan"), "{error}");
    assert_eq!(host.state("c"), None);
    fs::remove_file(&filler).unwrap();
    assert_eq!(host.run(&spec).0.code, 0);
    host.runtime.delete_sandbox("s").unwrap();
    nix::mount::umount(&state).unwrap();
    host.finish();
}
