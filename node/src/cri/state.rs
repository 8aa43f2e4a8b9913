//! The CRI server's state: records, runtime, images, network, and who waits for containers' ends. Its start and
//! what a crash may have left. What the calls do is in `sandboxes` and `containers`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::cri::ContainerEventType;
use runtime::{Runtime, RuntimeConfig};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::CriConfig;
use super::records::{ContainerRecord, Ended, Records, SandboxRecord, remove_dir};
use super::translate;
use crate::Error;
use crate::images::{ImageStore, Puller};
use crate::network::{BridgeNetwork, PodNetwork as _, Topology};
use crate::pods::containers::{ContainerRuntime, Seen};

/// Events that a slow listener may leave; then it is told that it missed some.
const EVENTS_MAX: usize = 1024;
/// The wait before a container that cannot be watched is looked at again.
const WATCH_RETRY: Duration = Duration::from_millis(50);
/// How an end that nobody saw is told.
const UNKNOWN_EXIT_CODE: i32 = 255;

/// Something that happened to a container.
#[derive(Debug, Clone)]
pub(super) struct Happened {
    pub(super) kind: ContainerEventType,
    pub(super) container: String,
    pub(super) sandbox: String,
    /// Nanoseconds since 1970.
    pub(super) at: i64,
}

/// See the module.
pub(super) struct Core {
    pub(super) config: CriConfig,
    pub(super) runtime: Runtime,
    /// The same one, as pods use it.
    pub(super) containers: Arc<dyn ContainerRuntime>,
    pub(super) images: Arc<ImageStore>,
    pub(super) puller: Arc<Puller>,
    pub(super) network: BridgeNetwork,
    pub(super) sandbox_records: Records<SandboxRecord>,
    pub(super) container_records: Records<ContainerRecord>,
    pub(super) events: broadcast::Sender<Happened>,
    /// Who waits for ends of containers that nobody asks about, until the server's own.
    watchers: TaskTracker,
    over: CancellationToken,
}

/// What a container does, of its record and the runtime together.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Life {
    Created,
    Running { started_at: i64 },
    Ended(Ended),
}

