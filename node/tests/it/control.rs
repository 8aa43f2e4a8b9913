//! A fake control-plane replica: node sessions and joining over mutual TLS, and a record of what it heard.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, NodeStatus, Pod, PodStatus};
use proto::control::cluster_server::{Cluster, ClusterServer};
use proto::control::{
    ExplainPodRequest, ExplainPodResponse, JoinNodeRequest, JoinNodeResponse, StatusRequest, StatusResponse,
    TransferLeaderRequest, TransferLeaderResponse,
};
use proto::node::node_sessions_server::{NodeSessions, NodeSessionsServer};
use proto::node::{
    Ack, Event, FromNode, LogsRequest, MirrorPod, NodeNetwork, ObjectChange, ObjectIndex, ObjectKey,
    ObjectRemoved, OpenStream, PodChange, PodRemoved, PodSet, Role, StreamFrame, ToNode, TokenRequest,
    TokenResponse, Usage, from_node, open_stream, stream_frame, to_node,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair,
    SanType,
};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::host::PATIENCE;

/// The CA of the fake cluster, shared by its replicas.
pub(crate) struct Authority {
    pub(crate) ca_pem: String,
    pub(crate) ca_der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Arc<Self> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let ca = params.self_signed(&key).unwrap();
        let (ca_pem, ca_der) = (ca.pem(), ca.der().to_vec());
        Arc::new(Self { ca_pem, ca_der, issuer: Issuer::new(params, key) })
    }

    pub(crate) fn token(&self) -> String {
        use base64::Engine as _;
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.ca_der);
        let digest = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest.as_ref());
        format!("barque-node.{digest}.id.9999999999.mac")
    }

    fn server_tls(&self) -> ServerTlsConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName("barque-control".try_into().unwrap())];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        // The chain carries the CA, so that a joining node can find the one that its token names.
        let chain = certificate.pem() + &self.ca_pem;
        ServerTlsConfig::new()
            .identity(Identity::from_pem(chain, key.serialize_pem()))
            .client_ca_root(Certificate::from_pem(&self.ca_pem))
            .client_auth_optional(true)
    }
}

/// What the replica heard and what it says.
#[derive(Default)]
pub(crate) struct Heard {
    leads: Option<u64>,
    versions: u64,
    pods: BTreeMap<String, Pod>,
    pub(crate) network: Option<NodeNetwork>,
    pub(crate) sessions: Vec<mpsc::Sender<Result<ToNode, Status>>>,
    streams: BTreeMap<String, mpsc::UnboundedSender<StreamFrame>>,
    pub(crate) node: Option<Node>,
    pub(crate) node_status: Option<NodeStatus>,
    /// Every status by uid, in order.
    pub(crate) statuses: BTreeMap<String, Vec<(Instant, PodStatus)>>,
    pub(crate) terminated: BTreeMap<String, PodStatus>,
    pub(crate) events: Vec<Event>,
    pub(crate) heartbeats: u64,
    pub(crate) usage: Option<Usage>,
    pub(crate) tokens: Vec<TokenRequest>,
    /// How long tokens live.
    pub(crate) token_seconds: i64,
    /// What it gives beside pods, by kind and name; all in the namespace `default`.
    objects: BTreeMap<(String, String), serde_json::Value>,
}

/// A replica.
#[derive(Clone)]
pub(crate) struct Control {
    pub(crate) address: SocketAddr,
    authority: Arc<Authority>,
    heard: Arc<Mutex<Heard>>,
}

impl Control {
    /// Starts a replica that leads nothing yet.
    pub(crate) async fn start(authority: &Arc<Authority>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let control = Self { address, authority: Arc::clone(authority), heard: Arc::default() };
        let mut server = Server::builder().tls_config(authority.server_tls()).unwrap();
        let router = server
            .add_service(NodeSessionsServer::new(control.clone()))
            .add_service(ClusterServer::new(control.clone()));
        // Small messages must not wait for the other side's delayed acknowledgement.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() });
        control
    }

