//! Server-side apply and `metadata.managedFields`, over REST and with stock kubectl.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::client::{Answer, CONFIG_MAPS, Client, PODS, config_map, pod, request};
use crate::kubectl::{with_each, with_each_on};
use crate::server::TestServer;

const MAP: &str = "/api/v1/namespaces/default/configmaps/m";

async fn apply(client: &Client, path: &str, config: &str) -> Answer {
    let headers = [("content-type", "application/apply-patch+yaml")];
    client.send(request(Method::PATCH, path, &headers, Bytes::from(config.to_owned()))).await
}

fn map(data: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {data}\n")
}

/// The manager, operation and subresource of each entry.
fn managers(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entry =
        |e: &Value| format!("{} {} {}", text(&e["manager"]), text(&e["operation"]), text(&e["subresource"]));
    entries.iter().map(|e| entry(e).trim().to_owned()).collect()
}

#[tokio::test]
async fn an_apply_creates_changes_and_meets_conflicts() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let one = format!("{MAP}?fieldManager=one");
    let created = apply(&client, &one, &map("{a: '1', b: '1'}")).await.expect(201);
    assert_eq!(created["data"], json!({"a": "1", "b": "1"}));
    assert_eq!(managers(&created), ["one Apply"]);
    let again = apply(&client, &one, &map("{a: '1', b: '1'}")).await.expect(200);
    assert_eq!(again, created);
    let conflict = apply(&client, &format!("{MAP}?fieldManager=two"), &map("{a: '2'}")).await;
    assert_eq!(
        conflict.status(),
        (
            409,
            "Conflict".to_owned(),
            "Apply failed with 1 conflict: conflict with \"one\": .data.a".to_owned()
        )
    );
    assert_eq!(conflict.json()["details"]["causes"][0]["reason"], "FieldManagerConflict");
    let dry = format!("{MAP}?fieldManager=two&force=true&dryRun=All");
    assert_eq!(apply(&client, &dry, &map("{a: '2'}")).await.expect(200)["data"]["a"], "2");
    assert_eq!(client.get(MAP).await.expect(200), created);
    let forced = apply(&client, &format!("{MAP}?fieldManager=two&force=true"), &map("{a: '2'}")).await;
    let forced = forced.expect(200);
    assert_eq!(forced["data"], json!({"a": "2", "b": "1"}));
    let fewer =
        apply(&client, &one, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}").await.expect(200);
    assert_eq!(fewer["data"], json!({"a": "2"}));
    assert_eq!(managers(&fewer), ["two Apply"]);
}

#[tokio::test]
async fn an_apply_that_makes_no_sense_is_told_so() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let one = format!("{MAP}?fieldManager=one");
    let status = apply(&client, MAP, &map("{}")).await.status();
    assert_eq!(status.0, 422);
    assert!(status.2.ends_with("fieldManager: Required value: is required for apply patch"), "{}", status.2);
    let long = format!("{MAP}?fieldManager={}", "x".repeat(129));
    assert_eq!(client.post(CONFIG_MAPS, &config_map("m", "1")).await.code.as_u16(), 201);
    assert_eq!(client.put(&long, &config_map("m", "1")).await.code.as_u16(), 422);
    let patch = client.merge(&format!("{MAP}?force=true"), &json!({})).await;
    assert_eq!(patch.code.as_u16(), 422);
    for (config, code) in [
        ("a: b: c", 400),
        ("[]", 400),
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: m}", 400),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}", 400),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, managedFields: [{manager: x}]}", 400),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, resourceVersion: '1'}", 409),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, uid: other}", 409),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: [1]}", 400),
    ] {
        let answer = apply(&client, &one, config).await;
        assert_eq!(answer.code.as_u16(), code, "{config}: {}", answer.text());
    }
    let absent = MAP.replace("/m", "/absent") + "?fieldManager=one";
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: absent, uid: some}";
    assert_eq!(apply(&client, &absent, config).await.code.as_u16(), 409);
}

