//! Chapter 5: pods made, asked, read, entered and removed; two containers; init containers.

use std::io::Write as _;
use std::process::Stdio;

use super::reader::{Reader, Session};
use crate::support::eventually;

/// The chapter's sessions.
pub(super) const SESSIONS: &[Session] = &[
    ("create", create),
    ("requests", requests),
    ("logs", logs),
    ("inside", inside),
    ("input", input),
    ("two-containers", two_containers),
    ("init", init),
    ("delete", delete),
];

/// A5-01 to A5-07.
fn create(me: &Reader<'_>) {
    // A5-01, KIA-CLI-037: a manifest and nothing else.
    let manifest = me.prints("kubectl run hello --image=lab/hello:1.0 --dry-run=client -o yaml");
    assert!(manifest.starts_with("apiVersion: v1\nkind: Pod\n") && manifest.contains("image: lab/hello:1.0"));
    assert!(me.refuses("kubectl get pod hello").contains("pods \"hello\" not found"));
    std::fs::write(me.path("mypod.yaml"), manifest).unwrap();
    assert_eq!(
        me.prints("kubectl apply -f mypod.yaml --dry-run=server"),
        "pod/hello created (server dry run)\n"
    );
    // A5-02
    let explained = me.prints("kubectl explain pods");
    for line in ["KIND:       Pod", "VERSION:    v1", "DESCRIPTION:", "FIELDS:", "  spec\t<PodSpec>"] {
        assert!(explained.lines().any(|found| found.starts_with(line)), "{line:?} in {explained}");
    }
    // A5-03
    for file in ["hello.yaml", "hello-labelled.yaml", "hello-renamed.yaml"] {
        me.fill(file, "lab/hello:1.0", "lab/hello:1.0-first");
    }
    assert_eq!(me.prints("kubectl apply -f hello.yaml"), "pod/hello created\n");
    me.shows("hello", "1/1 Running 0");
    assert_eq!(me.prints("kubectl apply -f hello.yaml"), "pod/hello unchanged\n");
    assert_eq!(me.prints("kubectl apply -f hello-labelled.yaml"), "pod/hello configured\n");
    let refused = me.refuses("kubectl apply -f hello-renamed.yaml");
    assert!(refused.contains("The Pod \"hello\" is invalid"), "{refused}");
    // A5-04
    let whole = me.prints("kubectl get po hello -o yaml");
    let own = std::fs::read_to_string(me.path("hello.yaml")).unwrap();
    assert!(whole.len() > 5 * own.len(), "{whole}");
    for key in ["imagePullPolicy: IfNotPresent", "restartPolicy: Always", "terminationGracePeriodSeconds: 30"]
    {
        assert!(whole.contains(key), "{key} in {whole}");
    }
    // A5-05
    let shown = me.prints("kubectl get pod hello");
    let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert_eq!(rows[1][..4], ["hello", "1/1", "Running", "0"]);
    // A5-06
    let node = me.pod("hello")["spec"]["nodeName"].as_str().unwrap().to_owned();
    let address = me.pod("hello")["status"]["hostIP"].as_str().unwrap().to_owned();
    let described = me.prints("kubectl describe pod hello");
    let namespace = format!("Namespace: {}", me.namespace);
    for line in ["Name: hello", &namespace, "Priority: 0", &format!("Node: {node}/{address}"), "Start Time:"]
    {
        let has = |found: &str| found.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(line);
        assert!(described.lines().any(has), "{line:?} in {described}");
    }
    // A5-07, KIA-EVT-012, KIA-EVT-013
    let events = me.prints("kubectl get events");
    let mut lines = events.lines();
    let header: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]);
    assert!(!events.contains("Warning"), "{events}");
    assert_eq!(me.reasons("hello"), ["Scheduled", "Pulling", "Pulled", "Created", "Started"], "{events}");
    let told = me.told("hello");
    assert_eq!(told[0].message, format!("Successfully assigned {}/hello to {node}", me.namespace));
    assert_eq!(told[1].message, "Pulling image \"lab/hello:1.0-first\"");
    assert!(told[2].message.starts_with("Successfully pulled image \"lab/hello:1.0-first\" in "), "{told:?}");
    assert_eq!(
        [&*told[3].message, &*told[4].message],
        ["Created container hello", "Started container hello"]
    );
    let order = "kubectl get events --sort-by=.metadata.resourceVersion -o jsonpath={.items[*].reason}";
    assert_eq!(me.prints(order), "Scheduled Pulling Pulled Created Started");
    // A3-25, KIA-EVT-011, KIA-CLI-026
    let described = me.prints("kubectl describe pod hello");
    let table = described.split_once("Events:").unwrap().1.lines().filter(|line| !line.is_empty());
    let table: Vec<Vec<&str>> = table.map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(table[0], ["Type", "Reason", "Age", "From", "Message"]);
    let said: Vec<[&str; 3]> = table[2..].iter().map(|row| [row[0], row[1], row[3]]).collect();
    let agent = ["Pulling", "Pulled", "Created", "Started"].map(|reason| ["Normal", reason, "kubelet"]);
    assert_eq!(said, [&[["Normal", "Scheduled", "default-scheduler"]], &agent[..]].concat());
    // A5-36: what is deleted is shown as ending until it is gone.
    assert_eq!(me.prints("kubectl delete po hello --grace-period=2"), "pod \"hello\" deleted\n");
    assert!(me.rows("hello").iter().any(|row| row == "1/1 Terminating 0"), "{:?}", me.rows("hello"));
    assert!(me.refuses("kubectl get po hello").contains("not found"));
}

