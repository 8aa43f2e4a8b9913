//! Objects over gRPC: what `barque.objects.v1` promises, beside REST on the same port.

use std::time::Duration;

use control::pki::{ALPN_H2, client_config};
use futures_util::StreamExt;
use prost::Message;
use proto::objects::exec_request::Message as Said;
use proto::objects::exec_response::Message as Answer;
use proto::objects::objects_client::ObjectsClient;
use proto::objects::patch_request::Type as PatchType;
use proto::objects::watch_response::Type;
use proto::objects::{
    BindRequest, Body, CreateRequest, DeleteCollectionRequest, DeleteOptions, DeleteRequest, Encoding,
    ExecRequest, ExecStart, FieldValidation, GetRequest, ListRequest, Object, PatchRequest, Resource,
    UpdateRequest, WatchRequest, WriteOptions, WriteResponse,
};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::client::{CONFIG_MAPS, Client, PODS, config_map, pod};
use crate::server::TestServer;

/// No message takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

async fn channel(server: &TestServer, with_certificate: bool) -> Channel {
    let credentials = with_certificate.then(|| server.admin());
    let config = client_config(server.authority.certificate_pem(), credentials.as_ref(), &[ALPN_H2]).unwrap();
    let connector = TlsConnector::from(std::sync::Arc::new(config));
    let address = server.address;
    let connect = tower::service_fn(move |_: Uri| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("barque-control").unwrap();
            connector.connect(name, stream).await.map(hyper_util::rt::TokioIo::new)
        }
    });
    Endpoint::from_static("http://barque-control").connect_with_connector(connect).await.unwrap()
}

async fn objects(server: &TestServer) -> ObjectsClient<Channel> {
    ObjectsClient::new(channel(server, true).await)
}

fn named(resource: &str, name: &str) -> Option<Resource> {
    let (resource, name) = (resource.to_owned(), name.to_owned());
    Some(Resource { resource, name, namespace: "default".to_owned(), ..Resource::default() })
}

fn body(value: &Value) -> Option<Body> {
    Some(Body { encoding: Encoding::Json.into(), content: value.to_string().into() })
}

fn json_of(object: &Object) -> Value {
    serde_json::from_slice(&object.body).unwrap()
}

async fn create(client: &mut ObjectsClient<Channel>, plural: &str, value: &Value) -> WriteResponse {
    let request = CreateRequest { resource: named(plural, ""), body: body(value), ..Default::default() };
    client.create(request).await.unwrap().into_inner()
}

fn get(plural: &str, name: &str) -> GetRequest {
    GetRequest { resource: named(plural, name), ..Default::default() }
}

async fn next<T>(stream: &mut Streaming<T>) -> Option<Result<T, Status>> {
    tokio::time::timeout(PATIENCE, stream.next()).await.expect("a message in time")
}

#[tokio::test]
async fn both_doors_show_the_same_objects() {
    let server = TestServer::start().await;
    let (rest, mut client) = (Client::admin(&server), objects(&server).await);
    let made = create(&mut client, "configmaps", &config_map("a", "1")).await;
    assert!(made.created);
    let made = made.object.unwrap();
    let meta = made.metadata.clone().unwrap();
    assert_eq!((made.api_version.as_str(), made.kind.as_str(), meta.name.as_str()), ("v1", "ConfigMap", "a"));
    assert_eq!(meta.labels["app"], "a");
    assert!(meta.creation_timestamp.is_some_and(|time| time.seconds > 1_700_000_000));
    let path = format!("{CONFIG_MAPS}/a");
    let seen = rest.get(&path).await.expect(200);
    assert_eq!(json_of(&made), seen);
    assert_eq!(seen["metadata"]["uid"], meta.uid.as_str());
    assert_eq!(seen["metadata"]["resourceVersion"], meta.resource_version.as_str());
    // Protobuf is what REST sends; without a body the metadata are there all the same.
    let mut request = get("configmaps", "a");
    request.encoding = Encoding::Protobuf.into();
    let binary = client.get(request.clone()).await.unwrap().into_inner();
    let theirs = rest.get_as(&path, "application/vnd.kubernetes.protobuf").await;
    assert_eq!((binary.encoding(), binary.body), (Encoding::Protobuf, theirs.body));
    request.encoding = Encoding::None.into();
    let bare = client.get(request).await.unwrap().into_inner();
    assert!(bare.body.is_empty() && bare.metadata == Some(meta));
    // And what is sent may be protobuf, too.
    let renamed = api_protobuf(&config_map("b", "2"));
    let body = Some(Body { encoding: Encoding::Protobuf.into(), content: renamed.into() });
    let request = CreateRequest { resource: named("configmaps", ""), body, ..Default::default() };
    client.create(request).await.unwrap();
    assert_eq!(rest.get(&format!("{CONFIG_MAPS}/b")).await.expect(200)["data"]["key"], "2");
    let request = DeleteRequest { resource: named("configmaps", "b"), ..Default::default() };
    let gone = client.delete(request).await.unwrap().into_inner();
    assert_eq!((gone.kind.as_str(), json_of(&gone)["status"].as_str()), ("Status", Some("Success")));
    rest.get(&format!("{CONFIG_MAPS}/b")).await.expect(404);
}

