//! Writing: create, update, patch, delete, and everything that is refused.

use http::Method;
use serde_json::{Value, json};

use crate::client::{CONFIG_MAPS, Client, PODS, config_map, pod, request};
use crate::server::TestServer;

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn creations_that_cannot_be_are_refused_in_kubernetes_words() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    client.post(PODS, &pod("a")).await.expect(201);
    let status = client.post(PODS, &pod("a")).await.status();
    assert_eq!(status, (409, "AlreadyExists".into(), "pods \"a\" already exists".into()));
    let status = client.post("/api/v1/namespaces/x/pods", &pod("a")).await.status();
    assert_eq!(status, (404, "NotFound".into(), "namespaces \"x\" not found".into()));
    let (code, reason, message) = client.post(PODS, &pod("Not_A_Name")).await.status();
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert!(message.starts_with("Pod \"Not_A_Name\" is invalid: metadata.name: Invalid value:"), "{message}");
    let mut elsewhere = pod("b");
    elsewhere["metadata"]["namespace"] = json!("kube-system");
    let (code, _, message) = client.post(PODS, &elsewhere).await.status();
    assert_eq!(code, 400);
    assert_eq!(
        message,
        "the namespace of the provided object does not match the namespace sent on the request"
    );
    let mut nameless = pod("");
    nameless["metadata"] = json!({});
    let (code, _, message) = client.post(PODS, &nameless).await.status();
    assert_eq!(code, 422);
    assert!(message.contains("name or generateName is required"), "{message}");
    for body in [json!([]), json!({"kind": "Node"}), json!({"apiVersion": "v2"}), json!({"spec": 3})] {
        assert_eq!(client.post(PODS, &body).await.status().0, 400, "{body}");
    }
    let broken = bytes::Bytes::from_static(b"{\"kind\":");
    assert_eq!(client.send(request(Method::POST, PODS, &[], broken)).await.status().0, 400);
}

#[tokio::test]
async fn generated_names_differ() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let mut object = config_map("", "1");
    object["metadata"] = json!({"generateName": "g-"});
    let first = client.post(CONFIG_MAPS, &object).await.expect(201);
    let second = client.post(CONFIG_MAPS, &object).await.expect(201);
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name(&first).starts_with("g-") && name(&first).len() == 7, "{first}");
    assert_ne!(name(&first), name(&second));
}

#[tokio::test]
async fn field_validation_ignores_warns_or_refuses() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let mut odd = config_map("a", "1");
    odd["nonsense"] = json!(1);
    let warned = client.post(CONFIG_MAPS, &odd).await;
    assert_eq!(warned.headers["warning"], "299 - \"unknown field \\\"nonsense\\\"\"");
    assert_eq!(warned.expect(201).get("nonsense"), None);
    let path = format!("{CONFIG_MAPS}?fieldValidation=Strict");
    let twice = bytes::Bytes::from_static(
        b"{\"metadata\":{\"name\":\"b\"},\"data\":{\"k\":\"1\",\"k\":\"2\"},\"nonsense\":1}",
    );
    let (code, _, message) = client.send(request(Method::POST, &path, &[], twice)).await.status();
    assert_eq!(code, 400);
    assert_eq!(
        message,
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: \
         duplicate field \"data.k\", unknown field \"nonsense\""
    );
    odd["metadata"]["name"] = json!("c");
    let silent = client.post(&format!("{CONFIG_MAPS}?fieldValidation=Ignore"), &odd).await;
    assert_eq!(silent.headers.get("warning"), None);
    assert_eq!(client.post(&format!("{CONFIG_MAPS}?fieldValidation=Loud"), &odd).await.code.as_u16(), 422);
}

#[tokio::test]
async fn updates_compare_versions_and_touch_only_their_part() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let path = format!("{CONFIG_MAPS}/a");
    let created = client.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let mut newer = created.clone();
    newer["data"]["key"] = json!("2");
    let updated = client.put(&path, &newer).await.expect(200);
    assert_ne!(version(&updated), version(&created));
    let status = client.put(&path, &newer).await.status();
    assert_eq!(
        status,
        (
            409,
            "Conflict".into(),
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; \
             please apply your changes to the latest version and try again"
                .into()
        )
    );
    // Without a version the write is unconditional; one that changes nothing does not move the version.
    let unversioned = config_map("a", "3");
    let third = client.put(&path, &unversioned).await.expect(200);
    assert_eq!(third["metadata"]["uid"], created["metadata"]["uid"]);
    let same = client.put(&path, &unversioned).await.expect(200);
    assert_eq!(version(&same), version(&third));
    let mut other = unversioned.clone();
    other["metadata"]["uid"] = json!("another");
    assert_eq!(client.put(&path, &other).await.status().0, 409);
    let (code, _, message) = client.put(&format!("{CONFIG_MAPS}/b"), &unversioned).await.status();
    assert_eq!(code, 400);
    assert_eq!(message, "the name of the object (a) does not match the name on the URL (b)");
    assert_eq!(client.put(&format!("{CONFIG_MAPS}/b"), &config_map("b", "1")).await.status().0, 404);
}

