//! PersistentVolumes and claims: kept by a finalizer while somebody uses them.

use api::object;
use serde_json::{Value, json};

use super::{Strategy, remove};

/// The rules of a kind whose objects are kept by this finalizer.
pub(super) struct Kept(pub(super) &'static str);

pub(super) static VOLUME: Kept = Kept("kubernetes.io/pv-protection");
pub(super) static CLAIM: Kept = Kept("kubernetes.io/pvc-protection");

impl Strategy for Kept {
    fn prepare_create(&self, object: &mut Value) {
        remove(object, "status");
        let mut finalizers: Vec<String> = object::finalizers(object).map(str::to_owned).collect();
        if !finalizers.iter().any(|own| own == self.0) {
            finalizers.push(self.0.to_owned());
        }
        object::set_metadata(object, "finalizers", json!(finalizers));
    }

    fn default_status(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
    }
}
