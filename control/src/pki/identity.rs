//! Who a client certificate says the caller is.
//!
//! Owns the names used in certificates. Reads user and groups as Kubernetes does: the subject's common name
//! is the user, its organisations are the groups. The certificate must have been verified before.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Error;

/// The name that every master's certificate carries beside its addresses. Clients verify this name and
/// connect by address, so that nothing needs DNS.
pub const SERVER_NAME: &str = "barque-control";
/// May do everything.
pub const GROUP_MASTERS: &str = "system:masters";
/// All node agents.
pub const GROUP_NODES: &str = "system:nodes";
/// All masters.
pub const GROUP_MEMBERS: &str = "barque:members";
/// A node agent's user name is this followed by the node's name.
pub const USER_NODE_PREFIX: &str = "system:node:";
/// A master's user name is this followed by the member's name.
pub const USER_MEMBER_PREFIX: &str = "barque:member:";

/// A caller, as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The subject's common name.
    pub user: String,
    /// The subject's organisations.
    pub groups: Vec<String>,
}

impl Identity {
    /// Reads a certificate that TLS has verified already.
    pub fn from_verified(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let unreadable = |reason: String| Error::Unreadable { what: "the client certificate", reason };
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|error| unreadable(error.to_string()))?;
        let text = |part: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            part.as_str().map(str::to_owned).map_err(|error| unreadable(error.to_string()))
        };
        let user = parsed
            .subject()
            .iter_common_name()
            .next()
            .map(text)
            .ok_or_else(|| unreadable("its subject has no common name".to_owned()))??;
        let groups = parsed.subject().iter_organization().map(text).collect::<Result<_, _>>()?;
        Ok(Self { user, groups })
    }

    /// Whether the caller belongs to `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The node's name, when the caller is a node agent.
    pub fn node_name(&self) -> Option<&str> {
        self.user.strip_prefix(USER_NODE_PREFIX).filter(|_| self.in_group(GROUP_NODES))
    }

    /// The member's name, when the caller is a master.
    pub fn member_name(&self) -> Option<&str> {
        self.user.strip_prefix(USER_MEMBER_PREFIX).filter(|_| self.in_group(GROUP_MEMBERS))
    }
}
