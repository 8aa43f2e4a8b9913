//! `kubectl logs` with each of its flags, on real containers.

use std::path::{Path, PathBuf};

use chaos_tests::cluster::until;
use serde_json::json;

use super::PATIENCE;
use super::first_pod::run_pod;
use super::stage::{Stage, scripts};

const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_take_every_flag() {
    let Some(mut stage) = Stage::up("logs_take_every_flag", "it-logs").await else { return };
    let talks = "echo early; sleep 3; echo late; exec sleep 100000";
    let mut pod = scripts(
        "two",
        "node-2",
        &[("one", talks, json!({})), ("other", "echo aside; exec sleep 100000", json!({}))],
    );
    pod["spec"]["initContainers"] =
        scripts("x", "node-2", &[("prepare", "echo preparing; sleep 2", json!({}))])["spec"]["containers"]
            .clone();
    let (status, said) = stage.client.request(http::Method::POST, PODS, Some(&pod)).await.unwrap();
    assert_eq!(status, 201, "{said}");
    let program = stage.programs.last().unwrap().clone();
    // KIA-CLIX-008: during the init container's run.
    let during = until(PATIENCE, || {
        let output = stage.run(&program, &["logs", "two", "-c", "prepare"]);
        (output.stdout == b"preparing\n").then_some(())
    });
    assert!(during.is_some(), "{:?}", stage.run(&program, &["logs", "two", "-c", "prepare"]));
    let ended = until(PATIENCE, || {
        let output = stage.run(&program, &["logs", "two", "-c", "one"]);
        (output.stdout == b"early\nlate\n").then_some(())
    });
    assert!(ended.is_some(), "{:?}", stage.run(&program, &["logs", "two", "-c", "one"]));
    for program in &stage.programs {
        let ok = |args: &[&str]| stage.ok(program, &[&["logs", "two"], args].concat());
        // ... and after it.
        assert_eq!(ok(&["-c", "prepare"]), "preparing\n");
        // KIA-CLIX-003: the time that the runtime took, to the nanosecond, in UTC.
        let lines = ok(&["-c", "one", "--timestamps"]);
        let lines: Vec<(&str, &str)> = lines.lines().map(|line| line.split_once(' ').unwrap()).collect();
        assert_eq!([lines[0].1, lines[1].1], ["early", "late"]);
        assert!(lines[0].0.ends_with('Z') && lines[0].0.len() == "2026-01-01T00:00:00.000000000Z".len());
        // KIA-CLIX-004: by time, absolute and relative.
        assert_eq!(ok(&["-c", "one", "--since-time", lines[1].0]), "late\n");
        assert_eq!(ok(&["-c", "one", "--since", "1h"]), "early\nlate\n");
        assert_eq!(ok(&["-c", "one", "--since", "30m", "--tail", "1"]), "late\n");
        // KIA-CLIX-007: the container has a default that is told, all of them, none that is not there.
        let output = stage.run(program, &["logs", "two"]);
        assert_eq!(output.stdout, b"early\nlate\n");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("Defaulted container \"one\" out of: one, other, prepare (init)"), "{told}");
        let all = ok(&["--all-containers", "--prefix"]);
        for line in ["[pod/two/prepare] preparing", "[pod/two/one] early", "[pod/two/other] aside"] {
            assert!(all.lines().any(|found| found == line), "{line:?} is not in {all}");
        }
        let (_, said) = stage.fails(program, &["logs", "two", "-c", "ghost"]);
        assert!(said.contains("container ghost is not valid for pod two"), "{said}");
    }
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(stage.ok(&program, &["logs", "two", "-c", "one", "--since", "1s"]), "", "all is older");
    stage.lab.down();
}

/// The files of a pod's logs on its node.
fn files(stage: &Stage, pod: &str) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let logs = stage.lab.cluster.directory().join("node-2/data/logs");
    let entries = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let named = |path: &PathBuf, start: &str| path.file_name().unwrap().to_string_lossy().starts_with(start);
    let links = entries(&logs.join("containers"));
    let links = links.into_iter().filter(|path| named(path, &format!("{pod}_default_"))).collect();
    let dirs = entries(&logs.join("pods"));
    let dirs = dirs.into_iter().filter(|path| named(path, &format!("default_{pod}_")));
    let files = dirs.flat_map(|dir| entries(&dir)).flat_map(|dir| entries(&dir)).collect();
    (links, files)
}

