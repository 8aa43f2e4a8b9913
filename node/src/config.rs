//! The node agent's configuration: one typed struct, parsed from YAML, validated before anything starts.
//!
//! Keys are camelCase, unknown keys are refused, every error names the key and what to write instead.
//! Nothing else in the package reads files or variables to find out how it should behave.

mod defaults;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::images::ImagesConfig;
use crate::network::PodNetworkConfig;
use crate::user_ids::UserNamespacesConfig;

/// How the node agent is to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The name of the Node object: a DNS-1123 subdomain, unique in the cluster.
    pub node_name: String,
    /// What must outlive a restart of the agent: images, checkpoints, logs, volumes, addresses.
    #[serde(default = "defaults::data_dir")]
    pub data_dir: PathBuf,
    /// What lives as long as the machine is up: the runtime's state, lock file.
    #[serde(default = "defaults::run_dir")]
    pub run_dir: PathBuf,
    /// Every control-plane replica, as `address:port`; addresses are literals, no names.
    pub control_addresses: Vec<SocketAddr>,
    /// The certificates of the node. Written by the agent itself when it joins with a token.
    #[serde(default)]
    pub tls: Option<TlsFiles>,
    /// A node token; used once, when the certificate files are not there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_token: Option<String>,
    /// The address under which other nodes reach this one (InternalIP).
    pub internal_ip: IpAddr,
    /// Labels of the Node object besides those that every node gets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Taints that the node registers with.
    #[serde(default)]
    pub taints: Vec<Taint>,
    /// The cgroup below which the agent makes its hierarchy, as a path from the controllers' roots.
    #[serde(default = "defaults::cgroup_root")]
    pub cgroup_root: String,
    /// The cluster's name; it goes into interface and log names only.
    #[serde(default = "defaults::cluster_name")]
    pub cluster_name: String,
    /// How to start a container shim. Empty: this binary with the argument `shim`.
    #[serde(default)]
    pub shim_command: Vec<String>,
    /// Another container runtime to run pods through, as `unix:///path` of its CRI socket. Empty: the agent's own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container_runtime_endpoint: String,
    /// Whether the agent refuses to start on a host with swap, where limits of memory do not hold what they promise.
    #[serde(default = "defaults::fail_swap_on")]
    pub fail_swap_on: bool,
    /// The bridge that pods of this node are attached to.
    #[serde(default = "defaults::bridge_name")]
    pub bridge_name: String,
    /// How pods reach those of other nodes.
    #[serde(default)]
    pub pod_network: PodNetworkConfig,
    /// How often the agent says on each session that it lives.
    #[serde(default = "defaults::heartbeat_interval", with = "duration_text")]
    pub heartbeat_interval: Duration,
    /// How often the agent measures what the node and its pods use, and tells the replicas.
    #[serde(default = "defaults::metrics_interval", with = "duration_text")]
    pub metrics_interval: Duration,
    /// Pods that the node accepts at most.
    #[serde(default = "defaults::max_pods")]
    pub max_pods: u32,
    /// What is kept back from pods: `cpu`, `memory`, `ephemeral-storage` as quantities.
    #[serde(default)]
    pub reserved: BTreeMap<String, String>,
    /// Overrides of the measured capacity: `cpu`, `memory`, `ephemeral-storage` as quantities.
    #[serde(default)]
    pub capacity: BTreeMap<String, String>,
    /// Whether `barque/hello:1.0` is made out of this binary and imported at start.
    #[serde(default)]
    pub builtin_image: bool,
    /// The binary that the built-in image is made of. Empty: this binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builtin_binary: Option<PathBuf>,
    /// Image archives (or layout directories) imported at start when their images are not there yet.
    #[serde(default)]
    pub image_archives: Vec<PathBuf>,
    /// Where container logs are written. Empty: `<dataDir>/logs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_dir: Option<PathBuf>,
    /// The name servers of pods with dnsPolicy ClusterFirst: addresses at which the agent itself answers. Empty: those of
    /// the host.
    #[serde(default)]
    pub cluster_dns: Vec<IpAddr>,
    /// Whom `clusterDns` asks for other names. Empty: the name servers of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_upstreams: Vec<IpAddr>,
    /// Whom it asks for the names of some domains, as `address:port`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dns_stub_domains: BTreeMap<String, Vec<SocketAddr>>,
    /// The domain that cluster DNS serves.
    #[serde(default = "defaults::cluster_domain")]
    pub cluster_domain: String,
    /// Where requests for Ingresses are taken, on nodes with the label `node-restriction.kubernetes.io/ingress=true`.
    #[serde(default = "defaults::ingress_http_port")]
    pub ingress_http_port: u16,
    /// The same for those with TLS.
    #[serde(default = "defaults::ingress_https_port")]
    pub ingress_https_port: u16,
    /// Whether containers that name no seccomp profile run under the runtime's own (`RuntimeDefault`) instead of
    /// `Unconfined`.
    #[serde(default = "defaults::seccomp_default")]
    pub seccomp_default: bool,
    /// Where seccomp profiles of type `Localhost` are looked for.
    #[serde(default = "defaults::seccomp_dir")]
    pub seccomp_dir: PathBuf,
    /// The user ids of pods with `hostUsers: false`.
    #[serde(default)]
    pub user_namespaces: UserNamespacesConfig,
    /// The waits before a crashed container is started again.
    #[serde(default)]
    pub restart_backoff: BackoffConfig,
    /// The waits before a missing image is asked for again.
    #[serde(default)]
    pub image_backoff: BackoffConfig,
    /// Pulling images and removing those that nobody uses.
    #[serde(default)]
    pub images: ImagesConfig,
    /// How often the node looks at itself.
    #[serde(default = "defaults::node_status_update_frequency", with = "duration_text")]
    pub node_status_update_frequency: Duration,
    /// How often it tells a status in which nothing has changed.
    #[serde(default = "defaults::node_status_report_frequency", with = "duration_text")]
    pub node_status_report_frequency: Duration,
    /// Below which amounts (or percentages) pods are evicted at once, by signal: `memory.available`,
    /// `nodefs.available`, `nodefs.inodesFree`, `imagefs.available`, `imagefs.inodesFree`, `pid.available`.
    #[serde(default = "defaults::eviction_hard")]
    pub eviction_hard: BTreeMap<String, String>,
    /// The same after a grace period, with which pods are ended gracefully.
    #[serde(default)]
    pub eviction_soft: BTreeMap<String, String>,
    /// How long each signal of `evictionSoft` must have been too low.
    #[serde(default)]
    pub eviction_soft_grace_period: BTreeMap<String, String>,
    /// How much more than the threshold eviction goes on for.
    #[serde(default)]
    pub eviction_minimum_reclaim: BTreeMap<String, String>,
    /// How long a condition of pressure stays after it was last true.
    #[serde(default = "defaults::eviction_pressure_transition_period", with = "duration_text")]
    pub eviction_pressure_transition_period: Duration,
    /// The longest grace, in seconds, that a pod gets when a soft threshold ends it.
    #[serde(default)]
    pub eviction_max_pod_grace_period: u32,
    /// How often signals are looked at.
    #[serde(default = "defaults::eviction_monitoring_interval", with = "duration_text")]
    pub eviction_monitoring_interval: Duration,
    /// A directory of manifests of static pods, or one such file. Empty: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub static_pod_path: Option<PathBuf>,
    /// How often it is read even if nothing seems to have changed.
    #[serde(default = "defaults::file_check_frequency", with = "duration_text")]
    pub file_check_frequency: Duration,
    /// How long pods get in all when the host goes down. Zero: they are not ended by the agent.
    #[serde(default, with = "duration_text")]
    pub shutdown_grace_period: Duration,
    /// The part of it that is kept for critical pods, which end last.
    #[serde(default, with = "duration_text")]
    pub shutdown_grace_period_critical_pods: Duration,
    /// In place of both: what pods from a priority upwards get.
    #[serde(default)]
    pub shutdown_grace_period_by_pod_priority: Vec<ShutdownGrace>,
}

