//! From start to deletion, over the deaths of starters and shims.

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runtime::{ContainerState, Error, PidMode, Runtime, SandboxSpec};

use crate::Test;
use crate::support::{Host, config, eventually, processes_naming};

pub(crate) const TESTS: &[Test] = &[
    ("lifecycle::exit_codes_and_signals_are_recorded", exit_codes_and_signals_are_recorded),
    ("lifecycle::signals_reach_init", signals_reach_init),
    ("lifecycle::starting_twice_is_starting_once", starting_twice_is_starting_once),
    ("lifecycle::deleting_twice_is_fine_and_leaves_nothing", deleting_twice_is_fine_and_leaves_nothing),
    ("lifecycle::containers_outlive_their_starter", containers_outlive_their_starter),
    ("lifecycle::a_killed_shim_takes_its_container_with_it", a_killed_shim_takes_its_container_with_it),
    ("lifecycle::many_watchers_hear_of_one_exit", many_watchers_hear_of_one_exit),
    ("lifecycle::what_init_leaves_is_ended", what_init_leaves_is_ended),
    ("lifecycle::a_dead_pause_process_is_noticed", a_dead_pause_process_is_noticed),
    ("lifecycle::a_shim_is_small_and_a_start_is_quick", a_shim_is_small_and_a_start_is_quick),
];

fn exit_codes_and_signals_are_recorded() {
    let host = Host::new();
    host.sandbox("s");
    let (exit, _) = host.run(&host.spec("zero", "s", &["exit", "0"]));
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (0, None, false));
    let (exit, _) = host.run(&host.spec("three", "s", &["exit", "3"]));
    assert_eq!((exit.code, exit.signal), (3, None));
    let (exit, _) = host.run(&host.spec("abort", "s", &["abort"]));
    // As pid 1 of its namespace it cannot be ended by a default action: abort(3) ends it otherwise.
    assert_ne!(exit.code, 0);
    let started = host.start(&host.spec("killed", "s", &["sleep"]));
    host.runtime.signal("killed", libc_kill()).unwrap();
    let exit = host.runtime.wait_exit("killed").unwrap().unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
    assert!(exit.finished_at > started.started_at);
    let Some(ContainerState::Exited { started_at, exit: seen }) = host.state("killed") else {
        panic!("{:?}", host.state("killed"));
    };
    assert_eq!((started_at, seen), (Some(started.started_at), exit));
    assert!(matches!(host.runtime.signal("killed", 15), Err(Error::NotRunning { .. })));
    host.finish();
}

fn libc_kill() -> i32 {
    Signal::SIGKILL as i32
}

fn signals_reach_init() {
    let host = Host::new();
    host.sandbox("s");
    host.start(&host.spec("c", "s", &["obey"]));
    host.await_output("c", "ready");
    host.runtime.signal("c", Signal::SIGUSR1 as i32).unwrap();
    host.await_output("c", "got a signal");
    host.runtime.signal("c", Signal::SIGTERM as i32).unwrap();
    let exit = host.runtime.wait_exit("c").unwrap().unwrap();
    assert_eq!(exit.code, 0);
    assert_eq!(host.output("c"), "ready\ngot a signal\nasked to stop\n");
    // A number that is no signal.
    host.start(&host.spec("d", "s", &["sleep"]));
    assert!(matches!(host.runtime.signal("d", 9999), Err(Error::Io { .. })));
    assert!(matches!(host.runtime.signal("nobody", 15), Err(Error::NotFound { .. })));
    host.finish();
}

fn starting_twice_is_starting_once() {
    let host = Host::new();
    let sandbox = host.sandbox("s");
    assert_eq!(host.sandbox("s"), sandbox);
    let other = SandboxSpec { hostname: "other".into(), ..host.sandbox_spec("s") };
    assert!(matches!(host.runtime.create_sandbox(&other), Err(Error::Exists { .. })));
    let spec = host.spec("c", "s", &["sleep"]);
    let started = host.start(&spec);
    assert_eq!(host.start(&spec), started);
    let mut changed = spec.clone();
    changed.process.env.push("A=1".into());
    assert!(matches!(host.runtime.start_container(&changed), Err(Error::Exists { .. })));
    host.runtime.signal("c", libc_kill()).unwrap();
    host.runtime.wait_exit("c").unwrap();
    let error = host.runtime.start_container(&spec).unwrap_err();
    assert_eq!(error.to_string(), "container c exists already (exited); delete it first");
    host.runtime.delete_container("c").unwrap();
    assert_ne!(host.start(&spec).process, started.process);
    host.finish();
}

