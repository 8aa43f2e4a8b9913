//! Programs executed in containers through stock kubectl: over SPDY (older kubectl) and WebSocket (newer), through a
//! replica that does not lead, in a pod on another machine; and what ends such streams.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use chaos_tests::cluster::until;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::first_pod::run_pod;
use super::stage::{Live, SLEEP, Stage, processes_with, scripts};
use super::{PATIENCE, measured};
use crate::support::eventually;

/// How long the exec of a small program may take, there and back, at the median.
const EXEC_TIME_MAX: Duration = Duration::from_millis(20);

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
