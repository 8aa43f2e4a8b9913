//! Pull policies, init containers that fail, containers that cannot be started.

use serde_json::json;

use crate::cluster::books::reader::Reader;

/// A6-31, with a registry of its own that goes away.
pub(super) fn pull_policies(me: &Reader<'_>) {
    let (book, registry) = (me.book, &me.book.second);
    let host = registry.address.to_string();
    let image = |name: &str, says: &str| {
        let script = format!("echo {says}; trap 'exit 0' TERM; while true; do sleep 0.1; done");
        registry.put(name, &book.layers, json!({"Cmd": ["bash", "-c", script]}));
    };
    for tag in ["team/app:1.0", "team/app:latest", "team/app:2.0"] {
        image(tag, "old");
    }
    let run = |name: &str, tag: &str, policy: &str| {
        let policy = if policy.is_empty() { String::new() } else { format!("--image-pull-policy={policy}") };
        me.prints(format!("kubectl run {name} --image={host}/team/app{tag} {policy}").trim_end());
    };
    let manifest = |name: &str, policy: &str| {
        assert_eq!(me.pod(name)["spec"]["containers"][0]["imagePullPolicy"], policy, "{name}");
    };
    run("untagged", "", "");
    run("tagged", ":1.0", "");
    manifest("untagged", "Always");
    manifest("tagged", "IfNotPresent");
    run("always", ":1.0", "Always");
    run("never", ":2.0", "Never");
    for pod in ["untagged", "tagged", "always"] {
        me.shows(pod, "1/1 Running 0");
    }
    me.shows("never", "0/1 ErrImageNeverPull 0");
    // New content under the same tag: seen by who asks at each start.
    image("team/app:1.0", "new");
    let restart = |pod: &str| me.run(&format!("kubectl exec {pod} -- bash -c 'kill -TERM 1'"));
    restart("tagged");
    me.shows("tagged", "1/1 Running 1");
    restart("always");
    me.shows("always", "1/1 Running 1");
    let says = |pod: &str| {
        me.soon("its word", || Some(me.prints(&format!("kubectl logs {pod}"))).filter(|log| !log.is_empty()))
    };
    assert_eq!([says("always"), says("tagged")], ["new\n", "old\n"]);
    // Without the registry: who must ask does not start, though the image is there; who need not does.
    registry.away(true);
    restart("always");
    me.soon("the refusal", || {
        let last = me.rows("always").pop()?;
        ["ErrImagePull", "ImagePullBackOff"].iter().any(|word| last.contains(word)).then_some(())
    });
    run("kept", ":1.0", "IfNotPresent");
    me.shows("kept", "1/1 Running 0");
    registry.away(false);
    me.soon("its return", || {
        let last = me.rows("always").pop()?;
        last.starts_with("1/1 Running").then_some(())
    });
}

/// A6-32, A6-34, AX-19.
pub(super) fn order(me: &Reader<'_>) {
    let host = me.book.second.address.to_string();
    me.fill("one-unpullable.yaml", "PLACE", &host);
    me.prints("kubectl apply -f init-fail-nr.yaml -f init-fail.yaml -f one-unpullable.yaml -f network.yaml");
    me.prints("kubectl apply -f supervisor.yaml");
    // A6-34
    me.soon("one of two", || {
        let last = me.rows("one-unpullable").pop()?;
        ["1/2 ErrImagePull 0", "1/2 ImagePullBackOff 0"].contains(&last.as_str()).then_some(())
    });
    me.tells("one-unpullable", "Failed", &format!("Failed to pull image \"{host}/absent:1.0\""));
    // A6-32: once, or again and again.
    me.shows("quote-init-fail-nr", "0/1 Init:Error 0");
    assert!(me.container("quote-init-fail-nr", "nginx")["state"]["waiting"].is_object());
    me.soon("the back-off", || {
        me.rows("quote-init-fail")
            .iter()
            .any(|row| row.starts_with("0/1 Init:CrashLoopBackOff"))
            .then_some(())
    });
    assert!(me.told("quote-init-fail").iter().all(|told| told.message != "Created container nginx"));
    // J25: what a supervisor restarts inside is not seen from outside.
    me.shows("supervisor", "1/1 Running 0");
    let children = || me.prints("kubectl exec supervisor -- ps -e -o pid=,args=");
    let child = |name: &str| -> Option<String> {
        let all = children();
        let line = all.lines().find(|line| line.ends_with(name))?;
        line.split_whitespace().next().map(str::to_owned)
    };
    let (one, other) = (child("sleep 1001").unwrap(), child("sleep 1002").unwrap());
    me.prints(&format!("kubectl exec supervisor -- bash -c 'kill -9 {one}'"));
    me.soon("another child", || child("sleep 1001").filter(|pid| *pid != one));
    assert_eq!(child("sleep 1002"), Some(other));
    assert_eq!(me.container("supervisor", "sh")["restartCount"], 0);
    // AX-19, KIA-NET-006: what an init container does to the network stays; its files do not.
    me.shows("network", "1/1 Running 0");
    let route = me.prints("kubectl exec network -- ip route show 203.0.113.0/24");
    assert!(route.starts_with("203.0.113.0/24 dev eth0"), "{route}");
    me.refuses("kubectl exec network -- ls /of-init");
    let told: Vec<String> = me.told("network").into_iter().map(|told| told.message).collect();
    let at = |text: &str| told.iter().position(|message| message.starts_with(text));
    assert!(at("Started container routes") < at("Created container hello"), "{told:?}");
    assert_eq!(me.rows("quote-init-fail-nr").last().unwrap(), "0/1 Init:Error 0");
}
