//! Services: what belongs to a type goes with it.

use serde_json::{Value, json};

use super::{Strategy, copy};

pub(super) struct ServiceStrategy;

impl Strategy for ServiceStrategy {
    fn prepare_update(&self, old: &Value, new: &mut Value) {
        copy(old, new, "status");
        // Its address is another's to have from now on.
        if old["spec"]["type"] == "LoadBalancer" && new["spec"]["type"] != "LoadBalancer" {
            new["status"]["loadBalancer"] = json!({});
        }
        let kind = new["spec"]["type"].as_str().unwrap_or("ClusterIP").to_owned();
        let is_external = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
        let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return };
        let has_external =
            spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
        // Only what nobody touched: a wish that makes no sense is for validation to refuse.
        let mut drop_unless = |field: &str, fits: bool| {
            if !fits && spec.get(field) == old["spec"].get(field) {
                spec.remove(field);
            }
        };
        drop_unless("externalTrafficPolicy", is_external || (kind == "ClusterIP" && has_external));
        drop_unless("internalTrafficPolicy", kind != "ExternalName");
        drop_unless("externalName", kind == "ExternalName");
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass", "healthCheckNodePort"] {
            drop_unless(field, kind == "LoadBalancer");
        }
    }
}
