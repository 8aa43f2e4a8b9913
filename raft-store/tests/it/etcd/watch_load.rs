//! Watches that are many, slow, idle or cut off.

use std::time::{Duration, Instant};

use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use proto::etcd::etcdserverpb::watch_client::WatchClient;
use proto::etcd::etcdserverpb::watch_request::RequestUnion;
use tonic::transport::Channel;

use super::notes::{key, put};
use super::watch::Watching;
use crate::group::{Group, PATIENCE};

async fn connect(address: &str) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("it listens")
}

fn watch(name: &str, end: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: key(name), range_end: key(end), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_watchers_hear_of_every_change() {
    const STREAMS: usize = 20;
    const WATCHES: usize = 500;
    const CHANGES: usize = 20;
    let group = Group::start(1, |_| {}).await;
    group.leader().await;
    let address = group.serve_etcd(1);
    let mut kv = KvClient::new(connect(&address).await);
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        let client = WatchClient::new(connect(&address).await).max_decoding_message_size(usize::MAX);
        let mut stream = Watching::open(&client);
        for watch_number in 0..WATCHES {
            // All follow one range, and half of them a key of their own, too: 10,000 and 5,000.
            stream.create(watch("many/", "many0")).await;
            if watch_number % 2 == 0 {
                stream.create(watch(&format!("own/{number}/{watch_number}"), "")).await;
            }
        }
        streams.push(stream);
    }
    let begun = Instant::now();
    for n in 0..CHANGES {
        kv.put(put(&format!("many/{n}"), &"v".repeat(256))).await.expect("written");
    }
    let written = begun.elapsed();
    let listening = streams.into_iter().map(|mut stream| async move {
        let events = stream.events(WATCHES * CHANGES).await;
        for watch in events.chunks(CHANGES) {
            assert!(watch.iter().all(|(id, _)| *id == watch[0].0), "each watch gets every event");
            let revisions = watch.iter().map(|(_, event)| event.kv.as_ref().expect("a pair").mod_revision);
            assert!(revisions.collect::<Vec<_>>().is_sorted_by(|a, b| a < b), "once, and in order");
        }
        stream
    });
    let mut streams = futures_util::future::join_all(listening).await;
    let heard = begun.elapsed();
    println!(
        "{CHANGES} changes to {} watchers: written in {written:?}, heard in {heard:?}",
        STREAMS * WATCHES
    );

    kv.put(put("own/3/8", "v")).await.expect("written");
    let events = streams[3].events(1).await;
    assert_eq!(events[0].1.kv.as_ref().expect("a pair").key, key("own/3/8"));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_delays_nobody_and_misses_nothing() {
    const CHANGES: usize = 400;
    let group = Group::start(1, |_| {}).await;
    group.leader().await;
    let address = group.serve_etcd(1);
    let client = WatchClient::new(connect(&address).await).max_decoding_message_size(usize::MAX);
    let mut slow = Watching::open(&client);
    slow.create(watch("big/", "big0")).await;
    let mut kv = KvClient::new(connect(&address).await);
    let value = "v".repeat(100 * 1024);
    for n in 0..CHANGES {
        kv.put(put(&format!("big/{n:03}"), &value)).await.expect("written");
    }
    let events = slow.events(CHANGES).await;
    for (n, (_, event)) in events.iter().enumerate() {
        assert_eq!(event.kv.as_ref().expect("a pair").key, key(&format!("big/{n:03}")));
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_watch_hears_how_far_it_is() {
    let group = Group::start(1, |config| config.watch_progress_interval = Duration::from_millis(50)).await;
    group.leader().await;
    let address = group.serve_etcd(1);
    let client = WatchClient::new(connect(&address).await);
    let mut stream = Watching::open(&client);
    stream.create(watch("quiet", "")).await;
    stream.create(pb::WatchCreateRequest { progress_notify: true, ..watch("idle", "") }).await;
    let mut kv = KvClient::new(connect(&address).await);
    let written = kv.put(put("other", "v")).await.expect("written").into_inner().header.expect("a header");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let progress = stream.control().await;
        assert_eq!(progress.watch_id, 1, "only who asked");
        assert!(!progress.created && !progress.canceled && progress.events.is_empty());
        if progress.header.expect("a header").revision == written.revision {
            break;
        }
        assert!(Instant::now() < deadline, "progress does not reach {}", written.revision);
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_revisions_are_cut_for_those_who_ask_and_no_piece_is_too_large() {
    const LIMIT: usize = 64 * 1024;
    let group = Group::start(1, |config| config.request_bytes_max = LIMIT).await;
    group.leader().await;
    let address = group.serve_etcd(1);
    let mut kv = KvClient::new(connect(&address).await);
    for n in 0..10 {
        kv.put(put(&format!("cut/{n}"), &"v".repeat(30 * 1024))).await.expect("written");
    }
    let client = WatchClient::new(connect(&address).await).max_decoding_message_size(LIMIT + 1024);
    let mut stream = Watching::open(&client);
    stream
        .create(pb::WatchCreateRequest { fragment: true, start_revision: 1, ..watch("cut/", "cut0") })
        .await;
    let mut found = 0;
    let mut last = None;
    while found < 10 {
        let message = stream.message().await;
        found += message.events.len();
        last = Some(message.fragment);
    }
    assert_eq!((found, last), (10, Some(false)), "the last piece says that it is");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_needs_a_leader_ends_without_one() {
    let mut group = Group::start(3, |config| config.read_timeout = Duration::from_secs(1)).await;
    let survivor = group.a_follower().await;
    let address = group.serve_etcd(survivor);
    let mut client = WatchClient::new(connect(&address).await);
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(watch("a", ""))) };
    let requests = futures_util::StreamExt::chain(tokio_stream::iter([create]), tokio_stream::pending());
    let mut request = tonic::Request::new(requests);
    request.metadata_mut().insert("hasleader", "true".parse().expect("ascii"));
    let mut responses = client.watch(request).await.expect("a stream").into_inner();
    assert!(responses.message().await.expect("answered").expect("an answer").created);
    for id in [1, 2, 3].into_iter().filter(|id| *id != survivor) {
        group.stop_member(id).await;
    }
    let ended =
        tokio::time::timeout(PATIENCE, responses.message()).await.expect("ends").expect_err("with a reason");
    assert_eq!((ended.code(), ended.message()), (tonic::Code::Unavailable, "etcdserver: no leader"));
    group.stop().await;
}
