//! The subresource `scale`: how many of something there should be, the same for every kind that counts
//! (`autoscaling/v1` `Scale` of the Kubernetes API reference).

use api::{Cause, Status, object};
use http::{HeaderMap, Response, StatusCode};
use serde_json::Value;

use super::respond::Body;
use super::verbs::{Call, read_patch};
use super::{Rest, body, respond};
use crate::registry::{Patch, Scale, Target, WriteOptions, set_replicas};

impl Rest {
    /// Answers a read of the number.
    pub(super) async fn scale(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let object = self.registry.get(call.kind(), call.namespace(), call.name()).await?;
        Ok(call.style.value(StatusCode::OK, &Scale::of(&object).to_value()))
    }

    /// Replaces the number.
    pub(super) async fn put_scale(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let document = body::object(&body::media_type(headers), body)?;
        self.write_scale(call, document.duplicates, |_| Ok(document.value.clone())).await
    }

    /// Patches the number.
    pub(super) async fn patch_scale(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let (patch, duplicates) = read_patch(headers, body)?;
        self.write_scale(call, duplicates, |current| match &patch {
            Patch::Json(operations) => api::patch::json::apply(current, operations),
            // Nothing of it is a list that could merge otherwise.
            Patch::Merge(patch) | Patch::Strategic(patch) => api::patch::merge::apply(current, patch),
        })
        .await
    }

    async fn write_scale(
        &self,
        call: &Call<'_>,
        duplicates: Vec<String>,
        next: impl Fn(&Value) -> Result<Value, Status> + Send + Sync,
    ) -> Result<Response<Body>, Status> {
        let options = call.query.write_options(duplicates, call.user_agent)?;
        let options = WriteOptions { subresource: "scale", ..options };
        let rules = self.registry.rules(call.kind())?;
        let paths = rules.custom().and_then(|custom| custom.scale());
        let target = Target::new(call.kind(), call.namespace(), call.name());
        let change = |value: &mut Value| {
            let scale = Scale::read(call.kind(), value, paths).to_value();
            set_replicas(value, paths, replicas(call, value, &next(&scale)?)?);
            Ok(())
        };
        let written = self.registry.modify(target, &options, change).await?;
        let mut response = call.style.value(StatusCode::OK, &Scale::of(&written.object).to_value());
        respond::add_warnings(&mut response, &written.warnings);
        Ok(response)
    }
}

/// The number that a `Scale` asks for.
fn replicas(call: &Call<'_>, object: &Value, scale: &Value) -> Result<i64, Status> {
    let kind = object::kind(scale);
    if !matches!(kind, "" | "Scale") {
        return Err(Status::bad_request(format!("the provided object is a {kind}, expected Scale")));
    }
    let name = object::name(scale);
    if !name.is_empty() && name != call.name() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.name()
        )));
    }
    let version = object::resource_version(scale);
    if !version.is_empty() && version != object::resource_version(object) {
        return Err(Status::modified(call.kind(), call.name()));
    }
    let asked = &scale["spec"]["replicas"];
    let replicas = match asked {
        Value::Null => Some(0),
        number => number.as_i64().filter(|number| *number <= i64::from(i32::MAX)),
    };
    match replicas {
        Some(replicas) if replicas >= 0 => Ok(replicas),
        Some(replicas) => {
            let cause = Cause::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
            Err(Status::invalid(call.kind(), call.name(), vec![cause]))
        }
        None => Err(Status::bad_request(format!(
            "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal {asked} into Go struct \
             field ScaleSpec.spec.replicas of type int32"
        ))),
    }
}
