//! Nodes of two networks with a router between that knows nothing of pods: pods reach each other all the same.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use chaos_tests::client::Client;
use runtime::net::{LinkKind, NetNs, Netlink};
use serde_json::{Value, json};

use super::by_hand::{Hosts, netns_name};
use super::first_pod::{container_pid, hello, pod_ip, run_pod};
use super::{PATIENCE, TURN, measured, skipped};
use crate::support::eventually;

/// A master and two nodes on one network, a node on another, and a host that is none of them.
const HOSTS: [(&str, &str); 5] = [
    ("m1", "10.88.78.11"),
    ("n1", "10.88.78.21"),
    ("n2", "10.88.78.22"),
    ("far", "10.88.79.21"),
    ("out", "10.88.78.31"),
];
const TUNNEL: &str = "vx-cbr0";
/// More than fits into any buffer between two programs.
const BULK_BYTES: usize = 8 << 20;

/// Sends much to an address from inside a network namespace, and gets it back.
fn bulk(from: &NetNs, to: &NetNs, address: IpAddr) {
    let listener = to.run(move || TcpListener::bind((address, 9))).unwrap().unwrap();
    let target = listener.local_addr().unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let connect = move || TcpStream::connect_timeout(&target, Duration::from_secs(5));
    let mut stream = from.run(connect).unwrap().unwrap();
    let sent: Vec<u8> = (0..BULK_BYTES).map(|number| (number % 251) as u8).collect();
    stream.write_all(&sent).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert!(sent == back, "{} of {BULK_BYTES} bytes came back", back.len());
    echo.join().unwrap();
}

/// What a web server answers to somebody in a network namespace, once it does.
fn answer(from: &NetNs, address: IpAddr, port: u16) -> String {
    let target = SocketAddr::new(address, port);
    let ask = move || {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_millis(500)).ok()?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    eventually(|| from.run(ask).unwrap())
}

fn host(name: &str) -> NetNs {
    NetNs::open_named(&netns_name(name)).unwrap()
}

fn inside(pod: &Value) -> NetNs {
    NetNs::of_pid(container_pid(pod_ip(pod)).expect("a process of the pod")).unwrap()
}

