//! Starts that cannot succeed: told as the user's tools tell them, and leaving nothing behind.

use std::fs;
use std::path::PathBuf;

use runtime::{ContainerSpec, Error, LogSpec, Mount, Stage, StartError, UserSpec};

use crate::Test;
use crate::support::Host;

pub(crate) const TESTS: &[Test] = &[
    ("failures::programs_that_cannot_be_executed", programs_that_cannot_be_executed),
    ("failures::set_up_that_cannot_be_done", set_up_that_cannot_be_done),
    ("failures::specifications_that_mean_nothing", specifications_that_mean_nothing),
    ("failures::a_broken_shim_is_told_and_cleaned_up", a_broken_shim_is_told_and_cleaned_up),
    ("failures::leftovers_of_a_dead_starter_are_deleted", leftovers_of_a_dead_starter_are_deleted),
    ("failures::a_sandbox_that_cannot_be_made", a_sandbox_that_cannot_be_made),
    ("failures::damaged_plans_hide_nothing", damaged_plans_hide_nothing),
    ("failures::state_of_another_boot_is_understood", state_of_another_boot_is_understood),
];

fn refused(host: &Host, spec: &ContainerSpec) -> StartError {
    match host.runtime.start_container(spec) {
        Err(Error::Start(error)) => {
            assert_eq!(host.state(&spec.id), None, "nothing is left of {}", spec.id);
            error
        }
        other => panic!("{}: {other:?}", spec.id),
    }
}

fn programs_that_cannot_be_executed() {
    let host = Host::new();
    host.sandbox("s");
    let with = |id: &str, args: &[&str]| {
        let mut spec = host.spec(id, "s", &[]);
        spec.process.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        spec
    };
    let error = refused(&host, &with("nowhere", &["foo", "bar"]));
    assert_eq!(error.message, "exec: \"foo\": executable file not found in $PATH");
    assert_eq!((error.stage, error.exit_code()), (Stage::Exec, 127));
    let error = refused(&host, &with("absolute", &["/foo"]));
    assert_eq!(error.message, "exec: \"/foo\": stat /foo: no such file or directory");
    assert_eq!(error.exit_code(), 127);
    let error = refused(&host, &with("mode", &["/etc/not-executable"]));
    assert_eq!(error.message, "exec: \"/etc/not-executable\": permission denied");
    assert_eq!(error.exit_code(), 126);
    let error = refused(&host, &with("dir", &["/etc"]));
    assert_eq!(error.message, "exec: \"/etc\": is a directory");
    let error = refused(&host, &with("self", &["/proc/self/exe", "work", "exit", "0"]));
    assert_eq!(error.exit_code(), 126, "the runtime's own file is not the container's to execute");
    host.finish();
}

fn set_up_that_cannot_be_done() {
    let host = Host::new();
    host.sandbox("s");
    let with = |id: &str, change: &dyn Fn(&mut ContainerSpec)| {
        let mut spec = host.spec(id, "s", &["exit", "0"]);
        change(&mut spec);
        let error = refused(&host, &spec);
        assert_eq!(error.exit_code(), 128);
        (error.stage, error.message)
    };
    let (stage, message) = with("cwd", &|spec| spec.process.cwd = "/etc/passwd/x".into());
    assert_eq!((stage, message.as_str()), (Stage::Cwd, "mkdir /etc/passwd/x: not a directory"));
    let (stage, message) = with("user", &|spec| spec.process.user = UserSpec::parse("ghost"));
    assert_eq!(stage, Stage::User);
    assert_eq!(message, "unable to find user ghost: no matching entries in passwd file");
    let (stage, message) = with("mount", &|spec| {
        spec.mounts =
            vec![Mount { source: "/no/such/volume".into(), target: "/v".into(), ..Mount::default() }];
    });
    assert_eq!(stage, Stage::Mount);
    assert_eq!(message, "find mount source /no/such/volume: no such file or directory");
    let (stage, message) =
        with("layer", &|spec| spec.rootfs.lower_dirs.push(PathBuf::from("/no/such/layer")));
    assert_eq!(
        (stage, message.as_str()),
        (Stage::Rootfs, "find layer /no/such/layer: no such file or directory")
    );
    let (stage, message) = with("log", &|spec| spec.log = Some(LogSpec::new("/no/such/dir/0.log")));
    assert_eq!(stage, Stage::Prepare);
    assert!(message.starts_with("open log /no/such/dir/0.log"), "{message}");
    let (stage, _) = with("file-over-dir", &|spec| {
        spec.mounts =
            vec![Mount { source: "/etc/hostname".into(), target: "/etc".into(), ..Mount::default() }];
    });
    assert_eq!(stage, Stage::Mount);
    host.finish();
}

fn specifications_that_mean_nothing() {
    let host = Host::new();
    host.sandbox("s");
    let with = |change: &dyn Fn(&mut ContainerSpec)| {
        let mut spec = host.spec("c", "s", &["exit", "0"]);
        change(&mut spec);
        host.runtime.start_container(&spec).unwrap_err().to_string()
    };
    assert!(with(&|spec| spec.id = "../x".into()).starts_with("invalid id:"));
    assert!(with(&|spec| spec.process.args.clear()).contains("no command"));
    assert!(with(&|spec| spec.cgroup.path = "../up".into()).starts_with("invalid cgroup.path"));
    assert!(with(&|spec| spec.process.capabilities.add.push("FLY".into())).contains("FLY"));
    assert_eq!(with(&|spec| spec.sandbox = "none".into()), "sandbox none does not exist");
    assert_eq!(host.runtime.list().unwrap(), []);
    host.finish();
}

