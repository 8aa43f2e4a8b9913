//! From policies, namespaces and pods to what each pod of this node may do. Pure.
//!
//! The rules are Kubernetes': a pod that no policy selects in a direction is open in it; one that any selects is allowed what
//! any of those allows, and nothing else. Pods are told apart by their addresses, so pods of their host's network
//! are no peers; a named port is what the called pod calls so. IPv6 blocks concern nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use api::LabelSelector;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use runtime::net::{Allowed, Block, PodRules, PolicyRules, Ports, Prefix, Transport};

use crate::network::cluster::{PeerPod, Policing, transport};

/// Pods of this node by uid, with the addresses that they have here.
pub(crate) type Locals = BTreeMap<String, Arc<PeerPod>>;

type PortSet = BTreeSet<Ports>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// What the packet filter has to say of the pods of this node.
pub(crate) fn compile(policing: &Policing, locals: &Locals) -> PolicyRules {
    let world = World::new(policing, locals);
    let own: Vec<&PeerPod> = locals.keys().filter_map(|uid| world.own(uid)).collect();
    let mut rules = PolicyRules::default();
    for direction in [Direction::Ingress, Direction::Egress] {
        let policies: Vec<Policy> = policing
            .policies
            .values()
            .filter_map(|policy| Policy::read(policy, direction, &own, &world))
            .collect();
        for pod in &own {
            let selecting: Vec<&Policy> = policies.iter().filter(|policy| policy.selects(pod)).collect();
            if selecting.is_empty() {
                continue;
            }
            let class = class_name(direction, &selecting, pod);
            rules.classes.entry(class.clone()).or_insert_with(|| allowed(direction, &selecting, pod, &world));
            for address in &pod.addresses {
                let of_pod: &mut PodRules = rules.pods.entry(*address).or_default();
                match direction {
                    Direction::Ingress => of_pod.ingress = Some(class.clone()),
                    Direction::Egress => of_pod.egress = Some(class.clone()),
                }
            }
        }
    }
    rules
}

/// Every pod, those of this node as it knows them itself.
struct World<'a> {
    pods: Vec<Arc<PeerPod>>,
    /// By uid, pods of this node.
    own: BTreeMap<&'a str, usize>,
    by_namespace: BTreeMap<String, Vec<usize>>,
    policing: &'a Policing,
}

impl<'a> World<'a> {
    fn new(policing: &'a Policing, locals: &'a Locals) -> Self {
        let elsewhere = policing.pods.values().filter(|pod| !locals.contains_key(&pod.uid)).cloned();
        let mut world =
            Self { pods: elsewhere.collect(), own: BTreeMap::new(), by_namespace: BTreeMap::new(), policing };
        for (uid, local) in locals {
            // The leader's word on labels is newer than what the pod began with.
            let told = policing.pods.get(&(local.namespace.clone(), local.name.clone()));
            let pod = match told.filter(|told| told.uid == *uid) {
                Some(told) => Arc::new(PeerPod { labels: told.labels.clone(), ..PeerPod::clone(local) }),
                None => Arc::clone(local),
            };
            world.own.insert(uid, world.pods.len());
            world.pods.push(pod);
        }
        for (index, pod) in world.pods.iter().enumerate() {
            world.by_namespace.entry(pod.namespace.clone()).or_default().push(index);
        }
        world
    }

    fn own(&self, uid: &str) -> Option<&PeerPod> {
        self.own.get(uid).map(|index| &*self.pods[*index])
    }

    fn of_namespace(&self, namespace: &str, selector: &LabelSelector) -> impl Iterator<Item = usize> {
        let of_namespace = self.by_namespace.get(namespace).into_iter().flatten().copied();
        of_namespace.filter(move |index| selector.matches(&self.pods[*index].labels))
    }

    fn namespaces(&self, selector: &LabelSelector) -> impl Iterator<Item = &String> {
        self.policing
            .namespaces
            .iter()
            .filter(|(_, labels)| selector.matches(&***labels))
            .map(|(name, _)| name)
    }
}

/// A policy in one direction, with its peers found.
struct Policy {
    namespace: String,
    name: String,
    selector: LabelSelector,
    rules: Vec<Rule>,
}

struct Rule {
    peers: Peers,
    ports: AskedPorts,
}

enum Peers {
    Anybody,
    These { pods: BTreeSet<usize>, ranges: Vec<(Ipv4Addr, Ipv4Addr)> },
}

/// Ports as a rule asks for them.
struct AskedPorts {
    numbered: PortSet,
    named: Vec<(String, Transport)>,
}

