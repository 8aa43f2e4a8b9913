//! Unary gRPC calls between HTTP/2 and the store: a request's body is one message, an answer is one frame and a
//! status. What is not of that kind goes to the general services.

use std::pin::Pin;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body as HttpBody;
use raft_store::etcd::frame::{self, PREFIX_BYTES, Pieces};
use raft_store::etcd::{Method, Unary};
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::body::Body;

/// The type of every gRPC answer.
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// Answers one call. Never an error in HTTP's sense: gRPC has its own.
pub(crate) async fn answer<B>(unary: &Unary, method: Method, request: Request<B>) -> Result<Bytes, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let (head, body) = request.into_parts();
    let message = message(body, unary.message_bytes_max()).await?;
    let metadata = MetadataMap::from_headers(head.headers);
    unary.answer(method, metadata, head.extensions, message).await
}

/// The one message that a body holds.
async fn message<B>(mut body: B, bytes_max: usize) -> Result<Bytes, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut pieces = Pieces::default();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| Status::cancelled(format!("the request broke off: {error}")))?;
        let Ok(piece) = frame.into_data() else { continue };
        if pieces.bytes() + piece.len() > bytes_max + PREFIX_BYTES {
            return Err(Status::out_of_range(format!(
                "a message of more than {bytes_max} bytes is not read"
            )));
        }
        pieces.push(piece);
    }
    frame::unframed(pieces.whole())
}

/// The HTTP answer to a call.
pub(crate) fn respond(answer: Result<Bytes, Status>) -> Response<Body> {
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert(CONTENT_TYPE, GRPC);
    let body = match answer {
        Ok(data) => Body::Answer(Some(data)),
        // An error without an answer is headers alone.
        Err(status) => {
            if status.add_header(&mut headers).is_err() {
                headers.insert(Status::GRPC_STATUS, HeaderValue::from(tonic::Code::Internal as i32));
            }
            Body::Ended
        }
    };
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    response
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    async fn read(pieces: &[&'static [u8]], bytes_max: usize) -> Result<Bytes, Status> {
        let frames = pieces.iter().map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from_static(piece))));
        message(StreamBody::new(futures_util::stream::iter(frames)), bytes_max).await
    }

    #[tokio::test]
    async fn a_message_is_read_however_it_is_cut() {
        for pieces in [
            &[&b"\0\0\0\0\x03abc"[..]][..],
            &[b"\0\0\0\0\x03", b"abc"],
            &[b"\0", b"\0\0\0\x03a", b"", b"b", b"c"],
            &[b"", b"\0\0\0\0\x03abc"],
        ] {
            assert_eq!(read(pieces, 3).await.unwrap(), "abc", "{pieces:?}");
        }
        assert_eq!(read(&[b"\0\0\0\0\0"], 0).await.unwrap(), "");
    }

    #[tokio::test]
    async fn what_is_not_one_plain_message_is_refused() {
        for (pieces, code) in [
            (&[][..], tonic::Code::Internal),
            (&[&b"\0\0\0"[..]], tonic::Code::Internal),
            (&[b"\0\0\0\0\x04abc"], tonic::Code::Internal),
            (&[b"\0\0\0\0\x02abc"], tonic::Code::Internal),
            (&[b"\x01\0\0\0\x03abc"], tonic::Code::Unimplemented),
            (&[b"\0\0\0\0\x04", b"abcd"], tonic::Code::OutOfRange),
        ] {
            assert_eq!(read(pieces, 3).await.unwrap_err().code(), code, "{pieces:?}");
        }
    }
}
