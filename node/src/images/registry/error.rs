//! Why a registry did not give or take an image, by what the caller can do about it.

use super::super::ImageError;

/// Why an exchange with a registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It cannot be reached, broke off, or asks for patience: trying again may help.
    #[error("{what}: {problem}")]
    Unavailable {
        /// What was tried.
        what: String,
        /// What came of it.
        problem: String,
    },
    /// It wants credentials, or others.
    #[error("{what}: {said}{}", hint(*with_credentials))]
    Unauthorized {
        /// What was tried.
        what: String,
        /// In the registry's words.
        said: String,
        /// Whether any were shown.
        with_credentials: bool,
    },
    /// It does not have this.
    #[error("{what}: not found{}", in_brackets(said))]
    NotFound {
        /// What was tried.
        what: String,
        /// In the registry's words.
        said: String,
    },
    /// It refuses, and will again.
    #[error("{what}: the registry answered {status}{}", in_brackets(said))]
    Refused {
        /// What was tried.
        what: String,
        /// The HTTP status.
        status: u16,
        /// In the registry's words.
        said: String,
    },
    /// Its answer is not what the protocol promises.
    #[error("{what}: {problem}")]
    Protocol {
        /// What was tried.
        what: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// Content does not have the digest by which it was asked for.
    #[error("{what}: what came has the digest {found}")]
    Corrupt {
        /// What was asked for.
        what: String,
        /// What came.
        found: String,
    },
    /// The node's own side failed: disk, configuration, an image that cannot be used here.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl RegistryError {
    /// Whether the same request may go well a moment later.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether asking another registry is of no use.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::Image(_))
    }
}

fn hint(with_credentials: bool) -> &'static str {
    match with_credentials {
        true => " (the credentials that were shown are not enough)",
        false => " (no credentials for this registry: a private image needs imagePullSecrets)",
    }
}

fn in_brackets(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(" ({said})") }
}
