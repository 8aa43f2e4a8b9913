//! What is sent back: a unary answer as it is, anything else boxed.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use tonic::Status;

/// The status of a call that went well.
const OK: HeaderValue = HeaderValue::from_static("0");

/// Why a body broke off.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// A response's body.
pub(crate) enum Body {
    /// One frame, then the status of a call that went well; `None` once the frame is sent.
    Answer(Option<Bytes>),
    /// Any other body.
    Boxed(UnsyncBoxBody<Bytes, Error>),
    /// Nothing more.
    Ended,
}

impl Body {
    /// Of any other body.
    pub(crate) fn boxed<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Error>,
    {
        Self::Boxed(body.map_err(Into::into).boxed_unsync())
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            Self::Answer(data) => {
                if let Some(data) = data.take() {
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                *self = Self::Ended;
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(Status::GRPC_STATUS, OK);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Self::Boxed(body) => Pin::new(body).poll_frame(context),
            Self::Ended => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Answer(_) => false,
            Self::Boxed(body) => body.is_end_stream(),
            Self::Ended => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Boxed(body) => body.size_hint(),
            Self::Answer(_) => SizeHint::default(),
            Self::Ended => SizeHint::with_exact(0),
        }
    }
}
