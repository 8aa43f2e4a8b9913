//! What `nodes/NAME/proxy` serves: the parts of a kubelet's read-only interface that a replica knows by itself.
//!
//! Nodes have no port of their own to ask; whatever else is asked for is not found.

use api::{FieldSelector, Status};
use http::{Method, Response, StatusCode};

use crate::registry::ListOptions;
use crate::rest::respond::{self, Body, Style};
use crate::rest::{Head, Rest};

impl Rest {
    pub(super) async fn node_proxy(
        &self,
        head: &Head,
        name: &str,
        inner: &str,
    ) -> Result<Response<Body>, Status> {
        let nodes = api::kinds::by_kind("", "v1", "Node").expect("the table of kinds has Node");
        // A kubelet's port may be named; there is none.
        let name = name.split(':').next().unwrap_or_default();
        let node = self.registry.get(nodes, "", name).await?;
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return Ok(respond::method_not_allowed("GET"));
        }
        match inner.trim_end_matches('/') {
            "/healthz" | "/healthz/ping" => {
                let conditions = node.value()["status"]["conditions"].as_array().into_iter().flatten();
                let is_ready =
                    conditions.clone().any(|each| each["type"] == "Ready" && each["status"] == "True");
                match is_ready {
                    true => Ok(respond::text(StatusCode::OK, "ok")),
                    false => Err(Status::service_unavailable(format!("node {name:?} is not ready"))),
                }
            }
            "/pods" | "/runningpods" => {
                let pods = api::kinds::by_kind("", "v1", "Pod").expect("the table of kinds has Pod");
                let fields = FieldSelector::parse(&format!("spec.nodeName={name}"))?;
                let mut list =
                    self.registry.list(pods, None, &ListOptions { fields, ..ListOptions::default() }).await?;
                if inner.starts_with("/running") {
                    list.items.retain(|pod| pod.value()["status"]["phase"] == "Running");
                }
                Ok(Style::JSON.list(list))
            }
            _ => Ok(respond::not_found()),
        }
    }
}
