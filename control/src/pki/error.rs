//! What can go wrong with certificates and tokens, told apart by what the caller can do.

use std::path::PathBuf;

/// A failure of the `pki` module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not a control token.
    #[error(
        "not a control token: {reason}; a control token is the text that `barque token create --role control` prints"
    )]
    ControlTokenMalformed {
        /// What is wrong with the text; never the text itself.
        reason: &'static str,
    },
    /// The text is not a node token.
    #[error(
        "not a node token: {reason}; a node token is the text that `barque token create --role node` prints"
    )]
    NodeTokenMalformed {
        /// What is wrong with the text; never the text itself.
        reason: &'static str,
    },
    /// The token was made with another cluster's control token, or altered.
    #[error("the node token was not issued by this cluster, or was altered")]
    NodeTokenForeign,
    /// The token's time is over.
    #[error(
        "the node token expired at {expired_at} (Unix time); create a new one with `barque token create --role node`"
    )]
    NodeTokenExpired {
        /// When it expired, in seconds since 1970.
        expired_at: u64,
    },
    /// A name cannot stand in a certificate.
    #[error("{name:?} cannot be the name of a {what}: {reason}")]
    NameInvalid {
        /// What the name was meant for.
        what: &'static str,
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A certificate signing request could not be read or its signature is wrong.
    #[error("the certificate signing request is not valid: {source}")]
    RequestInvalid {
        /// What rcgen found.
        source: rcgen::Error,
    },
    /// Making a certificate failed.
    #[error("cannot issue a certificate: {source}")]
    Issue {
        /// What rcgen found.
        #[from]
        source: rcgen::Error,
    },
    /// A certificate or key could not be read.
    #[error("cannot read {what}: {reason}")]
    Unreadable {
        /// Which certificate or key.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// rustls refused the certificates.
    #[error("cannot set up TLS: {source}")]
    Tls {
        /// What rustls found.
        #[from]
        source: rustls::Error,
    },
    /// The verifier for client certificates could not be built.
    #[error("cannot set up the check of client certificates: {source}")]
    ClientVerifier {
        /// What rustls found.
        #[from]
        source: rustls::server::VerifierBuilderError,
    },
    /// A file operation failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system's source of randomness failed.
    #[error("the system gave no random bytes")]
    NoRandomness,
    /// The clock stands before 1970.
    #[error("the system clock stands before 1970; set it and start again")]
    ClockBeforeEpoch,
}
