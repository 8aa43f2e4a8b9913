//! What a container sees, may do, and cannot reach.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use runtime::seccomp::{Profile, Seccomp};
use runtime::{
    CapabilitiesSpec, ContainerSpec, Mount, MountKind, NamespaceMode, PidMode, Propagation, Rlimit,
    SandboxSpec, UserSpec,
};

use crate::Test;
use crate::support::Host;

pub(crate) const TESTS: &[Test] = &[
    ("isolation::it_is_alone", it_is_alone),
    ("isolation::capabilities_are_as_asked", capabilities_are_as_asked),
    ("isolation::system_calls_are_filtered", system_calls_are_filtered),
    ("isolation::a_profile_decides_about_system_calls", a_profile_decides_about_system_calls),
    ("isolation::users_are_as_asked", users_are_as_asked),
    ("isolation::the_host_is_hidden", the_host_is_hidden),
    ("isolation::mounts_are_as_asked", mounts_are_as_asked),
    ("isolation::mount_targets_cannot_lead_out", mount_targets_cannot_lead_out),
    (
        "isolation::a_part_of_a_volume_is_mounted_and_nothing_else",
        a_part_of_a_volume_is_mounted_and_nothing_else,
    ),
    ("isolation::mounts_made_inside_reach_the_host_if_asked", mounts_made_inside_reach_the_host_if_asked),
    ("isolation::device_nodes_open_nothing", device_nodes_open_nothing),
    ("isolation::a_read_only_root_is_read_only", a_read_only_root_is_read_only),
    ("isolation::shared_memory_is_the_sandboxs", shared_memory_is_the_sandboxs),
    ("isolation::namespaces_can_be_shared", namespaces_can_be_shared),
    ("isolation::a_terminal_is_a_terminal", a_terminal_is_a_terminal),
    ("isolation::privileged_is_privileged", privileged_is_privileged),
    ("isolation::process_settings_are_clean", process_settings_are_clean),
];

fn value<'a>(report: &'a str, key: &str) -> &'a str {
    report.lines().find_map(|line| line.strip_prefix(&format!("{key}="))).unwrap()
}

fn run(host: &Host, id: &str, work: &[&str], change: impl FnOnce(&mut ContainerSpec)) -> String {
    let mut spec = host.spec(id, "s", work);
    change(&mut spec);
    host.run(&spec).1
}

fn it_is_alone() {
    let host = Host::new();
    host.sandbox("s");
    let report = run(&host, "report", &["report"], |_| {});
    assert_eq!(value(&report, "pid"), "1");
    assert_eq!(value(&report, "hostname"), "host-s");
    let processes = run(&host, "ps", &["list", "/proc"], |_| {});
    let pids: Vec<&str> = processes.split_whitespace().filter(|name| name.parse::<u32>().is_ok()).collect();
    assert_eq!(pids, ["1"]);
    let namespaces = run(&host, "namespaces", &["namespaces"], |_| {});
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(value(&namespaces, kind), own.to_str().unwrap(), "{kind}");
    }
    let links = run(&host, "links", &["list", "/sys/class/net"], |_| {});
    assert!(!links.contains("eth0") && links.contains("lo"), "{links}");
    host.finish();
}

fn capabilities_are_as_asked() {
    let host = Host::new();
    host.sandbox("s");
    let report = |id: &str, change: &dyn Fn(&mut ContainerSpec)| run(&host, id, &["report"], change);
    let sets = |report: &str| {
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|key| value(report, key).to_owned())
    };
    let (none, default) = ("0000000000000000", "00000000a80425fb");
    assert_eq!(sets(&report("default", &|_| {})), [none, default, default, default, none]);
    let dropped = report("dropped", &|spec| {
        spec.process.capabilities =
            CapabilitiesSpec { add: vec!["NET_BIND_SERVICE".into()], drop: vec!["ALL".into()] };
    });
    let one = "0000000000000400";
    assert_eq!(sets(&dropped), [none, one, one, one, none]);
    let user = report("user", &|spec| spec.process.user = UserSpec::parse("1000"));
    assert_eq!(sets(&user), [none, none, none, default, none], "not root: bounding only");
    assert_eq!(value(&user, "NoNewPrivs"), "0");
    let tied = report("tied", &|spec| spec.process.no_new_privileges = true);
    assert_eq!(value(&tied, "NoNewPrivs"), "1");
    let clock = run(&host, "sysctl", &["write", "/proc/sys/kernel/hostname", "x"], |_| {});
    assert!(clock.contains("Read-only file system"), "{clock}");
    host.finish();
}

