//! Policies in a real packet filter: who reaches whom, between pods of one node, from outside, and through Services.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use runtime::net::{
    Allowed, Backend, Block, Frontend, NetNs, Netlink, PodRules, PolicyRules, PolicyTable, Pool, Ports,
    Route, Scope, ServiceRules, ServiceTable, ServiceTableConfig, Transport, sysctl,
};

use crate::Test;
use crate::network::{Scratch, behind, prefix};

pub(crate) const TESTS: &[Test] = &[
    ("policies::who_reaches_whom", who_reaches_whom),
    ("policies::connections_that_were_allowed_go_on", connections_that_were_allowed_go_on),
    ("policies::what_others_do_to_the_table_is_put_right", what_others_do_to_the_table_is_put_right),
    ("policies::a_thousand_policies_cost_no_more_than_one", a_thousand_policies_cost_no_more_than_one),
];

const BRIDGE_FILTER: &str = "net.bridge.bridge-nf-call-iptables";
const TABLE: &str = "barque-policies-br";
/// For how long an answer is waited for that should not come.
const SILENCE: Duration = Duration::from_millis(300);

/// A host with a bridge, three pods, and somebody outside. Pods listen at 8080 and 9090, and at 5353 of UDP.
struct Town {
    host: NetNs,
    pods: Vec<NetNs>,
    outside: NetNs,
    _scratches: Vec<Scratch>,
}

impl Town {
    /// `None`: the bridges of this kernel do not meet the packet filter.
    fn new() -> Option<Self> {
        let (scratch, host) = Scratch::new("h");
        let mut net = Netlink::open_in(&host).unwrap();
        net.set_up("lo").unwrap();
        net.add_bridge("br").unwrap();
        net.add_address("br", prefix("10.88.0.1/24")).unwrap();
        net.set_up("br").unwrap();
        net.replace_route(&Route::on_link(prefix("10.96.0.0/16"), "br")).unwrap();
        sysctl::set_in(&host, "net.ipv4.ip_forward", "1").unwrap();
        if sysctl::set_in(&host, BRIDGE_FILTER, "1").is_err() {
            println!("skipped: bridges of this kernel do not meet the packet filter");
            return None;
        }
        let mut scratches = vec![scratch];
        let mut pods = Vec::new();
        for number in 2..=4u8 {
            let place = format!("10.88.0.{number}/24");
            let (scratch, pod) = behind(&host, &format!("p{number}"), &format!("v{number}"), (None, &place));
            net.set_hairpin(&format!("v{number}"), true).unwrap();
            serve(&pod);
            scratches.push(scratch);
            pods.push(pod);
        }
        let (scratch, outside) = behind(&host, "o", "up", (Some("192.0.2.1/24"), "192.0.2.9/24"));
        serve(&outside);
        scratches.push(scratch);
        Some(Self { host, pods, outside, _scratches: scratches })
    }

    fn set(&self, table: &mut PolicyTable, rules: &PolicyRules) {
        self.host.run(|| table.set(rules.clone())).unwrap().unwrap();
    }

    fn place(&self, who: &str) -> (&NetNs, Ipv4Addr) {
        match who {
            "a" => (&self.pods[0], Ipv4Addr::new(10, 88, 0, 2)),
            "b" => (&self.pods[1], Ipv4Addr::new(10, 88, 0, 3)),
            "c" => (&self.pods[2], Ipv4Addr::new(10, 88, 0, 4)),
            "host" => (&self.host, Ipv4Addr::new(10, 88, 0, 1)),
            _ => (&self.outside, Ipv4Addr::new(192, 0, 2, 9)),
        }
    }

    /// All of `from>to:port` that get an answer.
    fn reached(&self, asked: &[&str]) -> BTreeSet<String> {
        let answers = |text: &&&str| {
            let (from, rest) = text.split_once('>').unwrap();
            let (to, port) = rest.split_once(':').unwrap();
            let at = match to.parse() {
                Ok(address) => address,
                Err(_) => self.place(to).1,
            };
            let namespace = self.place(from).0;
            match port {
                "udp" => namespace.run(|| asks_by_datagram(SocketAddr::from((at, 5353)))).unwrap(),
                port => namespace.run(|| asks(SocketAddr::from((at, port.parse().unwrap())))).unwrap(),
            }
        };
        asked.iter().filter(answers).map(|text| (*text).to_owned()).collect()
    }
}

fn serve(place: &NetNs) {
    for port in [8080, 9090] {
        let listener = place.run(|| TcpListener::bind(("0.0.0.0", port))).unwrap().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
                });
            }
        });
    }
    let datagrams = place.run(|| UdpSocket::bind("0.0.0.0:5353")).unwrap().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((count, peer)) = datagrams.recv_from(&mut buffer) {
            drop(datagrams.send_to(&buffer[..count], peer));
        }
    });
}