/// KIA-CLIX-010 and KIA-CLIX-011.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_files_are_one_per_instance_rotate_and_go_with_the_pod() {
    let name = "log_files_are_one_per_instance_rotate_and_go_with_the_pod";
    let Some(mut stage) = Stage::up(name, "it-logfiles").await else { return };
    let program = stage.programs.last().unwrap().clone();
    let dies = "echo instance; [ -e /vol/again ] && exec sleep 100000; touch /vol/again; sleep 0.5; exit 1";
    let mut pod = scripts("again", "node-2", &[("main", dies, json!({}))]);
    let volume = json!({"name": "vol", "emptyDir": {}});
    pod["spec"]["volumes"].as_array_mut().unwrap().push(volume);
    let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array_mut().unwrap();
    mounts.push(json!({"name": "vol", "mountPath": "/vol"}));
    run_pod(&mut stage.client, &pod).await;
    let restarted = until(PATIENCE, || (files(&stage, "again").1.len() == 2).then_some(()));
    assert!(restarted.is_some(), "a restart has a file of its own: {:?}", files(&stage, "again"));
    let linked = until(PATIENCE, || (!files(&stage, "again").0.is_empty()).then_some(()));
    assert!(linked.is_some(), "there are links by container");
    assert_eq!(stage.ok(&program, &["logs", "again", "--previous"]), "instance\n");
    seen_on_the_node(&stage);

    // More than one file's worth; numbered, so that a loss would show.
    let floods = "seq 1000001 2500000; echo done; exec sleep 100000";
    run_pod(&mut stage.client, &scripts("flood", "node-2", &[("main", floods, json!({}))])).await;
    let last = || stage.ok(&program, &["logs", "flood", "--tail", "1"]);
    assert!(until(PATIENCE, || (last() == "done\n").then_some(())).is_some(), "{}", last());
    let (_, rotated) = files(&stage, "flood");
    assert!(rotated.len() > 1, "{rotated:?}");
    let text = stage.ok(&program, &["logs", "flood"]);
    let numbers: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(numbers.last(), Some(&2_500_000));
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "nothing is missing in between");

    for pod in ["again", "flood"] {
        stage.ok(&program, &["delete", "pod", pod, "--now"]);
        let gone = until(PATIENCE, || {
            let (links, files) = files(&stage, pod);
            (links.is_empty() && files.is_empty()).then_some(())
        });
        assert!(gone.is_some(), "{:?}", files(&stage, pod));
    }
    stage.lab.down();
}

/// KIA-CR-032 and KIA-CR-033: on the node's machine, in the words of its runtime's tool.
fn seen_on_the_node(stage: &Stage) {
    let crictl = |args: &[&str]| {
        let output = barque_crictl(stage, args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let running = || crictl(&["ps"]).lines().any(|line| line.contains("again")).then_some(());
    assert!(until(PATIENCE, running).is_some(), "{}", crictl(&["ps", "-a"]));
    let table = crictl(&["ps"]);
    let mut lines = table.lines();
    let titles =
        ["CONTAINER ID", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID", "POD", "NAMESPACE"];
    let head = lines.next().unwrap();
    assert!(
        titles.iter().try_fold(head, |rest, title| rest.split_once(title).map(|(_, rest)| rest)).is_some(),
        "{head}"
    );
    let line = lines.find(|line| line.contains("again")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert!(line.contains(" ago") && line.contains("Running"), "{line}");
    assert_eq!(words[1], "barque/hello:1.0", "{line}");
    assert_eq!(words[words.len() - 5..words.len() - 3], ["main", "1"], "{line}");
    assert_eq!(words[words.len() - 2..], ["again", "default"], "{line}");
    assert_eq!(crictl(&["logs", words[0]]), "instance\n");
    assert_eq!(crictl(&["ps", "-q", "--node", "node-2"]).lines().count(), lines.count() + 1);
    let pods = crictl(&["pods"]);
    let pod = pods.lines().find(|line| line.contains("again")).unwrap();
    assert!(pod.starts_with(words[words.len() - 3]) && pod.contains("Ready"), "{pods}");
    let output = barque_crictl(stage, &["logs", "nobody"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("no container's id begins with \"nobody\""), "{said}");
}

fn barque_crictl(stage: &Stage, args: &[&str]) -> std::process::Output {
    let options = &stage.lab.options;
    let (verb, rest) = args.split_first().unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_barque"));
    command.args(["crictl", verb, "--name", &options.name, "--data-dir"]).arg(&options.data_dir);
    if !rest.contains(&"--node") {
        command.args(["--node", "node-2"]);
    }
    command.args(rest).output().unwrap()
}