impl Policy {
    /// `None`: it has nothing to say about this direction, or to these pods.
    fn read(
        policy: &NetworkPolicy,
        direction: Direction,
        own: &[&PeerPod],
        world: &World<'_>,
    ) -> Option<Self> {
        let spec = policy.spec.as_ref()?;
        if !concerns(spec, direction) {
            return None;
        }
        let namespace = policy.metadata.namespace.clone().unwrap_or_default();
        let name = policy.metadata.name.clone().unwrap_or_default();
        let selector = match &spec.pod_selector {
            None => LabelSelector::everything(),
            selector => LabelSelector::from_typed(selector.as_ref()).unwrap_or_else(|why| {
                tracing::error!(policy = %format_args!("{namespace}/{name}"), why, "a policy that selects no pod");
                LabelSelector::nothing()
            }),
        };
        let mut read = Self { namespace, name, selector, rules: Vec::new() };
        if !own.iter().any(|pod| read.selects(pod)) {
            return None;
        }
        read.rules = match direction {
            Direction::Ingress => {
                let rules = spec.ingress.iter().flatten();
                rules
                    .map(|rule| {
                        Rule::read(rule.from.as_deref(), rule.ports.as_deref(), &read.namespace, world)
                    })
                    .collect()
            }
            Direction::Egress => {
                let rules = spec.egress.iter().flatten();
                rules
                    .map(|rule| Rule::read(rule.to.as_deref(), rule.ports.as_deref(), &read.namespace, world))
                    .collect()
            }
        };
        Some(read)
    }

    fn selects(&self, pod: &PeerPod) -> bool {
        pod.namespace == self.namespace && self.selector.matches(&pod.labels)
    }
}

fn concerns(spec: &NetworkPolicySpec, direction: Direction) -> bool {
    let named = match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    };
    match spec.policy_types.as_deref().filter(|types| !types.is_empty()) {
        Some(types) => types.iter().any(|text| text == named),
        None => {
            direction == Direction::Ingress || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty())
        }
    }
}

impl Rule {
    fn read(
        peers: Option<&[NetworkPolicyPeer]>,
        ports: Option<&[NetworkPolicyPort]>,
        namespace: &str,
        world: &World<'_>,
    ) -> Self {
        let peers = match peers.unwrap_or_default() {
            [] => Peers::Anybody,
            peers => {
                let (mut pods, mut ranges) = (BTreeSet::new(), Vec::new());
                for peer in peers {
                    match &peer.ip_block {
                        Some(block) => ranges.extend(ranges_of(block)),
                        None => find(peer, namespace, world, &mut pods),
                    }
                }
                Peers::These { pods, ranges }
            }
        };
        Self { peers, ports: AskedPorts::read(ports.unwrap_or_default()) }
    }
}

/// The pods that a peer selects.
fn find(peer: &NetworkPolicyPeer, own_namespace: &str, world: &World<'_>, into: &mut BTreeSet<usize>) {
    let read =
        |selector| LabelSelector::from_typed(Some(selector)).unwrap_or_else(|_| LabelSelector::nothing());
    let pods = peer.pod_selector.as_ref().map_or_else(LabelSelector::everything, read);
    match &peer.namespace_selector {
        None if peer.pod_selector.is_none() => {}
        None => into.extend(world.of_namespace(own_namespace, &pods)),
        Some(namespaces) => {
            for namespace in world.namespaces(&read(namespaces)) {
                into.extend(world.of_namespace(namespace, &pods));
            }
        }
    }
}

impl AskedPorts {
    fn read(ports: &[NetworkPolicyPort]) -> Self {
        let mut asked = Self { numbered: PortSet::new(), named: Vec::new() };
        if ports.is_empty() {
            asked.numbered.insert(Ports::All);
        }
        for port in ports {
            let transport = transport(port.protocol.as_deref());
            match &port.port {
                None => drop(asked.numbered.insert(Ports::Of { transport, first: 0, last: u16::MAX })),
                Some(IntOrString::Int(number)) => {
                    let last = port.end_port.unwrap_or(*number);
                    if let (Ok(first), Ok(last)) = (u16::try_from(*number), u16::try_from(last)) {
                        asked.numbered.insert(Ports::Of { transport, first, last });
                    }
                }
                Some(IntOrString::String(name)) => asked.named.push((name.clone(), transport)),
            }
        }
        asked
    }

