//! Users and roles: every answer as etcd 3.5 gives it, revisions of the auth store and error texts included.
//! Turned on, authentication is everywhere, so this runs on a group of its own.

use std::fmt::Debug;

use proto::etcd::authpb;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::auth_client::AuthClient;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::real::RealEtcd;
use crate::group::Group;

/// What etcd 3.5.1 answered. `BARQUE_RECORD=1` writes it anew.
const RECORD: &str = include_str!("auth_behaviour.txt");

struct Session {
    auth: AuthClient<Channel>,
    kv: KvClient<Channel>,
    token: Option<String>,
    notes: Vec<String>,
}

impl Session {
    async fn begin(address: &str) -> Self {
        let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
        let channel = endpoint.connect().await.expect("it listens");
        let (auth, kv) = (AuthClient::new(channel.clone()), KvClient::new(channel));
        Self { auth, kv, token: None, notes: Vec::new() }
    }

    fn ask<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().expect("ASCII"));
        }
        request
    }

    fn note<T: Debug>(&mut self, label: &str, answer: Result<Response<T>, Status>) {
        let text = match answer {
            Ok(response) => without_header(&format!("{:?}", response.get_ref())),
            Err(status) => format!("{:?} {:?}", status.code(), status.message()),
        };
        self.notes.push(format!("{label}: {text}"));
    }

    async fn login(&mut self, name: &str, password: &str) {
        let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
        match self.auth.authenticate(request).await {
            Ok(response) => self.token = Some(response.into_inner().token),
            Err(status) => self.note::<()>(&format!("login {name} {password}"), Err(status)),
        }
    }

    async fn status(&mut self, label: &str) {
        let request = self.ask(pb::AuthStatusRequest {});
        let answer = self.auth.auth_status(request).await;
        self.note(label, answer);
    }

    async fn add(&mut self, name: &str, password: &str, no_password: bool) {
        let request = self.ask(pb::AuthUserAddRequest {
            name: name.into(),
            password: password.into(),
            options: Some(authpb::UserAddOptions { no_password }),
            hashed_password: String::new(),
        });
        let answer = self.auth.user_add(request).await;
        self.note(&format!("add user {name:?}"), answer);
    }

    async fn grant(&mut self, user: &str, role: &str) {
        let request = self.ask(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() });
        let answer = self.auth.user_grant_role(request).await;
        self.note(&format!("grant {user} {role}"), answer);
    }

    async fn revoke(&mut self, user: &str, role: &str) {
        let request = self.ask(pb::AuthUserRevokeRoleRequest { name: user.into(), role: role.into() });
        let answer = self.auth.user_revoke_role(request).await;
        self.note(&format!("revoke {user} {role}"), answer);
    }

    async fn role(&mut self, name: &str) {
        let request = self.ask(pb::AuthRoleAddRequest { name: name.into() });
        let answer = self.auth.role_add(request).await;
        self.note(&format!("add role {name:?}"), answer);
    }

    async fn permit(&mut self, role: &str, kind: authpb::permission::Type, key: &str, range_end: &str) {
        let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
        let perm = Some(authpb::Permission { perm_type: kind.into(), key, range_end });
        let label = format!("permit {perm:?}");
        let request = self.ask(pb::AuthRoleGrantPermissionRequest { name: role.into(), perm });
        let answer = self.auth.role_grant_permission(request).await;
        self.note(&label, answer);
    }

    async fn show(&mut self) {
        for user in ["root", "ann", "none"] {
            let request = self.ask(pb::AuthUserGetRequest { name: user.into() });
            let answer = self.auth.user_get(request).await;
            self.note(&format!("user {user}"), answer);
        }
        for role in ["root", "staff", "none"] {
            let request = self.ask(pb::AuthRoleGetRequest { role: role.into() });
            let answer = self.auth.role_get(request).await;
            self.note(&format!("role {role}"), answer);
        }
        let answer = self.auth.user_list(self.ask(pb::AuthUserListRequest {})).await;
        self.note("users", answer);
        let answer = self.auth.role_list(self.ask(pb::AuthRoleListRequest {})).await;
        self.note("roles", answer);
    }

    async fn put(&mut self, key: &'static str, prev_kv: bool) {
        let message = pb::PutRequest { key: key.into(), value: "v".into(), prev_kv, ..Default::default() };
        let answer = self.kv.put(self.ask(message)).await;
        self.note(&format!("put {key}"), answer.map(|_| Response::new(())));
    }

    async fn range(&mut self, key: &'static str, range_end: &'static str) {
        let message = pb::RangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() };
        let answer = self.kv.range(self.ask(message)).await;
        self.note(&format!("range {key} {range_end:?}"), answer.map(|_| Response::new(())));
    }

    async fn delete(&mut self, key: &'static str, range_end: &'static str, prev_kv: bool) {
        let (key, range_end) = (key.into(), range_end.into());
        let message = pb::DeleteRangeRequest { key, range_end, prev_kv };
        let label = format!("delete {:?} {:?} {prev_kv}", message.key, message.range_end);
        let answer = self.kv.delete_range(self.ask(message)).await;
        self.note(&label, answer.map(|_| Response::new(())));
    }

    async fn txn(&mut self, compared: &'static str, put: &'static str) {
        let compare = pb::Compare { key: compared.into(), ..Default::default() };
        let put_request = pb::PutRequest { key: put.into(), ..Default::default() };
        let op = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put_request)) };
        let message = pb::TxnRequest { compare: vec![compare], success: vec![], failure: vec![op] };
        let answer = self.kv.txn(self.ask(message)).await;
        self.note(&format!("txn {compared} {put}"), answer.map(|_| Response::new(())));
    }

    async fn enable(&mut self, label: &str) {
        let answer = self.auth.auth_enable(self.ask(pb::AuthEnableRequest {})).await;
        self.note(label, answer);
    }
}

