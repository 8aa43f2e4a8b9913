//! Services in a real packet filter: pods, a host and somebody outside call addresses that nobody has.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use runtime::net::{
    Backend, DatagramPlace, Frontend, NetNs, Netlink, Pool, Route, Scope, ServiceRules, ServiceTable,
    ServiceTableConfig, Transport, WhenEmpty, announce_address, forget_dead_flows, sysctl,
};

use crate::Test;
use crate::network::{Scratch, answer, behind, prefix};

pub(crate) const TESTS: &[Test] = &[
    ("services::connections_are_led_to_backends", connections_are_led_to_backends),
    ("services::callers_come_back_and_datagrams_follow", callers_come_back_and_datagrams_follow),
    ("services::a_bridge_that_is_not_filtered_hides_pods", a_bridge_that_is_not_filtered_hides_pods),
    ("services::what_others_do_to_the_table_is_put_right", what_others_do_to_the_table_is_put_right),
    ("services::only_some_callers_are_let_in", only_some_callers_are_let_in),
    ("services::neighbours_believe_the_newest_announcement", neighbours_believe_the_newest_announcement),
    ("services::ten_thousand_services_cost_no_more_than_one", ten_thousand_services_cost_no_more_than_one),
];

const VIRTUAL: &str = "10.96.0.7:80";
const BRIDGE_FILTER: &str = "net.bridge.bridge-nf-call-iptables";

/// A host with a bridge, two pods that say who they are and who calls, and somebody outside.
struct Town {
    host: NetNs,
    pods: Vec<NetNs>,
    outside: NetNs,
    _scratches: Vec<Scratch>,
}

impl Town {
    fn new() -> Self {
        let (scratch, host) = Scratch::new("h");
        let mut net = Netlink::open_in(&host).unwrap();
        net.set_up("lo").unwrap();
        net.add_bridge("br").unwrap();
        net.add_address("br", prefix("10.88.0.1/24")).unwrap();
        net.set_up("br").unwrap();
        net.replace_route(&Route::on_link(prefix("10.96.0.0/16"), "br")).unwrap();
        sysctl::set_in(&host, "net.ipv4.ip_forward", "1").unwrap();
        let mut scratches = vec![scratch];
        let mut pods = Vec::new();
        for number in 2..=3u8 {
            let (scratch, pod) = behind(
                &host,
                &format!("p{number}"),
                &format!("v{number}"),
                (None, &format!("10.88.0.{number}/24")),
            );
            net.set_hairpin(&format!("v{number}"), true).unwrap();
            serve(&pod, number);
            scratches.push(scratch);
            pods.push(pod);
        }
        let (scratch, outside) = behind(&host, "o", "up", (Some("192.0.2.1/24"), "192.0.2.9/24"));
        scratches.push(scratch);
        Self { host, pods, outside, _scratches: scratches }
    }

    fn config(&self, bridge_is_filtered: bool) -> ServiceTableConfig {
        ServiceTableConfig {
            table: "barque-services-br".to_owned(),
            bridge: "br".to_owned(),
            own_pods: prefix("10.88.0.0/24"),
            all_pods: Some(prefix("10.88.0.0/16")),
            services: Some(prefix("10.96.0.0/16")),
            bridge_is_filtered,
        }
    }

    /// A table in which `s` is as said.
    fn table(&self, rules: ServiceRules) -> ServiceTable {
        let filtered = sysctl::set_in(&self.host, BRIDGE_FILTER, "1").is_ok();
        if !filtered {
            println!("skipped in part: bridges of this kernel do not meet the packet filter");
        }
        let mut table = ServiceTable::new(self.config(filtered));
        self.apply(&mut table, Some(rules));
        table
    }

    fn apply(&self, table: &mut ServiceTable, rules: Option<ServiceRules>) {
        self.host.run(|| table.apply([("s".to_owned(), rules)].into())).unwrap().unwrap();
    }

    /// Who answers and whom it sees, for so many calls.
    fn answers(&self, from: &NetNs, at: &str, calls: usize) -> BTreeMap<String, usize> {
        let mut seen = BTreeMap::new();
        for _ in 0..calls {
            *seen.entry(answer(from, at).unwrap()).or_default() += 1;
        }
        seen
    }
}

fn serve(pod: &NetNs, number: u8) {
    let listener = pod.run(|| TcpListener::bind("0.0.0.0:8080")).unwrap().unwrap();
    let datagrams = pod.run(|| UdpSocket::bind("0.0.0.0:5353")).unwrap().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().unwrap().ip();
            drop(write!(stream, "{number} sees {peer}"));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = datagrams.recv_from(&mut buffer) {
            drop(datagrams.send_to(&[number], peer));
        }
    });
}

