//! CustomResourceDefinitions: they remember in which versions objects may be stored, and wait for the last
//! object of their kind.

use api::crd::definition;
use api::object;
use serde_json::{Value, json};

use super::{Strategy, copy, remove};

pub(super) struct DefinitionStrategy;

impl Strategy for DefinitionStrategy {
    fn prepare_create(&self, object: &mut Value) {
        remove(object, "status");
        object["status"] = json!({"acceptedNames": {"plural": "", "kind": ""}, "conditions": []});
        definition::note_storage_version(object);
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        copy(old, new, "status");
        definition::note_storage_version(new);
    }

    fn deletion_finalizer(&self) -> Option<&'static str> {
        Some(definition::CLEANUP_FINALIZER)
    }

    fn begin_delete(&self, object: &mut Value) {
        let time = object::deletion_timestamp(object).unwrap_or_default().to_owned();
        definition::set_condition(
            object,
            json!({
                "type": "Terminating", "status": "True", "lastTransitionTime": time,
                "reason": "InstanceDeletionPending",
                "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
            }),
        );
    }
}
