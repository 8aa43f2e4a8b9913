//! The Node object as the agent knows it: labels, capacity, conditions, addresses, system facts, images.
//!
//! Measured, not remembered, except the conditions' transition times. Written in the kubelet's words.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};

use api::local_volume;
use api::quantity::Quantity as Amount;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec,
    NodeStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::Config;
use crate::eviction::{Signal, kept_back};
use crate::images::ImageStore;
use crate::local_volumes::LocalVolumes;
use crate::machine::{cpus, memory, read, storage};
use crate::network::BridgeNetwork;
use crate::node_state::{NodeState, Pressure};
use crate::pods::containers::{ContainerRuntime, RuntimeImages};
use crate::pods::context::NodeResources;

/// The Kubernetes version whose node behaviour this agent follows.
const KUBELET_VERSION: &str = concat!("v1.33.0-barque-", env!("CARGO_PKG_VERSION"));
const RUNTIME_VERSION: &str = concat!("barque://", env!("CARGO_PKG_VERSION"));
/// The port that a Node's status names; the agent itself listens on none.
const KUBELET_PORT: i32 = 10250;
/// Images listed at most, as the kubelet does.
const IMAGES_MAX: usize = 50;
/// Why a node is not ready before the leader has told it its range.
const NO_NETWORK: &str = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
     message:the control plane has not assigned a pod address range yet";

/// Measures the machine and keeps what conditions need to remember.
pub(crate) struct NodeReporter {
    config: Config,
    images: Arc<ImageStore>,
    /// Those of another container runtime, in place of the node's own.
    their_images: Option<Arc<dyn RuntimeImages>>,
    network: Arc<BridgeNetwork>,
    state: Arc<NodeState>,
    local_volumes: Arc<LocalVolumes>,
    capacity: Capacity,
    info: NodeSystemInfo,
    /// Condition type → status and since when.
    transitions: Mutex<BTreeMap<&'static str, (bool, Timestamp)>>,
}

#[derive(Debug, Clone, Copy)]
struct Capacity {
    cpu_milli: i64,
    memory_bytes: u64,
    storage_bytes: u64,
}

/// Where the node's container runtime is asked, as kubeadm notes it.
const CRI_SOCKET_ANNOTATION: &str = "kubeadm.alpha.kubernetes.io/cri-socket";

/// One condition as it is now.
struct Verdict {
    type_: &'static str,
    holds: bool,
    reason: &'static str,
    message: &'static str,
}

impl NodeReporter {
    pub(crate) fn new(
        config: Config,
        images: Arc<ImageStore>,
        network: Arc<BridgeNetwork>,
        state: Arc<NodeState>,
        local_volumes: Arc<LocalVolumes>,
    ) -> Self {
        let storage = storage(&config.data_dir);
        let overridden = |key: &str| config.capacity.get(key).and_then(|text| Amount::parse(text).ok());
        let capacity = Capacity {
            cpu_milli: overridden("cpu").map_or_else(|| cpus() * 1000, |q| q.milli_value()),
            memory_bytes: overridden("memory")
                .map_or_else(|| memory("MemTotal"), |q| q.value().max(0) as u64),
            storage_bytes: overridden("ephemeral-storage")
                .map_or_else(|| storage.map_or(0, |s| s.total_bytes), |q| q.value().max(0) as u64),
        };
        let info = system_info(&config);
        Self {
            config,
            images,
            their_images: None,
            network,
            state,
            local_volumes,
            capacity,
            info,
            transitions: Mutex::default(),
        }
    }

    /// Tells of another container runtime, if it is not the agent's own.
    pub(crate) fn running(mut self, runtime: &dyn ContainerRuntime) -> Self {
        if let Some(version) = runtime.version() {
            self.info.container_runtime_version = version;
        }
        self.their_images = runtime.own_images();
        self
    }

    /// What pod workers need to know of the machine's size.
    pub(crate) fn resources(&self) -> NodeResources {
        let reserved = self.reserved();
        let kept_back = kept_back(&self.config, Signal::MemoryAvailable, self.capacity.memory_bytes);
        let allocatable = self.capacity.memory_bytes.saturating_sub(reserved.memory_bytes);
        NodeResources {
            memory_bytes: self.capacity.memory_bytes,
            // Pods that come too near to it are evicted before the kernel kills in them.
            pods_memory_limit_bytes: allocatable + kept_back,
            allocatable_cpu_milli: self.capacity.cpu_milli - reserved.cpu_milli,
            allocatable_memory_bytes: allocatable as i64,
        }
    }

