//! etcd's messages to ours and back. Requests are checked here as etcd checks them before it proposes.

use proto::etcd::{etcdserverpb as pb, mvccpb};
use state_machine::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, NestedTxn, Op, OpResult, PutRequest,
    RangeRequest, RangeResponse, Record, SortOrder, SortTarget, TXN_DEPTH_MAX, TxnCommand, TxnOutcome,
};
use tonic::Status;

use super::status;

/// A revision or count as the protocol has it; ours never come near the sign.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A revision or limit from the protocol: negative is as good as none.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// The bounds of a revision: none is above a negative upper bound.
fn bounds(min: i64, max: i64) -> (u64, u64) {
    if max < 0 { (u64::MAX, 0) } else { (unsigned(min), unsigned(max)) }
}

pub(crate) fn key_value(record: &Record) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: record.key.clone(),
        create_revision: signed(record.create_revision),
        mod_revision: signed(record.mod_revision),
        version: signed(record.version),
        value: record.value.clone(),
        lease: record.lease,
    }
}

pub(crate) fn range(request: pb::RangeRequest) -> Result<RangeRequest, Status> {
    if request.key.is_empty() {
        return Err(status::empty_key());
    }
    let sort_order = match pb::range_request::SortOrder::try_from(request.sort_order) {
        Ok(pb::range_request::SortOrder::None) => SortOrder::None,
        Ok(pb::range_request::SortOrder::Ascend) => SortOrder::Ascend,
        Ok(pb::range_request::SortOrder::Descend) => SortOrder::Descend,
        Err(_) => return Err(status::invalid_sort_option()),
    };
    let sort_target = match pb::range_request::SortTarget::try_from(request.sort_target) {
        Ok(pb::range_request::SortTarget::Key) => SortTarget::Key,
        Ok(pb::range_request::SortTarget::Version) => SortTarget::Version,
        Ok(pb::range_request::SortTarget::Create) => SortTarget::CreateRevision,
        Ok(pb::range_request::SortTarget::Mod) => SortTarget::ModRevision,
        Ok(pb::range_request::SortTarget::Value) => SortTarget::Value,
        Err(_) => return Err(status::invalid_sort_option()),
    };
    let (min_mod_revision, max_mod_revision) = bounds(request.min_mod_revision, request.max_mod_revision);
    let (min_create_revision, max_create_revision) =
        bounds(request.min_create_revision, request.max_create_revision);
    Ok(RangeRequest {
        key: request.key,
        range_end: request.range_end,
        limit: unsigned(request.limit),
        revision: unsigned(request.revision),
        sort_order,
        sort_target,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision,
        max_mod_revision,
        min_create_revision,
        max_create_revision,
    })
}

pub(crate) fn put(request: pb::PutRequest) -> Result<PutRequest, Status> {
    if request.key.is_empty() {
        return Err(status::empty_key());
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(status::value_provided());
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(status::lease_provided());
    }
    Ok(PutRequest {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    })
}

pub(crate) fn delete_range(request: pb::DeleteRangeRequest) -> Result<DeleteRangeRequest, Status> {
    if request.key.is_empty() {
        return Err(status::empty_key());
    }
    Ok(DeleteRangeRequest { key: request.key, range_end: request.range_end, prev_kv: request.prev_kv })
}

/// A transaction of at most `ops_max` compares and as many operations in each branch. As in etcd, a nested
/// transaction may have what the one around it left.
pub(crate) fn txn(request: pb::TxnRequest, ops_max: usize) -> Result<TxnCommand, Status> {
    let NestedTxn { compares, success, failure } = nested_txn(request, ops_max)?;
    Ok(TxnCommand { fence: None, compares, success, failure })
}

/// Whether every range of a transaction, if it only reads, may be answered from a state that lags. One without a
/// range asks for nothing of the kind: its compares see all that was acknowledged, which etcd does not promise.
pub(crate) fn is_serializable(request: &pb::TxnRequest) -> bool {
    fn ranges(request: &pb::TxnRequest, depth: usize, found: &mut usize) -> bool {
        use pb::request_op::Request as R;
        request.success.iter().chain(&request.failure).all(|op| match &op.request {
            Some(R::RequestRange(range)) => {
                *found += 1;
                range.serializable
            }
            // Deeper ones are refused whatever they ask for.
            Some(R::RequestTxn(txn)) => depth < TXN_DEPTH_MAX && ranges(txn, depth + 1, found),
            _ => false,
        })
    }
    let mut found = 0;
    ranges(request, 1, &mut found) && found > 0
}

fn nested_txn(request: pb::TxnRequest, ops_max: usize) -> Result<NestedTxn, Status> {
    let widest = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = ops_max.checked_sub(widest).ok_or_else(status::too_many_ops)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(status::empty_key());
    }
    let ops = |ops: Vec<pb::RequestOp>| {
        // etcd's own answer to an operation that says nothing.
        let op = |op: pb::RequestOp| self::op(op.request.ok_or_else(status::key_not_found)?, left);
        ops.into_iter().map(op).collect::<Result<_, Status>>()
    };
    Ok(NestedTxn {
        success: ops(request.success)?,
        failure: ops(request.failure)?,
        compares: request.compare.into_iter().filter_map(compare).collect(),
    })
}

