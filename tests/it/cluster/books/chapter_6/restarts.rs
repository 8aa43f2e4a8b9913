//! What a pod's status says, and containers that are started again.

use serde_json::Value;

use crate::cluster::books::reader::Reader;

/// The time between two instants of the API, in seconds.
pub(super) fn between(from: &Value, to: &Value) -> i64 {
    let seconds = |value: &Value| {
        let text = value.as_str().unwrap_or_else(|| panic!("a time: {value}"));
        let part = |range: std::ops::Range<usize>| text[range].parse::<i64>().unwrap();
        (part(8..10) * 24 + part(11..13)) * 3600 + part(14..16) * 60 + part(17..19)
    };
    seconds(to) - seconds(from)
}

/// A6-01 to A6-05, KIA-POD-015, KIA-POD-024.
pub(super) fn status(me: &Reader<'_>) {
    me.prints("kubectl apply -f hello.yaml -f hello-init.yaml -f exits.yaml");
    // A6-01
    me.shows("hello", "1/1 Running 0");
    assert_eq!(me.prints("kubectl get po hello -o jsonpath={.status.phase}"), "Running");
    let described = me.prints("kubectl describe po hello");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(described.lines().any(|line| words(line) == "Status: Running"), "{described}");
    // A6-02
    let conditions = described.lines().skip_while(|line| !line.starts_with("Conditions:")).skip(1);
    let rows: Vec<String> = conditions.take_while(|line| line.starts_with(' ')).map(words).collect();
    assert_eq!(rows[0], "Type Status");
    let four = ["Initialized True", "Ready True", "ContainersReady True", "PodScheduled True"];
    assert_eq!(
        rows.iter().filter(|row| four.contains(&row.as_str())).collect::<Vec<_>>(),
        four,
        "{described}"
    );
    // A6-03
    let pod = me.pod("hello");
    for name in ["Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        let all = pod["status"]["conditions"].as_array().unwrap();
        let one = all.iter().find(|condition| condition["type"] == name).unwrap();
        assert_eq!((one.get("lastProbeTime"), &one["status"]), (Some(&Value::Null), &"True".into()), "{one}");
        assert!(one["lastTransitionTime"].is_string() && one.get("reason").is_none(), "{one}");
    }
    // A6-04
    let container: Vec<String> = described
        .lines()
        .skip_while(|line| !line.starts_with("Containers:"))
        .take_while(|line| !line.starts_with("Conditions:"))
        .map(words)
        .collect();
    for line in [
        "hello:",
        "Image: lab/hello:1.0",
        "Port: 8080/TCP",
        "Host Port: 0/TCP",
        "State: Running",
        "Ready: True",
        "Restart Count: 0",
        "Environment: <none>",
        "Mounts:",
    ] {
        assert!(container.iter().any(|found| found == line), "{line:?} in {container:#?}");
    }
    for (start, within) in [("Container ID: ", "://"), ("Image ID: ", "@sha256:"), ("Started: ", "20")] {
        assert!(
            container.iter().any(|found| found.starts_with(start) && found.contains(within)),
            "{container:#?}"
        );
    }
    // A6-05
    let one = &pod["status"]["containerStatuses"][0];
    for key in ["containerID", "image", "imageID", "lastState", "name", "ready", "restartCount", "state"] {
        assert!(one.get(key).is_some(), "{key} in {one:#}");
    }
    assert!(one["state"]["running"]["startedAt"].is_string() && one["restartCount"] == 0, "{one:#}");
    ends_and_inits(me);
}

/// A6-06, A6-09, A6-11.
fn ends_and_inits(me: &Reader<'_>) {
    // A6-09 and AX-20: nothing is started again, and the codes are exact.
    me.soon("three containers at their end", || {
        let statuses = me.pod("exits")["status"]["containerStatuses"].clone();
        let codes = |name: &str| {
            let one = statuses.as_array()?.iter().find(|status| status["name"] == name)?;
            one["state"]["terminated"]["exitCode"].as_i64()
        };
        ([codes("well"), codes("ill"), codes("killed"), codes("hello")]
            == [Some(0), Some(1), Some(137), None])
        .then_some(())
    });
    assert_eq!(me.pod("exits")["status"]["phase"], "Running", "one of four still runs");
    // A6-06
    me.shows("hello-init", "2/2 Running 0");
    let status = me.pod("hello-init")["status"].clone();
    let inits = status["initContainerStatuses"].as_array().unwrap();
    assert!(
        inits.len() == 2 && inits.iter().all(|init| init["state"]["terminated"]["exitCode"] == 0),
        "{status:#}"
    );
    assert_eq!(status["containerStatuses"].as_array().unwrap().len(), 2);
    // A6-11: a container's restart is not an init container's.
    me.run("kubectl exec hello-init -c proxy -- bash -c 'kill -TERM 1'");
    me.shows("hello-init", "2/2 Running 1");
    let after = me.pod("hello-init")["status"]["initContainerStatuses"].clone();
    assert_eq!(after, status["initContainerStatuses"]);
}

