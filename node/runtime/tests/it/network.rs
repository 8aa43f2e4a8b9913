//! Links, addresses, routes and namespaces, and containers that reach each other.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use runtime::net::{
    Behind, LinkKind, NetNs, Netlink, PortForward, Prefix, Route, Transport, VethPair, Vxlan, mac_of, netns,
    set_port_forwards, sysctl, vxlan_overhead,
};

use crate::Test;
use crate::support::{Host, eventually};

pub(crate) const TESTS: &[Test] = &[
    ("network::localhost_is_there_in_both_versions", localhost_is_there_in_both_versions),
    ("network::what_one_container_makes_of_the_network_stays", what_one_container_makes_of_the_network_stays),
    ("network::a_namespace_is_made_once_and_deleted_twice", a_namespace_is_made_once_and_deleted_twice),
    ("network::links_addresses_and_routes_are_idempotent", links_addresses_and_routes_are_idempotent),
    ("network::mistakes_are_told_apart", mistakes_are_told_apart),
    ("network::settings_belong_to_a_namespace", settings_belong_to_a_namespace),
    ("network::sandboxes_reach_each_other_over_a_bridge", sandboxes_reach_each_other_over_a_bridge),
    ("network::ports_of_the_host_lead_into_a_namespace", ports_of_the_host_lead_into_a_namespace),
    ("network::a_tunnel_is_kept_while_it_is_the_same", a_tunnel_is_kept_while_it_is_the_same),
    ("network::ranges_are_reached_through_a_tunnel", ranges_are_reached_through_a_tunnel),
];

fn name(what: &str) -> String {
    format!("bqt{}{what}", std::process::id() % 100_000)
}

pub(crate) fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A namespace that goes with the test.
pub(crate) struct Scratch(String);

impl Scratch {
    pub(crate) fn new(what: &str) -> (Scratch, NetNs) {
        let name = name(what);
        let netns = netns::create(&name).unwrap();
        (Scratch(name), netns)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = netns::delete(&self.0);
    }
}

fn a_namespace_is_made_once_and_deleted_twice() {
    let (scratch, first) = Scratch::new("ns");
    let again = netns::create(&scratch.0).unwrap();
    let links = |netns: &NetNs| Netlink::open_in(netns).unwrap().links().unwrap();
    let found = links(&first);
    assert!(found.iter().any(|link| link.name == "lo" && link.up), "{found:?}");
    Netlink::open_in(&first).unwrap().add_bridge("same").unwrap();
    assert!(links(&again).iter().any(|link| link.name == "same"), "both are one namespace");
    assert!(netns::list().unwrap().contains(&scratch.0));
    assert!(netns::delete(&scratch.0).unwrap());
    assert!(!netns::delete(&scratch.0).unwrap());
    assert!(!netns::list().unwrap().contains(&scratch.0));
    assert!(netns::create("../escape").is_err());
}

