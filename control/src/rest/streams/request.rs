//! What a request for an interactive stream asks for, and its refusals in the words of the Kubernetes API
//! server.

use api::Status;
use serde_json::Value;

use super::{StreamEnds, StreamRequest, StreamTarget};
use crate::backends::target;
use crate::registry::Object;
use crate::rest::logs::container_names;
use crate::rest::query::Query;

/// An `exec` or an `attach`.
pub(super) fn process(pod: &Object, subresource: &str, query: &Query) -> Result<StreamRequest, Status> {
    let ends = StreamEnds {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        tty: query.flag("tty"),
    };
    if !ends.stdin && !ends.stdout && !ends.stderr {
        return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let container = container(pod.name(), &pod.value()["spec"], query.get("container"))?;
    let target = StreamTarget { container, ..target(pod)? };
    if subresource == "attach" {
        return Ok(StreamRequest::Attach { target, ends });
    }
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    if command.is_empty() {
        return Err(Status::bad_request("you must specify at least one command for the container"));
    }
    Ok(StreamRequest::Exec { target, command, ends })
}

/// Which ends a request wants.
pub(super) fn ends(request: &StreamRequest) -> StreamEnds {
    match request {
        StreamRequest::Exec { ends, .. } | StreamRequest::Attach { ends, .. } => *ends,
        StreamRequest::PortForward { .. } => StreamEnds::default(),
    }
}

/// The container that is asked for, or the first of the manifest.
fn container(pod: &str, spec: &Value, asked: Option<&str>) -> Result<String, Status> {
    let all = container_names(spec);
    match asked {
        Some(asked) if all.iter().flatten().any(|name| *name == asked) => Ok(asked.to_owned()),
        Some(asked) => Err(Status::bad_request(format!("container {asked} is not valid for pod {pod}"))),
        None => {
            let first = all[0].first();
            first.map(|name| (*name).to_owned()).ok_or_else(|| {
                Status::bad_request(format!("a container name must be specified for pod {pod}"))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_container_is_meant_unless_another_is_named() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]});
        assert_eq!(container("p", &spec, None).unwrap(), "a");
        assert_eq!(container("p", &spec, Some("b")).unwrap(), "b");
        assert_eq!(container("p", &spec, Some("i")).unwrap(), "i");
        let error = container("p", &spec, Some("x")).unwrap_err();
        assert_eq!(error.message(), "container x is not valid for pod p");
    }
}
