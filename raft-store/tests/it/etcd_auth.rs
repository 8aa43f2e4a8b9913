//! Users, roles and tokens through etcd's services, at every member of a group.

use bytes::Bytes;
use proto::etcd::authpb;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::auth_client::AuthClient;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use raft_store::etcd::ClientIdentity;
use raft_store::{Config, Store};
use tonic::service::interceptor::InterceptedService;
use tonic::service::{Interceptor, Routes};
use tonic::{Code, Request, Status};

use crate::group::Group;

/// Who a client says it is.
#[derive(Clone, Default)]
pub(crate) struct Identity {
    pub(crate) token: Option<String>,
    pub(crate) common_name: Option<String>,
    pub(crate) request_id: Option<String>,
}

impl Interceptor for Identity {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().expect("ASCII"));
        }
        if let Some(id) = &self.request_id {
            request.metadata_mut().insert("barque-request-id", id.parse().expect("ASCII"));
        }
        let common_name = self.common_name.clone();
        request.extensions_mut().insert(ClientIdentity { common_name });
        Ok(request)
    }
}

type Channel = InterceptedService<Routes, Identity>;

pub(crate) fn kv(store: &Store, identity: Identity) -> KvClient<Channel> {
    KvClient::with_interceptor(raft_store::etcd::services(store), identity)
}

fn auth(store: &Store, identity: Identity) -> AuthClient<Channel> {
    AuthClient::with_interceptor(raft_store::etcd::services(store), identity)
}

fn with_token(token: &str) -> Identity {
    Identity { token: Some(token.into()), ..Identity::default() }
}

pub(crate) fn put(key: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() }
}

fn range(key: &'static str, range_end: &'static str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }
}

/// bcrypt at its least work: these tests are about other things.
fn cheap(config: &mut Config) {
    config.bcrypt_cost = 4;
}

#[track_caller]
fn check<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.expect_err("it must be refused");
    assert_eq!((status.code(), status.message()), (code, text));
}

async fn user_add(store: &Store, name: &str, password: &str, no_password: bool) -> Result<(), Status> {
    let request = pb::AuthUserAddRequest {
        name: name.into(),
        password: password.into(),
        options: Some(authpb::UserAddOptions { no_password }),
        hashed_password: String::new(),
    };
    auth(store, Identity::default()).user_add(request).await.map(drop)
}

async fn token(store: &Store, name: &str, password: &str) -> Result<String, Status> {
    let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
    Ok(auth(store, Identity::default()).authenticate(request).await?.into_inner().token)
}

