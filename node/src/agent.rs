//! The composition root of the node agent: start order, stop order.
//!
//! Start: directories and lock, identity, images, runtime, network, workers of known pods (they adopt what
//! runs before any control plane has answered), sessions. Stop: sessions and workers put their pens down;
//! containers go on.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::images::{self, GcError, ImageStore, Puller};
use crate::network::BridgeNetwork;
use crate::node_status::NodeReporter;
use crate::objects::Objects;
use crate::pods::containers::ContainerRuntime;
use crate::pods::context::{Context, NodeResources};
use crate::pods::dispatcher::Dispatcher;
use crate::pods::roster::Roster;
use crate::session::outbox::{EventKind, EventRecord, Outbox};
use crate::session::{self, Parts, Shared};
use crate::streaming::Sources;
use crate::streaming::logs::LogSource;
use crate::tokens::Tokens;
use crate::user_ids::UserIdPool;
use crate::{Config, Error, allocatable, join};

/// How often the node looks at itself.
const STATUS_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How often an unchanged status is sent.
const STATUS_REPORT_INTERVAL: Duration = Duration::from_secs(300);
/// How long the lock of an agent that has just died is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(3);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// How often what the network could not become is tried again.
const NETWORK_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the node agent until `shutdown` is cancelled. Containers go on when it returns.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    config.validate()?;
    let runtime = runtime::RuntimeConfig {
        state_dir: config.run_dir.join("runtime"),
        shim_command: config.shim_command().into_iter().map(Into::into).collect(),
        cgroup_root: config.cgroup_root.trim_start_matches('/').into(),
    };
    make_dirs(&config)?;
    let _lock = lock(&config).await?;
    let runtime: Arc<dyn ContainerRuntime> = Arc::new(runtime::Runtime::new(runtime)?);
    let files = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        files = join::ensure_identity(&config) => files?,
    };
    let tls = session::client_tls(&files)?;
    let images = Arc::new(ImageStore::open(config.data_dir.join("images"))?);
    let network = Arc::new(BridgeNetwork::open(&config.data_dir.join("network"), &config.bridge_name)?);
    let user_ids = UserIdPool::open(&config.data_dir.join("users"), config.user_namespaces, config.max_pods)?;
    let reporter = Arc::new(NodeReporter::new(config.clone(), Arc::clone(&images), Arc::clone(&network)));
    let outbox = Arc::new(Outbox::default());
    let roster = Arc::new(Roster::default());
    let objects = Arc::new(Objects::default());
    let tokens = Arc::new(Tokens::default());
    import_images(&config, &images).await?;
    let streamed = Arc::clone(&runtime);
    let context = Arc::new(Context {
        config: config.clone(),
        runtime,
        images: Arc::clone(&images),
        puller: Puller::new(Arc::clone(&images), config.images.clone(), Arc::new(|_, _| {})),
        network: Arc::clone(&network) as Arc<dyn crate::network::PodNetwork>,
        user_ids: Arc::new(user_ids),
        outbox: Arc::clone(&outbox),
        roster: Arc::clone(&roster),
        objects: Arc::clone(&objects),
        tokens: Arc::clone(&tokens),
        resources: reporter.resources(),
    });
    let gc_config = config.clone();
    let enforced = enforce_allocatable(&config, reporter.resources());
    let dispatcher = Dispatcher::open(context, shutdown.clone())?;
    let registered = Arc::clone(&reporter);
    let shared = Shared::new(Parts {
        tls,
        outbox: Arc::clone(&outbox),
        network,
        objects,
        tokens,
        pods: dispatcher.sender(),
        streams: Sources { logs: LogSource { roster, log_dir: config.log_dir() }, runtime: streamed },
        node_json: Box::new(move || json(&registered.node())),
        config,
    });
    let tracker = TaskTracker::new();
    tell_start(&shared.config, &outbox, enforced);
    let shared = Arc::new(shared);
    session::spawn(Arc::clone(&shared), &tracker, &shutdown);
    tracker.spawn(settle_network(Arc::clone(&shared.network), shutdown.clone()));
    tracker.spawn(report(shared, reporter, shutdown.clone()));
    tracker.spawn(flush(Arc::clone(&images), shutdown.clone()));
    tracker.spawn(collect_garbage(images, gc_config, outbox, shutdown.clone()));
    tracker.close();
    dispatcher.run().await;
    tracker.wait().await;
    tracing::info!("node agent stopped; containers go on");
    Ok(())
}

fn make_dirs(config: &Config) -> Result<(), Error> {
    let own = [config.data_dir.clone(), config.run_dir.clone()];
    let within = ["pods", "network", "images"].map(|dir| config.data_dir.join(dir));
    let logs = ["pods", "containers"].map(|dir| config.log_dir().join(dir));
    for dir in own.iter().chain(&within).chain(&logs) {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    // Volumes may hold secrets; layers may hold set-user-id programs.
    for dir in &own {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).map_err(Error::io("protect", dir))?;
    }
    Ok(())
}

/// One agent per data directory. A child that an agent before this one was just starting holds its lock until
/// it executes its own program, even if that agent was killed: so a taken lock is waited for, briefly.
async fn lock(config: &Config) -> Result<Flock<fs::File>, Error> {
    let path = config.data_dir.join("lock");
    let end = tokio::time::Instant::now() + LOCK_WAIT;
    loop {
        let file = fs::File::create(&path).map_err(Error::io("create", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) if tokio::time::Instant::now() < end => {
                tokio::time::sleep(LOCK_RETRY_INTERVAL).await;
            }
            Err((_, errno)) => return Err(Error::Locked { path, source: errno.into() }),
        }
    }
}