    pub(crate) fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap()
    }

    /// Leads from now on, over this pod range.
    pub(crate) fn lead(&self, epoch: u64, pod_cidr: &str) {
        let mut heard = self.heard();
        heard.leads = Some(epoch);
        heard.network = Some(NodeNetwork { epoch, pod_cidr: pod_cidr.to_owned(), ..NodeNetwork::default() });
        let messages = heard.greeting();
        messages.into_iter().for_each(|m| heard.say(m));
    }

    /// Says nothing as a leader any more.
    pub(crate) fn follow(&self) {
        let mut heard = self.heard();
        heard.leads = None;
        heard.say(to_node::Message::Role(Role { leader: false, epoch: 0, member_name: "m".into() }));
    }

    /// Ends every session.
    pub(crate) fn hang_up(&self) {
        self.heard().sessions.clear();
    }

    /// Has the pod in its store, without saying so yet.
    pub(crate) fn know(&self, pod: &Pod) {
        self.heard().pods.insert(pod.metadata.uid.clone().unwrap(), pod.clone());
    }

    /// Binds or changes a pod. Returns when.
    pub(crate) fn put(&self, pod: &Pod) -> Instant {
        let mut heard = self.heard();
        heard.pods.insert(pod.metadata.uid.clone().unwrap(), pod.clone());
        let epoch = heard.leads.unwrap();
        let pod_json = serde_json::to_vec(pod).unwrap().into();
        heard.say(to_node::Message::PodChange(PodChange { epoch, pod_json }));
        Instant::now()
    }

    /// Gives the node an object, or a newer state of it.
    pub(crate) fn give(&self, kind: &str, name: &str, data: serde_json::Value) {
        let mut heard = self.heard();
        heard.versions += 1;
        let object = serde_json::json!({
            "metadata": {"name": name, "namespace": "default", "resourceVersion": heard.versions.to_string()},
            "data": data,
        });
        let epoch = heard.leads.unwrap();
        let change = object_change(epoch, kind, name, &object);
        heard.objects.insert((kind.to_owned(), name.to_owned()), object);
        heard.say(change);
    }

    /// An object is gone.
    pub(crate) fn take_back(&self, kind: &str, name: &str) {
        let mut heard = self.heard();
        heard.objects.remove(&(kind.to_owned(), name.to_owned()));
        let (epoch, key) = (heard.leads.unwrap(), Some(object_key(kind, name)));
        heard.say(to_node::Message::ObjectRemoved(ObjectRemoved { epoch, key }));
    }

    /// Marks a pod as being deleted, and says so.
    pub(crate) fn delete(&self, uid: &str, grace_seconds: i64) -> Instant {
        let pod = self.mark_deleted(uid, grace_seconds);
        self.put(&pod)
    }

    /// Marks a pod as being deleted in its store, without saying so yet.
    pub(crate) fn mark_deleted(&self, uid: &str, grace_seconds: i64) -> Pod {
        let mut pod = self.heard().pods[uid].clone();
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now());
        pod.metadata.deletion_timestamp = Some(now);
        pod.metadata.deletion_grace_period_seconds = Some(grace_seconds);
        self.know(&pod);
        pod
    }

    /// The object is gone.
    pub(crate) fn remove(&self, uid: &str) {
        let mut heard = self.heard();
        heard.pods.remove(uid);
        let (epoch, uid) = (heard.leads.unwrap(), uid.to_owned());
        heard.say(to_node::Message::PodRemoved(PodRemoved { epoch, uid, ..PodRemoved::default() }));
    }

    /// Says something to every session.
    pub(crate) fn say(&self, message: to_node::Message) {
        self.heard().say(message);
    }

    /// Waits until what was heard satisfies the question.
    pub(crate) async fn until<T>(&self, what: &str, mut question: impl FnMut(&Heard) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = question(&self.heard()) {
                return answer;
            }
            if Instant::now() > end {
                let heard = self.heard();
                let brief =
                    |(_, s): &(Instant, PodStatus)| serde_json::to_string(&s.container_statuses).unwrap();
                let last: Vec<_> = heard.statuses.values().filter_map(|s| s.last()).map(brief).collect();
                let last = last.join("\n");
                panic!("waited in vain for: {what}\nlast statuses: {last}\nevents: {:#?}", heard.said());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits for a status of a pod; returns when it came, and it.
    pub(crate) async fn status(
        &self,
        uid: &str,
        what: &str,
        wanted: impl Fn(&PodStatus) -> bool,
    ) -> (Instant, PodStatus) {
        self.until(what, |heard| heard.statuses.get(uid)?.iter().find(|(_, s)| wanted(s)).cloned()).await
    }

    /// Waits until a pod runs and is ready.
    pub(crate) async fn running(&self, uid: &str) -> (Instant, PodStatus) {
        self.status(uid, &format!("{uid} runs"), is_ready).await
    }

    /// Waits until a pod is gone; returns its last status.
    pub(crate) async fn gone(&self, uid: &str) -> PodStatus {
        self.until(&format!("{uid} is gone"), |heard| heard.terminated.get(uid).cloned()).await
    }

    /// Asks for a log; returns its frames as they come.
    pub(crate) fn open_logs(&self, request: LogsRequest) -> mpsc::UnboundedReceiver<StreamFrame> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut heard = self.heard();
        let stream_id = format!("stream-{}", heard.streams.len());
        heard.streams.insert(stream_id.clone(), sender);
        let request = Some(open_stream::Request::Logs(request));
        heard.say(to_node::Message::OpenStream(OpenStream { stream_id, request }));
        receiver
    }

    /// A whole log, or the error that it ended with.
    pub(crate) async fn logs(&self, request: LogsRequest) -> Result<String, (i32, String)> {
        let mut frames = self.open_logs(request);
        let mut text = String::new();
        loop {
            let frame = tokio::time::timeout(PATIENCE, frames.recv()).await.expect("a frame in time");
            match frame.expect("a last frame").frame.unwrap() {
                stream_frame::Frame::Stdout(bytes) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
                stream_frame::Frame::Error(error) => return Err((error.code, error.message)),
                stream_frame::Frame::End(_) => return Ok(text),
                other => panic!("no frame of a log: {other:?}"),
            }
        }
    }

    fn receive(&self, message: from_node::Message) -> Option<u64> {
        let mut heard = self.heard();
        let parse = |json: &[u8]| serde_json::from_slice::<PodStatus>(json).unwrap();
        let sequence = match message {
            from_node::Message::Hello(hello) => {
                heard.node = Some(serde_json::from_slice(&hello.node_json).unwrap());
                return None;
            }
            from_node::Message::Heartbeat(_) => {
                heard.heartbeats += 1;
                return None;
            }
            from_node::Message::Usage(usage) => {
                heard.usage = Some(usage);
                return None;
            }
            from_node::Message::NetworkWanted(_) => return None,
            from_node::Message::TokenRequest(request) => {
                heard.answer_token(&request);
                return None;
            }
            from_node::Message::PodStatus(status) => {
                let entry = (Instant::now(), parse(&status.status_json));
                heard.statuses.entry(status.uid).or_default().push(entry);
                status.sequence
            }
            from_node::Message::PodTerminated(status) => {
                // The first word counts, as with a real replica, where the object goes with it: an agent that is killed
                // right after it has a successor that finds nothing of the pod, and says so again.
                heard.terminated.entry(status.uid).or_insert(parse(&status.status_json));
                status.sequence
            }
            from_node::Message::NodeStatus(status) => {
                heard.node_status = Some(serde_json::from_slice(&status.status_json).unwrap());
                status.sequence
            }
            from_node::Message::MirrorPod(wish) => heard.mirror(wish),
            from_node::Message::Event(event) => {
                let sequence = event.sequence;
                heard.events.push(event);
                sequence
            }
        };
        Some(sequence)
    }
}

