//! The composition root of the node agent: start order, stop order.
//!
//! Start: directories and lock, images, runtime, network, workers of known and static pods (they adopt what
//! runs before any control plane has answered), identity, sessions. Stop: sessions and workers put their pens down;
//! containers go on.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::allocatable::Groups;
use crate::cri_client::CriRuntime;
use crate::eviction::{self, Evictor};
use crate::images::{self, ImageStore, Puller};
use crate::ingress::{Entrance, Ports};
use crate::local_volumes::LocalVolumes;
use crate::measurements::{CountedRuntime, Measurements, Operations};
use crate::network::cluster::ClusterNetwork;
use crate::network::cni::CniNetwork;
use crate::network::held::HeldAddresses;
use crate::network::policies::Policies;
use crate::network::services::{self, NodeFacts};
use crate::network::{BridgeNetwork, PodNetwork, Underlay, health_checks};
use crate::node_state::{NodeState, Pressure};
use crate::node_status::NodeReporter;
use crate::pods::checkpoint;
use crate::pods::containers::ContainerRuntime;
use crate::pods::context::{Context, NodeResources};
use crate::pods::dispatcher::{Command, Dispatcher};
use crate::session::outbox::{Outbox, node_record};
use crate::session::{self, Parts, Shared};
use crate::streaming::Sources;
use crate::streaming::logs::LogSource;
use crate::user_ids::UserIdPool;
use crate::{
    Config, ConfigError, Error, dns, host_shutdown, image_upkeep, join, machine, resource_usage, static_pods,
};

/// How long the lock of an agent that has just died is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(3);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// How often what the network could not become is tried again.
const NETWORK_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the node agent until `shutdown` is cancelled. Containers go on when it returns.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    run_until(config, shutdown, CancellationToken::new()).await
}