/// Through what a host reaches an address: the device of the most special route.
fn device(name: &str, address: IpAddr) -> String {
    let routes = Netlink::open_in(&host(name)).unwrap().routes().unwrap();
    let routes = routes.into_iter().filter(|route| route.destination.contains(address));
    let route = routes.max_by_key(|route| route.destination.length()).expect("there is a default route");
    route.device.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_nodes_on_two_networks_reach_each_other() {
    if skipped("pods_of_nodes_on_two_networks_reach_each_other") {
        return;
    }
    let _turn = TURN.lock().await;
    let mut hosts = Hosts::make(&HOSTS);
    let server = format!("{}:6443", HOSTS[0].1);
    let given = hosts.given(&server);
    let control = json!({
        "name": "m1",
        "dataDir": hosts.path("m1"),
        "tokenFile": given.token,
        "listenAddress": "0.0.0.0:6443",
        "initialMembers": {"m1": server},
    });
    hosts.start("m1", "control", &control);
    for (name, _) in &HOSTS[1..4] {
        let node = hosts.node(name, &given, &[&server]);
        hosts.start(name, "node", &node);
    }
    let mut client = Client::from_kubeconfig(&given.kubeconfig).unwrap();
    hosts.until_ready(&mut client, 3).await;

    let mut pods = Vec::new();
    for name in ["n1", "n2", "far"] {
        let mut pod = hello(&format!("on-{name}"), Some(name));
        pod["metadata"]["labels"] = json!({"app": format!("on-{name}")});
        pods.push(run_pod(&mut client, &pod).await.0);
    }
    let [near, beside, far] = pods.as_slice() else { panic!("three pods were made") };
    let address = |pod: &Value| pod_ip(pod).parse::<IpAddr>().unwrap();

    // Over the link where there is one, in packets between the hosts where there is none.
    eventually(|| (device("n1", address(far)) == TUNNEL).then_some(()));
    assert_eq!(device("n1", address(beside)), "eth0");
    assert_eq!(device("far", address(near)), TUNNEL);
    let tunnel = Netlink::open_in(&host("n1")).unwrap().link(TUNNEL).unwrap().unwrap();
    let lower = Netlink::open_in(&host("n1")).unwrap().link("eth0").unwrap().unwrap();
    assert_eq!((tunnel.kind, tunnel.mtu), (LinkKind::Vxlan, lower.mtu - 50));

    // With their own addresses, whole, and however much it is.
    for (from, to) in [(near, far), (far, near), (beside, far), (near, beside)] {
        let told = answer(&inside(from), address(to), 8080);
        assert!(told.contains(pod_ip(from)), "the caller's own address is seen: {told}");
        let started = Instant::now();
        bulk(&inside(from), &inside(to), address(to));
        let names = [from, to].map(|pod| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        measured(&format!("{BULK_BYTES} bytes {} and back: {:?}", names.join(" to "), started.elapsed()));
    }
    // The nodes' own programs reach them too, and nobody else.
    for pod in &pods {
        let own = pod["metadata"]["name"].as_str().unwrap();
        assert!(answer(&host("n1"), address(pod), 8080).contains(&format!("this is {own}")));
        let target = SocketAddr::new(address(pod), 8080);
        let refused = host("out").run(move || TcpStream::connect_timeout(&target, Duration::from_secs(1)));
        assert!(refused.unwrap().is_err(), "{own} is reached from outside of the cluster");
    }

    // Services lead there, from pods and from outside.
    let service = json!({
        "metadata": {"name": "far"},
        "spec": {"type": "NodePort", "selector": {"app": "on-far"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    let services = "/api/v1/namespaces/default/services";
    let (status, made) = client.request(http::Method::POST, services, Some(&service)).await.unwrap();
    assert_eq!(status, 201, "{made}");
    let cluster_ip: IpAddr = made["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
    assert!(answer(&inside(near), cluster_ip, 80).contains(pod_ip(near)));
    assert!(answer(&host("n1"), cluster_ip, 80).contains("this is on-far"));
    let node_port = u16::try_from(made["spec"]["ports"][0]["nodePort"].as_u64().unwrap()).unwrap();
    let outside = NetNs::current().unwrap();
    assert!(answer(&outside, HOSTS[1].1.parse().unwrap(), node_port).contains("this is on-far"));

    // An agent that is started again leaves what is there alone: a connection lives through it.
    let connection = inside(near).run({
        let target = SocketAddr::new(address(far), 8080);
        move || TcpStream::connect(target)
    });
    let mut connection = connection.unwrap().unwrap();
    hosts.kill("n1");
    let again = hosts.node("n1", &given, &[&server]);
    hosts.start("n1", "node", &again);
    let path = "/api/v1/namespaces/default/pods/on-n1";
    hosts.until_ready(&mut client, 3).await;
    connection.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n").unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut told = String::new();
    connection.read_to_string(&mut told).unwrap();
    assert!(told.contains("this is on-far"), "{told}");
    assert_eq!(client.get(path).await.unwrap()["status"]["podIP"], near["status"]["podIP"]);
    let after = Netlink::open_in(&host("n1")).unwrap().link(TUNNEL).unwrap().unwrap();
    assert_eq!(after.index, tunnel.index, "the tunnel was made anew");

    // A node that is gone from the cluster is gone from the others' tables, and with the last one the tunnel.
    hosts.kill("far");
    client.request(http::Method::DELETE, "/api/v1/nodes/far", None).await.unwrap();
    eventually(|| Netlink::open_in(&host("n1")).unwrap().link(TUNNEL).unwrap().is_none().then_some(()));
    assert_eq!(device("n1", address(far)), "eth0", "only the default route is left");
    assert!(answer(&inside(near), address(beside), 8080).contains("this is on-n2"));
    let left = Command::new("ip").args(["-n", &netns_name("n2"), "route"]).output().unwrap();
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(!left.contains(TUNNEL), "{left}");
}
