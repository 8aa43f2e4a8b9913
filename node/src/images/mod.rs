//! Images: names, the content-addressed store, registries, archives, the built-in image.
//!
//! ```text
//! registry ─► pull ─┐                       ┌─► push ─► registry
//! archive, layout ──┼─► store ─► layers ────┼─► export ─► archive
//! own binary ───────┘     ▲                 └─► overlays of containers
//!                         gc
//! ```
//! Owns everything below `<dataDir>/images`. Promises: content is verified by digest before it is named,
//! a pull or import that was interrupted leaves nothing that is visible, a layer is unpacked once however many
//! images share it, nothing that a container uses is removed.

mod archive;
mod builtin;
mod config;
mod credentials;
mod export;
mod gc;
mod index;
mod inspect;
mod layer;
pub(crate) mod made;
mod manifest;
mod pull;
mod push;
mod reference;
mod registry;
mod settings;
mod store;

pub use archive::{Imported, import};
pub use builtin::{BUILTIN_IMAGE, build_builtin, import_builtin};
pub use config::ImageConfig;
pub use credentials::{BadCredentials, Credentials, Keyring};
pub use export::export;
pub use gc::{GcError, InUse, RemoveError, Removed, images_in_use};
pub use inspect::inspect;
pub use made::{HistoryRow, is_nameless, is_step};
pub use manifest::Format;
pub use pull::{LayerProgress, Progress, Pulled, Puller};
pub use push::{Pushed, push};
pub use reference::{InvalidReference, Reference};
pub use registry::{RegistryError, check_login};
pub use settings::{ImagesConfig, ProxyConfig, RegistryConfig};
pub use store::{Image, ImageStore, ImageSummary};

use std::path::PathBuf;

/// Why an image cannot be imported, read or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file operation failed.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The archive is not one of the forms that can be imported.
    #[error("{path} is not an image archive: {problem}")]
    NotAnArchive {
        /// The archive.
        path: PathBuf,
        /// What was expected and not found.
        problem: String,
    },
    /// Content does not have the digest under which it is named.
    #[error("{what} in {path} is corrupt: its digest is {found}, not {expected}")]
    Corrupt {
        /// Which piece of content.
        what: String,
        /// The archive or store file.
        path: PathBuf,
        /// The digest that names it.
        expected: String,
        /// The digest that it has.
        found: String,
    },
    /// A manifest, index or configuration cannot be understood.
    #[error("{what} cannot be read: {problem}")]
    Malformed {
        /// Which document.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// The image's name is not a valid reference.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// A layer could not be unpacked.
    #[error("layer {layer} cannot be unpacked: {problem}")]
    Unpack {
        /// The layer's diff id.
        layer: String,
        /// What went wrong.
        problem: String,
    },
}

impl ImageError {
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }

    pub(crate) fn malformed(what: impl Into<String>, problem: impl ToString) -> Self {
        Self::Malformed { what: what.into(), problem: problem.to_string() }
    }
}

/// The SHA-256 digest of bytes as lower-case hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes))
}
