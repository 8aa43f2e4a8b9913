//! Another container runtime in place of the node's own: containerd, or whatever else serves the Kubernetes CRI on
//! a unix socket (`containerRuntimeEndpoint`).
//!
//! ```text
//! pods ─► ContainerRuntime ─► runtime.v1 over the socket ─► sandboxes, containers, images, network
//!                         ─► loopback HTTP (`process`)   ─► streams of programs
//! ```
//! The ids that pods have for sandboxes and containers stand in a label of what the runtime makes under ids of its
//! own, so that nothing need be kept here and an agent that died finds everything again. Sandboxes are the
//! runtime's with their network; the groups of pods (`groups`) and the size of logs (`keeper`) are the agent's.
//! Promises: only what bears this node's label is seen or touched; calls may be repeated; each has a deadline.
//! Does not: remove the runtime's unused images.

mod calls;
mod groups;
mod images;
mod keeper;
mod process;
mod translate;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use nix::sys::signal::Signal;
use proto::cri::image_service_client::ImageServiceClient;
use proto::cri::runtime_service_client::RuntimeServiceClient;
use proto::cri::{self, ContainerState};
use runtime::{AttachSpec, Attachment, ContainerSpec, ExecSpec, ExecStreams, SandboxSpec};
use streams::NodeStream;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use crate::exec::Limits;
use crate::images::ImageSummary;
use crate::pods::admission::HostPort;
use crate::pods::containers::{
    Beside, ContainerError, ContainerRuntime, ExecSyncFuture, ExitFuture, MadeSandbox, POD_UID_LABEL,
    Process, RuntimeImages, Seen, SeenContainer, SeenSandbox,
};
use crate::resource_usage::Counted;
use crate::{Config, Error};
use groups::Groups;

pub(crate) use translate::endpoint_path;

/// The label that holds the pods' id of a sandbox or container.
const ID_LABEL: &str = "io.barque.id";
/// The label that says which node's it is.
const NODE_LABEL: &str = "io.barque.node";
/// Whether the container's main process has a terminal.
const TTY_ANNOTATION: &str = "io.barque.tty";
/// The group that the agent chose for the pod.
const GROUP_ANNOTATION: &str = "io.barque.cgroup-parent";

/// How long the socket is waited for at the agent's start.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(30);
const CONNECT_RETRY: Duration = Duration::from_millis(200);
/// The longest that a call may take which does not wait for a container's end.
const CALL_TIME_MAX: Duration = Duration::from_secs(120);
/// How long a container that was asked to end is given by the runtime; the agent kills it long before.
const STOP_TIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often a running container is looked at, whether or not events come.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// The wait before events are asked for again.
const EVENTS_RETRY: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct CriRuntime {
    inner: Arc<Inner>,
    handle: Handle,
    /// `name://version`.
    version: String,
}

struct Inner {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    node: String,
    log_dir: PathBuf,
    groups: Groups,
    /// Whether sandboxes may have user namespaces of their own.
    user_namespaces: bool,
    /// The images that were there when it was last looked.
    listed: Mutex<Vec<ImageSummary>>,
    /// The runtime's ids by the pods'.
    ids: Mutex<HashMap<String, String>>,
    /// Counts events; whoever waits for an end looks again.
    happened: watch::Sender<u64>,
}

impl CriRuntime {
    /// Connects, and waits until the runtime answers. Must be called within the async runtime.
    pub(crate) async fn connect(endpoint: &str, config: &Config) -> Result<Self, Error> {
        let failed = |problem: String| Error::Endpoint { endpoint: endpoint.to_owned(), problem };
        let path = endpoint_path(endpoint).ok_or_else(|| failed("it is not unix:///path".to_owned()))?;
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let channel = Endpoint::from_static("http://cri").connect_with_connector_lazy(connector);
        let mut runtime = RuntimeServiceClient::new(channel.clone());
        let end = tokio::time::Instant::now() + CONNECT_TIME_MAX;
        let version = loop {
            match runtime.version(cri::VersionRequest { version: "v1".to_owned() }).await {
                Ok(version) => break version.into_inner(),
                Err(status) if tokio::time::Instant::now() > end => {
                    return Err(failed(format!(
                        "no answer within {} s: {status}",
                        CONNECT_TIME_MAX.as_secs()
                    )));
                }
                Err(_) => tokio::time::sleep(CONNECT_RETRY).await,
            }
        };
        let status = runtime.status(cri::StatusRequest { verbose: false }).await;
        let status = status.map_err(|status| failed(format!("it does not say how it is: {status}")))?;
        let handlers = status.into_inner().runtime_handlers;
        let version = format!("{}://{}", version.runtime_name, version.runtime_version);
        tracing::info!(%endpoint, runtime = %version, "pods run through another container runtime");
        let inner = Arc::new(Inner {
            images: ImageServiceClient::new(channel),
            runtime,
            node: config.node_name.clone(),
            log_dir: config.log_dir(),
            groups: Groups::detect(&config.cgroup_root)?,
            user_namespaces: handlers.iter().any(|handler| {
                handler.name.is_empty() && handler.features.is_some_and(|f| f.user_namespaces)
            }),
            listed: Mutex::default(),
            ids: Mutex::default(),
            happened: watch::channel(0).0,
        });
        tokio::spawn(listen(Arc::downgrade(&inner)));
        tokio::spawn(keeper::run(Arc::downgrade(&inner)));
        Ok(Self { inner, handle: Handle::current(), version })
    }

