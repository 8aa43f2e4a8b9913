//! Priority and fairness: one bad client does not starve another.

use std::sync::Arc;

use bytes::Bytes;
use control::auth::tokens::StaticTokens;
use control::rest::Security;
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::client::{Answer, CONFIG_MAPS, Client, config_map, request};
use crate::kubectl::with_each_on;
use crate::server::TestServer;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const CONNECTIONS: usize = 200;

/// A replica with few seats, and two users with the same rights.
async fn small_server() -> TestServer {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "eve-token,eve,1\nbob-token,bob,2\n").unwrap();
    let static_tokens = Arc::new(StaticTokens::read(file.path()).unwrap());
    let security = Security { static_tokens, requests_max: 24, ..Security::default() };
    let server = TestServer::start_secured(security).await;
    let admin = Client::admin(&server);
    let binding = json!({"metadata": {"name": "both"}, "roleRef": {"kind": "ClusterRole", "name": "edit"},
        "subjects": [{"kind": "User", "name": "eve"}, {"kind": "User", "name": "bob"}]});
    admin.post(&format!("{RBAC}/clusterrolebindings"), &binding).await.expect(201);
    admin.post(CONFIG_MAPS, &config_map("one", "1")).await.expect(201);
    for _ in 0..1000 {
        if get_as(&server, "bob-token").await.code == 200 {
            return server;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("bob never got his rights");
}

async fn get_as(server: &TestServer, token: &str) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    Client::new(server, None).send(request(Method::GET, CONFIG_MAPS, &headers, Bytes::new())).await
}

