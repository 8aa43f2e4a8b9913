//! Patches: changes to an object, sent instead of the object.
//!
//! Owns the four media types that `kubectl` sends: JSON patch (RFC 6902), JSON merge patch (RFC 7396),
//! Kubernetes' strategic merge patch and server-side apply. Promises to leave the input alone and to answer with the errors that
//! the API server gives. Does not decide whether the result is valid.

pub mod apply;
pub mod json;
pub mod merge;
pub(crate) mod merge_keys;
pub mod strategic;
