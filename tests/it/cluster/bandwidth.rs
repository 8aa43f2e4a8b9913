//! Pods that are held to a bandwidth, each way: no byte comes sooner than its annotations let it. Rows: KIA-ISO-009, WS-CG-14.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use chaos_tests::client::Client;
use http::Method;
use serde_json::json;

use super::stage::scripts;
use super::{Lab, PATIENCE, skip, skipped};
use crate::support::eventually;

const BYTES: usize = 1 << 20;
/// As `10M`: bits a second.
const BITS: u64 = 10_000_000;

/// As fast as a bound lets so many bytes through.
fn least() -> Duration {
    let bytes = BYTES as u64 - runtime::net::burst_bytes(BITS);
    Duration::from_secs_f64(bytes as f64 * 8.0 / BITS as f64)
}

/// The next connection of a pod.
fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let (stream, _) = eventually(|| listener.accept().ok());
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_sends_and_receives_no_faster_than_it_may() {
    let test = "a_pod_sends_and_receives_no_faster_than_it_may";
    if skipped(test) {
        return;
    }
    if !Path::new("/bin/bash").exists() {
        return skip(test, "there is no bash");
    }
    let lab = Lab::up("it-rates", 1, 1).await;
    let mut client = Client::from_kubeconfig(&lab.cluster.kubeconfig()).unwrap();
    let node = client.get("/api/v1/nodes/node-1").await.unwrap();
    let address = node["status"]["addresses"][0]["address"].as_str().unwrap();
    // The host's own address on the cluster's bridge.
    let gateway = format!("{}.1", address.rsplit_once('.').unwrap().0);
    let listener = TcpListener::bind((gateway.as_str(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();

    let dial = format!("exec 3<>/dev/tcp/{gateway}/{port}");
    let script = format!(
        "exec bash -c '{dial}; head -c {BYTES} /dev/zero >&3; exec 3>&-; {dial}; cat <&3 >/dev/null; exec 3>&-; sleep 1000'"
    );
    let mut pod = scripts("bounded", "node-1", &[("main", &script, json!({}))]);
    pod["metadata"]["annotations"] = json!({
        "kubernetes.io/egress-bandwidth": "10M", "kubernetes.io/ingress-bandwidth": "10M",
    });
    let pods = "/api/v1/namespaces/default/pods";
    let (status, said) = client.request(Method::POST, pods, Some(&pod)).await.unwrap();
    assert!(status.is_success(), "{said}");

    let mut stream = accept(&listener);
    let begun = Instant::now();
    let mut sent = Vec::new();
    stream.read_to_end(&mut sent).unwrap();
    assert_eq!(sent.len(), BYTES);
    assert!(begun.elapsed() >= least(), "it sent {BYTES} bytes within {:?}", begun.elapsed());
    drop(stream);

    let mut stream = accept(&listener);
    let begun = Instant::now();
    stream.write_all(&sent).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // The pod closes when it has read everything.
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(begun.elapsed() >= least(), "it received {BYTES} bytes within {:?}", begun.elapsed());

    // What makes no sense is told where people look.
    pod["metadata"]["name"] = json!("nonsense");
    pod["metadata"]["annotations"]["kubernetes.io/egress-bandwidth"] = json!("10");
    let (status, said) = client.request(Method::POST, pods, Some(&pod)).await.unwrap();
    assert!(status.is_success(), "{said}");
    let events = "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dnonsense";
    let mut said = String::new();
    for _ in 0..200 {
        said = client.get(events).await.unwrap().to_string();
        if said.contains("unreasonably small") {
            return lab.down();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nobody is told: {said}");
}
