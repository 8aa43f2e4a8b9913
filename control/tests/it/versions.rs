//! Built-in kinds in two versions: one storage, both shown.

use serde_json::{Value, json};

use crate::client::Client;
use crate::kubectl::with_each;
use crate::server::TestServer;

const CORE: &str = "/api/v1/namespaces/default/events";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const OLD: &str = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
const NEW: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";

fn core_event(name: &str) -> Value {
    json!({"metadata": {"name": name}, "involvedObject": {"kind": "Pod", "name": name, "namespace": "default"},
        "reason": "Started", "message": "it began", "type": "Normal", "count": 2,
        "source": {"component": "kubelet"}, "lastTimestamp": "2024-01-01T00:00:00Z"})
}

fn event(name: &str) -> Value {
    json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": name},
        "regarding": {"kind": "Pod", "name": name, "namespace": "default"}, "reason": "Started",
        "note": "it began", "type": "Normal", "action": "Starting", "reportingController": "example.com/test",
        "reportingInstance": "test-1", "eventTime": "2024-01-01T00:00:00.000001Z"})
}

#[tokio::test]
async fn an_event_is_one_object_in_both_groups() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let mut both =
        (client.watch(&format!("{CORE}?watch=1")).await, client.watch(&format!("{EVENTS}?watch=1")).await);
    let made = client.post(CORE, &core_event("a")).await.expect(201);
    let shown = client.get(&format!("{EVENTS}/a")).await.expect(200);
    assert_eq!(shown["apiVersion"], "events.k8s.io/v1");
    assert_eq!((&shown["regarding"]["name"], &shown["note"]), (&json!("a"), &json!("it began")));
    assert_eq!(shown["deprecatedCount"], 2);
    assert_eq!(shown["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(shown["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    client.post(EVENTS, &event("b")).await.expect(201);
    let stored = client.get(&format!("{CORE}/b")).await.expect(200);
    assert_eq!(
        (&stored["message"], &stored["reportingComponent"]),
        (&json!("it began"), &json!("example.com/test"))
    );
    assert!(stored.get("note").is_none());
    for (core, named) in [("a", "a"), ("b", "b")] {
        let (left, right) = (both.0.next().await.unwrap(), both.1.next().await.unwrap());
        assert_eq!(
            (&left["object"]["involvedObject"]["name"], &left["object"]["apiVersion"]),
            (&json!(core), &json!("v1"))
        );
        assert_eq!(
            (&right["object"]["regarding"]["name"], &right["object"]["apiVersion"]),
            (&json!(named), &json!("events.k8s.io/v1"))
        );
    }
    // Lists, selectors and tables speak the version's own words.
    let list = client.get(&format!("{EVENTS}?fieldSelector=regarding.name%3Da")).await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["kind"], "EventList");
    let (code, _, message) =
        client.get(&format!("{EVENTS}?fieldSelector=involvedObject.name%3Da")).await.status();
    assert_eq!((code, message.as_str()), (400, "field label not supported: involvedObject.name"));
    // A series goes on; the rest of an event stays as it was.
    let series = json!({"series": {"count": 2, "lastObservedTime": "2024-01-01T00:01:00.000000Z"}});
    let merge = "application/merge-patch+json";
    client.patch(&format!("{EVENTS}/b"), merge, &series).await.expect(200);
    assert_eq!(client.get(&format!("{CORE}/b")).await.expect(200)["series"]["count"], 2);
    let (code, _, message) =
        client.patch(&format!("{EVENTS}/b"), merge, &json!({"note": "other"})).await.status();
    assert_eq!(code, 422);
    assert!(message.contains("message: Invalid value: \"other\": field is immutable"), "{message}");
    let mut wrong = event("c");
    wrong["deprecatedCount"] = json!(3);
    wrong["eventTime"] = json!(null);
    let (_, _, message) = client.post(EVENTS, &wrong).await.status();
    assert!(
        message.contains("eventTime: Required value") && message.contains("count: Invalid value"),
        "{message}"
    );
    assert_eq!(client.post(CORE, &event("d")).await.code, 400, "the body is of another version");
    // What is deleted here is gone there.
    client.delete(&format!("{EVENTS}/a"), &Value::Null).await.expect(200);
    client.get(&format!("{CORE}/a")).await.expect(404);
    let protobuf = client.get_as(&format!("{EVENTS}/b"), "application/vnd.kubernetes.protobuf").await;
    let decoded = api::protobuf::decode(&protobuf.body).unwrap();
    assert_eq!((&decoded["apiVersion"], &decoded["note"]), (&json!("events.k8s.io/v1"), &json!("it began")));
}

