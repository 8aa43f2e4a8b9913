//! The verbs on resources: each is one call of the registry.

use std::sync::Arc;

use api::{Kind, Status, object};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::body::{self, BODY_BYTES_MAX};
use super::path::Resource;
use super::query::{Query, propagation};
use super::respond::{self, Body, Style};
use super::review::user_info;
use super::{Rest, apply, logs, watch};
use crate::auth::{self, Identity};
use crate::registry::{
    Binding, DeleteOptions, Deleted, Object, Part, Patch, Propagation, Target, WriteOptions, Written,
    status_from_store,
};

/// Operations in one JSON patch; Kubernetes' own limit.
const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;
/// The forms of patches served.
const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    apply::APPLY,
];

/// What a request does to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    /// The word that authorization and metrics use.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    /// The verb of a method on a path. `None`: the path does not take it.
    pub(super) fn of(method: &Method, resource: &Resource, query: &Query) -> Option<Self> {
        let single = resource.name.is_some();
        let verb = match (method.as_str(), single) {
            ("GET" | "HEAD", _) if query.flag("watch") && resource.subresource.is_none() => Self::Watch,
            ("GET" | "HEAD", true) => Self::Get,
            ("GET" | "HEAD", false) => Self::List,
            ("POST", false) => Self::Create,
            ("POST", true) if resource.subresource.is_some() => Self::Create,
            ("PUT", true) => Self::Update,
            ("PATCH", true) => Self::Patch,
            ("DELETE", true) => Self::Delete,
            ("DELETE", false) => Self::DeleteCollection,
            _ => return None,
        };
        let outside = resource.kind.namespaced && resource.namespace.is_none();
        if outside && !matches!(verb, Self::List | Self::Watch) {
            return None;
        }
        let served = match &resource.subresource {
            Some(name) => resource.kind.subresource(name)?.verbs.contains(&verb.as_str()),
            None => resource.kind.has_verb(verb.as_str()),
        };
        served.then_some(verb)
    }
}

/// A request for a resource, taken apart.
pub(super) struct Call<'a> {
    pub(super) resource: &'a Resource,
    pub(super) verb: Verb,
    pub(super) query: &'a Query,
    pub(super) style: Style,
    pub(super) identity: &'a Identity,
    pub(super) user_agent: &'a str,
}

impl<'a> Call<'a> {
    pub(super) fn kind(&self) -> &'static Kind {
        self.resource.kind
    }

    pub(super) fn namespace(&self) -> &'a str {
        self.resource.namespace.as_deref().unwrap_or_default()
    }

    pub(super) fn name(&self) -> &'a str {
        self.resource.name.as_deref().unwrap_or_default()
    }

    pub(super) fn target(&self) -> Target<'a> {
        let part = match self.resource.subresource.as_deref() {
            Some("status") => Part::Status,
            Some("finalize") => Part::Finalize,
            Some("approval") => Part::Approval,
            Some("ephemeralcontainers") => Part::EphemeralContainers,
            _ => Part::Main,
        };
        Target { part, ..Target::new(self.kind(), self.namespace(), self.name()) }
    }
}