/// A5-08 to A5-12.
fn requests(me: &Reader<'_>) {
    me.prints("kubectl apply -f hello-labelled.yaml -f hello-eth0.yaml");
    me.shows("hello", "1/1 Running 0");
    // A5-08
    let wide = me.prints("kubectl get pod hello -o wide");
    let (head, row) = wide.split_once('\n').unwrap();
    let head: Vec<&str> = head.split_whitespace().collect();
    let row: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(head[..7], ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]);
    let (ip, node) = (row[5], row[6]);
    let range = me.prints(&format!("kubectl get node {node} -o jsonpath={{.spec.podCIDR}}"));
    let prefix: runtime::net::Prefix = range.parse().unwrap();
    assert!(prefix.contains(ip.parse().unwrap()), "{ip} in {range}");
    // A5-09: from either node; the bridge is the pod's neighbour on its own.
    let pid = |node: &str| me.book.lab.cluster.pid(node).unwrap();
    let own = me.prints(&format!("nsenter -t {} -n curl -s {ip}:8080", pid(node)));
    let bridge = format!("{}.1", ip.rsplit_once('.').unwrap().0);
    assert_eq!(own, format!("Hey there, this is hello. Your IP is ::ffff:{bridge}.\n"));
    for other in ["node-1", "node-2"] {
        let answer = me.prints(&format!("nsenter -t {} -n curl -s {ip}:8080", pid(other)));
        assert!(answer.starts_with("Hey there, this is hello."), "{answer}");
    }
    // A5-10, KIA-CLI-038: a pod for one command.
    let run = "kubectl run --image=lab/curl:1 -it --restart=Never --rm probe-client";
    let (mut client, _keys) =
        me.terminal(&format!("{run} -- sh -c 'sleep 1; hostname -i; curl -s {ip}:8080'"));
    assert_eq!(client.ended(), Some(0), "{}", client.text());
    client.await_text("Hey there, this is hello. Your IP is ::ffff:10.");
    client.await_text("pod \"probe-client\" deleted");
    assert!(me.refuses("kubectl get pod probe-client").contains("not found"));
    // A5-11; I14 to I16: refused before, answered while it runs, and the port is free again afterwards.
    let port = crate::cluster::forward::free_port();
    let open = || me.run(&format!("curl -s localhost:{port}")).status.success();
    assert!(!open());
    let mut forward = me.live(&format!("kubectl port-forward hello {port}:8080"));
    let lines = format!("Forwarding from 127.0.0.1:{port} -> 8080\nForwarding from [::1]:{port} -> 8080\n");
    forward.await_text(&lines);
    let mine = me.curl(&format!("127.0.0.1:{port}"));
    assert_eq!(mine, "Hey there, this is hello. Your IP is ::ffff:127.0.0.1.\n");
    forward.interrupt();
    forward.ended();
    assert!(!open());
    me.shows("hello-eth0", "1/1 Running 0");
    // AX-14: its ports are not declared and reachable all the same.
    let address = me.pod("hello-eth0")["status"]["podIP"].as_str().unwrap().to_owned();
    let answer = me.prints(&format!("nsenter -t {} -n curl -s {address}:8080", pid("node-1")));
    assert!(answer.starts_with("Hey there, this is hello-eth0."), "{answer}");
    let (mut forward, [port]) = me.forward("hello-eth0", [8080]);
    assert!(!me.run(&format!("curl -s localhost:{port}")).status.success(), "nobody listens at its loopback");
    forward.await_text("failed to connect to localhost:8080");
    forward.interrupt();
    forward.ended();
    assert!(me.prints("kubectl port-forward --help").contains("Forward one or more local ports to a pod"));
    // A5-12
    let logs = me.prints("kubectl logs hello");
    let lines: Vec<&str> = logs.lines().collect();
    assert_eq!(lines[..3], ["Hello server starting...", "Local hostname is hello", "Listening on port 8080"]);
    assert_eq!(lines[3], format!("Received request for / from ::ffff:{bridge}"));
    assert_eq!(lines.last(), Some(&"Received request for / from ::ffff:127.0.0.1"));
    assert!(lines.len() == 8, "{logs}");
}

