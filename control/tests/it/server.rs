//! One replica's API on a loopback port, as the composition root puts it together, but on a store in memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use control::auth::rbac::defaults;
use control::auth::service_account::ServiceAccounts;
use control::auth::{Access, Identity};
use control::cluster_work::{ClusterWork, Settings};
use control::controllers::Timings;
use control::flow_control::FlowControl;
use control::grpc::{OPEN_SERVICES, add_open_services};
use control::object_store::SharedStore;
use control::object_store::memory::MemoryStore;
use control::pki::{Authority, ControlToken, Credentials, MemberIdentity, server_config};
use control::pod_cidr::PodRange;
use control::port::{Port, Services};
use control::registry::{Registry, WriteOptions, bootstrap_namespaces};
use control::rest::{
    ClientFrame, Expose, LogRequest, Measurements, NodeBytes, NodeBytesFuture, NodeFrame, NodeReads,
    NodeStream, Parts, PodStreams, Rest, Security, StreamFailure, StreamFuture, StreamRequest,
};
use control::usage::Usage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

/// Stands for the nodes: says what was asked of it.
struct EchoReads;

impl NodeReads for EchoReads {
    fn log(&self, request: LogRequest) -> NodeBytesFuture<'_> {
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
            Ok(Box::pin(futures_util::stream::iter(lines)) as NodeBytes)
        })
    }

    fn measurements(&self, node: &str, form: Measurements) -> NodeBytesFuture<'_> {
        let text = Bytes::from(format!("{form:?} of {node}\n"));
        Box::pin(async move { Ok(Box::pin(futures_util::stream::iter([Ok(text)])) as NodeBytes) })
    }
}

/// A node whose programs say their command, give their input back, and end with its length.
struct EchoStreams;

