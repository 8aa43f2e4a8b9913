//! Sessions end to end: a node's client over an in-process connection, against the whole work of a replica.

mod entrances;
mod mirrors;
mod network;
mod nodes;

use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::node::node_sessions_client::NodeSessionsClient;
use proto::node::{
    FromNode, Heartbeat, Hello, PodStatus, PodTerminated, StreamFrame, ToNode, from_node, stream_frame,
    to_node,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Streaming};

use crate::auth::{Identity, SYSTEM_NODES};
use crate::controllers::Timings;
use crate::registry::{DeleteOptions, Target};
use crate::rest::{LogRequest, NodeReads};
use crate::test_cluster::{TestCluster, condition, kind, node};

const PATIENCE: Duration = Duration::from_secs(10);

/// A connection that carries the certificate of this node.
async fn connect(cluster: &TestCluster, node: &str) -> NodeSessionsClient<Channel> {
    let (client, server) = tokio::io::duplex(1 << 20);
    let user = format!("system:node:{node}");
    let identity = Identity { user, groups: vec![SYSTEM_NODES.to_owned()], ..Identity::default() };
    let with_identity = move |mut request: Request<()>| {
        request.extensions_mut().insert(identity.clone());
        Ok(request)
    };
    let service = proto::node::node_sessions_server::NodeSessionsServer::with_interceptor(
        cluster.work.sessions.clone(),
        with_identity,
    );
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(server));
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    let mut client = Some(client);
    let connector = tower::service_fn(move |_| {
        let client = client.take().map(TokioIo::new);
        async move { client.ok_or_else(|| std::io::Error::other("one connection only")) }
    });
    let endpoint = Endpoint::from_static("http://barque-control");
    NodeSessionsClient::new(endpoint.connect_with_connector(connector).await.expect("connected"))
}

struct Agent {
    client: NodeSessionsClient<Channel>,
    up: mpsc::Sender<FromNode>,
    down: Streaming<ToNode>,
}

fn hello(name: &str, node_json: &Value) -> FromNode {
    let hello = Hello {
        node_name: name.to_owned(),
        node_json: node_json.to_string().into(),
        agent_version: "test".to_owned(),
    };
    FromNode { message: Some(from_node::Message::Hello(hello)) }
}

impl Agent {
    async fn start(cluster: &TestCluster, name: &str) -> Self {
        let mut client = connect(cluster, name).await;
        let (up, requests) = mpsc::channel(16);
        up.send(hello(name, &node(name, "4"))).await.expect("queued");
        let down = client.session(ReceiverStream::new(requests)).await.expect("a session").into_inner();
        Self { client, up, down }
    }

    async fn say(&self, message: from_node::Message) {
        self.up.send(FromNode { message: Some(message) }).await.expect("the session is open");
    }

    async fn hear(&mut self) -> to_node::Message {
        let message = tokio::time::timeout(PATIENCE, self.down.message()).await.expect("a message in time");
        message.expect("the session is open").expect("the session goes on").message.expect("not empty")
    }

    /// The next message of the kind that `pick` picks; others are passed over.
    async fn hear_of<T>(&mut self, pick: impl Fn(to_node::Message) -> Option<T>) -> T {
        loop {
            if let Some(picked) = pick(self.hear().await) {
                return picked;
            }
        }
    }

    async fn changed_pod(&mut self, is_right: impl Fn(&Value) -> bool) -> Value {
        self.hear_of(|message| match message {
            to_node::Message::PodChange(change) => {
                let pod: Value = serde_json::from_slice(&change.pod_json).expect("JSON");
                is_right(&pod).then_some(pod)
            }
            _ => None,
        })
        .await
    }

    async fn ack(&mut self) -> u64 {
        self.hear_of(|message| match message {
            to_node::Message::Ack(ack) => Some(ack.sequence),
            _ => None,
        })
        .await
    }
}

fn role(message: to_node::Message) -> Option<(bool, u64)> {
    match message {
        to_node::Message::Role(role) => Some((role.leader, role.epoch)),
        _ => None,
    }
}

