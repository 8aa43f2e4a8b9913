//! `etcdserverpb.KV`: read, write, delete, transactions, compaction.

use std::pin::Pin;

use futures_util::Stream;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::kv_server::{Kv, KvServer};
use state_machine::{Command, Op, OpResult, Outcome, RangeResponse, TxnCommand};
use tonic::{Request, Response, Status};

use super::access::Caller;
use super::{convert, limits, range_stream, status};
use crate::store::Store;

pub(crate) fn service(store: Store) -> KvServer<KvService> {
    let message_bytes_max = limits::message_bytes_max(&store);
    KvServer::new(KvService::new(store))
        .max_decoding_message_size(message_bytes_max)
        .max_encoding_message_size(usize::MAX)
}

pub(crate) struct KvService {
    store: Store,
}

impl KvService {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    async fn read(&self, caller: &Caller, request: pb::RangeRequest) -> Result<RangeResponse, Status> {
        let serializable = request.serializable;
        caller.read(&self.store, &convert::range(request)?, serializable).await
    }

    async fn write_one(&self, caller: &Caller, op: Op) -> Result<(pb::ResponseHeader, OpResult), Status> {
        let mut outcome = caller.txn(&self.store, TxnCommand::of(op)).await?;
        let result = outcome.results.pop().ok_or_else(status::unexpected_outcome)?;
        Ok((self.store.etcd_header(outcome.revision), result))
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let caller = Caller::of(&self.store, &request)?;
        let response = self.read(&caller, request.into_inner()).await?;
        let header = self.store.etcd_header(response.revision);
        Ok(Response::new(convert::range_response(&response, Some(header))))
    }

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let caller = Caller::of(&self.store, &request)?;
        let mut request = request.into_inner();
        // Left out piece by piece, which saves a second copy of every record.
        let keys_only = std::mem::take(&mut request.keys_only);
        let response = self.read(&caller, request).await?;
        let header = self.store.etcd_header(response.revision);
        Ok(Response::new(Box::pin(range_stream::pieces(response, header, keys_only))))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let caller = Caller::of(&self.store, &request)?;
        let op = Op::Put(convert::put(limits::fitting(&self.store, request.into_inner())?)?);
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
        let request = limits::fitting(&self.store, request.into_inner())?;
        let op = Op::DeleteRange(convert::delete_range(request)?);
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
        let request = limits::fitting(&self.store, request.into_inner())?;
        let serializable = convert::is_serializable(&request);
        let txn = convert::txn(request, self.store.config().txn_ops_max)?;
        let outcome = caller.txn_or_read(&self.store, txn, serializable).await?;
        let header = self.store.etcd_header(outcome.revision);
        Ok(Response::new(convert::txn_response(&outcome, header)))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let caller = Caller::of(&self.store, &request)?;
        let request = request.into_inner();
        // No revision is negative, and all before the first are compacted.
        let revision = u64::try_from(request.revision).unwrap_or(0);
        let outcome = caller.propose(&self.store, &Command::Compact { revision }).await?;
        let Outcome::Compacted { compact_revision, revision } = outcome else {
            return Err(status::unexpected_outcome());
        };
        if request.physical {
            let trimmed = self.store.wait_trimmed(compact_revision).await;
            trimmed.map_err(|error| status::of_error(&error))?;
        }
        let header = Some(self.store.etcd_header(revision));
        Ok(Response::new(pb::CompactionResponse { header }))
    }
}
