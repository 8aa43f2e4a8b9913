//! Reading: get, list, selectors, pages, forms, discovery, probes, who may.

use std::time::SystemTime;

use control::pki::Credentials;
use http::Method;
use serde_json::{Value, json};

use crate::client::{CONFIG_MAPS, Client, PODS, config_map, pod, request};
use crate::server::TestServer;

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_created_object_has_identity_defaults_and_one_text_everywhere() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let created = client.post(PODS, &pod("a")).await.expect(201);
    let meta = &created["metadata"];
    assert_eq!(meta["namespace"], "default");
    assert_eq!(meta["uid"].as_str().unwrap().len(), 36);
    assert_eq!(meta["creationTimestamp"].as_str().unwrap().len(), "2024-01-01T00:00:00Z".len());
    assert_eq!(created["status"]["phase"], "Pending");
    assert_eq!(created["spec"]["restartPolicy"], "Always");
    assert_eq!(created["spec"]["serviceAccountName"], "default");
    assert_eq!(created["spec"]["priority"], 0);
    assert_eq!(created["spec"]["tolerations"].as_array().unwrap().len(), 2);
    let got = client.get(&format!("{PODS}/a")).await.expect(200);
    assert_eq!(got, created);
    let list = client.get(PODS).await.expect(200);
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("PodList"), &json!("v1")));
    assert_eq!(list["items"][0], created);
    let missing = client.get(&format!("{PODS}/b")).await.status();
    assert_eq!(missing, (404, "NotFound".to_owned(), "pods \"b\" not found".to_owned()));
}

#[tokio::test]
async fn lists_select_by_label_field_and_namespace() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    for name in ["a", "b", "c"] {
        client.post(CONFIG_MAPS, &config_map(name, "1")).await.expect(201);
    }
    client.post("/api/v1/namespaces/kube-system/configmaps", &config_map("d", "1")).await.expect(201);
    for (path, expected) in [
        (format!("{CONFIG_MAPS}?labelSelector=app%21%3Da"), vec!["b", "c"]),
        (format!("{CONFIG_MAPS}?labelSelector=app+in+(a,b)"), vec!["a", "b"]),
        (format!("{CONFIG_MAPS}?fieldSelector=metadata.name%3Db"), vec!["b"]),
        (format!("{CONFIG_MAPS}?fieldSelector=metadata.name%3Db&labelSelector=app%3Da"), vec![]),
        ("/api/v1/configmaps?fieldSelector=metadata.namespace%3Dkube-system".to_owned(), vec!["d"]),
        ("/api/v1/configmaps".to_owned(), vec!["a", "b", "c", "d"]),
    ] {
        let list = client.get(&path).await.expect(200);
        assert_eq!(names(&list), expected, "{path}");
    }
    let (code, reason, message) = client.get(&format!("{PODS}?fieldSelector=spec.foo%3Db")).await.status();
    assert_eq!((code, reason.as_str()), (400, "BadRequest"));
    assert!(message.contains("field label not supported: spec.foo"), "{message}");
    assert_eq!(client.get(&format!("{PODS}?labelSelector=%3D%3D")).await.code, 400);
}