fn pod_names(message: to_node::Message) -> Option<Vec<String>> {
    let to_node::Message::PodSet(set) = message else { return None };
    let pods = set.pods_json.iter().map(|pod| serde_json::from_slice::<Value>(pod).expect("JSON"));
    Some(pods.map(|pod| pod["metadata"]["name"].as_str().expect("a name").to_owned()).collect())
}

async fn cluster() -> TestCluster {
    let timings = Timings { node_monitor_grace: Duration::from_secs(3600), ..Timings::default() };
    TestCluster::start(timings).await
}

#[tokio::test]
async fn a_pods_whole_life_on_a_node() {
    let cluster = cluster().await;
    let mut agent = Agent::start(&cluster, "n1").await;
    assert_eq!(agent.hear_of(role).await, (true, 1));
    assert_eq!(agent.hear_of(pod_names).await, Vec::<String>::new());
    let registered = cluster.until("Node", "", "n1", |_| true).await;
    assert_eq!(registered["spec"]["podCIDR"], "10.244.0.0/24");
    assert_eq!(registered["spec"]["podCIDRs"], json!(["10.244.0.0/24"]));

    cluster.pod("p", "1").await;
    let pod = agent.changed_pod(|pod| pod["spec"]["nodeName"] == "n1").await;
    let uid = pod["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let status = json!({"phase": "Running", "podIP": "10.244.0.2", "conditions": [
        {"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "False"},
    ]});
    let say = |sequence, uid: &str| {
        from_node::Message::PodStatus(PodStatus {
            sequence,
            namespace: "default".into(),
            name: "p".into(),
            uid: uid.to_owned(),
            status_json: status.to_string().into(),
        })
    };
    agent.say(say(7, &uid)).await;
    assert_eq!(agent.ack().await, 7);
    let stored = cluster.until("Pod", "default", "p", |pod| pod["status"]["phase"] == "Running").await;
    assert_eq!(condition(&stored, "PodScheduled")["status"], "True", "the control plane's condition stays");
    assert_eq!(stored["status"]["qosClass"], "Burstable");

    // A status of another life of the name is dropped, and settled.
    agent.say(say(8, "another")).await;
    assert_eq!(agent.ack().await, 8);

    let target = Target::new(kind("Pod"), "default", "p");
    cluster.registry.delete(target, &DeleteOptions::default()).await.expect("deleted");
    agent.changed_pod(|pod| pod["metadata"]["deletionTimestamp"].is_string()).await;
    let end = PodTerminated {
        sequence: 9,
        namespace: "default".into(),
        name: "p".into(),
        uid: uid.clone(),
        status_json: Vec::new().into(),
    };
    agent.say(from_node::Message::PodTerminated(end)).await;
    // Both come, in either order.
    let (mut removed, mut acknowledged) = (None, None);
    while removed.is_none() || acknowledged.is_none() {
        match agent.hear().await {
            to_node::Message::PodRemoved(pod) => removed = Some((pod.uid, pod.epoch)),
            to_node::Message::Ack(ack) => acknowledged = Some(ack.sequence),
            _ => {}
        }
    }
    assert_eq!((removed, acknowledged), (Some((uid, 1)), Some(9)));
    assert!(cluster.get("Pod", "default", "p").await.is_none());
}