    /// The ports that these are at the pod that is called.
    fn at(&self, called: &PeerPod) -> PortSet {
        let mut ports = self.numbered.clone();
        for (name, transport) in &self.named {
            let same = called.ports.iter().filter(|port| port.name == *name && port.transport == *transport);
            ports.extend(same.map(|port| one(port.transport, port.number)));
        }
        ports
    }
}

fn one(transport: Transport, port: u16) -> Ports {
    Ports::Of { transport, first: port, last: port }
}

/// Pods that are allowed the same have a class of the same name.
fn class_name(direction: Direction, policies: &[&Policy], pod: &PeerPod) -> String {
    let mut name = match direction {
        Direction::Ingress => "ingress".to_owned(),
        Direction::Egress => "egress".to_owned(),
    };
    for policy in policies {
        name += &format!(" {}/{}", policy.namespace, policy.name);
    }
    let named: BTreeSet<&str> = policies
        .iter()
        .flat_map(|policy| &policy.rules)
        .flat_map(|rule| rule.ports.named.iter().map(|(name, _)| name.as_str()))
        .collect();
    if direction == Direction::Ingress {
        let ports: BTreeSet<_> = pod.ports.iter().filter(|port| named.contains(port.name.as_str())).collect();
        for port in ports {
            name += &format!(" {}={}/{}", port.name, port.number, port.transport);
        }
    }
    name
}

fn allowed(direction: Direction, policies: &[&Policy], own: &PeerPod, world: &World<'_>) -> Allowed {
    let mut peers: BTreeMap<Ipv4Addr, PortSet> = BTreeMap::new();
    let mut blocks: BTreeMap<(Ipv4Addr, Ipv4Addr), PortSet> = BTreeMap::new();
    for rule in policies.iter().flat_map(|policy| &policy.rules) {
        let (at_blocks, varies) = match direction {
            Direction::Ingress => (rule.ports.at(own), false),
            // Nobody knows what an address that is no pod's calls its ports.
            Direction::Egress => (rule.ports.numbered.clone(), !rule.ports.named.is_empty()),
        };
        let at = |pod: &PeerPod| if varies { rule.ports.at(pod) } else { at_blocks.clone() };
        let mut add_pod = |pod: &PeerPod| {
            let ports = at(pod);
            for address in pod.addresses.iter().filter(|_| !ports.is_empty()) {
                peers.entry(*address).or_default().extend(ports.iter().copied());
            }
        };
        let whole = [(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)];
        let ranges = match &rule.peers {
            Peers::Anybody => {
                if varies {
                    world.pods.iter().for_each(|pod| add_pod(pod));
                }
                &whole[..]
            }
            Peers::These { pods, ranges } => {
                pods.iter().for_each(|index| add_pod(&world.pods[*index]));
                ranges
            }
        };
        for range in ranges.iter().filter(|_| !at_blocks.is_empty()) {
            blocks.entry(*range).or_default().extend(at_blocks.iter().copied());
        }
    }
    let blocks =
        blocks.into_iter().map(|((first, last), ports)| Block { first, last, ports: simplest(ports) });
    Allowed {
        blocks: blocks.collect(),
        peers: peers.into_iter().map(|(address, ports)| (address, simplest(ports))).collect(),
    }
}

fn simplest(ports: PortSet) -> PortSet {
    if ports.contains(&Ports::All) { [Ports::All].into() } else { ports }
}

/// A block without its exceptions; nothing, if it is of IPv6.
fn ranges_of(block: &IPBlock) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let Some((first, last)) = range(&block.cidr) else { return Vec::new() };
    let mut except: Vec<(u64, u64)> = block.except.iter().flatten().filter_map(|text| range(text)).collect();
    except.sort_unstable();
    let mut ranges = Vec::new();
    let mut begin = first;
    for (from, to) in except {
        if from > begin {
            ranges.push((begin, (from - 1).min(last)));
        }
        begin = begin.max(to + 1);
    }
    if begin <= last {
        ranges.push((begin, last));
    }
    let address = |number: u64| u32::try_from(number).ok().map(Ipv4Addr::from_bits);
    ranges.into_iter().filter_map(|(first, last)| Some((address(first)?, address(last)?))).collect()
}

/// First and last address, of IPv4, in numbers that have room for one more.
fn range(text: &str) -> Option<(u64, u64)> {
    let prefix: Prefix = text.parse().ok()?;
    let IpAddr::V4(first) = prefix.network().address() else { return None };
    let first = u64::from(first.to_bits());
    Some((first, first + (1 << (32 - u32::from(prefix.length()))) - 1))
}

#[cfg(test)]
mod tests;
