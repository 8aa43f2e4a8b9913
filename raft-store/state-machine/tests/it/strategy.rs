//! Random commands over a handful of keys, so that they meet often.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use state_machine::*;

pub(crate) fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        20 => prop::sample::select(vec!["a", "aa", "ab", "b", "b\0", "c"]).prop_map(Bytes::from_static_str),
        1 => Just(Bytes::new()),
    ]
}

trait FromStaticStr {
    fn from_static_str(text: &'static str) -> Bytes;
}

impl FromStaticStr for Bytes {
    fn from_static_str(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![3 => Just(Bytes::new()), 1 => Just(Bytes::from_static(b"\0")), 2 => key()]
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        1 => Just(Bytes::new()),
        4 => vec(0u8..4, 0..6).prop_map(Bytes::from),
    ]
}

fn lease() -> impl Strategy<Value = i64> {
    prop_oneof![3 => Just(0), 2 => -1i64..4]
}

/// Small, so that it often names a revision that exists.
fn revision() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(0), 3 => 0u64..40]
}

prop_compose! {
    pub(crate) fn range()(
        key in key(),
        range_end in range_end(),
        limit in 0u64..4,
        revision in revision(),
        sort_order in prop::sample::select(vec![SortOrder::None, SortOrder::Ascend, SortOrder::Descend]),
        sort_target in prop::sample::select(vec![
            SortTarget::Key, SortTarget::Version, SortTarget::CreateRevision, SortTarget::ModRevision,
            SortTarget::Value,
        ]),
        (keys_only, count_only) in (any::<bool>(), prop::bool::weighted(0.2)),
        (min_mod_revision, max_mod_revision) in (revision(), revision()),
        (min_create_revision, max_create_revision) in (revision(), revision()),
    ) -> RangeRequest {
        RangeRequest {
            key, range_end, limit, revision, sort_order, sort_target, keys_only, count_only,
            min_mod_revision, max_mod_revision, min_create_revision, max_create_revision,
        }
    }
}

prop_compose! {
    fn put()(
        key in key(),
        value in value(),
        lease in lease(),
        prev_kv in any::<bool>(),
        (ignore_value, ignore_lease) in (prop::bool::weighted(0.15), prop::bool::weighted(0.15)),
        contradict in prop::bool::weighted(0.1),
    ) -> PutRequest {
        PutRequest {
            key,
            value: if ignore_value && !contradict { Bytes::new() } else { value },
            lease: if ignore_lease && !contradict { 0 } else { lease },
            prev_kv, ignore_value, ignore_lease,
        }
    }
}

prop_compose! {
    fn delete()(key in key(), range_end in range_end(), prev_kv in any::<bool>()) -> DeleteRangeRequest {
        DeleteRangeRequest { key, range_end, prev_kv }
    }
}

prop_compose! {
    fn compare()(
        key in key(),
        range_end in range_end(),
        result in prop::sample::select(vec![
            CompareResult::Equal, CompareResult::NotEqual, CompareResult::Greater, CompareResult::Less,
        ]),
        target in prop_oneof![
            (0u64..4).prop_map(CompareTarget::Version),
            (0u64..20).prop_map(CompareTarget::CreateRevision),
            (0u64..20).prop_map(CompareTarget::ModRevision),
            value().prop_map(CompareTarget::Value),
            lease().prop_map(CompareTarget::Lease),
        ],
    ) -> Compare {
        Compare { key, range_end, result, target }
    }
}

fn op() -> impl Strategy<Value = Op> {
    nested(prop_oneof![
        6 => put().prop_map(Op::Put),
        2 => range().prop_map(Op::Range),
        3 => delete().prop_map(Op::DeleteRange),
    ])
}

fn fence() -> impl Strategy<Value = Option<Fence>> {
    option::weighted(0.2, (1u64..3).prop_map(|term| Fence { term }))
}

prop_compose! {
    fn txn()(
        fence in fence(),
        compares in vec(compare(), 0..2),
        success in vec(op(), 1..4),
        failure in vec(op(), 0..3),
    ) -> TxnCommand {
        TxnCommand { fence, compares, success, failure }
    }
}

prop_compose! {
    /// Of ranges and transactions of ranges.
    pub(crate) fn reading_txn()(
        compares in vec(compare(), 0..2),
        success in vec(reading_op(), 0..4),
        failure in vec(reading_op(), 0..3),
    ) -> TxnCommand {
        TxnCommand { fence: None, compares, success, failure }
    }
}