    fn reserved(&self) -> Capacity {
        let given = |key: &str| self.config.reserved.get(key).and_then(|text| Amount::parse(text).ok());
        let bytes = |key: &str| given(key).map_or(0, |q| q.value().max(0) as u64);
        Capacity {
            cpu_milli: given("cpu").map_or(0, |q| q.milli_value()),
            memory_bytes: bytes("memory")
                + kept_back(&self.config, Signal::MemoryAvailable, self.capacity.memory_bytes),
            storage_bytes: bytes("ephemeral-storage")
                + kept_back(&self.config, Signal::NodeFsAvailable, self.capacity.storage_bytes),
        }
    }

    /// What the node is going through.
    pub(crate) fn state(&self) -> Arc<NodeState> {
        Arc::clone(&self.state)
    }

    /// The Node object to register with.
    pub(crate) fn node(&self) -> Node {
        let name = &self.config.node_name;
        let mut labels = self.config.labels.clone();
        for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
            labels.insert(format!("{prefix}/os"), "linux".to_owned());
            labels.insert(format!("{prefix}/arch"), self.info.architecture.clone());
        }
        labels.insert("kubernetes.io/hostname".to_owned(), name.clone());
        let annotations = [
            ("node.alpha.kubernetes.io/ttl", "0"),
            ("volumes.kubernetes.io/controller-managed-attach-detach", "true"),
        ];
        let socket = Some(&self.config.container_runtime_endpoint).filter(|endpoint| !endpoint.is_empty());
        let socket = socket.map(|endpoint| (CRI_SOCKET_ANNOTATION, endpoint.as_str()));
        let annotations =
            annotations.into_iter().chain(socket).map(|(name, value)| (name.to_owned(), value.to_owned()));
        let taints = self.config.taints.iter().map(|t| Taint {
            key: t.key.clone(),
            value: Some(t.value.clone()).filter(|v| !v.is_empty()),
            effect: t.effect.clone(),
            time_added: None,
        });
        Node {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels),
                annotations: Some(annotations.collect()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: (!self.config.taints.is_empty()).then(|| taints.collect()),
                ..NodeSpec::default()
            }),
            status: Some(self.status()),
        }
    }

    /// The status as it is now.
    pub(crate) fn status(&self) -> NodeStatus {
        let reserved = self.reserved();
        let allocatable = Capacity {
            cpu_milli: self.capacity.cpu_milli - reserved.cpu_milli,
            memory_bytes: self.capacity.memory_bytes.saturating_sub(reserved.memory_bytes),
            storage_bytes: self.capacity.storage_bytes.saturating_sub(reserved.storage_bytes),
        };
        let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
        let images = self.their_images.as_ref().map_or_else(|| self.images.list(), |images| images.listed());
        let images = images.into_iter().take(IMAGES_MAX);
        let in_use: Vec<String> =
            self.local_volumes.kept().iter().map(|handle| local_volume::in_use_name(handle)).collect();
        NodeStatus {
            addresses: Some(vec![
                address("InternalIP", self.config.internal_ip.to_string()),
                address("Hostname", self.config.node_name.clone()),
            ]),
            capacity: Some(self.resource_list(self.capacity, false)),
            allocatable: Some(self.resource_list(allocatable, true)),
            conditions: Some(self.conditions()),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: KUBELET_PORT }),
            }),
            node_info: Some(self.info.clone()),
            images: Some(
                images
                    .map(|i| ContainerImage { names: Some(i.names), size_bytes: Some(i.size_bytes as i64) })
                    .collect(),
            ),
            volumes_in_use: Some(in_use).filter(|in_use| !in_use.is_empty()),
            ..NodeStatus::default()
        }
    }

    /// The volumes on the node's own disk, which the status names.
    pub(crate) fn local_volumes(&self) -> &LocalVolumes {
        &self.local_volumes
    }

    /// Everything in a status but the moment of its making, to see whether it changed.
    pub(crate) fn essence(status: &NodeStatus) -> NodeStatus {
        let mut essence = status.clone();
        for condition in essence.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        essence
    }

    fn resource_list(&self, of: Capacity, allocatable: bool) -> BTreeMap<String, Quantity> {
        let cpu = if of.cpu_milli % 1000 == 0 {
            (of.cpu_milli / 1000).to_string()
        } else {
            format!("{}m", of.cpu_milli)
        };
        let kibibytes = |bytes: u64| format!("{}Ki", bytes / 1024);
        // Allocatable storage is printed in bytes, as the kubelet does.
        let storage = if allocatable { of.storage_bytes.to_string() } else { kibibytes(of.storage_bytes) };
        let mut list: BTreeMap<String, Quantity> = [
            ("cpu", cpu),
            ("memory", kibibytes(of.memory_bytes)),
            ("ephemeral-storage", storage),
            ("pods", self.config.max_pods.to_string()),
            ("hugepages-1Gi", "0".to_owned()),
            ("hugepages-2Mi", "0".to_owned()),
        ]
        .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
        .into();
        for (size, count) in huge_pages() {
            list.insert(format!("hugepages-{size}"), Quantity(count));
        }
        list
    }

    fn conditions(&self) -> Vec<NodeCondition> {
        let pressure = self.state.pressure();
        let mut verdicts: Vec<Verdict> = Pressure::ALL
            .into_iter()
            .map(|kind| {
                let holds = pressure.contains(&kind);
                let (reason, message) = kind.words(holds);
                Verdict { type_: kind.condition(), holds, reason, message }
            })
            .collect();
        let unready = match (self.state.is_shutting_down(), self.network.pod_cidr()) {
            (true, _) => Some("node is shutting down"),
            (false, None) => Some(NO_NETWORK),
            (false, Some(_)) => None,
        };
        verdicts.push(Verdict {
            type_: "Ready",
            holds: unready.is_none(),
            reason: if unready.is_none() { "KubeletReady" } else { "KubeletNotReady" },
            message: unready.unwrap_or("kubelet is posting ready status"),
        });
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_else(|_| Timestamp::now());
        let mut transitions = self.transitions.lock().expect("no holder of the conditions panics");
        let condition = |verdict: Verdict| {
            let known = transitions.entry(verdict.type_).or_insert((verdict.holds, now));
            if known.0 != verdict.holds {
                *known = (verdict.holds, now);
            }
            NodeCondition {
                type_: verdict.type_.to_owned(),
                status: if verdict.holds { "True" } else { "False" }.to_owned(),
                reason: Some(verdict.reason.to_owned()),
                message: Some(verdict.message.to_owned()),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: Some(Time(known.1)),
            }
        };
        verdicts.into_iter().map(condition).collect()
    }
}

