//! Further programs in running containers.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use runtime::{
    CapabilitiesSpec, Error, ExecExit, ExecProcess, ExecSpec, ExecStreams, PidMode, ProcessSpec,
    TerminalSize, UserSpec,
};

use crate::Test;
use crate::support::{Host, PATIENCE, eventually, processes_naming};

pub(crate) const TESTS: &[Test] = &[
    ("exec::output_and_exit_code_come_back", output_and_exit_code_come_back),
    ("exec::input_is_passed_and_ended", input_is_passed_and_ended),
    ("exec::it_is_in_the_container_in_every_way", it_is_in_the_container_in_every_way),
    ("exec::it_sees_a_shared_pid_namespace", it_sees_a_shared_pid_namespace),
    ("exec::what_cannot_be_executed_is_told", what_cannot_be_executed_is_told),
    ("exec::a_terminal_has_a_size_that_changes", a_terminal_has_a_size_that_changes),
    ("exec::a_kill_takes_the_whole_session", a_kill_takes_the_whole_session),
    ("exec::a_dropped_process_is_killed", a_dropped_process_is_killed),
    ("exec::it_ends_with_the_container", it_ends_with_the_container),
    ("exec::it_ends_with_the_shim", it_ends_with_the_shim),
    ("exec::an_ended_container_runs_nothing", an_ended_container_runs_nothing),
    ("exec::many_at_once_and_no_more_than_there_is_room_for", many_at_once),
    ("exec::cpu_time_is_charged_to_the_container", cpu_time_is_charged_to_the_container),
    ("exec::a_long_command_line_fits", a_long_command_line_fits),
    ("exec::its_system_calls_are_filtered_too", its_system_calls_are_filtered_too),
];

fn spec(work: &[&str]) -> ExecSpec {
    let args = ["/bin/workload", "work"].iter().chain(work).map(|arg| (*arg).to_owned());
    ExecSpec { args: args.collect(), ..ExecSpec::default() }
}

fn pipes(streams: ExecStreams) -> (Option<OwnedFd>, OwnedFd, OwnedFd) {
    match streams {
        ExecStreams::Pipes { stdin, stdout, stderr } => (stdin, stdout, stderr),
        ExecStreams::Terminal(_) => panic!("a terminal was not asked for"),
    }
}

fn read(fd: OwnedFd) -> String {
    let mut text = String::new();
    File::from(fd).read_to_string(&mut text).unwrap();
    text
}

fn end_of(process: &ExecProcess) -> ExecExit {
    process.wait(Instant::now() + PATIENCE).unwrap().expect("it ends")
}

/// Exit, standard output, standard error.
fn run(host: &Host, id: &str, work: &[&str]) -> (ExecExit, String, String) {
    let (process, streams) = host.runtime.exec(id, &spec(work)).unwrap();
    let (_, stdout, stderr) = pipes(streams);
    let (stdout, stderr) = (read(stdout), read(stderr));
    (end_of(&process), stdout, stderr)
}

/// What a program says that runs in a container, in a terminal or without.
pub(crate) fn output_of(host: &Host, id: &str, spec: &ExecSpec) -> String {
    let (process, streams) = host.runtime.exec(id, spec).unwrap();
    let output = match streams {
        ExecStreams::Pipes { stdout, .. } => read(stdout),
        ExecStreams::Terminal(terminal) => {
            let mut output = Vec::new();
            // A terminal answers EIO at its end.
            let _end = File::from(terminal).read_to_end(&mut output);
            String::from_utf8(output).unwrap()
        }
    };
    assert_eq!(end_of(&process).code, 0, "{output}");
    output
}

fn sleeping(host: &Host, id: &str) {
    host.sandbox("s");
    host.start(&host.spec(id, "s", &["sleep"]));
}

