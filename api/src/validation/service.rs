//! Validation of Services and of what stands behind them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Endpoints, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};

use super::{invalid_each, metadata, one_of};
use crate::name;
use crate::status::Cause;

/// What stands for a service without an address of its own.
const HEADLESS: &str = "None";
/// Most seconds that a client may keep its backend.
const AFFINITY_S_MAX: i64 = 24 * 60 * 60;
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const FAMILIES: &[&str] = &["IPv4", "IPv6"];
/// Most endpoints of one slice.
const ENDPOINTS_MAX: usize = 1000;
/// Most addresses of one endpoint.
const ADDRESSES_MAX: usize = 100;
/// Most ports of one slice.
const PORTS_MAX: usize = 20_000;

pub(super) fn check(service: &Service, causes: &mut Vec<Cause>) {
    let spec = service.spec.clone().unwrap_or_default();
    let kind = spec.type_.as_deref().unwrap_or_default();
    one_of("spec.type", kind, TYPES, causes);
    one_of(
        "spec.sessionAffinity",
        spec.session_affinity.as_deref().unwrap_or_default(),
        &["ClientIP", "None"],
        causes,
    );
    let cluster_ips = spec.cluster_ips.clone().unwrap_or_default();
    let is_headless = cluster_ips.first().is_some_and(|ip| ip == HEADLESS);
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && !is_headless && kind != "ExternalName" {
        causes.push(Cause::required("spec.ports", ""));
    }
    if kind == "LoadBalancer" && is_headless {
        causes.push(Cause::invalid(
            "spec.clusterIPs[0]",
            HEADLESS,
            "may not be set to 'None' for LoadBalancer services",
        ));
    }
    if kind == "NodePort" && is_headless {
        causes.push(Cause::invalid(
            "spec.clusterIPs[0]",
            HEADLESS,
            "may not be set to 'None' for NodePort services",
        ));
    }
    if kind == "ExternalName" {
        external_name(&spec, &cluster_ips, causes);
    }
    check_ports(ports, &PortRules { is_named: ports.len() > 1, kind }, causes);
    if let Some(selector) = &spec.selector {
        let labels: Map<String, Value> =
            selector.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect();
        metadata::labels("spec.selector", &labels, causes);
    }
    addresses(&spec, &cluster_ips, causes);
    policies(&spec, kind, causes);
}

fn external_name(spec: &ServiceSpec, cluster_ips: &[String], causes: &mut Vec<Cause>) {
    if !cluster_ips.is_empty() {
        let why = "may not be set for ExternalName services";
        causes.push(Cause::forbidden("spec.clusterIPs", why));
    }
    let name = spec.external_name.as_deref().unwrap_or_default();
    if name.is_empty() {
        causes.push(Cause::required("spec.externalName", ""));
    } else {
        invalid_each("spec.externalName", name, name::dns1123_subdomain(name.trim_end_matches('.')), causes);
    }
}

struct PortRules<'a> {
    /// Whether every port needs a name.
    is_named: bool,
    kind: &'a str,
}

fn check_ports(ports: &[ServicePort], rules: &PortRules<'_>, causes: &mut Vec<Cause>) {
    let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let at = |field: &str| format!("spec.ports[{index}].{field}");
        let own = port.name.as_deref().unwrap_or_default();
        if own.is_empty() {
            if rules.is_named {
                causes.push(Cause::required(at("name"), ""));
            }
        } else {
            invalid_each(&at("name"), own, name::dns1123_label(own), causes);
            if !names.insert(own) {
                causes.push(Cause::duplicate(at("name"), own));
            }
        }
        invalid_each_number(&at("port"), port.port, causes);
        let protocol = port.protocol.as_deref().unwrap_or_default();
        one_of(&at("protocol"), protocol, PROTOCOLS, causes);
        match &port.target_port {
            Some(IntOrString::Int(number)) => invalid_each_number(&at("targetPort"), *number, causes),
            Some(IntOrString::String(text)) => {
                invalid_each(&at("targetPort"), text, name::port_name(text), causes);
            }
            None => {}
        }
        if !numbers.insert((protocol, port.port)) {
            causes.push(Cause::duplicate(
                format!("spec.ports[{index}]"),
                json!({"port": port.port, "protocol": protocol}),
            ));
        }
        let Some(node_port) = port.node_port.filter(|port| *port != 0) else { continue };
        if !matches!(rules.kind, "NodePort" | "LoadBalancer") {
            let why = format!("may not be used when `type` is '{}'", rules.kind);
            causes.push(Cause::forbidden(at("nodePort"), &why));
        } else if !node_ports.insert((protocol, node_port)) {
            causes.push(Cause::duplicate(at("nodePort"), node_port));
        }
    }
}

