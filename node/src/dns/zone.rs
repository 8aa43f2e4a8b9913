//! What the cluster's own names mean, out of this node's copy of Services and EndpointSlices. Pure.
//!
//! ```text
//! web.shop.svc.cluster.local              a Service: its address, or its endpoints' if it is headless
//! _http._tcp.web.shop.svc.cluster.local   its port of that name (SRV)
//! db-0.web.shop.svc.cluster.local         an endpoint, by host name or by address (10-244-1-5)
//! 10-244-1-5.shop.pod.cluster.local       a pod, by address
//! 5.1.244.10.in-addr.arpa                 back to the name (PTR)
//! ```
//! The rules are those of Kubernetes' DNS specification, version 1.1.0.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::network::cluster::{ClusterNetwork, Known, ServiceName};

const VERSION: &str = "1.1.0";

/// What is asked about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    A,
    Aaaa,
    Srv,
    Ptr,
    Txt,
    Soa,
    Any,
    Other,
}

/// What one record says. Names are absolute, without the last dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Data {
    Address(IpAddr),
    Alias(String),
    Pointer(String),
    Port {
        port: u16,
        host: String,
    },
    Text(String),
    /// The zone's own.
    Authority,
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Alias(text) | Self::Pointer(text) | Self::Text(text) => f.write_str(text),
            Self::Port { port, host } => write!(f, "{port} {host}"),
            Self::Authority => f.write_str("authority"),
        }
    }
}

/// What a question comes to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    /// Records of the name, and others, with their names, that help.
    Records(Vec<Data>, Vec<(String, Data)>),
    /// The name is there, nothing of that type is.
    NoData,
    /// There is no such name.
    NoName,
    /// The name is another's to answer.
    Elsewhere,
}

/// The cluster's domain.
#[derive(Debug, Clone)]
pub(super) struct Zone {
    labels: Vec<String>,
}

/// Namespace and name of a Service in a question.
type Named<'a> = (&'a str, &'a str);

impl Zone {
    pub(super) fn new(domain: &str) -> Self {
        Self { labels: labels(domain) }
    }

    /// The domain's name.
    pub(super) fn domain(&self) -> String {
        self.labels.join(".")
    }

    /// What is asked for.
    pub(super) fn answer(&self, network: &ClusterNetwork, name: &str, of: Asked) -> Answer {
        let asked = labels(name);
        if let Some(address) = reverse(&asked) {
            return self.name_of(network, address, of);
        }
        let Some(own) = asked.strip_suffix(&self.labels[..]) else { return Answer::Elsewhere };
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        match &own[..] {
            [] if of == Asked::Soa => Answer::Records(vec![Data::Authority], Vec::new()),
            [] | ["svc" | "pod"] => Answer::NoData,
            ["dns-version"] if of == Asked::Txt => {
                Answer::Records(vec![Data::Text(VERSION.to_owned())], Vec::new())
            }
            [address, namespace, "pod"] => match dashed(address) {
                Some(address) if network.has_namespace(namespace) => of_type([address], of),
                _ => Answer::NoName,
            },
            [namespace, "svc" | "pod"] if network.has_namespace(namespace) => Answer::NoData,
            [service, namespace, "svc"] => self.service(network, (namespace, service), of),
            [port, protocol, service, namespace, "svc"] => {
                let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_'))
                else {
                    return Answer::NoName;
                };
                self.port(network, (namespace, service), (port, protocol), of)
            }
            [endpoint, service, namespace, "svc"] => {
                let Some(known) = network.get(namespace, service) else { return Answer::NoName };
                let found =
                    endpoints(&known).filter(|(_, found)| host_name(found).as_deref() == Some(endpoint));
                let addresses: BTreeSet<IpAddr> = found.filter_map(|(_, found)| address(found)).collect();
                if addresses.is_empty() { Answer::NoName } else { of_type(addresses, of) }
            }
            _ => Answer::NoName,
        }
    }

    fn service(&self, network: &ClusterNetwork, (namespace, service): Named<'_>, of: Asked) -> Answer {
        let Some(known) = network.get(namespace, service) else { return Answer::NoName };
        let Some(object) = &known.service else { return Answer::NoName };
        if let Some(other) = external_name(object) {
            let other = other.trim_end_matches('.').to_owned();
            return Answer::Records(vec![Data::Alias(other)], Vec::new());
        }
        if of == Asked::Srv {
            return self.ports(&known, (namespace, service), |_, _| true);
        }
        let addresses = match is_headless(object) {
            true => endpoints(&known).filter_map(|(_, endpoint)| address(endpoint)).collect(),
            false => own_addresses(object),
        };
        // A headless Service that nobody stands behind is no name, as Kubernetes' own has it.
        if addresses.is_empty() { Answer::NoName } else { of_type(addresses, of) }
    }

    fn port(
        &self,
        network: &ClusterNetwork,
        (namespace, service): Named<'_>,
        (port, protocol): (&str, &str),
        of: Asked,
    ) -> Answer {
        let Some(known) = network.get(namespace, service) else { return Answer::NoName };
        let is_it = |its: &str, protocol_of: &str| its == port && protocol_of.eq_ignore_ascii_case(protocol);
        match self.ports(&known, (namespace, service), is_it) {
            Answer::Records(..) if !matches!(of, Asked::Srv | Asked::Any) => Answer::NoData,
            answer => answer,
        }
    }