    /// Runs a call to its end; only on threads that may block.
    fn call<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, ContainerError> {
        let late = || Status::deadline_exceeded("the container runtime does not answer");
        let bounded =
            async { tokio::time::timeout(CALL_TIME_MAX, call).await.unwrap_or_else(|_| Err(late())) };
        self.handle.block_on(bounded).map_err(refused)
    }
}

/// Wakes those who wait for ends whenever the runtime tells of something, for as long as anybody may wait.
async fn listen(inner: std::sync::Weak<Inner>) {
    loop {
        let Some(mut runtime) = inner.upgrade().map(|inner| inner.runtime.clone()) else { return };
        match runtime.get_container_events(cri::GetEventsRequest {}).await {
            Ok(events) => {
                let mut events = events.into_inner();
                while let Ok(Some(_)) = events.message().await {
                    let Some(inner) = inner.upgrade() else { return };
                    inner.happened.send_modify(|count| *count += 1);
                }
            }
            Err(status) if status.code() == Code::Unimplemented => return,
            Err(_) => {}
        }
        tokio::time::sleep(EVENTS_RETRY).await;
    }
}

impl ContainerRuntime for CriRuntime {
    fn create_sandbox(&self, spec: &SandboxSpec, ports: &[HostPort]) -> Result<MadeSandbox, ContainerError> {
        self.call(async { Ok(self.inner.create_sandbox(spec, ports).await) })?
    }

    fn delete_sandbox(&self, id: &str) -> Result<(), ContainerError> {
        self.call(self.inner.delete_sandboxes(id))
    }

    fn start_container(&self, spec: &ContainerSpec, beside: &Beside) -> Result<Timestamp, ContainerError> {
        self.call(async { Ok(self.inner.start_container(spec, beside).await) })?
    }

    fn observe(&self, id: &str) -> Result<Option<Seen>, ContainerError> {
        self.call(self.inner.observe(id))
    }

    fn signal(&self, id: &str, signal: i32) -> Result<(), ContainerError> {
        let running = matches!(self.observe(id)?, Some(Seen::Running { .. }));
        if !running {
            return Err(ContainerError::Gone(format!("container {id} does not run")));
        }
        let container_id = self.call(self.inner.existing(id))?;
        let mut runtime = self.inner.runtime.clone();
        if signal == Signal::SIGKILL as i32 {
            let request = cri::StopContainerRequest { container_id, timeout: 0 };
            return self.call(async move { runtime.stop_container(request).await.map(drop) });
        }
        // The interface knows no signals: the container is asked as its image wants it, and the call goes on until
        // it has ended. The agent's own deadline kills it.
        let timeout = STOP_TIME_MAX.as_secs() as i64;
        let request = cri::StopContainerRequest { container_id, timeout };
        self.handle.spawn(async move {
            if let Err(status) = runtime.stop_container(request).await {
                tracing::debug!(%status, "a container was not asked to end");
            }
        });
        Ok(())
    }

    fn exit_watch(&self, id: &str) -> Result<ExitFuture, ContainerError> {
        let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
        Ok(Box::pin(async move { inner.ended(&id).await }))
    }

    fn exec(&self, id: &str, spec: &ExecSpec) -> Result<(Box<dyn Process>, ExecStreams), ContainerError> {
        self.call(async {
            let stream = self.inner.exec(id, spec).await;
            Ok(stream.and_then(|stream| process::run(stream, spec).map_err(cannot)))
        })?
    }

    fn exec_sync(&self, id: &str, args: &[String], limits: Limits) -> Option<ExecSyncFuture> {
        let (inner, id, args) = (Arc::clone(&self.inner), id.to_owned(), args.to_vec());
        Some(Box::pin(async move { inner.exec_sync(&id, args, limits).await }))
    }