impl Heard {
    /// Answers with a token that says what it is for and how many were given before it.
    fn answer_token(&mut self, request: &TokenRequest) {
        let number = self.tokens.len();
        self.tokens.push(request.clone());
        let issued_at_s = jiff::Timestamp::now().as_second();
        self.say(to_node::Message::Token(TokenResponse {
            sequence: request.sequence,
            token: format!("token {number} of {} for {}", request.service_account, request.pod_name),
            issued_at_s,
            expires_at_s: issued_at_s + self.token_seconds,
            error: String::new(),
        }));
    }

    /// Makes or removes a mirror pod, as a real replica does for the node's own.
    fn mirror(&mut self, wish: MirrorPod) -> u64 {
        let epoch = self.leads.unwrap();
        if wish.pod_json.is_empty() {
            self.pods.remove(&wish.uid);
            self.say(to_node::Message::PodRemoved(PodRemoved {
                epoch,
                uid: wish.uid,
                ..PodRemoved::default()
            }));
            return wish.sequence;
        }
        let mut pod: Pod = serde_json::from_slice(&wish.pod_json).unwrap();
        self.versions += 1;
        let uid = format!("mirror-{}", self.versions);
        pod.metadata.uid = Some(uid.clone());
        let pod_json = serde_json::to_vec(&pod).unwrap().into();
        self.pods.insert(uid, pod);
        self.say(to_node::Message::PodChange(PodChange { epoch, pod_json }));
        wish.sequence
    }

    /// The object of this name, if there is one.
    pub(crate) fn named(&self, name: &str) -> Option<Pod> {
        self.pods.values().find(|pod| pod.metadata.name.as_deref() == Some(name)).cloned()
    }