fn links_addresses_and_routes_are_idempotent() {
    let (_scratch, netns) = Scratch::new("a");
    let (_scratch2, other) = Scratch::new("b");
    let mut net = Netlink::open_in(&netns).unwrap();
    let mut far = Netlink::open_in(&other).unwrap();
    let pair = VethPair {
        name: "near",
        peer_name: "far",
        peer_netns: Some(&other),
        mtu: Some(1400),
        master: Some("br"),
        up: true,
    };
    let via = Route::via(prefix("10.9.0.0/16"), ip("10.8.0.2"));
    let default = Route { device: Some("br".into()), ..Route::via(Prefix::DEFAULT_V4, ip("10.8.0.2")) };
    for _ in 0..2 {
        net.add_bridge("br").unwrap();
        net.set_up("br").unwrap();
        net.add_veth(pair).unwrap();
        net.add_address("br", prefix("10.8.0.1/24")).unwrap();
        net.add_address("br", prefix("fd00:8::1/64")).unwrap();
        far.set_up("far").unwrap();
        far.set_mac("far", runtime::net::mac_of(ip("10.8.0.2"))).unwrap();
        far.add_address("far", prefix("10.8.0.2/24")).unwrap();
        net.replace_route(&via).unwrap();
        net.replace_route(&default).unwrap();
        net.replace_route(&Route::on_link(prefix("10.7.0.0/24"), "br")).unwrap();
    }
    let bridge = net.link("br").unwrap().unwrap();
    let near = net.link("near").unwrap().unwrap();
    assert_eq!((bridge.kind, near.kind), (LinkKind::Bridge, LinkKind::Veth));
    assert_eq!((near.mtu, near.master, near.up), (1400, Some(bridge.index), true));
    assert_eq!(far.link("far").unwrap().unwrap().mac, Some([2, 0x42, 10, 8, 0, 2]));
    let addresses = net.addresses_of("br").unwrap();
    assert!(addresses.contains(&prefix("10.8.0.1/24")), "{addresses:?}");
    assert!(addresses.contains(&prefix("fd00:8::1/64")), "{addresses:?}");
    let routes = net.routes().unwrap();
    assert!(routes.iter().any(|route| route.to_string() == "10.9.0.0/16 via 10.8.0.2 dev br"), "{routes:?}");
    assert!(routes.iter().any(|route| route.to_string() == "0.0.0.0/0 via 10.8.0.2 dev br"), "{routes:?}");
    assert!(routes.iter().any(|route| route.to_string() == "10.7.0.0/24 dev br"), "{routes:?}");
    assert!(net.delete_route(&via).unwrap());
    assert!(!net.delete_route(&via).unwrap());
    assert!(net.delete_address("br", prefix("fd00:8::1/64")).unwrap());
    assert!(!net.delete_address("br", prefix("fd00:8::1/64")).unwrap());
    net.set_master("near", None).unwrap();
    assert_eq!(net.link("near").unwrap().unwrap().master, None);
    net.set_mtu("near", 1300).unwrap();
    net.set_down("near").unwrap();
    assert_eq!(net.link("near").unwrap().map(|link| (link.mtu, link.up)), Some((1300, false)));
    assert!(net.delete_link("near").unwrap());
    assert!(!net.delete_link("near").unwrap());
    eventually("the peer goes with it", || far.link("far").unwrap().is_none());
}

fn mistakes_are_told_apart() {
    use runtime::net::Error;
    let (_scratch, netns) = Scratch::new("m");
    let mut net = Netlink::open_in(&netns).unwrap();
    net.add_bridge("br").unwrap();
    let pair = VethPair { name: "br", peer_name: "x", peer_netns: None, mtu: None, master: None, up: false };
    assert!(matches!(net.add_veth(pair), Err(Error::WrongKind { .. })));
    assert!(matches!(net.set_up("ghost"), Err(Error::NoSuchLink { .. })));
    assert!(matches!(net.add_bridge("much-too-long-a-name"), Err(Error::InvalidName { .. })));
    let unreachable = Route::via(prefix("10.1.0.0/16"), ip("192.0.2.1"));
    let error = net.replace_route(&unreachable).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::ENETUNREACH as i32), "{error}");
    assert!(error.to_string().contains("10.1.0.0/16 via 192.0.2.1"), "{error}");
}

fn settings_belong_to_a_namespace() {
    let (_scratch, netns) = Scratch::new("s");
    let own = sysctl::get("net.ipv4.ip_forward").unwrap();
    let other = if own == "1" { "0" } else { "1" };
    sysctl::set_in(&netns, "net.ipv4.ip_forward", other).unwrap();
    assert_eq!(netns.run(|| sysctl::get("net.ipv4.ip_forward").unwrap()).unwrap(), other);
    assert_eq!(sysctl::get("net.ipv4.ip_forward").unwrap(), own);
}

