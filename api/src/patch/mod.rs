//! Patches: changes to an object, sent instead of the object.
//!
//! Owns the three media types that `kubectl` sends: JSON patch (RFC 6902), JSON merge patch (RFC 7396) and
//! Kubernetes' strategic merge patch. Promises to leave the input alone and to answer with the errors that
//! the API server gives. Does not decide whether the result is valid.

pub mod json;
pub mod merge;
pub(crate) mod merge_keys;
pub mod strategic;