fn output_and_exit_code_come_back() {
    let host = Host::new();
    sleeping(&host, "c");
    let begin = Instant::now();
    let (exit, stdout, stderr) = run(&host, "c", &["echo", "hello"]);
    println!("measured: a program ran in a container within {:?}", begin.elapsed());
    assert_eq!((exit.code, exit.signal, stdout.as_str(), stderr.as_str()), (0, None, "hello\n", ""));
    let (exit, stdout, stderr) = run(&host, "c", &["warn", "oops"]);
    assert_eq!((exit.code, stdout.as_str(), stderr.as_str()), (0, "", "oops\n"));
    assert_eq!(run(&host, "c", &["exit", "42"]).0.code, 42);
    let aborted = run(&host, "c", &["abort"]).0;
    assert_eq!((aborted.code, aborted.signal), (134, Some(6)));
    assert_eq!(host.output("c"), "", "the container's log is its own");
    host.finish();
}

fn input_is_passed_and_ended() {
    let host = Host::new();
    sleeping(&host, "c");
    let asked = ExecSpec { stdin: true, ..spec(&["copy-input"]) };
    let (process, streams) = host.runtime.exec("c", &asked).unwrap();
    let (stdin, stdout, _) = pipes(streams);
    let mut stdin = File::from(stdin.unwrap());
    stdin.write_all(b"to and fro").unwrap();
    assert_eq!(process.try_exit().unwrap(), None, "the input is open");
    drop(stdin);
    assert_eq!(read(stdout), "to and fro");
    assert_eq!(end_of(&process).code, 0);
    assert_eq!(run(&host, "c", &["copy-input"]).1, "", "without input it is empty");
    host.finish();
}

fn it_is_in_the_container_in_every_way() {
    let host = Host::new();
    host.sandbox("s");
    let mut container = host.spec("c", "s", &["sleep"]);
    container.process = ProcessSpec {
        env: vec!["COLOUR=green".into()],
        cwd: "/tmp".into(),
        user: UserSpec::parse("web"),
        capabilities: CapabilitiesSpec { add: vec![], drop: vec!["ALL".into()] },
        no_new_privileges: true,
        ..container.process
    };
    host.start(&container);
    // What the container's own process is told differs in nothing but its pid.
    let mut twin = host.spec("twin", "s", &["report"]);
    twin.process = ProcessSpec { args: twin.process.args, ..container.process.clone() };
    let (_, own) = host.run(&twin);
    let (_, stdout, _) = run(&host, "c", &["report"]);
    let but_pid = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with("pid=")).map(str::to_owned).collect()
    };
    assert_eq!(but_pid(&stdout), but_pid(&own));
    assert!(stdout.contains("uid=33") && stdout.contains("NoNewPrivs=1"), "{stdout}");
    assert_eq!(run(&host, "c", &["cwd"]).1, "/tmp\n");
    let env = run(&host, "c", &["env"]).1;
    assert!(env.contains("COLOUR=green\n") && env.contains("HOME=/srv\n"), "{env}");
    // Its namespaces and groups are those of the container's process, seen from outside.
    let runtime::ContainerState::Running { process, .. } = host.state("c").unwrap() else { panic!() };
    let inside = run(&host, "c", &["namespaces"]).1;
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let link = std::fs::read_link(format!("/proc/{}/ns/{kind}", process.pid)).unwrap();
        assert!(inside.contains(&format!("{kind}={}\n", link.display())), "{kind}: {inside}");
    }
    let groups = inside.lines().last().unwrap();
    // With a group namespace the own group is the root.
    for group in groups.trim_start_matches("groups=").split_ascii_whitespace() {
        assert!(group.ends_with(":/"), "{groups}");
    }
    host.finish();
}

fn it_sees_a_shared_pid_namespace() {
    let host = Host::new();
    let sandbox = runtime::SandboxSpec { pid: PidMode::Sandbox, ..host.sandbox_spec("s") };
    host.runtime.create_sandbox(&sandbox).unwrap();
    host.start(&host.spec("c", "s", &["sleep"]));
    let name = run(&host, "c", &["cat", "/proc/1/comm"]).1;
    assert!(!name.contains("workload") && !name.is_empty(), "pid 1 is the pause process: {name}");
    let (process, _streams) = host.runtime.exec("c", &spec(&["sleep", "shared"])).unwrap();
    process.kill().unwrap();
    assert_eq!(end_of(&process).signal, Some(9));
    assert_eq!(host.state("c").unwrap().word(), "running");
    host.finish();
}

