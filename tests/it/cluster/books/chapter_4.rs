//! Chapters 3 and 4: nodes, explanations and events as kubectl shows them on a real cluster.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::reader::{Reader, Session};

/// The sessions of these chapters that need no deployments and services.
pub(super) const SESSIONS: &[Session] = &[("nodes", nodes), ("explain", explain), ("events", events)];

fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A3-18, A3-19, A4-02, A4-03, A4-08, A4-09, A4-11, KIA-NODE-005 to KIA-NODE-010, KIA-CLI-021, KIA-CLI-022.
fn nodes(me: &Reader<'_>) {
    // A3-18
    let listed = me.prints("kubectl get nodes");
    let rows: Vec<String> = listed.lines().map(words).collect();
    assert_eq!(rows[0], "NAME STATUS ROLES AGE VERSION");
    for (row, name) in rows[1..].iter().zip(["node-1", "node-2"]) {
        assert!(row.starts_with(&format!("{name} Ready <none> ")), "{listed}");
    }
    // A4-02, A4-03
    let yaml = me.prints("kubectl get node node-2 -o yaml");
    let top: Vec<&str> = yaml.lines().filter(|line| !line.starts_with([' ', '-'])).collect();
    assert_eq!(top, ["apiVersion: v1", "kind: Node", "metadata:", "spec:", "status:"]);
    let get = || -> Value { serde_json::from_str(&me.prints("kubectl get node node-2 -o json")).unwrap() };
    let node = get();
    for key in ["annotations", "creationTimestamp", "labels", "name", "resourceVersion", "uid"] {
        assert!(node["metadata"].get(key).is_some(), "{key} in {node:#}");
    }
    assert_eq!(node["spec"]["podCIDRs"], serde_json::json!([node["spec"]["podCIDR"]]));
    let kinds: Vec<&str> = node["status"]["addresses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|address| address["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["InternalIP", "Hostname"]);
    for list in ["capacity", "allocatable"] {
        let keys: Vec<&String> = node["status"][list].as_object().unwrap().keys().collect();
        for key in ["cpu", "ephemeral-storage", "hugepages-2Mi", "memory", "pods"] {
            assert!(keys.iter().any(|found| *found == key), "{key} in {list}: {keys:?}");
        }
        assert_eq!(node["status"][list]["pods"], "110");
    }
    assert_eq!(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    assert_eq!(node["status"]["nodeInfo"].as_object().unwrap().len(), 10, "{:#}", node["status"]["nodeInfo"]);
    assert!(
        node["status"]["images"][0]["names"].is_array() && node["status"]["images"][0]["sizeBytes"].is_u64()
    );
    // A4-08, A4-09: the heartbeat moves, the transition does not.
    let four = |node: &Value| -> Vec<[String; 4]> {
        let all = node["status"]["conditions"].as_array().unwrap();
        let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
        all.iter().map(|one| ["type", "status", "reason", "message"].map(|key| text(one, key))).collect()
    };
    let wanted = [
        ["MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"],
        ["DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
        ["PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"],
        ["Ready", "True", "KubeletReady", "kubelet is posting ready status"],
    ];
    assert_eq!(four(&node), wanted);
    describe(me, &node);
}

/// A4-11, A3-19.
fn describe(me: &Reader<'_>, node: &Value) {
    me.prints("kubectl run asks --image=lab/hello:1.1 --overrides={\"spec\":{\"nodeName\":\"node-2\",\"containers\":[{\"name\":\"asks\",\"image\":\"lab/hello:1.1\",\"resources\":{\"requests\":{\"cpu\":\"100m\",\"memory\":\"64Mi\"}}}]}}");
    me.shows("asks", "1/1 Running 0");
    let described = me.soon("the lease", || {
        Some(me.prints("kubectl describe node node-2")).filter(|text| text.contains("HolderIdentity:"))
    });
    let lines: Vec<String> = described.lines().map(words).collect();
    let sections = [
        "Name:",
        "Roles:",
        "Labels:",
        "Annotations:",
        "CreationTimestamp:",
        "Taints:",
        "Unschedulable:",
        "Lease:",
        "Conditions:",
        "Addresses:",
        "Capacity:",
        "Allocatable:",
        "System Info:",
        "PodCIDR:",
        "PodCIDRs:",
        "Non-terminated Pods:",
        "Allocated resources:",
        "Events:",
    ];
    let at: Vec<Option<usize>> =
        sections.iter().map(|section| lines.iter().position(|line| line.starts_with(section))).collect();
    assert!(at.iter().all(Option::is_some) && at.is_sorted(), "{at:?} in {described}");
    for line in ["Taints: <none>", "Unschedulable: false", "HolderIdentity: node-2"] {
        assert!(lines.iter().any(|found| found == line), "{line:?} in {described}");
    }
    let processors: f64 = node["status"]["allocatable"]["cpu"].as_str().unwrap().parse().unwrap();
    let percent = (10.0 / processors) as u64;
    let row = format!("{} asks 100m ({percent}%) 0 (0%) 64Mi (", me.namespace);
    assert!(lines.iter().any(|line| line.starts_with(&row)), "{row:?} in {described}");
    let all = me.prints("kubectl describe node");
    assert_eq!(
        all.lines()
            .filter(|line| line.starts_with("HolderIdentity") || line.contains("HolderIdentity:"))
            .count(),
        2
    );
}

/// A4-05 to A4-07, A4-15, A3-23, A3-30, A4-04.
fn explain(me: &Reader<'_>) {
    let has = |text: &str, lines: &[&str]| {
        for line in lines {
            assert!(text.lines().any(|found| words(found).starts_with(line)), "{line:?} in {text}");
        }
    };
    let nodes = me.prints("kubectl explain nodes");
    has(
        &nodes,
        &["KIND: Node", "VERSION: v1", "DESCRIPTION:", "FIELDS:", "apiVersion <string>", "kind <string>"],
    );
    has(&nodes, &["metadata <ObjectMeta>", "spec <NodeSpec>", "status <NodeStatus>"]);
    assert_eq!(me.prints("kubectl explain node"), nodes);
    has(&me.prints("kubectl explain node.spec"), &["FIELD: spec <NodeSpec>", "podCIDR <string>"]);
    has(&me.prints("kubectl explain --api-version=v1 nodes"), &["KIND: Node", "VERSION: v1"]);
    let tree = me.prints("kubectl explain pods --recursive");
    has(&tree, &["containers <[]Container>", "livenessProbe <Probe>", "httpGet <HTTPGetAction>"]);
    let explained = me.prints("kubectl explain events");
    has(&explained, &["type <string>", "reason <string>"]);
    assert!(
        !explained
            .lines()
            .any(|line| ["spec", "status"].iter().any(|word| words(line).starts_with(&format!("{word} <"))))
    );
    assert!(explained.contains("Normal, Warning"), "{explained}");
    let refused = me.refuses("kubectl get containers");
    assert_eq!(refused, "error: the server doesn't have a resource type \"containers\"\n");
    let resources = me.prints("kubectl api-resources");
    has(&resources, &["nodes no v1 false Node", "pods po v1 true Pod", "events ev v1 true Event"]);
    // A3-15: what the script of completion asks, and the scripts for both shells and for a shorter name.
    let completed = me.prints("kubectl __complete describe node node-");
    assert!(completed.starts_with("node-1\nnode-2\n"), "{completed}");
    for shell in ["bash", "zsh"] {
        assert!(me.prints(&format!("kubectl completion {shell}")).contains("__complete"), "{shell}");
    }
    me.prints("bash -c 'source <(kubectl completion bash | sed s/kubectl/k/g) && complete -p k'");
    // KIA-CLI-033
    me.prints("kubectl create secret generic elsewhere -n default --from-literal=a=b");
    assert!(me.refuses("kubectl get secret elsewhere").contains("not found"));
    assert!(me.prints("kubectl get secret elsewhere -n default").contains("Opaque"));
    assert!(me.prints("kubectl describe secret elsewhere -n default").contains("a:  1 bytes"));
    // A4-04
    let port = crate::cluster::forward::free_port();
    let mut proxy = me.live(&format!("kubectl proxy --port={port}"));
    proxy.await_text(&format!("Starting to serve on 127.0.0.1:{port}"));
    let node: Value =
        serde_json::from_str(&me.curl(&format!("http://127.0.0.1:{port}/api/v1/nodes/node-1"))).unwrap();
    assert_eq!((&node["kind"], &node["metadata"]["name"]), (&"Node".into(), &"node-1".into()));
    let direct = me.curl(&format!("-k https://127.0.0.1:{}/api/v1/nodes/node-1", me.book.lab.options.port));
    assert!(direct.contains("\"Unauthorized\"") || direct.contains("Forbidden"), "{direct}");
    proxy.interrupt();
    proxy.ended();
}

/// A4-13, A4-14, A4-16, A4-08's heartbeat.
fn events(me: &Reader<'_>) {
    let none = me.run("kubectl get ev --field-selector type=Warning");
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    assert_eq!(said, format!("No resources found in {} namespace.\n", me.namespace));
    let before = heartbeat(me);
    let began = Instant::now();
    me.prints("kubectl apply -f live-exec.yaml");
    me.tells("live-exec", "Unhealthy", "Liveness probe failed");
    let warnings = me.prints("kubectl get ev --field-selector type=Warning");
    assert!(warnings.lines().skip(1).all(|line| line.contains(" Warning ")), "{warnings}");
    assert!(me.prints("kubectl get ev --field-selector type=warning").is_empty());
    let wide = me.prints("kubectl get ev -o wide");
    let head = words(wide.lines().next().unwrap());
    assert_eq!(head, "LAST SEEN TYPE REASON OBJECT SUBOBJECT SOURCE MESSAGE FIRST SEEN COUNT NAME");
    assert!(wide.contains("spec.containers{ill}"), "{wide}");
    // A4-16
    let list: Value = serde_json::from_str(&me.prints("kubectl get ev -o json")).unwrap();
    let scheduled =
        list["items"].as_array().unwrap().iter().find(|event| event["reason"] == "Started").unwrap();
    let name = scheduled["metadata"]["name"].as_str().unwrap();
    let yaml = me.prints(&format!("kubectl get ev {name} -o yaml"));
    let keys: Vec<&str> = yaml
        .lines()
        .filter(|line| !line.starts_with(' '))
        .map(|line| line.split(':').next().unwrap())
        .collect();
    let wanted = [
        "apiVersion",
        "count",
        "eventTime",
        "firstTimestamp",
        "involvedObject",
        "kind",
        "lastTimestamp",
        "message",
        "metadata",
        "reason",
        "reportingComponent",
        "reportingInstance",
        "source",
        "type",
    ];
    assert_eq!(keys, wanted);
    assert!(yaml.contains("eventTime: null") && yaml.contains("component: kubelet"), "{yaml}");
    let (object, digits) = name.split_once('.').unwrap();
    assert!(
        object == "live-exec" && digits.len() == 16 && digits.chars().all(|c| c.is_ascii_hexdigit()),
        "{name}"
    );
    me.prints("kubectl delete -f live-exec.yaml --wait=false");
    // A4-08: the heartbeat's time moves, that of the last change does not.
    let after = me.soon("a heartbeat", || Some(heartbeat(me)).filter(|after| after[0] != before[0]));
    assert_eq!(after[1], before[1]);
    assert!(began.elapsed() < Duration::from_secs(60));
}

/// When node-1 was last heard of, and since when it has been Ready.
fn heartbeat(me: &Reader<'_>) -> [String; 2] {
    ["lastHeartbeatTime", "lastTransitionTime"]
        .map(|key| me.prints(&format!("kubectl get node node-1 -o jsonpath={{.status.conditions[3].{key}}}")))
}