impl Rest {
    /// Performs a request for a resource.
    pub(super) async fn perform<B>(
        &self,
        call: &Call<'_>,
        request: Request<B>,
    ) -> Result<Response<Body>, Status>
    where
        B: hyper::body::Body<Data = Bytes>,
        B::Error: Into<respond::BoxError>,
    {
        if let Some(subresource) = call.resource.subresource.as_deref()
            && super::is_interactive(subresource)
        {
            return self.connect(call, subresource, request).await;
        }
        let headers = request.headers().clone();
        match (call.verb, call.resource.subresource.as_deref()) {
            (Verb::Get, Some("log")) => self.log(call).await,
            (Verb::Get, Some("scale")) => self.scale(call).await,
            (Verb::Get, None) if call.kind().virtual_only => self.get_metrics(call).await,
            (Verb::List, None) if call.kind().virtual_only => self.list_metrics(call).await,
            (Verb::Get, _) => {
                let object = self.get(call).await?;
                Ok(call.style.object(StatusCode::OK, &object))
            }
            (Verb::List, _) => {
                let options = call.query.list_options()?;
                let namespace = call.resource.namespace.as_deref();
                Ok(call.style.list(self.registry.list(call.kind(), namespace, &options).await?))
            }
            (Verb::Watch, _) => self.watch(call).await,
            (Verb::Create, Some("binding")) => {
                self.bind(call, call.name(), &headers, &body::read(request).await?).await
            }
            (Verb::Create, Some("token")) => self.token(call, &headers, &body::read(request).await?).await,
            (Verb::Create, Some("eviction")) => self.evict(call, &headers, &body::read(request).await?).await,
            (Verb::Create, _) if call.kind().kind == "Binding" => {
                self.bind(call, "", &headers, &body::read(request).await?).await
            }
            (Verb::Create, None) if call.kind().virtual_only => {
                self.review(call, &headers, &body::read(request).await?).await
            }
            (Verb::Create, _) => self.create(call, &headers, &body::read(request).await?).await,
            (Verb::Update, Some("scale")) => {
                self.put_scale(call, &headers, &body::read(request).await?).await
            }
            (Verb::Update, _) => self.update(call, &headers, &body::read(request).await?).await,
            (Verb::Patch, Some("scale")) => {
                self.patch_scale(call, &headers, &body::read(request).await?).await
            }
            (Verb::Patch, _) if body::media_type(&headers) == apply::APPLY => {
                self.apply(call, &headers, &body::read(request).await?).await
            }
            (Verb::Patch, _) => self.patch(call, &headers, &body::read(request).await?).await,
            (Verb::Delete, _) => self.delete(call, &headers, &body::read(request).await?).await,
            (Verb::DeleteCollection, _) => {
                let mut options = delete_options(call.query, &headers, &body::read(request).await?)?;
                options.asker = Some(Arc::new(user_info(call.identity)));
                let list = call.query.list_options()?;
                let namespace = call.resource.namespace.as_deref();
                let deleted =
                    self.registry.delete_collection(call.kind(), namespace, &list, &options).await?;
                Ok(call.style.list(deleted))
            }
        }
    }

    async fn get(&self, call: &Call<'_>) -> Result<std::sync::Arc<Object>, Status> {
        // Resource version "0" means: whatever this replica has will do.
        if call.query.get("resourceVersion") == Some("0")
            && let Some(object) = self.registry.get_local(call.kind(), call.namespace(), call.name()).await?
        {
            return Ok(object);
        }
        self.registry.get(call.kind(), call.namespace(), call.name()).await
    }

    async fn watch(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let mut options = call.query.watch_options()?;
        if let Some(name) = &call.resource.name {
            options.fields = api::FieldSelector::name(name);
        }
        let timeout = call.query.watch_timeout()?;
        let namespace = call.resource.namespace.as_deref();
        let watch = self.registry.watch(call.kind(), namespace, &options).await?;
        Ok(watch::respond(watch, call.style, options.bookmarks, timeout, self.stop.clone()))
    }

    /// How a write is made, and what its writer must be allowed to beyond the verb.
    pub(super) async fn write_options(
        &self,
        call: &Call<'_>,
        duplicates: Vec<String>,
    ) -> Result<WriteOptions, Status> {
        let guard = auth::write_guard(&self.access, call.identity, call.kind()).await?;
        let asker = Some(Arc::new(user_info(call.identity)));
        Ok(WriteOptions { guard, asker, ..call.query.write_options(duplicates, call.user_agent)? })
    }

    async fn create(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let document = body::object(&body::media_type(headers), body)?;
        let options = self.write_options(call, document.duplicates).await?;
        let written = self.registry.create(call.kind(), call.namespace(), document.value, &options).await?;
        Ok(answer_write(call, StatusCode::CREATED, &written))
    }

    async fn update(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let document = body::object(&body::media_type(headers), body)?;
        let options = self.write_options(call, document.duplicates).await?;
        let written = self.registry.update(call.target(), document.value, &options).await?;
        Ok(answer_write(call, StatusCode::OK, &written))
    }

