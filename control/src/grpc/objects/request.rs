//! What a call asks, as the request of REST that it stands for; pure.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::Full;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use proto::objects::patch_request::Type as PatchType;
use proto::objects::{Body, DeleteOptions, Encoding, FieldValidation, Propagation, Resource, WriteOptions};
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::Status;

use crate::auth::Identity;
use crate::grpc::identity;

/// What stands in a path or a query as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The metadata of a call that are headers of the request, beside those that begin with [`IMPERSONATE`].
const HEADERS: [&str; 4] = ["authorization", "user-agent", "audit-id", "x-request-id"];
const IMPERSONATE: &str = "impersonate-";
/// The metadata that says how long the caller will wait.
const TIMEOUT: &str = "grpc-timeout";

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Who calls, and until when an answer counts.
#[derive(Debug)]
pub(super) struct Caller {
    identity: Identity,
    headers: HeaderMap,
    deadline: Option<Instant>,
}

impl Caller {
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Self {
        let metadata = request.metadata().as_ref();
        let mut headers = HeaderMap::new();
        for (name, value) in metadata {
            if HEADERS.contains(&name.as_str()) || name.as_str().starts_with(IMPERSONATE) {
                headers.append(name.clone(), value.clone());
            }
        }
        let time = metadata.get(TIMEOUT).and_then(|value| timeout(value.to_str().ok()?));
        let deadline = time.and_then(|time| Instant::now().checked_add(time));
        Self { identity: identity(request), headers, deadline }
    }

    /// What a future gives, if it does within the call's deadline.
    pub(super) async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, Status> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.overdue() => Err(Status::deadline_exceeded("the call's deadline has passed")),
        }
    }

    /// Ends at the call's deadline.
    pub(super) async fn overdue(&self) {
        match self.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    }
}

/// A time as gRPC writes it: up to eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// A request of REST.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    method: Method,
    /// Path and query, encoded.
    uri: String,
    content_type: &'static str,
    body: Bytes,
    /// The form of the bodies in the answer.
    pub(super) encoding: Encoding,
}

impl Asked {
    /// About whatever the resource names.
    pub(super) fn any(method: Method, resource: Option<Resource>) -> Result<Self, Status> {
        let resource = resource.filter(|resource| !resource.resource.is_empty());
        let resource = resource
            .ok_or_else(|| Status::invalid_argument("resource.resource names no kind, such as \"pods\""))?;
        let uri = path(&resource);
        Ok(Self { method, uri, content_type: JSON, body: Bytes::new(), encoding: Encoding::Json })
    }

    /// About one object.
    pub(super) fn one(method: Method, resource: Option<Resource>) -> Result<Self, Status> {
        match &resource {
            Some(named) if named.name.is_empty() => {
                Err(Status::invalid_argument("resource.name is empty; this call is about one object"))
            }
            Some(named) if is_connection(&named.subresource) => Err(Status::unimplemented(format!(
                "{:?} is no object; only REST serves it, or a call of its own",
                named.subresource
            ))),
            _ => Self::any(method, resource),
        }
    }

    /// About a collection.
    pub(super) fn all(method: Method, resource: Option<Resource>) -> Result<Self, Status> {
        match &resource {
            Some(named) if !named.name.is_empty() || !named.subresource.is_empty() => {
                Err(Status::invalid_argument("resource names one object; this call is about a collection"))
            }
            _ => Self::any(method, resource),
        }
    }

    /// About a part of a pod.
    pub(super) fn pod(
        method: Method,
        namespace: String,
        name: String,
        subresource: &str,
    ) -> Result<Self, Status> {
        if namespace.is_empty() || name.is_empty() {
            return Err(Status::invalid_argument("namespace and pod must be named"));
        }
        let resource = "pods".to_owned();
        let subresource = subresource.to_owned();
        Self::any(method, Some(Resource { resource, namespace, name, subresource, ..Resource::default() }))
    }

    /// The same, answered in another form.
    pub(super) fn answered_in(self, encoding: i32) -> Result<Self, Status> {
        let encoding = match Encoding::try_from(encoding) {
            Ok(Encoding::Unspecified | Encoding::Json) => Encoding::Json,
            Ok(known @ (Encoding::Protobuf | Encoding::None)) => known,
            Ok(Encoding::Yaml) => return Err(Status::invalid_argument("answers do not come in YAML")),
            Err(_) => return Err(unknown("encoding", encoding)),
        };
        Ok(Self { encoding, ..self })
    }