impl Core {
    /// Opens the state and removes what a crash left half made.
    pub(super) fn open(config: CriConfig) -> Result<Self, Error> {
        for dir in [&config.data_dir, &config.run_dir] {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).map_err(Error::io("protect", dir))?;
        }
        let runtime = Runtime::new(RuntimeConfig {
            state_dir: config.run_dir.join("runtime"),
            shim_command: config.shim_command().into_iter().map(Into::into).collect(),
            cgroup_root: Default::default(),
            every_hierarchy: false,
        })?;
        let images = Arc::new(ImageStore::open(config.data_dir.join("images"))?);
        let network_dir = config.data_dir.join("network");
        fs::create_dir_all(&network_dir).map_err(Error::io("create", &network_dir))?;
        let network = BridgeNetwork::open(&network_dir, &config.bridge_name, None)?;
        if !config.pod_cidr.is_empty() {
            network.want(Topology { pod_cidr: config.pod_cidr.clone(), ..Topology::default() })?;
        }
        let records = |name: &str| config.data_dir.join(name);
        let read = |path| Error::io("read", path);
        let (sandbox_records, torn_sandboxes) =
            Records::open(records("sandboxes")).map_err(read(records("sandboxes")))?;
        let (container_records, torn_containers) =
            Records::open(records("containers")).map_err(read(records("containers")))?;
        for dir in torn_sandboxes.iter().chain(&torn_containers) {
            remove_dir(dir).map_err(Error::io("remove", dir))?;
        }
        let core = Self {
            containers: Arc::new(runtime.clone()),
            puller: Puller::new(Arc::clone(&images), config.images.clone(), Arc::new(|_, _| {})),
            events: broadcast::channel(EVENTS_MAX).0,
            config,
            runtime,
            images,
            network,
            sandbox_records,
            container_records,
            watchers: TaskTracker::new(),
            over: CancellationToken::new(),
        };
        if let Err(error) = core.remove_leftovers() {
            tracing::warn!(%error, "not everything that a crash left could be removed; the next start tries again");
        }
        core.publish_ports();
        Ok(core)
    }

    /// Makes the host's ports lead to the sandboxes that stand, and to no other.
    fn publish_ports(&self) {
        let standing = self.sandbox_records.all().into_iter().filter(|record| record.made && !record.stopped);
        let ports = standing.filter_map(|record| {
            Some((record.id.clone(), record.ip?, translate::host_ports(&record.config).ok()?))
        });
        if let Err(error) = self.network.publish_all(&ports.collect::<Vec<_>>()) {
            tracing::warn!(%error, "ports of the host do not lead to their sandboxes; the next start tries again");
        }
    }

    /// Removes what has no record, or a record of a sandbox that never came to be.
    fn remove_leftovers(&self) -> Result<(), Status> {
        for sandbox in self.sandbox_records.all().iter().filter(|sandbox| !sandbox.made) {
            self.remove_sandbox(&sandbox.id)?;
        }
        let seen = self.runtime.sandboxes().map_err(answer)?;
        for sandbox in seen.iter().filter(|s| matches!(self.sandbox_records.find(&s.id), Ok(None))) {
            tracing::info!(sandbox = %sandbox.id, "removing a sandbox that nobody asked for");
            self.runtime.delete_sandbox(&sandbox.id).map_err(answer)?;
        }
        for container in self.runtime.list().map_err(answer)? {
            if matches!(self.container_records.find(&container.id), Ok(None)) {
                self.runtime.delete_container(&container.id).map_err(answer)?;
            }
        }
        for owner in self.network.owners().map_err(internal)? {
            if self.sandbox_records.find(&owner)?.is_none_or(|sandbox| sandbox.stopped) {
                self.network.release(&owner).map_err(internal)?;
            }
        }
        Ok(())
    }

    /// What a container does now.
    pub(super) fn life(&self, record: &ContainerRecord) -> Result<Life, Status> {
        if let Some(ended) = &record.ended {
            return Ok(Life::Ended(ended.clone()));
        }
        let seen = self.containers.observe(&record.id).map_err(internal)?;
        let unknown = |started_at: Option<jiff::Timestamp>| {
            Life::Ended(Ended {
                started_at: started_at.map_or(0, nanos),
                finished_at: now(),
                exit_code: UNKNOWN_EXIT_CODE,
                reason: "Unknown".to_owned(),
                message: "nobody saw how the container ended".to_owned(),
            })
        };
        Ok(match seen {
            Some(Seen::Running { started_at }) => Life::Running { started_at: nanos(started_at) },
            Some(Seen::Exited { started_at, exit_code, oom_killed, finished_at }) => Life::Ended(Ended {
                started_at: started_at.map_or(0, nanos),
                finished_at: nanos(finished_at),
                exit_code,
                reason: match (oom_killed, exit_code) {
                    (true, _) => "OOMKilled",
                    (_, 0) => "Completed",
                    _ => "Error",
                }
                .to_owned(),
                message: String::new(),
            }),
            Some(Seen::Lost { started_at }) => unknown(started_at),
            Some(Seen::Half) | None if !record.launched => Life::Created,
            Some(Seen::Half) | None => unknown(None),
        })
    }

    /// Writes a container's end down, if it has ended; whether it has.
    pub(super) fn settle(&self, id: &str) -> Result<bool, Status> {
        let Some(record) = self.container_records.find(id)? else { return Ok(true) };
        if record.ended.is_some() {
            return Ok(true);
        }
        let Life::Ended(ended) = self.life(&record)? else { return Ok(false) };
        let mut told = None;
        self.container_records.change(id, |record| {
            if record.ended.is_none() {
                told = Some(ended.finished_at);
                record.ended = Some(ended);
            }
        })?;
        if let Some(at) = told {
            self.tell(ContainerEventType::ContainerStoppedEvent, &record, at);
        }
        Ok(true)
    }

    /// Tells whoever listens.
    pub(super) fn tell(&self, kind: ContainerEventType, record: &ContainerRecord, at: i64) {
        let (container, sandbox) = (record.id.clone(), record.sandbox.clone());
        // Nobody has to listen.
        let _unheard = self.events.send(Happened { kind, container, sandbox, at });
    }

    /// Runs what may block on a thread that may.
    pub(super) async fn blocking<T, F>(self: &Arc<Self>, work: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> Result<T, Status> + Send + 'static,
    {
        let core = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&core)).await.expect("calls do not panic")
    }

    /// Waits until a container has ended, which is then written down. False: not until the deadline, or, without one, not while
    /// this server serves.
    pub(super) async fn wait(self: &Arc<Self>, id: &str, deadline: Option<Instant>) -> Result<bool, Status> {
        loop {
            let asked = id.to_owned();
            if self.blocking(move |core| core.settle(&asked)).await? {
                return Ok(true);
            }
            let asked = id.to_owned();
            let watch = self.blocking(move |core| core.containers.exit_watch(&asked).map_err(internal)).await;
            let ended = async {
                match watch {
                    Ok(exit) => exit.await,
                    // It ended in between, or cannot be watched: looking again tells which.
                    Err(_) => tokio::time::sleep(WATCH_RETRY).await,
                }
            };
            let until = async {
                match deadline {
                    None => std::future::pending().await,
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                }
            };
            tokio::select! {
                () = ended => {}
                () = until => {
                    let asked = id.to_owned();
                    return self.blocking(move |core| core.settle(&asked)).await;
                }
                () = self.over.cancelled(), if deadline.is_none() => return Ok(false),
            }
        }
    }

    /// Sees to it that a container's end is noticed.
    pub(super) fn watch(self: &Arc<Self>, id: String) {
        let core = Arc::clone(self);
        self.watchers.spawn(async move {
            if let Err(error) = core.wait(&id, None).await {
                tracing::warn!(container = %id, %error, "a container's end will only be seen when it is asked for");
            }
        });
    }

    /// Ends what goes on by itself, and waits for that: whoever serves next is alone with the records.
    pub(super) async fn close(&self) {
        self.over.cancel();
        self.watchers.close();
        self.watchers.wait().await;
    }
}

/// Nanoseconds since 1970.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

pub(super) fn nanos(at: jiff::Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}

/// A runtime's error as an answer.
pub(super) fn answer(error: runtime::Error) -> Status {
    let text = error.to_string();
    match error {
        runtime::Error::NotFound { .. } => Status::not_found(text),
        runtime::Error::NotRunning { .. } => Status::failed_precondition(text),
        runtime::Error::Exists { .. } => Status::already_exists(text),
        runtime::Error::Invalid { .. } => Status::invalid_argument(text),
        _ => Status::internal(text),
    }
}

pub(super) fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}
