//! Interactive streams through stock kubectl: exec, attach, cp, port-forward; over SPDY (older kubectl) and
//! WebSocket (newer), through a replica that does not lead, to a pod on another machine.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use chaos_tests::client::Client;
use chaos_tests::cluster::until;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::first_pod::run_pod;
use super::{Lab, PATIENCE, kubectls, measured, skip, skipped};
use crate::support::eventually;

/// How long the exec of a small program may take, there and back, at the median.
const EXEC_TIME_MAX: Duration = Duration::from_millis(20);

/// A pod whose containers run scripts with this machine's own programs.
pub(super) fn scripts(name: &str, node: &str, containers: &[(&str, &str, Value)]) -> Value {
    let places = [("usr", "/usr", "/usr"), ("bin", "/usr/bin", "/bin"), ("lib", "/usr/lib", "/lib")];
    let places = places.into_iter().chain([("lib64", "/usr/lib64", "/lib64")]);
    let places: Vec<_> = places.filter(|(_, from, _)| Path::new(from).exists()).collect();
    let mounts: Vec<Value> =
        places.iter().map(|(name, _, to)| json!({"name": name, "mountPath": to, "readOnly": true})).collect();
    let volumes: Vec<Value> =
        places.iter().map(|(name, from, _)| json!({"name": name, "hostPath": {"path": from}})).collect();
    let containers: Vec<Value> = containers
        .iter()
        .map(|(name, script, more)| {
            let mut container = json!({
                "name": name, "image": "barque/hello:1.0",
                "command": ["/bin/sh", "-c", script], "volumeMounts": mounts,
                "env": [{"name": "PATH", "value": "/usr/bin:/bin"}],
            });
            for (key, value) in more.as_object().into_iter().flatten() {
                container[key] = value.clone();
            }
            container
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0, "containers": containers, "volumes": volumes,
            "nodeSelector": {"kubernetes.io/hostname": node},
        },
    })
}

const SLEEP: &str = "mkdir -p /tmp; exec sleep 100000";

/// A cluster with kubectls, which speak to a replica that does not lead.
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) client: Client,
    pub(super) programs: Vec<PathBuf>,
    server: String,
}

impl Stage {
    pub(super) async fn up(test: &str, name: &str) -> Option<Self> {
        if skipped(test) {
            return None;
        }
        let all = kubectls();
        let (Some(first), Some(last)) = (all.first(), all.last()) else {
            skip(test, "no kubectl on PATH");
            return None;
        };
        // The oldest speaks SPDY, the newest WebSocket.
        let mut programs = vec![first.clone(), last.clone()];
        programs.dedup();
        let lab = Lab::up(name, 3, 2).await;
        let leader = lab.cluster.leader(PATIENCE).unwrap();
        let status = lab.cluster.status().unwrap();
        let follower = status
            .lines()
            .find(|line| line.starts_with("master-") && !line.starts_with(&leader))
            .and_then(|line| line.split_whitespace().nth(1))
            .expect("a master that does not lead")
            .to_owned();
        let client = Client::from_kubeconfig(&lab.cluster.kubeconfig()).unwrap();
        let client = client.at(follower.parse().unwrap());
        Some(Self { lab, client, programs, server: format!("https://{follower}") })
    }

