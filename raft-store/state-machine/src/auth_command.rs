//! What can be changed about users and roles, and why it was not. Types only; their bytes are in
//! `auth_codec`, their rules in `auth`.

use bytes::Bytes;

use crate::permission::Permission;
use crate::secret::Secret;

/// A change of users, roles, or of whether they count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthCommand {
    /// From now on every request needs a user.
    Enable {
        /// Random bytes that members seal tokens with; ignored when enabled already.
        token_secret: Secret,
    },
    /// From now on no request needs a user.
    Disable,
    /// Make a user.
    UserAdd {
        /// Its name; not empty.
        name: String,
        /// Its hashed password; `None`: known by certificate only.
        password: Option<Secret>,
    },
    /// Remove a user.
    UserDelete {
        /// Its name.
        name: String,
    },
    /// Give a user another password. A user without one stays without.
    UserChangePassword {
        /// Its name.
        name: String,
        /// The hashed password.
        password: Secret,
    },
    /// Give a user a role.
    UserGrantRole {
        /// The user.
        user: String,
        /// The role; must exist, other than the root role.
        role: String,
    },
    /// Take a role from a user.
    UserRevokeRole {
        /// The user.
        user: String,
        /// The role.
        role: String,
    },
    /// Make a role.
    RoleAdd {
        /// Its name; not empty.
        name: String,
    },
    /// Remove a role, and take it from all users.
    RoleDelete {
        /// Its name.
        name: String,
    },
    /// Let a role do something; replaces what it may do on the same key and range end.
    RoleGrantPermission {
        /// The role.
        role: String,
        /// What it may do.
        permission: Permission,
    },
    /// Take a permission from a role.
    RoleRevokePermission {
        /// The role.
        role: String,
        /// Exactly as granted.
        key: Bytes,
        /// Exactly as granted.
        range_end: Bytes,
    },
}

/// Why an auth command changed nothing, or an author may not do something. The texts are etcd's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Enabling needs a root user.
    #[error("root user does not exist")]
    RootUserNotExist,
    /// Enabling needs a root user with the root role.
    #[error("root user does not have root role")]
    RootRoleNotExist,
    /// The name is taken.
    #[error("user name already exists")]
    UserAlreadyExists,
    /// A user needs a name; or the request has no user although authentication is on.
    #[error("user name is empty")]
    UserEmpty,
    /// No such user.
    #[error("user name not found")]
    UserNotFound,
    /// The name is taken.
    #[error("role name already exists")]
    RoleAlreadyExists,
    /// No such role.
    #[error("role name not found")]
    RoleNotFound,
    /// A role needs a name.
    #[error("role name is empty")]
    RoleEmpty,
    /// The user does not have the role.
    #[error("role is not granted to the user")]
    RoleNotGranted,
    /// The role does not have the permission.
    #[error("permission is not granted to the role")]
    PermissionNotGranted,
    /// Would lock root out, or is an impossible range.
    #[error("invalid auth management")]
    InvalidManagement,
    /// The author may not.
    #[error("permission denied")]
    PermissionDenied,
    /// Permissions changed since the author was checked.
    #[error("revision of auth store is old")]
    OldRevision,
}
