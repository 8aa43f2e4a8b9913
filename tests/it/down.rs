//! `barque down` on what a crashed cluster leaves: no process that could help it, and everything else there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount};
use runtime::net::{NetNs, Netlink, VethPair, netns};

use crate::support::{Owned, eventually, run, skipped, text};

const NAME: &str = "it-down";
const BRIDGE: &str = "itdown0";
const LINK: &str = "itdown0n1";
const NETNS: &str = "it-down-node-1";

struct Remains {
    data_dir: tempfile::TempDir,
    directory: PathBuf,
    run_directory: PathBuf,
    cgroup: Option<PathBuf>,
    in_netns: Child,
    in_cgroup: Option<Child>,
}

/// Everything that a node with a pod has, made by hand.
fn remains() -> Remains {
    let data_dir = tempfile::tempdir().unwrap();
    let directory = data_dir.path().join("clusters").join(NAME);
    let run_directory = Path::new("/run/barque/clusters").join(NAME);
    for path in [directory.join("node-1/rootfs"), run_directory.join("pids"), run_directory.join("node-1")] {
        fs::create_dir_all(path).unwrap();
    }
    let plan = serde_json::json!({
        "version": 1,
        "name": NAME,
        "directory": directory,
        "run_directory": run_directory,
        "cgroup": format!("/barque/{NAME}"),
        "subnet": "10.213.77.0/24",
        "pod_range": "10.244.0.0/16",
        "bridge": BRIDGE,
        "port": 16443,
        "data_dir_made": false,
        "machines": [{
            "name": "node-1", "role": "node", "address": "10.213.77.21", "netns": NETNS, "link": LINK,
        }],
    });
    for holder in [&directory, &run_directory] {
        fs::write(holder.join("plan.json"), plan.to_string()).unwrap();
    }
    // A pid file whose number now belongs to a process that is none of ours: this one.
    let pid_file = serde_json::json!({"pid": std::process::id(), "start_ticks": 1, "boot_id": "earlier"});
    fs::write(run_directory.join("pids/node-1.json"), pid_file.to_string()).unwrap();

    let mut host = Netlink::open().unwrap();
    host.add_bridge(BRIDGE).unwrap();
    let namespace = netns::create(NETNS).unwrap();
    host.add_veth(VethPair {
        name: LINK,
        peer_name: "eth0",
        peer_netns: Some(&namespace),
        mtu: None,
        master: Some(BRIDGE),
        up: true,
    })
    .unwrap();
    let in_netns = sleeper(Some(&namespace));

    // A container's root, with a file system mounted in it, and a pod's namespace pinned.
    let root = directory.join("node-1/rootfs");
    mount(Some("tmpfs"), &root, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::create_dir(root.join("proc")).unwrap();
    mount(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::empty(), None::<&str>).unwrap();
    netns::create_at(&run_directory.join("node-1/pod.netns")).unwrap();

    let cgroup = Path::new("/sys/fs/cgroup/pids")
        .is_dir()
        .then(|| Path::new("/sys/fs/cgroup/pids/barque").join(NAME).join("node-1/pod"));
    let in_cgroup = cgroup.as_ref().map(|path| {
        fs::create_dir_all(path).unwrap();
        let child = sleeper(None);
        fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
        child
    });
    Remains { data_dir, directory, run_directory, cgroup, in_netns, in_cgroup }
}

fn sleeper(namespace: Option<&NetNs>) -> Child {
    let mut command = Command::new("/bin/sleep");
    command.arg("600").stdin(Stdio::null());
    match namespace {
        Some(namespace) => namespace.run(|| command.spawn()).unwrap().unwrap(),
        None => command.spawn().unwrap(),
    }
}

#[test]
fn down_removes_what_a_crashed_cluster_left_and_nothing_else() {
    if !nix::unistd::geteuid().is_root() {
        skipped("down after a crash: needs root");
        return;
    }
    let _name = Owned::name(NAME);
    let mut remains = remains();
    let bystander = sleeper(None);
    let data_dir = text(remains.data_dir.path()).to_owned();
    let down = || run(&["down", "--name", NAME, "--data-dir", &data_dir]);
    let ended = down();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for part in ["cluster it-down is down", "1 network namespace\n", "2 links", text(&remains.directory)] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }

    let killed = |child: &mut Child| !eventually(|| child.try_wait().unwrap()).success();
    assert!(killed(&mut remains.in_netns));
    assert!(remains.in_cgroup.as_mut().is_none_or(killed));
    let mut bystander = bystander;
    assert!(bystander.try_wait().unwrap().is_none(), "a process of somebody else goes on");
    bystander.kill().unwrap();
    bystander.wait().unwrap();

    assert!(!remains.directory.exists() && !remains.run_directory.exists());
    assert!(remains.data_dir.path().exists(), "the data directory was there before");
    assert!(!netns::list().unwrap().contains(&NETNS.to_owned()));
    let links = Netlink::open().unwrap().links().unwrap();
    assert!(!links.iter().any(|link| [BRIDGE, LINK].contains(&link.name.as_str())));
    assert!(remains.cgroup.is_none_or(|path| !path.exists()));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(text(&remains.directory)) && !mounts.contains(text(&remains.run_directory)));

    let again = down();
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(again.stdout.contains("there is nothing to remove"), "{}", again.stdout);
}

#[test]
fn a_plan_of_another_version_is_not_touched() {
    if !nix::unistd::geteuid().is_root() {
        skipped("down of another version's cluster: needs root");
        return;
    }
    let data_dir = tempfile::tempdir().unwrap();
    let directory = data_dir.path().join("clusters/it-later");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("plan.json"), "{\"version\": 2}").unwrap();
    let ended = run(&["down", "--name", "it-later", "--data-dir", text(data_dir.path())]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("another version"), "{}", ended.stderr);
    assert!(directory.join("plan.json").exists());
}