    pub(super) fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .arg("--server")
            .arg(&self.server)
            .args(args)
            .env("KUBECONFIG", self.lab.cluster.kubeconfig())
            .env("HOME", self.lab.directory.path());
        command
    }

    pub(super) fn run(&self, program: &Path, args: &[&str]) -> Output {
        self.command(program, args).stdin(Stdio::null()).output().unwrap()
    }

    /// Standard output of a success.
    pub(super) fn ok(&self, program: &Path, args: &[&str]) -> String {
        let output = self.run(program, args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program:?} {args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Exit code and standard error of a failure.
    pub(super) fn fails(&self, program: &Path, args: &[&str]) -> (i32, String) {
        let output = self.run(program, args);
        assert!(!output.status.success(), "{program:?} {args:?} succeeds");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// With input through a pipe.
    fn feed(&self, program: &Path, args: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(program, args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        let _broken = writer.join().unwrap();
        output
    }
}

/// A running kubectl whose output is gathered.
struct Live {
    child: Child,
    output: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Live {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = std::sync::Arc::default();
        gather(OwnedFd::from(child.stdout.take().unwrap()), &output);
        gather(OwnedFd::from(child.stderr.take().unwrap()), &output);
        Self { child, output }
    }

    /// On a terminal of its own; the returned file is what the user sees and types.
    fn on_terminal(mut command: Command) -> (Self, File) {
        let size = Winsize { ws_row: 33, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let copy = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap();
        drop((command, pty.slave));
        let output = std::sync::Arc::default();
        gather(pty.master.try_clone().unwrap(), &output);
        (Self { child, output }, File::from(pty.master))
    }

    fn text(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    fn await_text(&self, wanted: &str) {
        let seen = until(PATIENCE, || self.text().contains(wanted).then_some(()));
        assert!(seen.is_some(), "{wanted:?} does not come: {:?}", self.text());
    }

    fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).unwrap();
    }

    fn ended(&mut self) -> Option<i32> {
        let ended = until(PATIENCE, || self.child.try_wait().unwrap());
        ended.unwrap_or_else(|| panic!("it does not end: {:?}", self.text())).code()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn gather(from: OwnedFd, into: &std::sync::Arc<std::sync::Mutex<String>>) {
    let into = std::sync::Arc::clone(into);
    std::thread::spawn(move || {
        let (mut from, mut chunk) = (File::from(from), [0; 4096]);
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..length]));
        }
    });
}

/// Processes of this machine whose command line holds a word.
fn processes_with(word: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| {
            let line = String::from_utf8_lossy(line);
            line.contains(word) && !line.contains("kubectl")
        })
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_runs_programs_in_containers() {
    let Some(mut stage) = Stage::up("exec_runs_programs_in_containers", "it-exec").await else { return };
    let pod = scripts("shell", "node-2", &[("main", SLEEP, json!({})), ("side", SLEEP, json!({}))]);
    run_pod(&mut stage.client, &pod).await;
    for program in stage.programs.clone() {
        let ok = |args: &[&str]| stage.ok(&program, args);
        // KIA-CLIX-012, 014, 015: the container's own name and environment; the first one, or the named one.
        assert_eq!(ok(&["exec", "shell", "--", "hostname"]), "shell\n");
        // Without --, the older ones take what has no dashes; the newer ones ask for it.
        let output = stage.run(&program, &["exec", "shell", "pwd"]);
        let asks = String::from_utf8_lossy(&output.stderr).contains("Use exec [POD] -- [COMMAND] instead");
        assert!(output.stdout == b"/\n" || asks, "{program:?}: {output:?}");
        assert!(ok(&["exec", "shell", "--", "cat", "/proc/1/cmdline"]).contains("sleep"));
        ok(&["exec", "shell", "-c", "side", "--", "touch", "/only-in-side"]);
        assert_eq!(stage.fails(&program, &["exec", "shell", "--", "test", "-e", "/only-in-side"]).0, 1);
        assert_eq!(ok(&["exec", "shell", "-c", "side", "--", "ls", "/only-in-side"]), "/only-in-side\n");
        // Exit codes, and both outputs apart.
        let (code, said) =
            stage.fails(&program, &["exec", "shell", "-c", "main", "--", "sh", "-c", "exit 42"]);
        assert_eq!((code, said.trim()), (42, "command terminated with exit code 42"));
        let output =
            stage.run(&program, &["exec", "shell", "-c", "main", "--", "sh", "-c", "echo out; echo err >&2"]);
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        let (code, said) = stage.fails(&program, &["exec", "shell", "-c", "main", "--", "no-such-program"]);
        assert_eq!(code, 127, "{said}");
        assert!(said.contains("exec: \"no-such-program\": executable file not found in $PATH"), "{said}");
        assert_eq!(stage.fails(&program, &["exec", "shell", "-c", "main", "--", "/etc/hosts"]).0, 126);
        // Input, large in both directions, and its end.
        let input: Vec<u8> = (0..3 << 20).map(|number: u32| (number % 251) as u8).collect();
        let output = stage.feed(&program, &["exec", "-i", "shell", "-c", "main", "--", "cat"], &input);
        assert!(output.status.success() && output.stdout == input, "{} bytes", output.stdout.len());
        let output = stage.feed(&program, &["exec", "shell", "-c", "main", "--", "cat"], b"not passed");
        assert_eq!(output.stdout, b"");
        // Refusals.
        let (_, said) = stage.fails(&program, &["exec", "ghost", "--", "true"]);
        assert_eq!(said, "Error from server (NotFound): pods \"ghost\" not found\n");
        let (_, said) = stage.fails(&program, &["exec", "shell", "-c", "ghost", "--", "true"]);
        assert_eq!(said, "Error from server (BadRequest): container ghost is not valid for pod shell\n");
        // KIA-CLIX-016: what comes before -- is kubectl's.
        let (_, said) = stage.fails(&program, &["exec", "shell", "ls", "-l", "/"]);
        let words = ["unknown shorthand flag", "refused", "Use exec [POD] -- [COMMAND] instead"];
        assert!(words.iter().any(|word| said.contains(word)), "{said}");
        terminal_of_exec(&stage, &program);
        hang_up_of_exec(&stage, &program);
    }
    exec_round_trip(&stage).await;
    stage.lab.down();
}

/// KIA-CLIX-013: a shell on a terminal, with the user's window.
fn terminal_of_exec(stage: &Stage, program: &Path) {
    let command = stage.command(program, &["exec", "-it", "shell", "-c", "main", "--", "sh"]);
    let (mut shell, mut keys) = Live::on_terminal(command);
    keys.write_all(b"tty; stty size; echo ready-$((40+2))\r").unwrap();
    shell.await_text("/dev/pts/");
    shell.await_text("ready-42");
    shell.await_text("33 111");
    keys.write_all(b"exit 7\r").unwrap();
    assert_eq!(shell.ended(), Some(7), "{:?}", shell.text());
}

/// A client that goes away takes the program with it; one that the container's end takes says so.
fn hang_up_of_exec(stage: &Stage, program: &Path) {
    let word = format!("93{:05}", std::process::id() % 100_000);
    let command = stage.command(program, &["exec", "shell", "-c", "main", "--", "sleep", &word]);
    let mut client = Live::start(command);
    eventually(|| (processes_with(&word) == 1).then_some(()));
    client.child.kill().unwrap();
    client.ended();
    eventually(|| (processes_with(&word) == 0).then_some(()));
}

/// The time from the request to the program's end, on a connection that stands.
async fn exec_round_trip(stage: &Stage) {
    let mut times = Vec::new();
    for _ in 0..30 {
        let mut connection = stage.client.dial().await.unwrap();
        let began = Instant::now();
        let request = "GET /api/v1/namespaces/default/pods/shell/exec?command=true&stdout=true&container=main \
             HTTP/1.1\r\nHost: barque\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains("\"Success\"") {
            let read = connection.read_buf(&mut answer).await.unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
        }
        times.push(began.elapsed());
    }
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    measured(&format!("exec through a follower, request to status: median {median:?}, worst {worst:?}"));
    // Other tests share the machine: the bound is that of a machine at rest, tenfold.
    assert!(median < EXEC_TIME_MAX * 10, "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end_with_what_they_are_about() {
    let Some(mut stage) = Stage::up("streams_end_with_what_they_are_about", "it-ends").await else { return };
    let waits = "until [ -e /go ]; do sleep 0.05; done";
    let mut pod = scripts("shell", "node-2", &[("main", SLEEP, json!({}))]);
    let init = scripts("x", "node-2", &[("prepare", waits, json!({}))])["spec"]["containers"].clone();
    pod["spec"]["initContainers"] = init;
    let (status, said) = stage
        .client
        .request(http::Method::POST, "/api/v1/namespaces/default/pods", Some(&pod))
        .await
        .unwrap();
    assert_eq!(status, 201, "{said}");
    let program = stage.programs[stage.programs.len() - 1].clone();
    // KIA-CLIX-017: an init container while it runs; KIA-CLIX-026: nothing is forwarded before the pod runs.
    let inside = until(PATIENCE, || {
        let output = stage.run(&program, &["exec", "shell", "-c", "prepare", "--", "hostname"]);
        output.status.success().then_some(output.stdout)
    });
    assert_eq!(inside.as_deref(), Some(&b"shell\n"[..]));
    for program in &stage.programs {
        let (_, said) = stage.fails(program, &["exec", "shell", "-c", "main", "--", "true"]);
        assert_eq!(
            said, "error: unable to upgrade connection: container not found (\"main\")\n",
            "{program:?}"
        );
        let (_, said) = stage.fails(program, &["port-forward", "shell", "0:80"]);
        assert_eq!(
            said,
            "error: unable to forward port because pod is not running. Current status=Pending\n"
        );
    }
    let command = stage.command(&program, &["exec", "shell", "-c", "prepare", "--", "sleep", "100001"]);
    let mut in_init = Live::start(command);
    eventually(|| (processes_with("100001") == 1).then_some(()));
    stage.ok(&program, &["exec", "shell", "-c", "prepare", "--", "touch", "/go"]);
    assert_eq!(in_init.ended(), Some(137), "{:?}", in_init.text());
    let gone = until(PATIENCE, || {
        let output = stage.run(&program, &["exec", "shell", "--", "true"]);
        output.status.success().then_some(())
    });
    assert!(gone.is_some(), "the main container runs");
    let (_, said) = stage.fails(&program, &["exec", "shell", "-c", "prepare", "--", "true"]);
    assert!(said.contains("container not found (\"prepare\")"), "{said}");

    // The container ends while a program runs in it.
    let mut running = Live::start(stage.command(&program, &["exec", "shell", "--", "sleep", "100002"]));
    eventually(|| (processes_with("100002") == 1).then_some(()));
    stage.ok(&program, &["delete", "pod", "shell", "--now", "--wait=false"]);
    assert_eq!(running.ended(), Some(137), "{:?}", running.text());

    // The agent is killed: the program ends, the client hears of it, and nothing is left.
    run_pod(&mut stage.client, &scripts("other", "node-2", &[("main", SLEEP, json!({}))])).await;
    let mut running = Live::start(stage.command(&program, &["exec", "other", "--", "sleep", "100003"]));
    eventually(|| (processes_with("100003") == 1).then_some(()));
    stage.lab.cluster.kill("node-2").unwrap();
    assert_ne!(running.ended(), Some(0));
    eventually(|| (processes_with("100003") == 0).then_some(()));
    stage.lab.cluster.complete().unwrap();
    let back = until(PATIENCE, || {
        let output = stage.run(&program, &["exec", "other", "--", "hostname"]);
        (output.stdout == b"other\n").then_some(())
    });
    assert!(back.is_some(), "{:?}", stage.run(&program, &["exec", "other", "--", "hostname"]));
    stage.lab.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_shows_and_feeds_the_main_process() {
    let Some(mut stage) = Stage::up("attach_shows_and_feeds_the_main_process", "it-attach").await else {
        return;
    };
    let counts = "n=0; while true; do n=$((n+1)); echo tick-$n; sleep 0.1; done";
    let reads = "while read word; do echo heard-$word; done; echo over; exec sleep 100000";
    run_pod(
        &mut stage.client,
        &scripts("two", "node-2", &[("ticks", counts, json!({})), ("idle", SLEEP, json!({}))]),
    )
    .await;
    let input = json!({"stdin": true});
    run_pod(&mut stage.client, &scripts("ears", "node-2", &[("main", reads, input)])).await;
    run_pod(&mut stage.client, &scripts("deaf", "node-2", &[("main", reads, json!({}))])).await;
    let tty = json!({"stdin": true, "tty": true});
    run_pod(&mut stage.client, &scripts("screen", "node-2", &[("main", "exec sh", tty)])).await;
    // KIA-POD-036: without stdin a process reads the end at once.
    let program = stage.programs[0].clone();
    assert!(until(PATIENCE, || (stage.ok(&program, &["logs", "deaf"]) == "over\n").then_some(())).is_some());
    for program in stage.programs.clone() {
        // KIA-CLIX-018, 020: from now on, with the default told; detaching ends nothing.
        let mut ticks = Live::start(stage.command(&program, &["attach", "two"]));
        ticks.await_text("tick-");
        ticks.await_text("Defaulted container \"ticks\" out of: ticks, idle");
        ticks.interrupt();
        ticks.ended();
        // KIA-CLIX-019: input to the main process, again and again.
        for round in ["one", "two"] {
            let mut command = stage.command(&program, &["attach", "-i", "ears"]);
            command.stdin(Stdio::piped());
            let mut ears = Live::start(command);
            let mut keys = ears.child.stdin.take().unwrap();
            keys.write_all(format!("{round}\n").as_bytes()).unwrap();
            ears.await_text(&format!("heard-{round}"));
            drop(keys);
            ears.interrupt();
            ears.ended();
        }
        assert!(!stage.ok(&program, &["logs", "ears"]).contains("over"), "its input stays open");
        // On a terminal; -t without one is refused.
        let (mut screen, mut keys) = Live::on_terminal(stage.command(&program, &["attach", "-it", "screen"]));
        keys.write_all(b"\recho typed-$((1+1)); stty size\r").unwrap();
        screen.await_text("typed-2");
        screen.await_text("33 111");
        screen.interrupt();
        drop(keys);
        screen.child.kill().unwrap();
        screen.ended();
        let (mut ears, _keys) = Live::on_terminal(stage.command(&program, &["attach", "-it", "ears"]));
        ears.await_text("Unable to use a TTY");
        ears.child.kill().unwrap();
        ears.ended();
    }
    // KIA-POD-037: an input for one session ends with it; the process sees that.
    let once = json!({"stdin": true, "stdinOnce": true});
    let reads = "while read word; do echo heard-$word; done; echo over; sleep 0.3";
    let mut pod = scripts("once", "node-2", &[("main", reads, once)]);
    pod["spec"]["restartPolicy"] = json!("Never");
    run_pod(&mut stage.client, &pod).await;
    let output = stage.feed(&program, &["attach", "-i", "once"], b"first\nsecond\n");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stage.ok(&program, &["logs", "once"]), "heard-first\nheard-second\nover\n");
    stage.lab.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cp_copies_both_ways() {
    let Some(mut stage) = Stage::up("cp_copies_both_ways", "it-cp").await else { return };
    run_pod(&mut stage.client, &scripts("shell", "node-2", &[("main", SLEEP, json!({}))])).await;
    let directory = stage.lab.directory.path();
    let tree = directory.join("tree");
    std::fs::create_dir_all(tree.join("inner")).unwrap();
    let content: Vec<u8> = (0..5 << 20).map(|number: u32| (number % 253) as u8).collect();
    std::fs::write(tree.join("inner/large"), &content).unwrap();
    std::fs::write(tree.join("small"), "words\n").unwrap();
    for (number, program) in stage.programs.iter().enumerate() {
        let remote = format!("shell:/tmp/copy-{number}");
        stage.ok(program, &["cp", tree.to_str().unwrap(), &remote]);
        let listed = stage.ok(program, &["exec", "shell", "--", "cat", &format!("/tmp/copy-{number}/small")]);
        assert_eq!(listed, "words\n");
        let back = directory.join(format!("back-{number}"));
        stage.ok(program, &["cp", &remote, back.to_str().unwrap()]);
        assert!(std::fs::read(back.join("inner/large")).unwrap() == content, "{program:?}");
        let one = directory.join(format!("one-{number}"));
        stage.ok(program, &["cp", &format!("{remote}/small"), one.to_str().unwrap()]);
        assert_eq!(std::fs::read_to_string(one).unwrap(), "words\n");
        let missing = directory.join("missing");
        // What tar says may be lost when kubectl ends first; nothing is made of it in any case.
        stage.run(program, &["cp", "shell:/no/such/file", missing.to_str().unwrap()]);
        assert!(!missing.exists(), "{program:?}");
    }
    stage.lab.down();
}

/// What a GET of `/` answers.
fn get(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn free_port() -> u16 {
    TcpListener::bind(local(0)).unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_forwarded() {
    let Some(mut stage) = Stage::up("ports_are_forwarded", "it-forward").await else { return };
    let mut pod = super::first_pod::hello("web", Some("node-2"));
    let second = json!({"name": "second", "image": "barque/hello:1.0", "args": ["--port", "9090"]});
    pod["spec"]["containers"].as_array_mut().unwrap().push(second);
    run_pod(&mut stage.client, &pod).await;
    for program in stage.programs.clone() {
        // KIA-CLIX-022, 023: several ports, both loopbacks; the program sees a caller on its own loopback.
        let (one, two) = (free_port(), free_port());
        let (one_to, two_to) = (format!("{one}:8080"), format!("{two}:9090"));
        let mut forward = Live::start(stage.command(&program, &["port-forward", "web", &one_to, &two_to]));
        forward.await_text(&format!("Forwarding from 127.0.0.1:{one} -> 8080\n"));
        if TcpListener::bind("[::1]:0").is_ok() {
            forward.await_text(&format!("Forwarding from [::1]:{one} -> 8080\n"));
        }
        forward.await_text(&format!("Forwarding from 127.0.0.1:{two} -> 9090\n"));
        for port in [one, two] {
            let answer = eventually(|| get(local(port)));
            assert!(answer.contains("this is web."), "{answer}");
            assert!(answer.contains("127.0.0.1"), "the caller is the pod's own loopback: {answer}");
        }
        // Many connections, some at once.
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..10).for_each(|_| assert!(get(local(one)).is_some())));
            }
        });
        // KIA-CLIX-027: the local port is taken.
        let (_, said) = stage.fails(&program, &["port-forward", "web", &one_to]);
        assert!(said.contains(&format!("Unable to listen on port {one}")), "{said}");
        assert!(said.contains("unable to listen on any of the requested ports"), "{said}");
        forward.interrupt();
        forward.ended();
        // Nobody listens there in the pod.
        let three = free_port();
        let mut forward =
            Live::start(stage.command(&program, &["port-forward", "web", &format!("{three}:4444")]));
        forward.await_text("Forwarding from");
        assert_eq!(get(local(three)), None);
        forward.await_text("failed to connect to localhost:4444");
        forward.child.kill().unwrap();
        forward.ended();
    }
    privileged_port(&stage);
    stage.lab.down();
}