/// The same; when `host_shutdown` is cancelled the host goes down, and pods end before the agent does.
pub async fn run_until(
    config: Config,
    shutdown: CancellationToken,
    host_shutdown: CancellationToken,
) -> Result<(), Error> {
    config.validate()?;
    check_swap(config.fail_swap_on, &machine::swap())?;
    let runtime = runtime::RuntimeConfig {
        state_dir: config.runtime_dir(),
        shim_command: config.shim_command().into_iter().map(Into::into).collect(),
        cgroup_root: config.cgroup_root.trim_start_matches('/').into(),
        every_hierarchy: false,
    };
    make_dirs(&config)?;
    let _lock = lock(&config).await?;
    let runtime: Box<dyn ContainerRuntime> = match config.container_runtime_endpoint.as_str() {
        "" => Box::new(runtime::Runtime::new(runtime)?),
        endpoint => tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            connected = CriRuntime::connect(endpoint, &config) => Box::new(connected?),
        },
    };
    let operations = Arc::<Operations>::default();
    let runtime: Arc<dyn ContainerRuntime> = Arc::new(CountedRuntime::new(runtime, Arc::clone(&operations)));
    let images = Arc::new(ImageStore::open(config.data_dir.join("images"))?);
    let underlay = Some(Underlay { internal_ip: config.internal_ip, config: config.pod_network.clone() });
    let network_dir = config.data_dir.join("network");
    let is_connected_elsewhere = runtime.makes_network() || config.pod_network.cni.is_some();
    let network = Arc::new(match is_connected_elsewhere {
        false => BridgeNetwork::open(&network_dir, &config.bridge_name, underlay)?,
        true => BridgeNetwork::open_routes(&network_dir, &config.bridge_name, underlay)?,
    });
    let pod_network: Arc<dyn PodNetwork> = match &config.pod_network.cni {
        None => network.clone(),
        Some(cni) => Arc::new(CniNetwork::open(network_dir.join("cni"), cni.clone(), network.clone())?),
    };
    let user_ids = UserIdPool::open(&config.data_dir.join("users"), config.user_namespaces, config.max_pods)?;
    let state = Arc::new(NodeState::default());
    let volumes_dir = config.data_dir.join("volumes");
    let local_volumes = LocalVolumes::open(volumes_dir.clone(), &config.node_name);
    let local_volumes = Arc::new(local_volumes.map_err(Error::io("open", &volumes_dir))?);
    let reporter = NodeReporter::new(
        config.clone(),
        Arc::clone(&images),
        Arc::clone(&network),
        Arc::clone(&state),
        Arc::clone(&local_volumes),
    )
    .running(&*runtime);
    if runtime.own_images().is_none() {
        import_images(&config, &images).await?;
    }
    let cluster = Arc::<ClusterNetwork>::default();
    let policies = Policies::open(&network_dir, &config.bridge_name, Arc::clone(&cluster));
    let (ends, pods_dir) = (config.data_dir.join("ends"), config.data_dir.join("pods"));
    let is_left = |uid: &str| checkpoint::is_left(&pods_dir.join(uid));
    let outbox = Outbox::open(&ends, is_left).map_err(Error::io("open", &ends))?;
    let context = Arc::new(Context {
        runtime,
        puller: Puller::new(Arc::clone(&images), config.images.clone(), Arc::new(|_, _| {})),
        images,
        network: pod_network,
        cluster,
        policies: Arc::new(policies),
        user_ids: Arc::new(user_ids),
        outbox: Arc::new(outbox),
        roster: Arc::default(),
        objects: Arc::default(),
        local_volumes,
        tokens: Arc::default(),
        resources: reporter.resources(),
        state,
        config,
    });
    // The host's shutdown ends the agent, too.
    let shutdown = shutdown.child_token();
    let (opening, stop) = (Arc::clone(&context), shutdown.clone());
    // It asks the runtime what exists, which may block.
    let opened = tokio::task::spawn_blocking(move || Dispatcher::open(opening, stop)).await;
    let dispatcher = opened.expect("opening the dispatcher does not panic")?;
    let held = HeldAddresses::open(&context.config.data_dir.join("network"), context.config.internal_ip);
    let held = Arc::new(held);
    let ports = Ports { http: context.config.ingress_http_port, https: context.config.ingress_https_port };
    let entrance = Entrance::new(ports, Arc::clone(&context.cluster), Arc::clone(&context.objects));
    let agent = Agent {
        context,
        network,
        held,
        entrance: Arc::new(entrance),
        operations,
        pods: dispatcher.sender(),
        tracker: TaskTracker::new(),
        shutdown,
    };
    agent.watch_over_node(host_shutdown).await?;
    // Pods run from here on: those of an agent before this one, and static ones. The rest needs a leader.
    let dispatching = tokio::spawn(dispatcher.run());
    let connected = agent.connect(Arc::new(reporter)).await;
    if connected.is_err() {
        agent.shutdown.cancel();
    }
    dispatching.await.expect("dispatching pods does not panic");
    agent.tracker.close();
    agent.tracker.wait().await;
    tracing::info!("node agent stopped; containers go on");
    connected
}

/// The parts of a running agent.
struct Agent {
    context: Arc<Context>,
    network: Arc<BridgeNetwork>,
    held: Arc<HeldAddresses>,
    entrance: Arc<Entrance>,
    operations: Arc<Operations>,
    pods: mpsc::Sender<Command>,
    tracker: TaskTracker,
    shutdown: CancellationToken,
}

