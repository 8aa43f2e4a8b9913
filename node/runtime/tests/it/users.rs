//! User namespaces: root inside is nobody outside.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::PathBuf;

use runtime::{
    ContainerSpec, ExecSpec, Mount, MountKind, NamespaceMode, PidMode, Propagation, Rlimit, SandboxSpec,
    UserIds, UserSpec,
};

use crate::Test;
use crate::support::Host;

pub(crate) const TESTS: &[Test] = &[
    ("users::root_inside_is_nobody_outside", root_inside_is_nobody_outside),
    ("users::files_belong_to_who_uses_them", files_belong_to_who_uses_them),
    ("users::programs_run_later_are_inside_too", programs_run_later_are_inside_too),
    ("users::rights_end_at_the_namespace", rights_end_at_the_namespace),
    ("users::users_beyond_the_range_are_refused", users_beyond_the_range_are_refused),
    ("users::the_pods_namespaces_belong_to_it", the_pods_namespaces_belong_to_it),
];

/// Nobody else's on a test machine.
const FIRST: u32 = 1_000_000_000;
const IDS: UserIds = UserIds { first: FIRST, length: 65536 };

/// A host with a sandbox `s`; none where the kernel cannot show files with other ids.
fn host_with(change: impl FnOnce(&mut SandboxSpec)) -> Option<Host> {
    let host = Host::new();
    let mut spec = SandboxSpec { users: Some(IDS), ..host.sandbox_spec("s") };
    change(&mut spec);
    host.runtime.create_sandbox(&spec).unwrap();
    let probe = host.spec("probe", "s", &["exit", "0"]);
    match host.runtime.start_container(&probe) {
        Ok(_) => {
            host.runtime.delete_container("probe").unwrap();
            Some(host)
        }
        Err(error) if error.to_string().contains("idmapped mounts") => {
            println!("skipped: {error}");
            host.finish();
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn value<'a>(report: &'a str, key: &str) -> &'a str {
    report.lines().find_map(|line| line.strip_prefix(&format!("{key}="))).unwrap()
}

fn run(host: &Host, id: &str, work: &[&str], change: impl FnOnce(&mut ContainerSpec)) -> String {
    let mut spec = host.spec(id, "s", work);
    change(&mut spec);
    host.run(&spec).1
}

fn owner_of(pid: i32) -> (String, String) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ids = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
    };
    (ids("Uid:"), ids("Gid:"))
}

fn root_inside_is_nobody_outside() {
    let Some(host) = host_with(|_| {}) else { return };
    let report = run(&host, "report", &["report"], |_| {});
    assert_eq!([value(&report, "uid"), value(&report, "gid"), value(&report, "pid")], ["0", "0", "1"]);
    let default = "00000000a80425fb";
    assert_eq!([value(&report, "CapEff"), value(&report, "CapBnd")], [default, default]);
    assert_eq!(
        run(&host, "map", &["cat", "/proc/self/uid_map"], |_| {}).split_whitespace().collect::<Vec<_>>(),
        ["0".to_owned(), FIRST.to_string(), "65536".to_owned()]
    );
    let started = host.start(&host.spec("sleeper", "s", &["sleep"]));
    let same = |id: u32| [id.to_string(), id.to_string(), id.to_string(), id.to_string()].join(" ");
    assert_eq!(owner_of(started.process.pid), (same(FIRST), same(FIRST)));
    let pause = host.runtime.observe_sandbox("s").unwrap().unwrap().pause.unwrap();
    assert_eq!(owner_of(pause.pid), (same(FIRST), same(FIRST)), "nor is the pause process the host's root");
    let web = host.spec("web", "s", &["sleep"]);
    let web = ContainerSpec {
        process: runtime::ProcessSpec { user: UserSpec::parse("web"), ..web.process.clone() },
        ..web
    };
    let started = host.start(&web);
    assert_eq!(owner_of(started.process.pid), (same(FIRST + 33), same(FIRST + 34)));
    host.finish();
}

