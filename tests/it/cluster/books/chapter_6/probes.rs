//! Liveness and startup probes.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::restarts::between;
use crate::cluster::books::reader::Reader;

/// A6-12 to A6-18, KIA-PRB-006, KIA-PRB-012, KIA-APP-005, KIA-APP-006.
pub(super) fn liveness(me: &Reader<'_>) {
    me.prints("kubectl apply -f hello-live.yaml -f live-defaults.yaml");
    me.shows("hello-live", "2/2 Running 0");
    let hello = me.pod("hello-live")["spec"]["containers"][0]["livenessProbe"].clone();
    let defaults =
        ["periodSeconds", "timeoutSeconds", "failureThreshold"].map(|key| hello[key].as_i64().unwrap());
    assert_eq!(defaults, [10, 1, 3]);
    let (mut forward, [admin]) = me.forward("hello-live", [9901]);
    let began = Instant::now();
    // A6-13: the second container's probe has its own start and period.
    let log = me.live("kubectl exec hello-live -c proxy -- tail -f /var/log/envoy.admin.log");
    let asked = |text: String| text.matches("\"GET /ready\" 200").count();
    me.soon("two probes", || (asked(log.text()) >= 2).then_some(()));
    assert!(began.elapsed() >= Duration::from_secs(12), "the first after 10 s, the second after 15 s");
    // A6-12: the first container's, every 10 s from its own start, from the node.
    let logs = me.prints("kubectl logs hello-live -c hello --timestamps");
    let times: Vec<&str> = logs.lines().filter(|line| line.contains("Received request for / ")).collect();
    assert!((1..=3).contains(&times.len()), "{logs}");
    assert!(times.iter().all(|line| line.contains("from ::ffff:10.")), "{logs}");
    // A6-14: one failure is told and nothing more.
    let post = |path: &str| {
        assert_eq!(me.curl(&format!("-X POST localhost:{admin}/healthcheck/{path}")), "OK\n");
    };
    post("fail");
    let told = me.tells("hello-live", "Unhealthy", "Liveness probe failed");
    assert!(told.warning);
    assert_eq!(told.message, "Liveness probe failed: HTTP probe failed with code 503");
    post("ok");
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(me.rows("hello-live").last().unwrap(), "2/2 Running 0");
    // A6-15: three in a row.
    post("fail");
    let failing = Instant::now();
    me.tells("hello-live", "Killing", "Container proxy failed liveness probe, will be restarted");
    let took = failing.elapsed().as_secs_f32();
    assert!((9.0..18.0).contains(&took), "three failures 5 s apart: {took}");
    // A6-16
    me.shows("hello-live", "2/2 Running 1");
    let reasons = me.soon("the restart's events", || {
        let reasons = me.reasons("hello-live");
        let killing = reasons.iter().position(|reason| reason == "Killing")?;
        (reasons.len() >= killing + 4).then(|| reasons[killing..killing + 4].to_vec())
    });
    assert_eq!(reasons, ["Killing", "Pulled", "Created", "Started"]);
    // A6-17
    let proxy = me.container("hello-live", "proxy");
    let last = &proxy["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&"Completed".into(), &0.into()), "{proxy:#}");
    let described = me.prints("kubectl describe po hello-live");
    let words: Vec<String> =
        described.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in ["Last State: Terminated", "Reason: Completed", "Exit Code: 0", "Restart Count: 1"] {
        assert!(words.iter().any(|found| found == line), "{line:?} in {described}");
    }
    // A6-18
    let previous = me.prints("kubectl logs hello-live -c proxy -p");
    assert!(previous.ends_with("caught SIGTERM\nshutting down\n"), "{previous}");
    forward.interrupt();
    forward.ended();
    let (mut forward, [admin]) = me.forward("hello-live", [9901]);
    assert_eq!(me.curl(&format!("localhost:{admin}/ready")), "LIVE\n");
    forward.interrupt();
    forward.ended();
    silent_app(me);
}

/// KIA-PRB-006.
fn silent_app(me: &Reader<'_>) {
    // With the defaults an app has between 20 and 30 s to begin answering.
    let silent = me.soon("its end", || {
        Some(me.container("live-defaults", "silent")["lastState"]["terminated"].clone())
            .filter(Value::is_object)
    });
    let lived = between(&silent["startedAt"], &silent["finishedAt"]);
    assert!((19..=33).contains(&lived), "{lived} s");
}

/// A6-19, A6-20, AX-22, in a tenth of the book's time.
pub(super) fn kinds(me: &Reader<'_>) {
    me.prints("kubectl apply -f live-tcp.yaml -f live-exec.yaml -f start.yaml");
    // A6-19: the first failure is enough; who answers stays. Who ignores TERM is killed after the grace period.
    let told = me.tells("live-tcp", "Unhealthy", "Liveness probe failed: dial tcp ");
    assert!(told.message.contains(":1234: connect: connection refused"), "{told:?}");
    me.tells("live-tcp", "Killing", "Container hello failed liveness probe, will be restarted");
    let restarted = |pod: &str, name: &str| {
        me.soon(&format!("a restart of {name}"), || {
            let status = me.container(pod, name);
            Some(status["lastState"]["terminated"]["exitCode"].clone()).filter(|code| !code.is_null())
        })
    };
    assert_eq!(restarted("live-tcp", "hello"), 137);
    assert_eq!(restarted("live-exec", "ill"), 0);
    assert_eq!(restarted("live-exec", "hanging"), 0);
    me.tells("live-exec", "Unhealthy", "Liveness probe failed");
    for pod in ["live-tcp", "live-exec"] {
        assert_eq!(me.container(pod, "fine")["restartCount"], 0, "{pod}");
    }
    // AX-22: a probe's command is in the container's own cgroup, and what it uses counts there.
    // The next probe empties the file before it writes.
    let written = || me.prints("kubectl exec live-exec -c fine -- cat /tmp/cgroup-of-the-probe");
    let probe = me.soon("the probe's group", || Some(written()).filter(|text| !text.is_empty()));
    assert_eq!(probe, me.prints("kubectl exec live-exec -c fine -- cat /proc/1/cgroup"));
    me.prints("kubectl delete po live-tcp live-exec --wait=false");
    // A6-20: late is not too late; never is.
    me.tells("start", "Unhealthy", "Startup probe failed");
    let late = me
        .soon("the late one", || Some(me.container("start", "late")).filter(|late| late["started"] == true));
    assert_eq!(late["restartCount"], 0);
    me.tells("start", "Killing", "Container never failed startup probe, will be restarted");
    assert_eq!(me.container("start", "by-command")["started"], true);
    // Liveness takes over: its first request came after the first answer, and now that it fails the end is near.
    let log = me.prints("kubectl logs start -c late");
    let asks: Vec<&str> = log.lines().filter(|line| line.contains("\"GET ")).collect();
    assert!(asks[0].contains("\"GET / \"") || asks[0].contains("\"GET /\" 200"), "{log}");
    assert!(asks[1..].iter().all(|line| line.contains("\"GET /live\" 200")), "{log}");
    me.prints("kubectl exec start -c late -- rm /usr/share/nginx/html/live");
    let ill = Instant::now();
    me.tells("start", "Killing", "Container late failed liveness probe, will be restarted");
    assert!(ill.elapsed() < Duration::from_secs(8), "{:?}", ill.elapsed());
}