fn system_calls_are_filtered() {
    let host = Host::new();
    host.sandbox("s");
    let told = |id: &str, change: &dyn Fn(&mut ContainerSpec)| {
        let report = run(&host, id, &["call-kernel"], change);
        ["vsock", "thread", "unshare", "mkdir"].map(|key| value(&report, key).to_owned())
    };
    assert_eq!(told("default", &|_| {}), ["EPERM", "ok", "EPERM", "ok"]);
    let tied = told("tied", &|spec| spec.process.no_new_privileges = true);
    assert_eq!(tied, ["EPERM", "ok", "EPERM", "ok"], "installed last, and the same");
    let user = told("user", &|spec| spec.process.user = UserSpec::parse("1000"));
    assert_eq!(user, ["EPERM", "ok", "EPERM", "EACCES"], "installed before the user changes");
    let able = told("able", &|spec| spec.process.capabilities.add = vec!["SYS_ADMIN".into()]);
    assert_eq!(able[2], "ok", "what a capability is for is let through with it");
    for (id, change) in [
        ("unconfined", (|spec| spec.process.seccomp = Seccomp::Unconfined) as fn(&mut ContainerSpec)),
        ("privileged", |spec| spec.privileged = true),
    ] {
        let free = told(id, &change);
        assert_eq!(free[1..], ["ok", "ok", "ok"], "{id}: {free:?}");
        assert_ne!(free[0], "EPERM", "{id}");
    }
    let mode = |id: &str, seccomp: Seccomp| {
        let report = run(&host, id, &["report"], |spec| spec.process.seccomp = seccomp);
        value(&report, "Seccomp").to_owned()
    };
    assert_eq!(mode("mode-2", Seccomp::RuntimeDefault), "2");
    assert_eq!(mode("mode-0", Seccomp::Unconfined), "0");
    host.finish();
}

fn a_profile_decides_about_system_calls() {
    let host = Host::new();
    host.sandbox("s");
    let told = |id: &str, profile: &str, no_new_privileges: bool| {
        let profile = Profile::parse(profile.as_bytes()).unwrap();
        run(&host, id, &["call-kernel"], |spec| {
            spec.process.seccomp = Seccomp::Profile(Box::new(profile));
            spec.process.no_new_privileges = no_new_privileges;
        })
    };
    let report = told(
        "deny",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28, "args": null},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]},
            {"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_TIME"]}}]}"#,
        false,
    );
    assert_eq!(value(&report, "mkdir"), "ENOSPC", "{report}");
    assert_eq!(value(&report, "vsock"), "EPERM");
    assert_eq!(value(&report, "unshare"), "ok", "the rule is for who may set the clock");

    let mut spec = host.spec("kill", "s", &["call-kernel"]);
    let kill = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["unshare"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#;
    spec.process.seccomp = Seccomp::Profile(Box::new(Profile::parse(kill.as_bytes()).unwrap()));
    let (exit, output) = host.run(&spec);
    assert_eq!(exit.signal, Some(31), "SIGSYS: {exit:?}");
    assert!(output.contains("thread=ok") && !output.contains("unshare="), "{output}");
    host.finish();
}

fn users_are_as_asked() {
    let host = Host::new();
    host.sandbox("s");
    let report = run(&host, "web", &["report"], |spec| {
        spec.process.user = UserSpec { additional_gids: vec![7], ..UserSpec::parse("web") };
    });
    let ids = ["uid", "gid", "Groups"].map(|key| value(&report, key));
    assert_eq!(ids, ["33", "34", "7 34 40"]);
    let env = run(&host, "env", &["env"], |spec| {
        spec.process.user = UserSpec::parse("33:40");
        spec.process.env = vec!["GREETING=a b=c".into()];
    });
    assert_eq!(value(&env, "HOME"), "/srv");
    assert_eq!(value(&env, "GREETING"), "a b=c");
    assert!(value(&env, "PATH").contains("/usr/bin"));
    let written = run(&host, "stdout", &["write", "/dev/stdout", "anew\n"], |spec| {
        spec.process.user = UserSpec::parse("1000:1000");
    });
    assert_eq!(written, "anew\nwritten\n", "standard output can be opened by who is not root");
    host.finish();
}

