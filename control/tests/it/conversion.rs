//! Webhooks between versions: custom kinds whose versions differ in more than their name, and admission webhooks
//! that ask for another version than the one that was sent. Rows: WS-K8S-12, KIA-API-002.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Client, PODS, pod};
use crate::server::TestServer;
use crate::webhook::{Webhook, admission};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const V1: &str = "/apis/lab.example.com/v1/namespaces/default/sites";
const V2: &str = "/apis/lab.example.com/v2/namespaces/default/sites";
const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";
const PATIENCE: Duration = Duration::from_secs(30);

/// Sites have `hostPort` in v1, which is stored, and `host` and `port` in v2.
fn definition(client_config: &Value) -> Value {
    let version = |name: &str, is_stored: bool, fields: Value| {
        json!({"name": name, "served": true, "storage": is_stored, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": fields},
                "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}}}}}})
    };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "sites.lab.example.com"}, "spec": {"group": "lab.example.com", "scope": "Namespaced",
            "names": {"plural": "sites", "kind": "Site"},
            "versions": [
                version("v1", true, json!({"hostPort": {"type": "string", "maxLength": 20}})),
                version("v2", false, json!({"host": {"type": "string"}, "port": {"type": "integer", "maximum": 65535}})),
            ],
            "conversion": {"strategy": "Webhook",
                "webhook": {"conversionReviewVersions": ["v1", "v1beta1"], "clientConfig": client_config}}}})
}

/// Converts sites, or fails to as the mode says.
fn convert(mode: &str, review: &Value) -> Value {
    let request = &review["request"];
    assert_eq!(
        (&review["kind"], &review["apiVersion"]),
        (&json!("ConversionReview"), &json!("apiextensions.k8s.io/v1"))
    );
    let mut objects = request["objects"].clone();
    for object in objects.as_array_mut().unwrap() {
        assert_ne!(object["apiVersion"], request["desiredAPIVersion"], "nothing is sent that need not be");
        object["apiVersion"] = request["desiredAPIVersion"].clone();
        let spec = object["spec"].clone();
        object["spec"] = match spec["hostPort"].as_str() {
            Some(text) => {
                let (host, port) = text.split_once(':').unwrap();
                json!({"host": host, "port": port.parse::<u16>().unwrap(), "unknown": true})
            }
            None => json!({"hostPort": format!("{}:{}", spec["host"].as_str().unwrap(), spec["port"])}),
        };
        object["metadata"]["labels"]["converted"] = json!("yes");
        match mode {
            "another uid" => object["metadata"]["uid"] = json!("other"),
            "meddling" => object["metadata"]["finalizers"] = json!(["example.com/never"]),
            _ => {}
        }
    }
    let result = match mode {
        "failing" => json!({"status": "Failure", "message": "not today"}),
        _ => json!({"status": "Success"}),
    };
    json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
        "response": {"uid": request["uid"], "result": result, "convertedObjects": objects}})
}

/// A webhook for sites, and where it is told how to behave.
async fn converter(names: &[&str]) -> (Webhook, Arc<Mutex<&'static str>>) {
    let mode = Arc::new(Mutex::new(""));
    let own = mode.clone();
    (Webhook::serve(names, move |_, review| convert(*own.lock().unwrap(), &review)).await, mode)
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{what}"));
}

async fn establish(client: &Client, definition: &Value) {
    client.post(DEFINITIONS, definition).await.expect(201);
    until("the kind is not served", async || client.get(V1).await.code == 200).await;
}

