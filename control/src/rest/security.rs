//! What a replica's configuration says about who gets in, how many at once, and what is noted of them; and from
//! where a request comes, as the port saw it.

use std::net::SocketAddr;
use std::sync::Arc;

use super::fairness::REQUESTS_MAX;
use crate::audit::Audit;
use crate::auth::tokens::StaticTokens;

/// What a replica's configuration says about who gets in, and how many at once.
#[derive(Debug, Clone)]
pub struct Security {
    /// Tokens that a file names.
    pub static_tokens: Arc<StaticTokens>,
    /// Whether requests without credentials are heard at all.
    pub allows_anonymous: bool,
    /// Where requests are noted.
    pub audit: Option<Arc<Audit>>,
    /// Requests handled at once, streams aside.
    pub requests_max: usize,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            static_tokens: Arc::default(),
            allows_anonymous: false,
            audit: None,
            requests_max: REQUESTS_MAX,
        }
    }
}

/// Where a request comes from. Put into its extensions by the server.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddress(pub SocketAddr);
