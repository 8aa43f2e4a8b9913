//! What a bearer token can be: a service account's, one of the file of static tokens, or a bootstrap token.
//!
//! Owns the order in which these are asked (a token is of one sort only, told by its form) and the answer to
//! whom it names. Promises that a token which does not count makes nobody. The sorts themselves are modules
//! beside; service accounts' tokens are [`super::service_account`]'s.

mod bootstrap;
mod static_tokens;

use std::sync::Arc;

pub use self::bootstrap::{is_expired, is_token, signing_tokens};
pub use self::static_tokens::{StaticTokens, StaticTokensError};
use super::service_account::{ISSUER, ServiceAccounts};
use super::{Identity, secret_tokens};
use crate::registry::Registry;

/// Says whom tokens name; clones share everything.
#[derive(Debug, Clone)]
pub struct Tokens {
    registry: Registry,
    accounts: ServiceAccounts,
    fixed: Arc<StaticTokens>,
}

impl Tokens {
    /// Over the accounts and the objects of a cluster, and this replica's static tokens.
    pub fn new(registry: Registry, accounts: ServiceAccounts, fixed: Arc<StaticTokens>) -> Self {
        Self { registry, accounts, fixed }
    }

    /// Whom a token names for the API.
    pub async fn authenticate(&self, token: &str) -> Option<Identity> {
        self.review(token, &[ISSUER]).await.map(|(identity, _)| identity)
    }

    /// Whom a token names for one of these audiences, and for which of them it is.
    pub async fn review(&self, token: &str, audiences: &[&str]) -> Option<(Identity, Vec<String>)> {
        // Tokens that say nothing of an audience are for the API.
        if audiences.contains(&ISSUER) {
            let known = match self.fixed.identity(token) {
                Some(identity) => Some(identity),
                None => bootstrap::identity(&self.registry, token).await,
            };
            if let Some(identity) = known {
                return Some((identity, vec![ISSUER.to_owned()]));
            }
        }
        match secret_tokens::identity(&self.accounts, &self.registry, token, audiences).await {
            Some(identity) => Some((identity, vec![ISSUER.to_owned()])),
            None => self.accounts.review(token, audiences).await,
        }
    }
}