fn site(version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("lab.example.com/{version}"), "kind": "Site",
        "metadata": {"name": name, "labels": {"app": name}}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_stands_between_the_versions_of_a_kind() {
    let server = TestServer::start_leading().await;
    let (client, second) = (Client::admin(&server), server.beside().await);
    let other = Client::admin(&second);
    let (hook, _) = converter(&[]).await;
    let mut definition = definition(&hook.by_url());
    establish(&client, &definition).await;
    let mut watches =
        (client.watch(&format!("{V1}?watch=1")).await, other.watch(&format!("{V2}?watch=1")).await);

    let made = client.post(V2, &site("v2", "b", json!({"host": "b", "port": 80}))).await.expect(201);
    assert_eq!(
        (&made["apiVersion"], &made["spec"]),
        (&json!("lab.example.com/v2"), &json!({"host": "b", "port": 80}))
    );
    other.post(V1, &site("v1", "a", json!({"hostPort": "a:81"}))).await.expect(201);
    let stored = other.get(&format!("{V1}/b")).await.expect(200);
    assert_eq!(stored["spec"], json!({"hostPort": "b:80"}));
    assert_eq!(
        (&stored["metadata"]["uid"], &stored["metadata"]["generation"]),
        (&made["metadata"]["uid"], &json!(1))
    );
    let shown = client.get(&format!("{V2}/a")).await.expect(200);
    assert_eq!(shown["spec"], json!({"host": "a", "port": 81}), "what the schema does not name is dropped");
    let list = other.get(&format!("{V2}?labelSelector=converted%3Dyes")).await.expect(200);
    let specs: Vec<&Value> = list["items"].as_array().unwrap().iter().map(|item| &item["spec"]).collect();
    assert_eq!(specs, [&json!({"host": "a", "port": 81}), &json!({"host": "b", "port": 80})]);
    for (name, old, new) in
        [("b", "b:80", json!({"host": "b", "port": 80})), ("a", "a:81", json!({"host": "a", "port": 81}))]
    {
        let (left, right) = (watches.0.next().await.unwrap(), watches.1.next().await.unwrap());
        assert_eq!((&left["type"], &left["object"]["metadata"]["name"]), (&json!("ADDED"), &json!(name)));
        assert_eq!(
            (&left["object"]["spec"]["hostPort"], &left["object"]["apiVersion"]),
            (&json!(old), &json!("lab.example.com/v1"))
        );
        assert_eq!(
            (&right["object"]["spec"], &right["object"]["apiVersion"]),
            (&new, &json!("lab.example.com/v2"))
        );
    }
    // A watcher from before the feed's first event, and one who begins with what is there.
    let mut late = client.watch(&format!("{V2}?watch=1&resourceVersion=0")).await;
    assert_eq!(late.next().await.unwrap()["object"]["spec"], json!({"host": "a", "port": 81}));

    // Changes in either version; each is checked by its own schema.
    let path = format!("{V2}/b");
    let patched = client.merge(&path, &json!({"spec": {"port": 8080}})).await.expect(200);
    assert_eq!(
        (&patched["spec"], &patched["metadata"]["generation"]),
        (&json!({"host": "b", "port": 8080}), &json!(2))
    );
    assert_eq!(client.get(&format!("{V1}/b")).await.json()["spec"]["hostPort"], "b:8080");
    assert_eq!(client.merge(&path, &json!({"spec": {"port": 70000}})).await.code, 422);
    let apply = format!("{path}?fieldManager=me&force=true");
    let applied = json!({"apiVersion": "lab.example.com/v2", "kind": "Site", "metadata": {"name": "b"}, "spec": {"host": "c"}});
    let applied = client.patch(&apply, "application/apply-patch+yaml", &applied).await.expect(200);
    assert_eq!(applied["spec"], json!({"host": "c", "port": 8080}));
    let status = client.merge(&format!("{path}/status"), &json!({"status": {"ready": true}})).await;
    assert_eq!(status.expect(200)["status"]["ready"], true);
    assert_eq!(client.get(&format!("{V1}/b")).await.json()["spec"]["hostPort"], "c:8080");
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    let before = client.get(&path).await.expect(200);
    let same = client.merge(&path, &json!({"spec": {"port": 8080}})).await.expect(200);
    assert_eq!(version(&before), version(&same), "nothing changed, nothing is written");

    // Once another version is stored, the next write moves an object there.
    definition["spec"]["versions"][0]["storage"] = json!(false);
    definition["spec"]["versions"][1]["storage"] = json!(true);
    let change = json!({"spec": definition["spec"]});
    let changed = client.merge(&format!("{DEFINITIONS}/sites.lab.example.com"), &change).await;
    assert_eq!(changed.expect(200)["status"]["storedVersions"], json!(["v1", "v2"]));
    until("nothing is written", async || {
        let written = client.merge(&path, &json!({"spec": {"port": 8080}})).await.expect(200);
        version(&written) != version(&same)
    })
    .await;
    assert_eq!(other.get(&format!("{V1}/b")).await.json()["spec"]["hostPort"], "c:8080");
    client.delete(&format!("{V1}/b"), &Value::Null).await.expect(200);
    other.get(&path).await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversion_that_fails_says_why_and_changes_no_identity() {
    let server = TestServer::start_leading().await;
    let client = Client::admin(&server);
    let (hook, mode) = converter(&[]).await;
    establish(&client, &definition(&hook.by_url())).await;
    client.post(V1, &site("v1", "a", json!({"hostPort": "a:81"}))).await.expect(201);
    let of = |path: String| {
        let client = &client;
        async move { client.get(&path).await.status() }
    };
    *mode.lock().unwrap() = "failing";
    let why = "conversion webhook for lab.example.com/v1, Kind=Site failed: not today";
    let expected = (500, "InternalError".to_owned(), why.to_owned());
    assert_eq!(of(format!("{V2}/a")).await, expected);
    assert_eq!(of(V2.to_owned()).await, expected);
    let refused = client.merge(&format!("{V2}/a"), &json!({"spec": {"port": 1}})).await;
    assert_eq!(refused.status(), expected);
    let refused = client.post(V2, &site("v2", "b", json!({"host": "b", "port": 80}))).await;
    assert_eq!(refused.status().2, why.replace("v1,", "v2,"));
    client.get(&format!("{V1}/b")).await.expect(404);
    // Who watches is told, too.
    let version = client.get(V1).await.json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watch = client.watch(&format!("{V2}?watch=1&resourceVersion={version}")).await;
    client.merge(&format!("{V1}/a"), &json!({"spec": {"hostPort": "a:82"}})).await.expect(200);
    let told = async {
        loop {
            match watch.next().await {
                Some(event) if event["type"] == "ERROR" => return event,
                Some(event) => panic!("{event}"),
                None => watch = client.watch(&format!("{V2}?watch=1&resourceVersion={version}")).await,
            }
        }
    };
    let told = tokio::time::timeout(PATIENCE, told).await.expect("an error");
    assert_eq!((&told["object"]["kind"], &told["object"]["message"]), (&json!("Status"), &json!(why)));
    *mode.lock().unwrap() = "another uid";
    let (code, _, message) = of(format!("{V2}/a")).await;
    assert_eq!(code, 500);
    assert!(message.starts_with("conversion webhook for lab.example.com/v1, Kind=Site returned invalid converted object at index 0: must have the same UID: "), "{message}");
    *mode.lock().unwrap() = "meddling";
    let shown = client.get(&format!("{V2}/a")).await.expect(200);
    assert_eq!((&shown["metadata"]["finalizers"], &shown["spec"]["port"]), (&Value::Null, &json!(82)));
    // One that is not there at all.
    let nowhere =
        json!({"spec": {"conversion": {"webhook": {"clientConfig": {"url": "https://127.0.0.1:1/x"}}}}});
    client.merge(&format!("{DEFINITIONS}/sites.lab.example.com"), &nowhere).await.expect(200);
    let why = "conversion webhook for lab.example.com/v1, Kind=Site failed: Post \"https://127.0.0.1:1/x\": ";
    until("the old webhook is asked", async || of(format!("{V2}/a")).await.2.starts_with(why)).await;
    // The kind goes all the same: its objects are stored in a version that needs no webhook.
    client.delete(&format!("{DEFINITIONS}/sites.lab.example.com"), &Value::Null).await.expect(200);
    until("the kind stays", async || client.get(V1).await.code == 404).await;
}

/// A Service whose one endpoint is a pod that has this port.
async fn service(client: &Client, name: &str, port: u16) {
    let service =
        json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 443}], "selector": {"app": name}}});
    client.post("/api/v1/namespaces/default/services", &service).await.expect(201);
    client.post(PODS, &pod(name)).await.expect(201);
    let target = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}});
    client.post(&format!("{PODS}/{name}/binding"), &target).await.expect(201);
    let endpoints = json!({"metadata": {"name": name}, "subsets": [{"ports": [{"port": port}],
        "addresses": [{"ip": "10.244.0.9", "targetRef": {"kind": "Pod", "name": name, "namespace": "default"}}]}]});
    client.post("/api/v1/namespaces/default/endpoints", &endpoints).await.expect(201);
}

