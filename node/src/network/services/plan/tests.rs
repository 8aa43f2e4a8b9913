use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

fn facts() -> NodeFacts {
    NodeFacts { node_name: "n1".to_owned(), cluster_dns: vec!["10.96.0.10".parse().unwrap()] }
}

/// An endpoint on a node: ready, draining or neither.
fn endpoint(last: u8, node: &str, state: &str) -> Value {
    json!({"addresses": [format!("10.244.0.{last}")], "nodeName": node, "conditions": {
        "ready": state == "ready", "serving": state != "not ready", "terminating": state == "draining"}})
}

fn known(spec: Value, endpoints: Vec<Value>) -> Known {
    let mut service = json!({"metadata": {"name": "s", "namespace": "d"}, "spec": {
        "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": [{"port": 80, "targetPort": 8080}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        match key.as_str() {
            "status" => service["status"] = value.clone(),
            key => service["spec"][key] = value.clone(),
        }
    }
    let slice = json!({"metadata": {"name": "e", "namespace": "d"}, "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints});
    Known {
        service: Some(Arc::new(serde_json::from_value(service).unwrap())),
        slices: [("e".to_owned(), Arc::new(serde_json::from_value(slice).unwrap()))].into(),
    }
}

/// The last bytes of the backends of the pool to which a frontend leads.
fn led(rules: &ServiceRules, address: Option<&str>, port: u16, scope: Scope) -> Option<(Vec<u8>, WhenEmpty)> {
    let address = address.map(|text| text.parse().unwrap());
    let frontend = Frontend { transport: Transport::Tcp, address, port };
    let pool = &rules.pools[rules.frontends.get(&(frontend, scope))?];
    assert!(pool.backends.iter().all(|backend| backend.port == 8080));
    Some((pool.backends.iter().map(|backend| backend.address.octets()[3]).collect(), pool.when_empty))
}

fn inner(known: &Known) -> Option<(Vec<u8>, WhenEmpty)> {
    led(&plan(known, &facts())?, Some("10.96.0.7"), 80, Scope::Everyone)
}

#[test]
fn ready_endpoints_are_used_and_draining_ones_when_nobody_is_ready() {
    let both =
        vec![endpoint(1, "n1", "ready"), endpoint(2, "n2", "draining"), endpoint(3, "n2", "not ready")];
    assert_eq!(inner(&known(json!({}), both.clone())), Some((vec![1], WhenEmpty::Drop)));
    assert_eq!(inner(&known(json!({}), both[1..].to_vec())), Some((vec![2], WhenEmpty::Drop)));
    assert_eq!(inner(&known(json!({}), both[2..].to_vec())), Some((vec![], WhenEmpty::Reject)));
}

#[test]
fn what_is_nobodys_to_lead_is_left_alone() {
    let ready = || vec![endpoint(1, "n1", "ready")];
    for spec in [
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
        json!({"type": "ExternalName", "externalName": "a.example"}),
        json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"]}),
        json!({"clusterIP": "fd00::7", "clusterIPs": ["fd00::7"]}),
    ] {
        assert_eq!(plan(&known(spec.clone(), ready()), &facts()), None, "{spec}");
    }
    assert_eq!(plan(&Known::default(), &facts()), None);
}

#[test]
fn outer_addresses_lead_everywhere_unless_the_policy_is_local() {
    let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30080}],
        "externalIPs": ["192.0.2.1", "2001:db8::1"],
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}, {"ip": "192.0.2.3", "ipMode": "Proxy"}]}}});
    let endpoints = || vec![endpoint(1, "n1", "ready"), endpoint(2, "n2", "ready")];
    let rules = plan(&known(spec.clone(), endpoints()), &facts()).unwrap();
    for (address, port) in [(None, 30080), (Some("192.0.2.1"), 80), (Some("192.0.2.2"), 80)] {
        assert_eq!(led(&rules, address, port, Scope::Everyone), Some((vec![1, 2], WhenEmpty::Drop)));
        assert_eq!(led(&rules, address, port, Scope::Outside), None);
    }
    assert_eq!(led(&rules, Some("192.0.2.3"), 80, Scope::Everyone), None);

    let mut kept = spec;
    kept["externalTrafficPolicy"] = json!("Local");
    let rules = plan(&known(kept.clone(), endpoints()), &facts()).unwrap();
    assert_eq!(led(&rules, None, 30080, Scope::Outside), Some((vec![1], WhenEmpty::Drop)));
    assert_eq!(led(&rules, None, 30080, Scope::Everyone), Some((vec![1, 2], WhenEmpty::Drop)));
    // Nobody is here: the caller's packets are dropped, since others may answer. Nobody at all: it is told.
    let rules = plan(&known(kept.clone(), endpoints()[1..].to_vec()), &facts()).unwrap();
    assert_eq!(led(&rules, None, 30080, Scope::Outside), Some((vec![], WhenEmpty::Drop)));
    let rules = plan(&known(kept, vec![]), &facts()).unwrap();
    assert_eq!(led(&rules, None, 30080, Scope::Outside), Some((vec![], WhenEmpty::Reject)));
}

