//! The configuration of one control-plane replica.
//!
//! Read once from a YAML file, every value typed and checked before any socket or file is opened. Unknown
//! keys are refused, so that a misspelt one does not silently mean its default.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer};

use crate::audit;
use crate::controllers::AddressRange;
use crate::registry::ServiceRanges;
use crate::rest::REQUESTS_MAX;

/// Largest configuration file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Most members that a group can begin with.
const MEMBERS_MAX: usize = 9;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no YAML, lacks a key, or has one that is not known.
    #[error("the configuration file {path} cannot be understood: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        reason: String,
    },
    /// A value makes no sense.
    #[error("{key}: {reason}")]
    Value {
        /// The key, as in the file.
        key: &'static str,
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// Settings of one replica.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// This member's name: one of `initial_members`.
    pub name: String,
    /// Where log, checkpoint and certificates lie.
    pub data_dir: PathBuf,
    /// The address that the one TLS port listens on.
    #[serde(default = "default_listen")]
    pub listen_address: SocketAddr,
    /// Where other members, nodes and clients reach this one; by default what `initial_members` says.
    #[serde(default)]
    pub advertise_address: Option<SocketAddr>,
    /// One address for the API of all members, on their own network: the leader holds it (`listenAddress` 0.0.0.0).
    #[serde(default)]
    pub virtual_address: Option<Ipv4Addr>,
    /// The members that the group begins with, name → address; the same at every member.
    pub initial_members: BTreeMap<String, SocketAddr>,
    /// The file that holds the control token.
    pub token_file: PathBuf,
    /// Pod addresses come from this range.
    #[serde(default = "default_pod_cidr", rename = "podCIDR")]
    pub pod_cidr: Cidr,
    /// Prefix length of the part of `pod_cidr` that each node gets.
    #[serde(default = "default_node_prefix", rename = "nodeCIDRMaskSize")]
    pub node_prefix: u8,
    /// Addresses of Services come from this range; the first one is the API's own.
    #[serde(default = "default_service_cidr", rename = "serviceCIDR")]
    pub service_cidr: Cidr,
    /// Ports of nodes that Services get, as `30000-32767`.
    #[serde(default = "default_node_ports", deserialize_with = "port_range")]
    pub service_node_port_range: RangeInclusive<u16>,
    /// Timings of the consensus.
    #[serde(default)]
    pub raft: RaftTimings,
    /// How long a node may be silent before it counts as unreachable.
    #[serde(default = "default_node_grace", deserialize_with = "duration")]
    pub node_grace_period: Duration,
    /// How long an `Event` is kept.
    #[serde(default = "default_event_ttl", rename = "eventTTL", deserialize_with = "duration")]
    pub event_ttl: Duration,
    /// How often HorizontalPodAutoscalers look at their pods.
    #[serde(default = "default_autoscaler_sync", deserialize_with = "duration")]
    pub horizontal_pod_autoscaler_sync_period: Duration,
    /// Bounds of the TLS port.
    #[serde(default)]
    pub limits: Limits,
    /// A file with a `KubeSchedulerConfiguration`; without, Kubernetes' defaults.
    #[serde(default)]
    pub scheduler_config_file: Option<PathBuf>,
    /// A file of static tokens, as lines of `token,user,uid,"group1,group2"`.
    #[serde(default)]
    pub token_auth_file: Option<PathBuf>,
    /// Whether requests without credentials are heard at all, beside probes and `/version`. They may then do what
    /// roles grant to `system:anonymous` and `system:unauthenticated`; off unless somebody says so.
    #[serde(default)]
    pub anonymous_auth: bool,
    /// Where requests are noted, and which.
    #[serde(default)]
    pub audit: Option<audit::Settings>,
    /// A file with an `EncryptionConfiguration`: what lies encrypted in the store. Every member must be able to read
    /// what the others write.
    #[serde(default)]
    pub encryption_config_file: Option<PathBuf>,
    /// What Services of type `LoadBalancer` get.
    #[serde(default)]
    pub load_balancer: LoadBalancer,
    /// Admission rules that are switched off; only `TaintNodesByCondition` can be.
    #[serde(default)]
    pub disable_admission_plugins: Vec<AdmissionPlugin>,
}

