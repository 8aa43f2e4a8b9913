//! Patches: a change of the newest object, computed on the server.

use api::{Status, object};
use bytes::Bytes;
use serde_json::Value;

use super::update::Run;
use super::{Registry, Target, WriteOptions, Written};

/// A patch in one of the forms that the API takes.
#[derive(Debug, Clone)]
pub enum Patch {
    /// RFC 6902.
    Json(Bytes),
    /// RFC 7386.
    Merge(Value),
    /// Merge with list keys and directives, as the kinds' fields declare them.
    Strategic(Value),
}

impl Registry {
    /// Applies a patch. A patch that carries a resource version is made only onto that version; any other is
    /// computed anew when the object changes meanwhile.
    pub async fn patch(
        &self,
        target: Target<'_>,
        patch: &Patch,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let rules = self.rules(target.kind)?;
        let mut warnings = Vec::new();
        let mut free = self.free_for_update(target, &Value::Null).await?;
        let stepped = self
            .step(target, Run::Write(options), |current| {
                let old = current.value();
                let mut new = apply(target, old, patch)?;
                check_identity(target, old, &new)?;
                warnings = rules.check_fields(&mut new, options)?;
                self.prepare(target, options, old, new, &mut free)
            })
            .await?;
        warnings.extend(stepped.warnings);
        Ok(Written { object: stepped.object, warnings, removed: stepped.removed })
    }
}

fn apply(target: Target<'_>, old: &Value, patch: &Patch) -> Result<Value, Status> {
    match patch {
        Patch::Json(operations) => api::patch::json::apply(old, operations),
        Patch::Merge(patch) => api::patch::merge::apply(old, patch),
        Patch::Strategic(patch) => api::patch::strategic::apply(target.kind, old, patch),
    }
}

/// A patch may name the version and the object it was made for, but not turn it into another.
fn check_identity(target: Target<'_>, old: &Value, new: &Value) -> Result<(), Status> {
    let version = object::resource_version(new);
    if !version.is_empty() && version != object::resource_version(old) {
        return Err(Status::modified(target.kind, target.name));
    }
    if object::name(new) != target.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            object::name(new),
            target.name
        )));
    }
    if object::namespace(new) != object::namespace(old) {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}