fn op(op: pb::request_op::Request, ops_max: usize) -> Result<Op, Status> {
    use pb::request_op::Request as R;
    Ok(match op {
        R::RequestRange(request) => Op::Range(range(request)?),
        R::RequestPut(request) => Op::Put(put(request)?),
        R::RequestDeleteRange(request) => Op::DeleteRange(delete_range(request)?),
        R::RequestTxn(request) => Op::Txn(nested_txn(request, ops_max)?),
    })
}

/// A condition; `None` if it holds whatever the state. What etcd does not know it does not refuse: an unknown
/// result always holds, an unknown target is equal to anything, an operand of another kind than the
/// target is absent.
fn compare(compare: pb::Compare) -> Option<Compare> {
    use pb::compare::{CompareResult as Result_, CompareTarget as Target, TargetUnion as Operand};
    let result = Result_::try_from(compare.result).ok();
    let target = Target::try_from(compare.target).ok();
    let number = match (target, &compare.target_union) {
        (Some(Target::Version), Some(Operand::Version(n)))
        | (Some(Target::Create), Some(Operand::CreateRevision(n)))
        | (Some(Target::Mod), Some(Operand::ModRevision(n))) => *n,
        _ => 0,
    };
    let (result, target) = match (target, result) {
        // A key that is absent has no value to compare.
        (Some(Target::Value), None) => (CompareResult::Greater, CompareTarget::Version(0)),
        (_, None) | (None, Some(Result_::Equal)) => return None,
        (None, Some(_)) => NEVER,
        // Versions and revisions are never negative.
        (Some(_), Some(Result_::Greater | Result_::NotEqual)) if number < 0 => return None,
        (Some(_), Some(_)) if number < 0 => NEVER,
        (Some(target), Some(result)) => {
            let target = match (target, compare.target_union) {
                (Target::Version, _) => CompareTarget::Version(unsigned(number)),
                (Target::Create, _) => CompareTarget::CreateRevision(unsigned(number)),
                (Target::Mod, _) => CompareTarget::ModRevision(unsigned(number)),
                (Target::Value, Some(Operand::Value(value))) => CompareTarget::Value(value),
                (Target::Value, _) => CompareTarget::Value(bytes::Bytes::new()),
                (Target::Lease, Some(Operand::Lease(id))) => CompareTarget::Lease(id),
                (Target::Lease, _) => CompareTarget::Lease(0),
            };
            (compare_result(result), target)
        }
    };
    Some(Compare { key: compare.key, range_end: compare.range_end, result, target })
}

/// A condition that never holds.
const NEVER: (CompareResult, CompareTarget) = (CompareResult::Less, CompareTarget::Version(0));

fn compare_result(result: pb::compare::CompareResult) -> CompareResult {
    use pb::compare::CompareResult as Result_;
    match result {
        Result_::Equal => CompareResult::Equal,
        Result_::Greater => CompareResult::Greater,
        Result_::Less => CompareResult::Less,
        Result_::NotEqual => CompareResult::NotEqual,
    }
}

/// What a range found. Only the outermost answer carries a full header.
pub(crate) fn range_response(
    response: &RangeResponse,
    header: Option<pb::ResponseHeader>,
) -> pb::RangeResponse {
    pb::RangeResponse {
        header,
        kvs: response.kvs.iter().map(|record| key_value(record)).collect(),
        more: response.more,
        count: signed(response.count),
    }
}

/// What a transaction did. As in etcd, answers within say the revision only: the transaction's own from its
/// first change on, before that the one it began at; nested transactions say none.
pub(crate) fn txn_response(outcome: &TxnOutcome, header: pb::ResponseHeader) -> pb::TxnResponse {
    let before = outcome.revision - u64::from(outcome.results.iter().any(changed));
    let mut revisions = Revisions { now: before, after: outcome.revision };
    pb::TxnResponse {
        header: Some(header),
        succeeded: outcome.succeeded,
        responses: outcome.results.iter().map(|result| op_response(result, &mut revisions)).collect(),
    }
}

struct Revisions {
    /// As the operations so far left it.
    now: u64,
    /// When anything is changed.
    after: u64,
}

fn changed(result: &OpResult) -> bool {
    match result {
        OpResult::Range(_) => false,
        OpResult::Put { .. } => true,
        OpResult::DeleteRange { deleted, .. } => *deleted > 0,
        OpResult::Txn { results, .. } => results.iter().any(changed),
    }
}

fn op_response(result: &OpResult, revisions: &mut Revisions) -> pb::ResponseOp {
    use pb::response_op::Response as R;
    if !matches!(result, OpResult::Txn { .. }) && changed(result) {
        revisions.now = revisions.after;
    }
    let header = Some(pb::ResponseHeader { revision: signed(revisions.now), ..Default::default() });
    let response = match result {
        OpResult::Range(response) => R::ResponseRange(range_response(response, header)),
        OpResult::Put { prev_kv } => R::ResponsePut(pb::PutResponse {
            header,
            prev_kv: prev_kv.as_ref().map(|record| key_value(record)),
        }),
        OpResult::DeleteRange { deleted, prev_kvs } => R::ResponseDeleteRange(pb::DeleteRangeResponse {
            header,
            deleted: signed(*deleted),
            prev_kvs: prev_kvs.iter().map(|record| key_value(record)).collect(),
        }),
        OpResult::Txn { succeeded, results } => R::ResponseTxn(pb::TxnResponse {
            header: Some(pb::ResponseHeader::default()),
            succeeded: *succeeded,
            responses: results.iter().map(|result| op_response(result, revisions)).collect(),
        }),
    };
    pb::ResponseOp { response: Some(response) }
}