/// Addresses at which others reach Services of type `LoadBalancer`; the same at every member.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LoadBalancer {
    /// `192.0.2.10-192.0.2.20`, `192.0.2.32/28` or single ones, on the network that the nodes' own addresses are on.
    /// Without any, such Services stay pending.
    pub addresses: Vec<AddressRange>,
}

/// An admission rule that can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum AdmissionPlugin {
    /// Nodes that clients make are tainted until a controller has found them ready.
    TaintNodesByCondition,
}

/// Timings of the consensus.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RaftTimings {
    /// Time between a leader's heartbeats.
    #[serde(deserialize_with = "duration")]
    pub heartbeat_interval: Duration,
    /// A follower that hears nothing campaigns after a random time between this…
    #[serde(deserialize_with = "duration")]
    pub election_timeout_min: Duration,
    /// …and this.
    #[serde(deserialize_with = "duration")]
    pub election_timeout_max: Duration,
}

impl Default for RaftTimings {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(40),
            election_timeout_min: Duration::from_millis(150),
            election_timeout_max: Duration::from_millis(300),
        }
    }
}

/// Bounds of the TLS port.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Connections open at once; further ones wait to be accepted.
    pub connections_max: usize,
    /// Requests handled at once, watches, logs and interactive streams aside.
    pub requests_in_flight_max: usize,
    /// How long open requests may still take when the replica stops.
    #[serde(deserialize_with = "duration")]
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 8192,
            requests_in_flight_max: REQUESTS_MAX,
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// A range of IPv4 or IPv6 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// The first address.
    pub address: IpAddr,
    /// How many leading bits are common.
    pub prefix: u8,
}