/// Limits all pods together to what the node offers them. Not being able to is told, not fatal.
fn enforce_allocatable(config: &Config, resources: NodeResources) -> bool {
    let limit = resources.allocatable_memory_bytes.max(0) as u64;
    match allocatable::enforce(&config.cgroup_root, limit) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "pods together are not held to the node's allocatable memory");
            false
        }
    }
}

async fn import_images(config: &Config, images: &Arc<ImageStore>) -> Result<(), Error> {
    let (config, images) = (config.clone(), Arc::clone(images));
    let imported = tokio::task::spawn_blocking(move || {
        if config.builtin_image {
            let own = Path::new("/proc/self/exe");
            let binary = config.builtin_binary.as_deref().unwrap_or(own);
            images::import_builtin(&images, binary, images::BUILTIN_IMAGE)?;
        }
        for archive in &config.image_archives {
            let imported = images::import(&images, archive, None)?;
            tracing::info!(archive = %archive.display(), images = imported.len(), "imported");
        }
        Ok(())
    });
    imported.await.expect("importing images does not panic")
}

/// KIA-NODE-019: what a starting agent tells, in this order.
fn tell_start(config: &Config, outbox: &Outbox, enforced: bool) {
    let name = &config.node_name;
    let is_now = |state: &str| format!("Node {name} status is now: {state}");
    let told = [
        ("Starting", "Starting kubelet.".to_owned()),
        ("NodeAllocatableEnforced", "Updated Node Allocatable limit across pods".to_owned()),
        ("NodeHasSufficientMemory", is_now("NodeHasSufficientMemory")),
        ("NodeHasNoDiskPressure", is_now("NodeHasNoDiskPressure")),
        ("NodeHasSufficientPID", is_now("NodeHasSufficientPID")),
    ];
    for (reason, message) in told {
        if reason == "NodeAllocatableEnforced" && !enforced {
            continue;
        }
        node_event(config, outbox, reason, message);
    }
}

fn node_event(config: &Config, outbox: &Outbox, reason: &str, message: String) {
    outbox.event(node_record(config, reason, message));
}

fn node_record(config: &Config, reason: &str, message: String) -> EventRecord {
    let name = &config.node_name;
    EventRecord {
        api_version: "",
        kind: "Node",
        namespace: String::new(),
        name: name.clone(),
        uid: name.clone(),
        field_path: String::new(),
        event_kind: EventKind::Normal,
        reason: reason.to_owned(),
        message,
    }
}

/// Reports the node's status when it changes, and now and then.
async fn report(node: Arc<Shared>, reporter: Arc<NodeReporter>, shutdown: CancellationToken) {
    let outbox = &node.outbox;
    let mut last = None;
    let mut was_ready = false;
    let mut reported_at = tokio::time::Instant::now();
    loop {
        let changed = node.network.changed();
        let status = reporter.status();
        let essence = NodeReporter::essence(&status);
        if last.as_ref() != Some(&essence) || reported_at.elapsed() >= STATUS_REPORT_INTERVAL {
            outbox.node_status(json(&status));
            reported_at = tokio::time::Instant::now();
        }
        let ready = essence.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        if ready && !was_ready {
            let message = format!("Node {} status is now: NodeReady", node.config.node_name);
            node_event(&node.config, outbox, "NodeReady", message);
        }
        was_ready = ready;
        last = Some(essence);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = changed => {}
            () = tokio::time::sleep(STATUS_CHECK_INTERVAL) => {}
        }
    }
}

/// Tries on what the leader wants of the network and the host refused.
async fn settle_network(network: Arc<BridgeNetwork>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(NETWORK_RETRY_INTERVAL) => {}
        }
        if !network.is_settled() {
            let network = Arc::clone(&network);
            let settled = tokio::task::spawn_blocking(move || network.settle()).await;
            if let Err(error) = settled.expect("settling the network does not panic") {
                tracing::debug!(%error, "the node's network is still not as the control plane wants it");
            }
        }
    }
}

/// Makes imported images safe against a power cut, off everybody's path.
async fn flush(images: Arc<ImageStore>, shutdown: CancellationToken) {
    let flushed = tokio::task::spawn_blocking(move || images.flush());
    tokio::select! {
        () = shutdown.cancelled() => {}
        result = flushed => {
            if let Err(error) = result.expect("flushing does not panic") {
                tracing::warn!(%error, "images are not safe against a power cut yet");
            }
        }
    }
}

/// Keeps the disk from filling with images that nobody uses.
async fn collect_garbage(
    images: Arc<ImageStore>,
    config: Config,
    outbox: Arc<Outbox>,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(config.images.gc_interval) => {}
        }
        let (store, settings) = (Arc::clone(&images), config.images.clone());
        let pods_dir = config.data_dir.join("pods");
        let collected = tokio::task::spawn_blocking(move || {
            let in_use = images::images_in_use(&pods_dir)?;
            store.collect_garbage(&settings, &in_use)
        });
        match collected.await.expect("collecting images does not panic") {
            Ok(0) => {}
            Ok(bytes) => tracing::info!(bytes, "removed unused images"),
            Err(error) => {
                tracing::warn!(%error, "images cannot be removed as they should");
                let reason = match error {
                    GcError::NotEnough { .. } => "FreeDiskSpaceFailed",
                    GcError::Store(_) => "ImageGCFailed",
                };
                outbox.event(EventRecord {
                    event_kind: EventKind::Warning,
                    ..node_record(&config, reason, error.to_string())
                });
            }
        }
    }
}

fn json<T: serde::Serialize>(value: &T) -> bytes::Bytes {
    serde_json::to_vec(value).expect("API objects have string keys only").into()
}