#[tokio::test]
async fn pages_show_one_revision_until_it_is_compacted() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    for number in 0..5 {
        client.post(CONFIG_MAPS, &config_map(&format!("c{number}"), "1")).await.expect(201);
    }
    let first = client.get(&format!("{CONFIG_MAPS}?limit=2")).await.expect(200);
    assert_eq!(names(&first), ["c0", "c1"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    // Changes after the first page are not seen by the next ones.
    client.delete(&format!("{CONFIG_MAPS}/c2"), &Value::Null).await.expect(200);
    client.post(CONFIG_MAPS, &config_map("c1a", "1")).await.expect(201);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = client.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await.expect(200);
    assert_eq!(names(&second), ["c2", "c3"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap();
    let last = client.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await.expect(200);
    assert_eq!(names(&last), ["c4"]);
    assert_eq!(last["metadata"].get("continue"), None);

    server.store.compact(server.store.revision());
    let (code, reason, message) =
        client.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await.status();
    assert_eq!((code, reason.as_str()), (410, "Expired"));
    assert!(message.starts_with("The provided continue parameter is too old"), "{message}");
    assert_eq!(client.get(&format!("{CONFIG_MAPS}?continue=nonsense")).await.code, 400);

    let selected =
        client.get(&format!("{CONFIG_MAPS}?limit=1&labelSelector=app+in+(c3,c4)")).await.expect(200);
    assert_eq!(names(&selected), ["c3"]);
    assert_eq!(selected["metadata"].get("remainingItemCount"), None);
    let token = selected["metadata"]["continue"].as_str().unwrap();
    let path = format!("{CONFIG_MAPS}?limit=1&labelSelector=app+in+(c3,c4)&continue={token}");
    assert_eq!(names(&client.get(&path).await.expect(200)), ["c4"]);
}

#[tokio::test]
async fn resource_versions_of_lists_are_honoured() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    client.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let old = client.get(CONFIG_MAPS).await.expect(200)["metadata"]["resourceVersion"].clone();
    let old = old.as_str().unwrap();
    client.post(CONFIG_MAPS, &config_map("b", "1")).await.expect(201);
    let at = async |query: &str| client.get(&format!("{CONFIG_MAPS}?{query}")).await;
    let exact = at(&format!("resourceVersion={old}&resourceVersionMatch=Exact")).await.expect(200);
    assert_eq!(names(&exact), ["a"]);
    let newer = at(&format!("resourceVersion={old}&resourceVersionMatch=NotOlderThan")).await.expect(200);
    assert_eq!(names(&newer), ["a", "b"]);
    assert_eq!(names(&at("resourceVersion=0").await.expect(200)), ["a", "b"]);
    let (code, reason, message) = at("resourceVersion=999999").await.status();
    assert_eq!((code, reason.as_str()), (504, "Timeout"));
    assert!(message.contains("Too large resource version: 999999"), "{message}");
    assert_eq!(at("resourceVersionMatch=Exact").await.code, 422);
    assert_eq!(at("resourceVersion=abc").await.code, 400);
    server.store.compact(server.store.revision());
    let exact = at(&format!("resourceVersion={old}&resourceVersionMatch=Exact")).await;
    assert_eq!(exact.status().1, "Expired");
}

#[tokio::test]
async fn answers_come_as_table_metadata_or_yaml() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    client.post(PODS, &pod("a")).await.expect(201);
    let table = client.get_as(PODS, "application/json;as=Table;v=v1;g=meta.k8s.io").await.expect(200);
    assert_eq!(table["kind"], "Table");
    let columns: Vec<_> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|column| column["priority"] == 0)
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(columns, ["Name", "Ready", "Status", "Restarts", "Age"]);
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let one = client.get_as(&format!("{PODS}/a"), "application/json;as=Table;v=v1;g=meta.k8s.io").await;
    assert_eq!(one.expect(200)["rows"].as_array().unwrap().len(), 1);

    let form = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let metadata = client.get_as(PODS, form).await.expect(200);
    assert_eq!(metadata["kind"], "PartialObjectMetadataList");
    assert_eq!(metadata["items"][0].get("spec"), None);

    let yaml = client.get_as(&format!("{PODS}/a"), "application/yaml").await;
    assert_eq!(yaml.headers["content-type"], "application/yaml");
    assert!(yaml.text().contains("\nkind: Pod\n"), "{}", yaml.text());
    let protobuf = "application/vnd.kubernetes.protobuf";
    let table = format!("{protobuf};as=Table;v=v1;g=meta.k8s.io");
    assert_eq!(client.get_as(PODS, &table).await.status().0, 406);
    let either = client.get_as(PODS, &format!("{table},application/json")).await;
    assert_eq!(either.headers["content-type"], "application/json");
    assert_eq!(client.get_as("/version", protobuf).await.code.as_u16(), 406);
    let body = bytes::Bytes::from_static(b"k8s\0");
    let posted = client.send(request(Method::POST, PODS, &[("content-type", protobuf)], body)).await;
    assert_eq!(posted.status().0, 415);
    let body =
        bytes::Bytes::from_static(b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: yaml}\ndata: {a: b}\n");
    let headers = [("content-type", "application/yaml")];
    let posted = client.send(request(Method::POST, CONFIG_MAPS, &headers, body)).await;
    assert_eq!(posted.expect(201)["data"]["a"], "b");
}