fn backends(port: u16, numbers: &[u8]) -> BTreeSet<Backend> {
    numbers.iter().map(|number| Backend { address: Ipv4Addr::new(10, 88, 0, *number), port }).collect()
}

fn pool(numbers: &[u8]) -> Pool {
    Pool { backends: backends(8080, numbers), ..Pool::default() }
}

fn frontend(address: Option<&str>, port: u16) -> Frontend {
    Frontend { transport: Transport::Tcp, address: address.map(|text| text.parse().unwrap()), port }
}

/// A Service at its address, an outer address and a port of the host.
fn rules(pool: Pool) -> ServiceRules {
    let frontends =
        [frontend(Some("10.96.0.7"), 80), frontend(Some("203.0.113.5"), 80), frontend(None, 30080)];
    ServiceRules {
        pools: [("all".to_owned(), pool)].into(),
        frontends: frontends.map(|frontend| ((frontend, Scope::Everyone), "all".to_owned())).into(),
        callers: BTreeMap::new(),
    }
}

fn connections_are_led_to_backends() {
    let town = Town::new();
    let mut table = town.table(rules(pool(&[2, 3])));
    let filtered = table.config().bridge_is_filtered;
    let (first, second) = (&town.pods[0], &town.pods[1]);

    let seen = town.answers(first, VIRTUAL, 40);
    let itself = seen.get("2 sees 10.88.0.1").copied().unwrap_or_default();
    let other = if filtered { "3 sees 10.88.0.2" } else { "3 sees 10.88.0.1" };
    let other = seen.get(other).copied().unwrap_or_default();
    assert!(
        itself >= 5 && other >= 5 && itself + other == 40,
        "a pod is shown to others, not to itself: {seen:?}"
    );
    for at in [VIRTUAL, "192.0.2.1:30080", "10.88.0.1:30080"] {
        let seen = town.answers(&town.host, at, 20);
        assert!(
            seen.len() == 2 && seen.keys().all(|text| text.ends_with("sees 10.88.0.1")),
            "{at}: {seen:?}"
        );
    }
    let seen = town.answers(second, "10.88.0.1:30080", 20);
    assert_eq!(seen.len(), 2, "a pod at the host's port: {seen:?}");
    let seen = town.answers(&town.outside, "192.0.2.1:30080", 20);
    assert!(seen.len() == 2 && seen.keys().all(|text| text.ends_with("sees 10.88.0.1")), "{seen:?}");
    let seen = town.answers(&town.outside, "203.0.113.5:80", 20);
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(answer(&town.host, "127.0.0.1:30080").is_err(), "loopback is left alone");

    // From outside only to what is here, and as it is.
    let mut kept = rules(pool(&[2, 3]));
    kept.pools.insert("here".to_owned(), Pool { when_empty: WhenEmpty::Drop, ..pool(&[3]) });
    kept.frontends.insert((frontend(None, 30080), Scope::Outside), "here".to_owned());
    town.apply(&mut table, Some(kept.clone()));
    let seen = town.answers(&town.outside, "192.0.2.1:30080", 10);
    assert_eq!(seen.into_keys().collect::<Vec<_>>(), ["3 sees 192.0.2.9"]);
    assert_eq!(town.answers(first, "192.0.2.1:30080", 20).len(), 2, "pods are led everywhere");
    kept.pools.insert("here".to_owned(), Pool { when_empty: WhenEmpty::Drop, ..pool(&[]) });
    town.apply(&mut table, Some(kept));
    assert_eq!(answer(&town.outside, "192.0.2.1:30080"), Err(ErrorKind::TimedOut));

    // Nobody is behind it: callers hear at once. Nobody ever was: likewise.
    town.apply(&mut table, Some(rules(pool(&[]))));
    let begun = Instant::now();
    for (from, at) in [
        (first, VIRTUAL),
        (&town.host, VIRTUAL),
        (&town.outside, "192.0.2.1:30080"),
        (first, "10.96.0.7:81"),
        (&town.host, "10.96.3.3:80"),
    ] {
        assert_eq!(answer(from, at), Err(ErrorKind::ConnectionRefused), "{at}");
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    town.apply(&mut table, Some(rules(pool(&[3]))));
    assert_eq!(town.answers(first, VIRTUAL, 5).len(), 1);
    town.apply(&mut table, None);
    assert_eq!(answer(first, VIRTUAL), Err(ErrorKind::ConnectionRefused));
    town.host.run(|| table.remove()).unwrap().unwrap();
    town.host.run(|| table.remove()).unwrap().unwrap();
}

fn callers_come_back_and_datagrams_follow() {
    let town = Town::new();
    let sticky = |numbers: &[u8]| Pool { affinity: Some(Duration::from_secs(2)), ..pool(numbers) };
    let mut table = town.table(rules(sticky(&[2, 3])));
    let seen = town.answers(&town.outside, "203.0.113.5:80", 20);
    assert_eq!(seen.len(), 1, "the same backend each time: {seen:?}");
    let at_port = town.answers(&town.outside, "192.0.2.1:30080", 5);
    assert_eq!(at_port.keys().collect::<Vec<_>>(), seen.keys().collect::<Vec<_>>());
    // The backend is gone: another takes its place, though it is remembered.
    let (gone, stays) = if seen.keys().any(|text| text.starts_with('2')) { ("2", 3) } else { ("3", 2) };
    town.apply(&mut table, Some(rules(sticky(&[stays]))));
    let seen = town.answers(&town.outside, "203.0.113.5:80", 5);
    assert!(seen.keys().all(|text| !text.starts_with(gone)), "{seen:?}");
    // Memory ends.
    town.apply(&mut table, Some(rules(sticky(&[2, 3]))));
    let ended = (0..12).any(|_| {
        std::thread::sleep(Duration::from_millis(2_500));
        answer(&town.outside, "203.0.113.5:80").unwrap().starts_with(gone)
    });
    assert!(ended, "a caller that was away long enough may get any backend");

    let udp = |numbers: &[u8]| {
        let frontend =
            Frontend { transport: Transport::Udp, address: Some("10.96.0.8".parse().unwrap()), port: 53 };
        ServiceRules {
            pools: [("d".to_owned(), Pool { backends: backends(5353, numbers), ..Pool::default() })].into(),
            frontends: [((frontend, Scope::Everyone), "d".to_owned())].into(),
            callers: BTreeMap::new(),
        }
    };
    town.apply(&mut table, Some(udp(&[2])));
    let caller = town.pods[1].run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    caller.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let ask = || {
        let mut buffer = [0; 8];
        caller.send_to(b"?", "10.96.0.8:53").unwrap();
        let (_, from) = caller.recv_from(&mut buffer).unwrap();
        assert_eq!(from.to_string(), "10.96.0.8:53");
        buffer[0]
    };
    assert_eq!((ask(), ask()), (2, 2));
    town.apply(&mut table, Some(udp(&[3])));
    let place = DatagramPlace {
        address: Some("10.96.0.8".parse().unwrap()),
        port: 53,
        answered_by: ["10.88.0.3".parse().unwrap()].into(),
    };
    let forgotten = town.host.run(|| forget_dead_flows(&[place])).unwrap().unwrap();
    assert_eq!(forgotten, 1);
    assert_eq!(ask(), 3, "the same socket is led to who is there now");
}

fn a_bridge_that_is_not_filtered_hides_pods() {
    let town = Town::new();
    let off = sysctl::set_in(&town.host, BRIDGE_FILTER, "0");
    if off.is_err() {
        println!("bridges of this kernel never meet the packet filter");
    }
    let mut table = ServiceTable::new(town.config(false));
    town.apply(&mut table, Some(rules(pool(&[3]))));
    let seen = town.answers(&town.pods[0], VIRTUAL, 5);
    assert_eq!(seen.into_keys().collect::<Vec<_>>(), ["3 sees 10.88.0.1"]);
}

fn what_others_do_to_the_table_is_put_right() {
    let town = Town::new();
    let mut table = town.table(rules(pool(&[2, 3])));
    let check = |table: &mut ServiceTable| town.host.run(|| table.check()).unwrap().unwrap();
    assert!(!check(&mut table), "nobody has touched it");
    // Somebody takes it away; a change of another table is nothing to us.
    let mut other = ServiceTable::new(ServiceTableConfig { table: "other".to_owned(), ..town.config(true) });
    town.apply(&mut other, Some(ServiceRules::default()));
    assert!(!check(&mut table));
    let mut same = ServiceTable::new(town.config(true));
    town.host.run(|| same.remove()).unwrap().unwrap();
    assert_eq!(answer(&town.pods[0], "192.0.2.1:30080"), Err(ErrorKind::ConnectionRefused));
    assert!(check(&mut table));
    assert_eq!(town.answers(&town.pods[0], VIRTUAL, 20).len(), 2);
    // Somebody puts something else there, and a change meets it.
    town.apply(&mut same, Some(rules(pool(&[]))));
    assert!(answer(&town.pods[0], VIRTUAL).is_err());
    town.apply(&mut table, Some(rules(pool(&[3]))));
    assert!(answer(&town.pods[0], VIRTUAL).unwrap().starts_with('3'));
    assert!(!check(&mut table));
}

fn ten_thousand_services_cost_no_more_than_one() {
    let town = Town::new();
    let mut table = town.table(rules(pool(&[2])));
    let many = |index: u32| {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 97, 0, 0)) + index);
        let places = (0..5).map(|offset| Backend {
            address: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 120, 0, 0)) + index * 5 + offset),
            port: 80,
        });
        let frontend = Frontend { transport: Transport::Tcp, address: Some(address), port: 80 };
        ServiceRules {
            pools: [("all".to_owned(), Pool { backends: places.collect(), ..Pool::default() })].into(),
            frontends: [((frontend, Scope::Everyone), "all".to_owned())].into(),
            callers: BTreeMap::new(),
        }
    };
    let all = |from: u32| (0..10_000).map(|index| (format!("m{index}"), Some(many(index + from)))).collect();
    let begun = Instant::now();
    town.host.run(|| table.apply(all(0))).unwrap().unwrap();
    let programmed = begun.elapsed();
    let one_change = |index: u32| {
        let change = [(format!("m{index}"), Some(many(20_000 + index)))].into();
        let begun = Instant::now();
        town.host.run(|| table.apply(change)).unwrap().unwrap();
        begun.elapsed()
    };
    // The fastest one: others also waited for a processor.
    let changed = (0..20).map(one_change).min().unwrap();
    assert!(!town.host.run(|| table.check()).unwrap().unwrap());
    println!("measured: 10,000 Services with 5 endpoints each: {programmed:?}; one change: {changed:?}");
    assert!(programmed < Duration::from_secs(15), "{programmed:?}");
    assert!(changed < Duration::from_millis(20), "{changed:?}");
    assert!(answer(&town.pods[1], VIRTUAL).unwrap().starts_with('2'));
}