/// root (password `rootpw`) and ann (`annpw`), who may read and write `a` to `b`; cert is known by certificate.
async fn enable(store: &Store) {
    user_add(store, "root", "rootpw", false).await.expect("added");
    user_add(store, "ann", "annpw", false).await.expect("added");
    user_add(store, "cert", "", true).await.expect("added");
    let mut client = auth(store, Identity::default());
    client.role_add(pb::AuthRoleAddRequest { name: "root".into() }).await.expect("added");
    client.role_add(pb::AuthRoleAddRequest { name: "staff".into() }).await.expect("added");
    for (user, role) in [("root", "root"), ("ann", "staff"), ("cert", "staff")] {
        let request = pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        client.user_grant_role(request).await.expect("granted");
    }
    let perm = authpb::Permission {
        perm_type: authpb::permission::Type::Readwrite.into(),
        key: Bytes::from_static(b"a"),
        range_end: Bytes::from_static(b"b"),
    };
    let request = pb::AuthRoleGrantPermissionRequest { name: "staff".into(), perm: Some(perm) };
    client.role_grant_permission(request).await.expect("granted");
    client.auth_enable(pb::AuthEnableRequest {}).await.expect("enabled");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_what_their_tokens_and_certificates_say_at_every_member() {
    let group = Group::start(3, cheap).await;
    let leader = group.leader().await;
    let store = group.store(leader);
    check(
        auth(store, Identity::default()).auth_enable(pb::AuthEnableRequest {}).await,
        Code::FailedPrecondition,
        "etcdserver: root user does not exist",
    );
    check(
        token(store, "root", "rootpw").await,
        Code::FailedPrecondition,
        "etcdserver: authentication is not enabled",
    );
    enable(store).await;
    let ann = token(store, "ann", "annpw").await.expect("the password is right");
    group.converged().await;
    let wrong = "etcdserver: authentication failed, invalid user ID or password";
    let denied = "etcdserver: permission denied";
    for id in 1..=3 {
        let store = group.store(id);
        check(token(store, "ann", "rootpw").await, Code::InvalidArgument, wrong);
        check(token(store, "bob", "annpw").await, Code::InvalidArgument, wrong);
        let text = "auth: authentication failed, password was given for no password user";
        check(token(store, "cert", "").await, Code::Unknown, text);
        // Given by another member.
        let mut client = kv(store, with_token(&ann));
        client.put(put("a1")).await.expect("ann may");
        client.range(range("a", "b")).await.expect("ann may");
        check(client.put(put("b1")).await, Code::PermissionDenied, denied);
        check(client.range(range("a", "c")).await, Code::PermissionDenied, denied);
        let list = auth(store, with_token(&ann)).user_list(pb::AuthUserListRequest {}).await;
        check(list, Code::PermissionDenied, denied);
        let mut nobody = kv(store, Identity::default());
        check(nobody.put(put("a1")).await, Code::InvalidArgument, "etcdserver: user name is empty");
        let mut forger = kv(store, with_token("s1.AAAA"));
        check(forger.put(put("a1")).await, Code::Unauthenticated, "etcdserver: invalid auth token");
        let certificate = Identity { common_name: Some("cert".into()), ..Identity::default() };
        kv(store, certificate.clone()).put(put("a2")).await.expect("its role may");
        let both = Identity { token: Some("junk".into()), ..certificate };
        check(kv(store, both).put(put("a2")).await, Code::Unauthenticated, "etcdserver: invalid auth token");
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_member_and_a_new_password_see_the_same_users() {
    let mut group = Group::start(1, cheap).await;
    group.leader().await;
    enable(group.store(1)).await;
    let ann = token(group.store(1), "ann", "annpw").await.expect("right");
    let root = token(group.store(1), "root", "rootpw").await.expect("right");
    group.stop_member(1).await;
    group.start_member(1).await;
    group.leader().await;
    let store = group.store(1);
    kv(store, with_token(&ann)).put(put("a1")).await.expect("the token outlives the member that gave it");
    let mut client = auth(store, with_token(&root));
    let hashed_password = bcrypt_of_new();
    let request =
        pb::AuthUserChangePasswordRequest { name: "ann".into(), password: String::new(), hashed_password };
    client.user_change_password(request).await.expect("changed");
    check(
        kv(store, with_token(&ann)).put(put("a1")).await,
        Code::Unauthenticated,
        "etcdserver: invalid auth token",
    );
    token(store, "ann", "new").await.expect("hashed by the client");
    check(
        client.user_delete(pb::AuthUserDeleteRequest { name: "root".into() }).await,
        Code::InvalidArgument,
        "etcdserver: invalid auth management",
    );
    client.auth_disable(pb::AuthDisableRequest {}).await.expect("disabled");
    kv(store, Identity::default()).put(put("z")).await.expect("nobody is asked any more");
    group.stop().await;
}

/// `bcrypt("new")`, work factor 4.
fn bcrypt_of_new() -> String {
    bcrypt::hash("new", 4).expect("a hash")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_only_reads_asks_for_the_permissions_of_all_its_branches() {
    let group = Group::start(3, cheap).await;
    let leader = group.leader().await;
    let follower = group.a_follower().await;
    enable(group.store(leader)).await;
    let ann = token(group.store(follower), "ann", "annpw").await.expect("authenticated");
    let op = |range| pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(range)) };
    let nested = |txn| pb::RequestOp { request: Some(pb::request_op::Request::RequestTxn(txn)) };
    let compare = |key: &'static str| pb::Compare { key: key.into(), result: 3, ..Default::default() };
    let then = |success| pb::TxnRequest { success, ..Default::default() };
    let denied = "etcdserver: permission denied";
    let mut client = kv(group.store(follower), with_token(&ann));
    client.txn(then(vec![op(range("a", "")), op(range("a", "b"))])).await.expect("allowed");
    for refused in [
        then(vec![op(range("c", ""))]),
        pb::TxnRequest { failure: vec![op(range("a", "z"))], ..Default::default() },
        then(vec![nested(then(vec![op(range("c", ""))]))]),
        pb::TxnRequest { compare: vec![compare("c")], ..Default::default() },
        then(vec![op(pb::RangeRequest { serializable: true, ..range("c", "") })]),
    ] {
        check(client.txn(refused).await, Code::PermissionDenied, denied);
    }
    let nobody = kv(group.store(follower), Identity::default()).txn(then(vec![op(range("a", ""))])).await;
    check(nobody, Code::InvalidArgument, "etcdserver: user name is empty");
    // What was taken away at one member is gone at the others: permissions are as new as what is read.
    let root = token(group.store(leader), "root", "rootpw").await.expect("authenticated");
    let request = pb::AuthUserRevokeRoleRequest { name: "ann".into(), role: "staff".into() };
    auth(group.store(leader), with_token(&root)).user_revoke_role(request).await.expect("revoked");
    client.txn(then(vec![op(range("a", ""))])).await.expect_err("her permissions are gone");
    group.stop().await;
}
