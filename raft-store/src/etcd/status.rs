//! Our errors as etcd says them. Clients match on code and text, so both are etcd's to the letter
//! (its client-facing error list, package `v3rpc/rpctypes`).

use state_machine::{ApplyError, AuthError, ReadError};
use tonic::{Code, Status};

use crate::error::Error;

pub(crate) fn empty_key() -> Status {
    Status::new(Code::InvalidArgument, "etcdserver: key is not provided")
}

pub(crate) fn key_not_found() -> Status {
    Status::new(Code::InvalidArgument, "etcdserver: key not found")
}

pub(crate) fn value_provided() -> Status {
    Status::new(Code::InvalidArgument, "etcdserver: value is provided")
}

pub(crate) fn lease_provided() -> Status {
    Status::new(Code::InvalidArgument, "etcdserver: lease is provided")
}

pub(crate) fn too_many_ops() -> Status {
    Status::new(Code::InvalidArgument, "etcdserver: too many operations in txn request")
}

pub(crate) fn duplicate_key() -> Status {
    Status::new(Code::InvalidArgument, "etcdserver: duplicate key given in txn request")
}

pub(crate) fn invalid_sort_option() -> Status {
    Status::new(Code::InvalidArgument, "etcdserver: invalid sort option")
}

pub(crate) fn compacted() -> Status {
    Status::new(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted")
}

pub(crate) fn future_revision() -> Status {
    Status::new(Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision")
}

pub(crate) fn no_space() -> Status {
    Status::new(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded")
}

pub(crate) fn too_large() -> Status {
    Status::new(Code::InvalidArgument, "etcdserver: request is too large")
}

/// A message beyond what the transport takes, in the words of etcd's gRPC library.
pub(crate) fn message_too_large(bytes: usize, bytes_max: usize) -> Status {
    let text = format!("grpc: received message larger than max ({bytes} vs. {bytes_max})");
    Status::new(Code::ResourceExhausted, text)
}

pub(crate) fn lease_not_found() -> Status {
    Status::new(Code::NotFound, "etcdserver: requested lease not found")
}

pub(crate) fn lease_exists() -> Status {
    Status::new(Code::FailedPrecondition, "etcdserver: lease already exists")
}

pub(crate) fn lease_ttl_too_large() -> Status {
    Status::new(Code::OutOfRange, "etcdserver: too large lease TTL")
}

pub(crate) fn corrupt() -> Status {
    Status::new(Code::DataLoss, "etcdserver: corrupt cluster")
}

pub(crate) fn auth_not_enabled() -> Status {
    Status::new(Code::FailedPrecondition, "etcdserver: authentication is not enabled")
}

pub(crate) fn auth_failed() -> Status {
    Status::new(Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password")
}

/// etcd forgot to translate this one: it comes out as it is inside.
pub(crate) fn no_password_user() -> Status {
    Status::new(Code::Unknown, "auth: authentication failed, password was given for no password user")
}

pub(crate) fn invalid_auth_token() -> Status {
    Status::new(Code::Unauthenticated, "etcdserver: invalid auth token")
}

pub(crate) fn permission_not_given() -> Status {
    Status::new(Code::InvalidArgument, "etcdserver: permission not given")
}

/// Users, roles and permissions: the error's own text is etcd's.
pub(crate) fn of_auth_error(error: AuthError) -> Status {
    let code = match error {
        AuthError::RootUserNotExist
        | AuthError::RootRoleNotExist
        | AuthError::UserAlreadyExists
        | AuthError::UserNotFound
        | AuthError::RoleAlreadyExists
        | AuthError::RoleNotFound
        | AuthError::RoleNotGranted
        | AuthError::PermissionNotGranted => Code::FailedPrecondition,
        AuthError::UserEmpty
        | AuthError::RoleEmpty
        | AuthError::InvalidManagement
        | AuthError::OldRevision => Code::InvalidArgument,
        AuthError::PermissionDenied => Code::PermissionDenied,
    };
    Status::new(code, format!("etcdserver: {error}"))
}

pub(crate) fn stopped() -> Status {
    Status::new(Code::Unavailable, "etcdserver: server stopped")
}

pub(crate) fn no_leader() -> Status {
    Status::new(Code::Unavailable, "etcdserver: no leader")
}

pub(crate) fn timeout() -> Status {
    Status::new(Code::Unavailable, "etcdserver: request timed out")
}

pub(crate) fn member_not_found() -> Status {
    Status::new(Code::NotFound, "etcdserver: member not found")
}

pub(crate) fn member_bad_urls() -> Status {
    Status::new(Code::InvalidArgument, "etcdserver: given member URLs are invalid")
}

pub(crate) fn peer_urls_exist() -> Status {
    Status::new(Code::FailedPrecondition, "etcdserver: Peer URLs already exists")
}

pub(crate) fn not_enough_started() -> Status {
    let text = "etcdserver: re-configuration failed due to not enough started members";
    Status::new(Code::FailedPrecondition, text)
}

pub(crate) fn member_not_learner() -> Status {
    Status::new(Code::FailedPrecondition, "etcdserver: can only promote a learner member")
}

pub(crate) fn learner_not_ready() -> Status {
    let text = "etcdserver: can only promote a learner member which is in sync with leader";
    Status::new(Code::FailedPrecondition, text)
}

pub(crate) fn too_many_learners() -> Status {
    Status::new(Code::FailedPrecondition, "etcdserver: too many learner members in cluster")
}

pub(crate) fn not_leader() -> Status {
    Status::new(Code::FailedPrecondition, "etcdserver: not leader")
}

pub(crate) fn bad_leader_transferee() -> Status {
    Status::new(Code::FailedPrecondition, "etcdserver: bad leader transferee")
}

pub(crate) fn invalid_downgrade_target() -> Status {
    Status::new(Code::InvalidArgument, "etcdserver: invalid downgrade target version")
}

pub(crate) fn no_inflight_downgrade() -> Status {
    Status::new(Code::FailedPrecondition, "etcdserver: no inflight downgrade job")
}

pub(crate) fn unhealthy_cluster() -> Status {
    Status::new(Code::Unavailable, "etcdserver: unhealthy cluster")
}

/// What a failed write, read or watch is to an etcd client.
pub(crate) fn of_error(error: &Error) -> Status {
    match error {
        Error::Unavailable { .. } => no_leader(),
        // etcd's own word for "we do not know": its client does not send a write again on it.
        Error::Unknown { .. } => timeout(),
        Error::TooLarge { .. } => too_large(),
        Error::Compacted { .. } => compacted(),
        Error::Future { .. } => future_revision(),
        Error::Refused { reason } => Status::new(Code::FailedPrecondition, format!("etcdserver: {reason}")),
        Error::Stopped { .. } => stopped(),
    }
}

/// What a refused command is to an etcd client.
pub(crate) fn of_apply_error(error: &ApplyError) -> Status {
    match error {
        ApplyError::Read(ReadError::Compacted { .. }) => compacted(),
        ApplyError::Read(ReadError::Future { .. }) => future_revision(),
        ApplyError::EmptyKey => empty_key(),
        ApplyError::DuplicateKey => duplicate_key(),
        ApplyError::KeyNotFound => key_not_found(),
        ApplyError::ValueProvided => value_provided(),
        ApplyError::LeaseProvided => lease_provided(),
        ApplyError::LeaseNotFound { .. } => lease_not_found(),
        ApplyError::LeaseExists { .. } => lease_exists(),
        ApplyError::LeaseTtl { .. } => lease_ttl_too_large(),
        ApplyError::TooManyOps { .. } => too_many_ops(),
        ApplyError::NoSpace => no_space(),
        ApplyError::Corrupt => corrupt(),
        ApplyError::Auth(error) => of_auth_error(*error),
        ApplyError::TooDeep { .. }
        | ApplyError::RequestForgotten { .. }
        | ApplyError::Fenced { .. }
        | ApplyError::AlreadyApplied { .. } => {
            Status::new(Code::FailedPrecondition, format!("etcdserver: {error}"))
        }
    }
}

/// The answer to a command did not fit the command: a fault of ours.
pub(crate) fn unexpected_outcome() -> Status {
    Status::new(Code::Internal, "etcdserver: the store answered another question than was asked")
}
