//! Container logs: which container is meant, what is asked of its node, and the bytes that come back.
//!
//! The node is asked through [`NodeReads`](super::NodeReads); who implements it (node sessions) is none of this module's business.

use std::time::Duration;

use api::{Cause, Status};
use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::node_reads::NodeBytes;
use super::query::Query;
use super::respond::{self, Body, BoxError};
use crate::registry::Object;

/// How long the answer waits for the node's first word.
const FIRST_CHUNK_WAIT: Duration = Duration::from_secs(2);

/// Which log is read, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// The pod's node.
    pub node: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// Its uid.
    pub pod_uid: String,
    /// The container.
    pub container: String,
    /// Go on as the container writes.
    pub follow: bool,
    /// The container's previous run.
    pub previous: bool,
    /// Begin each line with its time.
    pub timestamps: bool,
    /// Only so many lines from the end.
    pub tail_lines: Option<i64>,
    /// Stop after so many bytes.
    pub limit_bytes: Option<i64>,
    /// Only lines from then on.
    pub since: Option<Timestamp>,
}

/// The log request that a query makes of a pod. `None`: the pod is on no node yet, so there is no log.
pub(super) fn request(pod: &Object, query: &Query) -> Result<Option<LogRequest>, Status> {
    let value = pod.value();
    let spec = &value["spec"];
    let since = since(pod, query)?;
    let container = container(pod.name(), spec, query.get("container"))?;
    let node = spec["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Ok(None);
    }
    Ok(Some(LogRequest {
        node: node.to_owned(),
        namespace: pod.namespace().to_owned(),
        pod: pod.name().to_owned(),
        pod_uid: api::object::uid(value).to_owned(),
        container,
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail_lines: at_least(pod, query, "tailLines", 0)?,
        limit_bytes: at_least(pod, query, "limitBytes", 1)?,
        since,
    }))
}

fn refuse(pod: &Object, cause: Cause) -> Status {
    let cause = format!("{}: {}", cause.field, cause.message);
    Status::invalid_request(format!("PodLogOptions {:?} is invalid: {cause}", pod.name()))
}

fn at_least(pod: &Object, query: &Query, key: &str, least: i64) -> Result<Option<i64>, Status> {
    let number = query.number(key)?;
    match number.filter(|number| *number < least) {
        None => Ok(number),
        Some(number) => {
            let why = match least {
                0 => "must be greater than or equal to 0",
                _ => "must be greater than 0",
            };
            Err(refuse(pod, Cause::invalid(key, number, why)))
        }
    }
}

fn since(pod: &Object, query: &Query) -> Result<Option<Timestamp>, Status> {
    let seconds = at_least(pod, query, "sinceSeconds", 1)?;
    let time = query.get("sinceTime");
    match (seconds, time) {
        (Some(_), Some(_)) => Err(refuse(
            pod,
            Cause::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"),
        )),
        (Some(seconds), None) => {
            let span = SignedDuration::from_secs(seconds);
            Ok(Some(Timestamp::now().checked_sub(span).unwrap_or(Timestamp::UNIX_EPOCH)))
        }
        (None, Some(text)) => match text.parse() {
            Ok(time) => Ok(Some(time)),
            Err(_) => Err(Status::bad_request(format!("parsing time {text:?}: it is no RFC 3339 time"))),
        },
        (None, None) => Ok(None),
    }
}

/// Names of a pod's containers: main, init, ephemeral.
pub(super) fn container_names(spec: &Value) -> [Vec<&str>; 3] {
    ["containers", "initContainers", "ephemeralContainers"].map(|list| {
        let containers = spec[list].as_array().into_iter().flatten();
        containers.filter_map(|container| container["name"].as_str()).collect()
    })
}

/// The container that is meant, in the words of the Kubernetes API server when there is doubt.
fn container(pod: &str, spec: &Value, asked: Option<&str>) -> Result<String, Status> {
    let [main, init, ephemeral] = container_names(spec);
    let Some(asked) = asked else {
        if let [only] = main.as_slice() {
            return Ok((*only).to_owned());
        }
        let mut why =
            format!("a container name must be specified for pod {pod}, choose one of: [{}]", main.join(" "));
        if !init.is_empty() {
            why.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
        }
        if !ephemeral.is_empty() {
            why.push_str(&format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" ")));
        }
        return Err(Status::bad_request(why));
    };
    match [main, init, ephemeral].concat().contains(&asked) {
        true => Ok(asked.to_owned()),
        false => Err(Status::bad_request(format!("container {asked} is not valid for pod {pod}"))),
    }
}

/// The answer that streams a log. What the node says at once decides: a refusal becomes the answer; after
/// that the stream can only break off.
pub(super) async fn respond(
    mut stream: NodeBytes,
    stop: CancellationToken,
) -> Result<Response<Body>, Status> {
    let first = match tokio::time::timeout(FIRST_CHUNK_WAIT, stream.next()).await {
        Ok(Some(Err(refusal))) => return Err(refusal),
        Ok(Some(Ok(chunk))) => Some(Ok(chunk)),
        // A silent log, or one that is followed and has nothing yet.
        Ok(None) | Err(_) => None,
    };
    let chunks = futures_util::stream::iter(first).chain(stream);
    let frames = chunks.map(|chunk| chunk.map(Frame::data).map_err(BoxError::from));
    let body = StreamBody::new(frames.take_until(stop.cancelled_owned()));
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// The log of a pod that has none yet.
pub(super) fn empty() -> Response<Body> {
    respond::bytes(StatusCode::OK, "text/plain", Bytes::new())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_container_is_found_or_asked_for() {
        let one = json!({"containers": [{"name": "a"}]});
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]});
        assert_eq!(container("p", &one, None).unwrap(), "a");
        assert_eq!(container("p", &two, Some("i")).unwrap(), "i");
        assert_eq!(
            container("p", &two, None).unwrap_err().message(),
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(
            container("p", &one, Some("x")).unwrap_err().message(),
            "container x is not valid for pod p"
        );
    }
}
