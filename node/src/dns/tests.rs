use serde_json::json;
use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE};

use super::*;
use crate::network::cluster::{Key, Kind};

fn question(names: &[&str]) -> Vec<u8> {
    let mut packet = Packet::new_query(7);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    for name in names {
        let (kind, class) = (QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN));
        packet.questions.push(simple_dns::Question::new(Name::new(name).unwrap(), kind, class, false));
    }
    packet.build_bytes_vec().unwrap()
}

fn asked(name: &str) -> Box<Question> {
    match read(&question(&[name])) {
        Read::Question(question) => question,
        Read::Refused(_) | Read::Noise => panic!("{name} is a question"),
    }
}

fn responder(network: ClusterNetwork, upstreams: Upstreams) -> Arc<Responder> {
    let zone = Zone::new("cluster.local");
    Arc::new(Responder { zone, network: Arc::new(network), forwarder: Forwarder::new(upstreams) })
}

/// A headless Service with so many endpoints.
fn network(endpoints: u8) -> ClusterNetwork {
    let network = ClusterNetwork::default();
    network.index(Default::default());
    let key = |kind| Key { kind, namespace: "d".to_owned(), name: "s".to_owned() };
    let service = json!({"metadata": {"name": "s", "namespace": "d"}, "spec": {"clusterIP": "None"}});
    let all: Vec<_> = (1..=endpoints).map(|n| json!({"addresses": [format!("10.244.0.{n}")]})).collect();
    let slice = json!({"metadata": {"name": "s", "namespace": "d", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4", "endpoints": all});
    network.apply([
        (key(Kind::Service), Some((1, service.to_string().into()))),
        (key(Kind::EndpointSlice), Some((1, slice.to_string().into()))),
    ]);
    network
}

#[test]
fn what_is_not_known_yet_is_failed_not_denied() {
    let early = responder(ClusterNetwork::default(), Upstreams::default());
    let code = |responder: &Responder, name: &str| {
        let answer = responder.own_answer(&asked(name)).unwrap().unwrap();
        let answer = Packet::parse(&answer).unwrap();
        assert!(answer.id() == 7 && answer.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED));
        assert_eq!(answer.questions[0].qname.to_string(), name);
        answer.rcode()
    };
    assert_eq!(code(&early, "no.d.svc.cluster.local"), RCODE::ServerFailure);
    let told = responder(network(1), Upstreams::default());
    assert_eq!(code(&told, "no.d.svc.cluster.local"), RCODE::NameError);
    assert_eq!(code(&told, "S.d.svc.cluster.local"), RCODE::NoError);
    assert_eq!(code(&told, "d.svc.cluster.local"), RCODE::NoError);
    assert_eq!(code(&told, "example.com"), RCODE::NameError, "there is nobody to ask");
    let Read::Refused(refused) = read(&question(&["a", "b"])) else { panic!("two questions at once") };
    assert_eq!(Packet::parse(&refused).unwrap().rcode(), RCODE::FormatError);
    assert!(matches!(read(&refused), Read::Noise), "answers are not answered");
    for length in 0..40 {
        let _no_panic = read(&question(&["s.d.svc.cluster.local"])[..length]);
    }
}

#[tokio::test]
async fn long_answers_are_cut_off_and_whole_over_tcp() {
    let responder = responder(network(200), Upstreams::default());
    let datagrams = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, over_tcp) = (datagrams.local_addr().unwrap(), listener.local_addr().unwrap());
    let (one, other) = (Arc::clone(&responder), Arc::clone(&responder));
    tokio::spawn(async move { serve_datagrams(datagrams, &one).await });
    tokio::spawn(async move { serve_connections(listener, &other).await });

    let bytes = question(&["s.d.svc.cluster.local"]);
    let caller = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    caller.send_to(b"no question", at).await.unwrap();
    caller.send_to(&bytes, at).await.unwrap();
    let mut buffer = vec![0; 4096];
    let length = caller.recv(&mut buffer).await.unwrap();
    let answer = Packet::parse(&buffer[..length]).unwrap();
    assert!(length <= 512 && answer.has_flags(PacketFlag::TRUNCATION) && answer.answers.is_empty());

    let mut stream = TcpStream::connect(over_tcp).await.unwrap();
    for _ in 0..2 {
        let length = (bytes.len() as u16).to_be_bytes();
        stream.write_all(&[&length[..], &bytes].concat()).await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut buffer = vec![0; usize::from(length)];
        stream.read_exact(&mut buffer).await.unwrap();
        assert_eq!(Packet::parse(&buffer).unwrap().answers.len(), 200);
    }
}

#[tokio::test]
async fn others_are_asked_once_and_remembered() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = server.local_addr().unwrap();
    let asked_count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&asked_count);
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, caller)) = server.recv_from(&mut buffer).await {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let question = Packet::parse(&buffer[..length]).unwrap();
            let mut answer = Packet::new_reply(question.id());
            answer.questions.clone_from(&question.questions);
            let data = RData::A(A::from(std::net::Ipv4Addr::new(192, 0, 2, 7)));
            let name = question.questions[0].qname.clone();
            answer.answers.push(ResourceRecord::new(name, CLASS::IN, 60, data));
            // Somebody else's answer comes first: it is not taken.
            let mut forged = answer.clone();
            forged.set_id(answer.id() ^ 1);
            server.send_to(&forged.build_bytes_vec().unwrap(), caller).await.unwrap();
            server.send_to(&answer.build_bytes_vec().unwrap(), caller).await.unwrap();
        }
    });
    let stubs = [("example".to_owned(), vec![at])].into();
    let responder = responder(network(1), Upstreams { all: Vec::new(), stubs });
    for name in ["a.example", "A.example", "a.example"] {
        let question = asked(name);
        assert!(responder.own_answer(&question).is_none());
        let answer = responder.others_answer(&question).await.unwrap();
        let answer = Packet::parse(&answer).unwrap();
        assert_eq!(answer.answers[0].rdata, RData::A(A::from(std::net::Ipv4Addr::new(192, 0, 2, 7))));
        assert_eq!((answer.id(), answer.questions[0].qname.to_string().as_str()), (7, name));
    }
    assert_eq!(asked_count.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn servers_of_the_host_are_read() {
    let text = "# c\nnameserver 9.9.9.9\nsearch lan\nnameserver fd00::1 \nnameserver x\n";
    assert_eq!(host_servers(text), ["9.9.9.9".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
}