/// A6-07, A6-10.
pub(super) fn restart(me: &Reader<'_>) {
    me.prints("kubectl apply -f hello-tls.yaml -f hello-tls-shared.yaml");
    me.shows("hello-tls", "2/2 Running 0");
    let (mut forward, [tls, admin]) = me.forward("hello-tls", [8443, 9901]);
    me.prints("kubectl exec hello-tls -c proxy -- touch /written");
    let [hello, proxy] = ["hello", "proxy"].map(|name| me.container("hello-tls", name));
    let events = me.reasons("hello-tls").len();
    // A6-07
    assert_eq!(me.curl(&format!("-X POST http://localhost:{admin}/quitquitquit")), "OK\n");
    me.shows("hello-tls", "2/2 Running 1");
    let rows = me.rows("hello-tls");
    assert_eq!(rows[rows.len() - 3..], ["2/2 Running 0", "1/2 NotReady 0", "2/2 Running 1"], "{rows:?}");
    me.soon("the events", || (me.reasons("hello-tls").len() == events + 3).then_some(()));
    let told = me.told("hello-tls").split_off(events);
    assert_eq!(told[0].message, "Container image \"lab/tlsproxy:1.0\" already present on machine");
    assert_eq!(
        [&*told[1].message, &*told[2].message],
        ["Created container proxy", "Started container proxy"]
    );
    me.soon("https", || me.run(&format!("curl -sk https://localhost:{tls}")).status.success().then_some(()));
    let [hello_after, proxy_after] = ["hello", "proxy"].map(|name| me.container("hello-tls", name));
    assert_eq!(hello_after["state"], hello["state"], "hello goes on");
    assert_ne!(proxy_after["containerID"], proxy["containerID"]);
    assert_eq!(proxy_after["lastState"]["terminated"]["reason"], "Completed");
    me.refuses("kubectl exec hello-tls -c proxy -- ls /written");
    forward.interrupt();
    forward.ended();
    // A6-10: nothing from inside kills process 1; the node does.
    me.prints("kubectl exec hello-tls -c hello -- bash -c 'kill -9 1'");
    me.prints("kubectl exec hello-tls -c hello -- bash -c 'kill -TERM 1'");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(me.container("hello-tls", "hello")["restartCount"], 0);
    let address = me.pod("hello-tls")["status"]["podIP"].as_str().unwrap().to_owned();
    let pid = crate::cluster::first_pod::container_pid(&address).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let after = me.soon("the restart", || {
        Some(me.container("hello-tls", "hello")).filter(|status| status["restartCount"] == 1)
    });
    let last = &after["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&137.into(), &"Error".into()), "{after:#}");
    // AX-20: where it is not process 1, TERM ends a program that does not handle it.
    me.shows("hello-tls-shared", "2/2 Running 0");
    let processes = me.prints("kubectl exec hello-tls-shared -c proxy -- ps -e -o pid=,args=");
    let hello = processes.lines().find(|line| line.contains("/barque hello")).unwrap();
    let pid = hello.split_whitespace().next().unwrap();
    me.prints(&format!("kubectl exec hello-tls-shared -c proxy -- bash -c 'kill -TERM {pid}'"));
    let code = me.soon("the end", || {
        let code = me.container("hello-tls-shared", "hello")["lastState"]["terminated"]["exitCode"].clone();
        code.is_number().then_some(code)
    });
    assert_eq!(code, 143);
}

/// A6-08: the waits between end and restart, of which the first three fit in here.
pub(super) fn back_off(me: &Reader<'_>) {
    me.prints("kubectl apply -f hello-tls.yaml");
    me.shows("hello-tls", "2/2 Running 0");
    for (count, wanted) in [(1, 0), (2, 10), (3, 20)] {
        me.soon("the admin interface", || {
            let ready = "kubectl exec hello-tls -c proxy -- curl -s localhost:9901/ready";
            (me.run(ready).stdout == b"LIVE\n").then_some(())
        });
        // Asked once: who asks may end with the container, before it has shown the answer.
        me.run("kubectl exec hello-tls -c proxy -- curl -s -X POST localhost:9901/quitquitquit");
        if count == 3 {
            let waits = me.soon("the wait", || {
                let waiting = me.container("hello-tls", "proxy")["state"]["waiting"].clone();
                (waiting["reason"] == "CrashLoopBackOff").then_some(waiting)
            });
            let message = waits["message"].as_str().unwrap();
            assert!(
                message.starts_with("back-off 20s restarting failed container=proxy pod=hello-tls_"),
                "{message}"
            );
            // The book's own run shows either of these, though the container ended well.
            me.soon("the status", || {
                let row = me.rows("hello-tls").pop()?;
                ["1/2 NotReady 2", "1/2 CrashLoopBackOff 2"].contains(&row.as_str()).then_some(())
            });
        }
        me.shows("hello-tls", &format!("2/2 Running {count}"));
        let proxy = me.container("hello-tls", "proxy");
        let waited =
            between(&proxy["lastState"]["terminated"]["finishedAt"], &proxy["state"]["running"]["startedAt"]);
        assert!((wanted - 1..=wanted + 5).contains(&waited), "restart {count} after {waited} s");
    }
    assert!(me.told("hello-tls").iter().any(|told| told.warning && told.reason == "BackOff"));
    assert_eq!(me.container("hello-tls", "hello")["restartCount"], 0);
}