fn the_host_is_hidden() {
    let host = Host::new();
    host.sandbox("s");
    let mounts = run(&host, "mounts", &["cat", "/proc/self/mountinfo"], |_| {});
    // The overlay's options name its layers, as they do with every container runtime: that is all.
    let sources: Vec<&str> = mounts.lines().filter(|line| !line.contains(" - overlay ")).collect();
    assert!(!sources.iter().any(|line| line.contains("barque-runtime-")), "{mounts}");
    assert!(!mounts.contains("ext4"), "{mounts}");
    let proc = mounts.lines().find(|line| line.contains(" /proc ")).unwrap();
    assert!(proc.contains("nosuid,nodev,noexec"), "{proc}");
    let sys = mounts.lines().find(|line| line.contains(" /sys ")).unwrap();
    assert!(sys.contains(" ro,nosuid,nodev,noexec"), "{sys}");
    for (id, path) in [("keys", "/proc/keys"), ("kcore", "/proc/kcore"), ("irq", "/proc/interrupts")] {
        let there = fs::metadata(path).is_ok();
        assert!(there || !path.contains("keys"), "the test's own assumption: {path}");
        let expected = if there { "" } else { "error: No such file or directory (os error 2)\n" };
        assert_eq!(run(&host, id, &["cat", path], |_| {}), expected, "{path} is masked");
    }
    assert_eq!(run(&host, "firmware", &["list", "/sys/firmware"], |_| {}), "\n");
    for (id, path) in [("sysrq", "/proc/sysrq-trigger"), ("sysctl", "/proc/sys/vm/swappiness")] {
        let output = run(&host, id, &["write", path, "1"], |_| {});
        // Kernels are built without the one or the other.
        let there = fs::metadata(path).is_ok();
        assert!(!there || output.contains("Read-only file system"), "{path}: {output}");
    }
    let root = run(&host, "root", &["list", "/"], |_| {});
    assert_eq!(root.trim(), "bin dev etc proc sys tmp");
    let devices = run(&host, "dev", &["list", "/dev"], |_| {});
    let expected = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(devices.trim(), expected);
    let groups = run(&host, "groups", &["cat", "/proc/self/cgroup"], |_| {});
    assert!(!groups.contains("barque-runtime-test"), "{groups}");
    host.finish();
}

fn bind(source: PathBuf, target: &str, read_only: bool) -> Mount {
    Mount { source, target: target.into(), read_only, ..Mount::default() }
}

fn mounts_are_as_asked() {
    let host = Host::new();
    host.sandbox("s");
    let volume = host.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "from the host\n").unwrap();
    let hosts = host.dir.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let mounts = vec![
        bind(volume.clone(), "/data/deep/volume", false),
        bind(volume.clone(), "/data/guarded", true),
        bind(hosts, "/etc/hosts", true),
        Mount {
            target: "/scratch".into(),
            kind: MountKind::Tmpfs,
            options: vec!["size=64k".into()],
            ..Mount::default()
        },
    ];
    let run = |id: &str, work: &[&str]| run(&host, id, work, |spec| spec.mounts = mounts.clone());
    assert_eq!(run("read", &["cat", "/data/deep/volume/file"]), "from the host\n");
    assert_eq!(run("write", &["write", "/data/deep/volume/new", "x"]), "written\n");
    assert_eq!(fs::read_to_string(volume.join("new")).unwrap(), "x");
    assert!(run("guarded", &["write", "/data/guarded/new", "y"]).contains("Read-only"));
    assert_eq!(run("hosts", &["cat", "/etc/hosts"]), "127.0.0.1 localhost\n");
    assert!(run("hosts-write", &["write", "/etc/hosts", "x"]).contains("Read-only"));
    let big = "x".repeat(100_000);
    assert!(run("scratch", &["write", "/scratch/file", &big]).contains("No space left"));
    let seen = run("mountinfo", &["cat", "/proc/self/mountinfo"]);
    let line = seen.lines().find(|line| line.contains(" /data/guarded ")).unwrap();
    assert!(line.contains(" ro,nodev"), "{line}");
    assert!(!line.contains("shared:") && !line.contains("master:"), "{line}");
    host.finish();
}