/// What the wire carries as protobuf, as JSON.
fn from_protobuf(answer: &crate::client::Answer, code: u16) -> Value {
    assert_eq!(answer.code.as_u16(), code, "{}", answer.text());
    assert_eq!(answer.headers["content-type"], "application/vnd.kubernetes.protobuf");
    something(api::protobuf::decode(&answer.body).unwrap())
}

/// Without the texts and objects in which nothing is: protobuf does not tell those from none.
fn something(value: Value) -> Value {
    let is_something = |key: &str, value: &Value| {
        key.contains(':') || !(value == "" || value.as_object().is_some_and(serde_json::Map::is_empty))
    };
    match value {
        Value::Object(members) => {
            let members = members.into_iter().map(|(key, value)| (key, something(value)));
            Value::Object(members.filter(|(key, value)| is_something(key, value)).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(something).collect()),
        other => other,
    }
}

#[tokio::test]
async fn protobuf_says_what_json_says() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let protobuf = "application/vnd.kubernetes.protobuf";
    let encode = |object: &Value| {
        let encoder =
            api::protobuf::Encoder::new(api::object::api_version(object), api::object::kind(object));
        bytes::Bytes::from(encoder.unwrap().object(object.to_string().as_bytes()).unwrap())
    };
    let headers =
        [("content-type", protobuf), ("accept", "application/vnd.kubernetes.protobuf,application/json")];
    for name in ["a", "b"] {
        let mut pod = pod(name);
        (pod["apiVersion"], pod["kind"]) = (json!("v1"), json!("Pod"));
        let answer = client.send(request(Method::POST, PODS, &headers, encode(&pod))).await;
        let created = from_protobuf(&answer, 201);
        assert_eq!(
            (&created["metadata"]["name"], &created["status"]["phase"]),
            (&json!(name), &json!("Pending"))
        );
    }
    let one = from_protobuf(&client.get_as(&format!("{PODS}/a"), protobuf).await, 200);
    assert_eq!(one, something(client.get(&format!("{PODS}/a")).await.expect(200)));
    let list = from_protobuf(&client.get_as(PODS, protobuf).await, 200);
    let mut text = something(client.get(PODS).await.expect(200));
    for item in text["items"].as_array_mut().unwrap() {
        // Items of a typed list do not repeat their type there.
        let item = item.as_object_mut().unwrap();
        item.remove("apiVersion");
        item.remove("kind");
    }
    assert_eq!(list["items"], text["items"]);
    assert_eq!(list["kind"], "PodList");
    let metadata = format!("{protobuf};as=PartialObjectMetadata;v=v1;g=meta.k8s.io");
    let metadata = from_protobuf(&client.get_as(&format!("{PODS}/a"), &metadata).await, 200);
    assert_eq!((&metadata["kind"], metadata.get("spec")), (&json!("PartialObjectMetadata"), None));
    let missing = from_protobuf(&client.get_as(&format!("{PODS}/none"), protobuf).await, 404);
    assert_eq!((&missing["kind"], &missing["reason"]), (&json!("Status"), &json!("NotFound")));
    let mut changed = one.clone();
    changed["metadata"]["labels"]["x"] = json!("y");
    let answer = client.send(request(Method::PUT, &format!("{PODS}/a"), &headers, encode(&changed))).await;
    assert_eq!(from_protobuf(&answer, 200)["metadata"]["labels"]["x"], "y");
}

