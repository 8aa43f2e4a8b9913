//! `kubectl attach` and `kubectl cp`: the main process shown and fed, files copied both ways.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use chaos_tests::cluster::until;
use serde_json::json;

use super::PATIENCE;
use super::first_pod::run_pod;
use super::stage::{Live, SLEEP, Stage, scripts};

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
        keys.write_all(b"\recho typed-$((1+1))\r").unwrap();
        screen.await_text("typed-2");
        // The size of the terminal is told beside what is typed, and may come after it.
        let sized = until(PATIENCE, || {
            keys.write_all(b"stty size\r").unwrap();
            std::thread::sleep(Duration::from_millis(100));
            screen.text().contains("33 111").then_some(())
        });
        assert!(sized.is_some(), "{:?}", screen.text());
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
