//! Interactive streams of pods: `exec`, `attach`, `portforward`, over WebSocket or SPDY.
//!
//! ```text
//! client ══ upgraded HTTP/1.1 ══► this replica ══ gRPC, opened by the node ══► node ─► container
//! ```
//!
//! Owns the request and its refusals; the package `streams` carries what follows between the upgraded connection
//! and the node. Promises: what can be refused is refused before the upgrade, in the words that kubectl shows.

mod request;

use api::Status;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
pub use streams::{
    ClientFrame, NodeFrame, NodeStream, PodStreams, StreamEnds, StreamFailure, StreamFuture, StreamRequest,
    StreamTarget,
};
use streams::{port_forward, remote_command, upgrade};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use super::metrics::StreamGuard;
use super::respond::{self, Body};
use super::verbs::Call;
use super::{Rest, too_many};
use crate::backends;

/// Takes a process's stream instead of an upgraded connection; put into a request's extensions.
#[derive(Debug, Clone)]
pub struct Handover(mpsc::Sender<OpenStream>);

/// A process's stream that was opened for somebody in this replica.
pub struct OpenStream {
    /// The process has started.
    pub node: NodeStream,
    /// Cancelled when the replica begins to stop.
    pub stop: CancellationToken,
    /// Counts the stream until it is dropped.
    _held: Held,
}

/// What a stream takes of the bounds and the metrics of streams.
type Held = (OwnedSemaphorePermit, StreamGuard);

impl std::fmt::Debug for OpenStream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("OpenStream").finish_non_exhaustive()
    }
}

impl Handover {
    /// A handover, and where the stream comes out.
    pub fn new() -> (Self, mpsc::Receiver<OpenStream>) {
        let (sender, receiver) = mpsc::channel(1);
        (Self(sender), receiver)
    }
}

impl Rest {
    /// Answers a request for an interactive stream: refuses it, or upgrades the connection and goes on in a
    /// task of its own.
    pub(super) async fn connect<B>(
        &self,
        call: &Call<'_>,
        subresource: &str,
        mut request: Request<B>,
    ) -> Result<Response<Body>, Status> {
        let asked = upgrade::Asked::of(request.headers());
        let handover = request.extensions_mut().remove::<Handover>();
        let upgrade = hyper::upgrade::on(&mut request);
        let pod = self.registry.get(call.kind(), call.namespace(), call.name()).await?;
        let permit = self.streams.clone().try_acquire_owned().map_err(|_| too_many())?;
        let held = (permit, self.metrics.clone().stream());
        let streams = self.pod_streams.clone();
        let stop = self.stop.clone();
        if subresource == "portforward" {
            let target = backends::target(&pod)?;
            let (answer, protocol) = asked.port_forward()?;
            tokio::spawn(async move {
                let _held = held;
                let session = port_forward::Session { streams, target };
                tokio::select! {
                    () = port_forward::serve(upgrade, protocol, session) => {}
                    () = stop.cancelled() => {}
                }
            });
            return Ok(agreed(answer));
        }
        let wanted = request::process(&pod, subresource, call.query)?;
        let ends = request::ends(&wanted);
        let agreement = if handover.is_some() { None } else { Some(asked.remote_command()?) };
        let mut node = streams.open(wanted).await?;
        if let Err(failure) = node.started().await {
            return match failure.code {
                404 => Err(Status::not_found(call.kind(), call.name())),
                400 => Err(Status::bad_request(failure.message)),
                _ => Ok(refusal(&failure.message)),
            };
        }
        let Some((answer, protocol)) = agreement else {
            let taken = OpenStream { node, stop, _held: held };
            // Nobody waits for it any more: then it ends here.
            let _ = handover.map(|handover| handover.0.try_send(taken));
            return Ok(respond::bytes(StatusCode::OK, "", Bytes::new()));
        };
        tokio::spawn(async move {
            let _held = held;
            tokio::select! {
                () = remote_command::serve(upgrade, protocol, ends, node) => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(agreed(answer))
    }
}

fn agreed(answer: Response<()>) -> Response<Body> {
    answer.map(|()| respond::bytes(StatusCode::OK, "", Bytes::new()).into_body())
}

/// A refusal as a node would word it: kubectl shows it behind "unable to upgrade connection: ".
fn refusal(message: &str) -> Response<Body> {
    respond::bytes(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{message}\n").into())
}
