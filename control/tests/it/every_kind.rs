//! What holds for objects of every kind, over plain HTTP and by kubectl.
//! Rows: AX-10, AX-28, J21, KC-KCTL-01, KC-KCTL-08, KIA-API-002, 009, 025 to 027, KIA-CLI-012, 041,
//! KC-KCTL-02, 03, 06, A4-10.

use api::Kind;
use http::Method;
use serde_json::{Value, json};

use crate::client::{Client, PODS, pod, request};
use crate::kubectl::with_each;
use crate::server::TestServer;
use crate::webhook::Webhook;

/// One object of each kind that another package's manifests have, and of those that they have not.
fn manifests() -> Vec<(&'static Kind, Value)> {
    let accepted = include_str!("../../../api/tests/it/testdata/accepted.yaml");
    let mut all: Vec<Value> = serde_saphyr::from_multiple(accepted).unwrap();
    let rbac = "rbac.authorization.k8s.io";
    // What a server keeps in another form than it was sent in is never "unchanged" to kubectl.
    all.insert(0, crate::client::config_map("plain", "value"));
    // And a node that a client makes is tainted by the server.
    all.insert(
        0,
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"disk": "ssd"}}}),
    );
    let (_, request) = crate::certificates::asked("jane", "dev");
    let signer = "kubernetes.io/kube-apiserver-client";
    all.insert(0, json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": "jane"}, "spec": {"request": request, "signerName": signer, "usages": ["client auth"]}}));
    let schema = json!({"openAPIV3Schema": {"type": "object"}});
    all.extend([
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"},
            "automountServiceAccountToken": false}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": {"name": "reader"},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "readers"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "view"},
            "subjects": [{"apiGroup": rbac, "kind": "User", "name": "jane"}]}),
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "none"}}),
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "gadgets.lab.example.com"}, "spec": {"group": "lab.example.com", "scope": "Cluster",
                "names": {"plural": "gadgets", "kind": "Gadget"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]}}),
        json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": "own"},
            "spec": {"priorityLevelConfiguration": {"name": "own"}, "matchingPrecedence": 7000, "rules": [
                {"subjects": [{"kind": "User", "user": {"name": "jane"}}],
                    "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/metrics"]}]}]}}),
        json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
            "metadata": {"name": "own"}, "spec": {"type": "Limited", "limited": {
                "nominalConcurrencyShares": 3, "limitResponse": {"type": "Reject"}}}}),
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": "n1"},
            "spec": {"drivers": []}}),
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIStorageCapacity", "metadata": {"name": "some"},
            "storageClassName": "local", "capacity": "1Gi"}),
    ]);
    let mut found: Vec<(&'static Kind, Value)> = Vec::new();
    for mut manifest in all {
        // What clients send and servers keep in another form is never "unchanged", as in Kubernetes.
        if let Some(texts) = manifest.as_object_mut().and_then(|members| members.remove("stringData")) {
            assert!(texts.is_object());
            manifest["data"] = json!({"user": "bWU="});
        }
        manifest.as_object_mut().unwrap().remove("status");
        let api_version = manifest["apiVersion"].as_str().unwrap();
        let (group, version) = api::kinds::split_api_version(api_version);
        let kind = api::kinds::by_kind(group, version, manifest["kind"].as_str().unwrap()).unwrap();
        if !found.iter().any(|(known, _)| *known == kind) {
            found.push((kind, manifest));
        }
    }
    found
}

/// What says which object it is, and nothing of it.
const IDENTITY: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Where objects of a kind are.
fn collection(kind: &Kind, manifest: &Value) -> String {
    let root = match kind.group {
        "" => format!("/api/{}", kind.version),
        group => format!("/apis/{group}/{}", kind.version),
    };
    let namespace = manifest["metadata"]["namespace"].as_str().unwrap_or("default");
    match kind.namespaced {
        true => format!("{root}/namespaces/{namespace}/{}", kind.plural),
        false => format!("{root}/{}", kind.plural),
    }
}

#[test]
fn there_is_a_manifest_for_every_kind() {
    let known = manifests();
    for kind in api::kinds().iter().filter(|kind| !kind.virtual_only && kind.stored_as.is_none()) {
        assert!(known.iter().any(|(own, _)| *own == kind), "{}", kind.kind);
    }
}