#[tokio::test]
async fn a_node_that_says_a_pod_ended_by_itself_does_not_delete_it() {
    let cluster = cluster().await;
    let mut agent = Agent::start(&cluster, "n1").await;
    cluster.pod("p", "1").await;
    let pod = agent.changed_pod(|pod| pod["spec"]["nodeName"] == "n1").await;
    let uid = pod["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let status = json!({"phase": "Succeeded"}).to_string();
    let end = PodTerminated {
        sequence: 1,
        namespace: "default".into(),
        name: "p".into(),
        uid,
        status_json: status.into(),
    };
    agent.say(from_node::Message::PodTerminated(end)).await;
    assert_eq!(agent.ack().await, 1);
    let pod = cluster.get("Pod", "default", "p").await.expect("still there");
    assert_eq!(pod["status"]["phase"], "Succeeded");
}

#[tokio::test]
async fn roles_change_and_only_leaders_speak_of_pods() {
    let cluster = cluster().await;
    let mut agent = Agent::start(&cluster, "n1").await;
    cluster.pod("p", "1").await;
    agent.changed_pod(|pod| pod["spec"]["nodeName"] == "n1").await;

    cluster.follow(2);
    assert_eq!(agent.hear_of(role).await, (false, 0));
    // What a node says to a follower is neither stored nor acknowledged.
    let end =
        PodTerminated { sequence: 3, namespace: "default".into(), name: "p".into(), ..Default::default() };
    agent.say(from_node::Message::PodTerminated(end)).await;
    agent.say(from_node::Message::Heartbeat(Heartbeat { sequence: 1 })).await;
    cluster.lead(4);
    assert_eq!(agent.hear().await, {
        let role = proto::node::Role { leader: true, epoch: 4, member_name: "m1".into() };
        to_node::Message::Role(role)
    });
    assert_eq!(agent.hear_of(pod_names).await, ["p"], "the whole set, from a leader that has it all");
    assert!(cluster.work.heartbeats.get("n1").expect("heard of").connected);
    drop(agent);
    let gone = async {
        while cluster.work.heartbeats.get("n1").expect("known").connected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the end of the session is noticed");
}

/// What an agent hears of one object: its data, or that it is gone; then the name of a pod, or the index.
fn told(message: to_node::Message) -> Option<String> {
    let name = |key: Option<proto::node::ObjectKey>| key.map(|key| key.name).unwrap_or_default();
    Some(match message {
        to_node::Message::ObjectChange(change) => {
            let object: Value = serde_json::from_slice(&change.object_json).expect("JSON");
            format!("{} is {}", name(change.key), object["data"]["k"].as_str().unwrap_or_default())
        }
        to_node::Message::ObjectRemoved(removed) => format!("{} is gone", name(removed.key)),
        to_node::Message::ObjectIndex(index) => {
            format!("all: {}", index.objects.into_iter().map(|key| key.name).collect::<Vec<_>>().join(" "))
        }
        to_node::Message::PodSet(_) => "pods".to_owned(),
        to_node::Message::PodChange(change) => {
            let pod: Value = serde_json::from_slice(&change.pod_json).expect("JSON");
            format!("pod {}", pod["metadata"]["name"].as_str().unwrap_or_default())
        }
        to_node::Message::PodRemoved(removed) => format!("pod {} is gone", removed.name),
        _ => return None,
    })
}

#[tokio::test]
async fn a_node_hears_of_the_objects_that_its_pods_refer_to_and_of_no_others() {
    let cluster = cluster().await;
    let object = |kind: &str, name: &str, value: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "data": {"k": value}});
    for name in ["mine", "of-nobody"] {
        cluster.create("ConfigMap", "default", object("ConfigMap", name, "one")).await;
    }
    let mut agent = Agent::start(&cluster, "n1").await;
    assert_eq!(agent.hear_of(told).await, "all: ");
    assert_eq!(agent.hear_of(told).await, "pods");
    let mut pod = crate::test_cluster::pod("p", "1");
    pod["spec"]["automountServiceAccountToken"] = json!(false);
    pod["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "mine"}}]);
    pod["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "late"}}]);
    cluster.create("Pod", "default", pod).await;
    assert_eq!(agent.hear_of(told).await, "mine is one");
    assert_eq!(agent.hear_of(told).await, "late is gone", "said, so that the node need not wait for it");
    assert_eq!(agent.hear_of(told).await, "pod p");

    let secret = |value: &str| object("Secret", "late", value);
    cluster.create("Secret", "default", secret("czE=")).await;
    assert_eq!(agent.hear_of(|m| told(m).filter(|t| t != "pod p")).await, "late is czE=");
    let set = |value: &'static str| move |map: &mut Value| map["data"]["k"] = json!(value);
    cluster.modify(Target::new(kind("ConfigMap"), "default", "of-nobody"), set("two")).await;
    cluster.modify(Target::new(kind("ConfigMap"), "default", "mine"), set("two")).await;
    assert_eq!(agent.hear_of(|m| told(m).filter(|t| t != "pod p")).await, "mine is two");

    // The next leader says it all again, objects first.
    cluster.follow(2);
    assert_eq!(agent.hear_of(role).await, (false, 0));
    cluster.lead(3);
    assert_eq!(agent.hear_of(role).await, (true, 3));
    for expected in ["mine is two", "late is czE=", "all: mine late", "pods"] {
        assert_eq!(agent.hear_of(told).await, expected);
    }
    let options = DeleteOptions { grace_period_s: Some(0), ..DeleteOptions::default() };
    cluster.registry.delete(Target::new(kind("Pod"), "default", "p"), &options).await.expect("deleted");
    let next = |m| told(m).filter(|t| t != "pod p");
    assert_eq!(agent.hear_of(next).await, "pod p is gone");
    let mut forgotten = [agent.hear_of(next).await, agent.hear_of(next).await];
    forgotten.sort();
    assert_eq!(forgotten, ["late is gone", "mine is gone"], "nobody refers to them any more");
}

#[tokio::test]
async fn a_node_gets_tokens_for_its_own_pods_only() {
    let cluster = cluster().await;
    let mut agent = Agent::start(&cluster, "n1").await;
    cluster.until("ServiceAccount", "default", "default", |_| true).await;
    cluster.pod("p", "1").await;
    let pod = agent.changed_pod(|pod| pod["spec"]["nodeName"] == "n1").await;
    let request = |sequence| proto::node::TokenRequest {
        sequence,
        namespace: "default".into(),
        service_account: "default".into(),
        pod_name: "p".into(),
        pod_uid: pod["metadata"]["uid"].as_str().expect("a uid").to_owned(),
        audience: String::new(),
        expiration_seconds: 3607,
    };
    let token = |message| match message {
        to_node::Message::Token(token) => Some(token),
        _ => None,
    };
    agent.say(from_node::Message::TokenRequest(request(1))).await;
    let given = agent.hear_of(token).await;
    assert_eq!((given.sequence, given.error.as_str()), (1, ""));
    assert_eq!(given.expires_at_s - given.issued_at_s, 3607);
    let identity = cluster.work.accounts.authenticate(&given.token).await.expect("it counts");
    assert_eq!(identity.user, "system:serviceaccount:default:default");
    let mut other = Agent::start(&cluster, "n2").await;
    for (mut wrong, why) in
        [(request(2), "it is not bound to this node"), (request(3), "there is no such pod")]
    {
        if wrong.sequence == 3 {
            wrong.pod_name = "q".into();
        }
        other.say(from_node::Message::TokenRequest(wrong)).await;
        let refused = other.hear_of(token).await;
        assert!(refused.token.is_empty() && refused.error.ends_with(why), "{}", refused.error);
    }
    for (service_account, audience, why) in [
        ("robot", "", "it runs as another service account"),
        ("default", "vault", "none of its volumes asks for a token for that audience"),
    ] {
        let wrong = proto::node::TokenRequest {
            service_account: service_account.into(),
            audience: audience.into(),
            ..request(4)
        };
        agent.say(from_node::Message::TokenRequest(wrong)).await;
        let refused = agent.hear_of(token).await;
        assert!(refused.token.is_empty() && refused.error.ends_with(why), "{}", refused.error);
    }
}

#[tokio::test]
async fn every_node_gets_its_own_range_and_the_routes_to_the_others() {
    let cluster = cluster().await;
    let network = |message| match message {
        to_node::Message::NodeNetwork(network) => Some(network),
        _ => None,
    };
    let mut one = Agent::start(&cluster, "n1").await;
    let first = one.hear_of(network).await;
    assert_eq!((first.pod_cidr.as_str(), first.peers.len()), ("10.244.0.0/24", 0));
    let mut two = Agent::start(&cluster, "n2").await;
    let second = two.hear_of(|message| network(message).filter(|network| !network.peers.is_empty())).await;
    assert_eq!(second.pod_cidr, "10.244.1.0/24");
    assert_eq!(second.peers[0].node_name, "n1");
    let first = one.hear_of(|message| network(message).filter(|network| !network.peers.is_empty())).await;
    assert_eq!(
        (first.peers[0].pod_cidr.as_str(), first.peers[0].via.as_str()),
        ("10.244.1.0/24", "192.168.0.50")
    );
}

#[tokio::test]
async fn a_session_needs_the_nodes_own_certificate() {
    let cluster = cluster().await;
    let mut client = connect(&cluster, "n1").await;
    let stranger = tokio_stream::once(hello("n2", &node("n2", "4")));
    let refused = client.session(stranger).await.expect_err("refused");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("is of node n1, not of n2"), "{refused}");
    let anonymous = cluster.work.sessions.session_by_nobody().await;
    assert_eq!(anonymous, Code::PermissionDenied);
    assert!(cluster.get("Node", "", "n2").await.is_none());
}

impl super::NodeSessions {
    /// A session by nobody at all: no identity in the request.
    async fn session_by_nobody(&self) -> Code {
        let (client, server) = tokio::io::duplex(1 << 16);
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(server));
        tokio::spawn(Server::builder().add_service(self.service()).serve_with_incoming(incoming));
        let mut client = Some(client);
        let connector = tower::service_fn(move |_| {
            let client = client.take().map(TokioIo::new);
            async move { client.ok_or_else(|| std::io::Error::other("one connection only")) }
        });
        let endpoint = Endpoint::from_static("http://barque-control");
        let channel = endpoint.connect_with_connector(connector).await.expect("connected");
        let nothing = tokio_stream::empty::<FromNode>();
        NodeSessionsClient::new(channel).session(nothing).await.expect_err("refused").code()
    }
}