/// Whether a byte comes back.
fn echoes(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    let mut byte = [0];
    stream.write_all(b"?").is_ok() && stream.read_exact(&mut byte).is_ok()
}

fn asks(at: SocketAddr) -> bool {
    TcpStream::connect_timeout(&at, SILENCE).is_ok_and(|mut stream| echoes(&mut stream))
}

fn asks_by_datagram(at: SocketAddr) -> bool {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket.send_to(b"?", at).is_ok() && socket.recv_from(&mut [0; 8]).is_ok()
}

fn tcp(first: u16, last: u16) -> Ports {
    Ports::Of { transport: Transport::Tcp, first, last }
}

fn pod(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, number)
}

fn allowed(peers: &[(u8, Ports)], blocks: &[(&str, &str, Ports)]) -> Allowed {
    let block = |(first, last, ports): &(&str, &str, Ports)| Block {
        first: first.parse().unwrap(),
        last: last.parse().unwrap(),
        ports: [*ports].into(),
    };
    Allowed {
        peers: peers.iter().map(|(number, ports)| (pod(*number), [*ports].into())).collect(),
        blocks: blocks.iter().map(block).collect(),
    }
}

/// Classes by name, and which pod has which: ingress, egress.
fn rules(classes: &[(&str, Allowed)], pods: &[(u8, Option<&str>, Option<&str>)]) -> PolicyRules {
    let named = |name: &Option<&str>| name.map(str::to_owned);
    PolicyRules {
        classes: classes.iter().map(|(name, allowed)| ((*name).to_owned(), allowed.clone())).collect(),
        pods: pods
            .iter()
            .map(|(number, ingress, egress)| {
                (pod(*number), PodRules { ingress: named(ingress), egress: named(egress) })
            })
            .collect(),
    }
}

const EVERYTHING: &[&str] = &[
    "a>b:8080",
    "a>b:9090",
    "a>b:udp",
    "a>c:8080",
    "b>a:8080",
    "b>a:udp",
    "b>c:8080",
    "c>a:8080",
    "c>b:8080",
    "host>a:8080",
    "host>b:8080",
    "a>host:8080",
    "outside>a:8080",
    "outside>a:9090",
    "outside>b:8080",
    "a>outside:8080",
    "a>outside:9090",
    "a>outside:udp",
    "b>outside:8080",
    "a>a:8080",
];

