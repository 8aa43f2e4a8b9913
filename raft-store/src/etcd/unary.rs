//! The calls that make up a store's load, by name and without a framework's layers in between.
//!
//! A gRPC framework routes, boxes and buffers every call as if it could stream for hours. What is called a
//! hundred thousand times a second is one message for one message: a server that holds both in hand gives the
//! one and gets the other here. The services behind are those of [`services`](super::services): same answers,
//! same errors.

use bytes::Bytes;
use prost::Message;
use proto::etcd::etcdserverpb::kv_server::Kv;
use proto::etcd::etcdserverpb::lease_server::Lease;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Response, Status};

use super::frame;
use super::kv::KvService;
use super::lease::LeaseService;
use super::limits;
use crate::store::Store;

/// A method that [`Unary`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method(Known);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Range,
    Put,
    DeleteRange,
    Txn,
    LeaseGrant,
    LeaseRevoke,
}

impl Method {
    /// The method of that path; `None`: one that the framework serves.
    pub fn of(path: &str) -> Option<Self> {
        Some(Self(match path {
            "/etcdserverpb.KV/Range" => Known::Range,
            "/etcdserverpb.KV/Put" => Known::Put,
            "/etcdserverpb.KV/DeleteRange" => Known::DeleteRange,
            "/etcdserverpb.KV/Txn" => Known::Txn,
            "/etcdserverpb.Lease/LeaseGrant" => Known::LeaseGrant,
            "/etcdserverpb.Lease/LeaseRevoke" => Known::LeaseRevoke,
            _ => return None,
        }))
    }
}

/// One member's answers to those methods.
pub struct Unary {
    kv: KvService,
    lease: LeaseService,
    message_bytes_max: usize,
}

impl Unary {
    /// The answers of that member.
    pub fn new(store: &Store) -> Self {
        Self {
            kv: KvService::new(store.clone()),
            lease: LeaseService::new(store.clone()),
            message_bytes_max: limits::message_bytes_max(store),
        }
    }

    /// The largest message that may be read.
    pub fn message_bytes_max(&self) -> usize {
        self.message_bytes_max
    }

    /// Answers one call: `message` without its prefix, the answer with it.
    ///
    /// # Errors
    /// The status that the client is to see.
    pub async fn answer(
        &self,
        method: Method,
        metadata: MetadataMap,
        extensions: Extensions,
        message: Bytes,
    ) -> Result<Bytes, Status> {
        let ask = Ask { metadata, extensions, message };
        match method.0 {
            Known::Range => framed(self.kv.range(ask.decoded()?).await),
            Known::Put => framed(self.kv.put(ask.decoded()?).await),
            Known::DeleteRange => framed(self.kv.delete_range(ask.decoded()?).await),
            Known::Txn => framed(self.kv.txn(ask.decoded()?).await),
            Known::LeaseGrant => framed(self.lease.lease_grant(ask.decoded()?).await),
            Known::LeaseRevoke => framed(self.lease.lease_revoke(ask.decoded()?).await),
        }
    }
}

/// A request that is not decoded yet.
struct Ask {
    metadata: MetadataMap,
    extensions: Extensions,
    message: Bytes,
}

impl Ask {
    fn decoded<M: Message + Default>(self) -> Result<Request<M>, Status> {
        let message = M::decode(self.message).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Request::from_parts(self.metadata, self.extensions, message))
    }
}

fn framed<M: Message>(answer: Result<Response<M>, Status>) -> Result<Bytes, Status> {
    frame::framed(answer?.get_ref())
}