fn deleting_twice_is_fine_and_leaves_nothing() {
    let host = Host::new();
    host.sandbox("s");
    host.start(&host.spec("running", "s", &["sleep"]));
    host.run(&host.spec("ended", "s", &["write", "/file", "text"]));
    for _ in 0..2 {
        host.runtime.delete_container("running").unwrap();
        host.runtime.delete_container("ended").unwrap();
    }
    assert!(host.log_path("ended").exists(), "logs stay");
    host.start(&host.spec("taken-along", "s", &["sleep"]));
    for _ in 0..2 {
        host.runtime.delete_sandbox("s").unwrap();
    }
    assert_eq!(host.runtime.list().unwrap(), []);
    host.assert_clean();
}

/// Another process: starts the containers of a state directory and is killed by itself.
pub(crate) fn start_and_die(args: impl Iterator<Item = OsString>) -> ! {
    let args: Vec<PathBuf> = args.map(PathBuf::from).collect();
    let runtime = Runtime::new(config(&args[0], &args[1])).unwrap();
    let read = |name: &str| fs::read(args[0].join(name)).unwrap();
    let sandbox: SandboxSpec = serde_json::from_slice(&read("sandbox.json")).unwrap();
    runtime.create_sandbox(&sandbox).unwrap();
    let container: runtime::ContainerSpec = serde_json::from_slice(&read("container.json")).unwrap();
    let started = runtime.start_container(&container).unwrap();
    fs::write(args[0].join("started"), format!("{} {}", started.process.pid, started.started_at)).unwrap();
    kill(Pid::this(), Signal::SIGKILL).unwrap();
    unreachable!()
}

fn containers_outlive_their_starter() {
    let host = Host::new();
    let write = |name: &str, bytes: Vec<u8>| fs::write(host.dir.path().join(name), bytes).unwrap();
    write("sandbox.json", serde_json::to_vec(&host.sandbox_spec("s")).unwrap());
    let spec = host.spec("c", "s", &["obey"]);
    write("container.json", serde_json::to_vec(&spec).unwrap());
    let status = Command::new(std::env::current_exe().unwrap())
        .arg("start-and-die")
        .args([host.dir.path(), &host.cgroup_root])
        .status()
        .unwrap();
    assert!(!status.success());
    let told = fs::read_to_string(host.dir.path().join("started")).unwrap();

    let adopted = host.restarted();
    let found = adopted.list().unwrap();
    let [observed] = &found[..] else { panic!("{found:?}") };
    assert_eq!(observed.spec, spec);
    let ContainerState::Running { process, started_at } = observed.state else {
        panic!("{:?}", observed.state);
    };
    assert_eq!(told, format!("{} {started_at}", process.pid), "same process, same start");
    assert!(process.is_alive());
    assert!(adopted.sandboxes().unwrap()[0].pause.is_some());
    assert_eq!(adopted.start_container(&spec).unwrap().process, process);
    host.await_output("c", "ready");
    adopted.signal("c", Signal::SIGUSR1 as i32).unwrap();
    host.await_output("c", "got a signal");
    adopted.signal("c", Signal::SIGTERM as i32).unwrap();
    assert_eq!(adopted.wait_exit("c").unwrap().unwrap().code, 0);
    host.finish();
}

fn shim_of(host: &Host, id: &str) -> i32 {
    let bundle = format!("state/containers/{id}");
    let path = host.dir.path().join(bundle);
    match processes_naming(path.to_str().unwrap())[..] {
        [pid] => pid,
        ref other => panic!("shims of {id}: {other:?}"),
    }
}

fn a_killed_shim_takes_its_container_with_it() {
    let host = Host::new();
    host.sandbox("s");
    let started = host.start(&host.spec("c", "s", &["sleep"]));
    let watch = host.runtime.exit_watch("c").unwrap();
    kill(Pid::from_raw(shim_of(&host, "c")), Signal::SIGKILL).unwrap();
    eventually("the container ends", || !started.process.is_alive());
    assert_eq!(host.runtime.wait_exit("c").unwrap(), None, "nobody knows how");
    assert_eq!(host.state("c"), Some(ContainerState::Lost { started_at: Some(started.started_at) }));
    let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(1000_u16)).unwrap(), 1, "watchers are woken");
    host.finish();
}

