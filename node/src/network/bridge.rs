//! The bridge network of a node, made with netlink.
//!
//! ```text
//! pod netns: eth0 10.244.1.7/24 ──veth── vb<hash> ─┐
//! pod netns: eth0 10.244.1.8/24 ──veth── vb<hash> ─┴─ cbr0 10.244.1.1/24 ── host routes:
//!                                                        10.244.2.0/24: see `peers`
//! ```
//! The topology (own range, peers) comes from the leader and is kept in a file, so that a restarted agent
//! can go on before any leader has spoken.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use runtime::net::{NetNs, Netlink, Prefix, Route, VethPair, mac_of, sysctl};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::host_ports::{HostPorts, forwards};
use super::ipam::{Ipam, Range};
use super::peers::{Underlay, Ways};
use super::{NetworkError, POD_LINK, PodNetwork, Wanted, file_error};
use crate::pods::admission::HostPort;

/// Pods have addresses of IPv4 only.
const IPV6_OFF: &str = "net.ipv6.conf.eth0.disable_ipv6";

/// An address that stays within the pod.
const LOCAL_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What the leader says about the cluster's network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Topology {
    pub(crate) pod_cidr: String,
    /// Other nodes' ranges and addresses.
    pub(crate) peers: Vec<Peer>,
    /// The range of all nodes' pods.
    #[serde(default)]
    pub(crate) cluster_cidr: String,
    /// The range of Services.
    #[serde(default)]
    pub(crate) service_cidr: String,
}

/// Which addresses are whose, as rules of the packet filter need it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Addressing {
    pub(crate) bridge: String,
    pub(crate) own_pods: Prefix,
    pub(crate) all_pods: Option<Prefix>,
    pub(crate) services: Option<Prefix>,
}

/// Another node's pods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) pod_cidr: String,
    pub(crate) via: IpAddr,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct BridgeNetwork {
    bridge: String,
    /// Whether another makes the node's end of the pods' network; then only the routes to peers are made here.
    bridged_elsewhere: bool,
    ipam: Ipam,
    host_ports: HostPorts,
    /// To the peers' pods.
    ways: Ways,
    /// The largest packet of pods in bytes; `None`: the kernel's default.
    pods_mtu: Mutex<Option<u32>>,
    topology_file: PathBuf,
    /// What is in force; the lock also serialises changes.
    topology: Mutex<Option<Topology>>,
    /// Whether some peer could not be reached when that was put in force.
    misses_peers: AtomicBool,
    /// What the leader wants, as long as it could not be put in force as a whole.
    unsettled: Mutex<Option<Topology>>,
    changed: Notify,
}

impl BridgeNetwork {
    /// Opens the state below `dir` and puts a known topology in force again.
    /// `underlay`: what the node's own network is; without it there are no peers.
    pub(crate) fn open(dir: &Path, bridge: &str, underlay: Option<Underlay>) -> Result<Self, NetworkError> {
        Self::open_with(dir, bridge, underlay, false)
    }

    /// The same, where the pods' network on this node is somebody else's.
    pub(crate) fn open_routes(
        dir: &Path,
        bridge: &str,
        underlay: Option<Underlay>,
    ) -> Result<Self, NetworkError> {
        Self::open_with(dir, bridge, underlay, true)
    }

    fn open_with(
        dir: &Path,
        bridge: &str,
        underlay: Option<Underlay>,
        bridged_elsewhere: bool,
    ) -> Result<Self, NetworkError> {
        let network = Self {
            bridge: bridge.to_owned(),
            bridged_elsewhere,
            ipam: Ipam::open(dir.join("addresses"))?,
            host_ports: HostPorts::new(bridge),
            ways: Ways::new(bridge, underlay),
            pods_mtu: Mutex::default(),
            topology_file: dir.join("topology.json"),
            topology: Mutex::default(),
            misses_peers: AtomicBool::new(false),
            unsettled: Mutex::default(),
            changed: Notify::new(),
        };
        if let Some(topology) =
            fs::read(&network.topology_file).ok().and_then(|b| serde_json::from_slice(&b).ok())
        {
            network.want(topology)?;
        }
        Ok(network)
    }

    /// The pod range in force.
    pub(crate) fn pod_cidr(&self) -> Option<String> {
        self.lock().as_ref().map(|t| t.pod_cidr.clone())
    }

    /// Which addresses are whose, once a leader has said so.
    pub(crate) fn addressing(&self) -> Option<Addressing> {
        let own_pods = self.pods_network().ok()?;
        let topology = self.lock().clone()?;
        let range = |text: &str| text.parse::<Prefix>().ok().map(|prefix| prefix.network());
        Some(Addressing {
            bridge: self.bridge.clone(),
            own_pods,
            all_pods: range(&topology.cluster_cidr),
            services: range(&topology.service_cidr),
        })
    }

