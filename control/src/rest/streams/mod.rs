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

use super::respond::{self, Body};
use super::verbs::Call;
use super::{Rest, too_many};

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
        let upgrade = hyper::upgrade::on(&mut request);
        let pod = self.registry.get(call.kind(), call.namespace(), call.name()).await?;
        let permit = self.streams.clone().try_acquire_owned().map_err(|_| too_many())?;
        let guard = self.metrics.clone().stream();
        let streams = self.pod_streams.clone();
        let stop = self.stop.clone();
        if subresource == "portforward" {
            let target = request::target(&pod)?;
            let (answer, protocol) = asked.port_forward()?;
            tokio::spawn(async move {
                let _held = (permit, guard);
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
        let (answer, protocol) = asked.remote_command()?;
        let mut node = streams.open(wanted).await?;
        if let Err(failure) = node.started().await {
            return match failure.code {
                404 => Err(Status::not_found(call.kind(), call.name())),
                400 => Err(Status::bad_request(failure.message)),
                _ => Ok(refusal(&failure.message)),
            };
        }
        tokio::spawn(async move {
            let _held = (permit, guard);
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
