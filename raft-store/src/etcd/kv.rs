//! `etcdserverpb.KV`: read, write, delete, transactions, compaction.

use std::pin::Pin;

use futures_util::Stream;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::kv_server::{Kv, KvServer};
use state_machine::{Command, Op, OpResult, Outcome, TxnCommand, TxnOutcome};
use tonic::{Request, Response, Status};

use super::access::Caller;
use super::{convert, status};
use crate::store::Store;

/// Beyond the payload's own limit, what its frame and the other fields of a request may take.
const REQUEST_OVERHEAD_BYTES: usize = 512 * 1024;

pub(crate) fn service(store: Store) -> KvServer<KvService> {
    let request_bytes_max = store.config().request_bytes_max + REQUEST_OVERHEAD_BYTES;
    KvServer::new(KvService { store })
        .max_decoding_message_size(request_bytes_max)
        .max_encoding_message_size(usize::MAX)
}

pub(crate) struct KvService {
    store: Store,
}

impl KvService {
    async fn read(&self, caller: &Caller, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        let serializable = request.serializable;
        let request = convert::range(request)?;
        caller.may_range(&self.store, &request.key, &request.range_end)?;
        if !serializable {
            self.store.linearize().await.map_err(|error| status::of_error(&error))?;
        }
        let response = self.store.range(&request).map_err(|error| status::of_error(&error))?;
        Ok(convert::range_response(&response, Some(self.store.etcd_header(response.revision))))
    }

    async fn write(&self, caller: &Caller, txn: TxnCommand) -> Result<TxnOutcome, Status> {
        caller.may_txn(&self.store, &txn)?;
        match caller.propose(&self.store, &Command::Txn(txn)).await {
            Ok(Outcome::Txn(outcome)) => Ok(outcome),
            Ok(Outcome::Rejected(error)) => Err(status::of_apply_error(&error)),
            Ok(_) => Err(status::unexpected_outcome()),
            Err(error) => Err(status::of_error(&error)),
        }
    }

    async fn write_one(&self, caller: &Caller, op: Op) -> Result<(pb::ResponseHeader, OpResult), Status> {
        let mut outcome = self.write(caller, TxnCommand::of(op)).await?;
        let result = outcome.results.pop().ok_or_else(status::unexpected_outcome)?;
        Ok((self.store.etcd_header(outcome.revision), result))
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let caller = Caller::of(&self.store, &request)?;
        self.read(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let caller = Caller::of(&self.store, &request)?;
        let response = self.read(&caller, request.into_inner()).await?;
        let whole = pb::RangeStreamResponse { range_response: Some(response) };
        Ok(Response::new(Box::pin(futures_util::stream::iter([Ok(whole)]))))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let caller = Caller::of(&self.store, &request)?;
        let op = Op::Put(convert::put(request.into_inner())?);
        let (header, result) = self.write_one(&caller, op).await?;
        let OpResult::Put { prev_kv } = result else { return Err(status::unexpected_outcome()) };
        let prev_kv = prev_kv.map(|record| convert::key_value(&record));
        Ok(Response::new(pb::PutResponse { header: Some(header), prev_kv }))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let caller = Caller::of(&self.store, &request)?;
        let op = Op::DeleteRange(convert::delete_range(request.into_inner())?);
        let (header, result) = self.write_one(&caller, op).await?;
        let OpResult::DeleteRange { deleted, prev_kvs } = result else {
            return Err(status::unexpected_outcome());
        };
        Ok(Response::new(pb::DeleteRangeResponse {
            header: Some(header),
            deleted: convert::signed(deleted),
            prev_kvs: prev_kvs.iter().map(|record| convert::key_value(record)).collect(),
        }))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let caller = Caller::of(&self.store, &request)?;
        let txn = convert::txn(request.into_inner(), self.store.config().txn_ops_max)?;
        let outcome = self.write(&caller, txn).await?;
        let revision = outcome.revision;
        Ok(Response::new(pb::TxnResponse {
            header: Some(self.store.etcd_header(revision)),
            succeeded: outcome.succeeded,
            responses: outcome.results.iter().map(|result| convert::op_result(result, revision)).collect(),
        }))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let caller = Caller::of(&self.store, &request)?;
        let revision = u64::try_from(request.into_inner().revision).unwrap_or(0);
        match caller.propose(&self.store, &Command::Compact { revision }).await {
            Ok(Outcome::Compacted { revision, .. }) => {
                let header = Some(self.store.etcd_header(revision));
                Ok(Response::new(pb::CompactionResponse { header }))
            }
            Ok(Outcome::Rejected(error)) => Err(status::of_apply_error(&error)),
            Ok(_) => Err(status::unexpected_outcome()),
            Err(error) => Err(status::of_error(&error)),
        }
    }
}