    async fn patch(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let (patch, duplicates) = read_patch(headers, body)?;
        // Only built-in kinds say how their lists merge.
        if call.kind().is_custom && matches!(patch, Patch::Strategic(_)) {
            return Err(Status::unsupported_media_type(&PATCH_TYPES[..2]));
        }
        if call.query.has("force") {
            return Err(Status::invalid_request(
                "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
            ));
        }
        let options = self.write_options(call, duplicates).await?;
        let written = self.registry.patch(call.target(), &patch, &options).await?;
        Ok(answer_write(call, StatusCode::OK, &written))
    }

    async fn delete(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let own = self.restrict_node(call).await?;
        let mut options = delete_options(call.query, headers, body)?;
        options.uid = options.uid.or(own);
        options.asker = Some(Arc::new(user_info(call.identity)));
        let deleted = self.registry.delete(call.target(), &options).await?;
        Ok(answer_delete(call, &deleted))
    }

    async fn evict(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let document = body::object(&body::media_type(headers), body)?;
        let own = object::name(&document.value);
        if !own.is_empty() && own != call.name() {
            return Err(Status::bad_request(format!(
                "name in URL does not match name in Eviction object: {own} != {}",
                call.name()
            )));
        }
        let own = self.restrict_node(call).await?;
        let mut options = call.query.delete_options()?;
        read_delete_options(&document.value["deleteOptions"], &mut options)?;
        options.uid = options.uid.or(own);
        self.registry.evict(call.namespace(), call.name(), &options).await?;
        Ok(call.style.value(StatusCode::CREATED, &success()))
    }

    async fn bind(
        &self,
        call: &Call<'_>,
        name: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let document = body::object(&body::media_type(headers), body)?;
        let value = document.value;
        let name = if name.is_empty() { object::name(&value).to_owned() } else { name.to_owned() };
        let pods = api::kinds::by_kind("", "v1", "Pod").expect("the table of kinds has Pod");
        let node = value["target"]["name"].as_str().unwrap_or_default();
        let target_kind = value["target"]["kind"].as_str().unwrap_or_default();
        if node.is_empty() || !matches!(target_kind, "" | "Node") {
            let kinds = api::kinds::by_kind("", "v1", "Binding").expect("the table of kinds has Binding");
            let cause = match node {
                "" => api::Cause::required("target.name", ""),
                _ => api::Cause::not_supported("target.kind", target_kind, &["Node", "<empty>"]),
            };
            return Err(Status::invalid(kinds, &name, vec![cause]));
        }
        let pod = self.registry.get(pods, call.namespace(), &name).await?;
        let asked = object::uid(&value);
        let binding = Binding {
            namespace: call.namespace().to_owned(),
            name: name.clone(),
            uid: if asked.is_empty() { object::uid(pod.value()).to_owned() } else { asked.to_owned() },
            resource_version: None,
            node: node.to_owned(),
        };
        if !call.query.dry_run()? {
            let results = self.registry.bind_all(&[binding], None).await.map_err(status_from_store)?;
            for result in results {
                result.map_err(|error| error.status(&name))?;
            }
        }
        Ok(call.style.value(StatusCode::CREATED, &success()))
    }

    async fn log(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let pod = self.registry.get(call.kind(), call.namespace(), call.name()).await?;
        let Some(request) = logs::request(&pod, call.query)? else { return Ok(logs::empty()) };
        let stream = self.reads.log(request).await?;
        logs::respond(stream, self.stop.clone()).await
    }
}