    /// Resolves when a topology has been put in force after the call.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Makes the bridge and the routes be as the leader says; what fails is tried again by [`settle`].
    ///
    /// [`settle`]: Self::settle
    pub(crate) fn want(&self, topology: Topology) -> Result<(), NetworkError> {
        *self.unsettled.lock().expect("no holder of the wish panics") = Some(topology);
        self.settle()
    }

    /// Whether everything that the leader wants is in force.
    pub(crate) fn is_settled(&self) -> bool {
        self.unsettled.lock().expect("no holder of the wish panics").is_none()
    }

    /// Tries again what could not be put in force, if there is anything.
    pub(crate) fn settle(&self) -> Result<(), NetworkError> {
        let wanted = self.unsettled.lock().expect("no holder of the wish panics").clone();
        let Some(wanted) = wanted else { return Ok(()) };
        let is_new = self.apply(wanted.clone())?;
        let mut unsettled = self.unsettled.lock().expect("no holder of the wish panics");
        if unsettled.as_ref() == Some(&wanted) && !self.misses_peers.load(Ordering::Relaxed) {
            *unsettled = None;
        }
        drop(unsettled);
        if is_new {
            self.changed.notify_waiters();
        }
        Ok(())
    }

    /// Says whether anything but the ways to peers was new.
    fn apply(&self, topology: Topology) -> Result<bool, NetworkError> {
        let range = Range::parse(&topology.pod_cidr)?;
        let mut current = self.lock();
        let is_new = current.as_ref() != Some(&topology);
        if !is_new && !self.misses_peers.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let mut netlink = Netlink::open()?;
        if !self.bridged_elsewhere && is_new {
            self.make_bridge(&mut netlink, range)?;
            self.route_services(&mut netlink, &topology);
        }
        let before = current.as_ref().map(|topology| topology.peers.as_slice()).unwrap_or_default();
        let link = self.ways.own_link(&mut netlink)?;
        let peers = (before, topology.peers.as_slice());
        let are_reached = self.ways.apply(&mut netlink, range, link.as_ref(), peers, is_new)?;
        self.misses_peers.store(!are_reached, Ordering::Relaxed);
        *self.pods_mtu.lock().expect("no holder of the MTU panics") =
            link.map(|link| self.ways.pods_mtu(&link));
        if !is_new {
            return Ok(false);
        }
        let bytes = serde_json::to_vec(&topology).expect("a topology has string keys only");
        let temporary = self.topology_file.with_extension("tmp");
        fs::write(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, &self.topology_file))
            .map_err(file_error(&self.topology_file))?;
        tracing::info!(pod_cidr = %topology.pod_cidr, peers = topology.peers.len(), "network topology");
        *current = Some(topology);
        Ok(true)
    }

    fn make_bridge(&self, netlink: &mut Netlink, range: Range) -> Result<(), NetworkError> {
        let wanted = range.with_length(range.gateway());
        netlink.add_bridge(&self.bridge)?;
        for other in netlink.addresses_of(&self.bridge)? {
            if other.address().is_ipv4() && other != wanted {
                netlink.delete_address(&self.bridge, other)?;
            }
        }
        // A fixed address: else the bridge takes its ports' lowest one, and changes it under its neighbours.
        netlink.set_mac(&self.bridge, mac_of(wanted.address()))?;
        if !netlink.addresses_of(&self.bridge)?.contains(&wanted) {
            netlink.add_address(&self.bridge, wanted)?;
        }
        netlink.set_up(&self.bridge)?;
        sysctl::set("net.ipv4.ip_forward", "1")?;
        Ok(())
    }

    /// A program of the host that calls a Service needs some route to it, though no packet ever takes it: a host without a
    /// default route would have none.
    fn route_services(&self, netlink: &mut Netlink, topology: &Topology) {
        let Ok(services) = topology.service_cidr.parse::<Prefix>() else { return };
        if let Err(error) = netlink.replace_route(&Route::on_link(services.network(), &self.bridge)) {
            tracing::warn!(%error, "programs of this host may not reach Services");
        }
    }

    /// The address of a pod or container; the same one on every call until it is released.
    pub(crate) fn address_for(&self, uid: &str) -> Result<IpAddr, NetworkError> {
        let pod_cidr = self.pod_cidr().ok_or(NetworkError::NotReady)?;
        self.ipam.reserve(Range::parse(&pod_cidr)?, uid)
    }

    /// Connects a network namespace to the bridge.
    pub(crate) fn connect(&self, uid: &str, ip: IpAddr, netns: &Path) -> Result<(), NetworkError> {
        let pod_cidr = self.pod_cidr().ok_or(NetworkError::NotReady)?;
        let range = Range::parse(&pod_cidr)?;
        let namespace = NetNs::open(netns)?;
        let host_link = host_link(uid);
        let mut inside = Netlink::open_in(&namespace)?;
        if inside.link(POD_LINK)?.is_none() {
            let mut host = Netlink::open()?;
            // What an earlier sandbox of this pod left.
            host.delete_link(&host_link)?;
            if host.link(&self.bridge)?.is_none() {
                tracing::warn!(bridge = %self.bridge, "the bridge of the node's pods is gone; it is made anew");
                self.make_bridge(&mut host, range)?;
            }
            host.add_veth(VethPair {
                name: &host_link,
                peer_name: POD_LINK,
                peer_netns: Some(&namespace),
                mtu: *self.pods_mtu.lock().expect("no holder of the MTU panics"),
                master: Some(&self.bridge),
                up: true,
            })?;
            // So that the pod can call itself through a Service or a port of the host.
            host.set_hairpin(&host_link, true)?;
        }
        inside.set_up("lo")?;
        // Neighbours on the bridge would reach the pod at an address that nobody gave it and no policy knows. A kernel
        // without IPv6 has no such setting.
        match sysctl::set_in(&namespace, IPV6_OFF, "1") {
            // Name services leave `::1` out for who has no other address of IPv6.
            Ok(()) => inside.add_address("lo", Prefix::host(IpAddr::V6(LOCAL_IPV6)))?,
            Err(error) => tracing::debug!(%error, "no IPv6 to switch off"),
        }
        inside.set_mac(POD_LINK, mac_of(ip))?;
        let own = Prefix::new(ip, range.prefix_length()).ok_or(NetworkError::NotReady)?;
        if !inside.addresses_of(POD_LINK)?.contains(&own) {
            inside.add_address(POD_LINK, own)?;
        }
        inside.set_up(POD_LINK)?;
        inside.replace_route(&Route::via(Prefix::DEFAULT_V4, IpAddr::V4(range.gateway())))?;
        Ok(())
    }

    /// The range that this node's pods are in.
    fn pods_network(&self) -> Result<Prefix, NetworkError> {
        let pod_cidr = self.pod_cidr().ok_or(NetworkError::NotReady)?;
        Ok(Range::parse(&pod_cidr)?.prefix())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Topology>> {
        self.topology.lock().expect("no holder of the topology panics")
    }
}

