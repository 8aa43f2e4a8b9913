//! put, get, del, txn, compaction.

use super::ctl::{Ctl, json};
use super::with_every_etcdctl;

#[test]
fn etcdctl_puts_gets_and_deletes() {
    with_every_etcdctl("puts and gets", |ctl| {
        let [a, b, c] = ["kv/a", "kv/b", "kv/c"].map(|name| ctl.key(name));
        let prefix = ctl.key("kv/");
        assert_eq!(ctl.ok(&["put", &a, "1"]), "OK\n");
        let first = ctl.revision();
        assert_eq!(ctl.ok(&["put", &a, "2", "--prev-kv"]), format!("OK\n{a}\n1\n"));
        assert_eq!(ctl.ok_with("from standard input", &["put", &b]), "OK\n");
        assert_eq!(ctl.ok(&["put", &c, "0"]), "OK\n");

        assert_eq!(ctl.ok(&["get", &a]), format!("{a}\n2\n"));
        assert_eq!(ctl.ok(&["get", &a, "--rev", &first.to_string()]), format!("{a}\n1\n"));
        assert_eq!(ctl.ok(&["get", &a, "--consistency", "s", "--print-value-only"]), "2\n");
        assert_eq!(ctl.ok(&["get", &a, &c, "--print-value-only"]), "2\nfrom standard input\n");
        assert_eq!(ctl.ok(&["get", &prefix, "--prefix", "--keys-only"]), format!("{a}\n\n{b}\n\n{c}\n\n"));
        assert_eq!(ctl.ok(&["get", &prefix, "--prefix", "--limit", "1"]), format!("{a}\n2\n"));
        let sorted =
            ["get", &prefix, "--prefix", "--sort-by", "value", "--order", "ASCEND", "--print-value-only"];
        assert_eq!(ctl.ok(&sorted), "0\n2\nfrom standard input\n");
        let newest = [
            "get",
            &prefix,
            "--prefix",
            "--sort-by",
            "MODIFY",
            "--order",
            "DESCEND",
            "--keys-only",
            "--limit",
            "1",
        ];
        assert_eq!(ctl.ok(&newest), format!("{c}\n\n"));
        assert!(ctl.ok(&["get", &c, "--from-key"]).starts_with(&format!("{c}\n0\n")));
        assert_eq!(ctl.ok(&["get", "no such key"]), "");
        let fields = ctl.ok(&["get", &a, "-w", "fields"]);
        for part in ["\"Version\" : 2", "\"Value\" : \"2\"", "\"Count\" : 1", "\"More\" : false"] {
            assert!(fields.contains(part), "{part}: {fields}");
        }
        let count = json(&ctl.ok(&["get", &prefix, "--prefix", "--limit", "1", "-w", "json"]));
        assert_eq!((count["count"].as_u64(), count["more"].as_bool()), (Some(3), Some(true)), "{count}");

        assert_eq!(ctl.ok(&["put", &a, "--ignore-value"]), "OK\n");
        assert_eq!(ctl.ok(&["get", &a, "--print-value-only"]), "2\n");
        ctl.fails(&["put", "no such key", "--ignore-value"], "etcdserver: key not found");
        assert_eq!(ctl.ok(&["del", &a, "--prev-kv"]), format!("1\n{a}\n2\n"));
        assert_eq!(ctl.ok(&["del", &a]), "0\n");
        assert_eq!(ctl.ok(&["del", &prefix, "--prefix"]), "2\n");
        assert_eq!(ctl.ok(&["get", &prefix, "--prefix"]), "");
    });
}

#[test]
fn etcdctl_runs_transactions() {
    with_every_etcdctl("transactions", |ctl| {
        let key = ctl.key("txn");
        ctl.ok(&["put", &key, "1"]);
        let swap = format!(
            "value(\"{key}\") = \"1\"\nversion(\"{key}\") > \"0\"\n\nput {key} 2\nget {key}\n\nget {key}\n\n"
        );
        assert_eq!(ctl.ok_with(&swap, &["txn"]), format!("SUCCESS\n\nOK\n\n{key}\n2\n"));
        assert_eq!(ctl.ok_with(&swap, &["txn"]), format!("FAILURE\n\n{key}\n2\n"));
        let absent = format!("create(\"{key}/new\") = \"0\"\n\nput {key}/new 1\n\ndel {key}/new\n\n");
        assert_eq!(ctl.ok_with(&absent, &["txn"]), "SUCCESS\n\nOK\n");
        assert_eq!(ctl.ok_with(&absent, &["txn"]), "FAILURE\n\n1\n");
        let twice = format!("\nput {key} 1\nput {key} 2\n\n\n");
        ctl.fails_with(&twice, &["txn"], "etcdserver: duplicate key given in txn request");
        let many: String = (0..129).map(|number| format!("get {number}\n")).collect();
        ctl.fails_with(&format!("\n{many}\n\n"), &["txn"], "etcdserver: too many operations in txn request");
    });
}

#[test]
fn etcdctl_compacts() {
    with_every_etcdctl("compaction", |ctl| {
        let key = ctl.key("compacted");
        ctl.ok(&["put", &key, "old"]);
        let old = ctl.revision();
        ctl.ok(&["put", &key, "new"]);
        let new = ctl.revision().to_string();
        assert_eq!(ctl.ok(&["compaction", &new]), format!("compacted revision {new}\n"));
        assert_eq!(ctl.ok(&["get", &key, "--print-value-only", "--rev", &new]), "new\n");
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        ctl.fails(&["get", &key, "--rev", &old.to_string()], compacted);
        ctl.fails(&["compaction", &new], compacted);
        let future = "etcdserver: mvcc: required revision is a future revision";
        ctl.fails(&["compaction", "999999999"], future);
        ctl.fails(&["get", &key, "--rev", "999999999"], future);
        ctl.ok(&["put", &key, "newest"]);
        let newest = ctl.revision().to_string();
        assert_eq!(ctl.ok(&["compaction", &newest, "--physical"]), format!("compacted revision {newest}\n"));
    });
}

#[test]
fn etcdctl_is_told_when_a_request_is_too_large() {
    with_every_etcdctl("a large request", |ctl: &Ctl<'_>| {
        let key = ctl.key("large");
        let value = "v".repeat(1024 * 1024);
        assert_eq!(ctl.ok_with(&value, &["put", &key]), "OK\n");
        assert_eq!(ctl.ok(&["get", &key, "--print-value-only"]).len(), value.len() + 1);
        let value = "v".repeat(1600 * 1024);
        ctl.fails_with(&value, &["put", &key], "etcdserver: request is too large");
        ctl.ok(&["del", &key]);
    });
}
