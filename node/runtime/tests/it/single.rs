//! What single containers need beyond pods: a network that is joined, files that stay, a first attacher that hears
//! everything, a command at the end, programs that nobody waits for.

use std::fs::{self, File};
use std::io::Read as _;

use runtime::{AttachSpec, ContainerState, Error, ExecSpec, NamespaceMode, SandboxSpec};

use crate::Test;
use crate::support::{Host, eventually};

pub(crate) const TESTS: &[Test] = &[
    ("single::a_joined_network_outlives_its_first_owner", a_joined_network_outlives_its_first_owner),
    ("single::what_is_kept_is_there_for_the_next", what_is_kept_is_there_for_the_next),
    ("single::the_first_attacher_hears_everything", the_first_attacher_hears_everything),
    ("single::a_command_is_started_at_the_end", a_command_is_started_at_the_end),
    ("single::detached_programs_go_on_alone", detached_programs_go_on_alone),
];

fn pid_of(host: &Host, id: &str) -> i32 {
    match host.state(id) {
        Some(ContainerState::Running { process, .. }) => process.pid,
        state => panic!("{id} does not run: {state:?}"),
    }
}

fn namespace(pid: i32, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
}

fn a_joined_network_outlives_its_first_owner() {
    let host = Host::new();
    host.sandbox("first");
    let of_first = SandboxSpec { network_of: Some("first".into()), ..host.sandbox_spec("second") };
    host.runtime.create_sandbox(&of_first).unwrap();
    host.start(&host.spec("a", "first", &["sleep"]));
    host.start(&host.spec("b", "second", &["sleep"]));
    let (a, b) = (pid_of(&host, "a"), pid_of(&host, "b"));
    assert_eq!(namespace(a, "net"), namespace(b, "net"));
    for kind in ["ipc", "uts", "mnt", "pid"] {
        assert_ne!(namespace(a, kind), namespace(b, kind), "{kind}");
    }
    let network = namespace(b, "net");
    host.runtime.delete_sandbox("first").unwrap();
    host.start(&host.spec("c", "second", &["sleep"]));
    assert_eq!(namespace(pid_of(&host, "c"), "net"), network);
    let of_host = SandboxSpec { network: NamespaceMode::Host, ..of_first };
    assert!(matches!(host.runtime.create_sandbox(&of_host), Err(Error::Invalid { .. })));
    host.finish();
}

fn what_is_kept_is_there_for_the_next() {
    let host = Host::new();
    host.sandbox("s");
    let mut spec = host.spec("c", "s", &["write", "/kept", "word"]);
    spec.rootfs.keep_upper = true;
    host.run(&spec);
    host.runtime.delete_container("c").unwrap();
    let written = spec.rootfs.upper.join("kept");
    assert_eq!(fs::read_to_string(&written).unwrap(), "word");
    assert!(!spec.rootfs.work.exists() && !spec.rootfs.merged.exists());
    // The next one starts over the same files.
    let again = host.runtime.start_container(&spec);
    assert!(again.is_ok(), "{again:?}");
    host.runtime.wait_exit("c").unwrap();
    spec.rootfs.keep_upper = false;
    host.runtime.delete_container("c").unwrap();
    assert!(written.exists());
    fs::remove_dir_all(spec.rootfs.upper.parent().unwrap()).unwrap();
    host.finish();
}

fn the_first_attacher_hears_everything() {
    let host = Host::new();
    host.sandbox("s");
    let mut spec = host.spec("c", "s", &["write-raw", "first word"]);
    spec.process.await_attach = true;
    host.start(&spec);
    let watch = host.runtime.exit_watch("c").unwrap();
    // Long enough for it to have ended; its output waits.
    eventually("it has ended", || {
        let pid = pid_of(&host, "c");
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    });
    let attached = host.runtime.attach("c", AttachSpec { stdout: true, ..AttachSpec::default() }).unwrap();
    let mut text = String::new();
    File::from(attached.stdout.unwrap()).read_to_string(&mut text).unwrap();
    assert!(text.starts_with("first word"), "{text:?}");
    eventually("the watch is told", || host.runtime.exit_told(&watch).is_some_and(|exit| exit.code == 0));
    host.finish();
}

fn a_command_is_started_at_the_end() {
    let host = Host::new();
    host.sandbox("s");
    let mark = host.dir.path().join("mark");
    let mut spec = host.spec("c", "s", &["write-raw", "x"]);
    spec.on_exit = ["/bin/sh", "-c", "echo done > \"$0\""].map(str::to_owned).to_vec();
    spec.on_exit.push(mark.to_str().unwrap().to_owned());
    host.run(&spec);
    eventually("the command has run", || fs::read_to_string(&mark).is_ok_and(|text| text == "done\n"));
    host.finish();
}

fn detached_programs_go_on_alone() {
    let host = Host::new();
    host.sandbox("s");
    host.start(&host.spec("c", "s", &["sleep"]));
    let args = ["/bin/workload", "work", "sleep", "detached-mark"].map(str::to_owned).to_vec();
    let spec = ExecSpec { args, detached: true, ..ExecSpec::default() };
    drop(host.runtime.exec("c", &spec).unwrap());
    let pids = || host.runtime.stats("c").unwrap().pids;
    eventually("it runs", || pids().is_none_or(|pids| pids == 2));
    // The shim serves others after the connection has gone, and the program is still there.
    host.runtime.signal("c", 0).unwrap();
    assert!(pids().is_none_or(|pids| pids == 2));
    let asked = ExecSpec { stdin: true, ..spec };
    assert!(matches!(host.runtime.exec("c", &asked), Err(Error::Invalid { .. })));
    host.finish();
}
