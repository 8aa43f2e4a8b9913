//! Watches: from nothing, from a version, with selectors, as tables, and how they end.

use serde_json::{Value, json};

use crate::client::{CONFIG_MAPS, Client, PODS, config_map, pod};
use crate::server::TestServer;

const MERGE: &str = "application/merge-patch+json";

fn change(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn a_watch_begins_with_what_is_there_and_follows() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let created = client.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?watch=true")).await;
    assert_eq!(watch.next().await.unwrap(), json!({"type": "ADDED", "object": created}));
    client.patch(&format!("{CONFIG_MAPS}/a"), MERGE, &json!({"data": {"key": "2"}})).await.expect(200);
    let modified = watch.next().await.unwrap();
    assert_eq!((&modified["type"], &modified["object"]["data"]["key"]), (&json!("MODIFIED"), &json!("2")));
    client.delete(&format!("{CONFIG_MAPS}/a"), &Value::Null).await.expect(200);
    let deleted = watch.next().await.unwrap();
    assert_eq!((&deleted["type"], &deleted["object"]["data"]["key"]), (&json!("DELETED"), &json!("2")));
    assert_ne!(
        deleted["object"]["metadata"]["resourceVersion"],
        modified["object"]["metadata"]["resourceVersion"]
    );
}

#[tokio::test]
async fn a_watch_from_a_version_misses_nothing_after_it() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let first = client.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    client.post(CONFIG_MAPS, &config_map("b", "1")).await.expect(201);
    client.post("/api/v1/namespaces/kube-system/configmaps", &config_map("z", "1")).await.expect(201);
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={version}")).await;
    assert_eq!(watch.change().await, change("ADDED", "b"));
    client.post(CONFIG_MAPS, &config_map("c", "1")).await.expect(201);
    assert_eq!(watch.change().await, change("ADDED", "c"));
    // One object by name; namespaces and other kinds stay apart.
    let mut named = client.watch(&format!("{CONFIG_MAPS}/c?watch=true")).await;
    assert_eq!(named.change().await, change("ADDED", "c"));
}

#[tokio::test]
async fn selectors_turn_changes_into_coming_and_going() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    client.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?watch=true&labelSelector=app%3Dx")).await;
    let label = async |value: &str| {
        let body = json!({"metadata": {"labels": {"app": value}}});
        client.patch(&format!("{CONFIG_MAPS}/a"), MERGE, &body).await.expect(200)
    };
    label("x").await;
    assert_eq!(watch.change().await, change("ADDED", "a"));
    client.patch(&format!("{CONFIG_MAPS}/a"), MERGE, &json!({"data": {"key": "2"}})).await.expect(200);
    assert_eq!(watch.change().await, change("MODIFIED", "a"));
    let left = label("y").await;
    let deleted = watch.next().await.unwrap();
    assert_eq!(deleted["type"], "DELETED");
    assert_eq!(deleted["object"]["metadata"]["resourceVersion"], left["metadata"]["resourceVersion"]);

    client.post(PODS, &pod("p")).await.expect(201);
    let mut bound = client.watch(&format!("{PODS}?watch=true&fieldSelector=spec.nodeName%3Dn1")).await;
    let target = json!({"target": {"kind": "Node", "name": "n1"}});
    client.post(&format!("{PODS}/p/binding"), &target).await.expect(201);
    assert_eq!(bound.change().await, change("ADDED", "p"));
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    client.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let query =
        "watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?{query}")).await;
    assert_eq!(watch.change().await, change("ADDED", "a"));
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    client.post(CONFIG_MAPS, &config_map("b", "1")).await.expect(201);
    assert_eq!(watch.change().await, change("ADDED", "b"));
    assert_eq!(client.get(&format!("{CONFIG_MAPS}?watch=true&sendInitialEvents=true")).await.code, 422);
}

#[tokio::test]
async fn a_watch_ends_after_its_time_with_a_bookmark_that_is_up_to_date() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let version = server.store.revision();
    let query = format!("watch=true&timeoutSeconds=3&allowWatchBookmarks=true&resourceVersion={version}");
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?{query}")).await;
    // Changes elsewhere move the bookmark, though the watch shows none of them.
    client.post(PODS, &pod("p")).await.expect(201);
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    let reached: u64 = bookmark["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert!(reached > version, "{reached} {version}");
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_version_that_is_compacted_ends_the_watch_with_gone() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let first = client.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    client.post(CONFIG_MAPS, &config_map("b", "1")).await.expect(201);
    server.store.compact(server.store.revision());
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = client.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={version}")).await;
    let error = watch.next().await.unwrap();
    assert_eq!(error["type"], "ERROR");
    assert_eq!((&error["object"]["code"], &error["object"]["reason"]), (&json!(410), &json!("Expired")));
    assert!(
        error["object"]["message"].as_str().unwrap().starts_with("too old resource version: "),
        "{error}"
    );
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn tables_are_watched_too() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    client.post(PODS, &pod("a")).await.expect(201);
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let mut watch = client.watch_as(&format!("{PODS}?watch=true"), accept).await;
    let first = watch.next().await.unwrap();
    assert_eq!((&first["type"], &first["object"]["kind"]), (&json!("ADDED"), &json!("Table")));
    assert!(first["object"]["columnDefinitions"].is_array());
    assert_eq!(first["object"]["rows"][0]["cells"][0], "a");
    client.post(PODS, &pod("b")).await.expect(201);
    let second = watch.next().await.unwrap();
    assert!(second["object"]["columnDefinitions"].is_null());
    assert_eq!(second["object"]["rows"][0]["cells"][0], "b");
}

#[tokio::test]
async fn many_watchers_see_the_same_events_in_order() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let version = server.store.revision();
    let mut watches = Vec::new();
    for _ in 0..20 {
        watches.push(client.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={version}")).await);
    }
    for number in 0..30 {
        client.post(CONFIG_MAPS, &config_map(&format!("c{number:02}"), "1")).await.expect(201);
    }
    for watch in &mut watches {
        for number in 0..30 {
            assert_eq!(watch.change().await, change("ADDED", &format!("c{number:02}")));
        }
    }
}
