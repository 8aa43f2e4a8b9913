//! auth, user, role.

use super::ctl::Ctl;
use super::with_every_etcdctl;

const ROOT: [&str; 2] = ["--user", "root:secret"];
const READER: [&str; 2] = ["--user", "reader:first"];

fn with<'a>(user: [&'a str; 2], args: &[&'a str]) -> Vec<&'a str> {
    [&user[..], args].concat()
}

#[test]
fn etcdctl_manages_users_and_roles() {
    with_every_etcdctl("users and roles", |ctl| {
        assert_eq!(ctl.ok(&["user", "add", "u:pw"]), "User u created\n");
        ctl.fails(&["user", "add", "u:pw"], "etcdserver: user name already exists");
        assert_eq!(ctl.ok(&["role", "add", "r"]), "Role r created\n");
        ctl.fails(&["role", "add", "r"], "etcdserver: role name already exists");
        assert_eq!(
            ctl.ok(&["role", "grant-permission", "r", "readwrite", "/a/", "--prefix"]),
            "Role r updated\n"
        );
        assert_eq!(ctl.ok(&["role", "grant-permission", "r", "read", "key"]), "Role r updated\n");
        let role = ctl.ok(&["role", "get", "r"]);
        assert_eq!(
            role,
            "Role r\nKV Read:\n\t[/a/, /a0) (prefix /a/)\n\tkey\nKV Write:\n\t[/a/, /a0) (prefix /a/)\n"
        );
        assert_eq!(ctl.ok(&["user", "grant-role", "u", "r"]), "Role r is granted to user u\n");
        ctl.fails(&["user", "grant-role", "nobody", "r"], "etcdserver: user name not found");
        assert_eq!(ctl.ok(&["user", "get", "u"]), "User: u\nRoles: r\n");
        assert_eq!(ctl.ok(&["user", "list"]), "u\n");
        assert_eq!(ctl.ok(&["role", "list"]), "r\n");
        let revoked = ctl.ok(&["role", "revoke-permission", "r", "key"]);
        assert_eq!(revoked, "Permission of key key is revoked from role r\n");
        ctl.fails(
            &["role", "revoke-permission", "r", "key"],
            "etcdserver: permission is not granted to the role",
        );
        assert_eq!(ctl.ok(&["user", "revoke-role", "u", "r"]), "Role r is revoked from user u\n");
        ctl.fails(&["user", "revoke-role", "u", "r"], "etcdserver: role is not granted to the user");
        assert_eq!(
            ctl.ok_with("new\nnew\n", &["user", "passwd", "u", "--interactive=false"]),
            "Password updated\n"
        );
        ctl.fails(&["auth", "enable"], "etcdserver: root user does not exist");
        assert_eq!(ctl.ok(&["user", "delete", "u"]), "User u deleted\n");
        assert_eq!(ctl.ok(&["role", "delete", "r"]), "Role r deleted\n");
        ctl.fails(&["role", "delete", "r"], "etcdserver: role name not found");
    });
}

#[test]
fn who_may_do_what_is_enforced() {
    with_every_etcdctl("access control", |ctl| {
        let key = ctl.key("guarded/1");
        let prefix = ctl.key("guarded/");
        ctl.ok(&["user", "add", "root:secret"]);
        ctl.ok(&["role", "add", "root"]);
        ctl.ok(&["user", "grant-role", "root", "root"]);
        ctl.ok(&["user", "add", "reader:first"]);
        ctl.ok(&["role", "add", "reading"]);
        ctl.ok(&["role", "grant-permission", "reading", "read", &prefix, "--prefix"]);
        ctl.ok(&["user", "grant-role", "reader", "reading"]);
        ctl.ok(&["put", &key, "v"]);
        assert_eq!(ctl.ok(&["auth", "enable"]), "Authentication Enabled\n");
        enforced(ctl, &key, &prefix);
        assert_eq!(ctl.ok(&with(ROOT, &["auth", "disable"])), "Authentication Disabled\n");
        assert_eq!(ctl.ok(&["get", &key, "--print-value-only"]), "v\n");
        for user in ["root", "reader"] {
            ctl.ok(&["user", "delete", user]);
        }
        for role in ["root", "reading"] {
            ctl.ok(&["role", "delete", role]);
        }
    });
}

fn enforced(ctl: &Ctl<'_>, key: &str, prefix: &str) {
    ctl.fails(&["get", key], "etcdserver: user name is empty");
    ctl.fails(
        &["--user", "reader:wrong", "get", key],
        "etcdserver: authentication failed, invalid user ID or password",
    );
    for member in 0..3 {
        assert_eq!(ctl.ok_at(member, &with(READER, &["get", key, "--print-value-only"])), "v\n");
        assert_eq!(
            ctl.ok_at(member, &with(READER, &["get", prefix, "--prefix", "--print-value-only"])),
            "v\n"
        );
    }
    let denied = "etcdserver: permission denied";
    ctl.fails(&with(READER, &["put", key, "w"]), denied);
    ctl.fails(&with(READER, &["del", key]), denied);
    ctl.fails(&with(READER, &["get", "elsewhere"]), denied);
    ctl.fails(&with(READER, &["user", "list"]), denied);
    assert_eq!(ctl.ok(&with(ROOT, &["put", "elsewhere", "x"])), "OK\n");
    assert_eq!(ctl.ok(&with(ROOT, &["user", "list"])), "reader\nroot\n");
    if ctl.at_least("3.5.0") {
        let status = ctl.ok(&with(ROOT, &["auth", "status"]));
        assert!(status.starts_with("Authentication Status: true\n"), "{status}");
    }
}
