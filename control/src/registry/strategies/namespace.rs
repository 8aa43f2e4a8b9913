//! Namespaces: held by finalizers in their spec until their content is gone.

use api::{Status, object};
use serde_json::{Value, json};

use super::{Strategy, copy};

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-public", "kube-system"];

pub(super) struct NamespaceStrategy;

impl Strategy for NamespaceStrategy {
    fn prepare_create(&self, object: &mut Value) {
        let own = Value::from("kubernetes");
        let given = object["spec"]["finalizers"].as_array().into_iter().flatten();
        let mut finalizers: Vec<Value> = given.filter(|finalizer| **finalizer != own).cloned().collect();
        finalizers.push(own);
        if let Some(members) = object.as_object_mut() {
            members.insert("spec".to_owned(), json!({"finalizers": finalizers}));
            members.insert("status".to_owned(), json!({"phase": "Active"}));
        }
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        copy(old, new, "status");
        copy(old, new, "spec");
    }

    fn check_delete(&self, name: &str) -> Result<(), Status> {
        if !IMMORTAL.contains(&name) {
            return Ok(());
        }
        let kind = api::kinds::by_kind("", "v1", "Namespace").expect("the table of kinds has Namespace");
        Err(Status::forbidden(kind, name, "this namespace may not be deleted"))
    }

    fn begin_delete(&self, object: &mut Value) {
        object["status"]["phase"] = Value::from("Terminating");
        object::set_metadata(object, "deletionGracePeriodSeconds", Value::Null);
    }
}

/// A `finalize` write changes `spec.finalizers` only.
pub(in crate::registry) fn prepare_finalize(old: &Value, new: &mut Value) {
    let finalizers = new["spec"].get("finalizers").cloned().unwrap_or(Value::Null);
    *new = old.clone();
    match finalizers {
        Value::Null => new["spec"] = json!({}),
        finalizers => new["spec"] = json!({"finalizers": finalizers}),
    }
}