fn configuration(client_config: &Value, groups: [&str; 2], resource: &str, policy: &str) -> Value {
    json!({"metadata": {"name": "hook"}, "webhooks": [{"name": "hook.example.com", "clientConfig": client_config,
        "rules": [{"apiGroups": [groups[0]], "apiVersions": [groups[1]], "operations": ["CREATE", "UPDATE"],
            "resources": [resource]}],
        "matchPolicy": policy, "sideEffects": "None", "admissionReviewVersions": ["v1"]}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_behind_a_service_is_found_through_its_pods_node() {
    use crate::client::{CONFIG_MAPS, config_map};

    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let hook = Webhook::serve(&["hook.default.svc"], |path, review| {
        let denied = admission(|_| json!({"allowed": false, "status": {"message": "asked", "code": 418}}));
        assert_eq!(path, "/hook");
        denied(path, review)
    })
    .await;
    let path = format!("{REGISTRATION}/validatingwebhookconfigurations");
    let mut wanted = configuration(&hook.by_service("hook"), ["", "v1"], "configmaps", "Exact");
    wanted["webhooks"][0]["clientConfig"]["service"]["port"] = json!(70_000);
    assert_eq!(client.post(&path, &wanted).await.code, 422);
    wanted["webhooks"][0]["clientConfig"]["service"]["port"] = json!(null);
    let made = client.post(&path, &wanted).await.expect(201);
    assert_eq!(made["webhooks"][0]["clientConfig"]["service"]["port"], 443);
    let attempt = async || client.post(CONFIG_MAPS, &config_map("a", "x")).await;
    let failed = |why: &str| {
        format!(
            "Internal error occurred: failed calling webhook \"hook.example.com\": Post \"https://hook.default.svc:443/hook\": {why}"
        )
    };
    until("the webhook is not asked", async || {
        client.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a", "x")).await.code != 201
    })
    .await;
    assert_eq!(attempt().await.status().2, failed("services \"hook\" not found"));
    service(&client, "hook", hook.port).await;
    assert_eq!(
        attempt().await.status(),
        (
            418,
            "Forbidden".to_owned(),
            "admission webhook \"hook.example.com\" denied the request: asked".to_owned()
        )
    );
    // Somebody else's certificate is not good enough, and a closed port is said to be one.
    let stranger = Webhook::serve(&["other.default.svc"], |_, review| review).await;
    let endpoints = "/api/v1/namespaces/default/endpoints/hook";
    let port = |port: u16| {
        json!({"subsets": [{"ports": [{"port": port}], "addresses": [{"ip": "10.244.0.9",
        "targetRef": {"kind": "Pod", "name": "hook", "namespace": "default"}}]}]})
    };
    client.merge(endpoints, &port(stranger.port)).await.expect(200);
    let message = attempt().await.status().2;
    assert!(message.starts_with(&failed("")) && message.contains("certificate"), "{message}");
    client.merge(endpoints, &port(1)).await.expect(200);
    let message = attempt().await.status().2;
    assert!(message.starts_with(&failed("no way to 10.244.0.9:1 behind service \"hook\": ")), "{message}");
    client.merge(endpoints, &json!({"subsets": null})).await.expect(200);
    assert_eq!(attempt().await.status().2, failed("no endpoints available for service \"hook\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_see_the_version_that_they_ask_for() {
    const OLD: &str = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let server = TestServer::start_leading().await;
    let client = Client::admin(&server);
    let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
    let noted = seen.clone();
    // Adds "tuned" to whatever it sees, and a port to sites.
    let hook = Webhook::serve(&[], move |path, review| {
        noted.lock().unwrap().push(review["request"].clone());
        let patch = match review["request"]["kind"]["kind"] == "Site" {
            true => "W3sib3AiOiJyZXBsYWNlIiwicGF0aCI6Ii9zcGVjL3BvcnQiLCJ2YWx1ZSI6OX1d",
            false => "W3sib3AiOiJyZXBsYWNlIiwicGF0aCI6Ii9zcGVjL21ldHJpY3MvMC9yZXNvdXJjZS90YXJnZXQvYXZlcmFnZVV0aWxpemF0aW9uIiwidmFsdWUiOjQyfV0=",
        };
        admission(|_| json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}))(path, review)
    })
    .await;
    let path = format!("{REGISTRATION}/mutatingwebhookconfigurations");
    let asks_for_new = |policy: &str| {
        configuration(&hook.by_url(), ["autoscaling", "v2"], "horizontalpodautoscalers", policy)
    };
    client.post(&path, &asks_for_new("Equivalent")).await.expect(201);
    let old = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"maxReplicas": 5, "targetCPUUtilizationPercentage": 70,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}})
    };
    until("the webhook is not asked", async || {
        let made = client.post(&format!("{OLD}?dryRun=All"), &old("a")).await.expect(201);
        made["spec"]["targetCPUUtilizationPercentage"] == 42
    })
    .await;
    let request = seen.lock().unwrap().pop().unwrap();
    assert_eq!(
        request["kind"],
        json!({"group": "autoscaling", "version": "v2", "kind": "HorizontalPodAutoscaler"})
    );
    assert_eq!(request["requestKind"]["version"], "v1");
    assert_eq!(
        (&request["resource"]["version"], &request["requestResource"]["version"]),
        (&json!("v2"), &json!("v1"))
    );
    assert_eq!(request["object"]["apiVersion"], "autoscaling/v2");
    assert_eq!(request["object"]["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 70);
    let mut exact = asks_for_new("Exact");
    exact["metadata"]["resourceVersion"] =
        client.get(&format!("{path}/hook")).await.json()["metadata"]["resourceVersion"].clone();
    client.put(&format!("{path}/hook"), &exact).await.expect(200);
    until("another version is still sent", async || {
        let made = client.post(&format!("{OLD}?dryRun=All"), &old("a")).await.expect(201);
        made["spec"]["targetCPUUtilizationPercentage"] == 70
    })
    .await;

    // A kind of one's own, converted by a webhook of its own on the way there and back.
    let (converter, _) = converter(&[]).await;
    establish(&client, &definition(&converter.by_url())).await;
    let wanted = configuration(&hook.by_url(), ["lab.example.com", "v2"], "sites", "Equivalent");
    client.put(&format!("{path}/hook"), &wanted).await.expect(200);
    until("the webhook is not asked", async || {
        let made =
            client.post(&format!("{V1}?dryRun=All"), &site("v1", "a", json!({"hostPort": "a:81"}))).await;
        made.expect(201)["spec"]["hostPort"] == "a:9"
    })
    .await;
    let request = seen.lock().unwrap().pop().unwrap();
    assert_eq!(request["object"]["spec"], json!({"host": "a", "port": 81, "unknown": true}));
    assert_eq!(request["requestKind"], json!({"group": "lab.example.com", "version": "v1", "kind": "Site"}));
}