    fn attach(&self, id: &str, spec: AttachSpec) -> Result<Attachment, ContainerError> {
        self.call(async {
            let attached = self.inner.attach(id, spec).await;
            Ok(attached.and_then(|(stream, tty)| process::attach(stream, spec, tty).map_err(cannot)))
        })?
    }

    fn connect(&self, pod_uid: &str, port: u16) -> Option<BoxFuture<'static, Result<NodeStream, String>>> {
        let (inner, uid) = (Arc::clone(&self.inner), pod_uid.to_owned());
        Some(Box::pin(async move { inner.connect_to(&uid, port).await }))
    }

    fn delete_container(&self, id: &str) -> Result<(), ContainerError> {
        let deleted = self.call(async {
            let Some(container_id) = self.inner.container(id).await? else { return Ok(()) };
            let stop = cri::StopContainerRequest { container_id: container_id.clone(), timeout: 0 };
            absent_is_fine(self.inner.runtime.clone().stop_container(stop).await.map(drop))?;
            let remove = cri::RemoveContainerRequest { container_id };
            absent_is_fine(self.inner.runtime.clone().remove_container(remove).await.map(drop))
        });
        if deleted.is_ok() {
            self.inner.forget(id);
        }
        deleted
    }

    fn counted(&self, id: &str) -> Option<Counted> {
        let stats = self.call(async {
            let container_id = self.inner.existing(id).await?;
            let request = cri::ContainerStatsRequest { container_id };
            self.inner.runtime.clone().container_stats(request).await
        });
        let stats = stats.ok()?.into_inner().stats?;
        let cpu_ns = stats.cpu?.usage_core_nano_seconds?.value;
        Some(Counted { cpu_ns, memory_bytes: stats.memory?.working_set_bytes?.value })
    }

    fn list(&self) -> Result<(Vec<SeenSandbox>, Vec<SeenContainer>), ContainerError> {
        let (sandboxes, containers) =
            self.call(async { Ok((self.inner.sandboxes(&[]).await?, self.inner.containers(&[]).await?)) })?;
        let label =
            |labels: &HashMap<String, String>, name: &str| labels.get(name).cloned().unwrap_or_default();
        let sandboxes = sandboxes.into_iter().map(|sandbox| SeenSandbox {
            id: label(&sandbox.labels, ID_LABEL),
            pod_uid: label(&sandbox.labels, POD_UID_LABEL),
            alive: sandbox.state() == cri::PodSandboxState::SandboxReady,
        });
        let containers = containers.into_iter().map(|container| SeenContainer {
            id: label(&container.labels, ID_LABEL),
            pod_uid: label(&container.labels, POD_UID_LABEL),
            seen: match container.state() {
                ContainerState::ContainerCreated => Seen::Half,
                ContainerState::ContainerRunning => {
                    Seen::Running { started_at: time(container.created_at).unwrap_or_else(Timestamp::now) }
                }
                _ => Seen::Lost { started_at: None },
            },
        });
        Ok((sandboxes.collect(), containers.collect()))
    }

    fn makes_network(&self) -> bool {
        true
    }

    fn set_pod_range(&self, pod_cidr: &str) -> Result<(), ContainerError> {
        let network_config = Some(cri::NetworkConfig { pod_cidr: pod_cidr.to_owned() });
        let request =
            cri::UpdateRuntimeConfigRequest { runtime_config: Some(cri::RuntimeConfig { network_config }) };
        let mut runtime = self.inner.runtime.clone();
        self.call(async move { runtime.update_runtime_config(request).await.map(drop) })
    }

    fn own_images(&self) -> Option<Arc<dyn RuntimeImages>> {
        Some(Arc::new(images::Images { inner: Arc::clone(&self.inner), handle: self.handle.clone() }))
    }

    fn version(&self) -> Option<String> {
        Some(self.version.clone())
    }
}

fn cannot(error: std::io::Error) -> ContainerError {
    ContainerError::Refused(format!("cannot carry a program's streams: {error}"))
}

fn refused(status: Status) -> ContainerError {
    match status.code() {
        Code::NotFound => ContainerError::Gone(status.message().to_owned()),
        Code::Unavailable => {
            ContainerError::Refused(format!("the container runtime is away: {}", status.message()))
        }
        _ => ContainerError::Refused(status.message().to_owned()),
    }
}

fn absent_is_fine(result: Result<(), Status>) -> Result<(), Status> {
    match result {
        Err(status) if status.code() == Code::NotFound => Ok(()),
        other => other,
    }
}

/// Nanoseconds since 1970; 0: never.
fn time(nanos: i64) -> Option<Timestamp> {
    (nanos > 0).then(|| Timestamp::from_nanosecond(nanos.into()).ok()).flatten()
}