    /// Adds a parameter, unless it is empty.
    pub(super) fn add(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.add_even_empty(key, value);
        }
    }

    /// Adds a parameter.
    pub(super) fn add_even_empty(&mut self, key: &str, value: &str) {
        self.uri.push(if self.uri.contains('?') { '&' } else { '?' });
        self.uri.push_str(key);
        self.uri.push('=');
        self.uri.extend(utf8_percent_encode(value, PLAIN));
    }

    /// The same with parameters of a write.
    pub(super) fn with_options(mut self, options: WriteOptions) -> Result<Self, Status> {
        if options.dry_run {
            self.add("dryRun", "All");
        }
        self.add("fieldManager", &options.field_manager);
        let validation = match options.field_validation() {
            FieldValidation::Unspecified => "",
            FieldValidation::Ignore => "Ignore",
            FieldValidation::Warn => "Warn",
            FieldValidation::Strict => "Strict",
        };
        self.add("fieldValidation", validation);
        Ok(self)
    }

    /// The same with a body.
    pub(super) fn with_body(self, body: Option<Body>) -> Result<Self, Status> {
        let body = body.ok_or_else(|| Status::invalid_argument("there is no body"))?;
        let content_type = match Encoding::try_from(body.encoding) {
            Ok(Encoding::Unspecified | Encoding::Json) => JSON,
            Ok(Encoding::Protobuf) => PROTOBUF,
            Ok(Encoding::Yaml) => YAML,
            Ok(Encoding::None) => return Err(Status::invalid_argument("body.encoding names no form")),
            Err(_) => return Err(unknown("body.encoding", body.encoding)),
        };
        Ok(Self { content_type, body: body.content, ..self })
    }

    /// The same with a patch.
    pub(super) fn with_patch(self, kind: i32, patch: Bytes) -> Result<Self, Status> {
        let content_type = match PatchType::try_from(kind) {
            Ok(PatchType::Json) => "application/json-patch+json",
            Ok(PatchType::Merge) => "application/merge-patch+json",
            Ok(PatchType::Strategic) => "application/strategic-merge-patch+json",
            Ok(PatchType::Apply) => "application/apply-patch+yaml",
            Ok(PatchType::Unspecified) => {
                return Err(Status::invalid_argument("type names no kind of patch"));
            }
            Err(_) => return Err(unknown("type", kind)),
        };
        Ok(Self { content_type, body: patch, ..self })
    }

    /// The same with a JSON body.
    pub(super) fn with_json(self, value: &Value) -> Self {
        Self { content_type: JSON, body: Bytes::from(value.to_string()), ..self }
    }

    /// The same with what a deletion says.
    pub(super) fn with_delete_options(self, options: DeleteOptions) -> Result<Self, Status> {
        let propagation = match Propagation::try_from(options.propagation) {
            Ok(Propagation::Unspecified) => Value::Null,
            Ok(Propagation::Background) => Value::from("Background"),
            Ok(Propagation::Foreground) => Value::from("Foreground"),
            Ok(Propagation::Orphan) => Value::from("Orphan"),
            Err(_) => return Err(unknown("options.propagation", options.propagation)),
        };
        let text = |text: String| if text.is_empty() { Value::Null } else { Value::from(text) };
        let dry_run = if options.dry_run { json!(["All"]) } else { Value::Null };
        Ok(self.with_json(&json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": options.grace_period_seconds,
            "propagationPolicy": propagation,
            "preconditions": {"uid": text(options.uid), "resourceVersion": text(options.resource_version)},
            "dryRun": dry_run,
        })))
    }

    /// As the handler of REST takes it.
    pub(super) fn http(&self, caller: &Caller) -> Result<Request<Full<Bytes>>, Status> {
        let built = Request::builder()
            .method(self.method.clone())
            .uri(&self.uri)
            .header(ACCEPT, JSON)
            .header(CONTENT_TYPE, HeaderValue::from_static(self.content_type))
            .body(Full::new(self.body.clone()));
        let mut request = built
            .map_err(|error| Status::invalid_argument(format!("the request cannot be made: {error}")))?;
        request.headers_mut().extend(caller.headers.clone());
        request.extensions_mut().insert(caller.identity.clone());
        Ok(request)
    }
}

fn unknown(field: &str, number: i32) -> Status {
    Status::invalid_argument(format!("{field} has the unknown value {number}"))
}

/// Subresources that are streams, or other people's answers.
fn is_connection(subresource: &str) -> bool {
    matches!(subresource, "exec" | "attach" | "portforward" | "log" | "proxy")
}

fn path(resource: &Resource) -> String {
    let version = if resource.version.is_empty() { "v1" } else { &resource.version };
    let mut path = match resource.group.is_empty() {
        true => "/api".to_owned(),
        false => format!("/apis/{}", utf8_percent_encode(&resource.group, PLAIN)),
    };
    let mut push = |segment: &str| {
        path.push('/');
        path.extend(utf8_percent_encode(segment, PLAIN));
    };
    push(version);
    if !resource.namespace.is_empty() {
        push("namespaces");
        push(&resource.namespace);
    }
    for segment in [&resource.resource, &resource.name, &resource.subresource] {
        if !segment.is_empty() {
            push(segment);
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_the_path_that_rest_has_for_it() {
        let of = |group: &str, namespace: &str, resource: &str, name: &str, subresource: &str| {
            path(&Resource {
                group: group.to_owned(),
                version: String::new(),
                resource: resource.to_owned(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                subresource: subresource.to_owned(),
            })
        };
        assert_eq!(of("", "", "nodes", "", ""), "/api/v1/nodes");
        assert_eq!(of("", "a", "pods", "b", "status"), "/api/v1/namespaces/a/pods/b/status");
        assert_eq!(of("apps", "a", "deployments", "", ""), "/apis/apps/v1/namespaces/a/deployments");
        // What is no name stays one segment.
        assert_eq!(of("", "", "nodes", "a/../b?c", ""), "/api/v1/nodes/a%2F..%2Fb%3Fc");
    }

    #[test]
    fn parameters_are_encoded_and_empty_ones_left_out() {
        let resource = Resource { resource: "pods".to_owned(), ..Resource::default() };
        let mut asked = Asked::all(Method::GET, Some(resource)).unwrap();
        asked.add("labelSelector", "a=b, c in (d)");
        asked.add("fieldSelector", "");
        asked.add("limit", "5");
        assert_eq!(asked.uri, "/api/v1/pods?labelSelector=a%3Db%2C%20c%20in%20%28d%29&limit=5");
    }

    #[test]
    fn times_are_read_as_grpc_writes_them() {
        assert_eq!(timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(timeout("20m"), Some(Duration::from_millis(20)));
        for wrong in ["", "5", "S", "123456789S", "-1S", "5ü"] {
            assert_eq!(timeout(wrong), None, "{wrong}");
        }
    }
}
