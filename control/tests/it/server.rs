//! One replica's API on a loopback port, as the composition root puts it together, but on a store in memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use control::auth::rbac::defaults;
use control::auth::service_account::ServiceAccounts;
use control::auth::{Access, Identity};
use control::object_store::SharedStore;
use control::object_store::memory::MemoryStore;
use control::pki::{Authority, ControlToken, Credentials, MemberIdentity, server_config};
use control::port::{Port, Services};
use control::registry::{Registry, WriteOptions, bootstrap_namespaces};
use control::rest::{
    ClientFrame, LogFuture, LogRequest, LogStream, NodeFrame, NodeStream, Parts, PodLogs, PodStreams, Rest,
    StreamFailure, StreamFuture, StreamRequest,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

/// Stands for the nodes: says what was asked of it.
struct EchoLogs;

impl PodLogs for EchoLogs {
    fn open(&self, request: LogRequest) -> LogFuture<'_> {
        Box::pin(async move {
            let text = format!(
                "{} {} {} follow={} previous={} tail={:?} since={}\n",
                request.node,
                request.pod,
                request.container,
                request.follow,
                request.previous,
                request.tail_lines,
                request.since.is_some()
            );
            let lines = [Ok(Bytes::from(text)), Ok(Bytes::from_static(b"second line\n"))];
            Ok(Box::pin(futures_util::stream::iter(lines)) as LogStream)
        })
    }
}

/// A node whose programs say their command, give their input back, and end with its length.
struct EchoStreams;

impl PodStreams for EchoStreams {
    fn open(&self, request: StreamRequest) -> StreamFuture<'_> {
        let (to_client, incoming) = mpsc::channel(4);
        let (outgoing, mut from_client) = mpsc::channel(4);
        tokio::spawn(async move {
            let StreamRequest::Exec { command, target, .. } = request else { return };
            if command == ["refuse"] {
                let message = format!("container not found ({:?})", target.container);
                return drop(to_client.send(Err(StreamFailure { code: 500, message })).await);
            }
            let words = Bytes::from(format!("{}: {}\n", target.container, command.join(" ")));
            let mut length = 0;
            for frame in [NodeFrame::Started, NodeFrame::Stderr(words)] {
                drop(to_client.send(Ok(frame)).await);
            }
            while let Some(ClientFrame::Stdin(bytes)) = from_client.recv().await {
                length += bytes.len() as i32;
                drop(to_client.send(Ok(NodeFrame::Stdout(bytes))).await);
            }
            drop(to_client.send(Ok(NodeFrame::Exit(length))).await);
        });
        Box::pin(async move { Ok(NodeStream { incoming, outgoing }) })
    }
}

pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) store: MemoryStore,
    pub(crate) authority: Arc<Authority>,
    pub(crate) stop: CancellationToken,
    pub(crate) served: tokio::task::JoinHandle<()>,
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(256, Duration::from_secs(2)).await
    }

    pub(crate) async fn start_with(connections_max: usize, drain_timeout: Duration) -> Self {
        let now = SystemTime::now();
        let authority = Arc::new(Authority::from_token(&ControlToken::generate(now).unwrap()).unwrap());
        let member = MemberIdentity { name: "m1".to_owned(), addresses: Vec::new() };
        let credentials = authority.issue_member(&member, now).unwrap();
        let tls = Arc::new(server_config(&credentials, &authority).unwrap());
        let (_, tls) = watch::channel(tls);
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let port = Port::bind(loopback, tls, connections_max, drain_timeout).await.unwrap();
        let address = port.local_address().unwrap();

        let stop = CancellationToken::new();
        let store = MemoryStore::new();
        let (shared, tasks) = (SharedStore::new(store.clone()), TaskTracker::new());
        let registry = Registry::new(shared.clone(), tasks.clone(), stop.clone());
        bootstrap_namespaces(&registry).await.unwrap();
        defaults::bootstrap(&registry, &WriteOptions::default()).await.unwrap();
        let access = Access::start(&shared, &tasks, &stop);
        access.wait_synced().await;
        let accounts = ServiceAccounts::new(registry.clone(), authority.clone());
        let rest = Rest::new(Parts {
            registry,
            access,
            logs: Arc::new(EchoLogs),
            pod_streams: Arc::new(EchoStreams),
            accounts,
            advertised: address.to_string(),
            stop: stop.clone(),
        });
        // A gRPC call that never ends, as replication and node sessions never do.
        let stall = axum::routing::post(std::future::pending::<()>);
        let grpc = Routes::from(axum::Router::new().route("/test.Stall/Stall", stall));
        let services = Services { rest: Arc::new(rest), grpc, gate: refuse_all };
        let served = tokio::spawn(port.serve(services, stop.clone()));
        Self { address, store, authority, stop, served }
    }

    pub(crate) fn admin(&self) -> Credentials {
        self.authority.issue_admin("admin", SystemTime::now()).unwrap()
    }
}

fn refuse_all(identity: &Identity, _path: &str) -> Result<(), tonic::Status> {
    match identity.is_anonymous() {
        true => Err(tonic::Status::unauthenticated("a client certificate is needed")),
        false => Ok(()),
    }
}
