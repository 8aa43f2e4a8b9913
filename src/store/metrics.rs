//! What the server adds to the store's numbers: gRPC calls by method, and their bytes.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use exposition::Exposition;
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;

use super::body::Body;

/// Methods that are counted by name; what is called beyond that is counted as unknown.
const METHODS_MAX: usize = 128;
/// gRPC status codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
const CANCELED: usize = 1;
const UNKNOWN: usize = 2;
const BIDI: [&str; 4] = ["Watch", "LeaseKeepAlive", "Observe", "Snapshot"];

/// Counters of one method.
#[derive(Debug, Default)]
struct Method {
    started: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

/// Calls on the client port.
#[derive(Debug, Default)]
pub(crate) struct GrpcMetrics {
    methods: RwLock<BTreeMap<String, Arc<Method>>>,
    received: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

impl GrpcMetrics {
    /// A call to `/service/method` begins.
    pub(crate) fn begin(&self, path: &str) -> Call {
        let known = self.methods.read().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        let method = known.unwrap_or_else(|| self.add(path));
        method.started.fetch_add(1, Relaxed);
        let handled = Handled { method, code: CANCELED };
        Call { handled, received: Arc::clone(&self.received), sent: Arc::clone(&self.sent) }
    }

    fn add(&self, path: &str) -> Arc<Method> {
        let mut methods = self.methods.write().unwrap_or_else(PoisonError::into_inner);
        let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_'));
        let path = if plain && methods.len() < METHODS_MAX { path } else { "/unknown/unknown" };
        Arc::clone(methods.entry(path.to_owned()).or_default())
    }

    /// Adds the numbers to the text.
    pub(crate) fn expose(&self, out: &mut Exposition) {
        let methods = self.methods.read().unwrap_or_else(PoisonError::into_inner);
        out.head("grpc_server_started_total", "Total number of RPCs started on the server.", "counter");
        for (path, method) in methods.iter() {
            out.sample("grpc_server_started_total", &labels(path), method.started.load(Relaxed));
        }
        out.head(
            "grpc_server_handled_total",
            "Total number of RPCs completed on the server, regardless of success or failure.",
            "counter",
        );
        for (path, method) in methods.iter() {
            for (code, count) in CODES.iter().zip(&method.handled) {
                let count = count.load(Relaxed);
                if count > 0 {
                    out.sample(
                        "grpc_server_handled_total",
                        &format!("grpc_code=\"{code}\",{}", labels(path)),
                        count,
                    );
                }
            }
        }
        let bytes = |what| format!("The total number of bytes {what} grpc clients.");
        out.counter(
            "etcd_network_client_grpc_received_bytes_total",
            &bytes("received from"),
            self.received.load(Relaxed),
        );
        out.counter("etcd_network_client_grpc_sent_bytes_total", &bytes("sent to"), self.sent.load(Relaxed));
    }
}

fn labels(path: &str) -> String {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or(("unknown", path));
    let kind = match method {
        "Snapshot" | "RangeStream" | "Observe" => "server_stream",
        method if BIDI.contains(&method) => "bidi_stream",
        _ => "unary",
    };
    format!("grpc_method=\"{method}\",grpc_service=\"{service}\",grpc_type=\"{kind}\"")
}

/// A call that is under way.
pub(crate) struct Call {
    handled: Handled,
    received: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

impl Call {
    /// Counts the bytes of the request as they are read.
    pub(crate) fn count_request<B>(&self, body: B) -> Counted<B> {
        Counted { body, bytes: Arc::clone(&self.received), handled: None }
    }

    /// Counts a call that was one message for one message, answered or refused. If this is never called, the caller
    /// went away.
    pub(crate) fn answered(self, answer: &Result<Bytes, Status>) {
        let mut handled = self.handled;
        match answer {
            Ok(frame) => {
                handled.code = 0;
                self.sent.fetch_add(frame.len() as u64, Relaxed);
            }
            Err(status) => handled.code = (status.code() as usize).min(CODES.len() - 1),
        }
    }

    /// Counts the bytes of the response, and the status it ends with.
    pub(crate) fn count_response<B>(self, response: Response<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut handled = self.handled;
        // An error may come as headers alone.
        handled.read(response.headers());
        let bytes = self.sent;
        response.map(|body| Body::boxed(Counted { body, bytes, handled: Some(handled) }))
    }
}

/// Counts the status when the response ends, or is dropped before.
struct Handled {
    method: Arc<Method>,
    code: usize,
}

impl Handled {
    fn read(&mut self, headers: &HeaderMap) {
        let Some(status) = headers.get("grpc-status") else { return };
        let number = status.to_str().ok().and_then(|text| text.parse::<usize>().ok());
        self.code = number.filter(|code| *code < CODES.len()).unwrap_or(UNKNOWN);
    }
}

impl Drop for Handled {
    fn drop(&mut self) {
        self.method.handled[self.code].fetch_add(1, Relaxed);
    }
}

/// A body whose bytes are counted.
pub(crate) struct Counted<B> {
    body: B,
    bytes: Arc<AtomicU64>,
    handled: Option<Handled>,
}

impl<B> HttpBody for Counted<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            if let Some(data) = frame.data_ref() {
                self.bytes.fetch_add(data.remaining() as u64, Relaxed);
            } else if let (Some(trailers), Some(handled)) = (frame.trailers_ref(), self.handled.as_mut()) {
                handled.read(trailers);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    #[tokio::test]
    async fn calls_are_counted_by_method_and_status() {
        let metrics = GrpcMetrics::default();
        let call = metrics.begin("/etcdserverpb.KV/Put");
        let request = call.count_request(Full::new(Bytes::from_static(b"12345")));
        assert_eq!(request.collect().await.unwrap().to_bytes().len(), 5);
        let answer = Full::new(Bytes::from_static(b"abc")).with_trailers(async {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            Some(Ok(trailers))
        });
        let response = call.count_response(Response::new(Box::pin(answer)));
        response.into_body().collect().await.unwrap();
        drop(metrics.begin("/etcdserverpb.KV/Put").count_response(Response::new(Full::new(Bytes::new()))));

        let mut out = Exposition::default();
        metrics.expose(&mut out);
        let text = out.finish();
        let labels = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
        for line in [
            format!("grpc_server_started_total{{{labels}}} 2\n"),
            format!("grpc_server_handled_total{{grpc_code=\"OK\",{labels}}} 1\n"),
            format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{labels}}} 1\n"),
            "etcd_network_client_grpc_received_bytes_total 5\n".to_owned(),
            "etcd_network_client_grpc_sent_bytes_total 3\n".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn methods_nobody_knows_do_not_fill_the_memory() {
        let metrics = GrpcMetrics::default();
        for number in 0..10 * METHODS_MAX {
            metrics.begin(&format!("/a/b{number}"));
        }
        metrics.begin("/a/\"quoted\"");
        assert!(metrics.methods.read().unwrap().len() <= METHODS_MAX + 1);
    }
}
