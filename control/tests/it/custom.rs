//! Kinds that users register: usable at every replica as soon as they are established, like built-in ones.
//! Rows: J23, WS-K8S-12.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Client;
use crate::kubectl::with_each_on;
use crate::server::TestServer;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const DEFINITION: &str =
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/crontabs.stable.example.com";
const CRONTABS: &str = "/apis/stable.example.com/v1/namespaces/default/crontabs";
const OLD_CRONTABS: &str = "/apis/stable.example.com/v1beta1/namespaces/default/crontabs";
const PATIENCE: Duration = Duration::from_secs(30);

fn definition() -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object", "required": ["cronSpec"],
            "x-kubernetes-validations": [
                {"rule": "!has(self.replicas) || self.replicas <= 10", "message": "at most ten replicas"}],
            "properties": {
                "cronSpec": {"type": "string", "description": "When it runs.", "pattern": r"^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$"},
                "image": {"type": "string", "default": "hello"},
                "replicas": {"type": "integer", "minimum": 1, "default": 1},
                "color": {"type": "string"}}},
        "status": {"type": "object", "properties": {
            "replicas": {"type": "integer"}, "labelSelector": {"type": "string"}}}}}});
    let subresources = json!({"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.labelSelector"}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.stable.example.com"},
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "shortNames": ["ct"],
                "categories": ["all"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": schema, "subresources": subresources,
                    "selectableFields": [{"jsonPath": ".spec.color"}],
                    "additionalPrinterColumns": [
                        {"name": "Spec", "type": "string", "jsonPath": ".spec.cronSpec"},
                        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
                        {"name": "Image", "type": "string", "jsonPath": ".spec.image", "priority": 1},
                        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]},
                {"name": "v1beta1", "served": true, "storage": false, "deprecated": true, "schema": schema,
                    "subresources": subresources}],
        },
    })
}

fn crontab(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": {"name": name}, "spec": spec})
}