async fn number(server: &TestServer, series: &str) -> u64 {
    let text = Client::admin(server).get("/metrics").await.text();
    let lines = text.lines().filter(|line| line.starts_with(series));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Opens connections on which requests begin that never end; gives how many were refused at once.
async fn crowd(server: &Arc<TestServer>) -> (JoinSet<String>, u64) {
    let mut crowd = JoinSet::new();
    for number in 0..CONNECTIONS {
        let server = server.clone();
        crowd.spawn(async move {
            let mut stream = Client::new(&server, None).connect().await;
            let head = format!(
                "POST {CONFIG_MAPS} HTTP/1.1\r\nhost: barque-control\r\nauthorization: Bearer eve-token\r\n\
                 content-type: application/json\r\ncontent-length: 100\r\nx-request-id: {number}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = vec![0; 4096];
            let read = stream.read(&mut answer).await.unwrap_or(0);
            String::from_utf8_lossy(&answer[..read]).into_owned()
        });
    }
    let waiting = "apiserver_flowcontrol_current_inqueue_requests{priority_level=\"global-default\"}";
    let rejected = "apiserver_flowcontrol_rejected_requests_total{priority_level=\"global-default\"";
    let executing = "apiserver_flowcontrol_current_executing_requests{priority_level=\"global-default\"}";
    for _ in 0..1500 {
        let refused = number(server, rejected).await;
        let there = number(server, executing).await + number(server, waiting).await + refused;
        if there >= CONNECTIONS as u64 {
            return (crowd, refused);
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the crowd never came: {} waiting", number(server, waiting).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_client_with_two_hundred_connections_starves_nobody() {
    let server = Arc::new(small_server().await);
    let (mut crowd, refused) = crowd(&server).await;
    assert!(refused >= 140, "{refused}: seats and the queue of one user are bounded");
    for turn in 0..50 {
        let answer = get_as(&server, "bob-token").await;
        assert_eq!(answer.code, 200, "turn {turn}: {}", answer.text());
    }
    let mut told = 0;
    while let Some(Ok(answer)) = crowd.try_join_next() {
        assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("retry-after: 1"), "{answer}");
        assert!(answer.contains("\"reason\":\"TooManyRequests\""), "{answer}");
        told += 1;
    }
    assert!(told >= 140, "{told}");
    crowd.shutdown().await;
    // Gone, the crowd leaves every seat behind.
    let executing = "apiserver_flowcontrol_current_executing_requests{priority_level=\"global-default\"}";
    for _ in 0..1000 {
        if number(&server, executing).await == 0 {
            assert_eq!(get_as(&server, "eve-token").await.code, 200);
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("seats are lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_gets_its_turn_beside_a_bad_client() {
    with_each_on(small_server, async |kubectl, server| {
        let (mut crowd, _) = crowd(&server).await;
        let config: Value = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bob",
            "clusters": [{"name": "c", "cluster": {"server": format!("https://{}", server.address),
                "certificate-authority-data": base64::Engine::encode(
                    &base64::engine::general_purpose::STANDARD, server.authority.certificate_pem())}}],
            "users": [{"name": "bob", "user": {"token": "bob-token"}}],
            "contexts": [{"name": "bob", "context": {"cluster": "c", "user": "bob"}}],
        });
        let file = kubectl.file("bob.json", &config.to_string());
        for _ in 0..3 {
            let shown = kubectl.ok(&format!("--kubeconfig {file} get configmaps")).await;
            assert!(shown.contains("one"), "{shown}");
        }
        crowd.shutdown().await;
    })
    .await;
}

const FLOW_CONTROL: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

/// What an answer says that its request was counted as: uids of schema and level.
fn counted(answer: &Answer) -> [String; 2] {
    ["x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"].map(|name| {
        answer.headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    })
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..1500 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemas_and_levels_are_objects_that_count_at_once() {
    let server = small_server().await;
    let admin = Client::admin(&server);
    let (schemas, levels) =
        (format!("{FLOW_CONTROL}/flowschemas"), format!("{FLOW_CONTROL}/prioritylevelconfigurations"));
    until("a schema is missing", async || {
        let found = admin.get(&schemas).await.json();
        let is_told = |schema: &Value| schema["status"]["conditions"][0]["reason"] == "Found";
        let items = found["items"].as_array().unwrap();
        items.len() == 13 && items.iter().all(is_told)
    })
    .await;
    assert_eq!(admin.get(&levels).await.json()["items"].as_array().map(Vec::len), Some(8));
    let uid = async |path: String| {
        admin.get(&path).await.expect(200)["metadata"]["uid"].as_str().unwrap().to_owned()
    };
    let usual =
        [uid(format!("{schemas}/global-default")).await, uid(format!("{levels}/global-default")).await];
    until("bob is counted as nobody", async || counted(&get_as(&server, "bob-token").await) == usual).await;
    let exempt = uid(format!("{levels}/exempt")).await;
    assert_eq!(counted(&admin.get(CONFIG_MAPS).await)[1], exempt);

    // A level and a schema of one's own, for bob alone, count without a restart.
    let level = json!({"metadata": {"name": "own"}, "spec": {"type": "Limited", "limited": {
        "nominalConcurrencyShares": 0, "limitResponse": {"type": "Reject"}}}});
    admin.post(&levels, &level).await.expect(201);
    let schema = json!({"metadata": {"name": "bobs"}, "spec": {"priorityLevelConfiguration": {"name": "own"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": "bob"}}], "resourceRules": [
            {"verbs": ["list"], "apiGroups": [""], "resources": ["configmaps"], "namespaces": ["default"]}]}]}});
    let made = admin.post(&schemas, &schema).await.expect(201);
    assert_eq!(
        (&made["spec"]["matchingPrecedence"], &made["metadata"]["generation"]),
        (&json!(1000), &json!(1))
    );
    until("bob still gets a seat", async || get_as(&server, "bob-token").await.code == 429).await;
    let refused = get_as(&server, "bob-token").await;
    let own = [uid(format!("{schemas}/bobs")).await, uid(format!("{levels}/own")).await];
    assert_eq!((counted(&refused), refused.headers["retry-after"].to_str().unwrap()), (own, "1"));
    assert_eq!(counted(&get_as(&server, "eve-token").await), usual, "and nobody else");
    let merge = "application/merge-patch+json";
    let shares = json!({"spec": {"limited": {"nominalConcurrencyShares": 20}}});
    admin.patch(&format!("{levels}/own"), merge, &shares).await.expect(200);
    until("bob gets no seat", async || get_as(&server, "bob-token").await.code == 200).await;
    admin.delete(&format!("{levels}/own"), &Value::Null).await.expect(200);
    until("a level that is gone counts", async || counted(&get_as(&server, "bob-token").await) == usual)
        .await;
    until("the schema does not say that it dangles", async || {
        let told = admin.get(&format!("{schemas}/bobs")).await.json();
        told["status"]["conditions"][0]["status"] == "True"
    })
    .await;

    // What every cluster begins with comes back, as it was unless a user has taken it over.
    admin.delete(&format!("{schemas}/catch-all"), &Value::Null).await.expect(200);
    until("catch-all stays away", async || admin.get(&format!("{schemas}/catch-all")).await.code == 200)
        .await;
    let change = json!({"spec": {"matchingPrecedence": 9800}});
    admin.patch(&format!("{schemas}/global-default"), merge, &change).await.expect(200);
    until("the suggestion is not restored", async || {
        admin.get(&format!("{schemas}/global-default")).await.json()["spec"]["matchingPrecedence"] == 9900
    })
    .await;
    let taken = json!({"metadata": {"annotations": {"apf.kubernetes.io/autoupdate-spec": "false"}},
        "spec": {"matchingPrecedence": 9800}});
    let version = admin.patch(&format!("{schemas}/global-default"), merge, &taken).await.expect(200);
    admin.delete(&format!("{schemas}/probes"), &Value::Null).await.expect(200);
    until("probes stay away", async || admin.get(&format!("{schemas}/probes")).await.code == 200).await;
    let now = admin.get(&format!("{schemas}/global-default")).await.expect(200);
    assert_eq!(now["metadata"]["resourceVersion"], version["metadata"]["resourceVersion"]);
    for (path, change, why) in [
        (
            "flowschemas/exempt",
            json!({"spec": {"matchingPrecedence": 2}}),
            "spec of 'exempt' must equal the fixed value",
        ),
        ("flowschemas/bobs", json!({"spec": {"matchingPrecedence": 1}}), "only the schema named 'exempt'"),
        (
            "flowschemas/bobs",
            json!({"spec": {"rules": [{"subjects": []}]}}),
            "spec.rules[0].subjects: Required value",
        ),
        (
            "prioritylevelconfigurations/system",
            json!({"spec": {"type": "Exempt"}}),
            "if and only if name is 'exempt'",
        ),
        (
            "prioritylevelconfigurations/catch-all",
            json!({"spec": {"limited": {"nominalConcurrencyShares": 6}}}),
            "fixed value",
        ),
    ] {
        let (code, _, message) =
            admin.patch(&format!("{FLOW_CONTROL}/{path}"), merge, &change).await.status();
        assert_eq!(code, 422, "{message}");
        assert!(message.contains(why), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_shows_schemas_and_levels() {
    with_each_on(TestServer::start_leading, async |kubectl, server| {
        let admin = Client::admin(&server);
        let path = format!("{FLOW_CONTROL}/flowschemas/catch-all");
        for _ in 0..1500 {
            if admin.get(&path).await.json()["status"]["conditions"][0]["status"] == "False" {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let cells = |shown: &str, name: &str| -> Vec<String> {
            let line = shown.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().map(str::to_owned).collect()
        };
        let shown = kubectl.ok("get flowschemas").await;
        assert_eq!(
            cells(&shown, "NAME"),
            ["NAME", "PRIORITYLEVEL", "MATCHINGPRECEDENCE", "DISTINGUISHERMETHOD", "AGE", "MISSINGPL"]
        );
        let row = cells(&shown, "catch-all ");
        assert_eq!([&row[..4], &row[5..]].concat(), ["catch-all", "catch-all", "10000", "ByUser", "False"]);
        assert_eq!(cells(&shown, "exempt ")[3], "<none>");
        let shown = kubectl.ok("get prioritylevelconfigurations").await;
        assert_eq!(
            cells(&shown, "NAME"),
            ["NAME", "TYPE", "NOMINALCONCURRENCYSHARES", "QUEUES", "HANDSIZE", "QUEUELENGTHLIMIT", "AGE"]
        );
        assert_eq!(cells(&shown, "node-high ")[..6], ["node-high", "Limited", "40", "64", "6", "50"]);
        assert_eq!(cells(&shown, "exempt ")[..4], ["exempt", "Exempt", "<none>", "<none>"]);
        assert!(kubectl.ok("explain flowschema.spec.matchingPrecedence").await.contains("precedence"));
        assert!(kubectl.ok("describe flowschema exempt").await.contains("system:masters"));
    })
    .await;
}