impl PodStreams for EchoStreams {
    fn open(&self, request: StreamRequest) -> StreamFuture<'_> {
        let (to_client, incoming) = mpsc::channel(4);
        let (outgoing, mut from_client) = mpsc::channel(4);
        tokio::spawn(async move {
            let (command, target) = match request {
                StreamRequest::Exec { command, target, .. } => (command, target),
                StreamRequest::PortForward { port, .. } => {
                    return connect(port, &to_client, from_client).await;
                }
                StreamRequest::Attach { .. } => return,
            };
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

/// A connection to a port of this machine, as if it were a pod's.
async fn connect(
    port: u16,
    to_client: &mpsc::Sender<Result<NodeFrame, StreamFailure>>,
    mut from_client: mpsc::Receiver<ClientFrame>,
) {
    let (mut reader, mut writer) = match TcpStream::connect(("127.0.0.1", port)).await {
        Ok(stream) => stream.into_split(),
        Err(error) => {
            let failure = StreamFailure { code: 500, message: error.to_string() };
            return drop(to_client.send(Err(failure)).await);
        }
    };
    drop(to_client.send(Ok(NodeFrame::Started)).await);
    let up = async {
        while let Some(ClientFrame::Stdin(bytes)) = from_client.recv().await {
            drop(writer.write_all(&bytes).await);
        }
        drop(writer.shutdown().await);
        from_client.recv().await;
    };
    let down = async {
        let mut bytes = vec![0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut bytes).await {
            drop(to_client.send(Ok(NodeFrame::Stdout(Bytes::copy_from_slice(&bytes[..count])))).await);
        }
        drop(to_client.send(Ok(NodeFrame::End)).await);
    };
    tokio::select! {
        () = up => {}
        () = down => {}
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
        let authority = Authority::from_token(&ControlToken::generate(SystemTime::now()).unwrap()).unwrap();
        let bounds = (connections_max, drain_timeout);
        Self::assemble(MemoryStore::new(), Arc::new(authority), bounds, (false, Security::default())).await
    }

    /// A replica that leads, with such settings.
    pub(crate) async fn start_secured(security: Security) -> Self {
        let authority = Authority::from_token(&ControlToken::generate(SystemTime::now()).unwrap()).unwrap();
        let bounds = (512, Duration::from_secs(2));
        Self::assemble(MemoryStore::new(), Arc::new(authority), bounds, (true, security)).await
    }

    /// A replica that leads: its control loops run, too.
    pub(crate) async fn start_leading() -> Self {
        let authority = Authority::from_token(&ControlToken::generate(SystemTime::now()).unwrap()).unwrap();
        let bounds = (256, Duration::from_secs(2));
        Self::assemble(MemoryStore::new(), Arc::new(authority), bounds, (true, Security::default())).await
    }

    /// Another replica on the same store, which does not lead.
    pub(crate) async fn beside(&self) -> Self {
        let bounds = (256, Duration::from_secs(2));
        Self::assemble(self.store.clone(), self.authority.clone(), bounds, (false, Security::default())).await
    }

    async fn assemble(
        store: MemoryStore,
        authority: Arc<Authority>,
        (connections_max, drain_timeout): (usize, Duration),
        (leads, security): (bool, Security),
    ) -> Self {
        let now = SystemTime::now();
        let member = MemberIdentity { name: "m1".to_owned(), addresses: Vec::new() };
        let credentials = authority.issue_member(&member, now).unwrap();
        let tls = Arc::new(server_config(&credentials, &authority).unwrap());
        let (_, tls) = watch::channel(tls);
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let port = Port::bind(loopback, tls, connections_max, drain_timeout).await.unwrap();
        let address = port.local_address().unwrap();

        let stop = CancellationToken::new();
        let (shared, tasks) = (SharedStore::new(store.clone()), TaskTracker::new());
        let registry = Registry::new(shared.clone(), tasks.clone(), stop.clone());
        bootstrap_namespaces(&registry).await.unwrap();
        defaults::bootstrap(&registry, &WriteOptions::default()).await.unwrap();
        let nothing: Expose = Arc::new(|_| {});
        let (access, accounts, usage, expose) = match leads {
            false => {
                let accounts = ServiceAccounts::new(registry.clone(), authority.clone());
                (Access::start(&shared, &tasks, &stop), accounts, Usage::default(), nothing)
            }
            true => {
                let settings = Settings {
                    balancer_addresses: Vec::new(),
                    member_name: "m1".to_owned(),
                    range: PodRange::new("10.244.0.0/16".parse().unwrap(), 24),
                    authority: authority.clone(),
                    timings: Timings::default(),
                    masters: vec![address],
                    scheduler: Arc::default(),
                };
                let work = ClusterWork::start(&shared, &registry, settings, &tasks, &stop);
                let told = work.clone();
                let expose: Expose = Arc::new(move |out| told.expose(out));
                (work.access, work.accounts, work.usage, expose)
            }
        };
        access.wait_synced().await;
        let rest = Arc::new(Rest::new(Parts {
            registry,
            access,
            reads: Arc::new(EchoReads),
            pod_streams: Arc::new(EchoStreams),
            accounts,
            usage,
            flow_control: FlowControl::start(&shared, &tasks, &stop),
            advertised: address.to_string(),
            security,
            expose,
            stop: stop.clone(),
        }));
        let mut routes = Routes::builder();
        add_open_services(&mut routes, rest.clone(), &shared, &tasks, &stop);
        // A gRPC call that never ends, as replication and node sessions never do.
        let stall = axum::routing::post(std::future::pending::<()>);
        let routes = routes.routes().into_axum_router().route("/test.Stall/Stall", stall);
        let services = Services { rest, grpc: Routes::from(routes), gate };
        let served = tokio::spawn(port.serve(services, stop.clone()));
        Self { address, store, authority, stop, served }
    }

    pub(crate) fn admin(&self) -> Credentials {
        self.authority.issue_admin("admin", SystemTime::now()).unwrap()
    }
}

/// As the real one, but for the call that never ends.
fn gate(identity: &Identity, path: &str) -> Result<(), tonic::Status> {
    let is_open = OPEN_SERVICES.iter().any(|service| path.starts_with(&format!("/{service}/")));
    match identity.is_anonymous() && !is_open {
        true => Err(tonic::Status::unauthenticated("a client certificate is needed")),
        false => Ok(()),
    }
}