impl Agent {
    /// Starts what looks after the node itself: it needs no control plane.
    async fn watch_over_node(&self, host_shutdown: CancellationToken) -> Result<(), Error> {
        let Context { config, images, outbox, roster, resources, state, .. } = &*self.context;
        let groups = Groups::detect(&config.cgroup_root)
            .inspect_err(|error| tracing::warn!(%error, "the memory of pods is not counted"))
            .ok();
        let enforced = groups.as_ref().is_some_and(|groups| enforce_allocatable(groups, *resources));
        let thresholds = eviction::thresholds(config)
            .map_err(|(key, problem)| Error::Config(ConfigError::Value { key, problem }))?;
        let parts = eviction::Parts {
            config: config.clone(),
            resources: *resources,
            groups,
            state: Arc::clone(state),
            images: Arc::clone(images),
            roster: Arc::clone(roster),
            outbox: Arc::clone(outbox),
            pods: self.pods.clone(),
        };
        let evictor = Evictor::open(parts, thresholds).await;
        tell_start(config, outbox, enforced, &state.pressure());
        let parts = host_shutdown::Parts {
            config: config.clone(),
            state: Arc::clone(state),
            roster: Arc::clone(roster),
            outbox: Arc::clone(outbox),
            pods: self.pods.clone(),
        };
        let shutdown = || self.shutdown.clone();
        self.tracker.spawn(evictor.run(shutdown()));
        self.tracker.spawn(host_shutdown::run(parts, host_shutdown, shutdown()));
        self.tracker.spawn(static_pods::run(config.clone(), self.pods.clone(), shutdown()));
        self.tracker.spawn(settle_network(Arc::clone(&self.network), shutdown()));
        let facts =
            NodeFacts { node_name: config.node_name.clone(), cluster_dns: config.cluster_dns.clone() };
        let (network, cluster) = (Arc::clone(&self.network), Arc::clone(&self.context.cluster));
        self.tracker.spawn(dns::run(config.clone(), Arc::clone(&self.context.cluster), shutdown()));
        self.tracker.spawn(health_checks::run(Arc::clone(&cluster), facts.clone(), shutdown()));
        self.tracker.spawn(services::run(network, cluster, facts, Arc::clone(outbox), shutdown()));
        self.tracker.spawn(Arc::clone(&self.context.policies).run(shutdown()));
        self.tracker.spawn(Arc::clone(&self.held).run(shutdown()));
        self.tracker.spawn(Arc::clone(&self.entrance).run(shutdown()));
        self.tracker.spawn(tell_pod_range(Arc::clone(&self.context), Arc::clone(&self.network), shutdown()));
        let (volumes, objects) = (Arc::clone(&self.context.local_volumes), Arc::clone(&self.context.objects));
        self.tracker.spawn(volumes.follow(objects, shutdown()));
        self.tracker.spawn(image_upkeep::flush(Arc::clone(images), shutdown()));
        let (images, outbox) = (Arc::clone(images), Arc::clone(outbox));
        self.tracker.spawn(image_upkeep::collect_garbage(images, config.clone(), outbox, shutdown()));
        Ok(())
    }

    /// Joins the cluster if need be, and speaks with its replicas from then on.
    async fn connect(&self, reporter: Arc<NodeReporter>) -> Result<(), Error> {
        let Context { config, runtime, outbox, roster, objects, tokens, .. } = &*self.context;
        let files = tokio::select! {
            () = self.shutdown.cancelled() => return Ok(()),
            files = join::ensure_identity(config) => files?,
        };
        let registered = Arc::clone(&reporter);
        let (measured, usage) = tokio::sync::watch::channel(None);
        let shared = Arc::new(Shared::new(Parts {
            tls: session::client_tls(&files)?,
            outbox: Arc::clone(outbox),
            network: Arc::clone(&self.network),
            held: Arc::clone(&self.held),
            entrance: Arc::clone(&self.entrance),
            cluster: Arc::clone(&self.context.cluster),
            objects: Arc::clone(objects),
            tokens: Arc::clone(tokens),
            pods: self.pods.clone(),
            streams: Sources {
                logs: LogSource { roster: Arc::clone(roster), log_dir: config.log_dir() },
                runtime: Arc::clone(runtime),
                measurements: Measurements {
                    node_name: config.node_name.clone(),
                    roster: Arc::clone(roster),
                    runtime: Arc::clone(runtime),
                    operations: Arc::clone(&self.operations),
                    usage: usage.clone(),
                },
            },
            usage,
            node_json: Box::new(move || json(&registered.node())),
            config: config.clone(),
        }));
        let (runtime, roster) = (Arc::clone(runtime), Arc::clone(roster));
        let metering =
            resource_usage::run(runtime, roster, measured, config.metrics_interval, self.shutdown.clone());
        self.tracker.spawn(metering);
        session::spawn(Arc::clone(&shared), &self.tracker, &self.shutdown);
        self.tracker.spawn(report(shared, reporter, self.shutdown.clone()));
        Ok(())
    }
}