#[tokio::test]
async fn spec_and_status_are_written_apart() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let path = format!("{PODS}/a");
    let created = client.post(PODS, &pod("a")).await.expect(201);
    assert_eq!(created["metadata"]["generation"], 1);
    let mut changed = created.clone();
    changed["status"]["phase"] = json!("Running");
    changed["metadata"]["labels"]["more"] = json!("x");
    let updated = client.put(&path, &changed).await.expect(200);
    assert_eq!(updated["status"]["phase"], "Pending");
    assert_eq!(updated["metadata"]["labels"]["more"], "x");
    assert_eq!(updated["metadata"]["generation"], 1);
    let mut running = updated.clone();
    running["status"]["phase"] = json!("Running");
    running["spec"]["containers"][0]["image"] = json!("other");
    let status = client.put(&format!("{path}/status"), &running).await.expect(200);
    assert_eq!(status["status"]["phase"], "Running");
    assert_eq!(status["status"]["qosClass"], "BestEffort");
    assert_eq!(status["spec"], updated["spec"]);
    let mut image = status.clone();
    image["spec"]["containers"][0]["image"] = json!("other");
    assert_eq!(client.put(&path, &image).await.expect(200)["metadata"]["generation"], 2);
    let mut name = status.clone();
    name["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    name["spec"]["containers"][0]["name"] = json!("other");
    let (code, _, message) = client.put(&path, &name).await.status();
    assert_eq!(code, 422);
    assert!(message.contains("Forbidden: pod updates may not change fields other than"), "{message}");
}

#[tokio::test]
async fn patches_of_three_kinds() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let path = format!("{PODS}/a");
    client.post(PODS, &pod("a")).await.expect(201);
    let merged = client.patch(&path, MERGE, &json!({"metadata": {"labels": {"app": null, "b": "c"}}})).await;
    assert_eq!(merged.expect(200)["metadata"]["labels"], json!({"b": "c"}));
    let body = json!({"spec": {"containers": [{"name": "main", "image": "other:2"}]}});
    let strategic = client.patch(&path, STRATEGIC, &body).await.expect(200);
    assert_eq!(strategic["spec"]["containers"].as_array().unwrap().len(), 1);
    assert_eq!(strategic["spec"]["containers"][0]["image"], "other:2");
    assert_eq!(strategic["metadata"]["generation"], 2);
    let body = json!([{"op": "test", "path": "/metadata/labels/b", "value": "c"},
        {"op": "replace", "path": "/metadata/labels/b", "value": "d"}]);
    assert_eq!(client.patch(&path, JSON_PATCH, &body).await.expect(200)["metadata"]["labels"]["b"], "d");
    assert_eq!(client.patch(&path, JSON_PATCH, &body).await.status().0, 422);
    let stale = json!({"metadata": {"resourceVersion": "1", "labels": {"x": "y"}}});
    assert_eq!(client.patch(&path, MERGE, &stale).await.status().0, 409);
    let body = json!({"metadata": {"name": "b"}});
    assert_eq!(client.patch(&path, MERGE, &body).await.status().0, 400);
    let apply = client.patch(&path, "application/merge-patch+yaml", &json!({})).await.status();
    assert_eq!((apply.0, apply.1.as_str()), (415, "UnsupportedMediaType"));
    assert_eq!(client.patch(&format!("{PODS}/b"), MERGE, &json!({})).await.status().0, 404);
    let status = json!({"status": {"phase": "Running"}, "spec": {"nodeName": "n9"}});
    let patched = client.patch(&format!("{path}/status"), MERGE, &status).await.expect(200);
    assert_eq!(
        (&patched["status"]["phase"], &patched["spec"]["nodeName"]),
        (&json!("Running"), &Value::Null)
    );
}

