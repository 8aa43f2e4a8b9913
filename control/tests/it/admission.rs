//! What namespaces bound and classes give: LimitRanges, ResourceQuotas, PriorityClasses, default storage
//! classes, Pod Security Standards.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::{Answer, Client, PODS, pod};
use crate::kubectl::with_each_on;
use crate::server::TestServer;
use crate::webhook::{Webhook, admission};

const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
const PATIENCE: Duration = Duration::from_secs(30);

async fn counted(client: &Client, name: &str, wanted: &Value) -> Value {
    let looking = async {
        loop {
            let quota = client.get(&format!("{QUOTAS}/{name}")).await.json();
            if quota["status"]["used"] == *wanted {
                return quota;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, looking).await {
        Ok(quota) => quota,
        Err(_) => panic!("{}", client.get(&format!("{QUOTAS}/{name}")).await.text()),
    }
}

fn quota(name: &str, hard: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}})
}

/// How many writers were answered with that code; all others must have been forbidden, for that reason.
async fn accepted(mut writers: JoinSet<Answer>, code: u16, why: &str) -> usize {
    let mut accepted = 0;
    while let Some(answer) = writers.join_next().await {
        let answer = answer.unwrap();
        if answer.code == code {
            accepted += 1;
            continue;
        }
        let (code, _, message) = answer.status();
        assert_eq!(code, 403, "{message}");
        assert!(message.ends_with(why), "{message}");
    }
    accepted
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_ranges_fill_in_and_refuse() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "r"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "250m"}, "max": {"cpu": "1"}}]}});
    client.post("/api/v1/namespaces/default/limitranges", &range).await.expect(201);
    let made = client.post(PODS, &pod("a")).await.expect(201);
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "250m"}})
    );
    let mut greedy = pod("b");
    greedy["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "2"}});
    let (code, _, message) = client.post(PODS, &greedy).await.status();
    assert_eq!(code, 403);
    assert_eq!(message, "pods \"b\" is forbidden: maximum cpu usage per Container is 1, but limit is 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_holds_against_writers_at_two_replicas() {
    let server = TestServer::start_leading().await;
    let second = server.beside().await;
    let client = Client::admin(&server);
    client.post(QUOTAS, &quota("q", json!({"pods": "5", "configmaps": "3"}))).await.expect(201);
    counted(&client, "q", &json!({"pods": "0", "configmaps": "1"})).await;
    let mut writers = JoinSet::new();
    for index in 0..20 {
        let client = Arc::new(Client::admin(if index % 2 == 0 { &server } else { &second }));
        writers.spawn(async move { client.post(PODS, &pod(&format!("p{index}"))).await });
    }
    let why = "is forbidden: exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5";
    assert_eq!(accepted(writers, 201, why).await, 5);
    counted(&client, "q", &json!({"pods": "5", "configmaps": "1"})).await;
    // What goes is free again.
    let pods = client.get(PODS).await.json();
    let name = pods["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    client.delete(&format!("{PODS}/{name}?gracePeriodSeconds=0"), &Value::Null).await.expect(200);
    counted(&client, "q", &json!({"pods": "4", "configmaps": "1"})).await;
    client.post(PODS, &pod("late")).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_bounds_what_changes_add() {
    let server = TestServer::start_leading().await;
    let second = server.beside().await;
    let client = Client::admin(&server);
    client.post(QUOTAS, &quota("q", json!({"services.nodeports": "5"}))).await.expect(201);
    counted(&client, "q", &json!({"services.nodeports": "0"})).await;
    let services = "/api/v1/namespaces/default/services";
    for index in 0..10 {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{index}")},
            "spec": {"ports": [{"port": 80}]}});
        client.post(services, &service).await.expect(201);
    }
    let mut writers = JoinSet::new();
    for index in 0..10 {
        let client = Client::admin(if index % 2 == 0 { &server } else { &second });
        let path = format!("{services}/s{index}");
        writers.spawn(async move { client.merge(&path, &json!({"spec": {"type": "NodePort"}})).await });
    }
    let why = "is forbidden: exceeded quota: q, requested: services.nodeports=1, used: services.nodeports=5, \
               limited: services.nodeports=5";
    assert_eq!(accepted(writers, 200, why).await, 5);
    // What is given back can be had by another.
    let listed = client.get(services).await.json();
    let service_of = |ty: &str| {
        let mut all = listed["items"].as_array().unwrap().iter();
        let found = all.find(|s| s["spec"]["type"] == ty && s["metadata"]["name"] != "kubernetes").unwrap();
        format!("{services}/{}", found["metadata"]["name"].as_str().unwrap())
    };
    let (with, without) = (service_of("NodePort"), service_of("ClusterIP"));
    client.merge(&with, &json!({"metadata": {"labels": {"a": "b"}}})).await.expect(200);
    client.merge(&with, &json!({"spec": {"type": "ClusterIP"}})).await.expect(200);
    counted(&client, "q", &json!({"services.nodeports": "4"})).await;
    client.merge(&without, &json!({"spec": {"type": "NodePort"}})).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_bounds_what_a_claim_grows_by() {
    let server = TestServer::start_leading().await;
    let client = Client::admin(&server);
    client.post(QUOTAS, &quota("q", json!({"requests.storage": "5Gi"}))).await.expect(201);
    counted(&client, "q", &json!({"requests.storage": "0"})).await;
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "grows"},
        "provisioner": "example.com/x", "allowVolumeExpansion": true});
    client.post("/apis/storage.k8s.io/v1/storageclasses", &class).await.expect(201);
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"},
        "spec": {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "grows",
            "hostPath": {"path": "/mnt/disk"}}});
    client.post("/api/v1/persistentvolumes", &volume).await.expect(201);
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let sized = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
    let mut claim = sized("2Gi");
    claim["metadata"] = json!({"name": "data"});
    claim["spec"]["accessModes"] = json!(["ReadWriteOnce"]);
    claim["spec"]["storageClassName"] = json!("grows");
    client.post(claims, &claim).await.expect(201);
    counted(&client, "q", &json!({"requests.storage": "2Gi"})).await;
    let path = format!("{claims}/data");
    // Only what is bound may grow.
    let bound = async {
        while client.get(&path).await.json()["status"]["phase"] != "Bound" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, bound).await.expect("the claim is bound");
    let (code, _, message) = client.merge(&path, &sized("6Gi")).await.status();
    let why = "exceeded quota: q, requested: requests.storage=4Gi, used: requests.storage=2Gi, limited: requests.storage=5Gi";
    assert!(code == 403 && message.contains(why), "{code} {message}");
    client.merge(&path, &sized("5Gi")).await.expect(200);
    counted(&client, "q", &json!({"requests.storage": "5Gi"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn priority_comes_from_classes() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let class = |name: &str, value: i64, default: bool| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "globalDefault": default, "preemptionPolicy": "Never"})
    };
    client.post(classes, &class("high", 1000, false)).await.expect(201);
    let mut high = pod("a");
    high["spec"]["priorityClassName"] = json!("high");
    let made = client.post(PODS, &high).await.expect(201);
    assert_eq!(
        (&made["spec"]["priority"], &made["spec"]["preemptionPolicy"]),
        (&json!(1000), &json!("Never"))
    );
    high["spec"]["priorityClassName"] = json!("none");
    let (_, _, message) = client.post(PODS, &high).await.status();
    assert_eq!(message, "pods \"a\" is forbidden: no PriorityClass with name none was found");
    assert_eq!(client.post(PODS, &pod("b")).await.expect(201)["spec"]["priority"], 0);
    client.post(classes, &class("usual", 7, true)).await.expect(201);
    let made = client.post(PODS, &pod("c")).await.expect(201);
    assert_eq!((&made["spec"]["priority"], &made["spec"]["priorityClassName"]), (&json!(7), &json!("usual")));
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_get_the_default_class() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "example.com/x",
        "metadata": {"name": "usual", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
    client.post("/apis/storage.k8s.io/v1/storageclasses", &class).await.expect(201);
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |name: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
    };
    let made = client.post(claims, &claim("a")).await.expect(201);
    assert_eq!(made["spec"]["storageClassName"], "usual");
    let mut none = claim("b");
    none["spec"]["storageClassName"] = json!("");
    assert_eq!(client.post(claims, &none).await.expect(201)["spec"]["storageClassName"], "");
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_choose_how_much_their_pods_may() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let namespace = json!({"metadata": {"name": "strict", "labels": {
        "pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}}});
    client.post("/api/v1/namespaces", &namespace).await.expect(201);
    let pods = PODS.replace("default", "strict");
    let made = client.post(&pods, &pod("a")).await;
    let warning = made.headers["warning"].to_str().unwrap().to_owned();
    assert!(
        warning.starts_with(
            "299 - \"would violate PodSecurity \\\"restricted:latest\\\": allowPrivilegeEscalation"
        ),
        "{warning}"
    );
    made.expect(201);
    // KIA-ISO-015, KIA-FWD-015.
    let sys_time = json!([{"name": "main", "image": "barque/hello:1.0",
        "securityContext": {"capabilities": {"add": ["SYS_TIME"]}}}]);
    let host = json!([{"name": "host", "hostPath": {"path": "/"}}]);
    for (field, value, why) in [
        ("hostNetwork", json!(true), "host namespaces (hostNetwork=true)"),
        ("volumes", host, "hostPath volumes (volume \"host\")"),
        (
            "containers",
            sys_time,
            "non-default capabilities (container \"main\" must not include \"SYS_TIME\" in \
             securityContext.capabilities.add)",
        ),
    ] {
        let mut bad = pod(&field.to_lowercase());
        bad["spec"][field] = value;
        let (code, _, message) = client.post(&pods, &bad).await.status();
        let name = field.to_lowercase();
        let wanted = format!("pods {name:?} is forbidden: violates PodSecurity \"baseline:latest\": {why}");
        assert_eq!((code, message), (403, wanted));
        client.post(PODS, &bad).await.expect(201);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_shows_quotas() {
    with_each_on(TestServer::start_leading, |kubectl, server| async move {
        kubectl.ok("create quota q --hard=pods=2,requests.cpu=1").await;
        counted(&Client::admin(&server), "q", &json!({"pods": "0", "requests.cpu": "0"})).await;
        kubectl.fails("run a --image=x", "must specify requests.cpu for: a").await;
        let shown = kubectl.ok("describe quota q").await;
        let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(rows.contains(&vec!["pods", "0", "2"]), "{shown}");
    })
    .await;
}

/// A webhook that answers every review with what a function makes of it; gives its address and authority.
async fn webhook(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> (String, String) {
    let hook = Webhook::serve(&[], admission(answer)).await;
    (format!("https://127.0.0.1:{}/review", hook.port), hook.ca)
}

const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";

fn configuration(kind: &str, url: &str, ca: &str) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "hook"},
        "webhooks": [{"name": "hook.example.com", "clientConfig": {"url": url, "caBundle": ca},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE", "DELETE"],
                "resources": ["configmaps"], "scope": "*"}],
            "matchConditions": [{"name": "mine", "expression": "request.name.startsWith('mine')"}],
            "failurePolicy": "Fail", "matchPolicy": "Equivalent", "sideEffects": "None", "timeoutSeconds": 5,
            "admissionReviewVersions": ["v1"]}]})
}

