//! Who asks, and whether they may.
//!
//! Owns [`Identity`] (taken from the verified client certificate: CN is the user, O are the groups; or from a
//! bearer token, see [`tokens`]) and the place where a request is allowed or refused
//! ([`Access`]). Promises that a request without credentials is anonymous, never somebody. Does not verify certificates: TLS has done that before.

mod access;
pub(crate) mod nodes;
pub mod rbac;
pub mod secret_tokens;
pub mod service_account;
mod signers;
mod signing_keys;
pub mod tokens;

use std::collections::BTreeMap;

use api::{Kind, Status};

pub use self::access::{Access, Attributes, ResourceName, refusal};
use crate::pki;
use crate::registry::Guard;

/// The group whose members may do everything.
pub use crate::pki::GROUP_MASTERS as SYSTEM_MASTERS;
/// The group of control-plane members; their user is `barque:member:<name>`.
pub use crate::pki::GROUP_MEMBERS as BARQUE_MEMBERS;
/// The group of node agents; their user is `system:node:<name>`.
pub use crate::pki::GROUP_NODES as SYSTEM_NODES;
/// What a node agent's user name begins with.
pub use crate::pki::USER_NODE_PREFIX as NODE_USER_PREFIX;

/// The user of a request that brought no credentials.
pub const ANONYMOUS: &str = "system:anonymous";
/// The group of every request that brought valid credentials.
pub const SYSTEM_AUTHENTICATED: &str = "system:authenticated";
/// The group of every request that brought none.
pub const SYSTEM_UNAUTHENTICATED: &str = "system:unauthenticated";

/// Who makes a request. Put into a request's extensions by the server, for REST and gRPC alike.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The user name (a certificate's CN).
    pub user: String,
    /// The groups (a certificate's O entries, and `system:authenticated`).
    pub groups: Vec<String>,
    /// What tells this user from earlier ones of the same name, if anything does.
    pub uid: String,
    /// More that is known, by key; nothing here decides on it.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// A request without credentials.
    pub fn anonymous() -> Self {
        Self {
            user: ANONYMOUS.to_owned(),
            groups: vec![SYSTEM_UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// Whom a verified client certificate names.
    pub fn from_certificate(certificate: pki::Identity) -> Self {
        let mut groups = certificate.groups;
        groups.push(SYSTEM_AUTHENTICATED.to_owned());
        Self { user: certificate.user, groups, ..Self::default() }
    }

    /// Barque's own parts acting inside a replica, for example a controller.
    pub fn internal(component: &str) -> Self {
        Self {
            user: format!("system:barque:{component}"),
            groups: vec![SYSTEM_MASTERS.to_owned()],
            ..Self::default()
        }
    }

    /// Whether the request brought no credentials.
    pub fn is_anonymous(&self) -> bool {
        self.user == ANONYMOUS
    }

    /// Whether the identity belongs to the group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The node's name, if this is a node agent.
    pub fn node_name(&self) -> Option<&str> {
        if !self.in_group(SYSTEM_NODES) {
            return None;
        }
        self.user.strip_prefix(NODE_USER_PREFIX)
    }
}

/// What an identity's write of a kind must pass beyond the right to write it.
///
/// # Errors
/// When the store cannot say now who has what.
pub(crate) async fn write_guard(
    access: &Access,
    identity: &Identity,
    kind: &Kind,
) -> Result<Option<Guard>, Status> {
    let guards = [
        rbac::escalation::guard(access, identity, kind).await?,
        signers::guard(access, identity, kind),
        nodes::restriction::guard(identity, kind),
    ];
    Ok(guards.into_iter().flatten().reduce(Guard::and))
}
