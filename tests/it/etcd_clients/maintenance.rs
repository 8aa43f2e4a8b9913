//! alarm, defrag, snapshot, make-mirror, check.

use super::with_every_etcdctl;
use crate::support::{eventually, text};

#[test]
fn etcdctl_maintains() {
    with_every_etcdctl("maintenance", |ctl| {
        assert_eq!(ctl.ok(&["alarm", "list"]), "");
        assert_eq!(ctl.ok(&["alarm", "disarm"]), "");
        let defragmented = ctl.ok(&["defrag"]);
        for client in &ctl.group.clients {
            assert!(
                defragmented.contains(&format!("Finished defragmenting etcd member[{client}]")),
                "{defragmented}"
            );
        }
        let key = ctl.key("saved");
        ctl.ok(&["put", &key, "v"]);
        let file = ctl.group.directory.path().join(format!("snapshot-{}", ctl.version));
        let saved = ctl.ok_at(0, &["snapshot", "save", text(&file)]);
        assert!(saved.contains("Snapshot saved at"), "{saved}");
        assert!(std::fs::metadata(&file).unwrap().len() > 0);
        if !ctl.is_barque() {
            // Ours is no bbolt file: `barque snapshot status` reads it.
            let status = ctl.ok(&["snapshot", "status", text(&file), "-w", "json"]);
            assert!(status.contains("totalKey"), "{status}");
        }
    });
}

#[test]
fn etcdctl_mirrors() {
    with_every_etcdctl("mirrors", |ctl| {
        let [from, to] = ["mirror-from/", "mirror-to/"].map(|name| ctl.key(name));
        ctl.ok(&["put", &format!("{from}old"), "1"]);
        let _mirror =
            ctl.start(&["make-mirror", "--prefix", &from, "--dest-prefix", &to, &ctl.group.clients[1]]);
        let copy = || ctl.ok(&["get", &to, "--prefix"]);
        eventually(|| (copy() == format!("{to}old\n1\n")).then_some(()));
        ctl.ok(&["put", &format!("{from}new"), "2"]);
        ctl.ok(&["del", &format!("{from}old")]);
        eventually(|| (copy() == format!("{to}new\n2\n")).then_some(()));
    });
}
