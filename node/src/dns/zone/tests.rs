use serde_json::{Value, json};

use super::*;
use crate::network::cluster::{Key, Kind};

fn network() -> ClusterNetwork {
    let network = ClusterNetwork::default();
    let put = |kind, name: &str, value: Value| {
        let key = Key { kind, namespace: "shop".to_owned(), name: name.to_owned() };
        network.apply([(key, Some((1, value.to_string().into())))]);
    };
    let service = |spec: Value| json!({"metadata": {"name": "x", "namespace": "shop"}, "spec": spec});
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
    put(
        Kind::Service,
        "web",
        service(json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": ports})),
    );
    put(Kind::Service, "db", service(json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": ports})));
    put(Kind::Service, "empty", service(json!({"clusterIP": "None", "clusterIPs": ["None"]})));
    put(Kind::Service, "out", service(json!({"type": "ExternalName", "externalName": "a.example"})));
    let ready = |address: &str, host: Option<&str>, ready: bool| {
        let mut endpoint = json!({"addresses": [address], "conditions": {"ready": ready}});
        if let Some(host) = host {
            endpoint["hostname"] = json!(host);
        }
        endpoint
    };
    let slice = json!({"metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [ready("10.244.1.5", Some("db-0"), true), ready("10.244.2.6", None, true),
            ready("10.244.2.7", Some("db-2"), false)]});
    put(Kind::EndpointSlice, "db-1", slice);
    network
}

fn ask(name: &str, of: Asked) -> Answer {
    Zone::new("cluster.local").answer(&network(), name, of)
}

fn texts(name: &str, of: Asked) -> Vec<String> {
    let Answer::Records(records, _) = ask(name, of) else { panic!("{name}: {:?}", ask(name, of)) };
    records.iter().map(Data::to_string).collect()
}

#[test]
fn services_have_their_address_and_headless_ones_their_endpoints() {
    assert_eq!(texts("web.shop.svc.cluster.local.", Asked::A), ["10.96.0.7"]);
    assert_eq!(texts("WEB.Shop.svc.Cluster.local.", Asked::A), ["10.96.0.7"]);
    assert_eq!(texts("db.shop.svc.cluster.local.", Asked::A), ["10.244.1.5", "10.244.2.6"]);
    assert_eq!(texts("db-0.db.shop.svc.cluster.local.", Asked::A), ["10.244.1.5"]);
    assert_eq!(texts("10-244-2-6.db.shop.svc.cluster.local.", Asked::A), ["10.244.2.6"]);
    assert_eq!(texts("10-244-9-9.shop.pod.cluster.local.", Asked::A), ["10.244.9.9"]);
    assert_eq!(texts("out.shop.svc.cluster.local.", Asked::A), ["a.example"]);
    assert_eq!(texts("dns-version.cluster.local.", Asked::Txt), [VERSION]);
}

#[test]
fn ports_are_found_with_their_hosts() {
    let Answer::Records(found, hosts) = ask("_http._tcp.db.shop.svc.cluster.local.", Asked::Srv) else {
        panic!("no ports")
    };
    let texts = |records: &[Data]| records.iter().map(Data::to_string).collect::<Vec<_>>();
    assert_eq!(
        texts(&found),
        ["8080 10-244-2-6.db.shop.svc.cluster.local", "8080 db-0.db.shop.svc.cluster.local"]
    );
    let hosts: Vec<Data> = hosts.into_iter().map(|(_, data)| data).collect();
    assert_eq!(texts(&hosts), ["10.244.2.6", "10.244.1.5"]);
    let Answer::Records(found, _) = ask("_http._tcp.web.shop.svc.cluster.local.", Asked::Srv) else {
        panic!("no port")
    };
    assert_eq!(texts(&found), ["80 web.shop.svc.cluster.local"]);
    assert_eq!(ask("_ftp._tcp.web.shop.svc.cluster.local.", Asked::Srv), Answer::NoName);
    assert_eq!(ask("_http._udp.web.shop.svc.cluster.local.", Asked::Srv), Answer::NoName);
}

#[test]
fn addresses_lead_back_to_names() {
    assert_eq!(texts("7.0.96.10.in-addr.arpa.", Asked::Ptr), ["web.shop.svc.cluster.local"]);
    assert_eq!(texts("5.1.244.10.in-addr.arpa.", Asked::Ptr), ["db-0.db.shop.svc.cluster.local"]);
    assert_eq!(ask("1.1.1.1.in-addr.arpa.", Asked::Ptr), Answer::Elsewhere);
}

#[test]
fn nothing_of_a_type_is_told_from_no_such_name() {
    for (name, of, expected) in [
        ("web.shop.svc.cluster.local.", Asked::Aaaa, Answer::NoData),
        ("web.shop.svc.cluster.local.", Asked::Txt, Answer::NoData),
        ("shop.svc.cluster.local.", Asked::A, Answer::NoData),
        ("svc.cluster.local.", Asked::A, Answer::NoData),
        ("cluster.local.", Asked::A, Answer::NoData),
        ("no.shop.svc.cluster.local.", Asked::A, Answer::NoName),
        ("empty.shop.svc.cluster.local.", Asked::A, Answer::NoName),
        ("db-2.db.shop.svc.cluster.local.", Asked::A, Answer::NoName),
        ("web.none.svc.cluster.local.", Asked::A, Answer::NoName),
        ("none.svc.cluster.local.", Asked::A, Answer::NoName),
        ("a-b.shop.pod.cluster.local.", Asked::A, Answer::NoName),
        ("a.b.c.d.e.f.cluster.local.", Asked::A, Answer::NoName),
        ("example.com.", Asked::A, Answer::Elsewhere),
        ("web.shop.svc.cluster.local.lan.", Asked::A, Answer::Elsewhere),
    ] {
        assert_eq!(ask(name, of), expected, "{name} {of:?}");
    }
}
