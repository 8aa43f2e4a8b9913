//! Members that come and go, by the operator's commands.

use super::process::Place;
use crate::support::eventually;

/// The lines of `member list`, each cut into its columns.
fn list(place: &Place) -> Vec<Vec<String>> {
    let ended = place.ask(&["member", "list"]);
    let columns = |line: &str| line.split(", ").map(str::to_owned).collect();
    ended.stdout.lines().map(columns).collect()
}

#[tokio::test]
async fn a_cluster_grows_moves_its_leader_and_shrinks() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (Place::new("a", directory.path()), Place::new("b", directory.path()));
    let _a_runs = a.start(&[]);
    a.put("k", "v").await;
    eventually(|| list(&a).first().is_some_and(|row| row[1] == "started").then_some(()));

    let urls = format!("http://{}", b.peer);
    let added = a.ask(&["member", "add", "b", "--peer-urls", &urls]);
    assert_eq!(added.code, Some(0), "{}", added.stderr);
    assert!(added.stdout.contains("ETCD_INITIAL_CLUSTER_STATE=\"existing\""), "{}", added.stdout);
    let cluster = format!("{},{}", a.listed(), b.listed());
    let b_runs = b.start(&["--initial-cluster", &cluster, "--initial-cluster-state", "existing"]);
    assert_eq!(b.get("k", 0).await.unwrap().value.as_deref(), Some("v"));
    let rows = eventually(|| {
        Some(list(&a)).filter(|rows| rows.len() == 2 && rows.iter().all(|row| row[1] == "started"))
    });
    let b_id = rows.iter().find(|row| row[2] == "b").unwrap()[0].clone();

    eventually(|| {
        let moved = a.ask(&["leader", "transfer", &b_id]);
        moved.stdout.contains(&format!("to {b_id}")).then_some(())
    });
    let a_id = rows.iter().find(|row| row[2] == "a").unwrap()[0].clone();
    eventually(|| b.ask(&["leader", "transfer", &a_id]).stdout.contains("transferred").then_some(()));
    let removed =
        eventually(|| Some(a.ask(&["member", "remove", &b_id])).filter(|ended| ended.code == Some(0)));
    assert!(removed.stdout.contains("removed from cluster"), "{}", removed.stdout);
    let mut b_runs = b_runs;
    let code = eventually(|| b_runs.child.try_wait().unwrap()).code();
    assert_eq!(code, Some(1));
    let log = b.said();
    assert!(log.contains("permanently removed"), "{log}");
    a.put("k", "w").await;
    assert_eq!(list(&a).len(), 1);
    let unknown = a.ask(&["member", "remove", &b_id]);
    assert!(unknown.stderr.contains("etcdserver: member not found"), "{}", unknown.stderr);
}