/// A5-13 to A5-16.
fn logs(me: &Reader<'_>) {
    me.prints("kubectl apply -f hello.yaml");
    me.shows("hello", "1/1 Running 0");
    let (mut forward, [port]) = me.forward("hello", [8080]);
    me.curl(&format!("localhost:{port}/early"));
    // A5-13
    let follow = me.live("kubectl logs hello --follow");
    follow.await_text("/early");
    // kubectl sends times in whole seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    me.curl(&format!("localhost:{port}/late"));
    follow.await_text("Received request for /late");
    follow.interrupt();
    // A5-14
    let stamped = me.prints("kubectl logs hello --timestamps=true");
    let shape = "2026-01-01T00:00:00.000000000Z".len();
    for line in stamped.lines() {
        let (time, _) = line.split_once(' ').unwrap();
        assert!(time.len() == shape && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{line}");
    }
    assert_eq!(me.prints("kubectl logs hello --timestamps"), stamped);
    // A5-15
    let all = me.prints("kubectl logs hello");
    assert_eq!(me.prints("kubectl logs hello --since=2m"), all);
    let last = stamped.lines().last().unwrap().split_once(' ').unwrap().0;
    let since = me.prints(&format!("kubectl logs hello --since-time={last}"));
    assert_eq!(since, "Received request for /late from ::ffff:127.0.0.1\n");
    for tail in ["--tail=1", "--tail 1"] {
        assert_eq!(me.prints(&format!("kubectl logs hello {tail}")), since);
    }
    // A5-16: the program ends at INT; what follows ends with it, and the next one's log begins anew.
    let mut follow = me.live("kubectl logs hello -f");
    follow.await_text("/late");
    me.prints("kubectl exec hello -- bash -c 'kill -INT 1'");
    assert_eq!(follow.ended(), Some(0));
    me.shows("hello", "1/1 Running 1");
    let again = me.soon("the new log", || {
        Some(me.prints("kubectl logs hello")).filter(|log| log.contains("Listening on port 8080"))
    });
    assert!(!again.contains("/early"), "{again}");
    assert_eq!(me.prints("kubectl logs hello -p"), all);
    forward.interrupt();
    forward.ended();
}

/// A5-17 to A5-22.
fn inside(me: &Reader<'_>) {
    me.prints("kubectl apply -f hello.yaml");
    me.shows("hello", "1/1 Running 0");
    // A5-17
    me.prints("kubectl cp hello:/etc/hosts hello-hosts");
    let copied = std::fs::read_to_string(me.path("hello-hosts")).unwrap();
    assert_eq!(copied, me.prints("kubectl exec hello -- cat /etc/hosts"));
    me.prints("kubectl cp hello.yaml hello:tmp/manifest");
    let own = std::fs::read_to_string(me.path("hello.yaml")).unwrap();
    assert_eq!(me.prints("kubectl exec hello -- cat /tmp/manifest"), own);
    me.prints("kubectl exec hello -- rm /usr/bin/tar");
    let refused = me.refuses("kubectl cp hello:/etc/hosts nothing");
    assert!(refused.contains("exit code 127"), "{refused}");
    // A5-18, KIA-ISO-016: the program, and what is executed beside it.
    let processes = me.prints("kubectl exec hello -- ps aux");
    let commands: Vec<&str> =
        processes.lines().skip(1).map(|line| line.split_whitespace().nth(10).unwrap()).collect();
    assert_eq!(commands, ["/barque", "ps"], "{processes}");
    assert_eq!(processes.lines().nth(1).unwrap().split_whitespace().nth(1), Some("1"));
    // A5-19, KIA-NET-005: localhost is ::1 first. (Some curls go to 127.0.0.1 first, whatever it is.)
    let first = me.prints("kubectl exec hello -- getent ahosts localhost");
    assert!(first.starts_with("::1 "), "{first}");
    let answer = me.soon("an answer", || {
        Some(me.run("kubectl exec hello -- curl -6 -s localhost:8080").stdout)
            .filter(|answer| !answer.is_empty())
    });
    assert_eq!(String::from_utf8(answer).unwrap(), "Hey there, this is hello. Your IP is ::1.\n");
    // A5-20: -s is kubectl's own.
    let refused = me.refuses("kubectl exec hello curl -s localhost:8080");
    let words = ["localhost:8080 was refused", "Use exec [POD] -- [COMMAND] instead", "unknown"];
    assert!(words.iter().any(|word| refused.contains(word)), "{refused}");
    assert!(me.prints("kubectl options").contains("-s, --server="));
    // A5-21
    let (mut shell, mut keys) = me.terminal("kubectl exec -it hello -- bash");
    shell.await_text("root@hello:/#");
    keys.write_all(b"ls -la; ip link; ping 127.0.0.1; exit\r").unwrap();
    assert_eq!(shell.ended(), Some(0), "{}", shell.text());
    for word in ["barque", " lo: ", " eth0@", "Host appears to be reachable"] {
        shell.await_text(word);
    }
    // KIA-ISO-012: without privileges nobody sets the clock or loads modules.
    let refused = me.refuses("kubectl exec hello -- date -s @0");
    assert!(refused.contains("Operation not permitted"), "{refused}");
    let status = me.prints("kubectl exec hello -- cat /proc/1/status");
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let held = u64::from_str_radix(held.trim(), 16).unwrap();
    let (module, time) = (16, 25);
    assert_eq!(held & (1 << module | 1 << time), 0, "SYS_MODULE and SYS_TIME in {held:x}");
    // KIA-SEC-004
    assert_eq!(me.prints("kubectl exec hello -- id -u"), "0\n");
    // A5-22: what is logged from now on.
    let mut attached = me.live("kubectl attach hello");
    me.soon("a line of the log", || {
        me.prints("kubectl exec hello -- curl -s localhost:8080/now");
        attached.text().contains("Received request for /now").then_some(())
    });
    attached.interrupt();
    attached.ended();
    assert_eq!(me.rows("hello").last().unwrap(), "1/1 Running 0");
    // KIA-ISO-017: nothing else runs than the program.
    let processes = me.prints("kubectl exec hello -- ps -e -o comm=");
    assert_eq!(processes, "barque\nps\n");
}

/// A5-23 to A5-25, KIA-APP-003.
fn input(me: &Reader<'_>) {
    assert_eq!(me.prints("kubectl apply -f hello-stdin.yaml"), "pod/hello-stdin created\n");
    me.prints("kubectl apply -f hello-once.yaml");
    me.shows("hello-stdin", "1/1 Running 0");
    // A5-24: another local port; that one is taken then.
    let (mut forward, [port]) = me.forward("hello-stdin", [8080]);
    let ask = || me.curl(&format!("localhost:{port}"));
    assert!(ask().starts_with("Hey there, this is hello-stdin."));
    let taken = me.refuses(&format!("kubectl port-forward hello-stdin {port}:8080"));
    assert!(taken.contains(&format!("Unable to listen on port {port}")), "{taken}");
    // A5-25, again and again.
    for greeting in ["Howdy", "Hello again"] {
        let mut command = me.command("kubectl attach -i hello-stdin");
        command.stdin(Stdio::piped());
        let mut attached = crate::cluster::stage::Live::start(command);
        let mut keys = attached.child.stdin.take().unwrap();
        keys.write_all(format!("{greeting}\n").as_bytes()).unwrap();
        attached.await_text(&format!("Greeting set to: {greeting}"));
        assert!(ask().starts_with(&format!("{greeting}, this is hello-stdin.")));
        attached.interrupt();
        attached.ended();
    }
    assert_eq!(me.rows("hello-stdin").last().unwrap(), "1/1 Running 0");
    forward.interrupt();
    forward.ended();
    // stdinOnce: the first session's end is the input's; a second session finds none.
    me.shows("hello-once", "1/1 Running 0");
    let said = me.prints("bash -c 'echo Hi | kubectl attach -i hello-once & sleep 3; kill $!'");
    assert!(said.contains("Greeting set to: Hi"), "{said}");
    me.prints("bash -c 'echo Late | kubectl attach -i hello-once & sleep 2; kill $!'");
    assert!(!me.prints("kubectl logs hello-once").contains("Late"));
}

/// A5-26 to A5-32, KIA-SEC-005, KIA-APP-005.
fn two_containers(me: &Reader<'_>) {
    me.prints("kubectl apply -f hello-tls.yaml -f hello-tls-shared.yaml");
    // A5-26
    me.shows("hello-tls", "2/2 Running 0");
    let described = me.prints("kubectl describe po hello-tls");
    for text in ["\n  hello:\n", "\n  proxy:\n", "lab/tlsproxy:1.0"] {
        assert!(described.contains(text), "{text:?} in {described}");
    }
    // A5-27
    let (mut forward, [plain, tls, admin]) = me.forward("hello-tls", [8080, 8443, 9901]);
    let wanted: Vec<String> = [(plain, 8080), (tls, 8443), (admin, 9901)]
        .iter()
        .flat_map(|(local, port)| {
            ["127.0.0.1", "[::1]"].map(|at| format!("Forwarding from {at}:{local} -> {port}"))
        })
        .collect();
    forward.await_text(wanted.last().unwrap());
    assert_eq!(forward.text().lines().collect::<Vec<_>>(), wanted);
    // A5-28
    let answer = "Hey there, this is hello-tls. Your IP is ::ffff:127.0.0.1.\n";
    assert_eq!(me.curl(&format!("localhost:{plain}")), answer);
    assert_eq!(me.curl(&format!("https://localhost:{tls} --insecure")), answer);
    // A5-29: the name is right, who signed it is not.
    let by_name = format!("curl https://example.com:{tls} --resolve example.com:{tls}:127.0.0.1");
    let output = me.run(&by_name);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(60), "{said}");
    assert!(said.contains("self-signed certificate") || said.contains("self signed certificate"), "{said}");
    assert!(!said.contains("subject name"), "{said}");
    forward.interrupt();
    forward.ended();
    // A5-30
    assert!(me.prints("kubectl logs hello-tls -c hello").starts_with("Hello server starting..."));
    assert!(me.prints("kubectl logs hello-tls -c proxy").starts_with("starting main dispatch loop"));
    let all = me.prints("kubectl logs hello-tls --all-containers");
    assert!(all.contains("Hello server") && all.contains("main dispatch"), "{all}");
    let unnamed = me.run("kubectl logs hello-tls");
    assert!(String::from_utf8_lossy(&unnamed.stderr).contains("hello, proxy"), "{unnamed:?}");
    // A5-31
    let (mut shell, mut keys) = me.terminal("kubectl exec -it hello-tls -c proxy -- bash");
    shell.await_text("root@hello-tls:/#");
    keys.write_all(b"cat /proc/1/cmdline | tr '\\0' ' '; exit\r").unwrap();
    assert_eq!(shell.ended(), Some(0));
    shell.await_text("/barque demo proxy");
    assert!(me.prints("kubectl exec hello-tls -- cat /proc/1/cmdline").contains("hello"));
    shares(me);
}

