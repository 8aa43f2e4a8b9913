//! Sections D and E: what a container sees is its own, another's or the host's.

use super::stage::{SERVER, Stage, host_namespace, namespace, types};
use crate::support::eventually;

/// D1 to D6.
pub(super) fn host_name_and_processes(stage: &Stage) {
    let plain = stage.detached(&format!("docker run -p 8080:8080 -d {SERVER} 2>/dev/null"));
    // D1, D2. WS-RUN-17, -18.
    let pid = stage.pid(&plain);
    let shown = eventually(|| {
        let rows = stage.prints(&format!("ps -o args= -p {pid}"));
        rows.starts_with("/k8s-for-beginners").then_some(rows)
    });
    assert!(stage.prints("ps -ef | grep k8s-for-beginners").contains(&pid.to_string()), "{shown}");
    // D3. WS-NS-01, -02.
    for kind in ["ipc", "mnt", "net", "pid", "uts"] {
        assert_ne!(namespace(pid, kind), host_namespace(kind), "{kind}");
    }
    assert_eq!(namespace(pid, "user"), host_namespace("user"));
    // D4, D5. WS-NS-05, -06, WS-RUN-14, -15.
    let named = stage.detached(&format!("docker run -h k8s-for-beginners -d {SERVER}"));
    let (mut shell, terminal) = stage.terminal(&format!("docker exec -it {named} sh"));
    types(&terminal, "hostname; echo \"[$(hostname)]\"");
    shell.await_text("[k8s-for-beginners]");
    types(&terminal, "stty size 2>/dev/null; tty 2>/dev/null; exit 0");
    assert_eq!(shell.ended(), Some(0), "{}", shell.text());
    assert!(stage.rows("docker ps")[0].contains(" Up "));
    let own = stage.prints("hostname");
    assert_eq!(stage.prints(&format!("docker exec {plain} hostname")), plain[..12]);
    assert_eq!(stage.prints("hostname"), own);
    assert_eq!(stage.run(&format!("docker exec {named} sh -c 'exit 7'")).status.code(), Some(7));
    assert_eq!(stage.prints(&format!("echo word | docker exec -i {named} cat")), "word");
    // D6. WS-NS-07, KC-NS-04, WS-IMG-04.
    for container in [&named, &plain] {
        eventually(|| {
            let seen = stage.prints(&format!("docker exec {container} ps -e -o pid=,args="));
            let rows: Vec<&str> = seen.lines().map(str::trim).collect();
            let server = rows.iter().any(|row| row.starts_with("1 /k8s-for-beginners"));
            (rows.len() == 2 && server && rows[1].contains("ps -e")).then_some(())
        });
    }
    stage.prints(&format!("docker exec {named} touch /mark"));
    assert_eq!(stage.prints(&format!("docker exec {named} ls /mark")), "/mark");
    assert!(!stage.run(&format!("docker exec {plain} ls /mark")).status.success());
    // What it wrote is there when it is started again under its own id.
    stage.prints(&format!("docker stop -t 1 {named}; docker start {named}"));
    assert_eq!(stage.prints(&format!("docker exec {named} ls /mark")), "/mark");
    assert!(stage.prints("docker ps -a -q --no-trunc").contains(&named));
    stage.prints(&format!("docker kill {named}"));
    let refusal = stage.refuses(&format!("docker exec {named} true"), 1);
    assert!(refusal.contains("is not running"), "{refusal}");
    stage.clean();
}

