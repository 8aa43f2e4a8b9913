//! Users, roles and whether they count: etcd's auth store as replicated state.
//!
//! Owns the rules of every change, and the answer to "may this author do that". The rules and the texts of
//! the errors are etcd's. It hashes and checks no passwords (the proposer does) and knows no tokens but the
//! secret that members seal them with.
//!
//! Every change but enabling moves the auth revision. A command names the revision under which it was
//! checked at its proposer; applied under a newer one it is refused, so that no write slips past a change of
//! permissions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use bytes::Bytes;

use crate::auth_command::{AuthCommand, AuthError};
use crate::command::{Command, Compare, Op, PutRequest, TxnCommand};
use crate::envelope::Author;
use crate::hash;
use crate::key_range::KeyRange;
use crate::lease::{LEASE_NONE, Leases};
use crate::permission::{Permission, UserPermissions};
use crate::secret::Secret;

/// The user that must exist before authentication can be enabled.
pub const ROOT_USER: &str = "root";

/// The role that may do everything.
pub const ROOT_ROLE: &str = "root";

/// The auth revision of a store that no auth command ever changed, as in etcd.
pub const AUTH_REVISION_INITIAL: u64 = 1;

const AUTH_HASH_DOMAIN: u64 = 0x6175_7468_0000_0001;

/// A user.
#[derive(Debug, Clone, Default)]
pub struct User {
    /// The hashed password; `None`: known by certificate only.
    pub password: Option<Secret>,
    /// Names of the roles.
    pub roles: BTreeSet<String>,
    /// The auth revision at which the user came to be or last got a password: older tokens are void.
    pub credentials_revision: u64,
    /// What the roles allow together, worked out when first asked for after a change.
    permissions: OnceLock<UserPermissions>,
}

impl User {
    pub(crate) fn new(password: Option<Secret>, credentials_revision: u64) -> Self {
        Self { password, credentials_revision, ..Self::default() }
    }

    fn is_root(&self) -> bool {
        self.roles.contains(ROOT_ROLE)
    }
}

/// See the module's head.
#[derive(Debug, Clone)]
pub struct Auth {
    pub(crate) enabled: bool,
    pub(crate) revision: u64,
    pub(crate) token_secret: Secret,
    pub(crate) users: BTreeMap<String, User>,
    /// Each role's permissions in the order of their keys.
    pub(crate) roles: BTreeMap<String, Vec<Permission>>,
    /// The whole of it, encoded.
    pub(crate) encoded: Secret,
    hash: u64,
}

impl Default for Auth {
    fn default() -> Self {
        let mut auth = Self {
            enabled: false,
            revision: AUTH_REVISION_INITIAL,
            token_secret: Secret::default(),
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            encoded: Secret::default(),
            hash: 0,
        };
        auth.changed();
        auth
    }
}

impl Auth {
    /// Whether requests need a user.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Moves with every change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What members seal tokens with; empty until authentication is first enabled.
    pub fn token_secret(&self) -> &Secret {
        &self.token_secret
    }

    /// A user.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// Names of all users in order.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// A role's permissions in the order of their keys.
    pub fn role(&self, name: &str) -> Option<&[Permission]> {
        self.roles.get(name).map(Vec::as_slice)
    }

    /// Names of all roles in order.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    /// Whether the author may read the range.
    ///
    /// # Errors
    /// When not.
    pub fn may_read(&self, author: &Author, key: &[u8], range_end: &[u8]) -> Result<(), AuthError> {
        match self.author(author)? {
            Some(user) => self.reads(user, key, range_end),
            None => Ok(()),
        }
    }

    /// Whether the author may change the store's configuration.
    ///
    /// # Errors
    /// When not.
    pub fn must_be_root(&self, author: &Author) -> Result<(), AuthError> {
        if !self.enabled {
            return Ok(());
        }
        if author.user.is_empty() {
            return Err(AuthError::UserEmpty);
        }
        match self.users.get(&author.user) {
            Some(user) if user.is_root() => Ok(()),
            _ => Err(AuthError::PermissionDenied),
        }
    }

    pub(crate) fn may(&self, author: &Author, command: &Command, leases: &Leases) -> Result<(), AuthError> {
        match command {
            Command::Txn(txn) => self.may_txn(author, txn, leases),
            Command::Batch(txns) => txns.iter().try_for_each(|txn| self.may_txn(author, txn, leases)),
            Command::LeaseRevoke { id, .. } => match self.author(author)? {
                Some(user) => self.writes_keys_of(user, *id, leases),
                None => Ok(()),
            },
            Command::Auth(_) => self.must_be_root(author),
            // etcd asks for nothing here; what only an administrator may do, its services check.
            Command::Compact { .. }
            | Command::LeaseGrant { .. }
            | Command::LeaseCheckpoint { .. }
            | Command::Alarm { .. }
            | Command::Version(_) => Ok(()),
        }
    }

