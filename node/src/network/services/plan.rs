//! What a Service asks of the packet filter, given its endpoints and this node. Pure.
//!
//! The rules are Kubernetes': ready endpoints; if there are none, those that end but still serve; policies `Local`
//! keep to the endpoints of this node. Headless Services, external names and IPv6 ask for nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use runtime::net::{
    Backend, DatagramPlace, Frontend, Pool, Prefix, Scope, ServiceRules, Transport, WhenEmpty,
};

use crate::network::cluster::Known;

/// For how long a caller comes back to its backend where the Service does not say.
const AFFINITY_TIMEOUT: Duration = Duration::from_secs(10_800);
/// Services that somebody else leads to their backends.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";

/// What the plan depends on beside the Service.
#[derive(Debug, Clone)]
pub(crate) struct NodeFacts {
    pub(crate) node_name: String,
    /// Addresses at which this node answers for names itself.
    pub(crate) cluster_dns: Vec<IpAddr>,
}

/// One endpoint for one port of the Service.
#[derive(Debug, Clone, Copy)]
struct Endpoint {
    backend: Backend,
    is_ready: bool,
    /// It ends, and still answers.
    is_draining: bool,
    is_here: bool,
}

/// The rules; `None`: there is nothing to be led anywhere.
pub(crate) fn plan(known: &Known, facts: &NodeFacts) -> Option<ServiceRules> {
    let service = known.service.as_ref()?;
    let spec = service.spec.as_ref()?;
    let has_other_proxy =
        service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(OTHER_PROXY));
    if spec.type_.as_deref() == Some("ExternalName") || has_other_proxy {
        return None;
    }
    let own = own_addresses(spec, facts);
    if own.is_empty() {
        return None;
    }
    let mut rules = ServiceRules::default();
    for port in spec.ports.iter().flatten() {
        plan_port(PortOf { service, spec, own: &own, port }, &endpoints(known, port, facts), &mut rules);
    }
    Some(rules)
}

struct PortOf<'a> {
    service: &'a Service,
    spec: &'a ServiceSpec,
    own: &'a [Ipv4Addr],
    port: &'a ServicePort,
}

fn plan_port(of: PortOf<'_>, endpoints: &[Endpoint], rules: &mut ServiceRules) {
    let (spec, port) = (of.spec, of.port);
    let Some(number) = port_number(port.port) else { return };
    let transport = transport(port.protocol.as_deref());
    let here: Vec<Endpoint> = endpoints.iter().copied().filter(|endpoint| endpoint.is_here).collect();
    let name = format!("{}/{transport}", port.name.as_deref().unwrap_or_default());
    let (everywhere, local) = (format!("{name}/everywhere"), format!("{name}/here"));
    let affinity = affinity(spec);
    let pool = |among: &[Endpoint]| {
        let backends = usable(among);
        let when_empty = if usable(endpoints).is_empty() { WhenEmpty::Reject } else { WhenEmpty::Drop };
        Pool { backends, affinity, when_empty }
    };
    let at = |address, port| Frontend { transport, address, port };
    let keeps_inside = spec.internal_traffic_policy.as_deref() == Some("Local");
    let keeps_outside = spec.external_traffic_policy.as_deref() == Some("Local");
    let inner = if keeps_inside { &local } else { &everywhere };
    for address in of.own {
        rules.frontends.insert((at(Some(*address), number), Scope::Everyone), inner.clone());
    }
    let mut outer: Vec<Frontend> =
        outer_addresses(of.service, spec).into_iter().map(|address| at(Some(address), number)).collect();
    outer.extend(port.node_port.and_then(port_number).map(|number| at(None, number)));
    for address in given_addresses(of.service, spec) {
        if let Some(callers) = callers(spec) {
            rules.callers.insert(at(Some(address), number), callers);
        }
    }
    for frontend in outer {
        rules.frontends.insert((frontend, Scope::Everyone), everywhere.clone());
        if keeps_outside {
            rules.frontends.insert((frontend, Scope::Outside), local.clone());
        }
    }
    for (name, among) in [(everywhere, endpoints), (local, &here[..])] {
        if rules.frontends.values().any(|pool| *pool == name) {
            rules.pools.insert(name, pool(among));
        }
    }
}

/// The ready ones; if there are none, those that drain.
fn usable(endpoints: &[Endpoint]) -> BTreeSet<Backend> {
    let ready: BTreeSet<Backend> =
        endpoints.iter().filter(|endpoint| endpoint.is_ready).map(|endpoint| endpoint.backend).collect();
    match ready.is_empty() {
        false => ready,
        true => endpoints
            .iter()
            .filter(|endpoint| endpoint.is_draining)
            .map(|endpoint| endpoint.backend)
            .collect(),
    }
}

fn own_addresses(spec: &ServiceSpec, facts: &NodeFacts) -> Vec<Ipv4Addr> {
    let listed = spec
        .cluster_ips
        .iter()
        .flatten()
        .chain(spec.cluster_ip.iter().filter(|_| spec.cluster_ips.is_none()));
    let own = listed.filter_map(|text| text.parse::<Ipv4Addr>().ok());
    own.filter(|address| !facts.cluster_dns.contains(&IpAddr::V4(*address))).collect()
}