fn api_protobuf(value: &Value) -> Vec<u8> {
    let encoder = api::protobuf::Encoder::new("v1", value["kind"].as_str().unwrap()).unwrap();
    encoder.object(value.to_string().as_bytes()).unwrap()
}

#[tokio::test]
async fn writes_have_the_rules_of_rest() {
    let server = TestServer::start().await;
    let mut client = objects(&server).await;
    let made = create(&mut client, "configmaps", &config_map("a", "1")).await.object.unwrap();
    // An update names the version that it saw.
    let mut next = json_of(&made);
    next["data"]["key"] = json!("2");
    let update = |value: &Value| UpdateRequest {
        resource: named("configmaps", "a"),
        body: body(value),
        ..Default::default()
    };
    client.update(update(&next)).await.unwrap();
    let stale = client.update(update(&next)).await.unwrap_err();
    assert_eq!(stale.code(), Code::Aborted, "{stale:?}");
    // The four patches.
    let patch = |kind: PatchType, patch: Value| PatchRequest {
        resource: named("configmaps", "a"),
        r#type: kind.into(),
        patch: patch.to_string().into(),
        options: Some(WriteOptions { field_manager: "test".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    let add = json!([{"op": "add", "path": "/data/json", "value": "x"}]);
    client.patch(patch(PatchType::Json, add)).await.unwrap();
    client.patch(patch(PatchType::Merge, json!({"data": {"merge": "x"}}))).await.unwrap();
    client.patch(patch(PatchType::Strategic, json!({"data": {"strategic": "x"}}))).await.unwrap();
    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"},
        "data": {"apply": "x", "key": "3"}});
    let conflict = client.patch(patch(PatchType::Apply, applied.clone())).await.unwrap_err();
    assert_eq!(conflict.code(), Code::Aborted);
    let details = status_of(&conflict);
    assert_eq!(details["details"]["causes"][0]["reason"], "FieldManagerConflict", "{details}");
    let forced = PatchRequest { force: true, ..patch(PatchType::Apply, applied) };
    let after = client.patch(forced).await.unwrap().into_inner();
    assert!(!after.created);
    let data = json_of(&after.object.unwrap())["data"].clone();
    let all = json!({"key": "3", "json": "x", "merge": "x", "strategic": "x", "apply": "x"});
    assert_eq!(data, all);
    // Unknown fields warn, or are refused.
    let mut odd = config_map("odd", "1");
    odd["spce"] = json!(1);
    let mut request = CreateRequest {
        resource: named("configmaps", ""),
        body: body(&odd),
        options: Some(WriteOptions { dry_run: true, ..Default::default() }),
        ..Default::default()
    };
    let warned = client.create(request.clone()).await.unwrap().into_inner();
    assert_eq!(warned.warnings, ["unknown field \"spce\""]);
    request.options.as_mut().unwrap().field_validation = FieldValidation::Strict.into();
    assert_eq!(client.create(request).await.unwrap_err().code(), Code::InvalidArgument);
    let missing = client.get(get("configmaps", "odd")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "nothing was made");
}

/// The Kubernetes Status in an error's details.
fn status_of(error: &Status) -> Value {
    let details = proto::rpc::Status::decode(error.details()).unwrap();
    let any = &details.details[0];
    assert!(any.type_url.ends_with("/k8s.io.apimachinery.pkg.apis.meta.v1.Status"), "{}", any.type_url);
    // As a body of REST is wrapped.
    let mut body = b"k8s\0\x0a\x0c\x0a\x02v1\x12\x06Status\x12".to_vec();
    prost::encoding::encode_varint(any.value.len() as u64, &mut body);
    body.extend_from_slice(&any.value);
    api::protobuf::decode(&body).unwrap()
}

#[tokio::test]
async fn errors_are_codes_and_carry_the_status() {
    let server = TestServer::start().await;
    let mut client = objects(&server).await;
    let missing = client.get(get("pods", "ghost")).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::NotFound, "pods \"ghost\" not found"));
    let status = status_of(&missing);
    assert_eq!(status["reason"], "NotFound");
    assert_eq!(status["details"], json!({"name": "ghost", "kind": "pods"}));
    let unknown = client.get(get("cows", "bella")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    create(&mut client, "configmaps", &config_map("a", "1")).await;
    let request = CreateRequest {
        resource: named("configmaps", ""),
        body: body(&config_map("a", "1")),
        ..Default::default()
    };
    assert_eq!(client.create(request).await.unwrap_err().code(), Code::AlreadyExists);
    let mut invalid = pod("x");
    invalid["spec"]["containers"][0]["image"] = json!("");
    let request = CreateRequest { resource: named("pods", ""), body: body(&invalid), ..Default::default() };
    let invalid = client.create(request).await.unwrap_err();
    assert_eq!(invalid.code(), Code::InvalidArgument);
    assert_eq!(status_of(&invalid)["details"]["causes"][0]["field"], "spec.containers[0].image");
    // What makes no sense is said before anything is asked.
    assert_eq!(client.get(get("pods", "")).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(client.get(GetRequest::default()).await.unwrap_err().code(), Code::InvalidArgument);
    let log = Some(Resource { subresource: "log".to_owned(), ..named("pods", "a").unwrap() });
    let request = GetRequest { resource: log, ..Default::default() };
    assert_eq!(client.get(request).await.unwrap_err().code(), Code::Unimplemented);
    // More than a body may have.
    let large = Body { encoding: Encoding::Json.into(), content: vec![b' '; 4 * 1024 * 1024].into() };
    let request = CreateRequest { resource: named("pods", ""), body: Some(large), ..Default::default() };
    let refused = client.create(request).await.unwrap_err();
    assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{refused:?}");
}

#[tokio::test]
async fn lists_come_in_pages_of_one_version() {
    let server = TestServer::start().await;
    let mut client = objects(&server).await;
    for number in 0..7 {
        let mut map = config_map(&format!("m{number}"), &"x".repeat(400 * 1024));
        map["metadata"]["labels"]["odd"] = json!((number % 2 == 1).to_string());
        create(&mut client, "configmaps", &map).await;
    }
    let mut request = ListRequest { resource: named("configmaps", ""), ..Default::default() };
    let mut stream = client.list(request.clone()).await.unwrap().into_inner();
    let (mut names, mut messages, mut versions) = (Vec::new(), 0, Vec::new());
    while let Some(message) = next(&mut stream).await {
        let message = message.unwrap();
        messages += 1;
        versions.push(message.resource_version);
        names.extend(message.items.into_iter().map(|item| item.metadata.unwrap().name));
    }
    let expected: Vec<String> = (0..7).map(|number| format!("m{number}")).collect();
    names.retain(|name| name.starts_with('m'));
    assert_eq!(names, expected);
    versions.dedup();
    assert!(messages >= 3 && versions.len() == 1, "{messages} messages of {versions:?}");
    // A limit ends it with a token, and the token goes on at the same version.
    request.label_selector = "odd".to_owned();
    request.limit = 5;
    request.encoding = Encoding::None.into();
    let first = all_pages(&mut client, request.clone()).await;
    assert_eq!(first.0, ["m0", "m1", "m2", "m3", "m4"]);
    create(&mut client, "configmaps", &config_map("m9", "new")).await;
    request.continue_token = first.1;
    let second = all_pages(&mut client, request.clone()).await;
    assert_eq!(second, (vec!["m5".to_owned(), "m6".to_owned()], String::new()));
    request.continue_token = "nonsense".to_owned();
    assert_eq!(client.list(request).await.unwrap_err().code(), Code::InvalidArgument);
    let empty = ListRequest { resource: named("secrets", ""), ..Default::default() };
    let mut stream = client.list(empty).await.unwrap().into_inner();
    let only = next(&mut stream).await.unwrap().unwrap();
    assert!(only.items.is_empty() && !only.resource_version.is_empty());
    assert!(next(&mut stream).await.is_none());
    let request = DeleteCollectionRequest {
        resource: named("configmaps", ""),
        label_selector: "odd=true".to_owned(),
        encoding: Encoding::None.into(),
        ..Default::default()
    };
    let mut stream = client.delete_collection(request).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().unwrap().items.len(), 3);
}

