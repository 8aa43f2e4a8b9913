//! Static tokens and bootstrap tokens: who gets in with them, and how a machine that nobody knows becomes a node.
//! Rows: KIA-API-019, KIA-SEC-001, KIA-SEC-002.

use std::sync::Arc;

use bytes::Bytes;
use control::auth::tokens::StaticTokens;
use control::rest::Security;
use http::Method;
use serde_json::{Value, json};

use crate::certificates::{asked, credentials, signing_request, until, who_am_i};
use crate::client::{Answer, Client, PODS, request};
use crate::server::TestServer;

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const TOKEN: &str = "07401b.f395accd246ae52d";

async fn with_token(server: &TestServer, token: &str, method: Method, path: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    Client::new(server, None).send(request(method, path, &headers, body)).await
}

#[tokio::test]
async fn a_static_token_names_its_user() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret,jane,uid-7,\"dev,system:masters\"\nother,joe,uid-8\n").unwrap();
    let static_tokens = Arc::new(StaticTokens::read(file.path()).unwrap());
    let server = TestServer::start_secured(Security { static_tokens, ..Security::default() }).await;
    let review = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let me = with_token(&server, "s3cret", Method::POST, review, &json!({})).await.expect(201);
    assert_eq!(
        me["status"]["userInfo"],
        json!({"username": "jane", "uid": "uid-7", "groups": ["dev", "system:masters", "system:authenticated"]})
    );
    assert_eq!(with_token(&server, "s3cret", Method::GET, PODS, &Value::Null).await.code, 200);
    let (code, _, message) = with_token(&server, "other", Method::GET, PODS, &Value::Null).await.status();
    assert!(code == 403 && message.contains("User \"joe\" cannot list"), "{message}");
    assert_eq!(with_token(&server, "s3crets", Method::GET, PODS, &Value::Null).await.code, 401);
    let tokens = "/apis/authentication.k8s.io/v1/tokenreviews";
    let asked = json!({"spec": {"token": "other"}});
    let known = Client::admin(&server).post(tokens, &asked).await.expect(201);
    assert_eq!(known["status"]["user"]["username"], "joe");
}