/// Waits until an object is as it should be.
async fn until(client: &Client, path: &str, what: &str, is_right: impl Fn(&Value) -> bool) -> Value {
    let looking = async {
        loop {
            let answer = client.get(path).await;
            let is_json = answer.text().starts_with('{');
            if is_json && is_right(&answer.json()) {
                return answer.json();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, looking).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: {}", client.get(path).await.text()),
    }
}

fn is_established(definition: &Value) -> bool {
    let conditions = definition["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|own| own["type"] == "Established" && own["status"] == "True")
}

async fn establish(client: &Client) {
    client.post(DEFINITIONS, &definition()).await.expect(201);
    until(client, DEFINITION, "not established", is_established).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registered_kind_works_at_once_and_at_every_replica() {
    let server = TestServer::start_leading().await;
    let (client, second) = (Client::admin(&server), server.beside().await);
    let other = Client::admin(&second);
    assert_eq!(client.get(CRONTABS).await.code, 404);
    establish(&client).await;

    // The other replica has heard of nothing but the store.
    let made = other.post(CRONTABS, &crontab("a", json!({"cronSpec": "* * * * */5", "typo": 1}))).await;
    assert_eq!(made.headers["warning"], "299 - \"unknown field \\\"spec.typo\\\"\"");
    let made = made.expect(201);
    assert_eq!(made["spec"], json!({"cronSpec": "* * * * */5", "image": "hello", "replicas": 1}));
    assert_eq!(made["metadata"]["generation"], 1);

    let table = client.get_as(CRONTABS, "application/json;as=Table;v=v1;g=meta.k8s.io").await.json();
    let names: Vec<&str> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["Name", "Spec", "Replicas", "Image", "Age"]);
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..4], [json!("a"), json!("* * * * */5"), json!(1), json!("hello")]);

    let refused = client.post(CRONTABS, &crontab("b", json!({"cronSpec": "often", "replicas": 0}))).await;
    let (code, reason, message) = refused.status();
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert!(message.starts_with("CronTab.stable.example.com \"b\" is invalid: ["), "{message}");
    assert!(message.contains(
        "spec.replicas: Invalid value: 0: spec.replicas in body should be greater than or equal to 1"
    ));
    let refused =
        client.post(CRONTABS, &crontab("b", json!({"cronSpec": "* * * * *", "replicas": 11}))).await;
    let (_, _, message) = refused.status();
    assert_eq!(
        message,
        "CronTab.stable.example.com \"b\" is invalid: spec: Invalid value: \"object\": at most ten replicas"
    );
    let strict = format!("{CRONTABS}?fieldValidation=Strict");
    let refused = client.post(&strict, &crontab("b", json!({"cronSpec": "* * * * *", "typo": 1}))).await;
    assert!(refused.status().2.contains("strict decoding error: unknown field \"spec.typo\""));

    let discovery = other.get("/apis/stable.example.com").await.expect(200);
    assert_eq!(discovery["preferredVersion"]["version"], "v1");
    assert_eq!(discovery["versions"].as_array().map(Vec::len), Some(2));
    let aggregated =
        other.get_as("/apis", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    assert!(aggregated.await.text().contains("\"singularResource\":\"crontab\""));
    let index = client.get("/openapi/v3").await.expect(200);
    let address =
        index["paths"]["apis/stable.example.com/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let document = client.get(&address).await.expect(200);
    let schema = &document["components"]["schemas"]["com.example.stable.v1.CronTab"];
    assert_eq!(schema["properties"]["spec"]["properties"]["cronSpec"]["description"], "When it runs.");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_subresources_and_selectors() {
    let server = TestServer::start_leading().await;
    let client = Client::admin(&server);
    establish(&client).await;
    let mut watch = client.watch(&format!("{CRONTABS}?watch=true&fieldSelector=spec.color%3Dred")).await;
    let made = crontab("a", json!({"cronSpec": "* * * * *", "color": "red"}));
    client.post(CRONTABS, &made).await.expect(201);
    client.post(CRONTABS, &crontab("b", json!({"cronSpec": "* * * * *", "color": "blue"}))).await.expect(201);
    assert_eq!(watch.change().await, ("ADDED".to_owned(), "a".to_owned()));
    let red = client.get(&format!("{CRONTABS}?fieldSelector=spec.color%3Dred")).await.expect(200);
    assert_eq!(red["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(red["kind"], "CronTabList");
    assert_eq!(client.get(&format!("{CRONTABS}?fieldSelector=spec.image%3Dx")).await.code, 400);

    // The other version shows the same objects under its own name.
    let old = client.get(&format!("{OLD_CRONTABS}/a")).await.expect(200);
    assert_eq!(old["apiVersion"], "stable.example.com/v1beta1");
    let patch = json!({"spec": {"image": "other"}});
    let patched = client.merge(&format!("{OLD_CRONTABS}/a"), &patch).await;
    assert_eq!(patched.headers["warning"], "299 - \"stable.example.com/v1beta1 CronTab is deprecated\"");
    let patched = patched.expect(200);
    assert_eq!((&patched["metadata"]["generation"], &patched["apiVersion"]), (&json!(2), &old["apiVersion"]));
    let event = watch.next().await.unwrap();
    assert_eq!(event["object"]["apiVersion"], "stable.example.com/v1");
    assert_eq!(event["object"]["spec"]["image"], "other");

    let status =
        json!({"status": {"replicas": 3, "labelSelector": "app=a", "nonsense": 1}, "spec": {"image": "no"}});
    let patched = client.merge(&format!("{CRONTABS}/a/status"), &status).await.expect(200);
    assert_eq!(patched["status"], json!({"replicas": 3, "labelSelector": "app=a"}));
    assert_eq!((&patched["spec"]["image"], &patched["metadata"]["generation"]), (&json!("other"), &json!(2)));
    let plain = client.merge(&format!("{CRONTABS}/a"), &json!({"status": {"replicas": 9}})).await;
    assert_eq!(plain.expect(200)["status"]["replicas"], 3);

    let scale = client.get(&format!("{CRONTABS}/a/scale")).await.expect(200);
    assert_eq!(scale["spec"]["replicas"], 1);
    assert_eq!(scale["status"], json!({"replicas": 3, "selector": "app=a"}));
    let scaled = client.merge(&format!("{CRONTABS}/a/scale"), &json!({"spec": {"replicas": 4}})).await;
    assert_eq!(scaled.expect(200)["spec"]["replicas"], 4);
    assert_eq!(client.get(&format!("{CRONTABS}/a")).await.json()["spec"]["replicas"], 4);

    let strategic = "application/strategic-merge-patch+json";
    assert_eq!(client.patch(&format!("{CRONTABS}/a"), strategic, &json!({})).await.code, 415);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_takes_its_objects_with_it() {
    let server = TestServer::start_leading().await;
    let (client, second) = (Client::admin(&server), server.beside().await);
    let other = Client::admin(&second);
    establish(&client).await;
    let mut held = crontab("held", json!({"cronSpec": "* * * * *"}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    client.post(CRONTABS, &held).await.expect(201);
    client.post(CRONTABS, &crontab("free", json!({"cronSpec": "* * * * *"}))).await.expect(201);

    let going = client.delete(DEFINITION, &Value::Null).await.expect(200);
    assert_eq!(going["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    until(&client, &format!("{CRONTABS}/free"), "not deleted", |answer| answer["reason"] == "NotFound").await;
    // Nothing new comes in while the kind goes, at no replica.
    for client in [&client, &other] {
        let refused = client.post(CRONTABS, &crontab("late", json!({"cronSpec": "* * * * *"}))).await;
        assert_eq!(refused.code, 405, "{}", refused.text());
    }
    let held = format!("{CRONTABS}/held");
    client.merge(&held, &json!({"metadata": {"finalizers": null}})).await.expect(200);
    until(&client, DEFINITION, "still there", |answer| answer["reason"] == "NotFound").await;
    let looking = async {
        while client.get(CRONTABS).await.code != 404 || other.get(CRONTABS).await.code != 404 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("the kind is not served any more");
    establish(&client).await;
    assert_eq!(client.get(CRONTABS).await.expect(200)["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_and_namespaces_take_custom_objects_with_them() {
    let server = TestServer::start_leading().await;
    let client = Client::admin(&server);
    establish(&client).await;
    let owner = client.post(CRONTABS, &crontab("owner", json!({"cronSpec": "* * * * *"}))).await.expect(201);
    let mut owned = crate::client::config_map("owned", "x");
    owned["metadata"]["ownerReferences"] = json!([{"apiVersion": "stable.example.com/v1", "kind": "CronTab",
        "name": "owner", "uid": owner["metadata"]["uid"]}]);
    client.post(crate::client::CONFIG_MAPS, &owned).await.expect(201);
    client.delete(&format!("{CRONTABS}/owner"), &Value::Null).await.expect(200);
    let path = format!("{}/owned", crate::client::CONFIG_MAPS);
    until(&client, &path, "not collected", |answer| answer["reason"] == "NotFound").await;

    client.post("/api/v1/namespaces", &json!({"metadata": {"name": "brief"}})).await.expect(201);
    let inside = CRONTABS.replace("default", "brief");
    client.post(&inside, &crontab("a", json!({"cronSpec": "* * * * *"}))).await.expect(201);
    client.delete("/api/v1/namespaces/brief", &Value::Null).await;
    until(&client, "/api/v1/namespaces/brief", "still there", |answer| answer["reason"] == "NotFound").await;
    assert_eq!(client.get(&format!("{inside}/a")).await.code, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_in_use_are_not_accepted_and_bad_definitions_are_refused() {
    let server = TestServer::start_leading().await;
    let client = Client::admin(&server);
    establish(&client).await;
    let mut twin = definition();
    twin["metadata"]["name"] = json!("others.stable.example.com");
    twin["spec"]["names"] = json!({"plural": "others", "kind": "CronTab"});
    client.post(DEFINITIONS, &twin).await.expect(201);
    let path = format!("{DEFINITIONS}/others.stable.example.com");
    let twin = until(&client, &path, "no condition", |twin| {
        twin["status"]["conditions"][0]["type"] == "NamesAccepted"
    })
    .await;
    assert_eq!(twin["status"]["conditions"][0]["message"], "\"CronTabList\" is already in use");
    assert_eq!(twin["status"]["conditions"][1]["reason"], "NotAccepted");
    assert_eq!(client.get("/apis/stable.example.com/v1/namespaces/default/others").await.code, 404);

    let mut bad = definition();
    bad["metadata"]["name"] = json!("bads.stable.example.com");
    bad["spec"]["names"] = json!({"plural": "bads", "kind": "Bad"});
    bad["spec"]["versions"][0]["selectableFields"] = json!([]);
    bad["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = json!({"type": "array"});
    let (code, reason, message) = client.post(DEFINITIONS, &bad).await.status();
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert!(
        message.ends_with("is invalid: spec.versions[0].schema.openAPIV3Schema.properties[spec].items: Required value: must be specified"),
        "{message}"
    );
}

const MANIFEST: &str = "apiVersion: stable.example.com/v1
kind: CronTab
metadata: {name: my-cron, labels: {app: cron}}
spec: {cronSpec: '* * * * */5', replicas: 2}
";

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_works_with_a_kind_of_ones_own() {
    with_each_on(TestServer::start_leading, |kubectl, _server| async move {
        let file = kubectl.file("crd.yaml", &definition().to_string());
        let out = kubectl.ok(&format!("apply -f {file}")).await;
        assert_eq!(
            out,
            "customresourcedefinition.apiextensions.k8s.io/crontabs.stable.example.com created\n"
        );
        kubectl.ok("wait --for=condition=established --timeout=30s crd/crontabs.stable.example.com").await;
        let file = kubectl.file("cron.yaml", MANIFEST);
        assert_eq!(
            kubectl.ok(&format!("apply -f {file}")).await,
            "crontab.stable.example.com/my-cron created\n"
        );
        let out = kubectl.ok("get ct").await;
        let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["NAME", "SPEC", "REPLICAS", "AGE"]);
        assert_eq!(lines[1][..7], ["my-cron", "*", "*", "*", "*", "*/5", "2"]);
        assert!(kubectl.ok("get crontabs.stable.example.com -o wide").await.contains("IMAGE"));
        assert!(kubectl.ok("get all").await.contains("crontab.stable.example.com/my-cron"));
        assert!(kubectl.ok("get crontab my-cron -o yaml").await.contains("image: hello"));
        assert!(kubectl.ok("api-resources --api-group=stable.example.com").await.contains("crontabs"));
        assert!(kubectl.ok("get crd").await.contains("crontabs.stable.example.com"));

        let file = kubectl.file("cron.yaml", &MANIFEST.replace("*/5", "*/7"));
        assert_eq!(
            kubectl.ok(&format!("apply -f {file}")).await,
            "crontab.stable.example.com/my-cron configured\n"
        );
        kubectl.ok("scale --replicas=5 crontab/my-cron").await;
        assert_eq!(kubectl.ok("get ct my-cron -o jsonpath={.spec.replicas}").await, "5");
        kubectl.ok("label ct my-cron tier=back").await;
        assert!(kubectl.ok("get ct -l tier=back -o name").await.contains("my-cron"));
        kubectl.ok("patch ct my-cron --type=merge -p {\"spec\":{\"image\":\"x\"}}").await;
        assert!(kubectl.ok("describe ct my-cron").await.contains("Cron Spec:"));
        let bad = kubectl.file("bad.yaml", &MANIFEST.replace("replicas: 2", "replicas: 12"));
        kubectl.fails(&format!("apply -f {bad}"), "at most ten replicas").await;
        assert!(kubectl.ok("explain crontab.spec.cronSpec").await.contains("When it runs."));
        let odd = kubectl.file("odd.yaml", &MANIFEST.replace("replicas: 2", "replicas: 2, odd: 1"));
        kubectl.fails(&format!("apply --validate=strict -f {odd}"), "unknown field \"spec.odd\"").await;
        kubectl.ok("delete ct my-cron").await;
        kubectl.ok("delete crd crontabs.stable.example.com --timeout=60s").await;
        // Older ones have the kind in their cache.
        kubectl.fails("get ct", "the server").await;
    })
    .await;
}