impl PodNetwork for BridgeNetwork {
    fn reserve(&self, uid: &str) -> Result<Option<IpAddr>, NetworkError> {
        self.address_for(uid).map(Some)
    }

    fn attach(&self, pod: &Wanted<'_>, netns: &Path) -> Result<IpAddr, NetworkError> {
        let ip = self.address_for(pod.uid)?;
        self.connect(pod.uid, ip, netns)?;
        // What leaves by one end of the pair arrives at the other.
        if let Some(ingress) = pod.bandwidth.ingress {
            Netlink::open()?.set_rate(&host_link(pod.uid), ingress)?;
        }
        if let Some(egress) = pod.bandwidth.egress {
            Netlink::open_in(&NetNs::open(netns)?)?.set_rate(POD_LINK, egress)?;
        }
        Ok(ip)
    }

    fn publish(&self, uid: &str, ip: IpAddr, ports: &[HostPort]) -> Result<(), NetworkError> {
        self.host_ports.publish(uid, &host_link(uid), forwards(ip, ports), self.pods_network()?)
    }

    fn publish_all(&self, pods: &[(String, IpAddr, Vec<HostPort>)]) -> Result<(), NetworkError> {
        let all = pods.iter().map(|(uid, ip, ports)| (uid.clone(), forwards(*ip, ports)));
        let all: BTreeMap<_, _> = all.filter(|(_, forwards)| !forwards.is_empty()).collect();
        match self.pods_network() {
            // Without a range there never was a pod that could have had ports.
            Err(NetworkError::NotReady) => Ok(()),
            network => self.host_ports.set_all(all, network?),
        }
    }

    fn release(&self, uid: &str) -> Result<(), NetworkError> {
        match self.pods_network() {
            Err(NetworkError::NotReady) => {}
            network => self.host_ports.withdraw(uid, network?)?,
        }
        let mut netlink = Netlink::open()?;
        netlink.delete_link(&host_link(uid))?;
        self.ipam.release(uid)
    }

    fn owners(&self) -> Result<Vec<String>, NetworkError> {
        let mut uids: Vec<String> = self.ipam.all()?.into_values().collect();
        uids.dedup();
        Ok(uids)
    }
}

/// The host's end of a pod's veth: derived from the uid, so that it is found again without a record.
fn host_link(uid: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, uid.as_bytes());
    format!("vb{}", hex::encode(&digest.as_ref()[..6]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_links_fit_and_differ() {
        let (a, b) = (host_link("a"), host_link("b"));
        assert!(a.len() <= 15 && a != b);
        assert_eq!(a, host_link("a"));
    }
}
