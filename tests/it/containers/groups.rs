//! Sections F and G: control groups and the tree of processes.

use std::path::Path;

use super::stage::{GROUPS, MEMORY, SERVER, Stage, read};
use crate::support::{eventually, skipped};

const TEST: &str = "control_groups_hold_containers_to_their_limits";

/// Whether this machine's groups are of version 1, as the book's are.
fn version_1() -> bool {
    Path::new(GROUPS).join("memory/memory.limit_in_bytes").exists()
}

/// F2 to F8. WS-CG-01 to -05.
pub(super) fn where_they_are(stage: &Stage) {
    if !version_1() {
        skipped(&format!("{TEST}: the places of groups are those of version 1"));
        return;
    }
    stage.prints("docker run --rm hello-world 2>/dev/null");
    // Where both versions are mounted, version 2 has a place among the others.
    let parents = stage.prints("find /sys/fs/cgroup/* -maxdepth 1 -name docker -type d | grep -v /unified/");
    let hierarchies = stage.prints("mount -t cgroup | wc -l");
    assert_eq!(parents.lines().count().to_string(), hierarchies.trim(), "{parents}");
    assert!(parents.contains("/sys/fs/cgroup/memory/docker"));
    let find = "find /sys/fs/cgroup/memory/docker/* -type d";
    let below = || stage.prints("find /sys/fs/cgroup/memory/docker -mindepth 1 -type d");
    assert_eq!(below(), "", "F4: the parent stays, nothing is in it");
    let server = stage.detached(&format!("docker run -d {SERVER} 2>/dev/null"));
    assert_eq!(stage.prints(find), format!("/sys/fs/cgroup/memory/docker/{server}"));
    let pid = stage.pid(&server).to_string();
    for parent in parents.lines() {
        let group = Path::new(parent).join(&server);
        assert!(read(group.join("cgroup.procs")).lines().any(|line| line == pid), "{}", group.display());
    }
    let cpuset = Path::new(GROUPS).join("cpuset/docker").join(&server);
    if cpuset.exists() {
        assert!(!read(cpuset.join("cpuset.cpus")).is_empty() && !read(cpuset.join("cpuset.mems")).is_empty());
    }
    // WS-CG-13.
    stage.prints(&format!("docker exec -d {server} sleep 99"));
    let sleeps = eventually(|| {
        let pids = read(Path::new(GROUPS).join("memory/docker").join(&server).join("cgroup.procs"));
        pids.lines().find(|pid| read_command(pid).starts_with("sleep")).map(str::to_owned)
    });
    assert_ne!(sleeps, pid);
    // F7, F8.
    let files = stage.prints(&format!("ls /sys/fs/cgroup/memory/docker/{server}"));
    for file in ["cgroup.procs", "tasks", "memory.limit_in_bytes", "memory.oom_control", "memory.stat"] {
        assert!(files.lines().any(|found| found == file), "{file}");
    }
    let limit = stage.prints(&format!("cat /sys/fs/cgroup/memory/docker/{server}/memory.limit_in_bytes"));
    assert_eq!(limit, "9223372036854771712");
    // F9. WS-CLI-05.
    let told = stage.run("docker info > /dev/null");
    let counts_swap = Path::new(GROUPS).join("memory/memory.memsw.limit_in_bytes").exists();
    assert_eq!(told.stderr.is_empty(), counts_swap, "{told:?}");
    stage.clean();
    assert_eq!(below(), "");
}

