//! Members whose disk is full, or gone.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chaos_tests::cluster::disk::PowerDisk;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::Channel;

use super::process::Place;
use crate::support::{DEADLINE, eventually, skipped};

/// Room for two segments of the log, a checkpoint and a little.
const DISK_BYTES: u64 = 320 * 1024 * 1024;
const VALUE_BYTES: usize = 1024 * 1024;
/// More than the log has room for once the rest of the disk is taken.
const WRITES_MAX: usize = 400;

/// A checkpoint after every other entry, so that it meets the full disk too.
const CHECKPOINT_OFTEN: &[&str] = &["--snapshot-count", "2"];

/// A member with a disk of its own. What it says goes elsewhere.
struct OnOwnDisk {
    place: Place,
    disk: PowerDisk,
    _directory: TempDir,
}

impl OnOwnDisk {
    /// `None`, said aloud: this machine cannot have such a disk.
    fn new() -> Option<Self> {
        if let Some(why) = PowerDisk::missing() {
            skipped(why);
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let disk = match PowerDisk::create(directory.path(), DISK_BYTES) {
            Ok(disk) => disk,
            Err(error) => {
                skipped(&format!("no disk of its own: {error:#}"));
                return None;
            }
        };
        let mut place = Place::new("a", directory.path());
        place.data_dir = disk.path().join("a");
        Some(Self { place, disk, _directory: directory })
    }
}

fn large_put(number: usize) -> pb::PutRequest {
    pb::PutRequest {
        key: Bytes::from(format!("large-{}", number % 4)),
        value: Bytes::from(vec![number as u8; VALUE_BYTES]),
        ..pb::PutRequest::default()
    }
}

/// Takes all that is left of a disk.
fn fill(directory: &Path) -> PathBuf {
    let path = directory.join("ballast");
    let mut file = File::create(&path).unwrap();
    for size in [1 << 20, 4096] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
    let _full = file.sync_all();
    path
}

async fn write_until_refused(kv: &mut KvClient<Channel>) -> (usize, tonic::Status) {
    for number in 0..WRITES_MAX {
        if let Err(status) = kv.put(large_put(number)).await {
            return (number, status);
        }
    }
    panic!("a full disk takes everything");
}

#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_recovers() {
    let Some(OnOwnDisk { place, disk, .. }) = &OnOwnDisk::new() else { return };
    let mut runs = place.start(CHECKPOINT_OFTEN);
    place.put("small", "1").await;
    let ballast = fill(disk.path());

    let mut kv = place.kv().await;
    let (written, refusal) = write_until_refused(&mut kv).await;
    assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal:?}\n{}", place.said());
    assert_eq!(refusal.message(), "etcdserver: mvcc: database space exceeded");
    let last = format!("large-{}", (written - 1) % 4);
    let found = |answer: pb::RangeResponse| answer.kvs.first().map(|kv| kv.value[0]);
    let read = kv.range(pb::RangeRequest { key: Bytes::from(last), ..Default::default() }).await.unwrap();
    assert_eq!(found(read.into_inner()), Some((written - 1) as u8), "reads go on");
    let delete = pb::DeleteRangeRequest { key: Bytes::from_static(b"small"), ..Default::default() };
    assert_eq!(kv.delete_range(delete).await.unwrap().into_inner().deleted, 1, "what frees space goes on");
    assert!(runs.child.try_wait().unwrap().is_none(), "{}", place.said());

    std::fs::remove_file(ballast).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while let Err(status) = kv.put(large_put(written)).await {
        assert!(Instant::now() < deadline, "{status:?}\n{}", place.said());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(runs.terminate(), Some(0), "{}", place.said());

    // What the full disk did to the checkpoint is no concern of the next start.
    let _runs = place.start(CHECKPOINT_OFTEN);
    assert_eq!(place.get("small", 0).await.unwrap().value, None);
    let key = Bytes::from(format!("large-{}", written % 4));
    let mut kv = place.kv().await;
    let read = kv.range(pb::RangeRequest { key, ..Default::default() }).await.unwrap();
    assert_eq!(found(read.into_inner()), Some(written as u8), "{}", place.said());
}

#[tokio::test]
async fn a_member_whose_disk_fails_acknowledges_nothing_more_and_loses_nothing() {
    let Some(OnOwnDisk { place, disk, .. }) = &OnOwnDisk::new() else { return };
    let mut runs = place.start(&[]);
    place.put("before", "1").await;
    let mut kv = place.kv().await;

    disk.cut_power().unwrap();
    let put = pb::PutRequest { key: Bytes::from_static(b"after"), ..pb::PutRequest::default() };
    let status = kv.put(put).await.expect_err("nothing reaches this disk");
    assert!(
        matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown),
        "{status:?}"
    );
    // It does not go on as if nothing had happened; whoever looks after it starts it again.
    let code = eventually(|| runs.child.try_wait().unwrap()).code();
    let said = place.said();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("write-ahead log failed"), "{said}");

    disk.unplug().unwrap();
    disk.power_on().unwrap();
    let _runs = place.start(&[]);
    assert_eq!(place.get("before", 0).await.unwrap().value.as_deref(), Some("1"));
}