fn reading_op() -> impl Strategy<Value = Op> {
    nested(range().prop_map(Op::Range))
}

fn nested(leaf: impl Strategy<Value = Op> + 'static) -> impl Strategy<Value = Op> {
    leaf.prop_recursive(2, 8, 2, |inner| {
        (vec(compare(), 0..2), vec(inner.clone(), 0..3), vec(inner, 0..3))
            .prop_map(|(compares, success, failure)| Op::Txn(NestedTxn { compares, success, failure }))
    })
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["root", "root", "ann", "bob", ""]).prop_map(str::to_owned)
}

fn secret() -> impl Strategy<Value = Secret> {
    prop::sample::select(vec!["s1", "s2"]).prop_map(Secret::new)
}

fn auth() -> impl Strategy<Value = AuthCommand> {
    let kind =
        prop::sample::select(vec![PermissionKind::Read, PermissionKind::Write, PermissionKind::ReadWrite]);
    prop_oneof![
        2 => secret().prop_map(|token_secret| AuthCommand::Enable { token_secret }),
        1 => Just(AuthCommand::Disable),
        3 => (name(), option::of(secret()))
            .prop_map(|(name, password)| AuthCommand::UserAdd { name, password }),
        1 => name().prop_map(|name| AuthCommand::UserDelete { name }),
        1 => (name(), secret())
            .prop_map(|(name, password)| AuthCommand::UserChangePassword { name, password }),
        3 => (name(), name()).prop_map(|(user, role)| AuthCommand::UserGrantRole { user, role }),
        1 => (name(), name()).prop_map(|(user, role)| AuthCommand::UserRevokeRole { user, role }),
        3 => name().prop_map(|name| AuthCommand::RoleAdd { name }),
        1 => name().prop_map(|name| AuthCommand::RoleDelete { name }),
        3 => (name(), kind, key(), range_end()).prop_map(|(role, kind, key, range_end)| {
            AuthCommand::RoleGrantPermission { role, permission: Permission { kind, key, range_end } }
        }),
        1 => (name(), key(), range_end())
            .prop_map(|(role, key, range_end)| AuthCommand::RoleRevokePermission { role, key, range_end }),
    ]
}

fn version() -> impl Strategy<Value = VersionCommand> {
    prop_oneof![
        (1u64..4, 1u32..4).prop_map(|(member_id, version)| VersionCommand::Supports { member_id, version }),
        (1u32..3, prop::collection::btree_set(1u64..4, 1..3))
            .prop_map(|(version, members)| VersionCommand::Raise { version, members }),
    ]
}

/// Of few requests, so that some come twice.
pub(crate) fn request_id() -> impl Strategy<Value = Option<RequestId>> {
    let id = (1u128..4, 1u64..9).prop_map(|(client, sequence)| RequestId { client, sequence });
    option::weighted(0.4, id)
}

pub(crate) fn command() -> impl Strategy<Value = Command> {
    let remaining = (0i64..4, -1i64..20)
        .prop_map(|(id, remaining_ttl_seconds)| LeaseRemaining { id, remaining_ttl_seconds });
    let alarm = (prop::sample::select(vec![AlarmKind::NoSpace, AlarmKind::Corrupt]), 0u64..2)
        .prop_map(|(kind, member_id)| Alarm { kind, member_id });
    prop_oneof![
        8 => put().prop_map(|put| Command::Txn(TxnCommand::of(Op::Put(put)))),
        8 => txn().prop_map(Command::Txn),
        3 => vec(txn(), 0..4).prop_map(Command::Batch),
        3 => (0u64..40).prop_map(|revision| Command::Compact { revision }),
        3 => (0i64..4, 0i64..20).prop_map(|(id, ttl_seconds)| Command::LeaseGrant { id, ttl_seconds }),
        2 => (0i64..4, fence()).prop_map(|(id, fence)| Command::LeaseRevoke { id, fence }),
        1 => (fence(), vec(remaining, 0..3))
            .prop_map(|(fence, remaining)| Command::LeaseCheckpoint { fence, remaining }),
        1 => alarm.clone().prop_map(|alarm| Command::Alarm { action: AlarmAction::Activate, alarm }),
        3 => alarm.prop_map(|alarm| Command::Alarm { action: AlarmAction::Deactivate, alarm }),
        4 => auth().prop_map(Command::Auth),
        1 => version().prop_map(Command::Version),
    ]
}