    pub(crate) fn may_txn(
        &self,
        author: &Author,
        txn: &TxnCommand,
        leases: &Leases,
    ) -> Result<(), AuthError> {
        match self.author(author)? {
            Some(user) => self.may_branches(user, &txn.compares, [&txn.success, &txn.failure], leases),
            None => Ok(()),
        }
    }

    /// The user whose permissions count; `None` when everything is allowed.
    fn author(&self, author: &Author) -> Result<Option<&User>, AuthError> {
        if !self.enabled {
            return Ok(None);
        }
        if author.user.is_empty() {
            return Err(AuthError::UserEmpty);
        }
        if author.auth_revision < self.revision {
            return Err(AuthError::OldRevision);
        }
        match self.users.get(&author.user) {
            Some(user) if user.is_root() => Ok(None),
            Some(user) => Ok(Some(user)),
            None => Err(AuthError::PermissionDenied),
        }
    }

    fn may_branches(
        &self,
        user: &User,
        compares: &[Compare],
        branches: [&Vec<Op>; 2],
        leases: &Leases,
    ) -> Result<(), AuthError> {
        for compare in compares {
            self.reads(user, &compare.key, &compare.range_end)?;
        }
        for op in branches.into_iter().flatten() {
            match op {
                Op::Range(range) => self.reads(user, &range.key, &range.range_end)?,
                Op::Put(put) => self.puts(user, put, leases)?,
                Op::DeleteRange(delete) => {
                    self.writes(user, &delete.key, &delete.range_end)?;
                    if delete.prev_kv {
                        self.reads(user, &delete.key, &delete.range_end)?;
                    }
                }
                // The decoder and `Shape` bound the depth.
                Op::Txn(txn) => {
                    self.may_branches(user, &txn.compares, [&txn.success, &txn.failure], leases)?;
                }
            }
        }
        Ok(())
    }

    fn puts(&self, user: &User, put: &PutRequest, leases: &Leases) -> Result<(), AuthError> {
        self.writes(user, &put.key, &[])?;
        if put.prev_kv {
            self.reads(user, &put.key, &[])?;
        }
        self.writes_keys_of(user, put.lease, leases)
    }

    /// Whoever hangs a key on a lease, or ends it, decides over the other keys on it.
    fn writes_keys_of(&self, user: &User, lease: i64, leases: &Leases) -> Result<(), AuthError> {
        if lease == LEASE_NONE {
            return Ok(());
        }
        let Some((_, keys)) = leases.get(lease) else { return Ok(()) };
        keys.iter().try_for_each(|key| self.writes(user, key, &[]))
    }

    fn reads(&self, user: &User, key: &[u8], range_end: &[u8]) -> Result<(), AuthError> {
        let allowed = self.permissions(user).read.contains(KeyRange::of(key, range_end));
        if allowed { Ok(()) } else { Err(AuthError::PermissionDenied) }
    }

    fn writes(&self, user: &User, key: &[u8], range_end: &[u8]) -> Result<(), AuthError> {
        let allowed = self.permissions(user).write.contains(KeyRange::of(key, range_end));
        if allowed { Ok(()) } else { Err(AuthError::PermissionDenied) }
    }

    fn permissions<'a>(&'a self, user: &'a User) -> &'a UserPermissions {
        user.permissions.get_or_init(|| {
            UserPermissions::of(user.roles.iter().filter_map(|role| self.roles.get(role)).flatten())
        })
    }

