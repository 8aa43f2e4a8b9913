//! How large a client's request may be, with etcd's two answers to one that is larger.
//!
//! etcd refuses a message beyond the request limit and 512 KiB as its transport does, and a request that would
//! not fit into its log with an error of its own. Our transport's own limit lies above both and only bounds
//! memory. The control plane, in process, is not limited here.

use prost::Message;
use tonic::Status;

use super::status;
use crate::store::Store;

/// Beyond the payload's own limit, what its frame and the other fields of a request may take.
const REQUEST_OVERHEAD_BYTES: usize = 512 * 1024;
/// How many times larger than allowed a message may be to be still refused in etcd's words.
const READ_FACTOR: usize = 4;

/// The largest message that is read at all.
pub(crate) fn message_bytes_max(store: &Store) -> usize {
    (store.config().request_bytes_max + REQUEST_OVERHEAD_BYTES) * READ_FACTOR
}

/// The request, unless it is too large to be proposed.
pub(crate) fn fitting<M: Message>(store: &Store, request: M) -> Result<M, Status> {
    let bytes_max = store.config().request_bytes_max;
    let bytes = request.encoded_len();
    if bytes > bytes_max + REQUEST_OVERHEAD_BYTES {
        return Err(status::message_too_large(bytes, bytes_max + REQUEST_OVERHEAD_BYTES));
    }
    if bytes > bytes_max {
        return Err(status::too_large());
    }
    Ok(request)
}
