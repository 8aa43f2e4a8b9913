//! Requests for certificates: who asks is the server's word, who approves needs the right, what is approved is
//! signed, and the client that it is for gets in. Rows: KIA-API-019, KIA-SEC-001.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use control::pki::Credentials;
use http::Method;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};

use crate::client::{Answer, Client, request};
use crate::kubectl::with_each_on;
use crate::server::TestServer;

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// A key, and a request for a certificate of this subject.
pub(crate) fn asked(user: &str, group: &str) -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.distinguished_name.push(DnType::CommonName, user);
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, STANDARD.encode(pem))
}

pub(crate) fn signing_request(name: &str, signer: &str, text: &str) -> Value {
    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {"request": text, "signerName": signer, "usages": ["client auth", "digital signature"],
            "expirationSeconds": 3600, "username": "root", "groups": ["system:masters"]}})
}

/// Waits until the request is as it should be.
pub(crate) async fn until(client: &Client, name: &str, is_right: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..1000 {
        let found = client.get(&format!("{REQUESTS}/{name}")).await.expect(200);
        if is_right(&found) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{}", client.get(&format!("{REQUESTS}/{name}")).await.text());
}

/// What the issued certificate lets its owner be.
pub(crate) fn credentials(server: &TestServer, request: &Value, key: &KeyPair) -> Credentials {
    let pem = STANDARD.decode(request["status"]["certificate"].as_str().unwrap()).unwrap();
    Credentials {
        certificate_pem: String::from_utf8(pem).unwrap(),
        key_pem: key.serialize_pem(),
        ca_pem: server.authority.certificate_pem().to_owned(),
    }
}

pub(crate) async fn who_am_i(client: &Client) -> Value {
    let review = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    client.post(review, &json!({})).await.expect(201)["status"]["userInfo"].clone()
}

async fn as_user(client: &Client, user: &str, path: &str, body: &Value) -> Answer {
    let headers = [("impersonate-user", user), ("content-type", "application/json")];
    client.send(request(Method::PUT, path, &headers, Bytes::from(body.to_string()))).await
}

#[tokio::test]
async fn kubectl_approves_and_the_client_gets_in() {
    with_each_on(TestServer::start_leading, async |kubectl, server| {
        let client = Client::admin(&server);
        let (key, text) = asked("jane", "dev");
        let file = kubectl.file("jane.json", &signing_request("jane", CLIENT, &text).to_string());
        kubectl.ok(&format!("create -f {file}")).await;
        assert!(kubectl.ok("get csr jane").await.contains("Pending"));
        let made = client.get(&format!("{REQUESTS}/jane")).await.expect(200);
        assert_eq!(made["spec"]["username"], "admin", "not what the request says");
        assert_eq!(made["spec"]["groups"], json!(["system:masters", "system:authenticated"]));
        kubectl.ok("certificate approve jane").await;
        let signed = until(&client, "jane", |found| found["status"]["certificate"].is_string()).await;
        assert!(kubectl.ok("get csr jane").await.contains("Approved,Issued"));
        assert!(signed["status"]["conditions"][0]["lastUpdateTime"].is_string());
        let jane = Client::new(&server, Some(&credentials(&server, &signed, &key)));
        let me = who_am_i(&jane).await;
        assert_eq!((&me["username"], &me["groups"][0]), (&json!("jane"), &json!("dev")));
        let (_, text) = asked("joe", "dev");
        let file = kubectl.file("joe.json", &signing_request("joe", CLIENT, &text).to_string());
        kubectl.ok(&format!("create -f {file}")).await;
        kubectl.ok("certificate deny joe").await;
        assert!(kubectl.ok("get csr joe").await.contains("Denied"));
        kubectl.fails("certificate approve joe", "already Denied").await;
        let denied = client.get(&format!("{REQUESTS}/joe")).await.expect(200);
        assert!(denied["status"]["certificate"].is_null(), "{denied}");
    })
    .await;
}

#[tokio::test]
async fn approving_needs_the_right_on_the_signer() {
    let server = TestServer::start_leading().await;
    let client = Client::admin(&server);
    let (_, text) = asked("jane", "dev");
    let mut made = client.post(REQUESTS, &signing_request("jane", CLIENT, &text)).await.expect(201);
    made["status"]["conditions"] = json!([{"type": "Approved", "status": "True", "reason": "x"}]);
    let approval = format!("{REQUESTS}/jane/approval");
    let role = json!({"metadata": {"name": "approver"}, "rules": [
        {"verbs": ["update"], "apiGroups": ["certificates.k8s.io"],
            "resources": ["certificatesigningrequests/approval", "certificatesigningrequests/status"]}]});
    client.post(&format!("{RBAC}/clusterroles"), &role).await.expect(201);
    let binding = json!({"metadata": {"name": "approver"}, "roleRef": {"kind": "ClusterRole", "name": "approver"},
        "subjects": [{"kind": "User", "name": "eve"}]});
    client.post(&format!("{RBAC}/clusterrolebindings"), &binding).await.expect(201);
    let expected =
        "user not permitted to approve requests with signerName \"kubernetes.io/kube-apiserver-client\"";
    let mut answer = as_user(&client, "eve", &approval, &made).await;
    for _ in 0..500 {
        if answer.text().contains(expected) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        answer = as_user(&client, "eve", &approval, &made).await;
    }
    let (code, _, message) = answer.status();
    assert!(code == 403 && message.contains(expected), "{message}");
    let mut signed = client.get(&format!("{REQUESTS}/jane")).await.expect(200);
    signed["status"]["certificate"] = json!("bm9uc2Vuc2U=");
    let (code, _, message) =
        as_user(&client, "eve", &format!("{REQUESTS}/jane/status"), &signed).await.status();
    assert!(code == 403 && message.contains("user not permitted to sign requests"), "{message}");
    let mut role = client.get(&format!("{RBAC}/clusterroles/approver")).await.expect(200);
    role["rules"]
        .as_array_mut()
        .unwrap()
        .push(json!({"verbs": ["approve"], "apiGroups": ["certificates.k8s.io"],
        "resources": ["signers"], "resourceNames": ["kubernetes.io/*"]}));
    client.put(&format!("{RBAC}/clusterroles/approver"), &role).await.expect(200);
    let mut code = 0;
    for _ in 0..500 {
        code = as_user(&client, "eve", &approval, &made).await.code.as_u16();
        if code == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(code, 200);
    let signed = until(&client, "jane", |found| found["status"]["certificate"].is_string()).await;
    // What was issued stays, and so does what was asked.
    let mut other = signed.clone();
    other["status"]["certificate"] = json!("bm9uc2Vuc2U=");
    client.put(&format!("{REQUESTS}/jane/status"), &other).await.expect(422);
    let mut other = signed.clone();
    other["spec"]["username"] = json!("root");
    let kept = client.put(&format!("{REQUESTS}/jane"), &other).await.expect(200);
    assert_eq!(kept["spec"], signed["spec"]);
}

#[tokio::test]
async fn what_a_signer_does_not_sign_fails_or_is_refused() {
    let server = TestServer::start_leading().await;
    let client = Client::admin(&server);
    let node = "kubernetes.io/kube-apiserver-client-kubelet";
    let (_, text) = asked("system:node:n1", "dev");
    let mut made = client.post(REQUESTS, &signing_request("n1", node, &text)).await.expect(201);
    made["status"]["conditions"] = json!([{"type": "Approved", "status": "True"}]);
    client.put(&format!("{REQUESTS}/n1/approval"), &made).await.expect(200);
    let failed =
        until(&client, "n1", |found| found["status"]["conditions"].as_array().is_some_and(|c| c.len() == 2))
            .await;
    let condition = &failed["status"]["conditions"][1];
    assert_eq!(
        (&condition["type"], &condition["reason"]),
        (&json!("Failed"), &json!("SignerValidationFailure"))
    );
    assert_eq!(condition["message"], "subject organization is not system:nodes");
    assert!(failed["status"]["certificate"].is_null());
    for (signer, text, words) in [
        (CLIENT, asked("root", "system:masters").1.as_str(), "with system:masters group is not allowed"),
        (CLIENT, STANDARD.encode("nonsense").as_str(), "PEM block type must be CERTIFICATE REQUEST"),
        ("kubernetes.io/legacy-unknown", text.as_str(), "the legacy signerName is not allowed"),
    ] {
        let (code, _, message) = client.post(REQUESTS, &signing_request("x", signer, text)).await.status();
        assert!(matches!(code, 403 | 422) && message.contains(words), "{code} {message}");
    }
    // Somebody else's signer signs for itself.
    let (_, text) = asked("app", "dev");
    client.post(REQUESTS, &signing_request("app", "example.com/app", &text)).await.expect(201);
    let mut app = client.get(&format!("{REQUESTS}/app")).await.expect(200);
    app["status"]["conditions"] = json!([{"type": "Approved", "status": "True"}]);
    client.put(&format!("{REQUESTS}/app/approval"), &app).await.expect(200);
    let mut app = client.get(&format!("{REQUESTS}/app")).await.expect(200);
    assert!(app["status"]["certificate"].is_null());
    app["status"]["certificate"] = json!(STANDARD.encode("issued elsewhere"));
    client.put(&format!("{REQUESTS}/app/status"), &app).await.expect(200);
}