/// What pods from a priority upwards get when the host goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShutdownGrace {
    /// The lowest priority of the group.
    pub priority: i32,
    /// How long the group may take.
    pub shutdown_grace_period_seconds: u32,
}

/// Where the node's certificate lies. All three are PEM files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsFiles {
    /// The cluster's CA certificate.
    pub ca: PathBuf,
    /// The node's client certificate.
    pub certificate: PathBuf,
    /// Its private key; mode 0600.
    pub key: PathBuf,
}

/// A taint as the Node object carries it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Taint {
    /// The taint's key.
    pub key: String,
    /// Its value, perhaps empty.
    #[serde(default)]
    pub value: String,
    /// NoSchedule, PreferNoSchedule or NoExecute.
    pub effect: String,
}

/// An exponential wait: `initial`, doubling up to `max`, forgotten after `reset_after` without a failure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BackoffConfig {
    /// The first wait.
    #[serde(with = "duration_text")]
    pub initial: Duration,
    /// The longest wait.
    #[serde(with = "duration_text")]
    pub max: Duration,
    /// How long it must have gone well for the next failure to count as the first.
    #[serde(with = "duration_text")]
    pub reset_after: Duration,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(10),
            max: Duration::from_secs(300),
            reset_after: Duration::from_secs(600),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the node configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not YAML of the expected shape.
    #[error("the node configuration is not valid: {0}")]
    Parse(String),
    /// A key has a value that cannot be used.
    #[error("{key} in the node configuration: {problem}")]
    Value {
        /// The key, camelCase.
        key: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl Config {
    /// Reads and validates the configuration file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Parses and validates YAML (or JSON) text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_saphyr::from_str(text).map_err(|e| ConfigError::Parse(e.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what the types cannot express.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |key, problem: String| Err(ConfigError::Value { key, problem });
        if !is_dns_subdomain(&self.node_name) {
            return refuse(
                "nodeName",
                format!(
                    "{:?} is not a name: use lower case letters, digits, '-' and '.', at most 253",
                    self.node_name
                ),
            );
        }
        if self.control_addresses.is_empty() {
            return refuse(
                "controlAddresses",
                "is empty: name every control-plane replica as address:port".into(),
            );
        }
        if self.tls.is_none() && self.join_token.is_none() {
            return refuse(
                "tls",
                "neither certificate files nor a joinToken are given: one of them is needed".into(),
            );
        }
        if self.bridge_name.is_empty() || self.bridge_name.len() > 15 {
            return refuse(
                "bridgeName",
                format!("{:?} cannot be an interface name: 1 to 15 characters", self.bridge_name),
            );
        }
        if self.heartbeat_interval < Duration::from_millis(10) {
            return refuse("heartbeatInterval", "must be at least 10ms".into());
        }
        if self.metrics_interval < Duration::from_millis(100) {
            return refuse("metricsInterval", "must be at least 100ms".into());
        }
        if self.max_pods == 0 {
            return refuse("maxPods", "must be at least 1".into());
        }
        for taint in &self.taints {
            if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&taint.effect.as_str()) {
                return refuse(
                    "taints",
                    format!("effect {:?}: use NoSchedule, PreferNoSchedule or NoExecute", taint.effect),
                );
            }
        }
        if let Some((key, problem)) = self.pod_network.problem() {
            return refuse(key, problem);
        }
        if let Some((key, problem)) = self.user_namespaces.problem(self.max_pods) {
            return refuse(key, problem);
        }
        let endpoint = &self.container_runtime_endpoint;
        if !endpoint.is_empty() && crate::cri_client::endpoint_path(endpoint).is_none() {
            let problem =
                format!("{endpoint:?} is not a socket: write unix:///run/containerd/containerd.sock");
            return refuse("containerRuntimeEndpoint", problem);
        }
        if let Some((key, problem)) = self.images.problem() {
            return refuse(key, problem);
        }
        self.validate_node_edges()?;
        for (key, dir) in [("dataDir", &self.data_dir), ("runDir", &self.run_dir)] {
            if !dir.is_absolute() {
                return refuse(key, format!("{} must be an absolute path", dir.display()));
            }
        }
        Ok(())
    }

    /// Pressure, static pods, the host's shutdown.
    fn validate_node_edges(&self) -> Result<(), ConfigError> {
        let refuse = |key, problem: String| Err(ConfigError::Value { key, problem });
        if let Err((key, problem)) = crate::eviction::thresholds(self) {
            return refuse(key, problem);
        }
        for (key, interval) in [
            ("evictionMonitoringInterval", self.eviction_monitoring_interval),
            ("fileCheckFrequency", self.file_check_frequency),
            ("nodeStatusUpdateFrequency", self.node_status_update_frequency),
        ] {
            if interval < Duration::from_millis(10) {
                return refuse(key, "must be at least 10ms".into());
            }
        }
        if self.static_pod_path.as_ref().is_some_and(|path| !path.is_absolute()) {
            return refuse("staticPodPath", "must be an absolute path".into());
        }
        if self.shutdown_grace_period_critical_pods > self.shutdown_grace_period {
            let problem = "is a part of shutdownGracePeriod: it cannot be longer".to_owned();
            return refuse("shutdownGracePeriodCriticalPods", problem);
        }
        if !self.shutdown_grace_period.is_zero() && !self.shutdown_grace_period_by_pod_priority.is_empty() {
            let problem = "cannot be set beside shutdownGracePeriod: say one of them".to_owned();
            return refuse("shutdownGracePeriodByPodPriority", problem);
        }
        Ok(())
    }

    /// The certificate files, given or below the data directory.
    pub fn tls_files(&self) -> TlsFiles {
        self.tls.clone().unwrap_or_else(|| {
            let dir = self.data_dir.join("pki");
            TlsFiles { ca: dir.join("ca.crt"), certificate: dir.join("node.crt"), key: dir.join("node.key") }
        })
    }

    /// Where the runtime keeps what lives as long as the machine is up.
    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.run_dir.join("runtime")
    }

    /// Where container logs go.
    pub fn log_dir(&self) -> PathBuf {
        self.log_dir.clone().unwrap_or_else(|| self.data_dir.join("logs"))
    }

    /// The command that starts a shim.
    pub fn shim_command(&self) -> Vec<String> {
        if self.shim_command.is_empty() {
            vec!["/proc/self/exe".to_owned(), "shim".to_owned()]
        } else {
            self.shim_command.clone()
        }
    }
}

fn is_dns_subdomain(name: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= 253
        && name.split('.').all(|label| {
            edge(label.bytes().next())
                && edge(label.bytes().last())
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

/// Durations as people write them: `500ms`, `10s`, `5m`, `1h`.
pub(crate) mod duration_text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}ms", value.as_millis()))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is not a duration: write 500ms, 10s or 5m")))
    }

    pub(crate) fn parse(text: &str) -> Option<Duration> {
        let split = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(split);
        let number: u64 = number.parse().ok()?;
        let milliseconds = match unit {
            "ms" => number,
            "s" => number.checked_mul(1_000)?,
            "m" => number.checked_mul(60_000)?,
            "h" => number.checked_mul(3_600_000)?,
            _ => return None,
        };
        Some(Duration::from_millis(milliseconds))
    }
}

#[cfg(test)]
mod tests;