#[tokio::test]
async fn every_kind_takes_every_verb_over_plain_http() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    for (kind, manifest) in manifests() {
        let path = collection(kind, &manifest);
        let name = manifest["metadata"]["name"].as_str().unwrap();
        let made = client.post(&path, &manifest).await.expect(201);
        let metadata = &made["metadata"];
        for field in ["name", "uid", "resourceVersion", "creationTimestamp"] {
            assert!(metadata.get(field).is_some(), "{}: {field}: {metadata}", kind.kind);
        }
        // Who set nothing but a name owns nothing.
        let says_more = manifest.as_object().unwrap().keys().any(|key| !IDENTITY.contains(&key.as_str()));
        assert!(metadata.get("managedFields").is_some() || !says_more, "{}: {metadata}", kind.kind);
        assert_eq!(metadata.get("namespace").is_some(), kind.namespaced, "{}", kind.kind);
        let one = format!("{path}/{name}");
        let read = client.get(&one).await.expect(200);
        let list = client.get(&path).await.expect(200);
        let same = list["items"].as_array().unwrap().iter().find(|item| item["metadata"]["name"] == name);
        // An element of a list does not repeat what the list says of all.
        let mut same = same.unwrap().clone();
        for field in ["kind", "apiVersion"] {
            same[field] = read[field].clone();
        }
        assert_eq!(same, read, "{}", kind.kind);
        let mut labelled = read.clone();
        labelled["metadata"]["labels"]["put"] = json!("yes");
        client.put(&one, &labelled).await.expect(200);
        let patch = json!({"metadata": {"labels": {"patched": "yes"}}});
        let patched = client.merge(&one, &patch).await.expect(200);
        assert_eq!(patched["metadata"]["labels"]["put"], "yes", "{}", kind.kind);
        assert_eq!(patched["metadata"]["uid"], read["metadata"]["uid"]);
        let gone = client.delete(&format!("{one}?gracePeriodSeconds=0"), &Value::Null).await;
        assert!(gone.code.is_success(), "{}: {}", kind.kind, gone.text());
    }
    // A question makes nothing.
    let before = client.get("/api/v1/namespaces").await.json()["metadata"]["resourceVersion"].clone();
    let review = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(client.post(path, &review).await.expect(201)["status"]["allowed"], true);
    assert_eq!(client.send(request(Method::GET, path, &[], bytes::Bytes::new())).await.code, 405);
    assert_eq!(client.get("/api/v1/namespaces").await.json()["metadata"]["resourceVersion"], before);
}

