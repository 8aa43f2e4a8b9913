//! What the scheduler hears: changes of pods, nodes, namespaces, claims, volumes and budgets, handed to the
//! core in its own terms.

use std::collections::BTreeMap;

use api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use raft_store::mutants::{self, Mutant};
use scheduler::{Budget, PodVolumes};
use serde::Deserialize;

use super::groups::Groups;
use super::{Dependencies, Shell, Storage, groups, volumes};
use crate::object_store::SharedStore;
use crate::reflector::{Delta, Feed, Reflector, uid};

/// The sources.
pub(super) struct Feeds {
    pods: Feed<SharedStore>,
    nodes: Feed<SharedStore>,
    namespaces: Feed<SharedStore>,
    claims: Feed<SharedStore>,
    volumes: Feed<SharedStore>,
    budgets: Option<Feed<SharedStore>>,
    groups: Groups,
    storage: Storage,
    all_pods: Reflector<SharedStore>,
    all_budgets: Option<Reflector<SharedStore>>,
}

/// Something changed.
pub(super) enum Change {
    Pod(Delta),
    Node(Delta),
    Namespace(Delta),
    Storage,
    Budgets,
    Groups(Vec<groups::Change>),
}

impl Feeds {
    pub(super) fn new(from: &Dependencies) -> Self {
        Self {
            pods: Feed::new(from.pods.clone()),
            nodes: Feed::new(from.nodes.clone()),
            namespaces: Feed::new(from.namespaces.clone()),
            claims: Feed::new(from.storage.claims.clone()),
            volumes: Feed::new(from.storage.volumes.clone()),
            budgets: from.budgets.clone().map(Feed::new),
            groups: Groups::new(from.custom.clone()),
            storage: from.storage.clone(),
            all_pods: from.pods.clone(),
            all_budgets: from.budgets.clone(),
        }
    }

    /// The next change. Cancelling the wait loses nothing.
    pub(super) async fn next(&mut self) -> Change {
        let budgets = async {
            match &mut self.budgets {
                Some(budgets) => budgets.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            delta = self.pods.next() => Change::Pod(delta),
            delta = self.nodes.next() => Change::Node(delta),
            delta = self.namespaces.next() => Change::Namespace(delta),
            _ = self.claims.next() => Change::Storage,
            _ = self.volumes.next() => Change::Storage,
            _ = budgets => Change::Budgets,
            changes = self.groups.next() => Change::Groups(changes),
        }
    }

    fn budgets(&self) -> Vec<Budget> {
        let all = self.all_budgets.iter().flat_map(Reflector::list);
        all.filter_map(|object| read_budget(object.namespace(), object.decode().ok()?)).collect()
    }
}

/// What the scheduler reads of a PodDisruptionBudget.
#[derive(Deserialize)]
struct BudgetObject {
    #[serde(default)]
    spec: BudgetSpec,
    #[serde(default)]
    status: BudgetStatus,
}

#[derive(Deserialize, Default)]
struct BudgetSpec {
    selector: Option<meta::LabelSelector>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct BudgetStatus {
    disruptions_allowed: i64,
    disrupted_pods: BTreeMap<String, serde::de::IgnoredAny>,
}

fn read_budget(namespace: &str, object: BudgetObject) -> Option<Budget> {
    Some(Budget {
        namespace: namespace.to_owned(),
        selector: LabelSelector::from_typed(object.spec.selector.as_ref()).ok()?,
        allowed: object.status.disruptions_allowed,
        disrupted: object.status.disrupted_pods.into_keys().collect(),
    })
}

impl Shell {
    /// Takes over everything that the reflectors have.
    pub(super) fn absorb(&mut self) {
        while let Some(delta) = self.feeds.namespaces.try_next() {
            self.namespace(&delta);
        }
        while let Some(delta) = self.feeds.nodes.try_next() {
            self.node(&delta);
        }
        while let Some(delta) = self.feeds.pods.try_next() {
            self.pod(&delta);
        }
        let mut is_storage_changed = false;
        while self.feeds.claims.try_next().is_some() || self.feeds.volumes.try_next().is_some() {
            is_storage_changed = true;
        }
        if is_storage_changed {
            self.storage_changed();
        }
        let mut are_budgets_changed = false;
        while self.feeds.budgets.as_mut().is_some_and(|budgets| budgets.try_next().is_some()) {
            are_budgets_changed = true;
        }
        if are_budgets_changed {
            self.core.budgets_changed(self.feeds.budgets());
        }
    }