#[test]
fn an_inner_policy_keeps_to_the_node_and_drains_here() {
    let spec = json!({"internalTrafficPolicy": "Local"});
    let both = vec![endpoint(1, "n1", "draining"), endpoint(2, "n2", "ready")];
    assert_eq!(inner(&known(spec.clone(), both.clone())), Some((vec![1], WhenEmpty::Drop)));
    assert_eq!(inner(&known(spec, both[1..].to_vec())), Some((vec![], WhenEmpty::Drop)));
}

#[test]
fn ports_are_matched_by_name_and_protocol() {
    let mut known = known(
        json!({"ports": [{"name": "web", "port": 80, "targetPort": "http"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        vec![],
    );
    let slice = json!({"metadata": {"name": "e"}, "addressType": "IPv4",
        "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
        "endpoints": [{"addresses": ["10.244.0.1"]}]});
    known.slices.insert("e".to_owned(), Arc::new(serde_json::from_value(slice).unwrap()));
    let rules = plan(&known, &facts()).unwrap();
    assert_eq!(led(&rules, Some("10.96.0.7"), 80, Scope::Everyone), Some((vec![1], WhenEmpty::Drop)));
    let places = datagram_places(&rules);
    assert_eq!(places.len(), 1);
    assert_eq!((places[0].port, places[0].answered_by.len()), (53, 1));
}

#[test]
fn callers_come_back_for_as_long_as_is_said() {
    let timeout = |spec: Value| {
        let rules = plan(&known(spec, vec![endpoint(1, "n1", "ready")]), &facts()).unwrap();
        rules.pools.values().next().unwrap().affinity.map(|timeout| timeout.as_secs())
    };
    assert_eq!(timeout(json!({})), None);
    assert_eq!(timeout(json!({"sessionAffinity": "ClientIP"})), Some(10_800));
    let config = json!({"clientIP": {"timeoutSeconds": 5}});
    assert_eq!(timeout(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config})), Some(5));
}

#[test]
fn callers_of_a_balancer_are_ranges_that_do_not_overlap() {
    let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30080}],
        "loadBalancerSourceRanges": ["198.51.100.0/24", "198.51.100.16/28", " 10.0.0.0/8", "2001:db8::/32"],
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}]}}});
    let known = known(spec, vec![endpoint(1, "n1", "ready"), endpoint(2, "n2", "ready")]);
    let rules = plan(&known, &facts()).unwrap();
    let callers: Vec<String> = rules
        .callers
        .iter()
        .flat_map(|(frontend, ranges)| {
            assert_eq!((frontend.address, frontend.port), (Some("192.0.2.2".parse().unwrap()), 80));
            ranges.iter().map(|(first, last)| format!("{first}-{last}"))
        })
        .collect();
    assert_eq!(callers, ["10.0.0.0-10.255.255.255", "198.51.100.0-198.51.100.255"]);
    assert_eq!(local_endpoints(&known, &facts()), 1);
}