/// Huge pages of the machine as `2Mi` → `0`.
fn huge_pages() -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let page = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kibibytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count: u64 = read(entry.path().join("nr_hugepages").to_str()?).parse().ok()?;
        let text = |kibibytes: u64| match kibibytes {
            0 => "0".to_owned(),
            k if k % (1 << 20) == 0 => format!("{}Gi", k >> 20),
            k if k % (1 << 10) == 0 => format!("{}Mi", k >> 10),
            k => format!("{k}Ki"),
        };
        Some((text(kibibytes), text(count * kibibytes)))
    };
    entries.flatten().filter_map(page).collect()
}

fn system_info(config: &Config) -> NodeSystemInfo {
    let os_release = read("/etc/os-release");
    let pretty = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let or_unknown = |text: String| if text.is_empty() { "unknown".to_owned() } else { text };
    let machine_id = read("/etc/machine-id");
    let system_uuid = read("/sys/class/dmi/id/product_uuid").to_lowercase();
    // Two nodes of one machine are two machines to the cluster.
    let own = |text: &str| if text.is_empty() { derived_id(&config.node_name) } else { text.to_owned() };
    NodeSystemInfo {
        architecture: match std::env::consts::ARCH {
            "x86_64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            other => other.to_owned(),
        },
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: RUNTIME_VERSION.to_owned(),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: own(&machine_id),
        operating_system: "linux".to_owned(),
        os_image: or_unknown(pretty.unwrap_or_default().trim_matches('"').to_owned()),
        swap: None,
        system_uuid: own(&system_uuid),
    }
}

/// An id for a machine that has none: the same for the same node name.
fn derived_id(name: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    hex::encode(&digest.as_ref()[..16])
}