fn only_some_callers_are_let_in() {
    let town = Town::new();
    let guarded = |callers: &[(&str, &str)]| {
        let ranges = callers.iter().map(|(first, last)| (first.parse().unwrap(), last.parse().unwrap()));
        ServiceRules {
            callers: [(frontend(Some("203.0.113.5"), 80), ranges.collect())].into(),
            ..rules(pool(&[2, 3]))
        }
    };
    let mut table = town.table(guarded(&[("192.0.2.0", "192.0.2.8"), ("198.51.100.0", "198.51.100.255")]));
    let at = "203.0.113.5:80";
    let mut net = Netlink::open_in(&town.host).unwrap();
    net.replace_route(&Route::on_link(prefix("203.0.113.0/24"), "br")).unwrap();
    assert_eq!(answer(&town.outside, at), Err(ErrorKind::TimedOut), "192.0.2.9 is no caller");
    assert!(answer(&town.outside, "192.0.2.1:30080").is_ok(), "other ways in are nobody's business");
    assert!(answer(&town.host, at).is_ok(), "the host itself may");
    town.apply(&mut table, Some(guarded(&[("192.0.2.9", "192.0.2.9")])));
    assert!(answer(&town.outside, at).is_ok());
    assert_eq!(answer(&town.pods[0], at), Err(ErrorKind::TimedOut), "a pod is a caller, too");
    assert!(!town.host.run(|| table.check()).unwrap().unwrap());
    town.apply(&mut table, Some(rules(pool(&[2, 3]))));
    assert!(answer(&town.pods[0], at).is_ok());
}