    pub(super) fn take(&mut self, change: Change) {
        match change {
            Change::Pod(delta) => self.pod(&delta),
            Change::Node(delta) => self.node(&delta),
            Change::Namespace(delta) => self.namespace(&delta),
            Change::Storage => self.storage_changed(),
            Change::Budgets => self.core.budgets_changed(self.feeds.budgets()),
            Change::Groups(changes) => {
                for (namespace, name, minimum) in changes {
                    self.core.group_changed(&namespace, &name, minimum, self.now());
                }
            }
        }
    }

    fn node(&mut self, delta: &Delta) {
        match delta {
            Delta::Deleted(object) => self.core.node_removed(object.name(), self.now()),
            Delta::Applied(object) => {
                let changed = object.decode::<Node>().map_err(|status| status.to_string()).and_then(|node| {
                    self.core.node_changed(&node, self.now()).map_err(|error| error.to_string())
                });
                if let Err(error) = changed {
                    tracing::warn!(node = object.name(), error, "the node cannot be read; kept as it was");
                }
            }
        }
    }

    fn namespace(&mut self, delta: &Delta) {
        let object = delta.object();
        let labels = match delta {
            Delta::Deleted(_) => None,
            Delta::Applied(object) => Some(object.labels()),
        };
        self.core.namespace_changed(object.name(), labels, self.now());
    }

    fn pod(&mut self, delta: &Delta) {
        let now = self.now();
        match delta {
            Delta::Deleted(object) => {
                let uid = uid(object);
                self.core.pod_removed(&uid, now);
                self.said.remove(&uid);
            }
            Delta::Applied(object) => {
                let pod = match object.decode::<Pod>() {
                    Ok(pod) if mutants::is(Mutant::ForgetRequests) => without_requests(pod),
                    Ok(pod) => pod,
                    Err(status) => {
                        tracing::warn!(pod = object.name(), %status, "the pod cannot be read");
                        return;
                    }
                };
                let volumes = match is_waiting(&pod) {
                    true => self.feeds.storage.of(&pod),
                    false => PodVolumes::default(),
                };
                if let Err(error) = self.core.pod_changed_with(&pod, volumes, now) {
                    tracing::warn!(pod = object.name(), %error, "the pod cannot be scheduled");
                }
            }
        }
    }

    /// Pods that wait for a node and use claims may fit elsewhere now, or at all.
    fn storage_changed(&mut self) {
        for pod in self.feeds.all_pods.not_indexed() {
            let uses_claims = pod.decode::<Pod>().is_ok_and(|pod| volumes::claims_of(&pod).next().is_some());
            if uses_claims {
                self.pod(&Delta::Applied(pod));
            }
        }
    }
}

fn is_waiting(pod: &Pod) -> bool {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    node.is_none_or(str::is_empty)
}

/// A mistake that tests switch on.
fn without_requests(mut pod: Pod) -> Pod {
    for container in pod.spec.iter_mut().flat_map(|spec| &mut spec.containers) {
        container.resources = None;
    }
    pod
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_budget_is_read_from_its_object() {
        let object = json!({
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
            "status": {"disruptionsAllowed": 2, "disruptedPods": {"p1": "2024-01-01T00:00:00Z"}},
        });
        let budget = read_budget("default", serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!((budget.allowed, budget.disrupted.contains("p1")), (2, true));
        assert_eq!(budget.selector.to_string(), "app=web");
    }
}
