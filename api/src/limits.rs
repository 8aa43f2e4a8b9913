//! LimitRanges: what pods, containers and claims of a namespace get when they do not say, and the least and
//! most that they may ask for.
//!
//! Pure; the words are those of Kubernetes' LimitRanger. Missing requests and limits are filled in first, then
//! everything is held against the bounds.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::quantity::Quantity;

/// Where container limits are written down that nobody asked for.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

type Amounts = BTreeMap<String, Quantity>;

/// The amounts in a map of quantities.
pub fn amounts(value: &Value) -> Amounts {
    let members = value.as_object().into_iter().flatten();
    let read = members.filter_map(|(name, amount)| {
        let text = amount.as_str().map(str::to_owned).unwrap_or_else(|| amount.to_string());
        Some((name.clone(), Quantity::parse(&text).ok()?))
    });
    read.collect()
}

/// Every limit of one type in the ranges.
fn limits<'a>(ranges: &'a [Value], ty: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = ranges.iter().flat_map(|range| range["spec"]["limits"].as_array().into_iter().flatten());
    all.filter(move |limit| limit["type"] == ty)
}

/// Fills in what a pod's containers leave out.
pub fn default_pod(ranges: &[Value], pod: &mut Value) {
    let (mut requests, mut most) = (Map::new(), Map::new());
    for limit in limits(ranges, "Container") {
        for (from, into) in [("defaultRequest", &mut requests), ("default", &mut most)] {
            for (name, amount) in limit[from].as_object().into_iter().flatten() {
                into.insert(name.clone(), amount.clone());
            }
        }
    }
    if requests.is_empty() && most.is_empty() {
        return;
    }
    let mut notes = Vec::new();
    for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            let mut set = |field: &str, defaults: &Map<String, Value>| {
                let mut missing: Vec<&str> = Vec::new();
                for (resource, amount) in defaults {
                    if container["resources"][field].get(resource).is_some() {
                        continue;
                    }
                    if !container["resources"].is_object() {
                        container["resources"] = json!({});
                    }
                    container["resources"][field][resource] = amount.clone();
                    missing.push(resource);
                }
                if !missing.is_empty() {
                    let what = field.trim_end_matches('s');
                    notes.push(format!("{} {what} for {word} {name}", missing.join(", ")));
                }
            };
            set("requests", &requests);
            set("limits", &most);
        }
    }
    if !notes.is_empty() {
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        if !pod["metadata"]["annotations"].is_object() {
            pod["metadata"]["annotations"] = json!({});
        }
        pod["metadata"]["annotations"][ANNOTATION] = Value::from(text);
    }
}

/// Why a pod may not be created in a namespace with these ranges.
pub fn check_pod(ranges: &[Value], pod: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let lists = ["containers", "initContainers"];
    for limit in limits(ranges, "Container") {
        for container in lists.iter().flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten()) {
            let (requests, most) =
                (amounts(&container["resources"]["requests"]), amounts(&container["resources"]["limits"]));
            check(limit, "Container", &requests, &most, &mut problems);
        }
    }
    if limits(ranges, "Pod").next().is_some() {
        let (requests, most) = (pod_amounts(&pod["spec"], "requests"), pod_amounts(&pod["spec"], "limits"));
        for limit in limits(ranges, "Pod") {
            check(limit, "Pod", &requests, &most, &mut problems);
        }
    }
    problems
}

/// Why a claim may not be created in a namespace with these ranges.
pub fn check_claim(ranges: &[Value], claim: &Value) -> Vec<String> {
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    let mut problems = Vec::new();
    for limit in limits(ranges, "PersistentVolumeClaim") {
        for (name, least) in amounts(&limit["min"]) {
            below("PersistentVolumeClaim", &name, least, requests.get(&name), None, &mut problems);
        }
        for (name, most) in amounts(&limit["max"]) {
            if requests.get(&name).is_some_and(|asked| *asked > most) {
                let asked = requests[&name];
                problems.push(format!(
                    "maximum {name} usage per PersistentVolumeClaim is {most}, but request is {asked}"
                ));
            }
        }
    }
    problems
}

fn check(limit: &Value, ty: &str, requests: &Amounts, most: &Amounts, problems: &mut Vec<String>) {
    for (name, least) in amounts(&limit["min"]) {
        below(ty, &name, least, requests.get(&name), most.get(&name), problems);
    }
    for (name, bound) in amounts(&limit["max"]) {
        match (most.get(&name), requests.get(&name)) {
            (None, _) => {
                problems.push(format!("maximum {name} usage per {ty} is {bound}.  No limit is specified"));
            }
            (Some(own), _) if *own > bound => {
                problems.push(format!("maximum {name} usage per {ty} is {bound}, but limit is {own}"));
            }
            (_, Some(asked)) if *asked > bound => {
                problems.push(format!("maximum {name} usage per {ty} is {bound}, but request is {asked}"));
            }
            _ => {}
        }
    }
    for (name, ratio) in amounts(&limit["maxLimitRequestRatio"]) {
        let (Some(own), Some(asked)) = (most.get(&name), requests.get(&name)) else {
            problems.push(format!("{name} max limit to request ratio per {ty} is {ratio}, but no request is specified or request is 0"));
            continue;
        };
        if asked.is_zero() {
            problems.push(format!("{name} max limit to request ratio per {ty} is {ratio}, but no request is specified or request is 0"));
            continue;
        }
        let observed = own.milli_value() as f64 / asked.milli_value() as f64;
        if observed > ratio.milli_value() as f64 / 1000.0 {
            problems.push(format!(
                "{name} max limit to request ratio per {ty} is {ratio}, but provided ratio is {observed:.6}"
            ));
        }
    }
}

