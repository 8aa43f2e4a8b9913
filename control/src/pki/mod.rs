//! Who is who in a cluster: the certificate authority, certificates, tokens, and TLS settings.
//!
//! Owns the two secrets an operator handles ([`ControlToken`], [`NodeToken`]), the [`Authority`] that every
//! master derives from the control token alone (same token, same authority, no coordination), the
//! certificates it issues, their files, and the rustls settings built from them. Promises that private keys
//! and tokens reach the disk readable by their owner only. It opens no socket, and it does not decide what a
//! caller may do: it only says who the caller is ([`Identity`]).
//!
//! ```text
//! control token ──► Authority ──► member certificate (server and client)   barque:member:<name>
//!                      │     └──► admin certificate (client)               system:masters
//!                      ├──► node token ──► checked by any master, kept nowhere
//!                      ├──► keys that sign the tokens of service accounts (see `auth`)
//!                      ├──► CSR of a node ──► node certificate (client)    system:node:<name>
//!                      └──► CSR that was approved ──► a certificate that says what was asked
//! ```

mod authority;
mod error;
mod files;
mod identity;
mod service_account_key;
mod signing_request;
mod tls;
mod token;
mod unverified;

#[cfg(test)]
mod tests;

pub use authority::{Authority, Credentials, MemberIdentity};
pub use error::Error;
pub use files::{load_or_issue_member, read_credentials, read_token, write_private, write_public};
pub use identity::{
    GROUP_MASTERS, GROUP_MEMBERS, GROUP_NODES, Identity, SERVER_NAME, USER_MEMBER_PREFIX, USER_NODE_PREFIX,
};
pub use service_account_key::ServiceAccountKey;
pub use signing_request::{AlternativeNames, SigningRequest, Usage, expires_at_s};
pub use tls::{ALPN_H2, ALPN_HTTP1, client_config, server_config};
pub use token::{ControlToken, NodeToken};
pub(crate) use unverified::unverified_client_config;