/// A5-32, KIA-POD-004: what containers of a pod share and what they do not.
fn shares(me: &Reader<'_>) {
    let both = |command: &str| {
        ["hello", "proxy"]
            .map(|container| me.prints(&format!("kubectl exec hello-tls -c {container} -- {command}")))
    };
    for command in ["hostname", "ip addr"] {
        let [one, other] = both(command);
        assert_eq!(one, other);
    }
    let [one, other] = both("ps -e -o args=");
    assert!(one.starts_with("/barque hello") && !one.contains("proxy"), "{one}");
    assert!(other.starts_with("/barque demo proxy") && !other.contains("barque hello"), "{other}");
    me.prints("kubectl exec hello-tls -c hello -- touch /only-here /dev/shm/shared");
    me.refuses("kubectl exec hello-tls -c proxy -- ls /only-here");
    me.prints("kubectl exec hello-tls -c proxy -- ls /dev/shm/shared");
    // System V: a queue made in one is listed in the other, and not in another pod.
    let made = me.prints("kubectl exec hello-tls -c hello -- ipcmk -Q");
    let id = made.trim().rsplit(' ').next().unwrap();
    let has = |pod: &str| {
        let listed = me.prints(&format!("kubectl exec {pod} -c proxy -- ipcs -q"));
        listed.lines().any(|line| line.split_whitespace().nth(1) == Some(id) && line.starts_with("0x"))
    };
    assert!(has("hello-tls"));
    me.shows("hello-tls-shared", "2/2 Running 0");
    assert!(!has("hello-tls-shared"));
    let shared = me.prints("kubectl exec hello-tls-shared -c proxy -- ps -e -o args=");
    assert!(shared.contains("/barque hello") && shared.contains("/barque demo proxy"), "{shared}");
}