fn outer_addresses(service: &Service, spec: &ServiceSpec) -> BTreeSet<Ipv4Addr> {
    let external = spec.external_ips.iter().flatten().map(String::as_str);
    let external = external.filter_map(|text| text.parse().ok());
    external.chain(given_addresses(service, spec)).collect()
}

/// What a balancer's provider gave the Service.
fn given_addresses(service: &Service, spec: &ServiceSpec) -> BTreeSet<Ipv4Addr> {
    let is_balanced = spec.type_.as_deref() == Some("LoadBalancer");
    let status = service.status.as_ref().filter(|_| is_balanced);
    let status = status.and_then(|status| status.load_balancer.as_ref());
    let given = status.into_iter().flat_map(|status| status.ingress.iter().flatten());
    // With mode Proxy the balancer wants to see its own connections.
    let given = given.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    given.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok()).collect()
}

/// Who may call the addresses of a balancer, in ranges that do not overlap; `None`: everybody.
fn callers(spec: &ServiceSpec) -> Option<Vec<(Ipv4Addr, Ipv4Addr)>> {
    let asked = spec.load_balancer_source_ranges.as_deref().filter(|ranges| !ranges.is_empty())?;
    let mut ranges: Vec<(Ipv4Addr, Ipv4Addr)> = asked
        .iter()
        .filter_map(|text| {
            let prefix: Prefix = text.trim().parse().ok()?;
            let IpAddr::V4(first) = prefix.network().address() else { return None };
            let host = u32::MAX.checked_shr(u32::from(prefix.length())).unwrap_or(0);
            Some((first, Ipv4Addr::from_bits(first.to_bits() | host)))
        })
        .collect();
    ranges.sort_unstable();
    // Prefixes lie within each other or apart.
    let mut apart: Vec<(Ipv4Addr, Ipv4Addr)> = Vec::new();
    for range in ranges {
        if apart.last().is_none_or(|last| last.1 < range.0) {
            apart.push(range);
        } else if let Some(last) = apart.last_mut() {
            last.1 = last.1.max(range.1);
        }
    }
    Some(apart)
}

/// How many addresses of this node are ready behind a Service.
pub(crate) fn local_endpoints(known: &Known, facts: &NodeFacts) -> usize {
    let ports = known
        .service
        .iter()
        .filter_map(|service| service.spec.as_ref())
        .flat_map(|spec| spec.ports.iter().flatten());
    let ready = ports.flat_map(|port| endpoints(known, port, facts));
    let addresses = ready
        .filter(|endpoint| endpoint.is_ready && endpoint.is_here)
        .map(|endpoint| endpoint.backend.address);
    addresses.collect::<BTreeSet<_>>().len()
}

fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).and_then(|s| u64::try_from(s).ok());
    Some(seconds.filter(|seconds| *seconds > 0).map_or(AFFINITY_TIMEOUT, Duration::from_secs))
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

fn transport(protocol: Option<&str>) -> Transport {
    match protocol {
        Some("UDP") => Transport::Udp,
        Some("SCTP") => Transport::Sctp,
        _ => Transport::Tcp,
    }
}

fn endpoints(known: &Known, port: &ServicePort, facts: &NodeFacts) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in known.slices.values().filter(|slice| slice.address_type == "IPv4") {
        let is_it = |other: &&k8s_openapi::api::discovery::v1::EndpointPort| {
            other.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                && transport(other.protocol.as_deref()) == transport(port.protocol.as_deref())
        };
        let target =
            slice.ports.iter().flatten().find(is_it).and_then(|port| port.port).and_then(port_number);
        let Some(target) = target else { continue };
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
            let serves = conditions.and_then(|conditions| conditions.serving).unwrap_or(is_ready);
            let ends = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
            let is_here = endpoint.node_name.as_deref() == Some(facts.node_name.as_str());
            let address = endpoint.addresses.first().and_then(|text| text.parse().ok());
            found.extend(address.map(|address| Endpoint {
                backend: Backend { address, port: target },
                is_ready,
                is_draining: serves && ends,
                is_here,
            }));
        }
    }
    found
}

/// Where the rules take datagrams, and who may answer them.
pub(crate) fn datagram_places(rules: &ServiceRules) -> Vec<DatagramPlace> {
    let of_datagrams =
        rules.frontends.iter().filter(|((frontend, _), _)| frontend.transport == Transport::Udp);
    let mut places: Vec<DatagramPlace> = Vec::new();
    for ((frontend, _), pool) in of_datagrams {
        let backends = rules.pools.get(pool).into_iter().flat_map(|pool| &pool.backends);
        let answered_by: BTreeSet<Ipv4Addr> = backends.map(|backend| backend.address).collect();
        let same = places.iter_mut().find(|p| (p.address, p.port) == (frontend.address, frontend.port));
        match same {
            Some(place) => place.answered_by.extend(answered_by),
            None => {
                places.push(DatagramPlace { address: frontend.address, port: frontend.port, answered_by });
            }
        }
    }
    places
}

#[cfg(test)]
mod tests;
