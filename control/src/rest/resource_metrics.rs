//! `metrics.k8s.io`: what nodes and pods use, as their agents told this replica.
//!
//! Which objects there are, and which of them are asked for, the registry says; what each uses comes from
//! [`crate::usage`]. What has not been measured yet is not there.

use std::collections::BTreeMap;
use std::time::Duration;

use api::metrics::{ContainerMetrics, NodeMetrics, PodMetrics};
use api::{Kind, Quantity, Status};
use http::{Response, StatusCode};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use super::negotiate::Shape;
use super::respond::{Body, partial};
use super::verbs::Call;
use super::{Rest, respond};
use crate::registry::Object;
use crate::usage::{Amounts, uid_at_node};

impl Rest {
    /// Answers a read of what one object uses.
    pub(super) async fn get_metrics(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let measured = self.registry.get(measured(call.kind()), call.namespace(), call.name()).await;
        let metrics = match measured {
            Ok(object) => self.metrics_of(call.kind(), &object),
            Err(status) if status.reason() == "NotFound" => None,
            Err(status) => return Err(status),
        };
        let metrics = metrics.ok_or_else(|| Status::not_found(call.kind(), call.name()))?;
        Ok(match call.style.form.shape {
            Shape::Whole => call.style.value(StatusCode::OK, &metrics),
            Shape::Table(version) => {
                let table = call.style.table(call.kind(), None, &[metrics], version, json!({}));
                call.style.value(StatusCode::OK, &table)
            }
            Shape::Metadata(version) => call.style.value(StatusCode::OK, &partial(&metrics, version)),
        })
    }

    /// Answers a list of what objects use.
    pub(super) async fn list_metrics(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let kind = call.kind();
        let options = call.query.list_options()?;
        let list = self.registry.list(measured(kind), call.resource.namespace.as_deref(), &options).await?;
        let meta = respond::list_meta(&list);
        let items: Vec<Value> = list.items.iter().filter_map(|one| self.metrics_of(kind, one)).collect();
        let list = |api_version: String, list_kind: String, items: Vec<Value>| json!({"kind": list_kind, "apiVersion": api_version, "metadata": meta, "items": items});
        let answer = match call.style.form.shape {
            Shape::Whole => list(kind.api_version(), kind.list_kind(), items),
            Shape::Table(version) => call.style.table(kind, None, &items, version, meta.clone()),
            Shape::Metadata(version) => {
                let items = items.iter().map(|one| partial(one, version)).collect();
                list(format!("meta.k8s.io/{version}"), "PartialObjectMetadataList".to_owned(), items)
            }
        };
        Ok(call.style.value(StatusCode::OK, &answer))
    }

    /// What an object uses; `None`: it is not measured, or not yet.
    fn metrics_of(&self, kind: &Kind, object: &Object) -> Option<Value> {
        let value = object.value();
        let metadata = ObjectMeta {
            name: Some(object.name().to_owned()),
            namespace: Some(object.namespace().to_owned()).filter(|namespace| !namespace.is_empty()),
            labels: serde_json::from_value(value["metadata"]["labels"].clone()).ok(),
            creation_timestamp: Some(Time(jiff::Timestamp::now())),
            ..ObjectMeta::default()
        };
        let metrics = if kind.namespaced {
            let node = value["spec"]["nodeName"].as_str()?;
            let used = self.usage.pod(node, uid_at_node(value))?;
            let containers = used
                .containers
                .iter()
                .map(|(name, amounts)| ContainerMetrics { name: name.clone(), usage: quantities(*amounts) });
            let (timestamp, window) = (Some(Time(used.at)), seconds(used.window));
            serde_json::to_value(PodMetrics { metadata, timestamp, window, containers: containers.collect() })
        } else {
            let used = self.usage.node(object.name())?;
            let (timestamp, window) = (Some(Time(used.at)), seconds(used.window));
            serde_json::to_value(NodeMetrics { metadata, timestamp, window, usage: quantities(used.amounts) })
        };
        let mut metrics = metrics.ok()?;
        metrics["kind"] = json!(kind.kind);
        metrics["apiVersion"] = json!(kind.api_version());
        Some(metrics)
    }
}

/// The kind whose objects a kind of metrics measures.
fn measured(kind: &Kind) -> &'static Kind {
    let name = if kind.namespaced { "Pod" } else { "Node" };
    api::kinds::by_kind("", "v1", name).expect("the table of kinds has the core kinds")
}

/// As the resource metrics API writes them: billionths of a core, and KiB.
fn quantities(amounts: Amounts) -> BTreeMap<String, Text> {
    let cpu = match amounts.cpu_nano {
        0 => "0".to_owned(),
        nano => format!("{nano}n"),
    };
    let memory = format!("{}Ki", amounts.memory_bytes / 1024);
    // One form of each amount, whatever it was written in.
    let text = |text: String| Text(Quantity::parse(&text).map_or(text, |quantity| quantity.to_string()));
    BTreeMap::from([("cpu".to_owned(), text(cpu)), ("memory".to_owned(), text(memory))])
}

/// A duration as Go writes it: `10.5s`, `1m0s`.
fn seconds(window: Duration) -> String {
    let millis = window.as_millis();
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let text = match rest % 1000 {
        0 => format!("{}s", rest / 1000),
        _ => format!("{}s", rest as f64 / 1000.0),
    };
    if minutes > 0 { format!("{minutes}m{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_windows_as_the_api_writes_them() {
        let used = quantities(Amounts { cpu_nano: 1_234_567, memory_bytes: 10 << 20 });
        assert_eq!((used["cpu"].0.as_str(), used["memory"].0.as_str()), ("1234567n", "10Mi"));
        assert_eq!(quantities(Amounts::default())["cpu"].0, "0");
        for (millis, text) in [(15_000, "15s"), (10_500, "10.5s"), (60_000, "1m0s")] {
            assert_eq!(seconds(Duration::from_millis(millis)), text);
        }
    }
}