fn read_command(pid: &str) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// F11 to F18. WS-CG-06, -07, -09 to -12.
pub(super) fn memory(stage: &Stage) {
    let neighbour = stage.detached(&format!("docker run -d {SERVER} 2>/dev/null"));
    let run = |limit: &str| {
        format!(
            "docker run --name memconsumer -d --memory={limit} --memory-swap={limit} {MEMORY} 2>/dev/null"
        )
    };
    let enough = stage.detached(&run("100m"));
    let lines = || stage.prints("docker logs memconsumer").lines().count();
    eventually(|| (lines() == 50).then_some(()));
    let rows = stage.rows("docker ps");
    assert!(rows[0].contains(" Up ") && rows[0].ends_with("memconsumer"), "{rows:?}");
    if version_1() {
        let file = |name: &str| read(Path::new(GROUPS).join("memory/docker").join(&enough).join(name));
        assert_eq!(file("memory.limit_in_bytes"), "104857600");
        assert_eq!(file("memory.memsw.limit_in_bytes"), "104857600");
        eventually(|| {
            let used: u64 = file("memory.usage_in_bytes").parse().unwrap();
            (50_000_000..=104_857_600).contains(&used).then_some(())
        });
    }
    assert_eq!(stage.prints("docker rm -f memconsumer"), "memconsumer");
    stage.detached(&run("20m"));
    eventually(|| (stage.rows("docker ps").len() == 1).then_some(()));
    let rows = stage.rows("docker ps -a");
    assert!(rows[0].contains("Exited (137) ") && rows[0].ends_with("memconsumer"), "{rows:?}");
    for (field, wanted) in [
        (".State.OOMKilled", "true"),
        (".State.ExitCode", "137"),
        (".State.Pid", "0"),
        (".HostConfig.Memory", "20971520"),
    ] {
        assert_eq!(stage.about("memconsumer", field), wanted, "{field}");
    }
    let log = stage.prints("docker logs memconsumer");
    for (number, line) in log.lines().enumerate() {
        assert_eq!(line, format!("{0}{1}{0}", "=".repeat(15), number + 1));
    }
    assert!((15..=21).contains(&log.lines().count()), "{log}");
    assert_eq!(stage.about(&neighbour, ".State.Running"), "true");
    stage.clean();
}

/// F19. WS-CG-14, -15.
pub(super) fn other_limits(stage: &Stage) {
    if !version_1() {
        skipped(&format!("{TEST}: the files of limits are those of version 1"));
        return;
    }
    let id = stage.detached(
        "docker run -d -m 100m --cpus=0.5 --cpu-shares=512 --cpuset-cpus=0 --pids-limit 50 alpine:3.10 \
         sh -c 'while :; do :; done' 2>/dev/null",
    );
    let file = |controller: &str, name: &str| {
        read(Path::new(GROUPS).join(controller).join("docker").join(&id).join(name))
    };
    assert_eq!(file("memory", "memory.limit_in_bytes"), "104857600");
    assert_eq!(file("cpu", "cpu.cfs_quota_us"), "50000");
    assert_eq!(file("cpu", "cpu.cfs_period_us"), "100000");
    assert_eq!(file("cpu", "cpu.shares"), "512");
    assert_eq!(file("cpuset", "cpuset.cpus"), "0");
    assert_eq!(file("pids", "pids.max"), "50");
    let status = read(format!("/proc/{}/status", stage.pid(&id)));
    assert!(status.lines().any(|line| line == "Cpus_allowed_list:\t0"), "{status}");
    let refused = stage.refuses("docker run -d -m 100m --memory-swap 50m alpine:3.10", 125);
    assert!(refused.contains("--memory-swap"), "{refused}");
    stage.clean();
}

/// G1, G2. WS-RUN-20: a shim for each container, no daemon; WS-RUN-18.
pub(super) fn process_tree(stage: &Stage) {
    let containers = [(); 2].map(|()| stage.detached(&format!("docker run -d {SERVER} 2>/dev/null")));
    let shims = containers.each_ref().map(|container| {
        let stat = read(format!("/proc/{}/stat", stage.pid(container)));
        let parent = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().to_owned();
        assert_eq!(read(format!("/proc/{parent}/comm")), "barque-shim");
        assert!(read_command(&parent).contains(container.as_str()));
        parent
    });
    assert_ne!(shims[0], shims[1]);
    stage.clean();
}
