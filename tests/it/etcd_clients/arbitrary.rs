//! Anything at all, sent to every method that the `.proto` files name: no member ends, no request goes without
//! an answer, and all members have the same state afterwards.
//!
//! Messages are made from the descriptors, so a method that is added is tested without a line here. The short run
//! is part of the suite and always the same. The long one:
//!
//! ```sh
//! BARQUE_FUZZ_REQUESTS=200000 BARQUE_FUZZ_SEED=$RANDOM cargo test --release -p barque --test it arbitrary
//! ```

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost_reflect::prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::alarm_request::AlarmAction;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::net::TcpStream;

use super::group::{Group, System};
use crate::support::DEADLINE;

/// Requests of the short run.
const REQUESTS: u64 = 1500;
/// Some methods wait by design (locks, observers): after this the request is given up.
const GIVE_UP: Duration = Duration::from_millis(100);
/// How deep messages within messages go.
const DEPTH_MAX: usize = 4;

#[test]
fn arbitrary_requests_end_no_member_and_make_none_differ() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let requests = number("BARQUE_FUZZ_REQUESTS").unwrap_or(REQUESTS);
    let seed = number("BARQUE_FUZZ_SEED").unwrap_or(1);
    println!("BARQUE_FUZZ_SEED={seed}");
    let mut group = Group::start(&System::Barque);
    let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    event_loop.block_on(async {
        let mut fuzzer = Fuzzer::new(&group, seed).await;
        for _ in 0..requests {
            fuzzer.request().await;
            group.assert_all_run();
        }
        clear_alarms(&group.clients[0]).await;
        same_state(&group.clients).await;
    });
}

/// A method and what it takes.
struct Method {
    path: String,
    input: MessageDescriptor,
}

struct Fuzzer {
    members: Vec<SendRequest<Full<Bytes>>>,
    methods: Vec<Method>,
    random: StdRng,
}

impl Fuzzer {
    async fn new(group: &Group, seed: u64) -> Self {
        let mut members = Vec::new();
        for client in &group.clients {
            let stream = TcpStream::connect(client).await.unwrap();
            let (send, driver) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
                .handshake(TokioIo::new(stream))
                .await
                .unwrap();
            tokio::spawn(driver);
            members.push(send);
        }
        Self { members, methods: methods(), random: StdRng::seed_from_u64(seed) }
    }

    /// One request to one member.
    async fn request(&mut self) {
        let random = &mut self.random;
        let method = &self.methods[random.random_range(0..self.methods.len())];
        let mut body = Vec::new();
        for _ in 0..random.random_range(1..3) {
            let payload = match random.random_range(0..4) {
                0 => (0..random.random_range(0..200)).map(|_| random.random()).collect(),
                1 => damaged(message(random, &method.input, 0).encode_to_vec(), random),
                _ => message(random, &method.input, 0).encode_to_vec(),
            };
            body.push(0);
            body.extend((payload.len() as u32).to_be_bytes());
            body.extend(payload);
        }
        let member = random.random_range(0..self.members.len());
        let request = http::Request::post(format!("http://member{}", method.path))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(body.clone())))
            .unwrap();
        let answer = self.members[member].send_request(request);
        let answer = async {
            let answer = answer.await?;
            let status = answer.headers().contains_key("grpc-status");
            let body = answer.into_body().collect().await?;
            Ok::<_, hyper::Error>(status || body.trailers().is_some_and(|t| t.contains_key("grpc-status")))
        };
        match tokio::time::timeout(GIVE_UP, answer).await {
            Ok(Ok(true)) | Err(_) => {}
            Ok(Ok(false)) => panic!("{}: an answer without a status to {body:?}", method.path),
            Ok(Err(error)) => panic!("{}: {error} to {body:?}", method.path),
        }
    }
}

/// Every method of etcd's services.
fn methods() -> Vec<Method> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let files = ["etcd/rpc.proto", "etcd/lock.proto", "etcd/election.proto"];
    let pool = DescriptorPool::from_file_descriptor_set(protox::compile(files, [root]).unwrap()).unwrap();
    let methods: Vec<Method> = pool
        .services()
        .flat_map(|service| {
            let name = service.full_name().to_owned();
            service.methods().map(move |method| (name.clone(), method)).collect::<Vec<_>>()
        })
        .map(|(service, method)| Method {
            path: format!("/{service}/{}", method.name()),
            input: method.input(),
        })
        .collect();
    assert!(methods.len() > 40, "{} methods", methods.len());
    methods
}