/// KIA-ARCH-032.
fn check_swap(fail: bool, devices: &[String]) -> Result<(), Error> {
    match devices {
        [] => Ok(()),
        devices if fail => Err(Error::Swap { devices: devices.join(", ") }),
        devices => {
            tracing::warn!(
                devices = devices.join(", "),
                "this host swaps: limits of memory hold less than they promise"
            );
            Ok(())
        }
    }
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
fn enforce_allocatable(groups: &Groups, resources: NodeResources) -> bool {
    match groups.enforce(resources.pods_memory_limit_bytes) {
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
fn tell_start(config: &Config, outbox: &Outbox, enforced: bool, pressure: &BTreeSet<Pressure>) {
    node_event(config, outbox, "Starting", "Starting kubelet.".to_owned());
    if enforced {
        let message = "Updated Node Allocatable limit across pods".to_owned();
        node_event(config, outbox, "NodeAllocatableEnforced", message);
    }
    for kind in Pressure::ALL {
        tell_state(config, outbox, kind.event(pressure.contains(&kind)));
    }
}

fn tell_state(config: &Config, outbox: &Outbox, state: &str) {
    node_event(config, outbox, state, format!("Node {} status is now: {state}", config.node_name));
}

fn node_event(config: &Config, outbox: &Outbox, reason: &str, message: String) {
    outbox.event(node_record(&config.node_name, reason, message));
}

/// Reports the node's status when it changes, and now and then.
async fn report(node: Arc<Shared>, reporter: Arc<NodeReporter>, shutdown: CancellationToken) {
    let (outbox, state) = (&node.outbox, reporter.state());
    let mut last = None;
    let mut was_ready = false;
    let mut pressure = state.pressure();
    let mut reported_at = tokio::time::Instant::now();
    loop {
        let (network_changed, state_changed) = (node.network.changed(), state.changed());
        let volumes_changed = reporter.local_volumes().changed();
        let status = reporter.status();
        let essence = NodeReporter::essence(&status);
        if last.as_ref() != Some(&essence)
            || reported_at.elapsed() >= node.config.node_status_report_frequency
        {
            outbox.node_status(json(&status));
            reported_at = tokio::time::Instant::now();
        }
        let before = std::mem::replace(&mut pressure, state.pressure());
        for kind in pressure.symmetric_difference(&before) {
            tell_state(&node.config, outbox, kind.event(pressure.contains(kind)));
        }
        let ready = essence.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        if ready != was_ready {
            tell_state(&node.config, outbox, if ready { "NodeReady" } else { "NodeNotReady" });
        }
        was_ready = ready;
        last = Some(essence);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = network_changed => {}
            () = state_changed => {}
            () = volumes_changed => {}
            () = tokio::time::sleep(node.config.node_status_update_frequency) => {}
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

/// Tells the runtime which range the node's pods have, for as long as it does not take it.
async fn tell_pod_range(context: Arc<Context>, network: Arc<BridgeNetwork>, shutdown: CancellationToken) {
    let mut told = None;
    loop {
        let changed = network.changed();
        let wanted = network.pod_cidr();
        if let Some(range) = wanted.clone().filter(|_| told != wanted) {
            let context = Arc::clone(&context);
            let said = tokio::task::spawn_blocking(move || context.runtime.set_pod_range(&range)).await;
            match said.expect("telling the runtime does not panic") {
                Ok(()) => told.clone_from(&wanted),
                Err(error) => {
                    tracing::warn!(%error, "the container runtime does not take the pods' range; trying on")
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = changed => {}
            () = tokio::time::sleep(NETWORK_RETRY_INTERVAL), if told != wanted => {}
        }
    }
}

fn json<T: serde::Serialize>(value: &T) -> bytes::Bytes {
    serde_json::to_vec(value).expect("API objects have string keys only").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_swaps_is_refused_unless_it_is_allowed() {
        let devices = ["/dev/sda2".to_owned()];
        let refused = check_swap(true, &devices).unwrap_err().to_string();
        assert!(refused.contains("/dev/sda2") && refused.contains("failSwapOn"), "{refused}");
        assert!(check_swap(false, &devices).is_ok());
        assert!(check_swap(true, &[]).is_ok());
    }
}
