//! The audit log: what is noted of whom, how much, and what never is.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use control::audit::{Audit, Settings};
use control::rest::Security;
use http::Method;
use serde_json::{Value, json};

use crate::client::{CONFIG_MAPS, Client, config_map, request};
use crate::server::TestServer;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: None
  nonResourceURLs: ["/metrics", "/readyz*"]
- level: Metadata
  resources: [{group: "", resources: [secrets]}, {group: "", resources: ["serviceaccounts/token"]}]
- level: Request
  verbs: [delete, patch]
- level: RequestResponse
  resources: [{group: "", resources: [configmaps]}]
  omitStages: []
- level: Metadata
"#;

async fn server(directory: &Path) -> (TestServer, Arc<Audit>) {
    std::fs::write(directory.join("policy.yaml"), POLICY).unwrap();
    let settings = Settings {
        policy_file: directory.join("policy.yaml"),
        log_path: directory.join("log/audit.log"),
        log_max_size: 100,
        log_max_backup: 3,
        log_max_age: 1,
    };
    let audit = Arc::new(Audit::open(&settings).unwrap());
    let security = Security { audit: Some(audit.clone()), ..Security::default() };
    (TestServer::start_secured(security).await, audit)
}

/// Every event, once everything is written.
fn events(directory: &Path, audit: &Audit) -> (String, Vec<Value>) {
    audit.close();
    let text = std::fs::read_to_string(directory.join("log/audit.log")).unwrap();
    let events = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (text, events)
}

/// A token of the account that every namespace gets by itself.
async fn token(client: &Client) -> String {
    for _ in 0..1000 {
        let asked = client.post("/api/v1/namespaces/default/serviceaccounts/default/token", &json!({})).await;
        if asked.code == 201 {
            return asked.json()["status"]["token"].as_str().unwrap().to_owned();
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the namespace never got its account");
}

#[tokio::test]
async fn the_policy_says_how_much_is_noted_and_secrets_do_not_leak() {
    let directory = tempfile::tempdir().unwrap();
    let (server, audit) = server(directory.path()).await;
    let client = Client::admin(&server);
    let answer = client.post(CONFIG_MAPS, &config_map("one", "plain words")).await;
    let id = answer.headers["audit-id"].to_str().unwrap().to_owned();
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "correct horse"}});
    client.post(SECRETS, &secret).await.expect(201);
    client.get(&format!("{SECRETS}/s")).await.expect(200);
    let token = token(&client).await;
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("user-agent", "robot/1.0")];
    let nobody = Client::new(&server, None);
    nobody.send(request(Method::GET, CONFIG_MAPS, &headers, Bytes::new())).await;
    nobody.get(CONFIG_MAPS).await;
    let headers = [("impersonate-user", "jane"), ("audit-id", "my-own-id")];
    let answer = client.send(request(Method::GET, "/api/v1/pods", &headers, Bytes::new())).await;
    assert_eq!(answer.headers["audit-id"], "my-own-id");
    let patch = json!({"data": {"key": "new words"}});
    client.merge(&format!("{CONFIG_MAPS}/one"), &patch).await.expect(200);
    client.get("/metrics").await;
    let watched = client.watch(&format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=1&resourceVersion=0")).await;
    let mut watched = watched;
    while watched.next().await.is_some() {}
    drop(watched);
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let (text, events) = events(directory.path(), &audit);
    for secret in ["correct horse", "password", "Y29ycmVjdCBob3JzZQ", token.as_str(), "Bearer"] {
        assert!(!text.contains(secret), "{secret:?} is in the log");
    }
    assert!(!text.contains("/metrics") && !text.contains("managedFields"));
    let find = |test: &dyn Fn(&Value) -> bool| {
        let mut found = events.iter().filter(|event| test(event));
        found.next().cloned().unwrap_or_else(|| panic!("not in the log: {text}"))
    };
    let made = find(&|event| event["auditID"] == id.as_str() && event["stage"] == "ResponseComplete");
    assert_eq!(made["kind"], "Event");
    assert_eq!(made["apiVersion"], "audit.k8s.io/v1");
    assert_eq!(made["level"], "RequestResponse");
    assert_eq!(made["verb"], "create");
    assert_eq!(made["requestURI"], CONFIG_MAPS);
    assert_eq!(made["user"]["username"], "admin");
    assert_eq!(made["sourceIPs"], json!(["127.0.0.1"]));
    assert_eq!(
        made["objectRef"],
        json!({"resource": "configmaps", "apiVersion": "v1", "namespace": "default"})
    );
    assert_eq!(made["responseStatus"]["code"], 201);
    assert_eq!(made["requestObject"]["data"]["key"], "plain words");
    assert_eq!(made["responseObject"]["metadata"]["name"], "one");
    let noted =
        |verb: &str| find(&|event| event["objectRef"]["resource"] == "secrets" && event["verb"] == verb);
    for event in [noted("create"), noted("get")] {
        assert_eq!(event["level"], "Metadata");
        assert!(event["requestObject"].is_null() && event["responseObject"].is_null(), "{event}");
    }
    let patched = find(&|event| event["verb"] == "patch");
    assert_eq!((&patched["level"], &patched["requestObject"]), (&json!("Request"), &patch));
    assert!(patched["responseObject"].is_null());
    let robot = find(&|event| event["userAgent"] == "robot/1.0" && event["stage"] == "ResponseComplete");
    assert_eq!(robot["user"]["username"], "system:serviceaccount:default:default");
    assert_eq!(
        (&robot["responseStatus"]["code"], &robot["responseStatus"]["reason"]),
        (&json!(403), &json!("Forbidden"))
    );
    let jane = find(&|event| event["auditID"] == "my-own-id");
    assert_eq!(
        (&jane["user"]["username"], &jane["impersonatedUser"]["username"]),
        (&json!("admin"), &json!("jane"))
    );
    find(&|event| event["user"]["username"] == "system:anonymous" && event["responseStatus"]["code"] == 401);
    let of_watch = |stage: &str| find(&|event| event["verb"] == "watch" && event["stage"] == stage);
    assert_eq!(of_watch("ResponseStarted")["auditID"], of_watch("ResponseComplete")["auditID"]);
}