/// E2 to E11. WS-NS-09, -10, -12, WS-NET-06.
pub(super) fn joined_network(stage: &Stage) {
    let first = stage.detached(&format!("docker run -d {SERVER}"));
    let (mut shell, terminal) =
        stage.terminal(&format!("docker run -it --net container:{first} nicolaka/netshoot"));
    shell.await_text("# ");
    types(&terminal, "curl -s localhost:8080");
    shell.await_text("Hello Kubernetes Beginners!");
    let rows = stage.rows("docker ps");
    assert_eq!(rows.len(), 2);
    let joined = rows[0][..12].to_owned();
    assert!(rows[0].contains("nicolaka/netshoot") && !rows[0].contains("/tcp"), "{rows:?}");
    assert!(!stage.prints(&format!("docker exec {joined} ps -e -o args=")).contains("/k8s-for-beginners"));
    let (a, b) = (stage.pid(&first), stage.pid(&joined));
    assert_eq!(namespace(a, "net"), namespace(b, "net"));
    for kind in ["mnt", "pid", "ipc", "uts"] {
        assert_ne!(namespace(a, kind), namespace(b, kind), "{kind}");
    }
    let third = stage.detached("docker run -d nicolaka/netshoot sleep 600");
    assert_ne!(namespace(stage.pid(&third), "net"), namespace(a, "net"));
    assert!(!stage.run(&format!("docker exec {third} curl -s localhost:8080")).status.success());
    for flag in ["-p 1:1", "-h x", &format!("--link {third}:x")] {
        let line = format!("docker run -d --net container:{first} {flag} nicolaka/netshoot sleep 600");
        let refusal = stage.refuses(&line, 125);
        assert!(refusal.contains("conflicting options"), "{flag}: {refusal}");
    }
    stage.prints(&format!("docker kill {third}"));
    let refusal = stage.refuses(&format!("docker run -d --net container:{third} nicolaka/netshoot"), 125);
    assert!(refusal.contains("non running container"), "{refusal}");
    // Who has joined keeps what it has joined.
    stage.prints(&format!("docker rm -f {first}"));
    types(&terminal, "ls -l /proc/self/ns/net; echo still-$((40+2))");
    shell.await_text("still-42");
    assert_eq!(stage.prints(&format!("docker rm -f {joined}")), joined);
    assert_eq!(shell.ended(), Some(137), "{}", shell.text());
    stage.clean();
}

/// E12 to E16. WS-NS-11.
pub(super) fn the_hosts_network(stage: &Stage) {
    let host = stage.detached(&format!("docker run --net host -d {SERVER}"));
    let rows = stage.rows("docker ps");
    assert!(rows.len() == 1 && !rows[0].contains("8080"), "{rows:?}");
    let pid = stage.pid(&host);
    assert_eq!(namespace(pid, "net"), host_namespace("net"));
    assert_eq!(stage.curl("localhost:8080"), "Hello Kubernetes Beginners!");
    for kind in ["mnt", "pid"] {
        assert_ne!(namespace(pid, kind), host_namespace(kind), "{kind}");
    }
    // A port that a program of the host has cannot lead to a container.
    let refusal = stage.refuses("docker run -d -p 8080:80 alpine:3.10 sleep 600", 125);
    assert!(refusal.contains("port is already allocated"), "{refusal}");
    let alone = stage.detached("docker run -d --net none alpine:3.10 sleep 600");
    assert_eq!(stage.prints(&format!("docker exec {alone} ls /sys/class/net")), "lo");
    stage.clean();
}

/// WS-NS-08.
pub(super) fn joined_processes(stage: &Stage) {
    let first = stage.detached(&format!("docker run -d {SERVER}"));
    let joined = stage.detached(&format!("docker run -d --pid container:{first} alpine:3.10 sleep 600"));
    let (a, b) = (stage.pid(&first), stage.pid(&joined));
    assert_eq!(namespace(a, "pid"), namespace(b, "pid"));
    assert_ne!(namespace(a, "net"), namespace(b, "net"));
    eventually(|| {
        let seen = stage.prints(&format!("docker exec {joined} ps -e -o args="));
        seen.contains("/k8s-for-beginners").then_some(())
    });
    stage.prints(&format!("docker exec {joined} bash -c 'kill -TERM 1'"));
    assert_eq!(stage.prints(&format!("docker wait {first}")), "0", "its processes can be signalled");
    let host = stage.detached("docker run -d --pid host alpine:3.10 sleep 600");
    assert_eq!(namespace(stage.pid(&host), "pid"), host_namespace("pid"));
    stage.clean();
}

