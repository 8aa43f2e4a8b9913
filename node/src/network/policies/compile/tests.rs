//! Policies as tables: who is asked, what is said, and who may reach whom then.

use serde_json::{Value, json};

use super::*;
use crate::network::cluster::{ClusterNetwork, Key, Kind};

/// Namespaces `d` (team=x), `e` (team=y) and `f`; pods in them: name, labels, address, and whether it is of this node.
const PODS: [(&str, &str, &str, &str, bool); 6] = [
    ("d", "web", "web", "10.0.1.2", true),
    ("d", "db", "db", "10.0.1.3", true),
    ("d", "job", "job", "10.0.2.4", false),
    ("e", "web", "web", "10.0.2.5", false),
    ("e", "db", "db", "10.0.1.6", true),
    ("f", "web", "web", "10.0.2.7", false),
];

struct Scene {
    policing: Arc<Policing>,
    locals: Locals,
}

fn put(network: &ClusterNetwork, kind: Kind, revision: u64, object: &Value) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let key = Key { kind, namespace: text("namespace"), name: text("name") };
    network.apply([(key, Some((revision, bytes::Bytes::from(object.to_string()))))]);
}

fn pod(index: usize, (namespace, name, app, address, _): (&str, &str, &str, &str, bool)) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name, "uid": format!("u{index}"), "labels": {"app": app}},
        "spec": {"containers": [{"name": "c", "ports": [
            {"name": "http", "containerPort": 8000 + index}, {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        ]}]},
        "status": {"podIP": address},
    })
}

fn scene(policies: &[Value]) -> Scene {
    let network = ClusterNetwork::default();
    for (name, labels) in [("d", json!({"team": "x"})), ("e", json!({"team": "y"})), ("f", json!({}))] {
        put(&network, Kind::Namespace, 1, &json!({"metadata": {"name": name, "labels": labels}}));
    }
    let mut locals = Locals::new();
    for (index, of_pod) in PODS.into_iter().enumerate() {
        let object = pod(index, of_pod);
        put(&network, Kind::Pod, 1, &object);
        if of_pod.4 {
            let typed = serde_json::from_value(object).unwrap();
            locals.insert(format!("u{index}"), Arc::new(PeerPod::of(&typed)));
        }
    }
    for (index, policy) in policies.iter().enumerate() {
        let mut policy = policy.clone();
        let namespace = policy["namespace"].take();
        let object = json!({"metadata": {"namespace": namespace, "name": format!("p{index}")}, "spec": policy["spec"]});
        put(&network, Kind::NetworkPolicy, 1, &object);
    }
    Scene { policing: network.policing(), locals }
}

/// Whether the rules let the connection through at the pod itself.
fn allows(
    rules: &PolicyRules,
    is_ingress: bool,
    (own, other): (&str, &str),
    (transport, port): (Transport, u16),
) -> bool {
    let (own, other): (Ipv4Addr, Ipv4Addr) = (own.parse().unwrap(), other.parse().unwrap());
    let Some(of_pod) = rules.pods.get(&own) else { return true };
    let class = if is_ingress { &of_pod.ingress } else { &of_pod.egress };
    let Some(class) = class else { return true };
    let allowed = &rules.classes[class];
    let has = |ports: &BTreeSet<Ports>| {
        ports.iter().any(|ports| match ports {
            Ports::All => true,
            Ports::Of { transport: of, first, last } => *of == transport && (*first..=*last).contains(&port),
        })
    };
    allowed.peers.get(&other).is_some_and(has)
        || allowed.blocks.iter().any(|block| (block.first..=block.last).contains(&other) && has(&block.ports))
}

fn check(policies: &[Value], cases: &[(&str, &str, u16, bool)]) {
    let scene = scene(policies);
    let rules = compile(&scene.policing, &scene.locals);
    for (way, others, port, expected) in cases {
        let (is_ingress, pair) = match way.split_once(" < ") {
            Some(_) => (true, way.split_once(" < ").unwrap()),
            None => (false, way.split_once(" > ").unwrap()),
        };
        assert!(others.is_empty() || *others == "udp", "{others}");
        let transport = if *others == "udp" { Transport::Udp } else { Transport::Tcp };
        let found = allows(&rules, is_ingress, pair, (transport, *port));
        assert_eq!(found, *expected, "{way} at {port}{others}: {policies:#?}\n{rules:#?}");
    }
}

