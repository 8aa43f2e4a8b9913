//! Service accounts over REST: what a pod gets of its account, tokens and whom they name.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::client::{Answer, Client, PODS, pod, request};
use crate::server::TestServer;

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";

fn account(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
}

/// A request without a certificate, with this token.
async fn get_with(server: &TestServer, token: &str, path: &str) -> Answer {
    let client = Client::new(server, None);
    let bearer = format!("Bearer {token}");
    client.send(request(Method::GET, path, &[("authorization", &bearer)], Bytes::new())).await
}

#[tokio::test]
async fn a_token_is_issued_and_names_its_account() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    client.post(ACCOUNTS, &account("robot")).await.expect(201);
    let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"expirationSeconds": 900}});
    let token = client.post(&format!("{ACCOUNTS}/robot/token"), &asked).await.expect(201);
    assert_eq!(token["kind"], "TokenRequest");
    assert_eq!(token["metadata"]["name"], "robot");
    assert_eq!(token["spec"]["expirationSeconds"], 900);
    assert!(token["status"]["expirationTimestamp"].is_string());
    let text = token["status"]["token"].as_str().unwrap();
    assert_eq!(get_with(&server, text, "/api").await.code, 200, "known: may read what the API is made of");
    let (code, reason, message) = get_with(&server, text, PODS).await.status();
    assert_eq!((code, reason.as_str()), (403, "Forbidden"), "known, and allowed nothing");
    assert_eq!(
        message,
        "pods is forbidden: User \"system:serviceaccount:default:robot\" cannot list resource \"pods\" in API \
         group \"\" in the namespace \"default\""
    );
    assert_eq!(get_with(&server, &format!("{text}x"), "/api").await.code, 401);
    assert_eq!(get_with(&server, "nonsense", PODS).await.code, 401);
    let none = client.post(&format!("{ACCOUNTS}/nobody/token"), &asked).await.status();
    assert_eq!(none, (404, "NotFound".into(), "serviceaccounts \"nobody\" not found".into()));
    client.delete(&format!("{ACCOUNTS}/robot"), &Value::Null).await.expect(200);
    assert_eq!(get_with(&server, text, "/api").await.code, 401, "its account is gone");
}

#[tokio::test]
async fn pods_get_what_their_account_has_unless_somebody_says_no() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let mut robot = account("robot");
    robot["imagePullSecrets"] = json!([{"name": "registry"}]);
    client.post(ACCOUNTS, &robot).await.expect(201);
    let mut silent = account("silent");
    silent["automountServiceAccountToken"] = json!(false);
    client.post(ACCOUNTS, &silent).await.expect(201);
    let of = |name: &str, account: &str| {
        let mut pod = pod(name);
        pod["spec"]["serviceAccountName"] = json!(account);
        pod
    };
    let made = client.post(PODS, &of("a", "robot")).await.expect(201);
    assert_eq!(made["spec"]["imagePullSecrets"], json!([{"name": "registry"}]));
    let volume = &made["spec"]["volumes"][0];
    let name = volume["name"].as_str().unwrap();
    assert!(name.starts_with("kube-api-access-"), "{name}");
    assert_eq!(volume["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], 3607);
    assert_eq!(volume["projected"]["sources"][1]["configMap"]["name"], "kube-root-ca.crt");
    assert_eq!(
        made["spec"]["containers"][0]["volumeMounts"],
        json!([{"name": name, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}])
    );
    let made = client.post(PODS, &of("b", "silent")).await.expect(201);
    assert!(made["spec"]["volumes"].is_null(), "the account says no: {made}");
    let mut asking = of("c", "silent");
    asking["spec"]["automountServiceAccountToken"] = json!(true);
    let made = client.post(PODS, &asking).await.expect(201);
    assert_eq!(made["spec"]["volumes"].as_array().map(Vec::len), Some(1), "the pod has the last word");
    let (code, _, message) = client.post(PODS, &of("d", "nobody")).await.status();
    assert_eq!(code, 403);
    assert_eq!(
        message,
        "pods \"d\" is forbidden: error looking up service account default/nobody: serviceaccount \"nobody\" not found"
    );
}
