//! Watch responses as bytes: events are encoded once for all watchers of a range and only copied here.
//!
//! The generated server would build and encode a message of its own for every watcher. This codec takes
//! [`Frame`]s instead: a small head, and events that are bytes already. On the wire there is no difference.

use std::convert::Infallible;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use prost::Message;
use proto::etcd::{etcdserverpb as pb, mvccpb};
use state_machine::EventBatch;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Body, Service, StdError, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use super::watch::WatchStream;
use crate::store::Store;
use crate::watch::Encoded;

/// Largest message that a client sends: a request to create a watch holds two keys.
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One response.
pub(crate) struct Frame {
    /// Everything but events.
    pub(super) head: pb::WatchResponse,
    /// Encoded events, each with its tag.
    pub(super) events: Bytes,
}

/// Which events a watcher wants, and how; an index into a chunk's variants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Variant {
    pub(super) prev_kv: bool,
    pub(super) no_put: bool,
    pub(super) no_delete: bool,
}

impl Variant {
    pub(super) fn number(self) -> usize {
        usize::from(self.prev_kv) + 2 * usize::from(self.no_put) + 4 * usize::from(self.no_delete)
    }

    pub(super) fn encode(self, batches: &[EventBatch]) -> Encoded {
        let mut bytes = BytesMut::new();
        let mut ends = Vec::new();
        for event in batches.iter().flat_map(|batch| &batch.events) {
            if if event.is_delete() { self.no_delete } else { self.no_put } {
                continue;
            }
            let prev_kv = event.prev_kv.as_ref().filter(|_| self.prev_kv);
            let message = mvccpb::Event {
                r#type: i32::from(event.is_delete()),
                kv: Some(convert::key_value(&event.kv)),
                prev_kv: prev_kv.map(|record| convert::key_value(record)),
            };
            // As field 11 of a response.
            prost::encoding::message::encode(11, &message, &mut bytes);
            ends.push(bytes.len());
        }
        Encoded { bytes: bytes.freeze(), ends }
    }
}

/// `etcdserverpb.Watch` over [`Frame`]s.
#[derive(Clone)]
pub(crate) struct WatchServer {
    pub(super) store: Store,
}

impl NamedService for WatchServer {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl<B> Service<http::Request<B>> for WatchServer
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = WatchMethod { store: self.store.clone() };
        Box::pin(async move {
            if request.uri().path() != "/etcdserverpb.Watch/Watch" {
                return Ok(Status::unimplemented("").into_http());
            }
            let mut grpc = Grpc::new(WatchCodec)
                .apply_max_message_size_config(Some(REQUEST_BYTES_MAX), Some(usize::MAX));
            Ok(grpc.streaming(method, request).await)
        })
    }
}

struct WatchMethod {
    store: Store,
}

impl StreamingService<pb::WatchRequest> for WatchMethod {
    type Response = Frame;
    type ResponseStream = WatchStream;
    type Future = std::future::Ready<Result<Response<WatchStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<pb::WatchRequest>>) -> Self::Future {
        std::future::ready(WatchStream::begin(self.store.clone(), request).map(Response::new))
    }
}

#[derive(Clone, Copy)]
struct WatchCodec;

impl Codec for WatchCodec {
    type Encode = Frame;
    type Decode = pb::WatchRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for WatchCodec {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        frame.head.encode(buffer).map_err(|error| Status::internal(error.to_string()))?;
        buffer.put_slice(&frame.events);
        Ok(())
    }
}

impl Decoder for WatchCodec {
    type Item = pb::WatchRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<pb::WatchRequest>, Status> {
        let request = pb::WatchRequest::decode(buffer);
        request.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
