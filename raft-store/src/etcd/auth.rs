//! `etcdserverpb.Auth`: users, roles, permissions, and giving tokens.
//!
//! Passwords are hashed here, before anything is proposed: no password goes into the log, and none into a
//! message or a trace. What is known of a user never says whether it was the name or the password that was
//! wrong.

use bytes::Bytes;
use proto::etcd::authpb;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::auth_server::{Auth as AuthRpc, AuthServer};
use state_machine::{AuthCommand, AuthError, Command, Outcome, Permission, PermissionKind, Secret};
use tonic::{Request, Response, Status};

use super::access::Caller;
use super::status;
use crate::blocking;
use crate::store::Store;

/// bcrypt looks at no more; a longer password is refused rather than cut.
const PASSWORD_BYTES_MAX: usize = 72;

/// Random bytes of the secret that seals tokens.
const TOKEN_SECRET_BYTES: usize = 32;

pub(crate) fn service(store: Store) -> AuthServer<AuthService> {
    AuthServer::new(AuthService { store })
}

pub(crate) struct AuthService {
    store: Store,
}

impl AuthService {
    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(self.store.etcd_header(self.store.revision()))
    }

    /// Proposes a change in the caller's name, and answers with the header.
    async fn change(
        &self,
        caller: &Caller,
        command: AuthCommand,
    ) -> Result<Option<pb::ResponseHeader>, Status> {
        match caller.propose(&self.store, &Command::Auth(command)).await? {
            Outcome::AuthChanged { revision, .. } => Ok(Some(self.store.etcd_header(revision))),
            _ => Err(status::unexpected_outcome()),
        }
    }

    /// etcd sends even its questions about users through its log; ours read what is committed.
    async fn linearize(&self) -> Result<(), Status> {
        self.store.linearize().await.map_err(|error| status::of_error(&error))
    }

    /// The password as it may be stored: hashed here, unless the client did that.
    async fn hashed(&self, password: String, hashed_password: &str) -> Result<Secret, Status> {
        if !hashed_password.is_empty() && password.is_empty() {
            return given_hash(hashed_password).ok_or_else(|| {
                Status::invalid_argument("etcdserver: hashedPassword is not in the form that bcrypt gives")
            });
        }
        if password.len() > PASSWORD_BYTES_MAX {
            let text = format!("etcdserver: a password has at most {PASSWORD_BYTES_MAX} bytes");
            return Err(Status::invalid_argument(text));
        }
        let cost = self.store.config().bcrypt_cost;
        let hash = self.hashing(move || bcrypt::hash(password, cost)).await?;
        let hash = hash.map_err(|_| Status::internal("etcdserver: cannot hash the password"))?;
        Ok(Secret::new(hash))
    }

    /// Runs bcrypt on a thread that may block; only so many at once.
    async fn hashing<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let _permit = self.store.tokens().hashing.acquire().await.map_err(|_| status::stopped())?;
        blocking::run(work).await.map_err(|_| status::stopped())
    }

    /// Checks a password and gives a token, both under the same credentials.
    async fn token_of(&self, name: &str, password: String) -> Result<String, Status> {
        let (enabled, known) = self.store.read_state(|machine| {
            let user = machine.auth().user(name);
            let known = user.map(|user| (user.password.clone(), user.credentials_revision));
            (machine.auth().is_enabled(), known)
        });
        if !enabled {
            return Err(status::auth_not_enabled());
        }
        let (hash, revision) = match known {
            Some((Some(hash), revision)) => (hash, revision),
            Some((None, _)) => return Err(status::no_password_user()),
            None => return Err(status::auth_failed()),
        };
        let right = self.hashing(move || verify(&password, &hash)).await?;
        let token = self.store.read_state(|machine| {
            let auth = machine.auth();
            let same = auth.user(name).is_some_and(|user| user.credentials_revision == revision);
            (right && same).then(|| self.store.tokens().give(auth, name))
        });
        let token = token.ok_or_else(status::auth_failed)?;
        token.ok_or_else(|| {
            Status::failed_precondition("etcdserver: this member has no key to sign tokens with")
        })
    }
}

fn verify(password: &str, hash: &Secret) -> bool {
    let hash = std::str::from_utf8(hash.expose());
    hash.is_ok_and(|hash| bcrypt::verify(password, hash).unwrap_or(false))
}

/// A hash as bcrypt writes it, or base64 of that, which is what etcd's own members send each other.
fn given_hash(text: &str) -> Option<Secret> {
    use base64::Engine;
    let decoded = base64::prelude::BASE64_STANDARD.decode(text).ok();
    let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let candidates = [Some(text.to_owned()), decoded];
    let hash = candidates.into_iter().flatten().find(|hash| hash.parse::<bcrypt::HashParts>().is_ok())?;
    Some(Secret::new(hash))
}