fn below(
    ty: &str,
    name: &str,
    least: Quantity,
    asked: Option<&Quantity>,
    own: Option<&Quantity>,
    problems: &mut Vec<String>,
) {
    match (asked, own) {
        (None, _) => {
            problems.push(format!("minimum {name} usage per {ty} is {least}.  No request is specified"))
        }
        (Some(asked), _) if *asked < least => {
            problems.push(format!("minimum {name} usage per {ty} is {least}, but request is {asked}"));
        }
        (_, Some(own)) if *own < least => {
            problems.push(format!("minimum {name} usage per {ty} is {least}, but limit is {own}"));
        }
        _ => {}
    }
}

/// What a pod asks for (`requests`) or is held to (`limits`): its containers together, or the greediest init
/// container beside the sidecars started before it, and its overhead.
pub fn pod_amounts(spec: &Value, field: &str) -> Amounts {
    let of = |container: &Value| amounts(&container["resources"][field]);
    let add = |into: &mut Amounts, from: &Amounts| {
        for (name, amount) in from {
            *into.entry(name.clone()).or_insert(Quantity::from_millis(0)) += *amount;
        }
    };
    let mut total = Amounts::new();
    for container in spec["containers"].as_array().into_iter().flatten() {
        add(&mut total, &of(container));
    }
    let (mut sidecars, mut greediest) = (Amounts::new(), Amounts::new());
    for container in spec["initContainers"].as_array().into_iter().flatten() {
        let mut own = of(container);
        let is_sidecar = container["restartPolicy"] == "Always";
        if is_sidecar {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            add(&mut own, &sidecars);
        }
        for (name, amount) in own {
            let most = greediest.entry(name).or_insert(amount);
            *most = (*most).max(amount);
        }
    }
    for (name, amount) in greediest {
        let own = total.entry(name).or_insert(amount);
        *own = (*own).max(amount);
    }
    if field == "requests" || !total.is_empty() {
        add(&mut total, &amounts(&spec["overhead"]));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(limit: Value) -> Vec<Value> {
        vec![json!({"spec": {"limits": [limit]}})]
    }

    fn pod(resources: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn defaults_fill_what_is_missing_and_say_so() {
        let ranges = ranges(json!({"type": "Container", "default": {"cpu": "500m"},
            "defaultRequest": {"cpu": "250m", "memory": "1Gi"}}));
        let mut pod = pod(json!({"requests": {"memory": "2Gi"}}));
        default_pod(&ranges, &mut pod);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"requests": {"cpu": "250m", "memory": "2Gi"}, "limits": {"cpu": "500m"}})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
        );
    }

    #[test]
    fn bounds_are_told_in_kubernetes_words() {
        for (limit, resources, wanted) in [
            (
                json!({"max": {"cpu": "1"}}),
                json!({}),
                "maximum cpu usage per Container is 1.  No limit is specified",
            ),
            (
                json!({"max": {"cpu": "1"}}),
                json!({"limits": {"cpu": "2"}}),
                "maximum cpu usage per Container is 1, but limit is 2",
            ),
            (
                json!({"min": {"cpu": "1"}}),
                json!({"requests": {"cpu": "500m"}}),
                "minimum cpu usage per Container is 1, but request is 500m",
            ),
            (
                json!({"maxLimitRequestRatio": {"cpu": "2"}}),
                json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}}),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 10.000000",
            ),
        ] {
            let mut limit = limit;
            limit["type"] = json!("Container");
            assert_eq!(check_pod(&ranges(limit), &pod(resources)), [wanted]);
        }
        let ranges = ranges(json!({"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}));
        let claim = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
        assert_eq!(
            check_claim(&ranges, &claim),
            ["maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"]
        );
    }

    #[test]
    fn a_pod_asks_for_its_containers_or_its_greediest_init_container() {
        let container = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = container("1");
        sidecar["restartPolicy"] = json!("Always");
        let spec = json!({"containers": [container("1"), container("2")],
            "initContainers": [sidecar, container("5")], "overhead": {"cpu": "100m"}});
        assert_eq!(pod_amounts(&spec, "requests")["cpu"], Quantity::parse("6100m").expect("a quantity"));
    }
}