    /// The ports that are meant, by name and protocol, and where they are.
    fn ports(
        &self,
        known: &Known,
        (namespace, service): Named<'_>,
        is_meant: impl Fn(&str, &str) -> bool,
    ) -> Answer {
        let Some(object) = &known.service else { return Answer::NoName };
        let is_meant = |name: &Option<String>, protocol: &Option<String>| {
            is_meant(name.as_deref().unwrap_or_default(), protocol.as_deref().unwrap_or("TCP"))
        };
        let mut found: BTreeMap<(String, u16), BTreeSet<IpAddr>> = BTreeMap::new();
        if is_headless(object) {
            for (slice, endpoint) in endpoints(known) {
                let ports = slice.ports.iter().flatten();
                for port in ports.filter(|port| is_meant(&port.name, &port.protocol)) {
                    let number = port.port.and_then(|port| u16::try_from(port).ok());
                    let (Some(host), Some(number)) = (host_name(endpoint), number) else { continue };
                    let host = self.absolute(Some(&host), (namespace, service));
                    found.entry((host, number)).or_default().extend(address(endpoint));
                }
            }
        } else {
            let ports = object.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
            for port in ports.filter(|port| is_meant(&port.name, &port.protocol)) {
                let Ok(number) = u16::try_from(port.port) else { continue };
                let host = self.absolute(None, (namespace, service));
                found.entry((host, number)).or_default().extend(own_addresses(object));
            }
        }
        if found.is_empty() {
            return Answer::NoName;
        }
        let answers =
            found.keys().map(|(host, port)| Data::Port { port: *port, host: host.clone() }).collect();
        let hosts = found.iter().flat_map(|((host, _), addresses)| {
            addresses.iter().map(move |address| (host.clone(), Data::Address(*address)))
        });
        Answer::Records(answers, hosts.collect())
    }

    fn name_of(&self, network: &ClusterNetwork, address: IpAddr, of: Asked) -> Answer {
        let found = network.at(address);
        let names: BTreeSet<Data> =
            found.iter().flat_map(|(service, known)| self.names_at(service, known, address)).collect();
        match names.is_empty() {
            true => Answer::Elsewhere,
            false if matches!(of, Asked::Ptr | Asked::Any) => {
                Answer::Records(names.into_iter().collect(), Vec::new())
            }
            false => Answer::NoData,
        }
    }

    fn names_at(&self, service: &ServiceName, known: &Known, at: IpAddr) -> Vec<Data> {
        let named =
            |host: Option<&str>| Data::Pointer(self.absolute(host, (&service.namespace, &service.name)));
        let Some(object) = &known.service else { return Vec::new() };
        if own_addresses(object).contains(&at) {
            return vec![named(None)];
        }
        if !is_headless(object) {
            return Vec::new();
        }
        let at_it = endpoints(known).filter(|(_, endpoint)| address(endpoint) == Some(at));
        at_it.map(|(_, endpoint)| named(host_name(endpoint).as_deref())).collect()
    }

    fn absolute(&self, host: Option<&str>, (namespace, service): Named<'_>) -> String {
        let parts = host.into_iter().chain([service, namespace, "svc"]);
        parts.chain(self.labels.iter().map(String::as_str)).collect::<Vec<_>>().join(".")
    }
}

fn labels(name: &str) -> Vec<String> {
    name.trim_end_matches('.').split('.').filter(|label| !label.is_empty()).map(str::to_lowercase).collect()
}

/// The address whose name is asked for.
fn reverse(labels: &[String]) -> Option<IpAddr> {
    let texts: Vec<&str> = labels.iter().map(String::as_str).collect();
    match &texts[..] {
        [bytes @ .., "in-addr", "arpa"] if bytes.len() == 4 => {
            let text = bytes.iter().rev().copied().collect::<Vec<_>>().join(".");
            text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
        }
        [digits @ .., "ip6", "arpa"] if digits.len() == 32 => {
            let mut value = 0_u128;
            for digit in digits.iter().rev() {
                value = value << 4 | u128::from_str_radix(digit, 16).ok().filter(|d| *d < 16)?;
            }
            Some(Ipv6Addr::from_bits(value).into())
        }
        _ => None,
    }
}

/// An address with dashes in place of dots or colons.
fn dashed(text: &str) -> Option<IpAddr> {
    text.replace('-', ".").parse().or_else(|_| text.replace('-', ":").parse()).ok()
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

fn external_name(service: &Service) -> Option<String> {
    let spec = service.spec.as_ref()?;
    (spec.type_.as_deref() == Some("ExternalName")).then(|| spec.external_name.clone())?
}

fn own_addresses(service: &Service) -> BTreeSet<IpAddr> {
    let Some(spec) = &service.spec else { return BTreeSet::new() };
    let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    listed.filter_map(|text| text.parse().ok()).collect()
}

/// The endpoints that names lead to.
fn endpoints(known: &Known) -> impl Iterator<Item = (&EndpointSlice, &Endpoint)> {
    let all = known
        .slices
        .values()
        .flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (&**slice, endpoint)));
    all.filter(|(_, endpoint)| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    })
}

fn address(endpoint: &Endpoint) -> Option<IpAddr> {
    endpoint.addresses.first()?.parse().ok()
}

/// An endpoint's own label: its host name, or its address.
fn host_name(endpoint: &Endpoint) -> Option<String> {
    let named = endpoint.hostname.clone().filter(|name| !name.is_empty());
    named.or_else(|| Some(endpoint.addresses.first()?.replace(['.', ':'], "-")))
}

fn of_type(addresses: impl IntoIterator<Item = IpAddr>, of: Asked) -> Answer {
    let is_wanted = |address: &IpAddr| match of {
        Asked::A => address.is_ipv4(),
        Asked::Aaaa => address.is_ipv6(),
        Asked::Any => true,
        _ => false,
    };
    let wanted: Vec<Data> = addresses.into_iter().filter(is_wanted).map(Data::Address).collect();
    if wanted.is_empty() { Answer::NoData } else { Answer::Records(wanted, Vec::new()) }
}

#[cfg(test)]
mod tests;