    /// Whether nothing was ever changed.
    pub(crate) fn is_initial(&self) -> bool {
        self.revision == AUTH_REVISION_INITIAL && !self.enabled
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// Bytes that the store's accounting charges for it.
    pub(crate) fn bytes(&self) -> u64 {
        if self.is_initial() { 0 } else { self.encoded.expose().len() as u64 }
    }

    /// To be called after every change: forgets what was worked out.
    pub(crate) fn changed(&mut self) {
        self.users.values_mut().for_each(|user| user.permissions = OnceLock::new());
        self.encoded = Secret::new(self.encode());
        self.hash = hash::bytes(AUTH_HASH_DOMAIN, self.encoded.expose());
    }

    /// Carries a command out; an error leaves everything as it was.
    pub(crate) fn apply(&mut self, command: &AuthCommand) -> Result<(), AuthError> {
        let changes = match command {
            AuthCommand::Enable { token_secret } => {
                self.enable(token_secret)?;
                self.changed();
                return Ok(());
            }
            AuthCommand::Disable => std::mem::replace(&mut self.enabled, false),
            AuthCommand::UserAdd { name, password } => self.user_add(name, password.clone())?,
            AuthCommand::UserDelete { name } => {
                if self.enabled && name == ROOT_USER {
                    return Err(AuthError::InvalidManagement);
                }
                self.users.remove(name).map(|_| true).ok_or(AuthError::UserNotFound)?
            }
            AuthCommand::UserChangePassword { name, password } => {
                let credentials_revision = self.revision + 1;
                let user = self.users.get_mut(name).ok_or(AuthError::UserNotFound)?;
                user.password = user.password.take().map(|_| password.clone());
                user.credentials_revision = credentials_revision;
                true
            }
            AuthCommand::UserGrantRole { user, role } => {
                let user = self.users.get_mut(user).ok_or(AuthError::UserNotFound)?;
                if role != ROOT_ROLE && !self.roles.contains_key(role) {
                    return Err(AuthError::RoleNotFound);
                }
                user.roles.insert(role.clone())
            }
            AuthCommand::UserRevokeRole { user, role } => self.user_revoke_role(user, role)?,
            AuthCommand::RoleAdd { name } => self.role_add(name)?,
            AuthCommand::RoleDelete { name } => self.role_delete(name)?,
            AuthCommand::RoleGrantPermission { role, permission } => self.grant(role, permission)?,
            AuthCommand::RoleRevokePermission { role, key, range_end } => {
                let permissions = self.roles.get_mut(role).ok_or(AuthError::RoleNotFound)?;
                let same = |one: &Permission| one.key == *key && one.range_end == *range_end;
                let at = permissions.iter().position(same).ok_or(AuthError::PermissionNotGranted)?;
                permissions.remove(at);
                true
            }
        };
        if changes {
            self.revision += 1;
            self.changed();
        }
        Ok(())
    }

    fn enable(&mut self, token_secret: &Secret) -> Result<(), AuthError> {
        if self.enabled {
            return Ok(());
        }
        let root = self.users.get(ROOT_USER).ok_or(AuthError::RootUserNotExist)?;
        if !root.is_root() {
            return Err(AuthError::RootRoleNotExist);
        }
        self.enabled = true;
        self.token_secret = token_secret.clone();
        Ok(())
    }

    fn user_add(&mut self, name: &str, password: Option<Secret>) -> Result<bool, AuthError> {
        if name.is_empty() {
            return Err(AuthError::UserEmpty);
        }
        if self.users.contains_key(name) {
            return Err(AuthError::UserAlreadyExists);
        }
        self.users.insert(name.to_owned(), User::new(password, self.revision + 1));
        Ok(true)
    }

    fn user_revoke_role(&mut self, user: &str, role: &str) -> Result<bool, AuthError> {
        if self.enabled && user == ROOT_USER && role == ROOT_ROLE {
            return Err(AuthError::InvalidManagement);
        }
        let user = self.users.get_mut(user).ok_or(AuthError::UserNotFound)?;
        if user.roles.remove(role) { Ok(true) } else { Err(AuthError::RoleNotGranted) }
    }

    fn role_add(&mut self, name: &str) -> Result<bool, AuthError> {
        if name.is_empty() {
            return Err(AuthError::RoleEmpty);
        }
        if self.roles.contains_key(name) {
            return Err(AuthError::RoleAlreadyExists);
        }
        self.roles.insert(name.to_owned(), Vec::new());
        Ok(true)
    }

    fn role_delete(&mut self, name: &str) -> Result<bool, AuthError> {
        if self.enabled && name == ROOT_ROLE {
            return Err(AuthError::InvalidManagement);
        }
        self.roles.remove(name).ok_or(AuthError::RoleNotFound)?;
        for user in self.users.values_mut() {
            user.roles.remove(name);
        }
        Ok(true)
    }

    fn grant(&mut self, role: &str, permission: &Permission) -> Result<bool, AuthError> {
        if !permission.is_possible() {
            return Err(AuthError::InvalidManagement);
        }
        let permissions = self.roles.get_mut(role).ok_or(AuthError::RoleNotFound)?;
        let same = |one: &&mut Permission| one.key == permission.key && one.range_end == permission.range_end;
        match permissions.iter_mut().find(same) {
            Some(granted) => granted.kind = permission.kind,
            None => {
                let at = permissions.partition_point(|one| one.key <= permission.key);
                // Copies: the command's buffer must not live as long as the role.
                let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
                let (key, range_end) = (copy(&permission.key), copy(&permission.range_end));
                permissions.insert(at, Permission { kind: permission.kind, key, range_end });
            }
        }
        Ok(true)
    }
}