fn in_d(spec: Value) -> Value {
    json!({"namespace": "d", "spec": spec})
}

const WEB: &str = "10.0.1.2";

#[test]
fn without_a_policy_everything_is_open() {
    let scene = scene(&[]);
    assert_eq!(compile(&scene.policing, &scene.locals), PolicyRules::default());
    check(&[], &[("10.0.1.2 < 8.8.8.8", "", 80, true), ("10.0.1.2 > 8.8.8.8", "", 80, true)]);
}

#[test]
fn who_is_selected_is_closed_in_the_directions_named() {
    let closed = in_d(json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}));
    check(
        &[closed],
        &[
            ("10.0.1.2 < 10.0.1.3", "", 80, false),
            ("10.0.1.2 < 8.8.8.8", "", 80, false),
            ("10.0.1.2 > 8.8.8.8", "", 80, true),
            ("10.0.1.3 < 10.0.1.2", "", 80, true),
            // The same labels in another namespace.
            ("10.0.1.6 < 10.0.1.2", "", 80, true),
        ],
    );
    let both = in_d(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    check(
        &[both],
        &[
            ("10.0.1.3 < 10.0.1.2", "", 80, false),
            ("10.0.1.3 > 10.0.1.2", "", 80, false),
            ("10.0.1.6 > 10.0.1.2", "", 80, true),
        ],
    );
    // Types that nobody wrote: ingress always, egress where there are rules for it.
    let silent = in_d(json!({"podSelector": {}}));
    check(&[silent], &[("10.0.1.2 < 10.0.1.3", "", 80, false), ("10.0.1.2 > 10.0.1.3", "", 80, true)]);
    let egress = in_d(json!({"podSelector": {}, "egress": [{}]}));
    check(&[egress], &[("10.0.1.2 < 10.0.1.3", "", 80, false), ("10.0.1.2 > 10.0.1.3", "", 80, true)]);
}