/// KC-NS-03.
pub(super) fn mapped_users(stage: &Stage) {
    let mapped = stage.detached("docker run -d alpine:3.10 sleep 600 2>/dev/null");
    assert_eq!(stage.prints(&format!("docker exec {mapped} id -u")), "0");
    let status = std::fs::read_to_string(format!("/proc/{}/status", stage.pid(&mapped))).unwrap();
    let uid =
        status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap().split_whitespace().next().unwrap();
    assert_eq!(uid, "100000");
    let host = stage.detached("docker run -d --userns host alpine:3.10 sleep 600");
    assert_eq!(namespace(stage.pid(&host), "user"), host_namespace("user"));
    stage.clean();
}

/// A2-30.
pub(super) fn the_host_itself(stage: &Stage) {
    let line = "docker run --net=host --ipc=host --uts=host --pid=host --privileged \
                --security-opt=seccomp=unconfined -it --rm -v /:/host alpine:3.10 chroot /host";
    let (mut shell, terminal) = stage.terminal(line);
    types(
        &terminal,
        "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done; hostname; echo end-$((40+2))",
    );
    shell.await_text("end-42");
    let text = shell.text();
    for kind in ["net", "ipc", "uts", "pid"] {
        assert!(text.contains(&host_namespace(kind)), "{kind}: {text}");
    }
    assert!(text.contains(nix::unistd::gethostname().unwrap().to_str().unwrap()), "{text}");
    types(&terminal, &format!("ps -p {} -o pid=; ip -o link show lo; exit", std::process::id()));
    assert_eq!(shell.ended(), Some(0), "{}", shell.text());
    assert!(shell.text().contains(": lo: "), "{}", shell.text());
    assert_eq!(stage.prints("docker ps -aq"), "", "it is removed at its end");
    let refusal = stage.refuses("docker run --uts host alpine:3.10 true", 125);
    assert!(refusal.contains("--network host"), "{refusal}");
}

/// A2-28.
pub(super) fn rights(stage: &Stage) {
    let refusal = stage.run("docker run --rm alpine:3.10 date -s @1000000000");
    assert!(!refusal.status.success(), "the clock is the host's");
    assert!(String::from_utf8_lossy(&refusal.stderr).contains("not permitted"), "{refusal:?}");
    let rights = |flags: &str| -> u64 {
        let text =
            stage.prints(&format!("docker run --rm {flags} alpine:3.10 grep CapEff /proc/self/status"));
        u64::from_str_radix(text.rsplit('\t').next().unwrap(), 16).unwrap()
    };
    let (clock, modules) = (1 << 25, 1 << 16);
    let usual = rights("");
    assert_eq!(usual & (clock | modules), 0);
    assert_eq!(rights("--cap-add SYS_TIME"), usual | clock);
    assert_eq!(rights("--cap-drop ALL"), 0);
    assert_eq!(rights("--privileged") & (clock | modules), clock | modules);
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(stage.directory.path().join("profile.json"), profile).unwrap();
    let makes = |option: &str| stage.run(&format!("docker run --rm {option} alpine:3.10 mkdir /new"));
    let denied = makes("--security-opt seccomp=profile.json");
    assert!(String::from_utf8_lossy(&denied.stderr).contains("Operation not permitted"), "{denied:?}");
    assert!(makes("").status.success() && makes("--security-opt seccomp=unconfined").status.success());
    let bound =
        "docker run --rm --security-opt no-new-privileges alpine:3.10 grep NoNewPrivs /proc/self/status";
    assert!(stage.prints(bound).ends_with('1'));
    for option in ["seccomp=missing.json", "selinux=x"] {
        stage.refuses(&format!("docker run --security-opt {option} alpine:3.10 true"), 125);
    }
    stage.clean();
}