impl Cidr {
    /// Whether any address from the first to the last one is in the range.
    fn overlaps(&self, first: Ipv4Addr, last: Ipv4Addr) -> bool {
        let IpAddr::V4(begin) = self.address else { return false };
        let end = begin.to_bits() | u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
        first.to_bits() <= end && begin <= last
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

impl std::str::FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').ok_or("expected address/prefix, as 10.244.0.0/16")?;
        let address: IpAddr = address.parse().map_err(|_| format!("{address:?} is no IP address"))?;
        let prefix: u8 = prefix.parse().map_err(|_| format!("{prefix:?} is no prefix length"))?;
        let (bits, value) = match address {
            IpAddr::V4(v4) => (32, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (128, v6.to_bits()),
        };
        if prefix > bits {
            return Err(format!("a prefix length of {prefix} is more than {bits}"));
        }
        let host = u32::from(bits - prefix);
        if host > 0 && value & (u128::MAX >> (128 - host)) != 0 {
            return Err(format!("{address} is not the first address of a /{prefix}"));
        }
        Ok(Self { address, prefix })
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Config {
    /// Reads and checks a configuration file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(failed)?.len();
        if size > FILE_BYTES_MAX {
            let reason = format!("{size} bytes are more than the {FILE_BYTES_MAX} that are read");
            return Err(ConfigError::Parse { path: path.to_owned(), reason });
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Self::parse(&text).map_err(|error| match error {
            ConfigError::Parse { reason, .. } => ConfigError::Parse { path: path.to_owned(), reason },
            other => other,
        })
    }

    /// Reads and checks the scheduler's own configuration.
    pub fn scheduler(&self) -> Result<scheduler::Configuration, ConfigError> {
        let Some(path) = &self.scheduler_config_file else { return Ok(scheduler::Configuration::default()) };
        let failed = |source| ConfigError::Read { path: path.clone(), source };
        let refused = |reason: String| ConfigError::Parse { path: path.clone(), reason };
        let size = std::fs::metadata(path).map_err(failed)?.len();
        if size > FILE_BYTES_MAX {
            return Err(refused(format!("{size} bytes are more than the {FILE_BYTES_MAX} that are read")));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let value = serde_saphyr::from_str(&text).map_err(|error| refused(error.to_string()))?;
        scheduler::Configuration::from_value(value).map_err(|error| refused(error.to_string()))
    }

    /// Reads and checks a configuration.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_saphyr::from_str(text)
            .map_err(|error| ConfigError::Parse { path: PathBuf::new(), reason: error.to_string() })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what types cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |key, reason: String| Err(ConfigError::Value { key, reason });
        let problems = api::name::dns1123_label(&self.name);
        if let Some(problem) = problems.into_iter().next() {
            return refuse("name", format!("{:?}: {problem}", self.name));
        }
        let members = self.initial_members.len();
        if !(1..=MEMBERS_MAX).contains(&members) {
            return refuse(
                "initialMembers",
                format!("has {members} members; 1 to {MEMBERS_MAX} are possible"),
            );
        }
        if !self.initial_members.contains_key(&self.name) {
            let names: Vec<&str> = self.initial_members.keys().map(String::as_str).collect();
            let reason =
                format!("does not list this member, {:?} (it lists {})", self.name, names.join(", "));
            return refuse("initialMembers", reason);
        }
        let mut addresses = BTreeMap::new();
        for (name, address) in &self.initial_members {
            if address.ip().is_unspecified() || address.port() == 0 {
                return refuse("initialMembers", format!("{name}: {address} is no address to connect to"));
            }
            if let Some(other) = addresses.insert(*address, name) {
                return refuse(
                    "initialMembers",
                    format!("{other} and {name} have the same address {address}"),
                );
            }
        }
        if self.advertise_address.is_some_and(|address| address.ip().is_unspecified()) {
            return refuse("advertiseAddress", "name an address that others can connect to".to_owned());
        }
        let bits = bits_of(self.pod_cidr.address);
        if self.node_prefix < self.pod_cidr.prefix || self.node_prefix > bits - 2 {
            let reason = format!("/{} does not fit into podCIDR {}", self.node_prefix, self.pod_cidr);
            return refuse("nodeCIDRMaskSize", reason);
        }
        if self.service_cidr.prefix > bits_of(self.service_cidr.address) - 3 {
            return refuse("serviceCIDR", format!("{} has no room for services", self.service_cidr));
        }
        for range in &self.load_balancer.addresses {
            for other in [self.pod_cidr, self.service_cidr] {
                if other.overlaps(range.first, range.last) {
                    let (first, last) = (range.first, range.last);
                    let reason = format!(
                        "{first}-{last} lies in {other}, which pods or Services get their own addresses from"
                    );
                    return refuse("loadBalancer.addresses", reason);
                }
            }
        }
        self.validate_timings()
    }

    fn validate_timings(&self) -> Result<(), ConfigError> {
        let refuse = |key, reason: &str| Err(ConfigError::Value { key, reason: reason.to_owned() });
        let RaftTimings { heartbeat_interval, election_timeout_min, election_timeout_max } = self.raft;
        if heartbeat_interval < Duration::from_millis(5) {
            return refuse("raft.heartbeatInterval", "must be at least 5ms");
        }
        if election_timeout_min < heartbeat_interval * 2 {
            return refuse("raft.electionTimeoutMin", "must be at least twice heartbeatInterval");
        }
        if election_timeout_max <= election_timeout_min {
            return refuse("raft.electionTimeoutMax", "must be more than electionTimeoutMin");
        }
        if let Some(address) = self.virtual_address {
            if !self.listen_address.ip().is_unspecified() {
                return refuse(
                    "virtualAddress",
                    "needs listenAddress 0.0.0.0: it comes and goes while the port is open",
                );
            }
            if self.initial_members.values().any(|member| member.ip() == address) {
                return refuse("virtualAddress", "is a member's own address; give one that nobody has");
            }
        }
        if self.node_grace_period < Duration::from_secs(1) {
            return refuse("nodeGracePeriod", "must be at least 1s");
        }
        if self.event_ttl < Duration::from_secs(10) {
            return refuse("eventTTL", "must be at least 10s");
        }
        if self.horizontal_pod_autoscaler_sync_period < Duration::from_millis(100) {
            return refuse("horizontalPodAutoscalerSyncPeriod", "must be at least 100ms");
        }
        if self.limits.connections_max < 16 {
            return refuse("limits.connectionsMax", "must be at least 16");
        }
        if self.limits.requests_in_flight_max < 16 {
            return refuse("limits.requestsInFlightMax", "must be at least 16");
        }
        Ok(())
    }

    /// Where others reach this member.
    pub fn advertised(&self) -> SocketAddr {
        self.advertise_address
            .or_else(|| self.initial_members.get(&self.name).copied())
            .unwrap_or(self.listen_address)
    }
}

fn bits_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn port_range<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RangeInclusive<u16>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = text.split_once('-').and_then(|(low, high)| Some(low.parse().ok()?..=high.parse().ok()?));
    parsed
        .filter(|range: &RangeInclusive<u16>| !range.is_empty() && *range.start() > 0)
        .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no range of ports such as 30000-32767")))
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let refuse = || serde::de::Error::custom(format!("{text:?} is no duration such as 40ms, 3s or 1h"));
    let parsed: SignedDuration = text.parse().map_err(|_| refuse())?;
    Duration::try_from(parsed).map_err(|_| refuse())
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 6443))
}