#[test]
fn peers_are_pods_namespaces_both_or_blocks() {
    let from = |peers: Value| {
        [in_d(json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": peers}]}))]
    };
    let (job, web_e, db_e, web_f) = ("10.0.2.4", "10.0.2.5", "10.0.1.6", "10.0.2.7");
    let expect = |peers: Value, open: &[&str]| {
        let ways: Vec<(String, bool)> = [job, web_e, db_e, web_f]
            .iter()
            .map(|other| (format!("{WEB} < {other}"), open.contains(other)))
            .collect();
        let cases: Vec<(&str, &str, u16, bool)> =
            ways.iter().map(|(way, open)| (way.as_str(), "", 80, *open)).collect();
        check(&from(peers), &cases);
    };
    expect(json!([{"podSelector": {}}]), &[job]);
    expect(json!([{"podSelector": {"matchLabels": {"app": "web"}}}]), &[]);
    expect(json!([{"namespaceSelector": {}}]), &[job, web_e, db_e, web_f]);
    expect(json!([{"namespaceSelector": {"matchLabels": {"team": "y"}}}]), &[web_e, db_e]);
    expect(
        json!([{"namespaceSelector": {"matchLabels": {"team": "y"}}, "podSelector": {"matchLabels": {"app": "db"}}}]),
        &[db_e],
    );
    let either = json!([{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}},
        {"podSelector": {"matchLabels": {"app": "job"}}}]);
    expect(either, &[job, web_f]);
    expect(json!([{"ipBlock": {"cidr": "10.0.2.0/24", "except": ["10.0.2.4/31"]}}]), &[web_f]);
    expect(json!([{"ipBlock": {"cidr": "0.0.0.0/0"}}]), &[job, web_e, db_e, web_f]);
    expect(json!([{"ipBlock": {"cidr": "::/0"}}]), &[]);
    expect(json!([]), &[job, web_e, db_e, web_f]);
}

#[test]
fn ports_are_numbers_ranges_names_and_protocols() {
    let at = |ports: Value| [in_d(json!({"podSelector": {}, "ingress": [{"ports": ports}]}))];
    check(&at(json!([])), &[("10.0.1.2 < 8.8.8.8", "", 80, true), ("10.0.1.2 < 8.8.8.8", "udp", 80, true)]);
    check(
        &at(
            json!([{"port": 80}, {"port": 90, "endPort": 95}, {"port": "http"}, {"port": "dns", "protocol": "UDP"}]),
        ),
        &[
            ("10.0.1.2 < 8.8.8.8", "", 80, true),
            ("10.0.1.2 < 8.8.8.8", "udp", 80, false),
            ("10.0.1.2 < 8.8.8.8", "", 89, false),
            ("10.0.1.2 < 8.8.8.8", "", 95, true),
            // What each pod calls `http`.
            ("10.0.1.2 < 8.8.8.8", "", 8000, true),
            ("10.0.1.3 < 8.8.8.8", "", 8000, false),
            ("10.0.1.3 < 8.8.8.8", "", 8001, true),
            ("10.0.1.3 < 8.8.8.8", "udp", 53, true),
            ("10.0.1.3 < 8.8.8.8", "", 53, false),
        ],
    );
    check(
        &at(json!([{"protocol": "UDP"}])),
        &[("10.0.1.2 < 8.8.8.8", "udp", 65535, true), ("10.0.1.2 < 8.8.8.8", "", 80, false)],
    );
    check(&at(json!([{"port": "nobody-has-it"}])), &[("10.0.1.2 < 8.8.8.8", "", 80, false)]);
    // Of egress the pod that is called counts; an address that is no pod's has no names.
    let egress =
        |to: Value| [in_d(json!({"podSelector": {}, "egress": [{"to": to, "ports": [{"port": "http"}]}]}))];
    check(
        &egress(json!([])),
        &[
            ("10.0.1.2 > 10.0.2.5", "", 8003, true),
            ("10.0.1.2 > 10.0.2.5", "", 8002, false),
            ("10.0.1.2 > 10.0.2.4", "", 8002, true),
            ("10.0.1.2 > 8.8.8.8", "", 8003, false),
        ],
    );
    check(
        &egress(json!([{"podSelector": {}}, {"ipBlock": {"cidr": "8.0.0.0/8"}}])),
        &[
            ("10.0.1.2 > 10.0.2.4", "", 8002, true),
            ("10.0.1.2 > 10.0.2.5", "", 8003, false),
            ("10.0.1.2 > 8.8.8.8", "", 8002, false),
        ],
    );
}

#[test]
fn policies_add_up_and_never_take_away() {
    let closed = in_d(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    let web = in_d(json!({"podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "job"}}}], "ports": [{"port": 80}]}]}));
    let also = in_d(json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
        {"from": [{"namespaceSelector": {"matchLabels": {"team": "y"}}}]},
        {"from": [{"podSelector": {"matchLabels": {"app": "job"}}}], "ports": [{"port": 443}]},
    ]}));
    let elsewhere = json!({"namespace": "e", "spec": {"podSelector": {}, "policyTypes": ["Egress"]}});
    let policies = [closed, web, also, elsewhere];
    check(
        &policies,
        &[
            ("10.0.1.2 < 10.0.2.4", "", 80, true),
            ("10.0.1.2 < 10.0.2.4", "", 443, true),
            ("10.0.1.2 < 10.0.2.4", "", 81, false),
            ("10.0.1.2 < 10.0.2.5", "", 9, true),
            ("10.0.1.2 < 10.0.1.3", "", 80, false),
            ("10.0.1.2 > 10.0.1.3", "", 80, false),
            ("10.0.1.3 < 10.0.2.4", "", 80, false),
            ("10.0.1.6 > 10.0.1.2", "", 80, false),
            ("10.0.1.6 < 10.0.1.2", "", 80, true),
        ],
    );
    let scene = scene(&policies);
    let rules = compile(&scene.policing, &scene.locals);
    let names: Vec<&str> = rules.classes.keys().map(String::as_str).collect();
    assert_eq!(names, ["egress d/p0", "egress e/p3", "ingress d/p0", "ingress d/p0 d/p1 d/p2"]);
}

#[test]
fn a_pod_of_this_node_counts_before_anybody_was_told_of_it() {
    let policy = in_d(json!({"podSelector": {"matchLabels": {"app": "new"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "new"}}}]}]}));
    let mut scene = scene(&[policy]);
    let fresh = |name: &str, address: &str| {
        Arc::new(PeerPod {
            namespace: "d".to_owned(),
            name: name.to_owned(),
            uid: format!("new-{name}"),
            labels: [("app".to_owned(), "new".to_owned())].into(),
            addresses: vec![address.parse().unwrap()],
            ports: Vec::new(),
        })
    };
    scene.locals.insert("new-a".to_owned(), fresh("a", "10.0.1.40"));
    scene.locals.insert("new-b".to_owned(), fresh("b", "10.0.1.41"));
    // What the leader says of another life of the name is nothing to this one.
    scene.locals.insert("new-web".to_owned(), fresh("web", "10.0.1.42"));
    let rules = compile(&scene.policing, &scene.locals);
    let tcp = (Transport::Tcp, 80);
    assert!(allows(&rules, true, ("10.0.1.40", "10.0.1.41"), tcp));
    assert!(!allows(&rules, true, ("10.0.1.40", "10.0.1.3"), tcp));
    assert!(!allows(&rules, true, ("10.0.1.42", "10.0.1.3"), tcp));
    // It is labelled otherwise: the leader's word counts.
    let told = PeerPod {
        labels: [("app".to_owned(), "old".to_owned())].into(),
        ..PeerPod::clone(&scene.locals["new-a"])
    };
    Arc::make_mut(&mut scene.policing).pods.insert(("d".to_owned(), "a".to_owned()), Arc::new(told));
    let rules = compile(&scene.policing, &scene.locals);
    assert!(allows(&rules, true, ("10.0.1.40", "10.0.1.3"), tcp), "nothing selects it any more");
    assert!(!allows(&rules, true, ("10.0.1.41", "10.0.1.40"), tcp), "nor is it a peer");
}

