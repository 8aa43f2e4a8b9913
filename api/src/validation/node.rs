//! Validation of nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;
use serde_json::Value;

use super::{affinity, invalid_each, resources};
use crate::name;
use crate::status::Cause;

pub(super) fn check(node: &Node, causes: &mut Vec<Cause>) {
    if let Some(spec) = &node.spec {
        let mut seen = BTreeSet::new();
        for (index, taint) in spec.taints.iter().flatten().enumerate() {
            let path = format!("spec.taints[{index}]");
            invalid_each(&format!("{path}.key"), &taint.key, name::qualified_name(&taint.key), causes);
            let value = taint.value.as_deref().unwrap_or("");
            invalid_each(&format!("{path}.value"), value, name::label_value(value), causes);
            affinity::effect(&format!("{path}.effect"), &taint.effect, false, causes);
            if !seen.insert((taint.key.as_str(), taint.effect.as_str())) {
                let twin = format!("{}={value}:{}", taint.key, taint.effect);
                causes.push(Cause::duplicate(path, twin));
            }
        }
        for (index, range) in spec.pod_cidrs.iter().flatten().enumerate() {
            if !is_cidr(range) {
                causes.push(Cause::invalid(
                    format!("spec.podCIDRs[{index}]"),
                    range.as_str(),
                    "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                ));
            }
        }
        let first = spec.pod_cidrs.as_ref().and_then(|c| c.first());
        if let (Some(one), Some(first)) = (&spec.pod_cidr, first)
            && one != first
        {
            causes.push(Cause::invalid("spec.podCIDR", one.as_str(), "must be the first of `podCIDRs`"));
        }
    }
    if let Some(status) = &node.status {
        for (list, amounts) in [("capacity", &status.capacity), ("allocatable", &status.allocatable)] {
            for (resource, amount) in amounts.iter().flatten() {
                let field = format!("status.{list}.{resource}");
                invalid_each(&field, resource, name::qualified_name(resource), causes);
                resources::quantity_at(&field, resource, amount, causes);
            }
        }
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let (Ok(address), Ok(bits)) = (address.parse::<IpAddr>(), bits.parse::<u8>()) else { return false };
    bits <= if address.is_ipv4() { 32 } else { 128 }
}

pub(super) fn update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let at =
        |node: &Value, pointer: &str| node.pointer(pointer).filter(|v| !v.is_null() && **v != "").cloned();
    for (pointer, field, text) in [
        ("/spec/podCIDRs", "spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid"),
        (
            "/spec/providerID",
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ),
    ] {
        let before = at(old, pointer);
        if before.is_some() && before != at(new, pointer) {
            causes.push(Cause::forbidden(field, text));
        }
    }
}
