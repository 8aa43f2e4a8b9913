//! What a container might try in order to get out, after attacks that worked on others. Each is tried for real.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use runtime::{ContainerSpec, LogSpec, Mount, PidMode, SandboxSpec, UserIds, UserSpec};

use crate::Test;
use crate::support::{Host, processes_naming};

pub(crate) const TESTS: &[Test] = &[
    ("escapes::processes_of_the_host_show_nothing", processes_of_the_host_show_nothing),
    ("escapes::system_calls_of_the_hosts_root_are_refused", system_calls_of_the_hosts_root_are_refused),
    ("escapes::a_release_agent_cannot_be_set", a_release_agent_cannot_be_set),
    ("escapes::the_hosts_disk_cannot_be_opened", the_hosts_disk_cannot_be_opened),
    ("escapes::the_runtimes_file_cannot_be_written", the_runtimes_file_cannot_be_written),
    ("escapes::a_link_that_is_swapped_leads_nowhere", a_link_that_is_swapped_leads_nowhere),
    ("escapes::no_file_of_the_runtime_is_a_way_out", no_file_of_the_runtime_is_a_way_out),
    ("escapes::a_hostile_image_is_refused_in_time", a_hostile_image_is_refused_in_time),
    ("escapes::a_log_is_written_through_no_link", a_log_is_written_through_no_link),
];

/// Races are run so often.
const RACE_ROUNDS: usize = 20;

fn run(host: &Host, id: &str, work: &[&str], change: impl FnOnce(&mut ContainerSpec)) -> String {
    let mut spec = host.spec(id, "s", work);
    change(&mut spec);
    host.run(&spec).1
}

/// Even with the host's process ids: root without the right to trace sees no files, memory or variables.
fn processes_of_the_host_show_nothing() {
    let host = Host::new();
    let spec = SandboxSpec { pid: PidMode::Host, ..host.sandbox_spec("s") };
    host.runtime.create_sandbox(&spec).unwrap();
    let own = std::process::id();
    for (number, file) in ["root/etc/passwd", "environ", "mem", "exe", "cwd/etc", "fd/0"].iter().enumerate() {
        let path = format!("/proc/{own}/{file}");
        let output = run(&host, &format!("look{number}"), &["cat", &path], |_| {});
        assert!(output.starts_with("error: Permission denied"), "{path}: {output}");
    }
    host.finish();
}

/// Keyrings, file handles, other namespaces, modules, programs in the kernel: by the default filter.
fn system_calls_of_the_hosts_root_are_refused() {
    let host = Host::new();
    host.sandbox("s");
    let output = run(&host, "calls", &["forbidden-calls"], |_| {});
    for line in output.lines() {
        let (name, answer) = line.split_once('=').unwrap();
        assert!(matches!(answer, "EPERM" | "ENOSYS"), "{name} answers {answer}");
    }
    assert!(output.lines().count() > 15, "{output}");
    host.finish();
}

/// The release agent of a version 1 hierarchy is executed by the host.
fn a_release_agent_cannot_be_set() {
    let host = Host::new();
    host.sandbox("s");
    assert!(run(&host, "plain", &["release-agent"], |_| {}).starts_with("mount: EPERM"), "no right to mount");
    let users = Some(UserIds { first: 1_000_000_000, length: 65536 });
    host.runtime.create_sandbox(&SandboxSpec { users, ..host.sandbox_spec("u") }).unwrap();
    let mut spec = host.spec("admin", "u", &["release-agent"]);
    spec.privileged = true;
    match host.runtime.start_container(&spec) {
        Ok(_) => {
            host.runtime.wait_exit("admin").unwrap();
            let output = host.output("admin");
            assert!(!output.contains("written"), "{output}");
        }
        Err(error) => println!("skipped: {error}"),
    }
    host.finish();
}

fn the_hosts_disk_cannot_be_opened() {
    let host = Host::new();
    host.sandbox("s");
    let disk = fs::metadata("/").unwrap().dev();
    let (major, minor) = (nix::sys::stat::major(disk).to_string(), nix::sys::stat::minor(disk).to_string());
    for (id, dir) in [("root", "/tmp"), ("dev", "/dev"), ("shm", "/dev/shm")] {
        let output = run(&host, id, &["probe-disk", dir, &major, &minor], |_| {});
        assert!(output.contains("not opened"), "{dir}: {output}");
    }
    host.finish();
}