#[test]
fn a_thousand_pods_and_a_hundred_policies_are_compiled_at_once() {
    let mut policing = Policing::default();
    let mut locals = Locals::new();
    for index in 0..1000u32 {
        let namespace = format!("n{}", index % 20);
        policing.namespaces.entry(namespace.clone()).or_default();
        let pod = Arc::new(PeerPod {
            namespace: namespace.clone(),
            name: format!("p{index}"),
            uid: format!("u{index}"),
            labels: [("app".to_owned(), format!("a{}", index % 7))].into(),
            addresses: vec![Ipv4Addr::from_bits(0x0a00_0000 + index)],
            ports: Vec::new(),
        });
        if index < 100 {
            locals.insert(pod.uid.clone(), Arc::clone(&pod));
        }
        policing.pods.insert((namespace, pod.name.clone()), pod);
    }
    for index in 0..100 {
        let place = (format!("n{}", index % 20), format!("p{index}"));
        let policy = json!({"metadata": {"namespace": place.0, "name": place.1}, "spec": {
            "podSelector": {"matchLabels": {"app": format!("a{}", index % 7)}},
            "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "a1"}}}]}],
        }});
        policing.policies.insert(place, Arc::new(serde_json::from_value(policy).unwrap()));
    }
    let begun = std::time::Instant::now();
    let rules = compile(&policing, &locals);
    let took = begun.elapsed();
    println!("measured: 1,000 pods, 100 policies, 100 pods of this node: {took:?}");
    assert!(!rules.pods.is_empty() && took < std::time::Duration::from_secs(1), "{took:?}");
}