fn who_reaches_whom() {
    let Some(town) = Town::new() else { return };
    serve(&town.host);
    let mut table = PolicyTable::new(TABLE);
    let all: BTreeSet<String> = EVERYTHING.iter().map(|text| (*text).to_owned()).collect();
    let without = |missing: &[&str]| -> BTreeSet<String> {
        missing.iter().for_each(|text| assert!(all.contains(*text), "{text}"));
        all.iter().filter(|text| !missing.contains(&text.as_str())).cloned().collect()
    };
    let mut expect = |what: &str, rules: PolicyRules, missing: &[&str]| {
        town.set(&mut table, &rules);
        assert_eq!(town.reached(EVERYTHING), without(missing), "{what}");
    };
    let none = || allowed(&[], &[]);
    expect("nobody is held to anything", PolicyRules::default(), &[]);
    expect(
        "nobody calls a; its node does",
        rules(&[("none", none())], &[(2, Some("none"), None)]),
        &["b>a:8080", "b>a:udp", "c>a:8080", "outside>a:8080", "outside>a:9090"],
    );
    expect(
        "a calls nobody, but its node and itself",
        rules(&[("none", none())], &[(2, None, Some("none"))]),
        &["a>b:8080", "a>b:9090", "a>b:udp", "a>c:8080", "a>outside:8080", "a>outside:9090", "a>outside:udp"],
    );
    expect(
        "b calls a at one port; who is outside at others",
        rules(
            &[("some", allowed(&[(3, tcp(8080, 8080))], &[("192.0.2.0", "192.0.2.255", tcp(9000, 9100))]))],
            &[(2, Some("some"), None)],
        ),
        &["b>a:udp", "c>a:8080", "outside>a:8080"],
    );
    let except = [("0.0.0.0", "192.0.2.8", Ports::All), ("192.0.2.10", "255.255.255.255", Ports::All)];
    expect(
        "a calls all but who is outside; c is called by b and a of which a may not",
        rules(
            &[("all-but", allowed(&[], &except)), ("from-b", allowed(&[(3, Ports::All)], &[]))],
            &[(2, None, Some("all-but")), (4, Some("from-b"), None)],
        ),
        &["a>outside:8080", "a>outside:9090", "a>outside:udp", "a>c:8080"],
    );
    let datagrams = Ports::Of { transport: Transport::Udp, first: 0, last: u16::MAX };
    expect(
        "both sides have to agree",
        rules(
            &[
                ("udp-to-b", allowed(&[(3, datagrams)], &[])),
                ("from-all", allowed(&[], &[("0.0.0.0", "255.255.255.255", Ports::All)])),
            ],
            &[(2, None, Some("udp-to-b")), (3, Some("from-all"), None)],
        ),
        &["a>b:8080", "a>b:9090", "a>c:8080", "a>outside:8080", "a>outside:9090", "a>outside:udp"],
    );
    expect("everything is open again", PolicyRules::default(), &[]);

    // Through a Service what counts is where the connection is led.
    let mut services = ServiceTable::new(ServiceTableConfig {
        table: "barque-services-br".to_owned(),
        bridge: "br".to_owned(),
        own_pods: prefix("10.88.0.0/24"),
        all_pods: Some(prefix("10.88.0.0/16")),
        services: Some(prefix("10.96.0.0/16")),
        bridge_is_filtered: true,
    });
    let backends = [Backend { address: pod(3), port: 8080 }].into();
    let frontend =
        Frontend { transport: Transport::Tcp, address: Some(Ipv4Addr::new(10, 96, 0, 7)), port: 80 };
    let service = ServiceRules {
        pools: [("all".to_owned(), Pool { backends, ..Pool::default() })].into(),
        frontends: [((frontend, Scope::Everyone), "all".to_owned())].into(),
        callers: BTreeMap::new(),
    };
    town.host.run(|| services.apply([("s".to_owned(), Some(service))].into())).unwrap().unwrap();
    let asked =
        ["a>10.96.0.7:80", "b>10.96.0.7:80", "c>10.96.0.7:80", "outside>10.96.0.7:80", "host>10.96.0.7:80"];
    assert_eq!(town.reached(&asked).len(), 5);
    let from_a = rules(&[("from-a", allowed(&[(2, tcp(8080, 8080))], &[]))], &[(3, Some("from-a"), None)]);
    town.set(&mut table, &from_a);
    let reached = town.reached(&asked);
    let expected = ["a>10.96.0.7:80", "b>10.96.0.7:80", "host>10.96.0.7:80"];
    assert_eq!(reached.iter().map(String::as_str).collect::<Vec<_>>(), expected, "b is what it calls");
    town.host.run(|| table.remove()).unwrap().unwrap();
    town.host.run(|| table.remove()).unwrap().unwrap();
    assert_eq!(town.reached(&asked).len(), 5);
}

fn connections_that_were_allowed_go_on() {
    let Some(town) = Town::new() else { return };
    let mut table = PolicyTable::new(TABLE);
    let held = rules(&[("none", allowed(&[], &[]))], &[(3, Some("none"), Some("none"))]);
    // On a node the table of Services has the kernel remember connections from the beginning.
    town.set(&mut table, &PolicyRules::default());
    let at = SocketAddr::from((pod(3), 8080));
    let mut stream = town.pods[0].run(|| TcpStream::connect(at)).unwrap().unwrap();
    assert!(echoes(&mut stream));
    town.set(&mut table, &held);
    assert!(echoes(&mut stream), "a connection that was allowed when it began goes on");
    assert!(town.reached(&["a>b:8080", "b>a:8080", "b>outside:8080"]).is_empty());

    // Before anybody knows what a pod is allowed: nothing, and others' rules stay as an earlier life left them.
    let mut later = PolicyTable::new(TABLE);
    town.host.run(|| later.forbid(pod(2), true, false)).unwrap().unwrap();
    let reached = town.reached(&["c>a:8080", "a>c:8080", "a>b:8080", "host>a:8080"]);
    assert_eq!(reached.into_iter().collect::<Vec<_>>(), ["a>c:8080", "host>a:8080"]);
    town.set(&mut later, &PolicyRules::default());
    assert_eq!(town.reached(&["c>a:8080", "a>b:8080"]).len(), 2);
    town.host.run(|| later.remove()).unwrap().unwrap();
    let mut first = PolicyTable::new(TABLE);
    town.host.run(|| first.forbid(pod(4), false, true)).unwrap().unwrap();
    assert_eq!(town.reached(&["c>a:8080", "a>c:8080"]).into_iter().collect::<Vec<_>>(), ["a>c:8080"]);
}

