//! Validation of Ingresses, of their classes and of NetworkPolicies.

use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, IPBlock, Ingress, IngressBackend, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::service::is_cidr;
use super::{invalid_each, one_of};
use crate::name;
use crate::selector::LabelSelector;
use crate::status::Cause;

pub(super) fn ingress(ingress: &Ingress, causes: &mut Vec<Cause>) {
    let Some(spec) = &ingress.spec else { return };
    let rules = spec.rules.as_deref().unwrap_or_default();
    if rules.is_empty() && spec.default_backend.is_none() {
        let why = "either `defaultBackend` or `rules` must be specified";
        causes.push(Cause::invalid("spec", json!([]), why));
    }
    if let Some(class) = spec.ingress_class_name.as_deref() {
        invalid_each("spec.ingressClassName", class, name::dns1123_subdomain(class), causes);
    }
    if let Some(one) = &spec.default_backend {
        backend("spec.defaultBackend", one, causes);
    }
    for (index, rule) in rules.iter().enumerate() {
        if let Some(text) = rule.host.as_deref() {
            host(&format!("spec.rules[{index}].host"), text, causes);
        }
        let Some(http) = &rule.http else { continue };
        let path = format!("spec.rules[{index}].http.paths");
        if http.paths.is_empty() {
            causes.push(Cause::required(path.clone(), ""));
        }
        for (number, one) in http.paths.iter().enumerate() {
            ingress_path(&format!("{path}[{number}]"), one, causes);
        }
    }
    for (index, tls) in spec.tls.iter().flatten().enumerate() {
        for (number, text) in tls.hosts.iter().flatten().enumerate() {
            host(&format!("spec.tls[{index}].hosts[{number}]"), text, causes);
        }
        if let Some(secret) = tls.secret_name.as_deref().filter(|name| !name.is_empty()) {
            let field = format!("spec.tls[{index}].secretName");
            invalid_each(&field, secret, name::dns1123_subdomain(secret), causes);
        }
    }
}

/// A host's name, whose first label may be a star.
fn host(field: &str, text: &str, causes: &mut Vec<Cause>) {
    if text.is_empty() {
        return;
    }
    if text.parse::<IpAddr>().is_ok() {
        causes.push(Cause::invalid(field, text, "must be a DNS name, not an IP address"));
        return;
    }
    invalid_each(field, text, name::dns1123_subdomain(text.strip_prefix("*.").unwrap_or(text)), causes);
}

fn ingress_path(field: &str, path: &HTTPIngressPath, causes: &mut Vec<Cause>) {
    let text = path.path.as_deref().unwrap_or_default();
    match path.path_type.as_str() {
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                causes.push(Cause::invalid(format!("{field}.path"), text, "must be an absolute path"));
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"] {
                if text.contains(part) {
                    let why = format!("must not contain '{part}'");
                    causes.push(Cause::invalid(format!("{field}.path"), text, &why));
                }
            }
            for end in ["/..", "/."] {
                if text.ends_with(end) {
                    let why = format!("cannot end with '{end}'");
                    causes.push(Cause::invalid(format!("{field}.path"), text, &why));
                }
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !text.starts_with('/') {
                causes.push(Cause::invalid(format!("{field}.path"), text, "must be an absolute path"));
            }
        }
        "" => causes.push(Cause::required(format!("{field}.pathType"), "pathType must be specified")),
        other => {
            let known = ["Exact", "ImplementationSpecific", "Prefix"];
            causes.push(Cause::not_supported(format!("{field}.pathType"), other, &known));
        }
    }
    backend(&format!("{field}.backend"), &path.backend, causes);
}

fn backend(field: &str, backend: &IngressBackend, causes: &mut Vec<Cause>) {
    match (&backend.service, &backend.resource) {
        (None, None) => {
            causes.push(Cause::required(field, "resource or service backend is required"));
        }
        (Some(_), Some(_)) => {
            let why = "cannot set both resource and service backends";
            causes.push(Cause::invalid(field, "", why));
        }
        (Some(service), None) => {
            if service.name.is_empty() {
                causes.push(Cause::required(format!("{field}.service.name"), ""));
            } else {
                let at = format!("{field}.service.name");
                invalid_each(&at, &service.name, name::dns1035_label(&service.name), causes);
            }
            let port = service.port.clone().unwrap_or_default();
            let at = format!("{field}.service.port");
            match (port.name.as_deref().filter(|name| !name.is_empty()), port.number.filter(|n| *n != 0)) {
                (None, None) => causes.push(Cause::required(at, "port name or number is required")),
                (Some(_), Some(_)) => {
                    causes.push(Cause::invalid(at, "", "cannot set both port name & port number"));
                }
                (Some(text), None) => {
                    invalid_each(&format!("{at}.name"), text, name::port_name(text), causes)
                }
                (None, Some(number)) => {
                    let whys = name::port_number(number.into());
                    causes.extend(whys.iter().map(|why| Cause::invalid(format!("{at}.number"), number, why)));
                }
            }
        }
        (None, Some(_)) => {}
    }
}

pub(super) fn ingress_class(object: &Value, causes: &mut Vec<Cause>) {
    let controller = object["spec"]["controller"].as_str().unwrap_or_default();
    let has_domain = controller
        .split_once('/')
        .is_some_and(|(domain, path)| name::dns1123_subdomain(domain).is_empty() && !path.is_empty());
    if controller.is_empty() {
        causes.push(Cause::required("spec.controller", ""));
    } else if !has_domain {
        let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        causes.push(Cause::invalid("spec.controller", controller, why));
    }
}

/// Who answers for a class stays.
pub(super) fn ingress_class_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let (before, after) = (&old["spec"]["controller"], &new["spec"]["controller"]);
    if before != after {
        causes.push(Cause::invalid("spec.controller", after.clone(), "field is immutable"));
    }
}