fn sandboxes_reach_each_other_over_a_bridge() {
    let host = Host::new();
    let (_scratch, bridge_ns) = Scratch::new("br");
    let mut net = Netlink::open_in(&bridge_ns).unwrap();
    net.add_bridge("pods").unwrap();
    net.set_up("pods").unwrap();
    for (id, address) in [("a", "10.99.0.2/24"), ("b", "10.99.0.3/24")] {
        let sandbox = host.sandbox(id);
        let pod = NetNs::open(&sandbox.netns.unwrap()).unwrap();
        net.add_veth(VethPair {
            name: &format!("veth-{id}"),
            peer_name: "eth0",
            peer_netns: Some(&pod),
            mtu: None,
            master: Some("pods"),
            up: true,
        })
        .unwrap();
        let mut inside = Netlink::open_in(&pod).unwrap();
        inside.add_address("eth0", prefix(address)).unwrap();
        inside.set_up("eth0").unwrap();
    }
    host.start(&host.spec("server", "a", &["serve", "8080"]));
    host.await_output("server", "listening");
    let (exit, output) = host.run(&host.spec("caller", "b", &["call", "10.99.0.2:8080"]));
    assert_eq!((exit.code, output.as_str()), (0, "hello 10.99.0.3\n"));
    let (_, output) = host.run(&host.spec("beside", "a", &["call", "127.0.0.1:8080"]));
    assert!(output.contains("refused"), "the server has answered once and is gone: {output}");
    host.runtime.delete_sandbox("b").unwrap();
    eventually("the veth goes with the sandbox", || net.link("veth-b").unwrap().is_none());
    host.finish();
}

/// KIA-NET-005.
fn localhost_is_there_in_both_versions() {
    let host = Host::new();
    host.sandbox("s");
    host.start(&host.spec("server", "s", &["serve-both", "8080"]));
    host.await_output("server", "listening");
    let call = |id: &str, address: &str| host.run(&host.spec(id, "s", &["call", address])).1;
    assert_eq!(call("four", "127.0.0.1:8080"), "hello ::ffff:127.0.0.1\n");
    match fs::metadata("/proc/net/if_inet6") {
        Ok(_) => assert_eq!(call("six", "[::1]:8080"), "hello ::1\n"),
        Err(_) => println!("skipped: the kernel has no IPv6"),
    }
    host.finish();
}

/// KIA-NET-006: as an init container does for those after it.
fn what_one_container_makes_of_the_network_stays() {
    let host = Host::new();
    host.sandbox("s");
    let mut maker = host.spec("maker", "s", &["make-bridge", "made"]);
    maker.process.capabilities.add = vec!["NET_ADMIN".into()];
    assert_eq!(host.run(&maker).1, "made\n");
    host.runtime.delete_container("maker").unwrap();
    let seen = host.run(&host.spec("user", "s", &["list", "/sys/class/net"])).1;
    assert!(seen.split_whitespace().any(|name| name == "made"), "{seen}");
    host.finish();
}

/// A namespace behind a link of the host's: a pod at its bridge, or somebody outside.
pub(crate) fn behind(
    host: &NetNs,
    what: &str,
    link: &str,
    (near, far): (Option<&str>, &str),
) -> (Scratch, NetNs) {
    let (scratch, inside) = Scratch::new(what);
    let mut net = Netlink::open_in(host).unwrap();
    let master = near.is_none().then_some("br");
    net.add_veth(VethPair {
        name: link,
        peer_name: "eth0",
        peer_netns: Some(&inside),
        mtu: None,
        master,
        up: true,
    })
    .unwrap();
    if let Some(near) = near {
        net.add_address(link, prefix(near)).unwrap();
    }
    let gateway = near.map_or("10.88.0.1", |near| near.split('/').next().unwrap());
    let mut pod = Netlink::open_in(&inside).unwrap();
    pod.add_address("eth0", prefix(far)).unwrap();
    pod.set_up("lo").unwrap();
    pod.set_up("eth0").unwrap();
    pod.replace_route(&Route::via(Prefix::DEFAULT_V4, ip(gateway))).unwrap();
    (scratch, inside)
}

/// Who the server says that the caller is.
pub(crate) fn answer(from: &NetNs, at: &str) -> Result<String, std::io::ErrorKind> {
    let at: SocketAddr = at.parse().unwrap();
    let called = from.run(|| TcpStream::connect_timeout(&at, Duration::from_secs(3))).unwrap();
    let mut stream = called.map_err(|error| error.kind())?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.kind())?;
    Ok(text)
}

