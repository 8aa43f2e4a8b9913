//! Ports of the host that lead to pods, over real sockets.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::Test;
use crate::control::is_ready;
use crate::host::{eventually, pod, run};
use crate::lifecycle::led_host;

pub(crate) const TESTS: &[Test] = &[
    ("host_ports::they_lead_to_their_pod_and_end_with_it", || run(they_lead_to_their_pod_and_end_with_it())),
    ("host_ports::they_survive_the_agent", || run(they_survive_the_agent())),
];

fn with_ports(name: &str, work: &str, ports: Value) -> Pod {
    pod(name, &[work], |pod| pod["spec"]["containers"][0]["ports"] = ports)
}

/// What a server behind a port of this host answers.
pub(crate) fn get(address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text.split("\r\n\r\n").nth(1)?.trim().to_owned())
}

async fn they_lead_to_their_pod_and_end_with_it() {
    let (host, control) = led_host().await;
    control.put(&with_ports(
        "web",
        "serve",
        json!([{"containerPort": 8080, "hostPort": 18080}, {"containerPort": 8080, "hostPort": 18081, "hostIP": "127.0.0.1"}]),
    ));
    control.put(&with_ports(
        "udp",
        "echo",
        json!([{"containerPort": 5353, "hostPort": 18080, "protocol": "UDP"}]),
    ));
    for name in ["web-uid", "udp-uid"] {
        control.running(name).await;
    }
    let gateway = host.pod_cidr.replace(".0/24", ".1");
    eventually("it serves", || get("127.0.0.1:18080").is_some());
    let as_gateway = Some(format!("you are ::ffff:{gateway}"));
    assert_eq!(get("127.0.0.1:18080"), as_gateway, "through the loopback");
    assert_eq!(get(&format!("{gateway}:18080")), as_gateway, "through an address of the host");
    assert_eq!(get("127.0.0.1:18081"), as_gateway);
    assert_eq!(get(&format!("{gateway}:18081")), None, "that port is the loopback's alone");
    let caller = UdpSocket::bind("127.0.0.1:0").unwrap();
    caller.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    caller.send_to(b"ping", "127.0.0.1:18080").unwrap();
    let mut buffer = [0; 16];
    let (length, from) = caller.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.port()), (&b"ping"[..], 18080));

    // A caller that goes on from the same port is answered by whoever has the port now, not by the memory of a flow.
    control.delete("udp-uid", 0);
    control.gone("udp-uid").await;
    control.put(&with_ports(
        "udp2",
        "echo",
        json!([{"containerPort": 5353, "hostPort": 18080, "protocol": "UDP"}]),
    ));
    control.running("udp2-uid").await;
    caller.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    eventually("the next pod answers the same flow", || {
        // Nobody at the port yet is told by an error of a later call.
        let _refused = caller.send_to(b"pong", "127.0.0.1:18080");
        caller.recv_from(&mut [0; 16]).is_ok()
    });

    control.put(&with_ports(
        "second",
        "serve",
        json!([{"containerPort": 1, "hostPort": 18080, "hostIP": "127.0.0.1"}]),
    ));
    let refused = |s: &k8s_openapi::api::core::v1::PodStatus| s.phase.as_deref() == Some("Failed");
    let (_, status) = control.status("second-uid", "it is refused", refused).await;
    let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    assert_eq!(status.reason.as_deref(), Some("NodePorts"));
    assert_eq!(status.message, Some(format!("Pod was rejected: {message}")));
    assert!(control.heard().said_of("second").contains(&format!("Warning NodePorts: {message}")));

    control.delete("web-uid", 0);
    control.gone("web-uid").await;
    assert_eq!(get("127.0.0.1:18080"), None, "nobody is behind the port any more");
    // The port is free again, for whoever comes now.
    control.put(&with_ports("third", "serve", json!([{"containerPort": 8080, "hostPort": 18080}])));
    control.running("third-uid").await;
    eventually("the next pod has it", || get("127.0.0.1:18080").is_some());
    for name in ["udp2-uid", "second-uid", "third-uid"] {
        control.delete(name, 0);
        control.gone(name).await;
    }
    assert_eq!(get("127.0.0.1:18080"), None);
    host.finish().await;
}

async fn they_survive_the_agent() {
    let (mut host, control) = led_host().await;
    host.stop().await;
    let agent = host.spawn();
    let ports = |host_port: u16| json!([{"containerPort": 8080, "hostPort": host_port}]);
    control.put(&with_ports("stays", "serve", ports(18090)));
    control.put(&with_ports("goes", "serve", ports(18091)));
    for name in ["stays-uid", "goes-uid"] {
        control.status(name, "it runs", is_ready).await;
    }
    eventually("both serve", || get("127.0.0.1:18090").is_some() && get("127.0.0.1:18091").is_some());
    drop(agent);
    assert!(get("127.0.0.1:18090").is_some(), "the agent is dead, the port is not");
    control.remove("goes-uid");
    host.start();
    control.gone("goes-uid").await;
    assert!(get("127.0.0.1:18090").is_some());
    assert_eq!(get("127.0.0.1:18091"), None);
    // Still known to be taken by who had it before.
    control.put(&with_ports("late", "serve", ports(18090)));
    let refused = |s: &k8s_openapi::api::core::v1::PodStatus| s.reason.as_deref() == Some("NodePorts");
    control.status("late-uid", "it is refused", refused).await;
    for name in ["stays-uid", "late-uid"] {
        control.delete(name, 0);
        control.gone(name).await;
    }
    assert_eq!(get("127.0.0.1:18090"), None);
    host.finish().await;
}
