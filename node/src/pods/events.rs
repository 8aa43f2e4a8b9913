//! Events about pods, as the kubelet words them.

use super::context::Context;
use super::record::PodRecord;
use crate::session::outbox::{EventKind, EventRecord, KUBELET};

/// Normal or Warning, reason, message.
pub(crate) struct Told<'a> {
    pub(crate) kind: EventKind,
    pub(crate) reason: &'a str,
    pub(crate) message: String,
}

impl<'a> Told<'a> {
    pub(crate) fn normal(reason: &'a str, message: impl Into<String>) -> Self {
        Self { kind: EventKind::Normal, reason, message: message.into() }
    }

    pub(crate) fn warning(reason: &'a str, message: impl Into<String>) -> Self {
        Self { kind: EventKind::Warning, reason, message: message.into() }
    }
}

/// Records an event about the pod, or about one of its containers.
pub(crate) fn tell(context: &Context, record: &PodRecord, container: Option<&str>, told: Told<'_>) {
    let field_path = container.map(|name| {
        let list = match (record.is_init(name), record.is_ephemeral(name)) {
            (true, _) => "initContainers",
            (_, true) => "ephemeralContainers",
            _ => "containers",
        };
        format!("spec.{list}{{{name}}}")
    });
    context.outbox.event(EventRecord {
        component: KUBELET,
        api_version: "v1",
        kind: "Pod",
        namespace: record.namespace().to_owned(),
        name: record.name().to_owned(),
        uid: record.uid().to_owned(),
        field_path: field_path.unwrap_or_default(),
        event_kind: told.kind,
        reason: told.reason.to_owned(),
        message: told.message,
    });
}