fn what_cannot_be_executed_is_told() {
    let host = Host::new();
    sleeping(&host, "c");
    let refused = |args: &[&str]| {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        match host.runtime.exec("c", &ExecSpec { args, ..ExecSpec::default() }) {
            Err(Error::Start(error)) => (error.exit_code(), error.message),
            other => panic!("{other:?}"),
        }
    };
    let (code, message) = refused(&["nothing-like-it"]);
    assert_eq!(
        (code, message.as_str()),
        (127, "exec: \"nothing-like-it\": executable file not found in $PATH")
    );
    let (code, message) = refused(&["/etc/not-executable"]);
    assert_eq!((code, message.as_str()), (126, "exec: \"/etc/not-executable\": permission denied"));
    let nothing = host.runtime.exec("c", &ExecSpec::default()).unwrap_err();
    assert!(matches!(nothing, Error::Invalid { .. }), "{nothing}");
    assert!(matches!(host.runtime.exec("ghost", &spec(&["sleep"])), Err(Error::NotFound { .. })));
    host.finish();
}

fn a_terminal_has_a_size_that_changes() {
    let host = Host::new();
    sleeping(&host, "c");
    let size = TerminalSize { rows: 31, columns: 97 };
    let asked = ExecSpec { terminal: Some(size), ..spec(&["window"]) };
    let (process, streams) = host.runtime.exec("c", &asked).unwrap();
    let ExecStreams::Terminal(terminal) = streams else { panic!("a terminal was asked for") };
    let mut near = File::from(terminal.try_clone().unwrap());
    let mut text = String::new();
    let mut await_text = |wanted: &str| {
        while !text.contains(wanted) {
            let mut chunk = [0; 256];
            let length = near.read(&mut chunk).unwrap();
            text.push_str(&String::from_utf8_lossy(&chunk[..length]));
        }
    };
    await_text("31 rows 97 columns");
    runtime::resize_terminal(terminal.as_fd(), TerminalSize { rows: 50, columns: 132 }).unwrap();
    await_text("50 rows 132 columns");
    assert_eq!(end_of(&process).code, 0);
    let (_process, streams) =
        host.runtime.exec("c", &ExecSpec { terminal: Some(size), ..spec(&["terminal"]) }).unwrap();
    let ExecStreams::Terminal(terminal) = streams else { panic!("a terminal was asked for") };
    let mut text = Vec::new();
    // The end of a terminal is an error.
    let _end = File::from(terminal).read_to_end(&mut text);
    assert!(String::from_utf8_lossy(&text).contains("terminal=true"), "{}", String::from_utf8_lossy(&text));
    host.finish();
}

fn a_kill_takes_the_whole_session() {
    let host = Host::new();
    sleeping(&host, "c");
    let mark = format!("mark-{}", host.dir.path().display());
    let (process, streams) = host.runtime.exec("c", &spec(&["leave-child", &mark])).unwrap();
    let mut output = File::from(pipes(streams).1);
    let mut word = [0; 5];
    output.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"both\n");
    assert_eq!(processes_naming(&mark).len(), 2);
    process.kill().unwrap();
    let exit = end_of(&process);
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    eventually("both are gone", || processes_naming(&mark).is_empty());
    assert_eq!(output.read(&mut word).unwrap(), 0, "nobody has the pipe any more");
    assert_eq!(host.state("c").unwrap().word(), "running");
    host.finish();
}