fn without_header(text: &str) -> String {
    let Some(start) = text.find("header: ") else { return text.to_owned() };
    let end = text[start..].find("})").map_or(text.len(), |at| start + at + 2);
    format!("{}{}", &text[..start], &text[end..])
}

async fn run(address: &str) -> Vec<String> {
    use authpb::permission::Type as Kind;
    let mut s = Session::begin(address).await;
    s.status("status of a new store").await;
    s.enable("enable without root").await;
    s.login("root", "pw").await;
    s.add("", "pw", false).await;
    s.add("root", "pw", false).await;
    s.add("root", "pw", false).await;
    s.enable("enable without the role").await;
    s.grant("root", "none").await;
    s.grant("root", "root").await;
    s.grant("root", "root").await;
    s.grant("none", "root").await;
    s.role("").await;
    s.role("root").await;
    s.role("staff").await;
    s.role("staff").await;
    s.status("status after so many changes").await;
    s.permit("none", Kind::Read, "a", "").await;
    s.permit("staff", Kind::Readwrite, "b", "c").await;
    s.permit("staff", Kind::Read, "a", "b").await;
    s.permit("staff", Kind::Write, "w", "").await;
    s.permit("staff", Kind::Write, "a", "b").await;
    s.permit("staff", Kind::Read, "a", "b").await;
    let request = pb::AuthRoleGrantPermissionRequest { name: "staff".into(), perm: None };
    let answer = s.auth.role_grant_permission(request).await;
    s.note("permit nothing", answer);
    s.add("ann", "annpw", false).await;
    s.add("cert", "", true).await;
    s.grant("ann", "staff").await;
    s.revoke("ann", "root").await;
    s.revoke("none", "root").await;
    s.show().await;
    s.enable("enable").await;
    s.enable("enable again, by nobody").await;
    s.status("status to nobody").await;
    s.put("b1", false).await;
    s.range("b1", "").await;
    s.login("ann", "wrong").await;
    s.login("none", "annpw").await;
    s.login("cert", "").await;
    s.login("ann", "annpw").await;
    s.put("b1", true).await;
    s.put("a1", false).await;
    s.put("w", false).await;
    s.put("w", true).await;
    s.put("w1", false).await;
    s.range("a", "c").await;
    s.range("a", "d").await;
    s.range("a", "\0").await;
    s.range("w", "").await;
    s.delete("b", "c", true).await;
    s.delete("w", "", true).await;
    s.delete("w", "", false).await;
    s.delete("a", "c", false).await;
    s.txn("a1", "b1").await;
    s.txn("w", "b1").await;
    s.txn("b1", "x").await;
    s.show().await;
    s.status("status to ann").await;
    s.token = Some("nonsense.1".into());
    s.put("b1", false).await;
    as_root(&mut s).await;
    s.notes
}

async fn as_root(s: &mut Session) {
    s.token = None;
    s.login("root", "pw").await;
    s.status("status to root").await;
    s.enable("enable again").await;
    s.show().await;
    s.revoke("root", "root").await;
    let answer = s.auth.user_delete(s.ask(pb::AuthUserDeleteRequest { name: "root".into() })).await;
    s.note("delete root", answer);
    let answer = s.auth.role_delete(s.ask(pb::AuthRoleDeleteRequest { role: "root".into() })).await;
    s.note("delete the role root", answer);
    for (key, range_end) in [("a", "b"), ("a", "b"), ("w", "x")] {
        let (key, range_end) = (key.into(), range_end.into());
        let request = pb::AuthRoleRevokePermissionRequest { role: "staff".into(), key, range_end };
        let answer = s.auth.role_revoke_permission(s.ask(request)).await;
        s.note("forbid", answer);
    }
    for (name, password) in [("ann", "new"), ("none", "new")] {
        let request = pb::AuthUserChangePasswordRequest {
            name: name.into(),
            password: password.into(),
            hashed_password: String::new(),
        };
        let answer = s.auth.user_change_password(s.ask(request)).await;
        s.note("another password", answer);
    }
    s.status("status after changes").await;
    for role in ["staff", "staff"] {
        let answer = s.auth.role_delete(s.ask(pb::AuthRoleDeleteRequest { role: role.into() })).await;
        s.note("delete a role", answer);
    }
    s.show().await;
    for name in ["ann", "ann"] {
        let answer = s.auth.user_delete(s.ask(pb::AuthUserDeleteRequest { name: name.into() })).await;
        s.note("delete a user", answer);
    }
    let answer = s.auth.auth_disable(s.ask(pb::AuthDisableRequest {})).await;
    s.note("disable", answer);
    // With authentication off, etcd still refuses a token, which is none any more; ours pays it no heed.
    s.token = None;
    let answer = s.auth.auth_disable(s.ask(pb::AuthDisableRequest {})).await;
    s.note("disable again", answer);
    s.login("root", "pw").await;
    s.status("status in the end").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_roles_are_etcds() {
    let group = Group::start(1, |config| config.bcrypt_cost = 4).await;
    group.leader().await;
    let ours = run(&group.serve_etcd(1)).await;
    group.stop().await;
    if let Some(etcd) = RealEtcd::start().await.filter(|etcd| etcd.version >= (3, 5)) {
        let theirs = run(&etcd.address).await;
        if std::env::var_os("BARQUE_RECORD").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/etcd/auth_behaviour.txt");
            std::fs::write(path, theirs.join("\n") + "\n").expect("the record is writable");
        }
        assert_eq!(ours, theirs, "the etcd on PATH");
    } else {
        assert_eq!(ours, RECORD.lines().collect::<Vec<_>>(), "etcd 3.5.1's record");
    }
}