fn permission(permission: Option<authpb::Permission>) -> Result<Permission, Status> {
    let permission = permission.ok_or_else(status::permission_not_given)?;
    let kind = match authpb::permission::Type::try_from(permission.perm_type) {
        Ok(authpb::permission::Type::Read) => PermissionKind::Read,
        Ok(authpb::permission::Type::Write) => PermissionKind::Write,
        Ok(authpb::permission::Type::Readwrite) => PermissionKind::ReadWrite,
        Err(_) => return Err(status::of_auth_error(AuthError::InvalidManagement)),
    };
    Ok(Permission { kind, key: permission.key, range_end: permission.range_end })
}

fn shown(permission: &Permission) -> authpb::Permission {
    let kind = match permission.kind {
        PermissionKind::Read => authpb::permission::Type::Read,
        PermissionKind::Write => authpb::permission::Type::Write,
        PermissionKind::ReadWrite => authpb::permission::Type::Readwrite,
    };
    let copy = Bytes::clone;
    authpb::Permission {
        perm_type: kind.into(),
        key: copy(&permission.key),
        range_end: copy(&permission.range_end),
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl AuthRpc for AuthService {
    async fn auth_enable(&self, request: Request<pb::AuthEnableRequest>) -> Answer<pb::AuthEnableResponse> {
        let caller = Caller::of(&self.store, &request)?;
        let secret: [u8; TOKEN_SECRET_BYTES] = rand::random();
        let token_secret = Secret::new(secret.to_vec());
        let header = self.change(&caller, AuthCommand::Enable { token_secret }).await?;
        Ok(Response::new(pb::AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Answer<pb::AuthDisableResponse> {
        let caller = Caller::of(&self.store, &request)?;
        let header = self.change(&caller, AuthCommand::Disable).await?;
        Ok(Response::new(pb::AuthDisableResponse { header }))
    }

    async fn auth_status(&self, request: Request<pb::AuthStatusRequest>) -> Answer<pb::AuthStatusResponse> {
        let caller = Caller::of(&self.store, &request)?;
        self.linearize().await?;
        caller.must_be_root(&self.store)?;
        let (enabled, auth_revision) =
            self.store.read_state(|machine| (machine.auth().is_enabled(), machine.auth().revision()));
        Ok(Response::new(pb::AuthStatusResponse { header: self.header(), enabled, auth_revision }))
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Answer<pb::AuthenticateResponse> {
        self.linearize().await?;
        let pb::AuthenticateRequest { name, password } = request.into_inner();
        let token = self.token_of(&name, password).await?;
        Ok(Response::new(pb::AuthenticateResponse { header: self.header(), token }))
    }

    async fn user_add(&self, request: Request<pb::AuthUserAddRequest>) -> Answer<pb::AuthUserAddResponse> {
        let caller = Caller::of(&self.store, &request)?;
        let request = request.into_inner();
        let password = if request.options.is_some_and(|options| options.no_password) {
            None
        } else {
            Some(self.hashed(request.password, &request.hashed_password).await?)
        };
        let header = self.change(&caller, AuthCommand::UserAdd { name: request.name, password }).await?;
        Ok(Response::new(pb::AuthUserAddResponse { header }))
    }

    async fn user_get(&self, request: Request<pb::AuthUserGetRequest>) -> Answer<pb::AuthUserGetResponse> {
        let caller = Caller::of(&self.store, &request)?;
        self.linearize().await?;
        let name = request.into_inner().name;
        if caller.user().is_empty() || caller.user() != name {
            caller.must_be_root(&self.store)?;
        }
        let roles = self.store.read_state(|machine| {
            let user = machine.auth().user(&name);
            user.map(|user| user.roles.iter().cloned().collect::<Vec<_>>())
        });
        let roles = roles.ok_or_else(|| status::of_auth_error(AuthError::UserNotFound))?;
        Ok(Response::new(pb::AuthUserGetResponse { header: self.header(), roles }))
    }

    async fn user_list(&self, request: Request<pb::AuthUserListRequest>) -> Answer<pb::AuthUserListResponse> {
        let caller = Caller::of(&self.store, &request)?;
        self.linearize().await?;
        caller.must_be_root(&self.store)?;
        let users = self.store.read_state(|machine| machine.auth().users().map(str::to_owned).collect());
        Ok(Response::new(pb::AuthUserListResponse { header: self.header(), users }))
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Answer<pb::AuthUserDeleteResponse> {
        let caller = Caller::of(&self.store, &request)?;
        let name = request.into_inner().name;
        let header = self.change(&caller, AuthCommand::UserDelete { name }).await?;
        Ok(Response::new(pb::AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Answer<pb::AuthUserChangePasswordResponse> {
        let caller = Caller::of(&self.store, &request)?;
        let pb::AuthUserChangePasswordRequest { name, password, hashed_password } = request.into_inner();
        let password = self.hashed(password, &hashed_password).await?;
        let header = self.change(&caller, AuthCommand::UserChangePassword { name, password }).await?;
        Ok(Response::new(pb::AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Answer<pb::AuthUserGrantRoleResponse> {
        let caller = Caller::of(&self.store, &request)?;
        let pb::AuthUserGrantRoleRequest { user, role } = request.into_inner();
        let header = self.change(&caller, AuthCommand::UserGrantRole { user, role }).await?;
        Ok(Response::new(pb::AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Answer<pb::AuthUserRevokeRoleResponse> {
        let caller = Caller::of(&self.store, &request)?;
        let pb::AuthUserRevokeRoleRequest { name: user, role } = request.into_inner();
        let header = self.change(&caller, AuthCommand::UserRevokeRole { user, role }).await?;
        Ok(Response::new(pb::AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(&self, request: Request<pb::AuthRoleAddRequest>) -> Answer<pb::AuthRoleAddResponse> {
        let caller = Caller::of(&self.store, &request)?;
        let name = request.into_inner().name;
        let header = self.change(&caller, AuthCommand::RoleAdd { name }).await?;
        Ok(Response::new(pb::AuthRoleAddResponse { header }))
    }

    async fn role_get(&self, request: Request<pb::AuthRoleGetRequest>) -> Answer<pb::AuthRoleGetResponse> {
        let caller = Caller::of(&self.store, &request)?;
        self.linearize().await?;
        let role = request.into_inner().role;
        let has_it = self.store.read_state(|machine| {
            machine.auth().user(caller.user()).is_some_and(|user| user.roles.contains(&role))
        });
        if !has_it {
            caller.must_be_root(&self.store)?;
        }
        let perm = self.store.read_state(|machine| {
            machine.auth().role(&role).map(|granted| granted.iter().map(shown).collect())
        });
        let perm = perm.ok_or_else(|| status::of_auth_error(AuthError::RoleNotFound))?;
        Ok(Response::new(pb::AuthRoleGetResponse { header: self.header(), perm }))
    }

    async fn role_list(&self, request: Request<pb::AuthRoleListRequest>) -> Answer<pb::AuthRoleListResponse> {
        let caller = Caller::of(&self.store, &request)?;
        self.linearize().await?;
        caller.must_be_root(&self.store)?;
        let roles = self.store.read_state(|machine| machine.auth().roles().map(str::to_owned).collect());
        Ok(Response::new(pb::AuthRoleListResponse { header: self.header(), roles }))
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Answer<pb::AuthRoleDeleteResponse> {
        let caller = Caller::of(&self.store, &request)?;
        let name = request.into_inner().role;
        let header = self.change(&caller, AuthCommand::RoleDelete { name }).await?;
        Ok(Response::new(pb::AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Answer<pb::AuthRoleGrantPermissionResponse> {
        let caller = Caller::of(&self.store, &request)?;
        let pb::AuthRoleGrantPermissionRequest { name: role, perm } = request.into_inner();
        let permission = permission(perm)?;
        let header = self.change(&caller, AuthCommand::RoleGrantPermission { role, permission }).await?;
        Ok(Response::new(pb::AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Answer<pb::AuthRoleRevokePermissionResponse> {
        let caller = Caller::of(&self.store, &request)?;
        let pb::AuthRoleRevokePermissionRequest { role, key, range_end } = request.into_inner();
        let header = self.change(&caller, AuthCommand::RoleRevokePermission { role, key, range_end }).await?;
        Ok(Response::new(pb::AuthRoleRevokePermissionResponse { header }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_may_come_as_bcrypt_writes_it_or_as_base64_of_that() {
        use base64::Engine;
        let hash = bcrypt::hash("pass", 4).expect("a hash");
        let base64 = base64::prelude::BASE64_STANDARD.encode(&hash);
        assert_eq!(given_hash(&hash), Some(Secret::new(hash.clone())));
        assert_eq!(given_hash(&base64), Some(Secret::new(hash.clone())));
        assert_eq!(given_hash("pass"), None);
        assert_eq!(given_hash(&hash[1..]), None);
        assert!(verify("pass", &Secret::new(hash.clone())));
        assert!(!verify("Pass", &Secret::new(hash)));
        assert!(!verify("pass", &Secret::new("not a hash")));
    }

    #[test]
    fn hashes_of_gos_bcrypt_are_understood() {
        // Of etcd's kind: prefix 2a, work factor 10, of the password "123".
        let hash = bcrypt::hash_with_salt("123", 10, [7; 16]).expect("a hash");
        let go = hash.format_for_version(bcrypt::Version::TwoA);
        assert!(go.starts_with("$2a$10$") && verify("123", &Secret::new(go)));
    }
}