fn default_pod_cidr() -> Cidr {
    Cidr { address: IpAddr::from([10, 244, 0, 0]), prefix: 16 }
}

fn default_node_prefix() -> u8 {
    24
}

fn default_service_cidr() -> Cidr {
    ServiceRanges::default().addresses
}

fn default_node_ports() -> RangeInclusive<u16> {
    ServiceRanges::default().node_ports
}

fn default_node_grace() -> Duration {
    Duration::from_secs(3)
}

fn default_autoscaler_sync() -> Duration {
    Duration::from_secs(15)
}

fn default_event_ttl() -> Duration {
    Duration::from_secs(60 * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = "name: m1\ndataDir: /var/lib/barque\ntokenFile: /etc/barque/token\n\
        initialMembers:\n  m1: 10.0.0.1:6443\n";

    #[test]
    fn the_smallest_file_has_sensible_defaults() {
        let config = Config::parse(SMALLEST).unwrap();
        assert_eq!(config.listen_address.port(), 6443);
        assert_eq!(config.advertised().to_string(), "10.0.0.1:6443");
        assert_eq!(config.pod_cidr.to_string(), "10.244.0.0/16");
        assert_eq!(config.raft.election_timeout_max, Duration::from_millis(300));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_key() {
        for (line, expected) in [
            ("nonsense: 1", "nonsense"),
            ("raft: {heartbeatInterval: fast}", "no duration"),
            ("raft: {electionTimeoutMin: 50ms}", "raft.electionTimeoutMin"),
            ("podCIDR: 10.244.0.1/16", "not the first address"),
            ("serviceCIDR: 10.96.0.0/31", "serviceCIDR"),
            ("serviceNodePortRange: 40000-30000", "no range of ports"),
            ("nodeCIDRMaskSize: 8", "nodeCIDRMaskSize"),
            ("advertiseAddress: 0.0.0.0:6443", "advertiseAddress"),
            ("eventTTL: 1s", "eventTTL"),
            ("horizontalPodAutoscalerSyncPeriod: 1ms", "horizontalPodAutoscalerSyncPeriod"),
            ("limits: {connectionsMax: 1}", "limits.connectionsMax"),
            ("limits: {requestsInFlightMax: 1}", "limits.requestsInFlightMax"),
            ("disableAdmissionPlugins: [Luck]", "Luck"),
            ("audit: {logPath: /a}", "policyFile"),
            ("audit: {policyFile: /a, logPath: /b, logSize: 1}", "logSize"),
        ] {
            let error = Config::parse(&format!("{SMALLEST}{line}\n")).unwrap_err().to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
        let stranger = SMALLEST.replace("name: m1", "name: m9");
        let error = Config::parse(&stranger).unwrap_err().to_string();
        assert!(error.contains("does not list this member"), "{error}");
        let mut config = Config::parse(SMALLEST).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scheduler.yaml");
        let head = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";
        config.scheduler_config_file = Some(path.clone());
        for (rest, expected) in [
            ("podMaxBackoffSeconds: 20\n", None),
            ("podMaxBackofSeconds: 20\n", Some("podMaxBackofSeconds")),
            ("leaderElection: {leaderElect: true}\n", Some("leaderElection has no meaning here")),
            ("profiles: [{plugins: {score: {enabled: [{name: Luck}]}}}]\n", Some("no plugin \"Luck\"")),
        ] {
            std::fs::write(&path, format!("{head}{rest}")).unwrap();
            let read = config.scheduler().map(|_| ()).map_err(|error| error.to_string());
            match expected {
                None => assert_eq!(read, Ok(())),
                Some(words) => assert!(read.as_ref().is_err_and(|why| why.contains(words)), "{read:?}"),
            }
        }
        let lost = Config::read(Path::new("/nowhere/barque.yaml")).unwrap_err().to_string();
        assert!(lost.contains("/nowhere/barque.yaml"), "{lost}");
    }
}
