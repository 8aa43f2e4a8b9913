//! Post-start hooks.

use std::time::{Duration, Instant};

use crate::cluster::books::reader::Reader;

const COMMAND: &str = "sh -c echo 'Emulating a post-start hook failure'; exit 1";

/// A6-23 to A6-26, A6-35, AX-21, KIA-HOOK-004, KIA-APP-009.
pub(super) fn post_start(me: &Reader<'_>) {
    let all = ["quote-ps", "quote-ps-slow", "quote-ps-fail", "quote-ps-fail-nr"]
        .map(|name| format!("-f {name}.yaml"));
    me.prints(&format!("kubectl apply {}", all.join(" ")));
    // A6-24: while the hook runs the container is being created, though its process is there.
    me.shows("quote-ps-slow", "0/1 ContainerCreating 0");
    let processes = me.soon("the processes", || {
        let output = me.run("kubectl exec quote-ps-slow -- ps x -o args");
        Some(String::from_utf8(output.stdout).unwrap()).filter(|text| text.contains("sleep 12\n"))
    });
    for process in ["/barque demo web", "sh -c sleep 12 && apk add", "ps x"] {
        assert!(processes.contains(process), "{process:?} in {processes}");
    }
    let waiting = "container \"nginx\" in pod \"quote-ps-slow\" is waiting to start: ContainerCreating";
    let refused = me.refuses("kubectl logs quote-ps-slow");
    assert_eq!(refused, format!("Error from server (BadRequest): {waiting}\n"));
    let refused = me.refuses("kubectl port-forward quote-ps-slow 0:80");
    assert_eq!(refused, "error: unable to forward port because pod is not running. Current status=Pending\n");
    assert_eq!(me.pod("quote-ps-slow")["status"]["phase"], "Pending");
    // A6-23, A6-26
    me.shows("quote-ps", "1/1 Running 0");
    let (mut forward, [port]) = me.forward("quote-ps", [80]);
    let quote = me.curl(&format!("http://localhost:{port}/quote"));
    assert!(quote.contains("(No. "), "{quote}");
    assert_eq!(me.prints("kubectl exec quote-ps -- cat /usr/share/nginx/html/quote"), quote);
    forward.interrupt();
    forward.ended();
    // AX-21: what a hook that succeeds prints is nowhere.
    assert!(!me.prints("kubectl logs quote-ps").contains("installed fortune"));
    assert!(me.told("quote-ps").iter().all(|told| !told.message.contains("installed fortune")));
    // A6-25
    me.showed("quote-ps-fail", &format!("0/1 PostStartHookError: command '{COMMAND}' exited with 1: 0"));
    me.soon("the back-off", || {
        me.rows("quote-ps-fail").iter().any(|row| row.contains("CrashLoopBackOff")).then_some(())
    });
    let uid = me.pod("quote-ps-fail")["metadata"]["uid"].as_str().unwrap().to_owned();
    let told = me.tells("quote-ps-fail", "FailedPostStartHook", "Exec lifecycle hook");
    let wanted = format!(
        "Exec lifecycle hook ([{COMMAND}]) for Container \"nginx\" in Pod \"quote-ps-fail_{}({uid})\" failed - error: \
         command '{COMMAND}' exited with 1: , message: \"Emulating a post-start hook failure\\n\"",
        me.namespace
    );
    assert!(told.warning);
    assert_eq!(told.message, wanted);
    // A6-35
    me.shows("quote-ps-fail-nr", "0/1 Completed 0");
    // A6-24: the hook's end is the container's start.
    me.shows("quote-ps-slow", "1/1 Running 0");
    assert!(me.prints("kubectl logs quote-ps-slow").contains("serving /usr/share/nginx/html"));
}

/// A6-27, A6-33.
pub(super) fn warm_up(me: &Reader<'_>) {
    me.prints("kubectl apply -f warm-http.yaml -f warm-http-slow.yaml -f order.yaml");
    me.shows("order", "0/2 ContainerCreating 0");
    let began = Instant::now();
    // A6-27: from the node; what it answers does not matter, that it answers does.
    me.soon("the warm-up", || {
        let log = me.run("kubectl logs warm-http");
        String::from_utf8_lossy(&log.stdout).contains("\"GET /warmup\" 404").then_some(())
    });
    me.soon("the pod", || me.rows("warm-http").pop()?.starts_with("1/1 Running").then_some(()));
    me.tells("warm-http-slow", "FailedPostStartHook", "connection refused");
    me.soon("restarts without end", || {
        (me.container("warm-http-slow", "web")["restartCount"].as_i64()? >= 2).then_some(())
    });
    assert!(
        me.rows("warm-http-slow").iter().all(|row| !row.contains("Running")),
        "{:?}",
        me.rows("warm-http-slow")
    );
    // A6-33: the second container waits for the first one's hook.
    me.shows("order", "2/2 Running 0");
    assert!(began.elapsed() > Duration::from_secs(4), "{:?}", began.elapsed());
    let told: Vec<String> = me.told("order").into_iter().map(|told| told.message).collect();
    let created: Vec<&String> =
        told.iter().filter(|message| message.starts_with("Created container")).collect();
    assert_eq!(created, ["Created container first", "Created container second"]);
    let at = |name: &str| {
        me.container("order", name)["state"]["running"]["startedAt"].as_str().unwrap().to_owned()
    };
    assert!(at("first") < at("second"));
}
