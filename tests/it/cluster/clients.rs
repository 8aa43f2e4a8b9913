//! Client libraries of others through the death of leaders: what they follow and what they write goes on.
//!
//! Python is `$BARQUE_PYTHON` or `python3` with the package `kubernetes`, Node is `node` with the package
//! `@kubernetes/client-node` in `$BARQUE_NODE_MODULES` or in the example's own directory. What is not there is skipped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Lab, PATIENCE, measured, skip, skipped};
use crate::support::Running;

/// After which acknowledged writes the leader is killed.
const KILL_AFTER: [&str; 3] = ["acknowledged 10", "acknowledged 25", "acknowledged 40"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn script(name: &str) -> PathBuf {
    repository().join("tests/it/cluster/testdata").join(name)
}

/// Runs a program that writes and follows, and kills the leader three times under it.
fn through_the_death_of_leaders(lab: &Lab, what: &str, mut command: Command) {
    command.arg(lab.cluster.kubeconfig()).env("NO_PROXY", "*");
    let program = Running::start(&mut command);
    let mut killed = 0;
    loop {
        let line = program.line();
        if KILL_AFTER.contains(&line.as_str()) {
            let leader = lab.cluster.leader(PATIENCE).unwrap();
            lab.cluster.kill(&leader).unwrap();
            killed += 1;
            // A majority is left; the dead one comes back as it would at the hands of whoever keeps processes.
            lab.cluster.complete().unwrap();
        }
        if line == "done" {
            break;
        }
        assert!(line.starts_with("acknowledged "), "{line}");
    }
    assert_eq!(killed, KILL_AFTER.len());
    measured(&format!("{what}: 60 objects made, changed and followed through {killed} deaths of leaders"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_client_goes_on_through_the_death_of_leaders() {
    let name = "the_python_client_goes_on_through_the_death_of_leaders";
    if skipped(name) {
        return;
    }
    let python = std::env::var_os("BARQUE_PYTHON").unwrap_or_else(|| "python3".into());
    let probe = Command::new(&python).args(["-c", "import kubernetes"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        return skip(name, &format!("{} has no kubernetes", python.display()));
    }
    let lab = Lab::up("it-python", 3, 1).await;
    let mut command = Command::new(python);
    command.arg(script("leader_loss.py"));
    through_the_death_of_leaders(&lab, "Python's kubernetes", command);
    lab.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_javascript_client_goes_on_through_the_death_of_leaders() {
    let name = "the_javascript_client_goes_on_through_the_death_of_leaders";
    if skipped(name) {
        return;
    }
    let own = repository().join("examples/objects/node/node_modules");
    let packages = std::env::var_os("BARQUE_NODE_MODULES").map_or(own, PathBuf::from);
    // Newer ones want a newer Node.
    let mut probe = Command::new("node");
    probe
        .args(["-e", "require('@kubernetes/client-node')"])
        .env("NODE_PATH", &packages)
        .stderr(Stdio::null());
    if !probe.status().is_ok_and(|status| status.success()) {
        return skip(name, "there is no node, or it cannot load @kubernetes/client-node");
    }
    let lab = Lab::up("it-node-js", 3, 1).await;
    // Modules are looked for from the script's own place up.
    let home = lab.directory.path().join("program");
    std::fs::create_dir(&home).unwrap();
    std::fs::copy(script("leader_loss.mjs"), home.join("program.mjs")).unwrap();
    std::os::unix::fs::symlink(packages, home.join("node_modules")).unwrap();
    let mut command = Command::new("node");
    command.arg(home.join("program.mjs")).env("NODE_NO_WARNINGS", "1");
    through_the_death_of_leaders(&lab, "@kubernetes/client-node", command);
    lab.down();
}