/// Waits until the replica has heard of a configuration: until a write fares otherwise than before.
async fn until_code(client: &Client, path: &str, body: &Value, code: u16) {
    let looking = async {
        while client.post(&format!("{path}?dryRun=All"), body).await.code != code {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("the configuration is heeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_change_and_refuse() {
    use crate::client::{CONFIG_MAPS, config_map};

    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let (url, ca) = webhook(|request| {
        assert_eq!(request["userInfo"]["username"], "admin");
        let patch = "W3sib3AiOiJhZGQiLCJwYXRoIjoiL2RhdGEvYWRkZWQiLCJ2YWx1ZSI6InllcyJ9XQ==";
        match request["operation"].as_str().unwrap() {
            "DELETE" => json!({"allowed": true}),
            _ => json!({"allowed": true, "patchType": "JSONPatch", "patch": patch, "warnings": ["changed by a hook"]}),
        }
    })
    .await;
    let path = format!("{REGISTRATION}/mutatingwebhookconfigurations");
    client.post(&path, &configuration("MutatingWebhookConfiguration", &url, &ca)).await.expect(201);
    let looking = async {
        loop {
            let made = client.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("mine", "x")).await;
            if made.headers.contains_key("warning") {
                return made;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let made = tokio::time::timeout(PATIENCE, looking).await.expect("the webhook is asked");
    assert_eq!(made.headers["warning"], "299 - \"changed by a hook\"");
    assert_eq!(made.expect(201)["data"], json!({"key": "x", "added": "yes"}));
    let other = client.post(CONFIG_MAPS, &config_map("other", "x")).await.expect(201);
    assert_eq!(other["data"], json!({"key": "x"}), "its condition says that it is not asked");
    let made = client.post(CONFIG_MAPS, &config_map("mine", "x")).await.expect(201);
    assert_eq!(made["data"]["added"], "yes");

    let (url, ca) = webhook(|request| match request["object"]["data"]["key"] == "bad" {
        true => json!({"allowed": false, "status": {"message": "bad keys are refused", "code": 418}}),
        false if request["operation"] == "DELETE" => json!({"allowed": false}),
        false => json!({"allowed": true}),
    })
    .await;
    let path = format!("{REGISTRATION}/validatingwebhookconfigurations");
    client.post(&path, &configuration("ValidatingWebhookConfiguration", &url, &ca)).await.expect(201);
    until_code(&client, CONFIG_MAPS, &config_map("mine-bad", "bad"), 418).await;
    let patch = json!({"data": {"key": "bad"}});
    let refused = client.merge(&format!("{CONFIG_MAPS}/mine"), &patch).await;
    assert_eq!(
        refused.status().2,
        "admission webhook \"hook.example.com\" denied the request: bad keys are refused"
    );
    let refused = client.delete(&format!("{CONFIG_MAPS}/mine"), &Value::Null).await;
    assert_eq!(
        (refused.code.as_u16(), refused.status().2),
        (403, "admission webhook \"hook.example.com\" denied the request without explanation".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_fails_counts_as_its_policy_says() {
    use crate::client::{CONFIG_MAPS, config_map};

    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let ca = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(server.authority.certificate_pem())
    };
    let path = format!("{REGISTRATION}/validatingwebhookconfigurations");
    let mut hook = configuration("ValidatingWebhookConfiguration", "https://127.0.0.1:1/x", &ca);
    client.post(&path, &hook).await.expect(201);
    until_code(&client, CONFIG_MAPS, &config_map("mine", "x"), 500).await;
    let (_, reason, message) = client.post(CONFIG_MAPS, &config_map("mine", "x")).await.status();
    assert_eq!(reason, "InternalError");
    assert!(message.starts_with("Internal error occurred: failed calling webhook \"hook.example.com\": Post \"https://127.0.0.1:1/x\""), "{message}");
    hook["webhooks"][0]["failurePolicy"] = json!("Ignore");
    client.put(&format!("{path}/hook"), &hook).await.expect(200);
    until_code(&client, CONFIG_MAPS, &config_map("mine", "x"), 201).await;
    hook["webhooks"][0]["failurePolicy"] = json!("Fail");
    hook["webhooks"][0]["clientConfig"] = json!({"service": {"namespace": "a", "name": "b"}, "caBundle": ca});
    client.put(&format!("{path}/hook"), &hook).await.expect(200);
    until_code(&client, CONFIG_MAPS, &config_map("mine", "x"), 500).await;
    assert!(
        client
            .post(CONFIG_MAPS, &config_map("mine", "x"))
            .await
            .status()
            .2
            .contains("services \"b\" not found")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_refuse_and_warn() {
    use crate::client::{CONFIG_MAPS, config_map};

    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "short"}, "spec": {"failurePolicy": "Fail",
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
                "operations": ["CREATE"], "resources": ["configmaps"]}]},
            "validations": [{"expression": "size(object.data.key) <= int(params.data.key)",
                "messageExpression": "'at most ' + params.data.key + ' letters'"}]}});
    let binding = |name: &str, actions: Value| {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name}, "spec": {"policyName": "short", "validationActions": actions,
                "paramRef": {"name": "most", "namespace": "default", "parameterNotFoundAction": "Deny"}}})
    };
    client.post(CONFIG_MAPS, &config_map("most", "3")).await.expect(201);
    client.post(&format!("{REGISTRATION}/validatingadmissionpolicies"), &policy).await.expect(201);
    let bindings = format!("{REGISTRATION}/validatingadmissionpolicybindings");
    client.post(&bindings, &binding("b", json!(["Deny"]))).await.expect(201);
    until_code(&client, CONFIG_MAPS, &config_map("a", "long"), 422).await;
    let (_, reason, message) = client.post(CONFIG_MAPS, &config_map("a", "long")).await.status();
    assert_eq!(
        (reason.as_str(), message.as_str()),
        (
            "Invalid",
            "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'short' with binding 'b' denied request: at most 3 letters"
        )
    );
    client.post(CONFIG_MAPS, &config_map("a", "abc")).await.expect(201);
    client.put(&format!("{bindings}/b"), &binding("b", json!(["Warn"]))).await.expect(200);
    until_code(&client, CONFIG_MAPS, &config_map("b", "long"), 201).await;
    let made = client.post(CONFIG_MAPS, &config_map("b", "long")).await;
    assert!(made.headers["warning"].to_str().unwrap().contains("at most 3 letters"));
}