/// CVE-2019-5736: whoever gets hold of the file through a process of the runtime's cannot write to it.
fn the_runtimes_file_cannot_be_written() {
    let host = Host::new();
    let spec = SandboxSpec { pid: PidMode::Sandbox, ..host.sandbox_spec("s") };
    let pause = host.runtime.create_sandbox(&spec).unwrap().process.pid;
    host.start(&host.spec("c", "s", &["sleep"]));
    let shims = processes_naming(host.dir.path().join("state/containers/c").to_str().unwrap());
    assert!(!shims.is_empty());
    for pid in shims.into_iter().chain([pause]) {
        // The host's own root, whom nothing else would keep from it.
        let exe = format!("/proc/{pid}/exe");
        let same = fs::metadata(&exe).unwrap().permissions();
        let error = fs::set_permissions(&exe, same).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{pid}: {error}");
        let error = File::options().append(true).open(&exe).unwrap_err();
        // While the file is executed; afterwards its mount can still only be read.
        assert_eq!(error.raw_os_error(), Some(libc::ETXTBSY), "{pid}: {error}");
    }
    let output = run(&host, "tracer", &["write", "/proc/1/exe", "x"], |spec| {
        spec.process.capabilities.add = vec!["SYS_PTRACE".into()];
        spec.process.seccomp = runtime::seccomp::Seccomp::Unconfined;
    });
    assert!(output.starts_with("error: "), "{output}");
    host.finish();
}

/// CVE-2021-30465: what is mounted, and onto what, changes into a link and back while the container is made.
fn a_link_that_is_swapped_leads_nowhere() {
    let host = Host::new();
    host.sandbox("s");
    let volume = host.dir.path().join("volume");
    fs::create_dir_all(volume.join("flip/inside")).unwrap();
    symlink("/", volume.join("flop")).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (volume, over) = (volume.clone(), Arc::clone(&over));
        move || {
            let (flip, flop) = (volume.join("flip"), volume.join("flop"));
            while !over.load(Ordering::Relaxed) {
                renameat2(AT_FDCWD, &flip, AT_FDCWD, &flop, RenameFlags::RENAME_EXCHANGE).unwrap();
            }
        }
    });
    let other = host.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    for round in 0..RACE_ROUNDS {
        let id = format!("c{round}");
        let mut spec = host.spec(&id, "s", &["list", "/part"]);
        let bind = |target: &str| Mount { source: volume.clone(), target: target.into(), ..Mount::default() };
        spec.mounts = vec![
            Mount { sub_path: Some("flip".into()), ..bind("/part") },
            bind("/data"),
            Mount { source: other.clone(), target: "/data/flip/deep".into(), ..Mount::default() },
        ];
        // It may fail, for the place is gone at the moment; it may not show or change what is outside.
        if host.runtime.start_container(&spec).is_ok() {
            host.runtime.wait_exit(&id).unwrap();
            let output = host.output(&id);
            let names: Vec<&str> = output.split_whitespace().collect();
            assert!(names.iter().all(|name| ["inside", "deep", "flip", "flop"].contains(name)), "{output}");
        }
        host.runtime.delete_container(&id).unwrap();
    }
    over.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(!Path::new("/deep").exists(), "a mount point was made on the host");
    host.finish();
}

/// CVE-2024-21626: a working directory by way of an open file of the runtime's.
fn no_file_of_the_runtime_is_a_way_out() {
    let host = Host::new();
    host.sandbox("s");
    for number in 0..24 {
        let id = format!("c{number}");
        let mut spec = host.spec(&id, "s", &["list", "."]);
        spec.process.cwd = format!("/proc/self/fd/{number}");
        if host.runtime.start_container(&spec).is_ok() {
            host.runtime.wait_exit(&id).unwrap();
            let output = host.output(&id);
            assert!(output.trim() == "bin dev etc proc sys tmp", "file {number} shows {output}");
        }
        host.runtime.delete_container(&id).unwrap();
    }
    host.finish();
}

/// Files that the runtime reads in the container's root are what somebody else made.
fn a_hostile_image_is_refused_in_time() {
    let host = Host::new();
    host.sandbox("s");
    let layer = host.dir.path().join("hostile");
    fs::create_dir_all(layer.join("etc")).unwrap();
    let passwd = layer.join("etc/passwd");
    let refused = |id: &str| {
        let mut spec = host.spec(id, "s", &["exit", "0"]);
        spec.rootfs.lower_dirs.insert(0, layer.clone());
        spec.process.user = UserSpec::parse("web");
        host.runtime.start_container(&spec).unwrap_err().to_string()
    };
    nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(refused("pipe").contains("no user database"), "a pipe that nobody writes");
    fs::remove_file(&passwd).unwrap();
    File::create(&passwd).unwrap().set_len(1 << 40).unwrap();
    assert!(refused("large").contains("no user database"), "a terabyte of nothing");
    fs::remove_file(&passwd).unwrap();
    symlink("/dev/zero", &passwd).unwrap();
    assert!(refused("endless").contains("no user database"), "a device without end");
    host.finish();
}

/// Whoever may write to the directory of logs must not choose what the shim appends to.
fn a_log_is_written_through_no_link() {
    let host = Host::new();
    host.sandbox("s");
    let victim = host.dir.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    let mut spec = host.spec("c", "s", &["echo", "words"]);
    let log = host.dir.path().join("logs/led-astray.log");
    symlink(&victim, &log).unwrap();
    spec.log = Some(LogSpec::new(&log));
    let error = host.runtime.start_container(&spec).unwrap_err().to_string();
    assert!(error.contains("open log"), "{error}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    host.finish();
}