fn invalid_each_number(field: &str, port: i32, causes: &mut Vec<Cause>) {
    causes.extend(name::port_number(port.into()).iter().map(|why| Cause::invalid(field, port, why)));
}

fn addresses(spec: &ServiceSpec, cluster_ips: &[String], causes: &mut Vec<Cause>) {
    if let (Some(first), Some(one)) = (cluster_ips.first(), spec.cluster_ip.as_ref())
        && first != one
    {
        causes.push(Cause::invalid("spec.clusterIPs[0]", first.as_str(), "must be equal to `clusterIP`"));
    }
    for (index, ip) in cluster_ips.iter().enumerate().filter(|(_, ip)| *ip != HEADLESS) {
        ip_address(&format!("spec.clusterIPs[{index}]"), ip, causes);
    }
    if cluster_ips.len() > 2 {
        causes.push(Cause::invalid("spec.clusterIPs", json!(cluster_ips), "may only hold up to 2 values"));
    }
    for (index, ip) in spec.external_ips.iter().flatten().enumerate() {
        ip_address(&format!("spec.externalIPs[{index}]"), ip, causes);
    }
    for (index, family) in spec.ip_families.iter().flatten().enumerate() {
        one_of(&format!("spec.ipFamilies[{index}]"), family, FAMILIES, causes);
    }
    if let Some(policy) = spec.ip_family_policy.as_deref() {
        one_of(
            "spec.ipFamilyPolicy",
            policy,
            &["PreferDualStack", "RequireDualStack", "SingleStack"],
            causes,
        );
    }
    let ranges = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    if !ranges.is_empty() && spec.type_.as_deref() != Some("LoadBalancer") {
        let why = "may only be used when `type` is 'LoadBalancer'";
        causes.push(Cause::forbidden("spec.LoadBalancerSourceRanges", why));
    }
    for (index, range) in ranges.iter().enumerate() {
        if !is_cidr(range.trim()) {
            let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            causes.push(Cause::invalid(
                format!("spec.loadBalancerSourceRanges[{index}]"),
                range.as_str(),
                why,
            ));
        }
    }
}

fn policies(spec: &ServiceSpec, kind: &str, causes: &mut Vec<Cause>) {
    let seconds = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    if let Some(seconds) = seconds.and_then(|client| client.timeout_seconds)
        && !(1..=AFFINITY_S_MAX).contains(&i64::from(seconds))
    {
        let why = format!("must be greater than 0 and less than {AFFINITY_S_MAX}");
        causes.push(Cause::invalid("spec.sessionAffinityConfig.clientIP.timeoutSeconds", seconds, &why));
    }
    let both = ["Cluster", "Local"];
    let has_external = spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    let is_external = matches!(kind, "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && has_external);
    if let Some(policy) = spec.external_traffic_policy.as_deref().filter(|policy| !policy.is_empty()) {
        if is_external {
            one_of("spec.externalTrafficPolicy", policy, &both, causes);
        } else {
            let why = "may only be set for externally-accessible services";
            causes.push(Cause::invalid("spec.externalTrafficPolicy", policy, why));
        }
    }
    if let Some(policy) = spec.internal_traffic_policy.as_deref() {
        one_of("spec.internalTrafficPolicy", policy, &both, causes);
    }
    if let Some(class) = spec.load_balancer_class.as_deref() {
        invalid_each("spec.loadBalancerClass", class, name::qualified_name(class), causes);
        if kind != "LoadBalancer" {
            let why = "may only be used when `type` is 'LoadBalancer'";
            causes.push(Cause::forbidden("spec.loadBalancerClass", why));
        }
    }
}

/// What a service may not change while it is of a type that has addresses.
pub(super) fn update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let external = |service: &Value| service["spec"]["type"] == "ExternalName";
    let ip = |service: &Value| service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    if !external(old) && !external(new) && !ip(old).is_empty() && ip(old) != ip(new) {
        causes.push(Cause::invalid("spec.clusterIPs[0]", ip(new), "may not change once set"));
    }
}

pub(super) fn ip_address(field: &str, text: &str, causes: &mut Vec<Cause>) {
    if text.parse::<IpAddr>().is_err() {
        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        causes.push(Cause::invalid(field, text, why));
    }
}

/// Whether the text is an address and the length of a prefix.
pub(super) fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let most = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.parse::<u8>().is_ok_and(|length| length <= most)
}

