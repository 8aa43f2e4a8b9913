//! lock and elect: etcdctl builds them on leases, transactions and watches.

use super::ctl::interrupt;
use super::with_every_etcdctl;
use crate::support::eventually;

#[test]
fn etcdctl_locks() {
    with_every_etcdctl("locks", |ctl| {
        let name = ctl.key("lock");
        let mut first = ctl.start(&["lock", &name]);
        let held = first.line();
        assert!(held.starts_with(&format!("{name}/")), "{held}");
        let mut second = ctl.start(&["lock", &name, "echo", "mine"]);
        // The second waits in line: its key is there, and nothing was printed.
        let waiting =
            || ctl.ok(&["get", &name, "--prefix", "--keys-only"]).lines().filter(|l| !l.is_empty()).count();
        eventually(|| (waiting() == 2).then_some(()));
        interrupt(&first);
        assert_eq!(second.line(), "mine");
        eventually(|| first.child.try_wait().unwrap());
        assert!(eventually(|| second.child.try_wait().unwrap()).success());
        eventually(|| (waiting() == 0).then_some(()));
    });
}

#[test]
fn etcdctl_elects() {
    with_every_etcdctl("elections", |ctl| {
        let name = ctl.key("election");
        let mut first = ctl.start(&["elect", &name, "one"]);
        let key = first.line();
        assert_eq!(first.line(), "one");
        let observer = ctl.start(&["elect", &name, "--listen"]);
        assert_eq!((observer.line(), observer.line()), (key, "one".to_owned()));
        let second = ctl.start(&["elect", &name, "two"]);
        let candidates = || ctl.ok(&["get", &name, "--prefix", "--print-value-only"]);
        eventually(|| candidates().contains("two").then_some(()));
        interrupt(&first);
        let key = second.line();
        assert_eq!(second.line(), "two");
        assert_eq!((observer.line(), observer.line()), (key, "two".to_owned()));
        eventually(|| first.child.try_wait().unwrap());
        interrupt(&second);
        eventually(|| candidates().is_empty().then_some(()));
    });
}