#[tokio::test]
async fn every_type_of_network_volume_is_a_valid_manifest() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let volumes = [
        ("awsElasticBlockStore", json!({"volumeID": "v"})),
        ("azureDisk", json!({"diskName": "d", "diskURI": "u"})),
        ("azureFile", json!({"secretName": "s", "shareName": "n"})),
        ("cephfs", json!({"monitors": ["m"]})),
        ("cinder", json!({"volumeID": "v"})),
        ("fc", json!({"targetWWNs": ["w"], "lun": 1})),
        ("flexVolume", json!({"driver": "d"})),
        ("flocker", json!({"datasetName": "d"})),
        ("gcePersistentDisk", json!({"pdName": "p"})),
        ("glusterfs", json!({"endpoints": "e", "path": "p"})),
        ("iscsi", json!({"targetPortal": "t", "iqn": "iqn.2001-04.com.example:x", "lun": 0})),
        ("photonPersistentDisk", json!({"pdID": "p"})),
        ("portworxVolume", json!({"volumeID": "v"})),
        ("quobyte", json!({"registry": "r:1", "volume": "v"})),
        ("rbd", json!({"monitors": ["m"], "image": "i"})),
        ("scaleIO", json!({"gateway": "g", "system": "s", "secretRef": {"name": "n"}, "volumeName": "v"})),
        ("storageos", json!({"volumeName": "v", "volumeNamespace": "n"})),
        ("vsphereVolume", json!({"volumePath": "p"})),
    ];
    for (field, source) in volumes {
        let mut made = pod("a");
        made["spec"]["volumes"] = json!([{"name": "disk", field: source}]);
        let answer = client.post(&format!("{PODS}?dryRun=All&fieldValidation=Strict"), &made).await;
        assert_eq!(answer.code, 201, "{field}: {}", answer.text());
        assert!(answer.json()["spec"]["volumes"][0][field].is_object(), "{field}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_keeps_an_object_of_every_kind() {
    with_each(async |kubectl, server| {
        let client = Client::admin(&server);
        let mut unchanged = 0;
        for (kind, manifest) in manifests() {
            let one =
                format!("{}/{}", collection(kind, &manifest), manifest["metadata"]["name"].as_str().unwrap());
            let file = kubectl.file(&format!("{}.json", kind.plural), &manifest.to_string());
            let said = kubectl.ok(&format!("apply --validate=strict -f {file}")).await;
            assert!(said.ends_with(" created\n"), "{said}");
            let before = client.get(&one).await.expect(200)["metadata"]["resourceVersion"].clone();
            // Where a list of structs has defaults inside, kubectl sends it once more, and nothing comes of it.
            let said = kubectl.ok(&format!("apply -f {file}")).await;
            unchanged += usize::from(said.ends_with(" unchanged\n"));
            assert_eq!(client.get(&one).await.expect(200)["metadata"]["resourceVersion"], before, "{said}");
            let said = kubectl.ok(&format!("get -f {file}")).await;
            assert!(said.lines().nth(1).is_some_and(|row| !row.is_empty()), "{said}");
            let said = kubectl
                .ok(&format!(
                    "patch -f {file} --type=merge -p {{\"metadata\":{{\"labels\":{{\"x\":\"y\"}}}}}}"
                ))
                .await;
            assert!(said.ends_with(" patched\n"), "{said}");
            let said = kubectl.ok(&format!("delete --wait=false -f {file}")).await;
            assert!(said.contains("deleted"), "{said}");
        }
        assert!(unchanged >= 25, "{unchanged}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_knows_names_categories_and_fields_and_fetches_manifests() {
    with_each(async |kubectl, _server| {
        let resources = kubectl.ok("api-resources").await;
        for (name, short, kind) in [
            ("services", "svc", "Service"),
            ("pods", "po", "Pod"),
            ("nodes", "no", "Node"),
            ("deployments", "deploy", "Deployment"),
            ("events", "ev", "Event"),
        ] {
            let is_it = |line: &&str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.first() == Some(&name) && words.get(1) == Some(&short) && words.last() == Some(&kind)
            };
            assert!(resources.lines().any(|line| is_it(&line)), "{name}: {resources}");
        }
        let manifest = pod("fetched");
        let page = Webhook::serve(&[], move |path, _| match path {
            "/pod.json" => manifest.clone(),
            _ => Value::Null,
        })
        .await;
        let ca = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &page.ca).unwrap();
        let ca = kubectl.file("page.pem", &String::from_utf8(ca).unwrap());
        let url = format!("https://127.0.0.1:{}/pod.json", page.port);
        let fetched =
            kubectl.command(&format!("apply -f {url}")).env("SSL_CERT_FILE", ca).output().await.unwrap();
        let said = String::from_utf8_lossy(&fetched.stdout).into_owned();
        assert_eq!(said, "pod/fetched created\n", "{}", String::from_utf8_lossy(&fetched.stderr));
        for word in ["po", "pod", "pods", "pods.v1."] {
            assert_eq!(kubectl.ok(&format!("get {word} fetched -o name")).await, "pod/fetched\n");
        }
        kubectl.ok("create configmap aside --from-literal=a=b").await;
        kubectl.ok("create service clusterip web --tcp=80").await;
        let all = kubectl.ok("get all -o name").await;
        assert!(all.contains("pod/fetched") && all.contains("service/web"), "{all}");
        assert!(!all.contains("configmap") && !all.contains("event"), "{all}");
        // Run makes a pod and nothing else, in the namespace that is meant, once.
        assert_eq!(kubectl.ok("run --image basicserver:0.42 testpod").await, "pod/testpod created\n");
        kubectl.fails("run --image basicserver:0.42 testpod", "AlreadyExists").await;
        assert_eq!(kubectl.ok("get deployments,replicasets -o name").await, "");
        kubectl.ok("-n kube-system run --image basicserver:0.42 aside").await;
        let here = kubectl.ok("get pod").await;
        let rows: Vec<Vec<&str>> = here.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
        assert_eq!(
            (rows.len(), rows[1][0], &rows[2][..4]),
            (3, "fetched", &["testpod", "0/1", "Pending", "0"][..])
        );
        let there = kubectl.ok("-n kube-system get pod --no-headers").await;
        assert!(there.lines().count() == 1 && there.starts_with("aside "), "{there}");
        kubectl.ok("create deployment web --image=barque/hello:1.0").await;
        for object in ["deployment/web", "service/web", "pod/fetched"] {
            let yaml = kubectl.ok(&format!("get {object} -o yaml")).await;
            let members: Vec<&str> = yaml.lines().filter(|line| !line.starts_with([' ', '-'])).collect();
            let keys: Vec<&str> = members.iter().filter_map(|line| line.split(':').next()).collect();
            assert_eq!(keys[..4], ["apiVersion", "kind", "metadata", "spec"], "{yaml}");
            assert!(object == "deployment/web" || keys[4..] == ["status"], "{yaml}");
        }
        let said = kubectl.ok("explain pod.spec.restartPolicy").await;
        assert!(said.contains("string") && said.contains("Restart policy for all containers"), "{said}");
        for value in ["Always", "OnFailure", "Never"] {
            assert!(said.contains(value), "{said}");
        }
    })
    .await;
}
