//! Quality of service: how a pod fares when its node runs short.
//!
//! Owns the class that a pod's requests and limits add up to.

use serde_json::Value;

use crate::quantity::Quantity;

/// A pod's class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QosClass {
    /// Every container is limited in CPU and memory and requests as much.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl QosClass {
    /// The text in `status.qosClass`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// The class of a pod held as JSON.
    pub fn of(pod: &Value) -> Self {
        let mut any = false;
        let mut guaranteed = true;
        let mut containers = 0;
        for list in ["/spec/initContainers", "/spec/containers"] {
            for container in pod.pointer(list).and_then(Value::as_array).into_iter().flatten() {
                containers += 1;
                for resource in ["cpu", "memory"] {
                    let limit = amount(container, "limits", resource);
                    let request = amount(container, "requests", resource);
                    any |= limit.is_some() || request.is_some();
                    guaranteed &= limit.is_some() && (request.is_none() || request == limit);
                }
            }
        }
        match (any, guaranteed && containers > 0) {
            (false, _) => Self::BestEffort,
            (true, true) => Self::Guaranteed,
            (true, false) => Self::Burstable,
        }
    }
}

/// A positive amount; zero counts as not set.
fn amount(container: &Value, list: &str, resource: &str) -> Option<Quantity> {
    let value = container.get("resources")?.get(list)?.get(resource)?;
    Quantity::parse(value.as_str()?).ok().filter(|q| *q > Quantity::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_class_follows_requests_and_limits() {
        let class = |resources: Value| {
            QosClass::of(&json!({"spec": {"containers": [{"resources": resources}]}})).as_str()
        };
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "0"}})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(class(json!({"limits": {"cpu": "1"}})), "Burstable");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
        let equal = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}});
        assert_eq!(class(equal), "Guaranteed");
        let less =
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Mi"}});
        assert_eq!(class(less), "Burstable");
    }

    #[test]
    fn every_container_counts() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let pod = json!({"spec": {"initContainers": [{}], "containers": [{"resources": full}]}});
        assert_eq!(QosClass::of(&pod), QosClass::Burstable);
    }
}
