//! A whole cluster on this machine: made, looked at, hurt, completed, removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use runtime::net::{Netlink, netns};

use crate::support::{Ended, Owned, eventually, free_address, run, skipped, text};

const NAME: &str = "it-up";

struct Cluster {
    data_dir: tempfile::TempDir,
    port: String,
}

impl Cluster {
    fn command(&self, command: &str, flags: &[&str]) -> Ended {
        let mut args = vec![command, "--name", NAME, "--data-dir", text(self.data_dir.path())];
        args.extend(flags);
        run(&args)
    }

    fn up(&self) -> Ended {
        self.command("up", &["--masters", "1", "--nodes", "1", "--port", &self.port])
    }

    fn pid_of(&self, process: &str) -> i32 {
        let file = format!("/run/barque/clusters/{NAME}/pids/{process}.json");
        let id: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        i32::try_from(id["pid"].as_i64().unwrap()).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _removed = self.command("down", &[]);
    }
}

/// What of the machine a cluster touches: links, namespaces, mounts and cgroups that bear its name.
fn traces(data_dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let links = Netlink::open().unwrap().links().unwrap();
    // The bridge and links of this cluster carry the beginning of its name's hash.
    found.extend(links.into_iter().map(|link| link.name).filter(|name| name.starts_with("bq99ad71")));
    found.extend(netns::list().unwrap().into_iter().filter(|name| name.starts_with(NAME)));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = |line: &&str| line.contains(text(data_dir)) || line.contains(&format!("/clusters/{NAME}"));
    found.extend(mounts.lines().filter(ours).map(str::to_owned));
    let mut hierarchies: Vec<_> = mounts
        .lines()
        .filter(|line| line.contains(" - cgroup"))
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| Path::new(point).join("barque").join(NAME))
        .collect();
    hierarchies.push(Path::new("/run/barque/clusters").join(NAME));
    found.extend(hierarchies.into_iter().filter(|path| path.exists()).map(|path| path.display().to_string()));
    found
}

/// Kills a process, and waits until it is dead: a signal says nothing of when.
fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let is_dead = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.trim_start().starts_with('Z'))
    };
    eventually(|| is_dead().then_some(()));
}

#[test]
fn a_cluster_comes_up_is_completed_and_goes_without_a_trace() {
    if !nix::unistd::geteuid().is_root() {
        skipped("a whole cluster: needs root");
        return;
    }
    let _name = Owned::name(NAME);
    let cluster = Cluster { data_dir: tempfile::tempdir().unwrap(), port: free_address().port().to_string() };
    let made = cluster.up();
    if made.stderr.contains("this machine lacks something") {
        skipped(&format!("a whole cluster: {}", made.stderr));
        return;
    }
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    assert!(made.stdout.contains("1 master, 1 node") && made.stdout.contains("kubectl get nodes"));
    assert!(!traces(cluster.data_dir.path()).is_empty());

    let kubeconfig = cluster.command("kubeconfig", &[]).stdout;
    let file = Path::new(kubeconfig.trim_end());
    assert!(kubeconfig.ends_with('\n') && file.is_file(), "{kubeconfig}");
    let by_name = cluster.command("status", &["-v"]);
    assert_eq!(by_name.code, Some(0), "{}", by_name.stderr);
    for part in ["1 of 1 masters answer, leader master-1", "node-1", "Ready", "endpoint", "RSS 40 MiB"] {
        assert!(by_name.stdout.contains(part), "{part}: {}", by_name.stdout);
    }

    let again = cluster.up();
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(again.stdout.contains("is already up"), "{}", again.stdout);
    let other = cluster.command("up", &["--masters", "3"]);
    assert_eq!(other.code, Some(1));
    assert!(other.stderr.contains("1 masters and 1 nodes"), "{}", other.stderr);

    // The machine knows where the cluster of a name has its files.
    let unaided = run(&["kubeconfig", "--name", NAME]);
    assert_eq!(unaided.stdout, kubeconfig, "{}", unaided.stderr);
    let nowhere = tempfile::tempdir().unwrap();
    let elsewhere = run(&["up", "--name", NAME, "--data-dir", text(nowhere.path())]);
    assert_eq!(elsewhere.code, Some(1));
    assert!(elsewhere.stderr.contains("is up with its files in"), "{}", elsewhere.stderr);

    let master = cluster.pid_of("master-1");
    kill(master);
    let completed = cluster.up();
    assert_eq!(completed.code, Some(0), "{}", completed.stderr);
    assert!(completed.stdout.contains("started master-1"), "{}", completed.stdout);
    assert_ne!(cluster.pid_of("master-1"), master);

    // With the only master dead, down has nobody to ask.
    let master = cluster.pid_of("master-1");
    kill(master);
    let down = cluster.command("down", &[]);
    assert_eq!(down.code, Some(0), "{}", down.stderr);
    assert!(down.stdout.contains("cluster it-up is down"), "{}", down.stdout);
    assert_eq!(traces(cluster.data_dir.path()), BTreeSet::new());
    assert_eq!(fs::read_dir(cluster.data_dir.path()).unwrap().count(), 0);
}

#[test]
fn a_cluster_whose_files_were_removed_is_told_so_and_goes() {
    if !nix::unistd::geteuid().is_root() {
        skipped("a cluster without its files: needs root");
        return;
    }
    let _name = Owned::name(NAME);
    let cluster = Cluster { data_dir: tempfile::tempdir().unwrap(), port: free_address().port().to_string() };
    let made = cluster.up();
    if made.stderr.contains("this machine lacks something") {
        skipped(&format!("a cluster without its files: {}", made.stderr));
        return;
    }
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    fs::remove_file(cluster.data_dir.path().join(format!("clusters/{NAME}/plan.json"))).unwrap();
    let again = cluster.up();
    assert_eq!(again.code, Some(1));
    let remedy = format!("`barque down --name {NAME}` removes the rest");
    assert!(again.stderr.contains(&remedy), "{}", again.stderr);
    let down = run(&["down", "--name", NAME]);
    assert_eq!(down.code, Some(0), "{}", down.stderr);
    assert!(down.stdout.contains("3 processes of masters and nodes"), "{}", down.stdout);
    assert_eq!(traces(cluster.data_dir.path()), BTreeSet::new());
}