fn ports_of_the_host_lead_into_a_namespace() {
    let (_scratch, host) = Scratch::new("h");
    let mut net = Netlink::open_in(&host).unwrap();
    net.set_up("lo").unwrap();
    net.add_bridge("br").unwrap();
    net.add_address("br", prefix("10.88.0.1/24")).unwrap();
    net.set_up("br").unwrap();
    sysctl::set_in(&host, "net.ipv4.ip_forward", "1").unwrap();
    let (_scratch2, pod) = behind(&host, "p1", "v1", (None, "10.88.0.2/24"));
    net.set_hairpin("v1", true).unwrap();
    let (_scratch3, neighbour) = behind(&host, "p2", "v2", (None, "10.88.0.3/24"));
    let (_scratch4, outside) = behind(&host, "o", "up", (Some("192.0.2.1/24"), "192.0.2.9/24"));
    let listener = pod.run(|| TcpListener::bind("0.0.0.0:8080")).unwrap().unwrap();
    let datagrams = pod.run(|| UdpSocket::bind("0.0.0.0:5353")).unwrap().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().unwrap().ip();
            drop(write!(stream, "{peer}"));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = datagrams.recv_from(&mut buffer) {
            drop(datagrams.send_to(&buffer[..length], peer));
        }
    });
    let forward = |transport, host_address: Option<&str>, host_port, port| PortForward {
        transport,
        host_address: host_address.map(|address| address.parse().unwrap()),
        host_port,
        address: "10.88.0.2".parse().unwrap(),
        port,
    };
    let forwards = [
        forward(Transport::Tcp, None, 80, 8080),
        forward(Transport::Tcp, Some("127.0.0.1"), 81, 8080),
        forward(Transport::Udp, Some("192.0.2.1"), 53, 5353),
        forward(Transport::Sctp, None, 99, 99),
    ];
    let behind = |bridge| Behind { bridge, network: prefix("10.88.0.0/24") };
    let set = |forwards: &[PortForward]| {
        host.run(|| set_port_forwards("barque-test", behind("br"), forwards)).unwrap()
    };
    for _ in 0..2 {
        set(&forwards).unwrap();
    }
    assert_eq!(answer(&outside, "192.0.2.1:80").as_deref(), Ok("192.0.2.9"), "the caller is not hidden");
    assert_eq!(answer(&host, "192.0.2.1:80").as_deref(), Ok("192.0.2.1"));
    assert_eq!(answer(&host, "127.0.0.1:80").as_deref(), Ok("10.88.0.1"));
    assert_eq!(answer(&host, "127.0.0.1:81").as_deref(), Ok("10.88.0.1"));
    assert_eq!(answer(&pod, "192.0.2.1:80").as_deref(), Ok("10.88.0.1"), "to itself, past the host");
    assert_eq!(answer(&neighbour, "10.88.0.1:80").as_deref(), Ok("10.88.0.1"));
    assert!(answer(&outside, "192.0.2.1:81").is_err(), "that port is the loopback's alone");
    let caller = outside.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    caller.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    caller.send_to(b"ping", "192.0.2.1:53").unwrap();
    let mut buffer = [0; 64];
    let (length, from) = caller.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.to_string().as_str()), (&b"ping"[..], "192.0.2.1:53"));

    set(&forwards[1..]).unwrap();
    assert_eq!(answer(&outside, "192.0.2.1:80"), Err(std::io::ErrorKind::ConnectionRefused));
    set(&[]).unwrap();
    set(&[]).unwrap();
    assert_eq!(answer(&host, "127.0.0.1:81"), Err(std::io::ErrorKind::ConnectionRefused));
    let wrong = behind("no-such-bridge");
    let error = host.run(|| set_port_forwards("barque-test", wrong, &forwards)).unwrap().unwrap_err();
    assert!(error.to_string().contains("no-such-bridge"), "{error}");
}

