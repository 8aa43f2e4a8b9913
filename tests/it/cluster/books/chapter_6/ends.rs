//! Pre-stop hooks, TERM, and the grace period.

use std::time::{Duration, Instant};

use crate::cluster::books::reader::Reader;

/// A6-28 to A6-30, A6-33, KIA-APP-011.
pub(super) fn pre_stop(me: &Reader<'_>) {
    let files =
        ["quote-prestop", "prestop-fail", "prestop-two", "shells"].map(|name| format!("-f {name}.yaml"));
    me.prints(&format!("kubectl apply {}", files.join(" ")));
    for pod in ["prestop-fail", "shell-form", "exec-form", "quote-prestop"] {
        me.shows(pod, "1/1 Running 0");
    }
    me.shows("prestop-two", "2/2 Running 0");
    // A6-28: the download that has begun comes to its end.
    let (mut forward, [port]) = me.forward("quote-prestop", [80]);
    let ip = me.pod("quote-prestop")["status"]["podIP"].as_str().unwrap().to_owned();
    let node = me.book.lab.cluster.pid("node-1").unwrap();
    let slow =
        format!("nsenter -t {node} -n curl -s --max-time 50 --limit-rate 8M -o large http://{ip}/large");
    let mut download = me.command(&slow).spawn().unwrap();
    me.soon("the beginning", || (std::fs::metadata(me.path("large")).ok()?.len() > 0).then_some(()));
    me.prints("kubectl delete po quote-prestop --wait=false");
    std::thread::sleep(Duration::from_secs(1));
    assert!(!me.run(&format!("curl -sf localhost:{port}")).status.success(), "nobody else is let in");
    assert!(download.wait().unwrap().success(), "the download is whole");
    assert_eq!(std::fs::metadata(me.path("large")).unwrap().len(), 40_000_000);
    me.soon("the end", || (!me.run("kubectl get po quote-prestop").status.success()).then_some(()));
    forward.interrupt();
    forward.ended();
    // A6-29: a hook that fails is told and holds nothing up.
    let took = me.delete("kubectl delete po prestop-fail");
    assert!(took < Duration::from_secs(6), "{took:?}");
    let told = me.tells("prestop-fail", "FailedPreStopHook", "exited with 7");
    assert!(told.warning && told.message.contains("not today"), "{told:?}");
    // A6-33: hooks run at the same time. No probe asks any more while they do.
    let follow = me.live("kubectl logs prestop-two -c one -f");
    follow.await_text("Received request for /");
    let count = || follow.text().matches("Received request").count();
    let began = Instant::now();
    me.prints("kubectl delete po prestop-two --wait=false");
    std::thread::sleep(Duration::from_millis(1500));
    let asked = count();
    me.soon("the end", || (!me.run("kubectl get po prestop-two").status.success()).then_some(()));
    let took = began.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(9)).contains(&took), "{took:?}");
    assert_eq!(count(), asked, "a probe came after the end had begun");
    // A6-30
    let took = me.delete("kubectl delete po exec-form");
    assert!(took < Duration::from_secs(4), "{took:?}");
    let took = me.delete("kubectl delete po shell-form");
    assert!((Duration::from_secs(5)..Duration::from_secs(10)).contains(&took), "{took:?}");
}

/// A6-36 to A6-41, KIA-APP-004.
pub(super) fn grace(me: &Reader<'_>) {
    let files =
        ["hello-tls", "hello-tls-short", "hello-tls-v11", "init-term"].map(|name| format!("-f {name}.yaml"));
    me.prints(&format!("kubectl apply {}", files.join(" ")));
    for pod in ["hello-tls", "hello-tls-short", "hello-tls-v11"] {
        me.shows(pod, "2/2 Running 0");
    }
    // A6-36: the default. The others meanwhile.
    let began = Instant::now();
    let hello = me.live("kubectl logs hello-tls -c hello -f");
    let proxy = me.live("kubectl logs hello-tls -c proxy -f");
    me.prints("kubectl delete po hello-tls --wait=false");
    let leaving = me.pod("hello-tls")["metadata"].clone();
    assert_eq!(leaving["deletionGracePeriodSeconds"], 30);
    assert!(leaving["deletionTimestamp"].is_string());
    // A6-39
    proxy.await_text("caught SIGTERM\nshutting down\n");
    // A6-40
    let last_words = me.live("kubectl logs hello-tls-v11 -c hello -f");
    last_words.await_text("Listening on port 8080");
    let took = me.delete("kubectl delete po hello-tls-v11");
    assert!(took < Duration::from_secs(6), "{took:?}");
    last_words.await_text("Received SIGTERM. Server shutting down...");
    // A6-37
    let took = me.delete("kubectl delete po hello-tls-short");
    assert!((Duration::from_secs(4)..Duration::from_secs(9)).contains(&took), "{took:?}");
    // A6-41
    me.shows("init-term", "0/1 Init:0/1 0");
    let took = me.delete("kubectl delete po init-term");
    assert!(took < Duration::from_secs(5), "{took:?}");
    // A6-38, on a pod like the first.
    std::fs::write(
        me.path("again.yaml"),
        std::fs::read_to_string(me.path("hello-tls.yaml"))
            .unwrap()
            .replace("name: hello-tls", "name: hello-tls-again"),
    )
    .unwrap();
    me.prints("kubectl apply -f again.yaml");
    me.shows("hello-tls-again", "2/2 Running 0");
    let shorter = Instant::now();
    me.prints("kubectl delete po hello-tls-again --grace-period 10 --wait=false");
    assert_eq!(me.pod("hello-tls-again")["metadata"]["deletionGracePeriodSeconds"], 10);
    me.soon("the end", || (!me.run("kubectl get po hello-tls-again").status.success()).then_some(()));
    let took = shorter.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(15)).contains(&took), "{took:?}");
    // A6-36: hello ignores TERM, so all of the grace period passes.
    me.soon("the end", || (!me.run("kubectl get po hello-tls").status.success()).then_some(()));
    let took = began.elapsed();
    assert!((Duration::from_secs(29)..Duration::from_secs(36)).contains(&took), "{took:?}");
    // A6-39: the one that ignores TERM says nothing.
    assert_eq!(hello.text().lines().last(), Some("Listening on port 8080"));
}