fn many_watchers_hear_of_one_exit() {
    let host = Host::new();
    host.sandbox("s");
    host.start(&host.spec("c", "s", &["sleep"]));
    let watches: Vec<_> = (0..20).map(|_| host.runtime.exit_watch("c").unwrap()).collect();
    let mut fds: Vec<PollFd<'_>> =
        watches.iter().map(|watch| PollFd::new(watch.as_fd(), PollFlags::POLLIN)).collect();
    assert_eq!(poll(&mut fds, PollTimeout::from(50_u16)).unwrap(), 0, "nothing has happened");
    host.runtime.signal("c", libc_kill()).unwrap();
    for watch in &watches {
        let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(5000_u16)).unwrap(), 1);
        assert!(matches!(host.state("c"), Some(ContainerState::Exited { .. })), "recorded before told");
    }
    let late = host.runtime.exit_watch("c").unwrap();
    let mut fds = [PollFd::new(late.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(1000_u16)).unwrap(), 1, "too late is at once");
    host.finish();
}

fn what_init_leaves_is_ended() {
    let host = Host::new();
    let spec = SandboxSpec { pid: PidMode::Sandbox, ..host.sandbox_spec("s") };
    host.runtime.create_sandbox(&spec).unwrap();
    let begin = Instant::now();
    let (exit, output) = host.run(&host.spec("c", "s", &["orphan"]));
    assert_eq!((exit.code, output.as_str()), (0, "leaving\n"));
    assert!(begin.elapsed() < Duration::from_secs(2), "the orphan holds nothing up");
    let (_, output) = host.run(&host.spec("d", "s", &["report"]));
    assert!(!output.contains("pid=1\n"), "{output}");
    host.finish();
}

fn a_dead_pause_process_is_noticed() {
    let host = Host::new();
    let sandbox = host.sandbox("s");
    assert!(host.runtime.sandboxes().unwrap()[0].pause.is_some());
    kill(Pid::from_raw(sandbox.process.pid), Signal::SIGKILL).unwrap();
    eventually("it ends", || host.runtime.sandboxes().unwrap()[0].pause.is_none());
    let error = host.runtime.create_sandbox(&host.sandbox_spec("s")).unwrap_err();
    assert!(error.to_string().contains("(dead)"), "{error}");
    let error = host.runtime.start_container(&host.spec("c", "s", &["sleep"])).unwrap_err();
    assert!(error.to_string().contains("pause process"), "{error}");
    assert_eq!(host.state("c"), None, "nothing of the failed start is left");
    host.runtime.delete_sandbox("s").unwrap();
    host.sandbox("s");
    host.finish();
}

/// Private memory of a process in KiB: what would be free if it ended.
fn private_kib(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    lines.map(|line| line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

fn a_shim_is_small_and_a_start_is_quick() {
    const ROUNDS: usize = 10;
    let host = Host::new();
    let sandbox = host.sandbox("s");
    let started = host.start(&host.spec("c", "s", &["sleep"]));
    host.start(&host.spec("d", "s", &["sleep"]));
    let (shim, pause) = (private_kib(shim_of(&host, "c")), private_kib(sandbox.process.pid));
    println!("    shim {shim} KiB, pause {pause} KiB of private memory");
    assert!(shim <= 1024 && pause <= 1024);
    // They let go of what they do not use just after the start was told.
    let resident = || [shim_of(&host, "c"), sandbox.process.pid].map(resident_kib);
    eventually("shim and pause are small", || resident().iter().sum::<u64>() <= 2048);
    println!("    shim and pause: {:?} KiB resident", resident());
    assert!(started.process.is_alive());
    let times: Vec<[Duration; 3]> = (0..ROUNDS)
        .map(|number| {
            let id = format!("t{number}");
            let begin = Instant::now();
            host.sandbox(&id);
            let sandboxed = begin.elapsed();
            host.start(&host.spec(&id, &id, &["sleep"]));
            let running = begin.elapsed();
            host.runtime.delete_sandbox(&id).unwrap();
            [sandboxed, running, begin.elapsed() - running]
        })
        .collect();
    let sorted = |step: usize| {
        let mut times: Vec<Duration> = times.iter().map(|steps| steps[step]).collect();
        times.sort();
        times
    };
    for (step, name) in ["sandbox", "sandbox and container", "deletion"].iter().enumerate() {
        let times = sorted(step);
        println!("    {name}: least {:?}, median {:?} of {ROUNDS}", times[0], times[ROUNDS / 2]);
    }
    // The least, and generous: the machine may be busy with something else. Nothing waits or sleeps.
    let running = sorted(1)[0];
    assert!(running < Duration::from_millis(500), "{running:?}");
    host.finish();
}