#[tokio::test]
async fn concurrent_patches_all_land() {
    let server = TestServer::start().await;
    let client = std::sync::Arc::new(Client::admin(&server));
    client.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..12 {
        let client = client.clone();
        tasks.spawn(async move {
            let body = json!({"data": {format!("k{number}"): "v"}});
            client.patch(&format!("{CONFIG_MAPS}/a"), MERGE, &body).await.expect(200);
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    let object = client.get(&format!("{CONFIG_MAPS}/a")).await.expect(200);
    assert_eq!(object["data"].as_object().unwrap().len(), 13);
}

#[tokio::test]
async fn dry_runs_leave_no_trace() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    client.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let before = server.store.revision();
    let dry = client.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("b", "1")).await.expect(201);
    assert!(dry["metadata"]["uid"].is_string());
    let again = client.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a", "1")).await;
    assert_eq!(again.status().0, 409);
    let put = client.put(&format!("{CONFIG_MAPS}/a?dryRun=All"), &config_map("a", "2")).await.expect(200);
    assert_eq!(put["data"]["key"], "2");
    let patch = json!({"data": {"key": "3"}});
    client.patch(&format!("{CONFIG_MAPS}/a?dryRun=All"), MERGE, &patch).await.expect(200);
    client.delete(&format!("{CONFIG_MAPS}/a?dryRun=All"), &Value::Null).await.expect(200);
    client
        .delete(&format!("{CONFIG_MAPS}/a"), &json!({"kind": "DeleteOptions", "dryRun": ["All"]}))
        .await
        .expect(200);
    assert_eq!(server.store.revision(), before);
}

#[tokio::test]
async fn deletion_respects_preconditions_finalizers_and_grace() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let created = client.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let wrong = json!({"preconditions": {"uid": "another"}});
    assert_eq!(client.delete(&path, &wrong).await.status().0, 409);
    let wrong = json!({"preconditions": {"resourceVersion": "1"}});
    assert_eq!(client.delete(&path, &wrong).await.status().0, 409);
    let right =
        json!({"preconditions": {"uid": created["metadata"]["uid"], "resourceVersion": version(&created)}});
    let deleted = client.delete(&path, &right).await.expect(200);
    assert_eq!((&deleted["kind"], &deleted["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(client.delete(&path, &Value::Null).await.status().0, 404);

    let mut held = config_map("held", "1");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    client.post(CONFIG_MAPS, &held).await.expect(201);
    let path = format!("{CONFIG_MAPS}/held");
    let pending = client.delete(&path, &Value::Null).await.expect(200);
    assert!(pending["metadata"]["deletionTimestamp"].is_string(), "{pending}");
    let again = client.delete(&path, &Value::Null).await.expect(200);
    assert_eq!(version(&again), version(&pending));
    client.patch(&path, MERGE, &json!({"metadata": {"finalizers": null}})).await.expect(200);
    assert_eq!(client.get(&path).await.status().0, 404);

    client.post(PODS, &pod("free")).await.expect(201);
    let gone = client.delete(&format!("{PODS}/free"), &Value::Null).await.expect(200);
    assert_eq!(gone["kind"], "Pod");
    assert_eq!(client.get(&format!("{PODS}/free")).await.status().0, 404);

    let mut bound = pod("bound");
    bound["spec"]["nodeName"] = json!("n1");
    client.post(PODS, &bound).await.expect(201);
    let path = format!("{PODS}/bound");
    let pending = client.delete(&path, &Value::Null).await.expect(200);
    assert_eq!(pending["metadata"]["deletionGracePeriodSeconds"], 30);
    let shorter = client.delete(&path, &json!({"gracePeriodSeconds": 5})).await.expect(200);
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    client.post(&format!("{path}/eviction"), &json!({"metadata": {"name": "bound"}})).await.expect(201);
    client.delete(&path, &json!({"gracePeriodSeconds": 0})).await.expect(200);
    assert_eq!(client.get(&path).await.status().0, 404);
    assert_eq!(client.delete(&path, &json!({"gracePeriodSeconds": "x"})).await.status().0, 400);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    for name in ["a", "b", "c"] {
        client.post(CONFIG_MAPS, &config_map(name, "1")).await.expect(201);
    }
    let deleted = client.delete(&format!("{CONFIG_MAPS}?labelSelector=app+in+(a,c)"), &Value::Null).await;
    assert_eq!(deleted.expect(200)["items"].as_array().unwrap().len(), 2);
    let left = client.get(CONFIG_MAPS).await.expect(200);
    assert_eq!(left["items"][0]["metadata"]["name"], "b");
}

#[tokio::test]
async fn a_terminating_namespace_takes_nothing_new_and_goes_when_finalized() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let created = client.post("/api/v1/namespaces", &json!({"metadata": {"name": "x"}})).await.expect(201);
    assert_eq!(created["status"]["phase"], "Active");
    assert_eq!(created["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(created["metadata"]["labels"]["kubernetes.io/metadata.name"], "x");
    client.post("/api/v1/namespaces/x/configmaps", &config_map("a", "1")).await.expect(201);
    let pending = client.delete("/api/v1/namespaces/x", &Value::Null).await.expect(200);
    assert_eq!(pending["status"]["phase"], "Terminating");
    let (code, reason, message) =
        client.post("/api/v1/namespaces/x/configmaps", &config_map("b", "1")).await.status();
    assert_eq!((code, reason.as_str()), (403, "Forbidden"));
    assert_eq!(
        message,
        "configmaps \"b\" is forbidden: unable to create new content in namespace x because it is being terminated"
    );
    let mut finalized = pending.clone();
    finalized["spec"] = json!({"finalizers": []});
    client.put("/api/v1/namespaces/x/finalize", &finalized).await.expect(200);
    assert_eq!(client.get("/api/v1/namespaces/x").await.status().0, 404);
    let (code, _, message) = client.delete("/api/v1/namespaces/default", &Value::Null).await.status();
    assert_eq!(code, 403);
    assert_eq!(message, "namespaces \"default\" is forbidden: this namespace may not be deleted");
}