/// Reads a patch in one of the forms served; gives the fields that stand in it twice, too.
pub(super) fn read_patch(headers: &HeaderMap, body: &[u8]) -> Result<(Patch, Vec<String>), Status> {
    let media_type = body::media_type(headers);
    Ok(match media_type.as_str() {
        "application/json-patch+json" => {
            let document = body::json(body)?;
            let operations = document.value.as_array().map_or(0, Vec::len);
            if operations > JSON_PATCH_OPERATIONS_MAX {
                return Err(Status::request_entity_too_large(&format!(
                    "The allowed maximum operations in a JSON patch is {JSON_PATCH_OPERATIONS_MAX}, got {operations}"
                )));
            }
            (Patch::Json(Bytes::copy_from_slice(body)), Vec::new())
        }
        "application/merge-patch+json" => {
            let document = body::json(body)?;
            (Patch::Merge(document.value), document.duplicates)
        }
        "application/strategic-merge-patch+json" => {
            let document = body::json(body)?;
            (Patch::Strategic(document.value), document.duplicates)
        }
        _ => return Err(Status::unsupported_media_type(&PATCH_TYPES)),
    })
}

fn answer_write(call: &Call<'_>, code: StatusCode, written: &Written) -> Response<Body> {
    let mut response = call.style.object(code, &written.object);
    respond::add_warnings(&mut response, &written.warnings);
    response
}

fn answer_delete(call: &Call<'_>, deleted: &Deleted) -> Response<Body> {
    // Of what is gone, Kubernetes gives back the object itself for these kinds only.
    if !deleted.removed || matches!(call.kind().kind, "Pod" | "ServiceAccount") {
        return call.style.object(StatusCode::OK, &deleted.object);
    }
    let uid = object::uid(deleted.object.value());
    let status = Status::deleted(call.kind(), deleted.object.name(), uid);
    call.style.value(StatusCode::OK, &status)
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

fn delete_options(query: &Query, headers: &HeaderMap, body: &[u8]) -> Result<DeleteOptions, Status> {
    let mut options = query.delete_options()?;
    if !body.is_empty() {
        debug_assert!(body.len() <= BODY_BYTES_MAX, "bodies are bounded when they are read");
        let document = body::object(&body::media_type(headers), body)?;
        read_delete_options(&document.value, &mut options)?;
    }
    Ok(options)
}

/// Takes over what a `DeleteOptions` object says; the query's own words are weaker.
fn read_delete_options(value: &Value, options: &mut DeleteOptions) -> Result<(), Status> {
    if value.is_null() {
        return Ok(());
    }
    let refuse = |field: &str| {
        Status::bad_request(format!(
            "DeleteOptions in version \"v1\" cannot be handled as a DeleteOptions: {field} has the wrong type"
        ))
    };
    if !value.is_object() {
        return Err(refuse("the body"));
    }
    let kind = object::kind(value);
    if !matches!(kind, "" | "DeleteOptions") {
        return Err(Status::bad_request(format!("the provided object is a {kind}, expected DeleteOptions")));
    }
    match &value["gracePeriodSeconds"] {
        Value::Null => {}
        seconds => {
            options.grace_period_s = Some(seconds.as_i64().ok_or_else(|| refuse("gracePeriodSeconds"))?);
        }
    }
    let text = |field: &'static str, value: &Value| match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        _ => Err(refuse(field)),
    };
    if let Some(policy) = text("propagationPolicy", &value["propagationPolicy"])? {
        options.propagation = propagation(Some(&policy))?;
    }
    match &value["orphanDependents"] {
        Value::Null => {}
        _ if options.propagation.is_some() => {
            return Err(Status::invalid_request(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Invalid value: \
                 orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        // The older way to say it.
        orphans => {
            let orphans = orphans.as_bool().ok_or_else(|| refuse("orphanDependents"))?;
            options.propagation = Some(if orphans { Propagation::Orphan } else { Propagation::Background });
        }
    }
    options.uid = text("preconditions.uid", &value["preconditions"]["uid"])?.or(options.uid.take());
    options.resource_version =
        text("preconditions.resourceVersion", &value["preconditions"]["resourceVersion"])?
            .or(options.resource_version.take());
    match &value["dryRun"] {
        Value::Null => {}
        Value::Array(values) if values.iter().all(|value| value == "All") => {
            options.dry_run |= !values.is_empty();
        }
        _ => return Err(Status::invalid_request("dryRun: Unsupported value: supported values: \"All\"")),
    }
    Ok(())
}