fn a_part_of_a_volume_is_mounted_and_nothing_else() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let host = Host::new();
    host.sandbox("s");
    let volume = host.dir.path().join("volume");
    fs::create_dir_all(volume.join("logs/today")).unwrap();
    fs::write(volume.join("logs/today/a"), "of today\n").unwrap();
    fs::write(volume.join("conf"), "a file\n").unwrap();
    fs::write(host.dir.path().join("outside"), "not yours\n").unwrap();
    symlink("logs/today", volume.join("latest")).unwrap();
    symlink("../../../../../../../../../../etc", volume.join("up")).unwrap();
    symlink("/etc", volume.join("absolute")).unwrap();
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
    let part = |path: &str| Mount {
        source: volume.clone(),
        sub_path: Some(path.into()),
        target: "/part".into(),
        ..Mount::default()
    };
    let run = |id: &str, mount: Mount, work: &[&str]| run(&host, id, work, |spec| spec.mounts = vec![mount]);
    assert_eq!(run("dir", part("logs/today"), &["cat", "/part/a"]), "of today\n");
    assert_eq!(run("link", part("latest"), &["cat", "/part/a"]), "of today\n");
    assert_eq!(run("file", part("conf"), &["cat", "/part"]), "a file\n");
    assert_eq!(run("made", part("new/deep"), &["write", "/part/x", "1"]), "written\n");
    assert_eq!(fs::read_to_string(volume.join("new/deep/x")).unwrap(), "1");
    let mode = fs::metadata(volume.join("new/deep")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o777, "as the volume's own");
    // Links lead into the volume, wherever they point.
    for (id, link) in [("up", "up"), ("absolute", "absolute")] {
        let mut spec = host.spec(id, "s", &["list", "/part"]);
        spec.mounts = vec![part(link)];
        let error = host.runtime.start_container(&spec).unwrap_err().to_string();
        assert!(error.contains("subPath"), "{error}");
    }
    fs::create_dir(volume.join("etc")).unwrap();
    fs::write(volume.join("etc/own"), "").unwrap();
    assert!(run("inside", part("absolute"), &["list", "/part"]).contains("own"));
    host.finish();
}

