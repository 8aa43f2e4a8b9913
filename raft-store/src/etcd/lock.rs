//! `v3lockpb.Lock`: a named lock, held by the oldest key under the name for as long as its lease lives.

use bytes::Bytes;
use proto::etcd::v3lockpb as pb;
use proto::etcd::v3lockpb::lock_server::{Lock, LockServer};
use state_machine::{DeleteRangeRequest, Op, TxnCommand};
use tonic::{Code, Request, Response, Status};

use super::access::Caller;
use super::concurrency::{self, Abandon, Place, Session, created_at, get, head_of, key_of, put, range_at};
use super::status;
use crate::store::Store;

pub(crate) fn service(store: Store) -> LockServer<LockService> {
    LockServer::new(LockService { store })
}

pub(crate) struct LockService {
    store: Store,
}

impl LockService {
    fn session<T>(&self, request: &Request<T>) -> Result<Session, Status> {
        Ok(Session { store: self.store.clone(), caller: Caller::of(&self.store, request)?.for_part() })
    }
}

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<pb::LockRequest>) -> Result<Response<pb::LockResponse>, Status> {
        let session = self.session(&request)?;
        let pb::LockRequest { name, lease } = request.into_inner();
        let lease = session.lease(lease).await?;
        let prefix = concurrency::prefix(&name);
        let key = key_of(&prefix, lease);
        let owner = Op::Range(head_of(&prefix));
        // A session that is in the queue already keeps its place.
        let outcome = session
            .txn(TxnCommand {
                compares: vec![created_at(&key, 0)],
                success: vec![put(&key, Bytes::new(), lease), owner.clone()],
                failure: vec![Op::Range(get(&key)), owner],
                ..TxnCommand::default()
            })
            .await?;
        let create_revision = match range_at(&outcome, 0).and_then(|found| found.kvs.first()) {
            Some(there) => there.create_revision,
            None => outcome.revision,
        };
        let head = range_at(&outcome, 1).and_then(|found| found.kvs.first());
        if head.is_none_or(|head| head.create_revision == create_revision) {
            let header = session.header(outcome.revision);
            return Ok(Response::new(pb::LockResponse { header, key }));
        }
        let place = Place { key, create_revision };
        let abandon = Abandon::guard(&session, &place);
        session.wait_for_head(&prefix, &place).await?;
        let held = session.range(&get(&place.key)).await?;
        abandon.disarm();
        if held.kvs.is_empty() {
            return Err(Status::new(Code::Unknown, "mutex: session is expired"));
        }
        Ok(Response::new(pb::LockResponse { header: session.header(held.revision), key: place.key }))
    }

    async fn unlock(
        &self,
        request: Request<pb::UnlockRequest>,
    ) -> Result<Response<pb::UnlockResponse>, Status> {
        let session = self.session(&request)?;
        let key = request.into_inner().key;
        if key.is_empty() {
            return Err(concurrency::passed_on(status::empty_key()));
        }
        let delete = Op::DeleteRange(DeleteRangeRequest { key, ..DeleteRangeRequest::default() });
        let outcome = session.txn(TxnCommand::of(delete)).await?;
        Ok(Response::new(pb::UnlockResponse { header: session.header(outcome.revision) }))
    }
}