#[tokio::test]
async fn a_machine_becomes_a_node_with_a_bootstrap_token() {
    let server = TestServer::start_leading().await;
    let client = Client::admin(&server);
    let secret = |expiration: &str| {
        json!({"metadata": {"name": "bootstrap-token-07401b"}, "type": "bootstrap.kubernetes.io/token",
            "stringData": {"token-id": "07401b", "token-secret": "f395accd246ae52d", "expiration": expiration,
                "usage-bootstrap-authentication": "true",
                "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token"}})
    };
    assert_eq!(with_token(&server, TOKEN, Method::GET, REQUESTS, &Value::Null).await.code, 401);
    client.post(SECRETS, &secret("2999-01-01T00:00:00Z")).await.expect(201);
    // The default roles let such a machine ask for its certificate, and for nothing else.
    let (code, _, message) = with_token(&server, TOKEN, Method::GET, PODS, &Value::Null).await.status();
    assert!(code == 403 && message.contains("User \"system:bootstrap:07401b\" cannot list"), "{message}");
    let signer = "kubernetes.io/kube-apiserver-client-kubelet";
    let (key, text) = asked("system:node:n7", "system:nodes");
    let made =
        with_token(&server, TOKEN, Method::POST, REQUESTS, &signing_request("n7", signer, &text)).await;
    assert_eq!(made.expect(201)["spec"]["username"], "system:bootstrap:07401b");
    let signed = until(&client, "n7", |found| found["status"]["certificate"].is_string()).await;
    assert_eq!(signed["status"]["conditions"][0]["reason"], "AutoApproved");
    let node = Client::new(&server, Some(&credentials(&server, &signed, &key)));
    let me = who_am_i(&node).await;
    assert_eq!((&me["username"], &me["groups"][0]), (&json!("system:node:n7"), &json!("system:nodes")));
    // The node renews its certificate by itself.
    let (_, text) = asked("system:node:n7", "system:nodes");
    node.post(REQUESTS, &signing_request("n7-again", signer, &text)).await.expect(201);
    let renewed = until(&client, "n7-again", |found| found["status"]["certificate"].is_string()).await;
    let message = "Auto approving self kubelet client certificate after SubjectAccessReview.";
    assert_eq!(renewed["status"]["conditions"][0]["message"], message);
    // Its time over, the token is nobody's, and goes.
    let mut over = client.get(&format!("{SECRETS}/bootstrap-token-07401b")).await.expect(200);
    over["stringData"] = json!({"expiration": "2020-01-01T00:00:00Z"});
    client.put(&format!("{SECRETS}/bootstrap-token-07401b"), &over).await.expect(200);
    assert_eq!(with_token(&server, TOKEN, Method::GET, REQUESTS, &Value::Null).await.code, 401);
    for _ in 0..1500 {
        if client.get(&format!("{SECRETS}/bootstrap-token-07401b")).await.code == 404 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the expired token is still there");
}

const INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";

/// Waits until the ConfigMap with the cluster's address is as it should be; gives its data.
async fn cluster_info(client: &Client, is_right: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..1500 {
        let found = client.get(INFO).await.json();
        if found["data"].is_object() && is_right(&found["data"]) {
            return found["data"].clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{}", client.get(INFO).await.text());
}

#[tokio::test]
async fn the_clusters_address_is_signed_for_those_who_know_a_token() {
    let server = TestServer::start_leading().await;
    let client = Client::admin(&server);
    let data = cluster_info(&client, |_| true).await;
    assert_eq!(data.as_object().map(serde_json::Map::len), Some(1));
    let kubeconfig = data["kubeconfig"].as_str().unwrap().to_owned();
    assert!(kubeconfig.contains(&format!("server: https://{}\n", server.address)), "{kubeconfig}");
    assert!(!kubeconfig.contains("token") && kubeconfig.contains("users: null"), "{kubeconfig}");
    let secret = |usage: &str, end: &str| {
        json!({"metadata": {"name": "bootstrap-token-07401b"}, "type": "bootstrap.kubernetes.io/token",
            "stringData": {"token-id": "07401b", "token-secret": "f395accd246ae52d", usage: "true", "expiration": end}})
    };
    client.post(SECRETS, &secret("usage-bootstrap-signing", "2999-01-01T00:00:00Z")).await.expect(201);
    let data = cluster_info(&client, |data| data["jws-kubeconfig-07401b"].is_string()).await;
    let signature = data["jws-kubeconfig-07401b"].as_str().unwrap().to_owned();
    let (header, tag) = signature.split_once("..").unwrap();
    use base64::Engine;
    let encoding = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"f395accd246ae52d");
    let signed = format!("{header}.{}", encoding.encode(&kubeconfig));
    ring::hmac::verify(&key, signed.as_bytes(), &encoding.decode(tag).unwrap()).unwrap();
    // A token that is meant for signing alone opens no door.
    assert_eq!(with_token(&server, TOKEN, Method::GET, INFO, &Value::Null).await.code, 401);
    // What somebody breaks is mended, and the signature goes with its token.
    let broken = json!({"data": {"kubeconfig": "evil", "own": "x"}});
    client.merge(INFO, &broken).await.expect(200);
    cluster_info(&client, |data| data["kubeconfig"] == kubeconfig.as_str() && data["own"] == "x").await;
    client.delete(&format!("{SECRETS}/bootstrap-token-07401b"), &Value::Null).await.expect(200);
    cluster_info(&client, |data| data["jws-kubeconfig-07401b"].is_null()).await;
    assert_eq!(
        Client::new(&server, None).get(INFO).await.code,
        401,
        "nobody gets in unless the configuration says so"
    );
}

#[tokio::test]
async fn nobody_gets_in_only_where_the_configuration_says_so_and_then_to_what_roles_grant() {
    let server = TestServer::start_secured(Security { allows_anonymous: true, ..Security::default() }).await;
    let (admin, nobody) = (Client::admin(&server), Client::new(&server, None));
    cluster_info(&admin, |_| true).await;
    for _ in 0..1500 {
        if nobody.get(INFO).await.code == 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(
        nobody.get(INFO).await.expect(200)["data"]["kubeconfig"],
        admin.get(INFO).await.json()["data"]["kubeconfig"]
    );
    for path in [PODS, SECRETS, "/api/v1/namespaces/kube-public/configmaps", "/api", "/metrics"] {
        let (code, _, message) = nobody.get(path).await.status();
        assert!(code == 403 && message.contains("\"system:anonymous\""), "{path}: {message}");
    }
    assert_eq!(nobody.delete(INFO, &Value::Null).await.code, 403);
    assert_eq!(
        with_token(&server, "no.token", Method::GET, INFO, &Value::Null).await.code,
        401,
        "a bad token is not none"
    );
    assert_eq!(nobody.get("/version").await.code, 200);
}
