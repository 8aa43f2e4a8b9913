//! One client of the closed loop: what it sends for each kind of work.

use std::sync::Arc;

use bytes::Bytes;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use tonic::Status;

use super::caller::{Caller, Target};
use super::work::{MIXED_READS_OF_TEN, RANGE_LIMIT, Work};

/// Largest answer taken; etcd's own clients have no smaller limit.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;
/// What every key that is read and overwritten begins with.
const PREFIX: &str = "bench/";
/// The end of that range: the prefix with its last byte raised.
const PREFIX_END: &str = "bench0";
/// What keys that are created begin with: another range, so that lists keep their length.
const CREATED_PREFIX: &str = "created/";
/// What the clients' own keys begin with.
const OWN_PREFIX: &str = "own/";
/// Seconds a lease of the lease work would live.
const LEASE_TTL_SECONDS: i64 = 60;

/// What all clients of one measurement share.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) work: Work,
    pub(crate) keys: usize,
    pub(crate) value: Bytes,
    /// Tells the keys that different measurements create apart.
    pub(crate) epoch: u64,
}

/// A connection, and the methods that clients call on it.
#[derive(Clone)]
pub(crate) struct Server {
    caller: Caller,
    put: Target,
    range: Target,
    txn: Target,
    grant: Target,
    revoke: Target,
}

impl Server {
    /// Connects to `host:port`.
    pub(crate) async fn open(endpoint: &str) -> anyhow::Result<Self> {
        let caller = Caller::open(endpoint).await?;
        Ok(Self {
            put: caller.target("/etcdserverpb.KV/Put")?,
            range: caller.target("/etcdserverpb.KV/Range")?,
            txn: caller.target("/etcdserverpb.KV/Txn")?,
            grant: caller.target("/etcdserverpb.Lease/LeaseGrant")?,
            revoke: caller.target("/etcdserverpb.Lease/LeaseRevoke")?,
            caller,
        })
    }

    async fn put(&mut self, request: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        self.caller.call(&self.put, &request).await
    }

    async fn range(&mut self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        self.caller.call(&self.range, &request).await
    }

    async fn txn(&mut self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        self.caller.call(&self.txn, &request).await
    }

    async fn grant(&mut self, request: pb::LeaseGrantRequest) -> Result<pb::LeaseGrantResponse, Status> {
        self.caller.call(&self.grant, &request).await
    }

    async fn revoke(&mut self, request: pb::LeaseRevokeRequest) -> Result<pb::LeaseRevokeResponse, Status> {
        self.caller.call(&self.revoke, &request).await
    }
}

/// One client.
pub(crate) struct Client {
    server: Server,
    plan: Arc<Plan>,
    index: usize,
    random: u64,
    created: u64,
    own_revision: i64,
}

impl Client {
    /// The client of that number on a connection.
    pub(crate) fn new(server: Server, plan: Arc<Plan>, index: usize) -> Self {
        let random = (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Self { server, plan, index, random, created: 0, own_revision: 0 }
    }

    /// One operation, to its answer.
    pub(crate) async fn once(&mut self) -> Result<(), Status> {
        match self.plan.work {
            Work::Put => self.put().await,
            Work::TxnCreate => self.create().await,
            Work::TxnCas => self.compare_and_swap().await,
            Work::Range => self.read(false).await,
            Work::RangeSerializable => self.read(true).await,
            Work::Range500 => self.list().await,
            Work::Lease => self.grant_and_revoke().await,
            Work::Mixed => {
                if self.next_random() % 10 < MIXED_READS_OF_TEN {
                    self.read(false).await
                } else {
                    self.put().await
                }
            }
            Work::WatchFanout | Work::Memory | Work::LeaderKill => {
                unreachable!("these works have loops of their own")
            }
        }
    }

    async fn put(&mut self) -> Result<(), Status> {
        let key = self.random_key();
        self.server.put(put_request(key, &self.plan.value)).await.map(drop)
    }

    async fn create(&mut self) -> Result<(), Status> {
        self.created += 1;
        let key = format!("{CREATED_PREFIX}{}/{}/{}", self.plan.epoch, self.index, self.created);
        let key = Bytes::from(key);
        let condition = TargetUnion::CreateRevision(0);
        let txn = guarded_put(key, &self.plan.value, CompareTarget::Create, condition);
        let answer = self.server.txn(txn).await?;
        if answer.succeeded { Ok(()) } else { Err(Status::internal("a new key existed already")) }
    }

    async fn compare_and_swap(&mut self) -> Result<(), Status> {
        let key = Bytes::from(format!("{OWN_PREFIX}{}/{}", self.plan.epoch, self.index));
        let condition = TargetUnion::ModRevision(self.own_revision);
        let txn = guarded_put(key, &self.plan.value, CompareTarget::Mod, condition);
        let answer = self.server.txn(txn).await?;
        if !answer.succeeded {
            return Err(Status::internal("nobody else writes this key, yet its revision was another one"));
        }
        self.own_revision = answer.header.unwrap_or_default().revision;
        Ok(())
    }

    async fn read(&mut self, serializable: bool) -> Result<(), Status> {
        let request =
            pb::RangeRequest { key: self.random_key(), serializable, ..pb::RangeRequest::default() };
        let answer = self.server.range(request).await?;
        if answer.kvs.len() == 1 { Ok(()) } else { Err(Status::internal("a key that was loaded is missing")) }
    }

    async fn list(&mut self) -> Result<(), Status> {
        let request = pb::RangeRequest {
            key: Bytes::from_static(PREFIX.as_bytes()),
            range_end: Bytes::from_static(PREFIX_END.as_bytes()),
            limit: RANGE_LIMIT,
            ..pb::RangeRequest::default()
        };
        let answer = self.server.range(request).await?;
        let expected = self.plan.keys.min(RANGE_LIMIT as usize);
        if answer.kvs.len() == expected { Ok(()) } else { Err(Status::internal("a list is incomplete")) }
    }

    async fn grant_and_revoke(&mut self) -> Result<(), Status> {
        let grant = pb::LeaseGrantRequest { ttl: LEASE_TTL_SECONDS, id: 0 };
        let id = self.server.grant(grant).await?.id;
        self.server.revoke(pb::LeaseRevokeRequest { id }).await.map(drop)
    }

    fn random_key(&mut self) -> Bytes {
        let keys = self.plan.keys.max(1) as u64;
        key((self.next_random() % keys) as usize)
    }

    /// xorshift64*: the load needs no better, and must cost nothing.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }
}

/// The key of that number, among those that are read and overwritten.
pub(crate) fn key(number: usize) -> Bytes {
    Bytes::from(format!("{PREFIX}{number:010}"))
}

/// A plain put.
pub(crate) fn put_request(key: Bytes, value: &Bytes) -> pb::PutRequest {
    pb::PutRequest { key, value: value.clone(), ..pb::PutRequest::default() }
}

/// A put in a transaction.
pub(crate) fn put_op(key: Bytes, value: &Bytes) -> pb::RequestOp {
    let put = pb::request_op::Request::RequestPut(put_request(key, value));
    pb::RequestOp { request: Some(put) }
}

fn guarded_put(key: Bytes, value: &Bytes, target: CompareTarget, operand: TargetUnion) -> pb::TxnRequest {
    let compare = pb::Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(operand),
    };
    pb::TxnRequest { compare: vec![compare], success: vec![put_op(key, value)], failure: vec![] }
}