fn mounts_made_inside_reach_the_host_if_asked() {
    use nix::mount::{MsFlags, mount, umount};
    let host = Host::new();
    host.sandbox("s");
    let volume = host.dir.path().join("volume");
    fs::create_dir_all(volume.join("inner")).unwrap();
    mount(Some(&volume), &volume, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    mount(None::<&str>, &volume, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    let both = Mount {
        source: volume.clone(),
        target: "/both".into(),
        propagation: Propagation::Bidirectional,
        ..Mount::default()
    };
    let mut spec = host.spec("plain", "s", &["report"]);
    spec.mounts = vec![both.clone()];
    assert!(host.runtime.start_container(&spec).unwrap_err().to_string().contains("privileged"));
    let said = run(&host, "gives", &["mount-memory", "/both/inner"], |spec| {
        spec.privileged = true;
        spec.mounts = vec![both];
    });
    assert_eq!(said, "mounted\n");
    assert!(volume.join("inner/from-inside").exists(), "the host sees it");
    umount(&volume.join("inner")).unwrap();
    umount(&volume).unwrap();
    host.finish();
}

fn mount_targets_cannot_lead_out() {
    let host = Host::new();
    host.sandbox("s");
    let layer = host.dir.path().join("evil");
    fs::create_dir(&layer).unwrap();
    let outside = host.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, layer.join("absolute")).unwrap();
    symlink("../../../../../../../../../../tmp", layer.join("relative")).unwrap();
    let volume = host.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "volume\n").unwrap();
    let with = |id: &str, target: &str| {
        let mut spec = host.spec(id, "s", &["cat", &format!("{target}/file")]);
        spec.rootfs.lower_dirs.insert(0, layer.clone());
        spec.mounts = vec![bind(volume.clone(), target, false)];
        spec
    };
    let (_, output) = host.run(&with("relative", "/relative/inside"));
    assert_eq!(output, "volume\n", "it is followed inside the root");
    assert!(!std::path::Path::new("/tmp/inside").exists());
    // A link to a place that the root does not have is refused, not made.
    assert!(host.runtime.start_container(&with("absolute", "/absolute/inside")).is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    // An image cannot redirect /proc.
    let redirect = host.dir.path().join("redirect");
    fs::create_dir(&redirect).unwrap();
    symlink("/tmp", redirect.join("proc")).unwrap();
    let mut spec = host.spec("proc", "s", &["exit", "0"]);
    spec.rootfs.lower_dirs.insert(0, redirect);
    let error = host.runtime.start_container(&spec).unwrap_err();
    assert!(error.to_string().contains("/proc"), "{error}");
    host.finish();
}

fn device_nodes_open_nothing() {
    let host = Host::new();
    host.sandbox("s");
    let volume = host.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    for (id, dir) in [("root", "/tmp"), ("dev", "/dev"), ("volume", "/volume"), ("shm", "/dev/shm")] {
        let output = run(&host, id, &["probe-devices", dir], |spec| {
            spec.mounts = vec![bind(volume.clone(), "/volume", false)];
        });
        assert_eq!(output, "made true\nnot opened: Permission denied (os error 13)\n", "{dir}");
    }
    assert_eq!(run(&host, "null", &["write", "/dev/null", "x"], |_| {}), "written\n");
    assert!(run(&host, "full", &["write", "/dev/full", "x"], |_| {}).contains("No space left"));
    host.finish();
}

fn a_read_only_root_is_read_only() {
    let host = Host::new();
    host.sandbox("s");
    let volume = host.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let run = |id: &str, path: &str| {
        run(&host, id, &["write", path, "x"], |spec| {
            spec.rootfs.read_only = true;
            spec.mounts = vec![bind(volume.clone(), "/data", false)];
        })
    };
    assert!(run("root", "/file").contains("Read-only file system"));
    assert_eq!(run("volume", "/data/file"), "written\n");
    assert_eq!(run("shm", "/dev/shm/file"), "written\n");
    host.finish();
}

fn shared_memory_is_the_sandboxs() {
    let host = Host::new();
    host.sandbox("s");
    host.sandbox("other");
    run(&host, "writer", &["write", "/dev/shm/word", "shared\n"], |_| {});
    assert_eq!(run(&host, "reader", &["cat", "/dev/shm/word"], |_| {}), "shared\n");
    let stranger = host.spec("stranger", "other", &["cat", "/dev/shm/word"]);
    assert!(host.run(&stranger).1.contains("No such file"));
    host.finish();
}

fn namespaces_can_be_shared() {
    let host = Host::new();
    let spec = SandboxSpec { pid: PidMode::Sandbox, ..host.sandbox_spec("s") };
    host.runtime.create_sandbox(&spec).unwrap();
    host.start(&host.spec("sleeper", "s", &["sleep"]));
    let processes = run(&host, "ps", &["list", "/proc"], |_| {});
    let pids = processes.split_whitespace().filter(|name| name.parse::<u32>().is_ok()).count();
    assert_eq!(pids, 3, "pause, the sleeper, itself: {processes}");
    let root = run(&host, "peek", &["cat", "/proc/1/root/etc/passwd"], |spec| {
        spec.process.capabilities.add = vec!["SYS_PTRACE".into()];
    });
    assert!(root.starts_with("error:"), "the pause process shows nothing of the host: {root}");

    let spec = SandboxSpec {
        network: NamespaceMode::Host,
        ipc: NamespaceMode::Host,
        pid: PidMode::Host,
        ..host.sandbox_spec("h")
    };
    assert_eq!(host.runtime.create_sandbox(&spec).unwrap().netns, None);
    let (_, report) = host.run(&host.spec("report", "h", &["report"]));
    let own = nix::unistd::gethostname().unwrap();
    assert_eq!(value(&report, "hostname"), own.to_str().unwrap());
    assert_ne!(value(&report, "pid"), "1");
    host.finish();
}

fn a_terminal_is_a_terminal() {
    let host = Host::new();
    host.sandbox("s");
    let mut spec = host.spec("c", "s", &["terminal"]);
    spec.process.terminal = true;
    let (exit, _) = host.run(&spec);
    assert_eq!(exit.code, 0);
    let log = host.log("c");
    assert!(log.contains(" stdout F terminal=true console=true\r\n"), "{log}");
    assert!(log.contains(" stdout F error text\r\n"), "{log}");
    host.finish();
}

fn privileged_is_privileged() {
    let host = Host::new();
    host.sandbox("s");
    let run = |id: &str, work: &[&str]| run(&host, id, work, |spec| spec.privileged = true);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap().trim();
    assert_eq!(value(&run("report", &["report"]), "CapEff"), own, "as much as the host's root");
    let devices = run("devices", &["list", "/dev"]);
    assert!(devices.contains("kmsg") && !devices.contains("core-missing"), "{devices}");
    assert!(run("probe", &["probe-devices", "/tmp"]).starts_with("made true\n"));
    assert_eq!(run("sysctl", &["write", "/proc/sys/net/ipv4/ip_forward", "1"]), "written\n");
    host.finish();
}

fn process_settings_are_clean() {
    let host = Host::new();
    host.sandbox("s");
    let report = run(&host, "report", &["report"], |spec| {
        spec.process.rlimits = vec![Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 64, hard: 128 }];
    });
    assert_eq!(value(&report, "SigBlk"), "0000000000000000");
    // Rust's own start code ignores SIGPIPE: nothing else may be ignored.
    assert_eq!(value(&report, "SigIgn"), "0000000000001000");
    assert_eq!(value(&report, "umask"), "18");
    assert_eq!(value(&report, "nofile"), "(64, 128)");
    assert_eq!(value(&report, "fds"), "3", "no file of the runtime's is inherited");
    host.finish();
}