/// A5-33 to A5-35, A5-37, KIA-APP-007, KIA-APP-008, KIA-INIT-006, KIA-INIT-015.
fn init(me: &Reader<'_>) {
    // The book's nodes have the images of the main containers.
    let both = std::fs::read_to_string(me.path("hello-tls.yaml")).unwrap();
    for node in ["node-1", "node-2"] {
        let one = both
            .replace("name: hello-tls\nspec:\n", &format!("name: at-{node}\nspec:\n  nodeName: {node}\n"));
        std::fs::write(me.path("one.yaml"), one).unwrap();
        me.prints("kubectl apply -f one.yaml");
    }
    for pod in ["at-node-1", "at-node-2"] {
        me.shows(pod, "2/2 Running 0");
    }
    me.prints("kubectl apply -f hello-init.yaml -f hello-init-slow.yaml");
    // A5-35: a shell in an init container, for as long as that runs.
    me.shows("hello-init-slow", "0/2 Init:0/2 0");
    let log = || me.run("kubectl logs hello-init-slow -c warmup").stdout;
    me.soon("the init container", || log().starts_with(b"Warming up for 12 seconds\n").then_some(()));
    let (mut shell, mut keys) = me.terminal("kubectl exec -it hello-init-slow -c warmup -- sh");
    keys.write_all(b"hostname; echo in-$((40+2))\r").unwrap();
    shell.await_text("in-42");
    shell.await_text("hello-init-slow");
    // A5-33
    me.shows("hello-init", "2/2 Running 0");
    let wanted =
        ["0/2 Pending 0", "0/2 Init:0/2 0", "0/2 Init:1/2 0", "0/2 PodInitializing 0", "2/2 Running 0"];
    let rows = me.rows("hello-init");
    assert!(
        wanted.starts_with(&[rows[0].as_str()]) && rows.iter().all(|row| wanted.contains(&row.as_str())),
        "{rows:?}"
    );
    assert_eq!(rows, wanted);
    let each = ["Pulling", "Pulled", "Created", "Started"];
    let told = || me.told("hello-init").into_iter().map(|told| told.message).collect::<Vec<String>>();
    let starts = || {
        let told = told().into_iter().filter(|message| message.starts_with("Started container"));
        told.map(|message| message.rsplit(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // Events come by a way of their own, after the status at times.
    me.soon("every start is told", || (starts().len() == 4).then_some(()));
    assert_eq!(starts(), ["warmup", "netcheck", "hello", "proxy"]);
    let reasons = me.reasons("hello-init");
    assert_eq!(reasons[..9], [&["Scheduled"][..], &each, &each].concat());
    let told = told();
    for (pulled, created) in [("lab/hello:1.0", "hello"), ("lab/tlsproxy:1.0", "proxy")] {
        let at = told.iter().position(|message| *message == format!("Created container {created}")).unwrap();
        assert!(told[at - 1].contains(pulled) && reasons[at - 1] == "Pulled", "{told:?}");
    }
    // A5-34
    let log = me.prints("kubectl logs hello-init -c netcheck");
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines[0].starts_with("Checking network connectivity to 10."), "{log}");
    assert_eq!(lines[1], "Host appears to be reachable");
    assert!(me.prints("kubectl logs hello-init -c warmup").ends_with("Warm\n"), "still there after the end");
    // A5-35: the end takes the shell with it, and afterwards there is none to be had.
    assert_ne!(shell.ended(), Some(0), "{}", shell.text());
    me.shows("hello-init-slow", "2/2 Running 0");
    let refused = me.refuses("kubectl exec hello-init-slow -c warmup -- true");
    assert!(refused.contains("container not found (\"warmup\")"), "{refused}");
    // A5-37
    let deleted = me.prints("kubectl delete po hello-init hello-init-slow --grace-period=1");
    assert_eq!(deleted, "pod \"hello-init\" deleted\npod \"hello-init-slow\" deleted\n");
}

/// A5-36 to A5-40.
fn delete(me: &Reader<'_>) {
    let (hello, tls) = ("pod \"hello\" deleted\n", "pod \"hello-tls\" deleted\n");
    me.prints("kubectl apply -f hello.yaml");
    me.shows("hello", "1/1 Running 0");
    let first = me.pod("hello");
    // A5-36: without waiting, it is there for a while yet.
    assert_eq!(me.prints("kubectl delete po hello --wait=false --grace-period=3"), hello);
    assert!(me.prints("kubectl get po hello").contains("1/1     Terminating   0"));
    me.soon("the end", || {
        me.run("kubectl get po hello").stderr.starts_with(b"Error from server").then_some(())
    });
    // A5-38: by file; of several documents and kinds.
    me.prints("kubectl apply -f hello-tls.yaml");
    assert_eq!(me.prints("kubectl delete -f hello-tls.yaml --grace-period=1"), tls);
    let several = ["hello.yaml", "settings.yaml"].map(|file| std::fs::read_to_string(me.path(file)).unwrap());
    std::fs::write(me.path("app.yaml"), several.join("---\n")).unwrap();
    assert_eq!(me.prints("kubectl apply -f app.yaml"), "pod/hello created\nconfigmap/settings created\n");
    assert_eq!(
        me.prints("kubectl delete -f app.yaml --grace-period=1"),
        format!("{hello}configmap \"settings\" deleted\n")
    );
    // AX-14: a pod of the same name is another one.
    me.prints("kubectl apply -f hello.yaml");
    me.shows("hello", "1/1 Running 0");
    let second = me.pod("hello");
    assert_ne!(second["metadata"]["uid"], first["metadata"]["uid"]);
    assert_ne!(second["status"]["podIP"], first["status"]["podIP"]);
    // KIA-CLI-045
    assert_eq!(me.prints("kubectl delete po --all --grace-period=1"), hello);
    // A5-39
    assert_eq!(
        me.prints("kubectl apply -f hello.yaml,hello-tls.yaml"),
        "pod/hello created\npod/hello-tls created\n"
    );
    let gone = me.prints("kubectl delete -f hello.yaml,hello-tls.yaml --grace-period=1");
    assert_eq!(gone, format!("{hello}{tls}"));
    // A5-40: manifests only, and what is further down only if asked.
    std::fs::create_dir_all(me.path("DIR/below")).unwrap();
    for (from, to) in [("hello.yaml", "DIR/hello.yaml"), ("hello-tls.yaml", "DIR/below/hello-tls.yml")] {
        std::fs::copy(me.path(from), me.path(to)).unwrap();
    }
    std::fs::write(me.path("DIR/notes.txt"), "no manifest").unwrap();
    assert_eq!(me.prints("kubectl apply -f DIR/"), "pod/hello created\n");
    assert_eq!(me.prints("kubectl delete -f DIR/ --grace-period=1"), hello);
    assert_eq!(me.prints("kubectl apply -f DIR/ --recursive"), "pod/hello-tls created\npod/hello created\n");
    assert_eq!(me.prints("kubectl delete -f DIR/ --recursive --grace-period=1"), format!("{tls}{hello}"));
    eventually(|| me.prints("kubectl get po --no-headers --ignore-not-found").is_empty().then_some(()));
}
