//! lease grant, timetolive, keep-alive, list, revoke.

use super::with_every_etcdctl;

#[test]
fn etcdctl_grants_keeps_and_revokes_leases() {
    with_every_etcdctl("leases", |ctl| {
        let key = ctl.key("leased");
        let granted = ctl.ok(&["lease", "grant", "300"]);
        let id = granted.strip_prefix("lease ").and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
        assert_eq!(granted, format!("lease {id} granted with TTL(300s)\n"));
        assert_eq!(ctl.ok(&["put", &key, "v", "--lease", &id]), "OK\n");
        let left = ctl.ok(&["lease", "timetolive", &id, "--keys"]);
        assert!(left.starts_with(&format!("lease {id} granted with TTL(300s), remaining(")), "{left}");
        assert!(left.ends_with(&format!("s), attached keys([{key}])\n")), "{left}");
        for member in 0..3 {
            let kept = ctl.ok_at(member, &["lease", "keep-alive", &id, "--once"]);
            assert_eq!(kept, format!("lease {id} keepalived with TTL(300)\n"));
        }
        assert_eq!(ctl.ok(&["lease", "list"]), format!("found 1 leases\n{id}\n"));
        assert_eq!(ctl.ok(&["lease", "revoke", &id]), format!("lease {id} revoked\n"));
        assert_eq!(ctl.ok(&["get", &key]), "");
        assert_eq!(ctl.ok(&["lease", "timetolive", &id]), format!("lease {id} already expired\n"));
        ctl.fails(&["lease", "revoke", &id], "etcdserver: requested lease not found");
        ctl.fails(&["put", &key, "v", "--lease", &id], "etcdserver: requested lease not found");
        assert_eq!(ctl.ok(&["lease", "list"]), "found 0 leases\n");
    });
}

#[test]
fn a_lease_that_nobody_keeps_takes_its_keys_along() {
    with_every_etcdctl("expiry", |ctl| {
        let key = ctl.key("expires");
        let granted = ctl.ok(&["lease", "grant", "1"]);
        let id = granted.split(' ').nth(1).unwrap().to_owned();
        let from = (ctl.revision() + 1).to_string();
        let watch = ctl.start(&["watch", &key, "--rev", &from]);
        ctl.ok(&["put", &key, "v", "--lease", &id]);
        for line in ["PUT", &key, "v", "DELETE", &key, ""] {
            assert_eq!(watch.line(), line);
        }
    });
}
