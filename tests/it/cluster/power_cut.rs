//! All masters lose power at once, in the middle of writes.

use std::time::Duration;

use chaos_tests::client::Client;
use chaos_tests::cluster::disk::PowerDisk;
use chaos_tests::workload::creates::{Creates, missing};

use super::{Lab, PATIENCE, measured, skip, skipped};

const DISK_BYTES: u64 = 2 * 1024 * 1024 * 1024;
const CUTS: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_power_cut_of_all_masters() {
    let test = "what_was_acknowledged_survives_a_power_cut_of_all_masters";
    if skipped(test) {
        return;
    }
    if let Some(reason) = PowerDisk::missing() {
        return skip(test, reason);
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = match PowerDisk::create(directory.path(), DISK_BYTES) {
        Ok(disk) => disk,
        Err(error) => return skip(test, &format!("no disk of its own: {error:#}")),
    };
    let data_dir = disk.path().to_owned();
    let lab = Lab::up_in("it-power", 3, 1, directory, data_dir).await;
    let kubeconfig = lab.directory.path().join("kubeconfig");
    std::fs::copy(lab.cluster.kubeconfig(), &kubeconfig).unwrap();
    let pids: Vec<String> = lab.cluster.masters();
    let mut client = Client::from_kubeconfig(&kubeconfig).unwrap();
    for cut in 0..CUTS {
        let load = Creates::start(&kubeconfig, &format!("cut-{cut}"), 4).unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let everybody: Vec<i32> = pids
            .iter()
            .map(String::as_str)
            .chain(["node-1", "endpoint"])
            .map(|process| lab.cluster.pid(process).unwrap())
            .collect();
        disk.cut_power().unwrap();
        for pid in everybody {
            // Some end by themselves when their disk is gone.
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let history = load.stop().await.unwrap();
        assert!(history.acknowledged.len() > 20, "too little load to mean anything: {history:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
        disk.unplug().unwrap();
        disk.power_on().unwrap();
        lab.cluster.complete().unwrap();
        lab.cluster.leader(PATIENCE).unwrap();
        let lost = missing(&mut client, &history).await.unwrap();
        assert!(lost.is_empty(), "lost of {}: {lost:?}", history.acknowledged.len());
        measured(&format!("power cut {cut}: {} acknowledged writes, none lost", history.acknowledged.len()));
    }
    let Lab { cluster, options, .. } = &lab;
    assert!(cluster.barque(&["down"]).unwrap().status.success());
    let left = chaos_tests::cluster::leftovers(options).unwrap();
    assert!(left.is_empty(), "left behind: {left:#?}");
    drop(disk);
}
