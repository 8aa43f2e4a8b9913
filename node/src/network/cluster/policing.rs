//! What decides who may reach whom: policies, the labels of namespaces, and of every pod what a policy can ask about.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use runtime::net::Transport;

use super::{Key, Kind, read};

/// Labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// Namespace and name.
pub(crate) type Place = (String, String);

/// See the module. A leader tells of namespaces and pods only while there is any policy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policing {
    pub(crate) policies: BTreeMap<Place, Arc<NetworkPolicy>>,
    pub(crate) namespaces: BTreeMap<String, Arc<Labels>>,
    pub(crate) pods: BTreeMap<Place, Arc<PeerPod>>,
}

/// A pod as policies see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct PeerPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) labels: Labels,
    pub(crate) addresses: Vec<Ipv4Addr>,
    pub(crate) ports: Vec<NamedPort>,
}

/// A port of a container that has a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NamedPort {
    pub(crate) name: String,
    pub(crate) transport: Transport,
    pub(crate) number: u16,
}

impl PeerPod {
    /// With the addresses that its status names.
    pub(crate) fn of(pod: &Pod) -> Self {
        let metadata = &pod.metadata;
        let status = pod.status.as_ref();
        let listed =
            status.into_iter().flat_map(|status| status.pod_ips.iter().flatten()).map(|ip| ip.ip.as_str());
        let addresses = listed.chain(status.and_then(|status| status.pod_ip.as_deref()));
        let mut addresses: Vec<Ipv4Addr> = addresses.filter_map(|text| text.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let spec = pod.spec.as_ref();
        let is_sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
        let sidecars =
            spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten()).filter(is_sidecar);
        let containers = spec.into_iter().flat_map(|spec| &spec.containers).chain(sidecars);
        let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
            let name = port.name.clone().filter(|name| !name.is_empty())?;
            let transport = transport(port.protocol.as_deref());
            Some(NamedPort { name, transport, number: u16::try_from(port.container_port).ok()? })
        });
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            labels: metadata.labels.clone().unwrap_or_default(),
            addresses,
            ports: ports.collect(),
        }
    }

    /// With this address only.
    pub(crate) fn at(pod: &Pod, address: IpAddr) -> Self {
        let addresses = match address {
            IpAddr::V4(address) => vec![address],
            IpAddr::V6(_) => Vec::new(),
        };
        Self { addresses, ..Self::of(pod) }
    }
}

pub(crate) fn transport(protocol: Option<&str>) -> Transport {
    match protocol {
        Some("UDP") => Transport::Udp,
        Some("SCTP") => Transport::Sctp,
        _ => Transport::Tcp,
    }
}

impl Policing {
    /// Takes an object in; says whether it could be read.
    pub(super) fn put(&mut self, key: &Key, json: &[u8]) -> bool {
        let place = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::NetworkPolicy => read::<NetworkPolicy>(key, json)
                .map(|policy| drop(self.policies.insert(place, Arc::new(policy)))),
            Kind::Namespace => read::<Namespace>(key, json).map(|namespace| {
                let labels = namespace.metadata.labels.unwrap_or_default();
                self.namespaces.insert(place.1, Arc::new(labels));
            }),
            Kind::Pod => {
                read::<Pod>(key, json).map(|pod| drop(self.pods.insert(place, Arc::new(PeerPod::of(&pod)))))
            }
            _ => None,
        }
        .is_some()
    }

    pub(super) fn remove(&mut self, key: &Key) {
        let place = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::NetworkPolicy => drop(self.policies.remove(&place)),
            Kind::Namespace => drop(self.namespaces.remove(&place.1)),
            Kind::Pod => drop(self.pods.remove(&place)),
            _ => {}
        }
    }
}