const INITIAL: &str = "resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";

#[tokio::test]
async fn a_watch_in_protobuf_is_a_stream_of_frames() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    client.post(PODS, &pod("a")).await.expect(201);
    let path = format!("{PODS}?watch=true&timeoutSeconds=2&sendInitialEvents=true&{INITIAL}");
    let answer =
        client.get_as(&path, "application/vnd.kubernetes.protobuf;stream=watch,application/json").await;
    assert_eq!(answer.headers["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
    let mut events = Vec::new();
    let mut left = &answer.body[..];
    while let Some((length, rest)) = left.split_first_chunk::<4>() {
        let (event, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        left = rest;
        // The event itself has no envelope; it gets one here for the reader.
        let mut body = b"k8s\0\x0a\x10\x0a\x02v1\x12\x0aWatchEvent\x12".to_vec();
        let mut length = event.len();
        while length >= 0x80 {
            body.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        body.push(u8::try_from(length).unwrap());
        body.extend(event);
        events.push(api::protobuf::decode(&body).unwrap());
    }
    assert_eq!(
        (&events[0]["type"], &events[0]["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!("a"))
    );
    assert_eq!(
        something(events[0]["object"].clone()),
        something(client.get(&format!("{PODS}/a")).await.expect(200))
    );
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["object"]["kind"]), (&json!("BOOKMARK"), &json!("Pod")));
}

#[tokio::test]
async fn paths_and_methods_that_mean_nothing_are_told_so() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    for path in ["/nonsense", "/api/v1/foos", "/apis/foo.example.com/v1/bars", "/apis/nowhere"] {
        let answer = client.get(path).await;
        assert_eq!((answer.code.as_u16(), answer.text().as_str()), (404, "404 page not found\n"), "{path}");
    }
    let answer = client.call(Method::PUT, PODS, &json!({})).await;
    assert_eq!(answer.code.as_u16(), 405);
    assert_eq!(answer.headers["allow"], "DELETE, GET, POST");
    assert_eq!(client.post("/api/v1/pods", &pod("a")).await.code.as_u16(), 405);
    let head = client.call(Method::HEAD, PODS, &Value::Null).await;
    assert_eq!((head.code.as_u16(), head.body.len()), (200, 0));
    let named = client
        .send(request(Method::GET, "/version", &[("audit-id", "my-own-id")], bytes::Bytes::new()))
        .await;
    assert_eq!(named.headers["audit-id"], "my-own-id");
}

#[tokio::test]
async fn discovery_names_what_is_served() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    assert_eq!(client.get("/api").await.expect(200)["versions"], json!(["v1"]));
    let groups = client.get("/apis").await.expect(200);
    assert_eq!(groups["groups"][0]["name"], "admissionregistration.k8s.io");
    let core = client.get("/api/v1").await.expect(200);
    let pods = core["resources"].as_array().unwrap().iter().find(|r| r["name"] == "pods").unwrap();
    assert_eq!(pods["shortNames"], json!(["po"]));
    let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let aggregated = client.get_as("/apis", &format!("{v2},application/json")).await;
    assert_eq!(aggregated.headers["content-type"], v2);
    let tag = aggregated.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(aggregated.json()["items"][0]["metadata"]["name"], "admissionregistration.k8s.io");
    let headers = [("accept", v2), ("if-none-match", tag.as_str())];
    let again = client.send(request(Method::GET, "/apis", &headers, bytes::Bytes::new())).await;
    assert_eq!((again.code.as_u16(), again.body.len()), (304, 0));
    let version = client.get("/version").await.expect(200);
    assert!(version["gitVersion"].as_str().unwrap().starts_with("v1.33."), "{version}");
}

#[tokio::test]
async fn nobody_gets_in_without_a_right() {
    let server = TestServer::start().await;
    let anonymous = Client::new(&server, None);
    assert_eq!(anonymous.get(PODS).await.status(), (401, "Unauthorized".into(), "Unauthorized".into()));
    assert_eq!(anonymous.get("/metrics").await.code.as_u16(), 401);
    for path in ["/livez", "/readyz", "/healthz", "/version"] {
        assert_eq!(anonymous.get(path).await.code.as_u16(), 200, "{path}");
    }
    let node = node_client(&server, "n1");
    assert_eq!(node.get("/api/v1/nodes/n1").await.status().0, 404);
    let (code, reason, message) = node.get(PODS).await.status();
    assert_eq!((code, reason.as_str()), (403, "Forbidden"));
    assert_eq!(
        message,
        "pods is forbidden: User \"system:node:n1\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(node.delete("/api/v1/nodes/n1", &Value::Null).await.code.as_u16(), 403);
    assert_eq!(node.get("/api").await.code.as_u16(), 200);
}

fn node_client(server: &TestServer, name: &str) -> Client {
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let certificate_pem = server.authority.sign_node_csr(name, &request, SystemTime::now()).unwrap();
    let ca_pem = server.authority.certificate_pem().to_owned();
    Client::new(server, Some(&Credentials { certificate_pem, key_pem: key.serialize_pem(), ca_pem }))
}

#[tokio::test]
async fn probes_report_a_lost_quorum() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let ready = client.get("/readyz?verbose").await;
    assert!(ready.text().contains("[+]raft ok\n"), "{}", ready.text());
    assert!(ready.text().ends_with("readyz check passed\n"));
    server.store.set_leadership(control::object_store::Leadership { term: 2, leader: None, is_self: false });
    let ready = client.get("/readyz").await;
    assert_eq!(ready.code.as_u16(), 500);
    assert!(ready.text().contains("[-]raft failed"), "{}", ready.text());
    assert_eq!(client.get("/livez").await.text(), "ok");
    assert_eq!(client.get("/readyz/nonsense").await.code.as_u16(), 404);

    server.store.set_unavailable(Some("no leader is known"));
    let refused = client.post(CONFIG_MAPS, &config_map("a", "1")).await;
    assert_eq!(refused.headers["retry-after"], "1");
    let (code, reason, message) = refused.status();
    assert_eq!((code, reason.as_str()), (503, "ServiceUnavailable"));
    assert!(message.contains("no leader is known"), "{message}");
    let metrics = client.get("/metrics").await.text();
    assert!(
        metrics.contains("apiserver_request_total{verb=\"create\",resource=\"configmaps\",code=\"503\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn logs_go_to_the_pods_node() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    client.post(PODS, &pod("a")).await.expect(201);
    assert_eq!(client.get(&format!("{PODS}/a/log")).await.text(), "");
    let target = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n1"}});
    client.post(&format!("{PODS}/a/binding"), &target).await.expect(201);
    let again = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n2"}});
    let (code, _, message) = client.post(&format!("{PODS}/a/binding"), &again).await.status();
    assert_eq!(code, 409, "{message}");
    let log = client.get(&format!("{PODS}/a/log?tailLines=5&follow=true&sinceSeconds=10")).await;
    assert_eq!(log.headers["content-type"], "text/plain");
    assert_eq!(log.text(), "n1 a main follow=true previous=false tail=Some(5) since=true\nsecond line\n");
    let (code, _, message) = client.get(&format!("{PODS}/a/log?container=x")).await.status();
    assert_eq!((code, message.as_str()), (400, "container x is not valid for pod a"));
    assert_eq!(client.get(&format!("{PODS}/a/log?tailLines=-1")).await.code.as_u16(), 422);
    assert_eq!(client.get(&format!("{PODS}/b/log")).await.code.as_u16(), 404);
}
