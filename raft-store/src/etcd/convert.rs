//! etcd's messages to ours and back. Requests are checked here as etcd checks them before it proposes.

use proto::etcd::{etcdserverpb as pb, mvccpb};
use state_machine::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, NestedTxn, Op, OpResult, PutRequest,
    RangeRequest, RangeResponse, Record, SortOrder, SortTarget, TxnCommand,
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
    Ok(RangeRequest {
        key: request.key,
        range_end: request.range_end,
        limit: unsigned(request.limit),
        revision: unsigned(request.revision),
        sort_order,
        sort_target,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: unsigned(request.min_mod_revision),
        max_mod_revision: unsigned(request.max_mod_revision),
        min_create_revision: unsigned(request.min_create_revision),
        max_create_revision: unsigned(request.max_create_revision),
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

/// A transaction of at most `ops_max` compares and as many operations in each branch, at every level.
pub(crate) fn txn(request: pb::TxnRequest, ops_max: usize) -> Result<TxnCommand, Status> {
    let NestedTxn { compares, success, failure } = nested_txn(request, ops_max)?;
    Ok(TxnCommand { fence: None, compares, success, failure })
}

fn nested_txn(request: pb::TxnRequest, ops_max: usize) -> Result<NestedTxn, Status> {
    let widest = request.compare.len().max(request.success.len()).max(request.failure.len());
    if widest > ops_max {
        return Err(status::too_many_ops());
    }
    let ops = |ops: Vec<pb::RequestOp>| {
        ops.into_iter()
            .filter_map(|op| op.request)
            .map(|op| self::op(op, ops_max))
            .collect::<Result<_, Status>>()
    };
    Ok(NestedTxn {
        compares: request.compare.into_iter().map(compare).collect::<Result<_, _>>()?,
        success: ops(request.success)?,
        failure: ops(request.failure)?,
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

fn compare(compare: pb::Compare) -> Result<Compare, Status> {
    if compare.key.is_empty() {
        return Err(status::empty_key());
    }
    use pb::compare::{CompareResult as Result_, CompareTarget as Target, TargetUnion as Operand};
    let result = match Result_::try_from(compare.result) {
        Ok(Result_::Equal) => CompareResult::Equal,
        Ok(Result_::Greater) => CompareResult::Greater,
        Ok(Result_::Less) => CompareResult::Less,
        Ok(Result_::NotEqual) => CompareResult::NotEqual,
        Err(_) => return Err(Status::invalid_argument("etcdserver: unknown comparison")),
    };
    // An operand of another kind than the target counts as absent, as in etcd.
    let target = match (Target::try_from(compare.target), compare.target_union) {
        (Ok(Target::Version), Some(Operand::Version(n))) => CompareTarget::Version(unsigned(n)),
        (Ok(Target::Version), _) => CompareTarget::Version(0),
        (Ok(Target::Create), Some(Operand::CreateRevision(n))) => CompareTarget::CreateRevision(unsigned(n)),
        (Ok(Target::Create), _) => CompareTarget::CreateRevision(0),
        (Ok(Target::Mod), Some(Operand::ModRevision(n))) => CompareTarget::ModRevision(unsigned(n)),
        (Ok(Target::Mod), _) => CompareTarget::ModRevision(0),
        (Ok(Target::Value), Some(Operand::Value(value))) => CompareTarget::Value(value),
        (Ok(Target::Value), _) => CompareTarget::Value(bytes::Bytes::new()),
        (Ok(Target::Lease), Some(Operand::Lease(id))) => CompareTarget::Lease(id),
        (Ok(Target::Lease), _) => CompareTarget::Lease(0),
        (Err(_), _) => return Err(Status::invalid_argument("etcdserver: unknown compare target")),
    };
    Ok(Compare { key: compare.key, range_end: compare.range_end, result, target })
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

pub(crate) fn op_result(result: &OpResult, revision: u64) -> pb::ResponseOp {
    use pb::response_op::Response as R;
    // Inside a transaction etcd fills in the revision only.
    let header = |revision| Some(pb::ResponseHeader { revision: signed(revision), ..Default::default() });
    let response = match result {
        OpResult::Range(response) => R::ResponseRange(range_response(response, header(response.revision))),
        OpResult::Put { prev_kv } => R::ResponsePut(pb::PutResponse {
            header: header(revision),
            prev_kv: prev_kv.as_ref().map(|record| key_value(record)),
        }),
        OpResult::DeleteRange { deleted, prev_kvs } => R::ResponseDeleteRange(pb::DeleteRangeResponse {
            header: header(revision),
            deleted: signed(*deleted),
            prev_kvs: prev_kvs.iter().map(|record| key_value(record)).collect(),
        }),
        OpResult::Txn { succeeded, results } => R::ResponseTxn(pb::TxnResponse {
            header: header(revision),
            succeeded: *succeeded,
            responses: results.iter().map(|result| op_result(result, revision)).collect(),
        }),
    };
    pb::ResponseOp { response: Some(response) }
}
