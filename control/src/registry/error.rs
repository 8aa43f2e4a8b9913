//! Store errors as Kubernetes `Status` errors.

use api::Status;

use crate::object_store::Error;

/// After how many seconds a client should try again when the store has no quorum.
const RETRY_AFTER_S: u32 = 1;

/// The `Status` for a store error.
pub fn from_store(error: Error) -> Status {
    match error {
        Error::Compacted { .. } => Status::expired("The resourceVersion for the provided list is too old."),
        Error::Future { requested, newest } => Status::timeout(
            &format!("Too large resource version: {requested}, current: {newest}"),
            RETRY_AFTER_S,
        ),
        // The write was not made, so the client may repeat it.
        Error::Unavailable { .. } | Error::Stopping => {
            Status::service_unavailable(error.to_string()).retry_after(RETRY_AFTER_S)
        }
        // Not to be repeated blindly: no Retry-After.
        Error::Unknown { .. } => Status::service_unavailable(error.to_string()),
        Error::TooLarge { bytes, bytes_max } => {
            Status::request_entity_too_large(&format!("{bytes} bytes, limit is {bytes_max}"))
        }
        Error::Sealed { .. } => Status::internal(&error.to_string()),
        Error::NoSpace => Status::service_unavailable(error.to_string()),
    }
}

/// The write was valid only from a leader that has been deposed.
pub(super) fn fenced() -> Status {
    Status::service_unavailable("the write was refused: another replica has taken over the leadership")
}

/// The `ERROR` that ends a watch whose version is too old.
pub(super) fn watch_expired(requested: u64, oldest: u64) -> Status {
    Status::expired(format!("too old resource version: {requested} ({oldest})"))
}
