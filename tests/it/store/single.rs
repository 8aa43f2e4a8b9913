//! One member alone: its ports, its life, its snapshots.

use super::process::Place;
use crate::support::{eventually, run, text};

#[tokio::test]
async fn a_member_serves_clients_health_and_metrics_and_keeps_what_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new("a", directory.path());
    let mut running = place.start(&[]);
    place.put("k", "v").await;
    let health = eventually(|| Some(place.http("/health")).filter(|(code, _)| *code == 200));
    assert_eq!(health.1, r#"{"health":"true","reason":""}"#);
    let (_, version) = place.http("/version");
    assert!(version.contains(r#""etcdserver":"3.5."#), "{version}");
    assert_eq!(place.http("/readyz").1, "ok\n");
    assert_eq!(place.http("/nothing").0, 404);
    let (_, metrics) = place.http("/metrics");
    for line in [
        "etcd_server_has_leader 1",
        "etcd_server_is_leader 1",
        r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
        r#"etcd_disk_wal_fsync_duration_seconds_bucket{le="0.001"}"#,
    ] {
        assert!(metrics.lines().any(|found| found.starts_with(line)), "{line} is not in\n{metrics}");
    }
    assert_eq!(running.terminate(), Some(0));

    let _running = place.start(&[]);
    assert_eq!(place.get("k", 0).await.unwrap().value.as_deref(), Some("v"));
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new("a", directory.path());
    let ended = place.refused(&["--bogus"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("there is no flag --bogus"), "{}", ended.stderr);
    assert!(!place.data_dir.exists());
    std::fs::create_dir_all(place.data_dir.join("member/wal")).unwrap();
    let ended = place.refused(&[]);
    assert!(ended.stderr.contains("belongs to etcd"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_snapshot_becomes_a_new_cluster_far_ahead() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new("a", directory.path());
    let mut running = place.start(&[]);
    place.put("k", "1").await;
    place.put("k", "2").await;
    let before = place.get("k", 0).await.unwrap();
    let file = directory.path().join("snapshot.db");
    let saved = place.ask(&["snapshot", "save", text(&file)]);
    assert_eq!(saved.code, Some(0), "{}", saved.stderr);
    place.put("k", "3").await;
    assert_eq!(running.terminate(), Some(0));

    let status = run(&["snapshot", "status", text(&file), "-w", "json"]);
    assert!(status.stdout.contains(&format!("\"revision\":{}", before.revision)), "{}", status.stdout);

    let restored = Place { data_dir: directory.path().join("restored"), ..Place::new("a", directory.path()) };
    let peer = format!("http://{}", restored.peer);
    let flags =
        ["--name", "a", "--data-dir", text(&restored.data_dir), "--initial-advertise-peer-urls", &peer];
    let made = run(&[&["snapshot", "restore", text(&file)][..], &flags].concat());
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let again = run(&[&["snapshot", "restore", text(&file)][..], &flags].concat());
    assert!(again.stderr.contains("is not empty"), "{}", again.stderr);

    let mut running = restored.start(&[]);
    let after = restored.get("k", 0).await.unwrap();
    assert_eq!(after.value.as_deref(), Some("2"));
    assert_ne!(after.cluster_id, before.cluster_id);
    assert!(after.revision > before.revision + 1_000_000, "{}", after.revision);
    let old = restored.get("k", before.revision).await.err().expect("compacted");
    assert_eq!(old.message(), "etcdserver: mvcc: required revision has been compacted");
    restored.put("k", "4").await;
    assert_eq!(running.terminate(), Some(0));
    let _running = restored.start(&[]);
    assert_eq!(restored.get("k", 0).await.unwrap().value.as_deref(), Some("4"));

    let mut damaged = std::fs::read(&file).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&file, damaged).unwrap();
    let refused = run(&["snapshot", "status", text(&file)]);
    assert!(refused.stderr.contains("SHA-256"), "{}", refused.stderr);
}

#[tokio::test]
async fn what_is_left_of_a_lost_cluster_goes_on_and_the_old_one_is_fenced() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new("a", directory.path());
    let mut running = place.start(&[]);
    place.put("k", "v").await;
    let before = place.get("k", 0).await.unwrap();
    assert_eq!(running.terminate(), Some(0));

    let recovered =
        Place { data_dir: directory.path().join("recovered"), ..Place::new("a", directory.path()) };
    let made = run(&[
        "store",
        "recover",
        "--from",
        text(&place.data_dir),
        "--name",
        "a",
        "--data-dir",
        text(&recovered.data_dir),
        "--initial-advertise-peer-urls",
        &format!("http://{}", recovered.peer),
    ]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let old = place.refused(&[]);
    assert!(old.stderr.contains("was given up"), "{}", old.stderr);

    let _running = recovered.start(&[]);
    let after = recovered.get("k", 0).await.unwrap();
    assert_eq!(after.value.as_deref(), Some("v"));
    assert!(after.revision > before.revision);
    assert_ne!(after.cluster_id, before.cluster_id);
}