async fn all_pages(client: &mut ObjectsClient<Channel>, request: ListRequest) -> (Vec<String>, String) {
    let mut stream = client.list(request).await.unwrap().into_inner();
    let (mut names, mut token) = (Vec::new(), String::new());
    while let Some(message) = next(&mut stream).await {
        let message = message.unwrap();
        names.extend(message.items.into_iter().map(|item| item.metadata.unwrap().name));
        token = message.continue_token;
    }
    (names, token)
}

#[tokio::test]
async fn a_watch_goes_on_from_a_version_or_says_that_it_cannot() {
    let server = TestServer::start().await;
    let mut client = objects(&server).await;
    let first = create(&mut client, "configmaps", &config_map("a", "1")).await;
    let version = first.object.unwrap().metadata.unwrap().resource_version;
    create(&mut client, "configmaps", &config_map("b", "1")).await;
    let mut request =
        WatchRequest { resource: named("configmaps", ""), resource_version: version, ..Default::default() };
    let mut stream = client.watch(request.clone()).await.unwrap().into_inner();
    let event = next(&mut stream).await.unwrap().unwrap();
    assert_eq!(event.r#type(), Type::Added);
    assert_eq!(json_of(event.object.as_ref().unwrap())["data"]["key"], "1");
    let delete = DeleteRequest { resource: named("configmaps", "b"), ..Default::default() };
    client.delete(delete).await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().unwrap().r#type(), Type::Deleted);
    // One object, from what there is, in protobuf; ended in time.
    let mut one = WatchRequest {
        resource: named("configmaps", "a"),
        bookmarks: true,
        send_initial_events: true,
        timeout_seconds: 1,
        encoding: Encoding::Protobuf.into(),
        ..Default::default()
    };
    let mut stream = client.watch(one.clone()).await.unwrap().into_inner();
    let event = next(&mut stream).await.unwrap().unwrap();
    assert!(event.object.unwrap().body.starts_with(b"k8s\0"));
    let bookmark = next(&mut stream).await.unwrap().unwrap();
    assert!(bookmark.r#type() == Type::Bookmark && bookmark.initial_events_end);
    while let Some(event) = next(&mut stream).await {
        event.expect("it ends without an error");
    }
    one.bookmarks = false;
    assert_eq!(client.watch(one).await.unwrap_err().code(), Code::InvalidArgument);
    // History that is gone, of a kind that nobody watches.
    let secret = |name: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}});
    let first = create(&mut client, "secrets", &secret("a")).await;
    create(&mut client, "secrets", &secret("b")).await;
    server.store.compact(server.store.revision());
    request.resource = named("secrets", "");
    request.resource_version = first.object.unwrap().metadata.unwrap().resource_version;
    let mut stream = client.watch(request).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn callers_are_known_and_held_to_their_rights() {
    let server = TestServer::start().await;
    let rest = Client::admin(&server);
    let mut nobody = ObjectsClient::new(channel(&server, false).await);
    let refused = nobody.get(get("pods", "a")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    rest.post(accounts, &account).await.expect(201);
    let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let token = rest.post(&format!("{accounts}/robot/token"), &asked).await.expect(201);
    let token = format!("Bearer {}", token["status"]["token"].as_str().unwrap());
    let with_token = |message: GetRequest| {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", token.parse().unwrap());
        request
    };
    let refused = nobody.get(with_token(get("pods", "a"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("system:serviceaccount:default:robot"), "{}", refused.message());
    assert_eq!(status_of(&refused)["reason"], "Forbidden");
    // An operator as somebody else.
    let mut client = objects(&server).await;
    let mut request = tonic::Request::new(get("pods", "a"));
    request.metadata_mut().insert("impersonate-user", "alice".parse().unwrap());
    let refused = client.get(request).await.unwrap_err();
    assert!(
        refused.message().starts_with("pods \"a\" is forbidden: User \"alice\""),
        "{}",
        refused.message()
    );
}

#[tokio::test]
async fn a_deadline_ends_the_call() {
    let server = TestServer::start().await;
    let mut client = objects(&server).await;
    let watch = WatchRequest { resource: named("pods", ""), ..Default::default() };
    let mut request = tonic::Request::new(watch);
    request.set_timeout(Duration::from_millis(300));
    let mut stream = client.watch(request).await.unwrap().into_inner();
    let late = next(&mut stream).await.unwrap().unwrap_err();
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late:?}");
}

#[tokio::test]
async fn a_pod_is_bound_and_a_program_runs_in_it() {
    let server = TestServer::start().await;
    let (rest, mut client) = (Client::admin(&server), objects(&server).await);
    create(&mut client, "pods", &pod("a")).await;
    let start = ExecStart {
        namespace: "default".to_owned(),
        pod: "a".to_owned(),
        command: vec!["say".to_owned(), "two words".to_owned()],
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let said = |message: Said| ExecRequest { message: Some(message) };
    let exec = |messages: Vec<ExecRequest>| tonic::Request::new(futures_util::stream::iter(messages));
    let unbound = client.exec(exec(vec![said(Said::Start(start.clone()))])).await.unwrap_err();
    assert_eq!(unbound.code(), Code::InvalidArgument);
    assert_eq!(unbound.message(), "pod a does not have a host assigned");
    let mut bind = BindRequest {
        namespace: "default".to_owned(),
        pod: "a".to_owned(),
        node: "n1".to_owned(),
        pod_uid: "another".to_owned(),
        ..Default::default()
    };
    assert_eq!(client.bind(bind.clone()).await.unwrap_err().code(), Code::NotFound);
    bind.pod_uid.clear();
    client.bind(bind).await.unwrap();
    assert_eq!(rest.get(&format!("{PODS}/a")).await.expect(200)["spec"]["nodeName"], "n1");
    let messages = vec![
        said(Said::Start(start.clone())),
        said(Said::Stdin("abc".into())),
        said(Said::Stdin("defg".into())),
    ];
    let mut stream = client.exec(exec(messages)).await.unwrap().into_inner();
    let (mut out, mut err, mut exit, mut started) = (Vec::new(), Vec::new(), None, false);
    while let Some(message) = next(&mut stream).await {
        match message.unwrap().message.unwrap() {
            Answer::Started(_) => started = true,
            Answer::Stdout(bytes) => out.extend_from_slice(&bytes),
            Answer::Stderr(bytes) => err.extend_from_slice(&bytes),
            Answer::Exit(code) => exit = Some(code),
        }
    }
    assert!(started);
    assert_eq!((out.as_slice(), err.as_slice()), (&b"abcdefg"[..], &b"main: say two words\n"[..]));
    assert_eq!(exit, Some(7));
    let refuse = ExecStart { command: vec!["refuse".to_owned()], ..start };
    let refused = client.exec(exec(vec![said(Said::Start(refuse))])).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Internal, "container not found (\"main\")"));
    let wrong = client.exec(exec(vec![said(Said::StdinEnd(true))])).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    // With a grace period it waits for its node, and says so.
    let options = Some(DeleteOptions { grace_period_seconds: Some(7), ..Default::default() });
    let request = DeleteRequest { resource: named("pods", "a"), options, ..Default::default() };
    let waiting = client.delete(request).await.unwrap().into_inner();
    assert!(waiting.kind == "Pod" && waiting.metadata.unwrap().deletion_timestamp.is_some());
}

#[tokio::test]
async fn the_port_tells_its_services_and_its_health() {
    let server = TestServer::start().await;
    // Nobody needs a right to ask for either.
    let channel = channel(&server, false).await;
    let mut health = HealthClient::new(channel.clone());
    let request = HealthCheckRequest { service: "barque.objects.v1.Objects".to_owned() };
    let mut stream = health.watch(request).await.unwrap().into_inner();
    let serving = |status: i32| status == tonic_health::ServingStatus::Serving as i32;
    loop {
        let now = next(&mut stream).await.unwrap().unwrap().status;
        if serving(now) {
            break;
        }
    }
    let mut reflection = ServerReflectionClient::new(channel);
    let ask = |message: MessageRequest| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
        tonic::Request::new(futures_util::stream::iter([request]))
    };
    let services = MessageRequest::ListServices(String::new());
    let mut answer = reflection.server_reflection_info(ask(services)).await.unwrap().into_inner();
    let answer = next(&mut answer).await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"barque.objects.v1.Objects") && names.contains(&"grpc.health.v1.Health"));
    assert!(!names.iter().any(|name| name.contains("Raft")), "{names:?}");
    let symbol = MessageRequest::FileContainingSymbol("barque.objects.v1.ListRequest".to_owned());
    let mut answer = reflection.server_reflection_info(ask(symbol)).await.unwrap().into_inner();
    let answer = next(&mut answer).await.unwrap().unwrap().message_response.unwrap();
    assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{answer:?}");
    // A replica that stops says so before it is gone.
    server.stop.cancel();
    let mut last = None;
    while let Ok(Some(Ok(status))) = tokio::time::timeout(PATIENCE, stream.next()).await {
        last = Some(status.status);
    }
    assert!(last.is_some_and(|last| !serving(last)), "{last:?}");
}