fn what_others_do_to_the_table_is_put_right() {
    let Some(town) = Town::new() else { return };
    let mut table = PolicyTable::new(TABLE);
    let blocks = [("10.0.0.0", "10.88.0.2", tcp(80, 90)), ("10.88.0.4", "10.255.255.255", Ports::All)];
    let held = rules(&[("some", allowed(&[(2, tcp(8080, 8080))], &blocks))], &[(3, Some("some"), None)]);
    town.set(&mut table, &held);
    let check = |table: &mut PolicyTable| town.host.run(|| table.check()).unwrap().unwrap();
    assert!(!check(&mut table), "nobody has touched it");
    let mut other = PolicyTable::new("other");
    town.set(&mut other, &PolicyRules::default());
    assert!(!check(&mut table), "a change of another table is nothing to us");
    let mut same = PolicyTable::new(TABLE);
    town.host.run(|| same.remove()).unwrap().unwrap();
    assert_eq!(town.reached(&["a>b:9090"]).len(), 1);
    assert!(check(&mut table));
    assert_eq!(
        town.reached(&["a>b:9090", "a>b:8080", "c>b:9090"]).into_iter().collect::<Vec<_>>(),
        ["a>b:8080", "c>b:9090"]
    );
    // Somebody puts something else there, and a change meets it.
    town.set(&mut same, &PolicyRules::default());
    let other_ports =
        rules(&[("some", allowed(&[(2, tcp(9090, 9090))], &blocks[1..]))], &[(3, Some("some"), None)]);
    town.set(&mut table, &other_ports);
    assert_eq!(
        town.reached(&["a>b:9090", "a>b:8080", "c>b:9090"]).into_iter().collect::<Vec<_>>(),
        ["a>b:9090", "c>b:9090"]
    );
    assert!(!check(&mut table));
}

fn a_thousand_policies_cost_no_more_than_one() {
    let Some(town) = Town::new() else { return };
    let mut table = PolicyTable::new(TABLE);
    let own = allowed(&[(3, tcp(8080, 8080))], &[]);
    town.set(&mut table, &rules(&[("own", own.clone())], &[(2, Some("own"), None)]));
    let calls = |count: u32| {
        let begun = Instant::now();
        for _ in 0..count {
            assert!(town.pods[1].run(|| asks(SocketAddr::from((pod(2), 8080)))).unwrap());
        }
        begun.elapsed() / count
    };
    calls(20);
    let alone = (0..5).map(|_| calls(50)).min().unwrap();
    // A thousand classes: a hundred others each, ranges, ports of their own.
    let class = |index: u32| {
        let peers = (0..100u32)
            .map(|peer| (Ipv4Addr::from_bits(0x0a60_0000 + index * 7 + peer), [tcp(80, 80)].into()));
        let first = Ipv4Addr::from_bits(0x0a70_0000 + index * 256);
        let block = Block {
            first,
            last: Ipv4Addr::from_bits(first.to_bits() + 200),
            ports: [tcp(index as u16, index as u16 + 3)].into(),
        };
        Allowed { peers: peers.collect(), blocks: vec![block] }
    };
    let mut all: BTreeMap<String, Allowed> =
        (0..1000).map(|index| (format!("c{index}"), class(index))).collect();
    all.insert("own".to_owned(), own);
    let mut pods: BTreeMap<Ipv4Addr, PodRules> = (0..1000u32)
        .map(|index| {
            let of_pod = PodRules { ingress: Some(format!("c{index}")), egress: None };
            (Ipv4Addr::from_bits(0x0a58_0100 + index), of_pod)
        })
        .collect();
    pods.insert(pod(2), PodRules { ingress: Some("own".to_owned()), egress: None });
    let mut many = PolicyRules { classes: all, pods };
    let begun = Instant::now();
    town.set(&mut table, &many);
    let programmed = begun.elapsed();
    let mut changed = Duration::MAX;
    for number in 0..10u8 {
        let peers = &mut many.classes.get_mut("c7").unwrap().peers;
        peers.insert(Ipv4Addr::new(10, 200, 0, number), [tcp(80, 80)].into());
        let next = many.clone();
        let begun = Instant::now();
        town.host.run(|| table.set(next)).unwrap().unwrap();
        changed = changed.min(begun.elapsed());
    }
    assert!(!town.host.run(|| table.check()).unwrap().unwrap());
    let among_many = (0..5).map(|_| calls(50)).min().unwrap();
    println!(
        "measured: 1,000 classes with 100 peers each: {programmed:?}; one change: {changed:?}; \
         a connection {alone:?} alone, {among_many:?} among them"
    );
    assert!(programmed < Duration::from_secs(15), "{programmed:?}");
    assert!(changed < Duration::from_millis(100), "{changed:?}");
    assert!(among_many < alone * 2 + Duration::from_millis(1), "{among_many:?} after {alone:?}");
}
