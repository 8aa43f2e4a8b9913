//! Roles: who may do what, reviews, impersonation, and that nobody grants more than he has.
//!
//! Rows: KIA-API-006, KIA-SEC-001, KIA-SEC-003, A4-19.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::client::{Answer, CONFIG_MAPS, Client, PODS, config_map, request};
use crate::kubectl::with_each;
use crate::server::TestServer;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
const ROLE_BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";

fn role(name: &str, verbs: &[&str], resources: &[&str]) -> Value {
    json!({"metadata": {"name": name}, "rules": [{"verbs": verbs, "apiGroups": ["", "rbac.authorization.k8s.io"],
        "resources": resources}]})
}

fn binding(name: &str, role: &str, user: &str) -> Value {
    json!({"metadata": {"name": name}, "roleRef": {"kind": "Role", "name": role},
        "subjects": [{"kind": "User", "name": user}]})
}

/// A request that an administrator makes as somebody else.
async fn as_user(client: &Client, user: &str, method: Method, path: &str, body: &Value) -> Answer {
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    let headers = [("impersonate-user", user), ("content-type", "application/json")];
    client.send(request(method, path, &headers, body)).await
}

/// Asks until the answer has that code: the replica learns of roles a moment after they are written.
async fn until(client: &Client, user: &str, path: &str, code: u16) -> Answer {
    for _ in 0..500 {
        let answer = as_user(client, user, Method::GET, path, &Value::Null).await;
        if answer.code.as_u16() == code {
            return answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{user} never got {code} from {path}");
}

#[tokio::test]
async fn a_role_gives_what_it_says_and_no_more_until_it_is_taken_away() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let (code, _, message) = as_user(&client, "eve", Method::GET, PODS, &Value::Null).await.status();
    assert_eq!(code, 403);
    assert_eq!(
        message,
        "pods is forbidden: User \"eve\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    client.post(ROLES, &role("reader", &["get", "list"], &["pods"])).await.expect(201);
    let made = client.post(ROLE_BINDINGS, &binding("eve-reads", "reader", "eve")).await.expect(201);
    assert_eq!(made["roleRef"]["apiGroup"], "rbac.authorization.k8s.io");
    assert_eq!(made["subjects"][0]["apiGroup"], "rbac.authorization.k8s.io");
    until(&client, "eve", PODS, 200).await;
    for (method, path) in [
        (Method::DELETE, PODS),
        (Method::GET, "/api/v1/pods"),
        (Method::GET, "/api/v1/namespaces/kube-system/pods"),
        (Method::GET, "/api/v1/namespaces/default/pods/x/log"),
        (Method::GET, CONFIG_MAPS),
        (Method::GET, "/metrics"),
    ] {
        let answer = as_user(&client, "eve", method.clone(), path, &Value::Null).await;
        assert_eq!(answer.code.as_u16(), 403, "{method} {path}");
    }
    client.delete(&format!("{ROLE_BINDINGS}/eve-reads"), &Value::Null).await.expect(200);
    until(&client, "eve", PODS, 403).await;
}

#[tokio::test]
async fn a_service_account_acts_under_its_roles() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    client.post(accounts, &json!({"metadata": {"name": "robot"}})).await.expect(201);
    client.post(ROLES, &role("writer", &["*"], &["configmaps"])).await.expect(201);
    let mut bound = binding("robot-writes", "writer", "");
    bound["subjects"] = json!([{"kind": "ServiceAccount", "name": "robot", "namespace": "default"}]);
    client.post(ROLE_BINDINGS, &bound).await.expect(201);
    until(&client, "system:serviceaccount:default:robot", CONFIG_MAPS, 200).await;
    let token = client.post(&format!("{accounts}/robot/token"), &json!({})).await.expect(201);
    let token = token["status"]["token"].as_str().unwrap();
    let bearer = format!("Bearer {token}");
    let nobody = Client::new(&server, None);
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let body = Bytes::from(config_map("mine", "1").to_string());
    assert_eq!(nobody.send(request(Method::POST, CONFIG_MAPS, &headers, body)).await.code.as_u16(), 201);
    assert_eq!(nobody.send(request(Method::GET, PODS, &headers, Bytes::new())).await.code.as_u16(), 403);
    // It may ask about itself, and is told who it is.
    let asked = Bytes::from(json!({}).to_string());
    let review = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let me = nobody.send(request(Method::POST, review, &headers, asked)).await.expect(201);
    assert_eq!(me["status"]["userInfo"]["username"], "system:serviceaccount:default:robot");
    assert!(me["status"]["userInfo"]["uid"].is_string(), "{me}");
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let known = client.post(reviews, &json!({"spec": {"token": token}})).await.expect(201);
    assert_eq!(known["status"]["authenticated"], true);
    assert_eq!(known["status"]["user"]["username"], "system:serviceaccount:default:robot");
    let other =
        client.post(reviews, &json!({"spec": {"token": token, "audiences": ["vault"]}})).await.expect(201);
    assert!(other["status"]["authenticated"].is_null(), "{other}");
    assert!(other["status"]["error"].is_string());
}

#[tokio::test]
async fn reviews_say_who_may_and_why() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    client.post(ROLES, &role("reader", &["get"], &["pods"])).await.expect(201);
    client.post(ROLE_BINDINGS, &binding("eve-reads", "reader", "eve")).await.expect(201);
    until(&client, "eve", &format!("{PODS}/x"), 404).await;
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let ask = async |verb: &str, namespace: &str| {
        let spec = json!({"user": "eve", "resourceAttributes":
            {"verb": verb, "resource": "pods", "namespace": namespace, "name": "x"}});
        client.post(reviews, &json!({"spec": spec})).await.expect(201)["status"].clone()
    };
    assert_eq!(
        ask("get", "default").await,
        json!({"allowed": true,
            "reason": "RBAC: allowed by RoleBinding \"eve-reads/default\" of Role \"reader\" to User \"eve\""})
    );
    assert_eq!(ask("delete", "default").await, json!({"allowed": false}));
    assert_eq!(ask("get", "other").await, json!({"allowed": false}));
    let path = json!({"spec": {"groups": ["system:monitoring"], "nonResourceAttributes": {"verb": "get", "path": "/metrics"}}});
    assert_eq!(client.post(reviews, &path).await.expect(201)["status"]["allowed"], true);
    for (spec, wanted) in [
        (json!({"user": "eve"}), "exactly one of nonResourceAttributes or resourceAttributes"),
        (json!({"resourceAttributes": {"verb": "get", "resource": "pods"}}), "at least one of user or group"),
        (
            json!({"user": "eve", "resourceAttributes": {}, "nonResourceAttributes": {}}),
            "cannot be specified in combination with resourceAttributes",
        ),
    ] {
        let (code, _, message) = client.post(reviews, &json!({"spec": spec})).await.status();
        assert_eq!(code, 422);
        assert!(message.contains(wanted), "{message}");
    }
    let local = "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews";
    let elsewhere = json!({"spec": {"user": "eve", "resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "other"}}});
    assert_eq!(client.post(local, &elsewhere).await.status().0, 422);
    let rules = json!({"spec": {"namespace": "default"}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let rules = as_user(&client, "eve", Method::POST, path, &rules).await.expect(201)["status"].clone();
    let resources = rules["resourceRules"].as_array().unwrap();
    assert!(resources.iter().any(|rule| rule["resources"] == json!(["pods"])), "{rules}");
    assert!(!rules["nonResourceRules"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn nobody_grants_more_than_he_has() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let everything = ["roles", "rolebindings", "pods"];
    client
        .post(ROLES, &role("warden", &["get", "list", "create", "update", "patch"], &everything))
        .await
        .expect(201);
    client.post(ROLE_BINDINGS, &binding("eve-guards", "warden", "eve")).await.expect(201);
    until(&client, "eve", ROLES, 200).await;
    let less = role("less", &["get"], &["pods"]);
    as_user(&client, "eve", Method::POST, ROLES, &less).await.expect(201);
    let (code, reason, message) =
        as_user(&client, "eve", Method::POST, ROLES, &role("more", &["get"], &["secrets"])).await.status();
    assert_eq!((code, reason.as_str()), (403, "Forbidden"));
    assert_eq!(
        message,
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"eve\" (groups=[\"system:authenticated\"]) is \
         attempting to grant RBAC permissions not currently held:\n\
         {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}\n\
         {APIGroups:[\"rbac.authorization.k8s.io\"], Resources:[\"secrets\"], Verbs:[\"get\"]}"
    );
    // Neither by changing a role, in whatever form, nor by binding one.
    let path = format!("{ROLES}/less");
    let patch =
        Bytes::from(json!([{"op": "add", "path": "/rules/0/verbs/-", "value": "delete"}]).to_string());
    let headers = [("impersonate-user", "eve"), ("content-type", "application/json-patch+json")];
    assert_eq!(client.send(request(Method::PATCH, &path, &headers, patch)).await.code.as_u16(), 403);
    assert_eq!(
        as_user(&client, "eve", Method::PUT, &path, &role("less", &["*"], &["pods"])).await.code.as_u16(),
        403
    );
    let admin = json!({"metadata": {"name": "up"}, "roleRef": {"kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "name": "eve"}]});
    assert_eq!(as_user(&client, "eve", Method::POST, ROLE_BINDINGS, &admin).await.code.as_u16(), 403);
    let (code, _, message) =
        as_user(&client, "eve", Method::POST, ROLE_BINDINGS, &binding("b", "nothing", "eve")).await.status();
    assert_eq!((code, message.as_str()), (404, "roles.rbac.authorization.k8s.io \"nothing\" not found"));
    as_user(&client, "eve", Method::POST, ROLE_BINDINGS, &binding("bob", "less", "bob")).await.expect(201);
    // Whoever may bind a role binds it, without having its rules.
    let mut bind = role("binder", &["bind"], &["roles"]);
    bind["rules"][0]["resourceNames"] = json!(["vault"]);
    client.post(ROLES, &bind).await.expect(201);
    client.post(ROLES, &role("vault", &["get"], &["secrets"])).await.expect(201);
    client.post(ROLE_BINDINGS, &binding("eve-binds", "binder", "eve")).await.expect(201);
    for attempt in 0.. {
        let answer =
            as_user(&client, "eve", Method::POST, ROLE_BINDINGS, &binding("v", "vault", "bob")).await;
        if answer.code.as_u16() == 201 {
            break;
        }
        assert!(attempt < 500, "{}", answer.text());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn only_who_may_impersonate_acts_as_somebody_else() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    client.post(accounts, &json!({"metadata": {"name": "robot"}})).await.expect(201);
    let token = client.post(&format!("{accounts}/robot/token"), &json!({})).await.expect(201);
    let bearer = format!("Bearer {}", token["status"]["token"].as_str().unwrap());
    let nobody = Client::new(&server, None);
    for (name, value, resource) in [
        ("impersonate-user", "admin", "users \"admin\""),
        ("impersonate-user", "system:serviceaccount:kube-system:x", "serviceaccounts \"x\""),
    ] {
        let headers = [("authorization", bearer.as_str()), (name, value)];
        let (code, _, message) =
            nobody.send(request(Method::GET, PODS, &headers, Bytes::new())).await.status();
        assert_eq!(code, 403);
        let start = format!(
            "{resource} is forbidden: User \"system:serviceaccount:default:robot\" cannot impersonate"
        );
        assert!(message.starts_with(&start), "{message}");
    }
    let headers = [("impersonate-group", "system:masters")];
    assert_eq!(client.send(request(Method::GET, PODS, &headers, Bytes::new())).await.code.as_u16(), 400);
    let headers = [("impersonate-user", "eve")];
    assert_eq!(nobody.send(request(Method::GET, PODS, &headers, Bytes::new())).await.code.as_u16(), 401);
    let headers = [("impersonate-user", "eve"), ("impersonate-group", "system:masters")];
    assert_eq!(client.send(request(Method::GET, PODS, &headers, Bytes::new())).await.code.as_u16(), 200);
}

#[tokio::test]
async fn roles_and_bindings_are_checked() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let cluster_roles = format!("{RBAC}/clusterroles");
    for (path, object, wanted) in [
        (
            ROLES,
            json!({"metadata": {"name": "a"}, "rules": [{"verbs": ["get"]}]}),
            "rules[0].apiGroups: Required value",
        ),
        (
            ROLES,
            json!({"metadata": {"name": "a"}, "rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}),
            "namespaced rules cannot apply to non-resource URLs",
        ),
        (&cluster_roles, json!({"metadata": {"name": "a/b"}}), "metadata.name: Invalid value"),
        (
            &cluster_roles,
            json!({"metadata": {"name": "a"}, "aggregationRule": {}}),
            "at least one clusterRoleSelector required",
        ),
        (
            ROLE_BINDINGS,
            json!({"metadata": {"name": "a"}, "roleRef": {"kind": "Pod", "name": "x"}}),
            "roleRef.kind: Unsupported value",
        ),
        (
            ROLE_BINDINGS,
            json!({"metadata": {"name": "a"}, "roleRef": {"kind": "Role", "name": "x"}, "subjects": [{"kind": "Dog", "name": "x"}]}),
            "subjects[0].kind: Unsupported value: \"Dog\"",
        ),
    ] {
        let (code, _, message) = client.post(path, &object).await.status();
        assert_eq!(code, 422, "{message}");
        assert!(message.contains(wanted), "{message}");
    }
    client.post(ROLES, &role("reader", &["get"], &["pods"])).await.expect(201);
    let made = client.post(ROLE_BINDINGS, &binding("b", "reader", "eve")).await.expect(201);
    let mut other = made.clone();
    other["roleRef"]["name"] = json!("warden");
    let (code, _, message) = client.put(&format!("{ROLE_BINDINGS}/b"), &other).await.status();
    assert_eq!(code, 422);
    assert!(message.contains("cannot change roleRef"), "{message}");
}

#[tokio::test]
async fn kubectl_makes_roles_and_asks_about_them() {
    with_each(|kubectl, _server| async move {
        kubectl.ok("create role reader --verb=get,list --resource=pods").await;
        kubectl.ok("create rolebinding eve-reads --role=reader --user=eve").await;
        kubectl.ok("create clusterrole viewer --verb=get --resource=nodes").await;
        kubectl.ok("create clusterrolebinding ops-view --clusterrole=viewer --group=ops").await;
        let table = kubectl.ok("get rolebinding eve-reads -o wide").await;
        assert!(table.starts_with("NAME"), "{table}");
        assert!(table.contains("Role/reader") && table.contains("eve"), "{table}");
        let roles = kubectl.ok("get role reader").await;
        assert!(roles.contains("CREATED AT"), "{roles}");
        assert_eq!(kubectl.ok("auth can-i delete pods").await, "yes\n");
        for _ in 0..100 {
            if kubectl.run("auth can-i list pods --as eve").await.stdout == "yes\n" {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(kubectl.ok("auth can-i list pods --as eve").await, "yes\n");
        let no = kubectl.run("auth can-i delete pods --as eve").await;
        assert!(!no.ok && no.stdout.starts_with("no"), "{}{}", no.stdout, no.stderr);
        assert_eq!(
            kubectl.ok("auth can-i get nodes --as bob --as-group ops").await.lines().last(),
            Some("yes")
        );
        let list = kubectl.ok("auth can-i --list --as eve").await;
        assert!(list.contains("pods") && list.contains("[get list]"), "{list}");
        // Older ones do not have the command; 1.27 asks for the review in v1beta1.
        let me = kubectl.run("auth whoami").await;
        let is_old = ["unknown command", "Usage:"].iter().any(|old| me.stderr.contains(old));
        if !is_old {
            let (out, error) = (me.stdout, me.stderr);
            assert!(me.ok && out.contains("admin") && out.contains("system:masters"), "{out}{error}");
        }
        kubectl
            .fails("get secrets --as eve", "secrets is forbidden: User \"eve\" cannot list resource")
            .await;
        let described = kubectl.ok("describe role reader").await;
        assert!(described.contains("PolicyRule:") && described.contains("[get list]"), "{described}");
    })
    .await;
}