fn a_dropped_process_is_killed() {
    let host = Host::new();
    sleeping(&host, "c");
    let mark = format!("mark-{}", host.dir.path().display());
    let started = host.runtime.exec("c", &spec(&["leave-child", &mark])).unwrap();
    eventually("both run", || processes_naming(&mark).len() == 2);
    // As when the agent dies: the kernel closes its descriptors.
    drop(started);
    eventually("both are gone", || processes_naming(&mark).is_empty());
    assert_eq!(run(&host, "c", &["echo", "still"]).1, "still\n");
    host.finish();
}

fn it_ends_with_the_container() {
    for pid in [PidMode::Container, PidMode::Sandbox] {
        let host = Host::new();
        host.runtime.create_sandbox(&runtime::SandboxSpec { pid, ..host.sandbox_spec("s") }).unwrap();
        host.start(&host.spec("c", "s", &["sleep"]));
        let (process, streams) = host.runtime.exec("c", &spec(&["leave-child", "x"])).unwrap();
        host.runtime.signal("c", 9).unwrap();
        assert_eq!(host.runtime.wait_exit("c").unwrap().unwrap().signal, Some(9));
        assert_eq!(end_of(&process).signal, Some(9), "{pid:?}");
        let (_, stdout, _) = pipes(streams);
        assert!(["", "both\n"].contains(&read(stdout).as_str()));
        host.finish();
    }
}

fn it_ends_with_the_shim() {
    let host = Host::new();
    sleeping(&host, "c");
    let mark = format!("mark-{}", host.dir.path().display());
    let (process, _streams) = host.runtime.exec("c", &spec(&["sleep", &mark])).unwrap();
    let state = host.dir.path().join("state/containers/c/shim.json");
    let shim: serde_json::Value = serde_json::from_slice(&std::fs::read(state).unwrap()).unwrap();
    let shim = nix::unistd::Pid::from_raw(shim["pid"].as_i64().unwrap() as i32);
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(end_of(&process).signal, Some(9));
    eventually("it is gone", || processes_naming(&mark).is_empty());
    host.finish();
}

fn an_ended_container_runs_nothing() {
    let host = Host::new();
    host.sandbox("s");
    host.run(&host.spec("c", "s", &["exit", "0"]));
    let error = host.runtime.exec("c", &spec(&["echo", "x"])).unwrap_err();
    assert!(matches!(error, Error::NotRunning { .. }), "{error}");
    host.finish();
}

fn many_at_once() {
    let host = Host::new();
    sleeping(&host, "c");
    let mut running = Vec::new();
    let refused = loop {
        match host.runtime.exec("c", &spec(&["sleep"])) {
            Ok(started) => running.push(started),
            Err(error) => break error,
        }
        assert!(running.len() <= 64, "there is a bound");
    };
    assert!(running.len() >= 32, "{}", running.len());
    assert!(matches!(refused, Error::NotRunning { .. }), "{refused}");
    drop(running);
    eventually("there is room again", || host.runtime.exec("c", &spec(&["exit", "0"])).is_ok());
    host.finish();
}

fn cpu_time_is_charged_to_the_container() {
    let host = Host::new();
    sleeping(&host, "c");
    let Some(before) = host.runtime.stats("c").unwrap().cpu_usage_ns else {
        println!("skipped: this host counts no CPU time of groups");
        return host.finish();
    };
    assert_eq!(run(&host, "c", &["spin", "100"]).0.code, 0);
    let after = host.runtime.stats("c").unwrap().cpu_usage_ns.unwrap();
    assert!(after - before >= 90_000_000, "{before} {after}");
    host.finish();
}

fn a_long_command_line_fits() {
    let host = Host::new();
    sleeping(&host, "c");
    let word = "w".repeat(100_000);
    let (exit, stdout, _) = run(&host, "c", &["echo", &word, &word, &word]);
    assert_eq!((exit.code, stdout.len()), (0, 300_003));
    host.finish();
}

fn its_system_calls_are_filtered_too() {
    let host = Host::new();
    sleeping(&host, "c");
    let (_, told, _) = run(&host, "c", &["call-kernel"]);
    assert!(told.contains("unshare=EPERM") && told.contains("mkdir=ok"), "{told}");
    host.finish();
}
