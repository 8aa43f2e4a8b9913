//! A node's identity over REST: it reads what its pods refer to, writes itself, and touches nothing of others'.

use std::time::SystemTime;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::client::{Answer, Client, PODS, pod, request};
use crate::server::TestServer;

const NODES: &str = "/api/v1/nodes";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// A node's client, with a certificate as those that join get one.
fn node(server: &TestServer, name: &str) -> Client {
    let key = rcgen::KeyPair::generate().unwrap();
    let asked = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let credentials = control::pki::Credentials {
        certificate_pem: server.authority.sign_node_csr(name, &asked, SystemTime::now()).unwrap(),
        key_pem: key.serialize_pem(),
        ca_pem: server.authority.certificate_pem().to_owned(),
    };
    Client::new(server, Some(&credentials))
}

async fn furnish(client: &Client) {
    for name in ["n1", "n2"] {
        let value = json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let made = client.post(NODES, &value).await.expect(201);
        let taint = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]);
        assert_eq!(made["spec"]["taints"], taint, "nobody has found it ready yet");
    }
    for name in ["used", "other"] {
        client.post(SECRETS, &json!({"metadata": {"name": name}, "data": {"k": "dg=="}})).await.expect(201);
    }
    client
        .post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "robot"}}))
        .await
        .expect(201);
    for (name, node) in [("mine", "n1"), ("theirs", "n2")] {
        let mut value = pod(name);
        value["spec"]["nodeName"] = json!(node);
        if name == "mine" {
            value["spec"]["serviceAccountName"] = json!("robot");
            value["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "used"}}]);
        }
        client.post(PODS, &value).await.expect(201);
    }
}

async fn until(client: &Client, path: &str, code: u16) {
    for _ in 0..500 {
        if client.get(path).await.code.as_u16() == code {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{path}: {}", client.get(path).await.text());
}

#[tokio::test]
async fn a_node_reads_what_its_pods_need_and_writes_only_itself() {
    let server = TestServer::start_leading().await;
    let admin = Client::admin(&server);
    furnish(&admin).await;
    let n1 = node(&server, "n1");
    // What a replica knows of bindings comes a moment later.
    until(&n1, &format!("{SECRETS}/used"), 200).await;
    for (path, code) in [
        (format!("{SECRETS}/other"), 403),
        (SECRETS.to_owned(), 403),
        (format!("{SECRETS}?fieldSelector=metadata.name%3Dused"), 200),
        (format!("{SECRETS}?fieldSelector=metadata.name%3Dother"), 403),
        (format!("{NODES}/n1"), 200),
        (format!("{NODES}/n2"), 403),
        (NODES.to_owned(), 403),
        (format!("{PODS}/mine"), 200),
        (format!("{PODS}/theirs"), 403),
        ("/api/v1/pods".to_owned(), 403),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1".to_owned(), 200),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dn2".to_owned(), 403),
        ("/api/v1/pods?fieldSelector=spec.nodeName!%3Dn1".to_owned(), 403),
        ("/api/v1/services".to_owned(), 200),
        ("/api/v1/namespaces/default/configmaps".to_owned(), 403),
    ] {
        let answer = n1.get(&path).await;
        assert_eq!(answer.code.as_u16(), code, "{path}: {}", answer.text());
    }
    let merge = "application/merge-patch+json";
    let label = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    n1.patch(&format!("{NODES}/n1"), merge, &label("example.com/rack")).await.expect(200);
    for (answer, words) in [
        (
            n1.patch(&format!("{NODES}/n1"), merge, &label("node-role.kubernetes.io/master")).await,
            "is not allowed to modify labels: node-role.kubernetes.io/master",
        ),
        (
            n1.patch(
                &format!("{NODES}/n1"),
                merge,
                &json!({"spec": {"taints": [{"key": "x", "effect": "NoSchedule"}]}}),
            )
            .await,
            "is not allowed to modify taints",
        ),
        (n1.patch(&format!("{NODES}/n2"), merge, &label("a")).await, "cannot patch resource \"nodes\""),
        (n1.delete(&format!("{NODES}/n1"), &Value::Null).await, "cannot delete resource \"nodes\""),
        (n1.post(NODES, &json!({"metadata": {"name": "n3"}})).await, "is not allowed to modify node \"n3\""),
        (
            n1.delete(&format!("{PODS}/theirs"), &Value::Null).await,
            "can only delete pods with spec.nodeName set to itself",
        ),
        (n1.post(PODS, &pod("new")).await, "can only create mirror pods"),
        (
            n1.post(LEASES, &json!({"metadata": {"name": "n2"}})).await,
            "can only access node lease with the same name as the requesting node",
        ),
    ] {
        let (code, _, message) = answer.status();
        assert!(code == 403 && message.contains(words), "{code} {message}");
    }
    n1.post(LEASES, &json!({"metadata": {"name": "n1"}})).await;
    n1.get(&format!("{LEASES}/n1")).await.expect(200);
}

#[tokio::test]
async fn a_node_speaks_for_its_own_pods_only() {
    let server = TestServer::start_leading().await;
    let admin = Client::admin(&server);
    furnish(&admin).await;
    let n1 = node(&server, "n1");
    until(&n1, &format!("{PODS}/mine"), 200).await;
    let merge = "application/merge-patch+json";
    let running = json!({"status": {"phase": "Running"}});
    n1.patch(&format!("{PODS}/mine/status"), merge, &running).await.expect(200);
    let (code, _, message) = n1.patch(&format!("{PODS}/theirs/status"), merge, &running).await.status();
    assert!(code == 403 && message.contains("can only update pod status for pods"), "{message}");
    let labels = json!({"metadata": {"labels": {"app": "other"}}});
    let (code, _, message) = n1.patch(&format!("{PODS}/mine/status"), merge, &labels).await.status();
    assert!(code == 403 && message.contains("cannot update labels through pod status"), "{message}");
    let tokens = "/api/v1/namespaces/default/serviceaccounts/robot/token";
    let bound =
        |pod: &str| json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod}}});
    n1.post(tokens, &bound("mine")).await.expect(201);
    let (code, _, message) = n1.post(tokens, &json!({"spec": {}})).await.status();
    assert!(code == 403 && message.contains("token not bound to a pod"), "{message}");
    let (code, _, message) = n1.post(tokens, &bound("theirs")).await.status();
    assert!(code == 403 && message.contains("pod scheduled on a different node"), "{message}");
    let of_default = "/api/v1/namespaces/default/serviceaccounts/default/token";
    assert_eq!(
        n1.post(of_default, &bound("theirs")).await.code,
        403,
        "no pod of its own runs as that account"
    );
    let evict = async |pod: &str| -> Answer {
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
        let headers = [("content-type", "application/json")];
        n1.send(request(
            Method::POST,
            &format!("{PODS}/{pod}/eviction"),
            &headers,
            Bytes::from(body.to_string()),
        ))
        .await
    };
    let (code, _, message) = evict("theirs").await.status();
    assert!(
        code == 403 && message.contains("can only evict pods with spec.nodeName set to itself"),
        "{message}"
    );
    evict("mine").await.expect(201);
}
