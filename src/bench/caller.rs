//! Unary gRPC calls at the least cost: what the load generator spends, the servers on the same machine lack.
//!
//! Speaks HTTP/2 itself by way of `h2`, without the layers of a general client: no task, channel or boxed
//! future per call. Works that stream, and all that is not measured, use the generated clients.

use anyhow::Context as _;
use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use prost::Message;
use raft_store::etcd::frame::{self, Pieces};
use tokio::net::TcpStream;
use tonic::Status;

use super::connection::{WINDOW_BYTES, origin};
use crate::gathered::Gathered;

/// Calls on one connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Caller {
    send: SendRequest<Bytes>,
    origin: Uri,
    headers: HeaderMap,
}

/// A method's address at one server.
#[derive(Clone)]
pub(crate) struct Target(Uri);

impl Caller {
    /// Connects to `host:port`. The connection is driven by the runtime that this is called in.
    pub(crate) async fn open(endpoint: &str) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(endpoint).await.with_context(|| format!("cannot connect to {endpoint}"))?;
        stream.set_nodelay(true)?;
        let (send, connection) = Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .handshake(Gathered(stream))
            .await
            .with_context(|| format!("{endpoint} does not speak HTTP/2"))?;
        // When it breaks, the calls on it say so.
        tokio::spawn(async move { drop(connection.await) });
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        Ok(Self { send, origin: origin(endpoint)?, headers })
    }

    /// The address of `/package.Service/Method`.
    pub(crate) fn target(&self, path: &'static str) -> anyhow::Result<Target> {
        let mut parts = self.origin.clone().into_parts();
        parts.path_and_query = Some(path.parse()?);
        Ok(Target(Uri::from_parts(parts)?))
    }

    /// One call, to its status.
    pub(crate) async fn call<Answer>(
        &mut self,
        target: &Target,
        message: &impl Message,
    ) -> Result<Answer, Status>
    where
        Answer: Message + Default,
    {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = target.0.clone();
        *request.headers_mut() = self.headers.clone();
        let mut send = self.send.clone().ready().await.map_err(|error| broken(&error))?;
        let (response, mut body) = send.send_request(request, false).map_err(|error| broken(&error))?;
        body.send_data(frame::framed(message)?, true).map_err(|error| broken(&error))?;
        let (head, mut body) = response.await.map_err(|error| broken(&error))?.into_parts();
        let message = read(&mut body).await.map_err(|error| broken(&error))?;
        let trailers = body.trailers().await.map_err(|error| broken(&error))?;
        // An error without a message comes as headers alone.
        let headers = trailers.as_ref().unwrap_or(&head.headers);
        if headers.get(Status::GRPC_STATUS).is_some_and(|code| code == "0") {
            return decoded(message);
        }
        match Status::from_header_map(headers) {
            Some(status) => Err(status),
            None => Err(Status::unknown(format!("an answer of HTTP status {} without gRPC's", head.status))),
        }
    }
}

/// The whole body.
async fn read(body: &mut RecvStream) -> Result<Bytes, h2::Error> {
    let mut pieces = Pieces::default();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        pieces.push(piece);
    }
    Ok(pieces.whole())
}

fn decoded<Answer: Message + Default>(body: Bytes) -> Result<Answer, Status> {
    let message =
        frame::unframed(body).map_err(|_| Status::internal("an answer that is not one plain message"))?;
    Answer::decode(message).map_err(|error| Status::internal(error.to_string()))
}

fn broken(error: &h2::Error) -> Status {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => Status::unavailable("the server refused another stream"),
        _ => Status::unavailable(error.to_string()),
    }
}
