//! How fast a link may send. What is bounded from below only: nothing arrives sooner than its bound lets it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use runtime::net::{NetNs, Netlink, VethPair, burst_bytes};

use crate::Test;
use crate::network::{Scratch, prefix};

pub(crate) const TESTS: &[Test] = &[
    (
        "rates::a_bound_holds_in_its_direction_and_can_be_replaced",
        a_bound_holds_in_its_direction_and_can_be_replaced,
    ),
    ("rates::a_link_that_is_not_there_is_told", a_link_that_is_not_there_is_told),
];

/// Bits a second.
const SLOW: u64 = 8_000_000;
const BYTES: usize = 1 << 20;

/// Sends so many bytes from one namespace to the other; how long that took.
fn send(from: &NetNs, to: &NetNs, server: &str) -> Duration {
    let address: SocketAddr = server.parse().unwrap();
    let listener = to.run(|| TcpListener::bind(address).unwrap()).unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received.len()
    });
    let mut stream = from.run(|| TcpStream::connect(address).unwrap()).unwrap();
    let begun = Instant::now();
    stream.write_all(&vec![7; BYTES]).unwrap();
    drop(stream);
    assert_eq!(receiver.join().unwrap(), BYTES);
    begun.elapsed()
}

/// As fast as a bound lets so many bytes through, headers not counted.
fn least(bits_per_second: u64) -> Duration {
    let bytes = BYTES as u64 - burst_bytes(bits_per_second);
    Duration::from_secs_f64(bytes as f64 * 8.0 / bits_per_second as f64)
}

fn a_bound_holds_in_its_direction_and_can_be_replaced() {
    let (_scratch, a) = Scratch::new("ra");
    let (_scratch2, b) = Scratch::new("rb");
    let mut near = Netlink::open_in(&a).unwrap();
    let mut far = Netlink::open_in(&b).unwrap();
    let pair =
        VethPair { name: "near", peer_name: "far", peer_netns: Some(&b), mtu: None, master: None, up: true };
    near.add_veth(pair).unwrap();
    near.add_address("near", prefix("192.0.2.1/24")).unwrap();
    far.add_address("far", prefix("192.0.2.2/24")).unwrap();
    far.set_up("far").unwrap();

    near.set_rate("near", SLOW).unwrap();
    let bounded = send(&a, &b, "192.0.2.2:7001");
    assert!(bounded >= least(SLOW), "{bounded:?}");
    let other_way = send(&b, &a, "192.0.2.1:7002");
    assert!(other_way < bounded, "only what leaves there is bounded: {other_way:?}");
    near.set_rate("near", SLOW / 2).unwrap();
    let halved = send(&a, &b, "192.0.2.2:7003");
    assert!(halved >= least(SLOW / 2), "{halved:?}");
    // More than 32 bits of bytes a second is another form of the same.
    near.set_rate("near", 100_000_000_000).unwrap();
    let free = send(&a, &b, "192.0.2.2:7004");
    assert!(free < bounded, "{free:?}");
}

fn a_link_that_is_not_there_is_told() {
    let (_scratch, a) = Scratch::new("rc");
    let error = Netlink::open_in(&a).unwrap().set_rate("missing", SLOW).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}
