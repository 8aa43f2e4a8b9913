//! Nothing is left of an experiment that was killed: no process, no mount, no file.

use std::path::Path;
use std::process::Stdio;

use chaos_tests::cluster::faulty_disk::FaultyDisk;

use crate::cluster;
use crate::support::{barque, eventually, text};

/// Processes whose command line names the directory.
fn processes(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let commands = entries.filter_map(|entry| {
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&command).replace('\0', " "))
    });
    commands.filter(|command| command.contains(text(directory))).collect()
}

fn mounts(directory: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(text(directory))).count()
}

/// Kills an experiment once so many processes bear its directory's name, and waits until nothing of it is left.
fn kill_and_look(yaml: &str, processes_least: usize, mounts_least: usize) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("experiment.yaml");
    std::fs::write(&file, yaml).unwrap();
    let place = tempfile::tempdir().unwrap();
    let output = directory.path().join("reports");
    let mut experiment = barque()
        .args(["chaos", "run", text(&file), "--output", text(&output), "--dir", text(place.path())])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let history = output.join("killed-1/faults.jsonl");
    eventually(|| history.exists().then_some(()));
    eventually(|| (processes(place.path()).len() >= processes_least).then_some(()));
    assert!(mounts(place.path()) >= mounts_least);
    experiment.kill().unwrap();
    experiment.wait().unwrap();
    eventually(|| (processes(place.path()).is_empty() && mounts(place.path()) == 0).then_some(()));
    eventually(|| (std::fs::read_dir(place.path()).unwrap().count() == 0).then_some(()));
}

#[test]
fn a_killed_experiment_leaves_nothing() {
    let (disks, mounts) = if FaultyDisk::missing().is_none() { ("faulty", 3) } else { ("machine", 0) };
    let yaml = format!(
        "name: killed\ncluster: {{disks: {disks}}}\nworkloads: [{{kind: register}}]\n\
         faults: [{{at: 100ms, fault: pause, of: follower, for: 60s}}]\nduration: 2m\n"
    );
    // Three members, the keeper, and the experiment itself.
    kill_and_look(&yaml, 5, mounts);
}

#[test]
fn a_killed_experiment_takes_its_cluster_with_it() {
    if cluster::skipped("a_killed_experiment_takes_its_cluster_with_it") {
        return;
    }
    let _turn = cluster::turn();
    let before = runtime::net::netns::list().unwrap();
    let yaml = "name: killed\ncluster: {members: 1, nodes: 1}\nworkloads: [{kind: pods}]\n\
                faults: [{at: 100ms, fault: isolate, of: node, for: 60s}]\nduration: 2m\n";
    // A master, a node, the endpoint, the keeper, and the experiment itself.
    kill_and_look(yaml, 5, 0);
    eventually(|| (runtime::net::netns::list().unwrap() == before).then_some(()));
}

#[test]
fn a_keeper_removes_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let output =
        barque().args(["chaos", "keep", text(directory.path())]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(directory.path().exists());
}
