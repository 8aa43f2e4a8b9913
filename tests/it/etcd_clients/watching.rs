//! watch. Every watch begins at a revision, so that nothing depends on when it is there.

use super::with_every_etcdctl;

#[test]
fn etcdctl_watches() {
    with_every_etcdctl("watches", |ctl| {
        let prefix = ctl.key("watch/");
        let [a, b] = ["watch/a", "watch/b"].map(|name| ctl.key(name));
        let from = (ctl.revision() + 1).to_string();
        let watch = ctl.start(&["watch", &prefix, "--prefix", "--prev-kv", "--rev", &from]);
        ctl.ok(&["put", &a, "1"]);
        ctl.ok(&["put", &a, "2"]);
        ctl.ok(&["put", &b, "1"]);
        ctl.ok(&["del", &prefix, "--prefix"]);
        let expected = ["PUT", &a, "1", "PUT", &a, "1", &a, "2", "PUT", &b, "1"];
        let deleted = ["DELETE", &a, "2", &a, "", "DELETE", &b, "1", &b, ""];
        for line in expected.iter().chain(&deleted) {
            assert_eq!(watch.line(), *line);
        }
        // From history, one key, and then what is new.
        let watch = ctl.start(&["watch", &b, "--rev", &from]);
        for line in ["PUT", &b, "1", "DELETE", &b, ""] {
            assert_eq!(watch.line(), line);
        }
        ctl.ok(&["put", &b, "again"]);
        for line in ["PUT", &b, "again"] {
            assert_eq!(watch.line(), line);
        }
        let run = ctl.start(&["watch", &a, "--rev", &from, "--", "sh", "-c", "echo seen $ETCD_WATCH_VALUE"]);
        assert_eq!(run.line(), "PUT");
        let revision = ctl.revision().to_string();
        ctl.ok(&["compaction", &revision]);
        let watch = ctl.command(&["watch", &a, "--rev", &from]).output().unwrap();
        let error = String::from_utf8_lossy(&watch.stderr);
        assert!(error.contains("mvcc: required revision has been compacted"), "{error}");
    });
}