fn files_belong_to_who_uses_them() {
    let Some(host) = host_with(|_| {}) else { return };
    let volume = host.dir.path().join("volume");
    fs::create_dir_all(volume.join("own")).unwrap();
    fs::write(volume.join("secret"), "for root only\n").unwrap();
    fs::set_permissions(volume.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    chown(volume.join("own"), Some(33), Some(34)).unwrap();
    let bind = |target: &str| Mount { source: volume.clone(), target: target.into(), ..Mount::default() };
    let mounts = vec![
        bind("/volume"),
        Mount { sub_path: Some("made/later".into()), ..bind("/deep/part") },
        Mount { source: volume.join("secret"), ..bind("/etc/one-file") },
        Mount { target: "/scratch".into(), kind: MountKind::Tmpfs, ..Mount::default() },
    ];
    let run = |id: &str, user: &str, work: &[&str]| {
        run(&host, id, work, |spec| {
            spec.process.user = UserSpec::parse(user);
            spec.mounts = mounts.clone();
        })
    };
    // The image's, the volume's, a file of it, what was made for it, memory, what the container makes.
    assert_eq!(run("image", "0", &["owner", "/bin/workload", "/etc", "/"]), "0:0 0:0 0:0\n");
    assert_eq!(run("read", "0", &["cat", "/volume/secret"]), "for root only\n");
    assert_eq!(run("one", "0", &["cat", "/etc/one-file"]), "for root only\n");
    let places = ["owner", "/volume", "/volume/own", "/deep", "/deep/part", "/scratch", "/dev", "/dev/shm"];
    assert_eq!(run("owners", "0", &places), "0:0 33:34 0:0 0:0 0:0 0:0 0:0\n");
    assert_eq!(run("write", "0", &["write", "/volume/new", "x"]), "written\n");
    assert_eq!(run("own", "web", &["write", "/volume/own/new", "x"]), "written\n");
    let of = |path: PathBuf| fs::metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
    assert_eq!(of(volume.join("new")), (0, 0), "on disk as without a user namespace");
    assert_eq!(of(volume.join("own/new")), (33, 34));
    assert_eq!(of(volume.join("made/later")), (0, 0));
    assert!(run("not-own", "web", &["cat", "/volume/secret"]).contains("Permission denied"));
    assert_eq!(run("root", "0", &["write", "/file", "x"]), "written\n");
    assert_eq!(run("etc", "0", &["write", "/etc/passwd", "x"]), "written\n", "copied up");
    assert_eq!(of(host.dir.path().join("files/root/upper/file")), (FIRST, FIRST));
    assert_eq!(run("shm", "web", &["write", "/dev/shm/x", "x"]), "written\n");
    assert_eq!(run("stdout", "web", &["write", "/dev/stdout", "anew\n"]), "anew\nwritten\n");
    host.finish();
}

fn programs_run_later_are_inside_too() {
    let Some(host) = host_with(|_| {}) else { return };
    let started = host.start(&host.spec("c", "s", &["sleep"]));
    let ask = |work: &[&str], terminal: bool| {
        let args = ["/bin/workload", "work"].iter().chain(work).map(|arg| (*arg).to_owned()).collect();
        let size = runtime::TerminalSize { rows: 20, columns: 60 };
        crate::exec::output_of(
            &host,
            "c",
            &ExecSpec { args, terminal: terminal.then_some(size), stdin: false, detached: false },
        )
    };
    let report = ask(&["report"], false);
    assert_eq!([value(&report, "uid"), value(&report, "CapEff")], ["0", "00000000a80425fb"]);
    let theirs = ask(&["namespaces"], false);
    for kind in ["user", "mnt", "net", "ipc", "uts", "pid", "cgroup"] {
        let link = fs::read_link(format!("/proc/{}/ns/{kind}", started.process.pid)).unwrap();
        assert_eq!(value(&theirs, kind), link.to_str().unwrap(), "{kind}");
    }
    assert!(ask(&["terminal"], true).contains("terminal=true"));
    host.finish();
}

fn rights_end_at_the_namespace() {
    let Some(host) = host_with(|_| {}) else { return };
    let secret = host.dir.path().join("secret");
    fs::write(&secret, "of the host's root\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let all = |spec: &mut ContainerSpec| spec.privileged = true;
    let probe = run(&host, "node", &["probe-devices", "/tmp"], all);
    assert!(probe.starts_with("not made: EPERM"), "{probe}");
    let output = run(&host, "sysctl", &["write", "/proc/sys/kernel/panic", "1"], all);
    assert!(output.contains("Permission denied") || output.contains("not permitted"), "{output}");
    let output = run(&host, "trigger", &["write", "/proc/sysrq-trigger", "h"], all);
    assert!(!output.contains("written"), "{output}");
    // What is the host's alone is not the container's, even though it is root there and sees it.
    let output = run(&host, "disk", &["open-disks"], all);
    assert_eq!(output, "none opened\n", "{output}");
    let output = run(&host, "mount", &["mount-memory", "/tmp"], |spec| {
        spec.process.capabilities.add = vec!["SYS_ADMIN".into()];
    });
    assert_eq!(output, "mounted\n", "the right to mount, in its own mount namespace");
    let output = run(&host, "time", &["set-clock"], all);
    assert!(output.contains("EPERM"), "{output}");
    let mut spec = host.spec("shared", "s", &["sleep"]);
    spec.privileged = true;
    spec.mounts = vec![Mount {
        source: host.dir.path().to_owned(),
        target: "/both".into(),
        propagation: Propagation::Bidirectional,
        ..Mount::default()
    }];
    let error = host.runtime.start_container(&spec).unwrap_err().to_string();
    assert!(error.contains("hostUsers"), "{error}");
    host.finish();
}

fn users_beyond_the_range_are_refused() {
    let Some(host) = host_with(|_| {}) else { return };
    let mut spec = host.spec("c", "s", &["sleep"]);
    spec.process.user = UserSpec::parse("70000");
    let error = host.runtime.start_container(&spec).unwrap_err().to_string();
    assert!(error.contains("user 70000 is not in the pod's user namespace, which has 0 to 65535"), "{error}");
    spec.process.user = UserSpec::parse("65535");
    spec.process.rlimits = vec![Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 64, hard: 128 }];
    host.start(&spec);
    let of_host = SandboxSpec { users: Some(IDS), network: NamespaceMode::Host, ..host.sandbox_spec("h") };
    assert!(host.runtime.create_sandbox(&of_host).unwrap_err().to_string().starts_with("invalid users"));
    host.finish();
}

fn the_pods_namespaces_belong_to_it() {
    let Some(host) = host_with(|spec| {
        spec.pid = PidMode::Sandbox;
        spec.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
        spec.sysctls.insert("kernel.shmmax".into(), "12345678".into());
    }) else {
        return;
    };
    let report = run(&host, "report", &["report"], |_| {});
    assert_eq!(value(&report, "hostname"), "host-s");
    assert_ne!(value(&report, "pid"), "1");
    let setting = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    assert_eq!(run(&host, "setting", &["cat", setting], |_| {}), "0\n");
    assert_eq!(run(&host, "shmmax", &["cat", "/proc/sys/kernel/shmmax"], |_| {}), "12345678\n");
    let admin = |spec: &mut ContainerSpec| {
        spec.process.capabilities.add = vec!["NET_ADMIN".into(), "SYS_ADMIN".into()];
    };
    assert_eq!(run(&host, "rename", &["rename-host", "other"], admin), "renamed\n");
    assert_ne!(nix::unistd::gethostname().unwrap(), "other");
    assert_eq!(run(&host, "link", &["make-bridge", "inside"], admin), "made\n");
    let sandbox = host.runtime.observe_sandbox("s").unwrap().unwrap();
    assert_eq!(sandbox.spec.users, Some(IDS), "known after a restart as well");
    assert_eq!(host.restarted().observe_sandbox("s").unwrap().unwrap().spec.users, Some(IDS));
    host.finish();
}