/// KIA-CLIX-025: without the right to, as a user that is not root.
fn privileged_port(stage: &Stage) {
    let Some(setpriv) =
        ["/usr/bin/setpriv", "/bin/setpriv"].into_iter().find(|path| Path::new(path).exists())
    else {
        return skip("ports_are_forwarded", "no setpriv: the privileged port is not tried");
    };
    let kubeconfig = stage.lab.directory.path().join("kubeconfig-for-all");
    std::fs::copy(stage.lab.cluster.kubeconfig(), &kubeconfig).unwrap();
    for path in [kubeconfig.as_path(), stage.lab.directory.path()] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode).unwrap();
    }
    let start = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if start.trim() == "0" {
        return skip("ports_are_forwarded", "every port is unprivileged here");
    }
    let program = stage.programs.last().unwrap();
    let output = Command::new(setpriv)
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
        .arg(program)
        .args(["--server", &stage.server, "--kubeconfig"])
        .arg(&kubeconfig)
        .args(["port-forward", "web", "80:8080"])
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("permission denied") && !said.contains("bind") {
        return skip("ports_are_forwarded", "kubectl cannot be run by another user");
    }
    assert!(said.contains("Unable to listen on port 80: Listeners failed to create"), "{said}");
    assert!(said.contains("bind: permission denied"), "{said}");
    assert!(said.contains("error: unable to listen on any of the requested ports: [{80 8080}]"), "{said}");
}

/// KIA-CLIX-028.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_serves_the_api_without_credentials() {
    let Some(stage) = Stage::up("proxy_serves_the_api_without_credentials", "it-proxy").await else { return };
    let port = free_port();
    let args = ["proxy", "--port", &port.to_string()];
    let mut proxy = Live::start(stage.command(stage.programs.last().unwrap(), &args));
    proxy.await_text(&format!("Starting to serve on 127.0.0.1:{port}\n"));
    let answer = eventually(|| get(local(port)));
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("/api/v1"), "{answer}");
    proxy.interrupt();
    proxy.ended();
    stage.lab.down();
}