#[tokio::test]
async fn an_autoscaler_keeps_what_its_old_version_does_not_know() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let old = json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 5, "targetCPUUtilizationPercentage": 70,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}});
    let made = client.post(OLD, &old).await.expect(201);
    assert_eq!(
        (&made["apiVersion"], &made["spec"]["targetCPUUtilizationPercentage"]),
        (&json!("autoscaling/v1"), &json!(70))
    );
    let mut new = client.get(&format!("{NEW}/a")).await.expect(200);
    assert_eq!(new["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 70);
    let memory = json!({"type": "Resource",
        "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}});
    new["spec"]["metrics"].as_array_mut().unwrap().push(memory.clone());
    client.put(&format!("{NEW}/a"), &new).await.expect(200);
    // A client of the old version that changes its field and writes back loses nothing.
    let mut old = client.get(&format!("{OLD}/a")).await.expect(200);
    old["spec"]["targetCPUUtilizationPercentage"] = json!(50);
    client.put(&format!("{OLD}/a"), &old).await.expect(200);
    let new = client.get(&format!("{NEW}/a")).await.expect(200);
    assert_eq!(new["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
    assert_eq!(new["spec"]["metrics"][1], memory);
    assert!(new["metadata"].get("annotations").is_none(), "{new}");
    // What the status says is nobody's business who writes the spec, in whichever version.
    let status = json!({"status": {"currentReplicas": 1, "desiredReplicas": 1, "conditions": [
        {"type": "AbleToScale", "status": "True"}], "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
        "current": {"averageUtilization": 7, "averageValue": "1m"}}}]}});
    let merge = "application/merge-patch+json";
    let noted = client.patch(&format!("{NEW}/a/status"), merge, &status).await.expect(200)["status"].clone();
    let mut old = client.get(&format!("{OLD}/a")).await.expect(200);
    assert_eq!(old["status"]["currentCPUUtilizationPercentage"], 7);
    let alpha = |note: &str| format!("autoscaling.alpha.kubernetes.io/{note}");
    assert!(old["metadata"]["annotations"][alpha("conditions")].as_str().unwrap().contains("AbleToScale"));
    old["metadata"]["annotations"][alpha("conditions")] =
        json!("[{\"type\":\"AbleToScale\",\"status\":\"False\"}]");
    old["metadata"]["annotations"][alpha("current-metrics")] = json!("[]");
    client.put(&format!("{OLD}/a"), &old).await.expect(200);
    assert_eq!(client.get(&format!("{NEW}/a")).await.json()["status"], noted);
    // Without the annotations nothing of the status is lost, and what they said of the spec is given up.
    let drop_all = json!({"metadata": {"annotations": null}});
    client.patch(&format!("{OLD}/a"), merge, &drop_all).await.expect(200);
    let new = client.get(&format!("{NEW}/a")).await.expect(200);
    assert_eq!(new["status"], noted);
    assert_eq!(new["spec"]["metrics"].as_array().map(Vec::len), Some(1));
    let (code, _, message) = client
        .post(
            OLD,
            &json!({"metadata": {"name": "b"}, "spec": {"maxReplicas": 0,
            "scaleTargetRef": {"kind": "Deployment", "name": "web"}}}),
        )
        .await
        .status();
    assert_eq!(code, 422);
    assert!(message.contains("spec.maxReplicas: Invalid value: 0"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_knows_both_versions() {
    with_each(async |kubectl, server| {
        let client = Client::admin(&server);
        client.post(CORE, &core_event("a")).await.expect(201);
        let resources = kubectl.ok("api-resources").await;
        assert!(resources.lines().any(|line| line.starts_with("events") && line.contains("events.k8s.io/v1")), "{resources}");
        let versions = kubectl.ok("api-versions").await;
        for version in ["events.k8s.io/v1", "autoscaling/v1", "autoscaling/v2"] {
            assert!(versions.lines().any(|line| line == version), "{versions}");
        }
        for resource in ["events", "events.v1.events.k8s.io", "events.events.k8s.io"] {
            let shown = kubectl.ok(&format!("get {resource}")).await;
            assert!(shown.contains("LAST SEEN") && shown.contains("pod/a") && shown.contains("it began"), "{shown}");
        }
        let explained = kubectl.ok("explain event.regarding --api-version=events.k8s.io/v1").await;
        assert!(explained.contains("fieldPath"), "{explained}");
        let explained = kubectl.ok("explain hpa.spec --api-version=autoscaling/v1").await;
        assert!(explained.contains("targetCPUUtilizationPercentage"), "{explained}");
        let explained = kubectl.ok("explain hpa.spec").await;
        assert!(explained.contains("metrics"), "v2 is preferred: {explained}");
        let manifest = kubectl.file("old.yaml", "apiVersion: autoscaling/v1\nkind: HorizontalPodAutoscaler\nmetadata: {name: web}\n\
            spec: {maxReplicas: 4, targetCPUUtilizationPercentage: 60, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}\n");
        kubectl.ok(&format!("apply --validate=strict -f {manifest}")).await;
        assert!(kubectl.ok("get hpa").await.contains("Deployment/web"));
        assert!(kubectl.ok("get horizontalpodautoscalers.v1.autoscaling web -o yaml").await.contains("targetCPUUtilizationPercentage: 60"));
        assert_eq!(kubectl.ok(&format!("apply -f {manifest}")).await.trim(), "horizontalpodautoscaler.autoscaling/web unchanged");
    })
    .await;
}
