//! What decides where requests from outside go: Ingresses and their classes.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::ingress;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};

use super::policing::Place;
use super::{Key, Kind, read};

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ingresses {
    all: BTreeMap<Place, Arc<Ingress>>,
    classes: BTreeMap<String, Arc<IngressClass>>,
}

impl Ingresses {
    /// Those that nodes of the cluster serve, the oldest first: where two ask for the same, it has it.
    pub(crate) fn served(&self) -> Vec<Arc<Ingress>> {
        let own = ingress::own_classes(self.classes.values().map(|class| &**class));
        let served = self.all.values().filter(|ingress| ingress::is_served(ingress, &own));
        let mut served: Vec<Arc<Ingress>> = served.cloned().collect();
        // The sort is stable: those of one moment stay in the order of their names.
        served.sort_by_key(|ingress| ingress.metadata.creation_timestamp.as_ref().map(|time| time.0));
        served
    }

    /// One of them is as said. `false`: it cannot be read.
    pub(super) fn put(&mut self, key: &Key, json: &[u8]) -> bool {
        match key.kind {
            Kind::IngressClass => {
                read(key, json).map(|class| self.classes.insert(key.name.clone(), Arc::new(class))).is_some()
            }
            _ => read(key, json).map(|ingress| self.all.insert(place(key), Arc::new(ingress))).is_some(),
        }
    }

    /// One of them is gone.
    pub(super) fn remove(&mut self, key: &Key) {
        match key.kind {
            Kind::IngressClass => drop(self.classes.remove(&key.name)),
            _ => drop(self.all.remove(&place(key))),
        }
    }
}

fn place(key: &Key) -> Place {
    (key.namespace.clone(), key.name.clone())
}