#[tokio::test]
async fn a_newer_session_takes_the_place_of_the_older() {
    let cluster = cluster().await;
    let mut old = Agent::start(&cluster, "n1").await;
    old.hear_of(role).await;
    let mut new = Agent::start(&cluster, "n1").await;
    new.hear_of(role).await;
    let ended = async { while old.down.message().await.is_ok_and(|message| message.is_some()) {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the older session ends");
    cluster.pod("p", "1").await;
    new.changed_pod(|pod| pod["spec"]["nodeName"] == "n1").await;
    assert!(cluster.work.heartbeats.get("n1").expect("heard of").connected);
}

#[tokio::test]
async fn logs_flow_through_a_stream_that_the_node_opens_back() {
    let cluster = cluster().await;
    let request = || LogRequest { node: "n1".into(), pod: "p".into(), follow: true, ..LogRequest::default() };
    let sessions = cluster.work.sessions.clone();
    let Err(status) = NodeReads::log(&sessions, request()).await else { panic!("n1 is not connected") };
    assert!(status.message().contains("has no session at this replica"), "{}", status.message());

    let mut agent = Agent::start(&cluster, "n1").await;
    let reading = tokio::spawn(async move { NodeReads::log(&sessions, request()).await });
    let asked = agent
        .hear_of(|message| match message {
            to_node::Message::OpenStream(open) => Some(open),
            _ => None,
        })
        .await;
    let (frames, requests) = mpsc::channel(16);
    let frame = |frame| StreamFrame { frame: Some(frame) };
    frames.send(frame(stream_frame::Frame::StreamId(asked.stream_id.clone()))).await.expect("queued");
    frames.send(frame(stream_frame::Frame::Stdout(b"hello\n".to_vec().into()))).await.expect("queued");
    let mut answer = agent.client.stream(ReceiverStream::new(requests)).await.expect("taken").into_inner();
    let mut log = reading.await.expect("no panic").expect("opened");
    let chunk = futures_util::StreamExt::next(&mut log).await.expect("a chunk").expect("no error");
    assert_eq!(chunk, "hello\n");
    // The reader goes away: the node's call ends.
    drop(log);
    let end = tokio::time::timeout(PATIENCE, answer.message()).await.expect("the call ends");
    assert!(matches!(end, Ok(None)), "{end:?}");
    // Nobody waits for that id any more.
    let again = tokio_stream::once(frame(stream_frame::Frame::StreamId(asked.stream_id)));
    let mut answer = agent.client.stream(again).await.expect("taken").into_inner();
    assert_eq!(answer.message().await.expect_err("unknown").code(), Code::NotFound);
}
