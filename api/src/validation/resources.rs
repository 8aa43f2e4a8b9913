//! Validation of resource amounts.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as TypedQuantity;

use super::invalid_each;
use crate::name;
use crate::quantity::Quantity;
use crate::status::Cause;

type List = BTreeMap<String, TypedQuantity>;

const STANDARD: &[&str] = &["cpu", "memory", "ephemeral-storage"];
const HUGE_PAGES: &str = "hugepages-";

fn is_native(resource: &str) -> bool {
    !resource.contains('/') || resource.contains("kubernetes.io/")
}

/// Whether a request may stay below its limit.
fn may_overcommit(resource: &str) -> bool {
    is_native(resource) && !resource.starts_with(HUGE_PAGES)
}

/// Requests and limits of one container.
pub(super) fn requirements(path: &str, resources: &ResourceRequirements, causes: &mut Vec<Cause>) {
    let empty = List::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    for (resource, quantity) in limits {
        amount(&format!("{path}.limits[{resource}]"), resource, quantity, causes);
    }
    for (resource, quantity) in requests {
        amount(&format!("{path}.requests[{resource}]"), resource, quantity, causes);
        let field = format!("{path}.requests");
        let Ok(request) = Quantity::try_from(quantity) else { continue };
        match limits.get(resource).and_then(|l| Quantity::try_from(l).ok()) {
            Some(limit) if request > limit => causes.push(Cause::invalid(
                field,
                request.to_string(),
                &format!("must be less than or equal to {resource} limit of {limit}"),
            )),
            Some(limit) if request != limit && !may_overcommit(resource) => causes.push(Cause::invalid(
                field,
                request.to_string(),
                &format!("must be equal to {resource} limit of {limit}"),
            )),
            None if !may_overcommit(resource) => causes.push(Cause::required(
                format!("{path}.limits"),
                "Limit must be set for non overcommitable resources",
            )),
            _ => {}
        }
    }
}

fn amount(field: &str, resource: &str, quantity: &TypedQuantity, causes: &mut Vec<Cause>) {
    invalid_each(field, resource, name::qualified_name(resource), causes);
    if !resource.contains('/') && !STANDARD.contains(&resource) && !resource.starts_with(HUGE_PAGES) {
        causes.push(Cause::invalid(field, resource, "must be a standard resource type or fully qualified"));
        causes.push(Cause::invalid(field, resource, "must be a standard resource for containers"));
    }
    quantity_at(field, resource, quantity, causes);
}

/// A quantity that may not be negative, and whole where the resource cannot be divided.
pub(super) fn quantity_at(field: &str, resource: &str, quantity: &TypedQuantity, causes: &mut Vec<Cause>) {
    match Quantity::try_from(quantity) {
        Err(error) => causes.push(Cause::invalid(field, quantity.0.as_str(), &error.to_string())),
        Ok(amount) if amount.is_negative() => {
            causes.push(Cause::invalid(field, amount.to_string(), "must be greater than or equal to 0"));
        }
        Ok(amount) if !is_native(resource) && !amount.is_integer() => {
            causes.push(Cause::invalid(field, amount.to_string(), "must be an integer"));
        }
        Ok(_) => {}
    }
}
