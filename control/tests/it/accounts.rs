//! Service accounts over REST: what a pod gets of its account, tokens and whom they name.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::client::{Answer, Client, PODS, pod, request};
use crate::kubectl::with_each_on;
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
async fn keys_are_rotated_and_shown_by_every_replica() {
    let server = TestServer::start().await;
    let other = server.beside().await;
    let client = Client::admin(&server);
    client.post(ACCOUNTS, &account("robot")).await.expect(201);
    let issue = async || {
        let made = client.post(&format!("{ACCOUNTS}/robot/token"), &json!({})).await.expect(201);
        made["status"]["token"].as_str().unwrap().to_owned()
    };
    let first = issue().await;
    let map = json!({"metadata": {"name": "barque-service-account-keys"}, "data": {"keys": "0,7"}});
    client.post("/api/v1/namespaces/kube-system/configmaps", &map).await.expect(201);
    let second = issue().await;
    let keys = Client::admin(&other).get("/openid/v1/jwks").await;
    assert_eq!(keys.headers["content-type"], "application/jwk-set+json");
    let keys = keys.expect(200)["keys"].as_array().cloned().unwrap();
    assert_eq!(keys.len(), 2);
    assert!(keys.iter().all(|key| key["kty"] == "OKP" && key["x"].is_string()), "{keys:?}");
    // Signed by the newest, verifiable by whoever reads the set, accepted by every replica.
    let (signed, signature) = second.rsplit_once('.').unwrap();
    let decode =
        |text: &str| base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text).unwrap();
    let header: Value = serde_json::from_slice(&decode(signed.split('.').next().unwrap())).unwrap();
    assert_eq!(header["kid"], keys[1]["kid"]);
    let public = decode(keys[1]["x"].as_str().unwrap());
    let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &public);
    key.verify(signed.as_bytes(), &decode(signature)).unwrap();
    for token in [&first, &second] {
        assert_eq!(get_with(&other, token, "/api").await.code, 200);
    }
    let map = json!({"data": {"keys": "7"}});
    let path = "/api/v1/namespaces/kube-system/configmaps/barque-service-account-keys";
    client.merge(path, &map).await.expect(200);
    assert_eq!(get_with(&other, &first, "/api").await.code, 401, "its key was taken away");
    assert_eq!(get_with(&other, &second, "/api").await.code, 200);
    let about = Client::admin(&other).get("/.well-known/openid-configuration").await.expect(200);
    assert_eq!(about["issuer"], "https://kubernetes.default.svc.cluster.local");
    assert!(about["jwks_uri"].as_str().unwrap().ends_with("/openid/v1/jwks"));
    assert_eq!(Client::new(&other, None).get("/openid/v1/jwks").await.code, 401);
}

#[tokio::test]
async fn a_secret_holds_a_token_that_kubectl_shows() {
    with_each_on(TestServer::start_leading, async |kubectl, server| {
        kubectl.ok("create serviceaccount robot").await;
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {"name": "robot-token", "annotations": {"kubernetes.io/service-account.name": "robot"}}});
        let file = kubectl.file("secret.json", &secret.to_string());
        kubectl.ok(&format!("create -f {file}")).await;
        let mut shown = String::new();
        for _ in 0..500 {
            shown = kubectl.ok("describe secret robot-token").await;
            if shown.contains("token:") {
                break;
            }
        }
        let token = shown.lines().find_map(|line| line.strip_prefix("token:")).unwrap_or_default().trim();
        assert!(shown.contains("ca.crt:") && shown.contains("namespace:"), "{shown}");
        assert_eq!(get_with(&server, token, "/api").await.code, 200);
        let (code, _, message) = get_with(&server, token, PODS).await.status();
        assert!(code == 403 && message.contains("system:serviceaccount:default:robot"), "{message}");
        assert_eq!(get_with(&server, &format!("{token}x"), "/api").await.code, 401);
        kubectl.ok("delete secret robot-token").await;
        assert_eq!(get_with(&server, token, "/api").await.code, 401, "it lay in a Secret");
        kubectl.ok(&format!("create -f {file}")).await;
        kubectl.ok("delete serviceaccount robot").await;
        for _ in 0..500 {
            if !kubectl.run("get secret robot-token").await.ok {
                return;
            }
        }
        panic!("the Secret outlives its account");
    })
    .await;
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