#[tokio::test]
async fn every_write_of_a_client_is_somebodys() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let agent = [("content-type", "application/json"), ("user-agent", "my-tool/v1.2 (linux)")];
    let body = Bytes::from(pod("a").to_string());
    let created = client.send(request(Method::POST, PODS, &agent, body)).await.expect(201);
    assert_eq!(managers(&created), ["my-tool Update"]);
    let fields = &created["metadata"]["managedFields"][0]["fieldsV1"];
    assert!(fields.get("f:status").is_none() && fields["f:spec"].get("f:containers").is_some(), "{fields}");
    let status = format!("{PODS}/a/status?fieldManager=kubelet");
    let patch = json!({"status": {"phase": "Running"}});
    let running = client.merge(&status, &patch).await.expect(200);
    let mut both = managers(&running);
    both.sort();
    assert_eq!(both, ["kubelet Update status", "my-tool Update"]);
    let labels = json!({"metadata": {"labels": {"x": "y"}}});
    let path = format!("{PODS}/a?fieldManager=labeller");
    let labelled = client.patch(&path, "application/strategic-merge-patch+json", &labels).await.expect(200);
    assert!(managers(&labelled).contains(&"labeller Update".to_owned()));
    let reset = json!({"metadata": {"managedFields": [{}]}});
    let reset = client.merge(&path, &reset).await.expect(200);
    assert_eq!(reset["metadata"].get("managedFields"), None);
    let config = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {x: z}}\n";
    let conflict = apply(&client, &format!("{PODS}/a?fieldManager=one"), config).await.status();
    assert!(conflict.2.contains("conflict with \"before-first-apply\" using v1"), "{}", conflict.2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_applies_on_the_server() {
    with_each(async |kubectl, _server| {
        let web = |replicas: u32, image: &str| {
            format!(
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: {replicas}\n  \
                 selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    \
                 spec: {{containers: [{{name: c, image: {image}, ports: [{{containerPort: 80}}]}}]}}\n"
            )
        };
        let file = kubectl.file("web.yaml", &web(1, "i:1"));
        assert_eq!(
            kubectl.ok(&format!("apply --server-side -f {file}")).await,
            "deployment.apps/web serverside-applied\n"
        );
        kubectl.ok("scale deployment web --replicas=3").await;
        let shown = kubectl.ok("get deployment web -o yaml --show-managed-fields").await;
        assert!(shown.contains("operation: Apply") && shown.contains("subresource: scale"), "{shown}");
        let conflict = kubectl.run(&format!("apply --server-side -f {file}")).await;
        assert!(!conflict.ok);
        // kubectl names itself by the name of its file.
        assert!(conflict.stderr.contains("Apply failed with 1 conflict: conflict with \"kubectl"), "{}", conflict.stderr);
        let place = "\" with subresource \"scale\" using apps/v1: .spec.replicas";
        assert!(conflict.stderr.contains(place), "{}", conflict.stderr);
        let diff = kubectl.run(&format!("diff --server-side --force-conflicts -f {file}")).await;
        assert!(diff.stdout.contains("-  replicas: 3") && diff.stdout.contains("+  replicas: 1"), "{}{}", diff.stdout, diff.stderr);
        kubectl.ok(&format!("apply --server-side --force-conflicts -f {file}")).await;
        assert_eq!(kubectl.ok("get deployment web -o jsonpath={.spec.replicas}").await, "1");

        // From the client's side to the server's.
        let plain = kubectl.file("m.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: '1', b: '1'}\n");
        kubectl.ok(&format!("apply -f {plain}")).await;
        let plain = kubectl.file("m.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: '2'}\n");
        kubectl.ok(&format!("apply --server-side -f {plain}")).await;
        let moved = kubectl.ok("get cm m -o json --show-managed-fields").await;
        let moved: Value = serde_json::from_str(&moved).unwrap();
        assert_eq!(moved["data"], json!({"a": "2"}), "{moved}");
        // The annotation of before is the one thing that another name keeps.
        assert_eq!(managers(&moved), ["kubectl Apply", "kubectl-last-applied Apply"]);
    })
    .await;
}

/// A kind whose objects have a list of listeners told apart by port, and a set of names.
fn gateways() -> Value {
    let text = json!({"type": "string"});
    let listeners = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
        "items": {"type": "object", "required": ["port"], "properties": {"port": {"type": "integer"}, "host": text}}});
    let names = json!({"type": "array", "x-kubernetes-list-type": "set", "items": text});
    let spec = json!({"type": "object", "properties": {"listeners": listeners, "names": names}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gates.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "gates", "kind": "Gate"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}]},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn appliers_of_a_custom_object_share_its_lists() {
    with_each_on(TestServer::start_leading, |kubectl, _server| async move {
        let definition = kubectl.file("definition.yaml", &gateways().to_string());
        kubectl.ok(&format!("apply -f {definition}")).await;
        kubectl.ok("wait --for=condition=established --timeout=30s crd/gates.example.com").await;
        let apply_as = |manager: &str, spec: Value| {
            let gate = json!({"apiVersion": "example.com/v1", "kind": "Gate", "metadata": {"name": "g"},
                "spec": spec});
            let file = kubectl.file("gate.yaml", &gate.to_string());
            format!("apply --server-side --field-manager={manager} -f {file}")
        };
        let spec = async || -> Value {
            serde_json::from_str(&kubectl.ok("get gate g -o jsonpath={.spec}").await).unwrap()
        };
        let one = json!({"listeners": [{"port": 80, "host": "a"}, {"port": 81}], "names": ["x"]});
        kubectl.ok(&apply_as("one", one)).await;
        kubectl
            .ok(&apply_as("two", json!({"listeners": [{"port": 443, "host": "b"}], "names": ["y"]})))
            .await;
        let other = apply_as("two", json!({"listeners": [{"port": 80, "host": "c"}]}));
        kubectl.fails(&other, "conflict with \"one\": .spec.listeners[port=80].host").await;
        let both = json!({"listeners": [{"port": 80, "host": "a"}, {"port": 81}, {"port": 443, "host": "b"}],
            "names": ["x", "y"]});
        assert_eq!(spec().await, both);
        kubectl.ok(&apply_as("one", json!({"listeners": [{"port": 80, "host": "a"}]}))).await;
        let rest =
            json!({"listeners": [{"port": 80, "host": "a"}, {"port": 443, "host": "b"}], "names": ["y"]});
        assert_eq!(spec().await, rest);
    })
    .await;
}