fn a_tunnel_is_kept_while_it_is_the_same() {
    let (_scratch, netns) = Scratch::new("vx");
    let mut netlink = Netlink::open_in(&netns).unwrap();
    netlink
        .add_veth(VethPair {
            name: "lower",
            peer_name: "peer",
            peer_netns: None,
            mtu: Some(1400),
            master: None,
            up: true,
        })
        .unwrap();
    let wanted = Vxlan { name: "vx", id: 7, port: 4789, local: ip("10.9.0.1"), device: "lower" };
    netlink.add_vxlan(wanted).unwrap();
    let first = netlink.link("vx").unwrap().unwrap();
    assert_eq!((&first.kind, first.mtu), (&LinkKind::Vxlan, 1400 - vxlan_overhead(wanted.local)));
    netlink.add_vxlan(wanted).unwrap();
    assert_eq!(netlink.link("vx").unwrap().unwrap().index, first.index, "it is the same one");
    for other in
        [Vxlan { id: 8, ..wanted }, Vxlan { port: 8472, ..wanted }, Vxlan { local: ip("fd00::1"), ..wanted }]
    {
        let before = netlink.link("vx").unwrap().unwrap();
        netlink.add_vxlan(other).unwrap();
        let now = netlink.link("vx").unwrap().unwrap();
        assert_ne!(now.index, before.index, "{other:?}");
        assert_eq!(now.mtu, 1400 - vxlan_overhead(other.local), "{other:?}");
    }
    // What is no tunnel is not taken away.
    netlink.add_bridge("br").unwrap();
    let refused = netlink.add_vxlan(Vxlan { name: "br", ..wanted }).unwrap_err().to_string();
    assert!(refused.contains("bridge"), "{refused}");
    let lost = netlink.add_vxlan(Vxlan { name: "vy", device: "nowhere", ..wanted }).unwrap_err().to_string();
    assert!(lost.contains("nowhere"), "{lost}");

    let mac = [2, 0x42, 10, 1, 2, 0];
    for _ in 0..2 {
        netlink.replace_neighbour("vx", ip("10.1.2.0"), mac).unwrap();
    }
    assert!(netlink.delete_neighbour("vx", ip("10.1.2.0")).unwrap());
    assert!(!netlink.delete_neighbour("vx", ip("10.1.2.0")).unwrap());
    netlink.add_vxlan(wanted).unwrap();
    for _ in 0..2 {
        netlink.replace_remote("vx", mac, ip("10.9.0.2")).unwrap();
    }
    for link in ["vx", "vx", "gone"] {
        netlink.delete_remote(link, mac, ip("10.9.0.2")).unwrap();
    }
}

fn ranges_are_reached_through_a_tunnel() {
    let ((_a, one), (_b, two)) = (Scratch::new("ta"), Scratch::new("tb"));
    let mut first = Netlink::open_in(&one).unwrap();
    let veth = VethPair {
        name: "eth0",
        peer_name: "eth0",
        peer_netns: Some(&two),
        mtu: None,
        master: None,
        up: true,
    };
    first.add_veth(veth).unwrap();
    let mut second = Netlink::open_in(&two).unwrap();
    for (netlink, own, end) in [(&mut first, "1", "10.1.1.0"), (&mut second, "2", "10.1.2.0")] {
        netlink.add_address("eth0", prefix(&format!("10.9.0.{own}/24"))).unwrap();
        netlink.set_up("eth0").unwrap();
        let local = ip(&format!("10.9.0.{own}"));
        netlink.add_vxlan(Vxlan { name: "vx", id: 7, port: 4789, local, device: "eth0" }).unwrap();
        netlink.set_mac("vx", mac_of(ip(end))).unwrap();
        netlink.add_address("vx", Prefix::host(ip(end))).unwrap();
        netlink.set_up("vx").unwrap();
    }
    for (netlink, host, network, end) in [
        (&mut first, "10.9.0.2", "10.1.2.0/24", "10.1.2.0"),
        (&mut second, "10.9.0.1", "10.1.1.0/24", "10.1.1.0"),
    ] {
        // The newest host counts.
        for host in ["10.9.0.77", host] {
            netlink.replace_remote("vx", mac_of(ip(end)), ip(host)).unwrap();
        }
        netlink.replace_neighbour("vx", ip(end), mac_of(ip(end))).unwrap();
        let route = Route {
            device: Some("vx".into()),
            gateway_is_on_link: true,
            ..Route::via(prefix(network), ip(end))
        };
        netlink.replace_route(&route).unwrap();
        assert!(netlink.routes().unwrap().contains(&route));
    }
    second.set_up("lo").unwrap();
    second.add_address("lo", prefix("10.1.2.9/32")).unwrap();
    let listener = two.run(|| TcpListener::bind("10.1.2.9:80")).unwrap().unwrap();
    let asked = one.run(|| TcpStream::connect("10.1.2.9:80")).unwrap().unwrap();
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer, asked.local_addr().unwrap());
    assert_eq!(peer.ip(), ip("10.1.1.0"), "the host's own packets come from its end");
}
