//! One address for the API of three masters, with stock kubectl and curl: it is where the leader is, whatever becomes of that.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use runtime::net::{NetNs, Netlink};

use super::{Lab, PATIENCE, kubectl_ok, kubectls, measured, skip, skipped};

const NAME: &str = "it-virtual";

/// The masters whose machine has the address.
fn holders(address: Ipv4Addr) -> Vec<String> {
    let masters = (1..=3).map(|number| format!("master-{number}"));
    let has = |master: &String| {
        let namespace = NetNs::open_named(&format!("{NAME}-{master}")).unwrap();
        let addresses = Netlink::open_in(&namespace).unwrap().addresses().unwrap();
        addresses.iter().any(|found| found.prefix.address() == IpAddr::V4(address))
    };
    masters.filter(has).collect()
}

/// Whether the API answers at an address.
fn answers(address: Ipv4Addr, lab: &Lab) -> bool {
    let ca = lab.cluster.directory().join("ca.crt");
    let call = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "0.3", "--cacert"];
    let url = format!("https://{address}:6443/readyz");
    let output = Command::new("curl").args(call).arg(ca).arg(url).output().unwrap();
    output.stdout == b"200"
}

/// Asks until the API answers and that is done; the longest time without an answer.
async fn silence(address: Ipv4Addr, lab: &Lab, is_done: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    let (mut last, mut longest) = (begun, Duration::ZERO);
    loop {
        if answers(address, lab) {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            if is_done() {
                return longest;
            }
        }
        assert!(begun.elapsed() < PATIENCE, "no answer at {address}; it is at {:?}", holders(address));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until_only(holder: &str, address: Ipv4Addr) {
    let since = Instant::now();
    while holders(address) != [holder] {
        assert!(since.elapsed() < PATIENCE, "{address} is at {:?}, not at {holder}", holders(address));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_has_one_address_that_follows_the_leader() {
    let test = "the_api_has_one_address_that_follows_the_leader";
    if skipped(test) {
        return;
    }
    let Some(program) = kubectls().pop() else { return skip(test, "there is no kubectl on PATH") };
    let lab = Lab::up_with_virtual_address(NAME, 3, 1).await;
    let plan = std::fs::read(lab.cluster.directory().join("plan.json")).unwrap();
    let plan: serde_json::Value = serde_json::from_slice(&plan).unwrap();
    let address: Ipv4Addr = plan["virtual_address"].as_str().unwrap().parse().unwrap();
    let leader = lab.cluster.leader(PATIENCE).unwrap();
    until_only(&leader, address).await;
    let server = format!("https://{address}:6443");
    let nodes = || kubectl_ok(&program, &lab.cluster, &["--server", &server, "get", "nodes"]);
    assert!(nodes().contains("node-1"));

    // Its process is killed: nobody but the kernel can take the address from its machine.
    lab.cluster.kill(&leader).unwrap();
    let silent = silence(address, &lab, || true).await;
    measured(&format!("the API's virtual address was silent for {silent:?} after its leader was killed"));
    assert!(nodes().contains("node-1"));
    let next = lab.cluster.leader(PATIENCE).unwrap();
    assert_ne!(next, leader);
    until_only(&next, address).await;
    lab.cluster.complete().unwrap();

    // It is asked to end: it gives leadership and address up.
    lab.cluster.terminate(&next).unwrap();
    let silent = silence(address, &lab, || !holders(address).contains(&next)).await;
    measured(&format!(
        "the API's virtual address was silent for {silent:?} after its leader was asked to end"
    ));
    let last = lab.cluster.leader(PATIENCE).unwrap();
    assert_ne!(last, next);
    until_only(&last, address).await;
    lab.cluster.complete().unwrap();
    assert!(answers(address, &lab), "a member that comes back takes nothing away");
    lab.down();
}