fn a_broken_shim_is_told_and_cleaned_up() {
    let host = Host::new();
    host.sandbox("s");
    let mut config = host.runtime.config().clone();
    for (command, words) in [
        (vec!["/no/such/shim"], "execute shim /no/such/shim"),
        (vec!["/bin/true"], "it ended without a report"),
        (vec!["/bin/echo", "nonsense"], "expected"),
    ] {
        config.shim_command = command.iter().map(Into::into).collect();
        let broken = runtime::Runtime::new(config.clone()).unwrap();
        let error = broken.start_container(&host.spec("c", "s", &["exit", "0"])).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(broken.create_sandbox(&host.sandbox_spec("x")).is_err());
        assert_eq!(host.runtime.list().unwrap(), []);
        assert_eq!(host.runtime.sandboxes().unwrap().len(), 1);
    }
    host.finish();
}

fn leftovers_of_a_dead_starter_are_deleted() {
    let host = Host::new();
    host.sandbox("s");
    // A starter that died after each of its first steps.
    let bundle = host.dir.path().join("state/containers/early");
    fs::create_dir(&bundle).unwrap();
    host.runtime.delete_container("early").unwrap();
    assert!(!bundle.exists());

    host.run(&host.spec("whole", "s", &["exit", "0"]));
    let whole = host.dir.path().join("state/containers/whole");
    fs::create_dir(&bundle).unwrap();
    fs::copy(whole.join("plan.json"), bundle.join("plan.json")).unwrap();
    let state = host.state("early").unwrap();
    assert_eq!(state.word(), "lost", "planned, never made, and nobody at it");
    assert_eq!(host.runtime.wait_exit("early").unwrap(), None);
    host.runtime.delete_container("early").unwrap();
    assert!(!bundle.exists());
    host.runtime.delete_container("whole").unwrap();
    let sandbox = host.dir.path().join("state/sandboxes/half");
    fs::create_dir(&sandbox).unwrap();
    fs::write(sandbox.join("netns"), "").unwrap();
    fs::create_dir(sandbox.join("shm")).unwrap();
    host.runtime.delete_sandbox("half").unwrap();
    host.finish();
}

fn state_of_another_boot_is_understood() {
    let host = Host::new();
    host.sandbox("s");
    host.run(&host.spec("ended", "s", &["exit", "5"]));
    host.run(&host.spec("torn-exit", "s", &["exit", "5"]));
    host.start(&host.spec("ran", "s", &["sleep"]));
    let state = host.dir.path().join("state");
    fs::write(state.join("containers/torn-exit/exit.json"), "").unwrap();
    fs::create_dir(state.join("containers/torn-plan")).unwrap();
    fs::write(state.join("containers/torn-plan/plan.json"), "").unwrap();
    fs::write(state.join("boot_id"), "another boot").unwrap();
    let after = host.restarted();
    let seen: Vec<(String, &str)> =
        after.list().unwrap().into_iter().map(|found| (found.id, found.state.word())).collect();
    let expected = [("ended", "exited"), ("ran", "lost"), ("torn-exit", "lost")];
    assert_eq!(seen, expected.map(|(id, word)| (id.to_owned(), word)));
    assert!(after.sandboxes().unwrap()[0].pause.is_none());
    assert!(after.create_sandbox(&host.sandbox_spec("s")).is_err(), "to be deleted first");
    host.finish();
}

/// Within a boot as well: what runs is known, and can be removed.
fn damaged_plans_hide_nothing() {
    let host = Host::new();
    host.sandbox("s");
    host.sandbox("whole");
    let running = host.start(&host.spec("ran", "s", &["sleep"]));
    host.start(&host.spec("kept", "whole", &["sleep"]));
    let state = host.dir.path().join("state");
    for place in ["containers/ran", "sandboxes/s"] {
        fs::write(state.join(place).join("plan.json"), "{\"spec\":").unwrap();
    }
    let after = host.restarted();
    let seen: Vec<(String, &str)> =
        after.list().unwrap().into_iter().map(|found| (found.id, found.state.word())).collect();
    assert_eq!(seen, [("kept".to_owned(), "running"), ("ran".to_owned(), "running")]);
    let sandboxes: Vec<String> = after.sandboxes().unwrap().into_iter().map(|found| found.id).collect();
    assert_eq!(sandboxes, ["s", "whole"]);
    after.delete_container("ran").unwrap();
    assert!(!running.process.is_alive());
    after.delete_sandbox("s").unwrap();
    // What the damaged plans said is made anew and goes in the usual way.
    host.sandbox("s");
    host.runtime.delete_sandbox("s").unwrap();
    assert_eq!(host.state("kept").unwrap().word(), "running");
    fs::remove_dir_all(host.dir.path().join("files/ran")).unwrap();
    host.finish();
}

fn a_sandbox_that_cannot_be_made() {
    let host = Host::new();
    let mut spec = host.sandbox_spec("s");
    spec.sysctls.insert("kernel.panic".into(), "1".into());
    let error = host.runtime.create_sandbox(&spec).unwrap_err();
    assert!(error.to_string().contains("kernel.panic"), "{error}");
    let mut spec = host.sandbox_spec("s");
    spec.sysctls.insert("net.no.such".into(), "1".into());
    let error = host.runtime.create_sandbox(&spec).unwrap_err();
    assert!(error.to_string().contains("net/no/such"), "{error}");
    host.assert_clean();
    let mut spec = host.sandbox_spec("s");
    spec.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
    host.runtime.create_sandbox(&spec).unwrap();
    host.finish();
}
