//! What `nodes/NAME/proxy` serves: a kubelet's read-only interface.
//!
//! Nodes have no port of their own to ask: their numbers come over their sessions. Whatever else is asked for is
//! not found.

use api::{FieldSelector, Status};
use exposition::MEDIA_TYPE;
use futures_util::StreamExt as _;
use http::{Method, Response, StatusCode};

use crate::registry::ListOptions;
use crate::rest::respond::{self, Body, Style};
use crate::rest::{Head, Measurements, Rest};

/// Most that a node may tell at once.
const TEXT_BYTES_MAX: usize = 16 * 1024 * 1024;

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
            "/metrics" => self.measurements(name, Measurements::Metrics).await,
            "/metrics/resource" => self.measurements(name, Measurements::Resources).await,
            "/stats/summary" => self.measurements(name, Measurements::Summary).await,
            _ => Ok(respond::not_found()),
        }
    }

    /// Asks a node for its numbers.
    async fn measurements(&self, node: &str, form: Measurements) -> Result<Response<Body>, Status> {
        let media_type = match form {
            Measurements::Metrics | Measurements::Resources => MEDIA_TYPE,
            Measurements::Summary => "application/json",
        };
        let mut told = self.reads.measurements(node, form).await?;
        let mut text = Vec::new();
        while let Some(bytes) = told.next().await {
            text.extend_from_slice(&bytes?);
            if text.len() > TEXT_BYTES_MAX {
                let why = format!("node {node:?} told more than {TEXT_BYTES_MAX} bytes of numbers");
                return Err(Status::internal(&why));
            }
        }
        let mut response = respond::text(StatusCode::OK, text);
        respond::set_header(&mut response, "content-type", media_type);
        Ok(response)
    }
}