/// A well-formed message with arbitrary content.
fn message(random: &mut StdRng, descriptor: &MessageDescriptor, depth: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        let is_message = matches!(field.kind(), Kind::Message(_));
        if random.random_bool(0.4) || (is_message && depth >= DEPTH_MAX) {
            continue;
        }
        if field.is_list() {
            let count = random.random_range(0..3);
            let values = (0..count).map(|_| value(random, &field, depth)).collect();
            message.set_field(&field, Value::List(values));
        } else if !field.is_map() {
            let value = value(random, &field, depth);
            message.set_field(&field, value);
        }
    }
    message
}

fn value(random: &mut StdRng, field: &FieldDescriptor, depth: usize) -> Value {
    let number = integer(random);
    match field.kind() {
        Kind::Double => Value::F64(number as f64),
        Kind::Float => Value::F32(number as f32),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number as i32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(number as u32),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(number as u64),
        Kind::Bool => Value::Bool(random.random()),
        Kind::String => Value::String(String::from_utf8_lossy(&octets(random)).into_owned()),
        Kind::Bytes => Value::Bytes(octets(random).into()),
        Kind::Message(inner) => Value::Message(message(random, &inner, depth + 1)),
        Kind::Enum(inner) => {
            let known: Vec<i32> = inner.values().map(|value| value.number()).collect();
            let pick = known[random.random_range(0..known.len())];
            Value::EnumNumber(if random.random_bool(0.1) { number as i32 } else { pick })
        }
    }
}

/// Numbers at which things turn, and small ones, which meet each other.
fn integer(random: &mut StdRng) -> i64 {
    match random.random_range(0..10) {
        0 => i64::MAX,
        1 => i64::MIN,
        2 => -1,
        3 => random.random(),
        _ => random.random_range(0..50),
    }
}

/// Few keys, so that requests meet on them; sometimes anything.
fn octets(random: &mut StdRng) -> Vec<u8> {
    const KNOWN: [&[u8]; 7] = [b"", b"\0", b"a", b"b", b"a/1", b"a0", b"\xff"];
    if random.random_bool(0.1) {
        let count = random.random_range(0..2000);
        return (0..count).map(|_| random.random()).collect();
    }
    KNOWN[random.random_range(0..KNOWN.len())].to_vec()
}

fn damaged(mut bytes: Vec<u8>, random: &mut StdRng) -> Vec<u8> {
    for _ in 0..random.random_range(1..4) {
        if !bytes.is_empty() {
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
        }
    }
    bytes
}

/// An alarm that a request raised may stop writes, and reads even.
async fn clear_alarms(client: &str) {
    let mut maintenance = MaintenanceClient::connect(format!("http://{client}")).await.unwrap();
    let Ok(listed) = maintenance.alarm(pb::AlarmRequest::default()).await else { return };
    for alarm in listed.into_inner().alarms {
        let action = AlarmAction::Deactivate.into();
        let clear = pb::AlarmRequest { action, member_id: alarm.member_id, alarm: alarm.alarm };
        maintenance.alarm(clear).await.unwrap();
    }
}

/// Waits until all members answer the same for the whole keyspace.
async fn same_state(clients: &[String]) {
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        let mut states = Vec::new();
        for client in clients {
            let mut kv = KvClient::connect(format!("http://{client}")).await.unwrap();
            let everything = pb::RangeRequest {
                key: Bytes::from_static(b"\0"),
                range_end: Bytes::from_static(b"\0"),
                serializable: true,
                ..pb::RangeRequest::default()
            };
            let answer = kv.range(everything).await.unwrap().into_inner();
            states.push((answer.header.unwrap().revision, answer.kvs));
        }
        if states.iter().all(|state| *state == states[0]) {
            assert!(states[0].0 > 1, "some of the requests wrote");
            return;
        }
        assert!(std::time::Instant::now() < deadline, "members differ: {states:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