    /// Reasons and messages of all events, in order.
    pub(crate) fn said(&self) -> Vec<String> {
        self.events.iter().map(|e| format!("{} {}: {}", e.r#type, e.reason, e.message)).collect()
    }

    /// The same, of one object only.
    pub(crate) fn said_of(&self, name: &str) -> Vec<String> {
        let of = |e: &&Event| e.regarding.as_ref().is_some_and(|r| r.name == name);
        let events = self.events.iter().filter(of);
        events.map(|e| format!("{} {}: {}", e.r#type, e.reason, e.message)).collect()
    }

    fn say(&mut self, message: to_node::Message) {
        let message = ToNode { message: Some(message) };
        self.sessions.retain(|session| session.try_send(Ok(message.clone())).is_ok());
    }

    fn greeting(&self) -> Vec<to_node::Message> {
        let Some(epoch) = self.leads else {
            return vec![to_node::Message::Role(Role { leader: false, epoch: 0, member_name: "m".into() })];
        };
        let pods_json = self.pods.values().map(|p| serde_json::to_vec(p).unwrap().into()).collect();
        let role = to_node::Message::Role(Role { leader: true, epoch, member_name: "m".into() });
        let mut greeting = vec![role, to_node::Message::NodeNetwork(self.network.clone().unwrap())];
        let objects = self.objects.iter();
        greeting.extend(objects.map(|((kind, name), object)| object_change(epoch, kind, name, object)));
        let objects = self.objects.keys().map(|(kind, name)| object_key(kind, name)).collect();
        greeting.push(to_node::Message::ObjectIndex(ObjectIndex { epoch, objects }));
        greeting.push(to_node::Message::PodSet(PodSet { epoch, pods_json }));
        greeting
    }
}

fn object_key(kind: &str, name: &str) -> ObjectKey {
    ObjectKey { kind: kind.to_owned(), namespace: "default".to_owned(), name: name.to_owned() }
}

fn object_change(epoch: u64, kind: &str, name: &str, object: &serde_json::Value) -> to_node::Message {
    let object_json = object.to_string().into();
    to_node::Message::ObjectChange(ObjectChange { epoch, key: Some(object_key(kind, name)), object_json })
}

/// Whether a pod's status says Running and Ready.
pub(crate) fn is_ready(status: &PodStatus) -> bool {
    let ready = |c: &k8s_openapi::api::core::v1::PodCondition| c.type_ == "Ready" && c.status == "True";
    status.phase.as_deref() == Some("Running") && status.conditions.iter().flatten().any(ready)
}

type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl NodeSessions for Control {
    type SessionStream = Frames<ToNode>;
    type StreamStream = Frames<StreamFrame>;

    async fn session(
        &self,
        request: Request<Streaming<FromNode>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        assert!(request.peer_certs().is_some(), "a session without a client certificate");
        let mut incoming = request.into_inner();
        let (sender, receiver) = mpsc::channel(1024);
        let control = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                let message = message.message.unwrap();
                let hello = matches!(message, from_node::Message::Hello(_));
                let ack = control.receive(message);
                let mut heard = control.heard();
                if hello {
                    for message in heard.greeting() {
                        drop(sender.try_send(Ok(ToNode { message: Some(message) })));
                    }
                    heard.sessions.push(sender.clone());
                } else if let Some(sequence) = ack {
                    let ack = ToNode { message: Some(to_node::Message::Ack(Ack { sequence })) };
                    drop(sender.try_send(Ok(ack)));
                }
                if !heard.sessions.iter().any(|s| s.same_channel(&sender)) {
                    break;
                }
            }
            control.heard().sessions.retain(|s| !s.same_channel(&sender));
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn stream(
        &self,
        request: Request<Streaming<StreamFrame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let mut incoming = request.into_inner();
        let (keep_open, answers) = mpsc::channel(1);
        let control = self.clone();
        tokio::spawn(async move {
            let first = incoming.message().await.unwrap().unwrap();
            let Some(stream_frame::Frame::StreamId(id)) = first.frame else { panic!("no stream id first") };
            let sender = control.heard().streams.remove(&id).unwrap();
            while let Ok(Some(frame)) = incoming.message().await {
                if sender.send(frame).is_err() {
                    break;
                }
            }
            drop(keep_open);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

#[tonic::async_trait]
impl Cluster for Control {
    async fn join_node(
        &self,
        request: Request<JoinNodeRequest>,
    ) -> Result<Response<JoinNodeResponse>, Status> {
        let request = request.into_inner();
        if request.token != self.authority.token() {
            return Err(Status::unauthenticated("the token is not this cluster's"));
        }
        let csr = CertificateSigningRequestParams::from_pem(&request.csr_pem).unwrap();
        let certificate = csr.signed_by(&self.authority.issuer).unwrap();
        Ok(Response::new(JoinNodeResponse {
            certificate_pem: certificate.pem(),
            ca_pem: self.authority.ca_pem.clone(),
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Err(Status::unimplemented("not part of the test"))
    }

    async fn explain_pod(
        &self,
        _: Request<ExplainPodRequest>,
    ) -> Result<Response<ExplainPodResponse>, Status> {
        Err(Status::unimplemented("not part of the test"))
    }

    async fn transfer_leader(
        &self,
        _: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        Err(Status::unimplemented("not part of the test"))
    }
}