pub(super) fn endpoints(endpoints: &Endpoints, causes: &mut Vec<Cause>) {
    for (index, subset) in endpoints.subsets.iter().flatten().enumerate() {
        let at = |field: &str| format!("subsets[{index}].{field}");
        let ready = subset.addresses.as_deref().unwrap_or_default();
        let others = subset.not_ready_addresses.as_deref().unwrap_or_default();
        if ready.is_empty() && others.is_empty() {
            let why = "must specify `addresses` or `notReadyAddresses`";
            causes.push(Cause::required(format!("subsets[{index}]"), why));
        }
        for (list, addresses) in [("addresses", ready), ("notReadyAddresses", others)] {
            for (number, address) in addresses.iter().enumerate() {
                endpoint_address(&at(&format!("{list}[{number}].ip")), &address.ip, causes);
            }
        }
        let ports = subset.ports.as_deref().unwrap_or_default();
        for (number, port) in ports.iter().enumerate() {
            let own = port.name.as_deref().unwrap_or_default();
            if own.is_empty() && ports.len() > 1 {
                causes.push(Cause::required(at(&format!("ports[{number}].name")), ""));
            }
            invalid_each_number(&at(&format!("ports[{number}].port")), port.port, causes);
            let protocol = port.protocol.as_deref().unwrap_or_default();
            one_of(&at(&format!("ports[{number}].protocol")), protocol, PROTOCOLS, causes);
        }
    }
}

/// An address that can be a backend: nobody's own, and no group's.
fn endpoint_address(field: &str, text: &str, causes: &mut Vec<Cause>) {
    let Ok(address) = text.parse::<IpAddr>() else { return ip_address(field, text, causes) };
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let why = match address {
        _ if address.is_unspecified() => format!("may not be unspecified ({address})"),
        _ if address.is_loopback() => "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned(),
        _ if link_local => "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned(),
        _ if address.is_multicast() => "may not be in the multicast range (224.0.0.0/4, ff00::/8)".to_owned(),
        _ => return,
    };
    causes.push(Cause::invalid(field, text, &why));
}

pub(super) fn slice(slice: &EndpointSlice, causes: &mut Vec<Cause>) {
    one_of("addressType", &slice.address_type, &["FQDN", "IPv4", "IPv6"], causes);
    if slice.endpoints.len() > ENDPOINTS_MAX {
        causes.push(Cause::too_many("endpoints", slice.endpoints.len(), ENDPOINTS_MAX));
    }
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        let at = |field: &str| format!("endpoints[{index}].{field}");
        if endpoint.addresses.is_empty() {
            causes.push(Cause::required(at("addresses"), "must contain at least 1 address"));
        } else if endpoint.addresses.len() > ADDRESSES_MAX {
            causes.push(Cause::too_many(at("addresses"), endpoint.addresses.len(), ADDRESSES_MAX));
        }
        for (number, address) in endpoint.addresses.iter().enumerate() {
            let field = at(&format!("addresses[{number}]"));
            let parsed = address.parse::<IpAddr>().ok();
            match slice.address_type.as_str() {
                "FQDN" => invalid_each(&field, address, name::dns1123_subdomain(address), causes),
                "IPv4" if !parsed.is_some_and(|ip| ip.is_ipv4()) => {
                    causes.push(Cause::invalid(field, address.as_str(), "must be a valid IPv4 address"));
                }
                "IPv6" if !parsed.is_some_and(|ip| ip.is_ipv6()) => {
                    causes.push(Cause::invalid(field, address.as_str(), "must be a valid IPv6 address"));
                }
                _ => endpoint_address(&field, address, causes),
            }
        }
    }
    let ports = slice.ports.as_deref().unwrap_or_default();
    if ports.len() > PORTS_MAX {
        causes.push(Cause::too_many("ports", ports.len(), PORTS_MAX));
    }
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let own = port.name.as_deref().unwrap_or_default();
        if !own.is_empty() {
            invalid_each(&format!("ports[{index}].name"), own, name::dns1123_label(own), causes);
        }
        if !names.insert(own) {
            causes.push(Cause::duplicate(format!("ports[{index}].name"), own));
        }
        let protocol = port.protocol.as_deref().unwrap_or_default();
        one_of(&format!("ports[{index}].protocol"), protocol, PROTOCOLS, causes);
    }
}

/// What a slice is for stays.
pub(super) fn slice_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if old["addressType"] != new["addressType"] {
        causes.push(Cause::invalid("addressType", new["addressType"].clone(), "field is immutable"));
    }
}