pub(super) fn policy(policy: &NetworkPolicy, causes: &mut Vec<Cause>) {
    let Some(spec) = &policy.spec else { return };
    selector("spec.podSelector", spec.pod_selector.as_ref(), causes);
    for (index, rule) in spec.ingress.iter().flatten().enumerate() {
        ports(&format!("spec.ingress[{index}]"), rule.ports.as_deref(), causes);
        peers(&format!("spec.ingress[{index}].from"), rule.from.as_deref(), causes);
    }
    for (index, rule) in spec.egress.iter().flatten().enumerate() {
        ports(&format!("spec.egress[{index}]"), rule.ports.as_deref(), causes);
        peers(&format!("spec.egress[{index}].to"), rule.to.as_deref(), causes);
    }
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.len() > 2 {
        let why = "may not specify more than two policyTypes";
        causes.push(Cause::invalid("spec.policyTypes", json!(types), why));
    }
    for (index, text) in types.iter().enumerate() {
        one_of(&format!("spec.policyTypes[{index}]"), text, &["Egress", "Ingress"], causes);
    }
}

fn selector(field: &str, selector: Option<&meta::LabelSelector>, causes: &mut Vec<Cause>) {
    if let Err(why) = LabelSelector::from_typed(selector) {
        causes.push(Cause::invalid(field, json!(selector), &why));
    }
}

fn ports(path: &str, ports: Option<&[NetworkPolicyPort]>, causes: &mut Vec<Cause>) {
    for (index, port) in ports.unwrap_or_default().iter().enumerate() {
        let at = |field: &str| format!("{path}.ports[{index}].{field}");
        let protocol = port.protocol.as_deref().unwrap_or_default();
        one_of(&at("protocol"), protocol, &["SCTP", "TCP", "UDP"], causes);
        match (&port.port, port.end_port) {
            (Some(IntOrString::Int(number)), end) => {
                let whys = name::port_number((*number).into());
                causes.extend(whys.iter().map(|why| Cause::invalid(at("port"), *number, why)));
                if let Some(end) = end.filter(|end| end < number) {
                    causes.push(Cause::invalid(
                        at("endPort"),
                        end,
                        "must be greater than or equal to `port`",
                    ));
                }
            }
            (Some(IntOrString::String(text)), end) => {
                invalid_each(&at("port"), text, name::port_name(text), causes);
                if let Some(end) = end {
                    let why = "may not be specified when `port` is non-numeric";
                    causes.push(Cause::invalid(at("endPort"), end, why));
                }
            }
            (None, Some(end)) => {
                causes.push(Cause::invalid(
                    at("endPort"),
                    end,
                    "may not be specified when `port` is not specified",
                ));
            }
            (None, None) => {}
        }
    }
}

fn peers(path: &str, peers: Option<&[NetworkPolicyPeer]>, causes: &mut Vec<Cause>) {
    for (index, peer) in peers.unwrap_or_default().iter().enumerate() {
        let field = format!("{path}[{index}]");
        selector(&format!("{field}.podSelector"), peer.pod_selector.as_ref(), causes);
        selector(&format!("{field}.namespaceSelector"), peer.namespace_selector.as_ref(), causes);
        let selects = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
        match &peer.ip_block {
            None if !selects => causes.push(Cause::required(field, "must specify a peer")),
            None => {}
            Some(_) if selects => {
                let why = "may not specify both ipBlock and another peer";
                causes.push(Cause::forbidden(field, why));
            }
            Some(block) => ip_block(&format!("{field}.ipBlock"), block, causes),
        }
    }
}

fn ip_block(field: &str, block: &IPBlock, causes: &mut Vec<Cause>) {
    let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    if block.cidr.is_empty() {
        return causes.push(Cause::required(format!("{field}.cidr"), ""));
    }
    if !is_cidr(&block.cidr) {
        return causes.push(Cause::invalid(format!("{field}.cidr"), block.cidr.as_str(), why));
    }
    for (index, except) in block.except.iter().flatten().enumerate() {
        let at = format!("{field}.except[{index}]");
        if !is_cidr(except) {
            causes.push(Cause::invalid(at, except.as_str(), why));
        } else if !contains(&block.cidr, except) {
            let why = "must be a strict subset of `cidr`";
            causes.push(Cause::invalid(at, except.as_str(), why));
        }
    }
}

/// Whether the second range lies in the first and is smaller.
fn contains(outer: &str, inner: &str) -> bool {
    let parse = |text: &str| -> Option<(u128, u32, bool)> {
        let (address, length) = text.split_once('/')?;
        let length: u32 = length.parse().ok()?;
        match address.parse().ok()? {
            IpAddr::V4(v4) => Some((u128::from(v4.to_bits()) << 96, length, true)),
            IpAddr::V6(v6) => Some((v6.to_bits(), length, false)),
        }
    };
    let (Some(outer), Some(inner)) = (parse(outer), parse(inner)) else { return false };
    let mask = u128::MAX.checked_shl(128 - outer.1).unwrap_or(0);
    outer.2 == inner.2 && inner.1 > outer.1 && (outer.0 & mask) == (inner.0 & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_contain_what_is_strictly_smaller() {
        for (outer, inner, expected) in [
            ("10.0.0.0/8", "10.1.0.0/16", true),
            ("10.0.0.0/8", "10.0.0.0/8", false),
            ("10.0.0.0/8", "11.0.0.0/16", false),
            ("0.0.0.0/0", "10.0.0.0/8", true),
            ("::/0", "10.0.0.0/8", false),
            ("2001:db8::/32", "2001:db8:1::/48", true),
        ] {
            assert_eq!(contains(outer, inner), expected, "{outer} {inner}");
        }
    }
}