fn neighbours_believe_the_newest_announcement() {
    let town = Town::new();
    // Two hosts on the outer network: the address moves from one to the other.
    let mut host = Netlink::open_in(&town.host).unwrap();
    host.add_address("up", prefix("192.0.2.77/32")).unwrap();
    town.host.run(|| announce_address("up", Ipv4Addr::new(192, 0, 2, 77))).unwrap().unwrap();
    let listener = town.host.run(|| TcpListener::bind("192.0.2.77:7777")).unwrap().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            drop(write!(stream, "here"));
        }
    });
    assert_eq!(answer(&town.outside, "192.0.2.77:7777").as_deref(), Ok("here"));
    // The neighbour's memory is of another link address, as after a move: the announcement puts it right.
    let wrong = [2, 0, 0, 0, 0, 1];
    let own = host.link("up").unwrap().unwrap().mac.unwrap();
    host.set_mac("up", wrong).unwrap();
    assert!(answer(&town.outside, "192.0.2.77:7777").is_err(), "it still sends to {own:?}");
    town.host.run(|| announce_address("up", Ipv4Addr::new(192, 0, 2, 77))).unwrap().unwrap();
    assert_eq!(answer(&town.outside, "192.0.2.77:7777").as_deref(), Ok("here"));
    let missing = town.host.run(|| announce_address("nobody", Ipv4Addr::new(192, 0, 2, 77))).unwrap();
    assert!(missing.unwrap_err().to_string().contains("nobody"));
}
