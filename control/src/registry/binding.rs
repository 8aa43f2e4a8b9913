//! Binding pods to nodes: many in one log entry.
//!
//! Owns the change that a binding makes (`spec.nodeName` and the condition `PodScheduled`). Each binding
//! holds only if the pod is still the version that was decided on and the decider still leads; one that
//! does not hold leaves the others alone. A pod is never bound twice: whatever is retried compares versions
//! again, and finding the pod on the very node that was asked for is success.

use api::{Kind, Status, object};
use raft_store::mutants::{self, Mutant};
use serde_json::{Value, json};

use super::create::encode;
use super::{Registry, error, keys};
use crate::object_store::{
    Condition, Consistency, Error, Mutation, ObjectStore, StoredObject, Transaction, TransactionOutcome,
};

/// One pod to be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
    /// The resource version that was decided on; `None`: whatever it has now.
    pub resource_version: Option<u64>,
    /// The node.
    pub node: String,
}

/// Why one pod was not bound. The others may have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// No such pod, or another one of that name.
    #[error("pod {key} (uid {uid}) does not exist")]
    Gone {
        /// `namespace/name`.
        key: String,
        /// Its uid.
        uid: String,
    },
    /// The pod changed since it was decided on.
    #[error("pod {key} changed since the decision")]
    Changed {
        /// `namespace/name`.
        key: String,
    },
    /// The pod is on a node already.
    #[error("pod {key} is already assigned to node \"{node}\"")]
    Bound {
        /// `namespace/name`.
        key: String,
        /// Where it is.
        node: String,
    },
    /// The pod is being deleted.
    #[error("pod {key} is being deleted, cannot be assigned to a host")]
    Terminating {
        /// `namespace/name`.
        key: String,
    },
    /// Another replica has taken over: the writer's decisions count no more.
    #[error("the binding was refused: another replica has taken over the leadership")]
    Fenced,
}

impl BindError {
    /// The error as an API client should see it.
    pub fn status(&self, name: &str) -> Status {
        match self {
            Self::Gone { .. } => Status::not_found(pod_kind(), name),
            Self::Fenced => error::fenced(),
            Self::Changed { .. } | Self::Bound { .. } | Self::Terminating { .. } => {
                Status::conflict(pod_kind(), name, &self.to_string())
            }
        }
    }
}

fn pod_kind() -> &'static Kind {
    api::kinds::by_kind("", "v1", "Pod").expect("the table of kinds has Pod")
}

impl Registry {
    /// Binds pods in one log entry; the results are in the order of the bindings, each the pod's new
    /// revision. `fence` is the raft term under which the decisions were made. A store error means all of
    /// them: after [`Error::Unknown`] the same call may be repeated.
    pub async fn bind_all(
        &self,
        bindings: &[Binding],
        fence: Option<u64>,
    ) -> Result<Vec<Result<u64, BindError>>, Error> {
        let now = object::timestamp(self.now());
        let mut results: Vec<Option<Result<u64, BindError>>> = Vec::with_capacity(bindings.len());
        let mut transactions = Vec::with_capacity(bindings.len());
        for binding in bindings {
            let key = keys::object(pod_kind(), &binding.namespace, &binding.name);
            let (stored, _) = self.store().get(key, Consistency::Serializable).await?;
            match change(binding, stored.as_ref(), &now) {
                Ok(Change::Write(mut transaction)) => {
                    transaction.fence = fence;
                    if mutants::is(Mutant::BindWithoutFence) {
                        transaction.conditions.clear();
                        transaction.fence = None;
                    }
                    transactions.push(transaction);
                    results.push(None);
                }
                Ok(Change::Done(revision)) => results.push(Some(Ok(revision))),
                Err(error) => results.push(Some(Err(error))),
            }
        }
        let outcomes = match transactions.is_empty() {
            true => Vec::new(),
            false => self.store().transact_all(transactions).await?,
        };
        let mut outcomes = outcomes.into_iter();
        let merged = bindings.iter().zip(results).map(|(binding, known)| match known {
            Some(result) => result,
            None => outcomes.next().map_or(Err(BindError::Fenced), |outcome| verdict(binding, outcome)),
        });
        Ok(merged.collect())
    }
}

impl Registry {
    /// Binds pods in one transaction: all of them, or none. The results are in the order of the bindings; if
    /// one cannot be bound, every other says that it was not.
    pub async fn bind_group(
        &self,
        bindings: &[Binding],
        fence: Option<u64>,
    ) -> Result<Vec<Result<u64, BindError>>, Error> {
        let now = object::timestamp(self.now());
        let mut transaction = Transaction { fence, ..Transaction::default() };
        let mut known = Vec::with_capacity(bindings.len());
        for binding in bindings {
            let key = keys::object(pod_kind(), &binding.namespace, &binding.name);
            let (stored, _) = self.store().get(key, Consistency::Serializable).await?;
            known.push(match change(binding, stored.as_ref(), &now) {
                Ok(Change::Write(one)) => {
                    transaction.conditions.extend(one.conditions);
                    transaction.mutations.extend(one.mutations);
                    Ok(None)
                }
                Ok(Change::Done(revision)) => Ok(Some(revision)),
                Err(error) => Err(error),
            });
        }
        if known.iter().any(Result::is_err) {
            let refused =
                |binding, known: Result<_, BindError>| Err(known.err().unwrap_or_else(|| left(binding)));
            return Ok(bindings.iter().zip(known).map(|(binding, known)| refused(binding, known)).collect());
        }
        let outcome = match transaction.mutations.is_empty() {
            true => TransactionOutcome::Committed { revision: 0 },
            false => self.store().transact(transaction).await?,
        };
        let verdicts = bindings.iter().zip(known).map(|(binding, known)| match (&outcome, known) {
            (_, Ok(Some(revision))) => Ok(revision),
            (TransactionOutcome::Committed { revision }, _) => Ok(*revision),
            (TransactionOutcome::Fenced, _) => Err(BindError::Fenced),
            (TransactionOutcome::ConditionFailed { .. }, _) => Err(left(binding)),
        });
        Ok(verdicts.collect())
    }
}

/// A member of a group of which another could not be bound.
fn left(binding: &Binding) -> BindError {
    BindError::Changed { key: key(binding) }
}

enum Change {
    Write(Transaction),
    /// The pod is where it should be, since this revision.
    Done(u64),
}

fn change(binding: &Binding, stored: Option<&StoredObject>, now: &str) -> Result<Change, BindError> {
    let (stored, mut pod) = read(binding, stored)?;
    if is_there(binding, stored, &pod)? {
        return Ok(Change::Done(stored.mod_revision));
    }
    pod["spec"]["nodeName"] = Value::from(binding.node.as_str());
    set_scheduled(&mut pod, now);
    let condition = Condition::Unchanged { key: stored.key.clone(), mod_revision: stored.mod_revision };
    let put = Mutation::Put { key: stored.key.clone(), value: encode(&pod) };
    Ok(Change::Write(Transaction { conditions: vec![condition], mutations: vec![put], fence: None }))
}

fn read<'a>(
    binding: &Binding,
    stored: Option<&'a StoredObject>,
) -> Result<(&'a StoredObject, Value), BindError> {
    let gone = || BindError::Gone { key: key(binding), uid: binding.uid.clone() };
    let stored = stored.ok_or_else(gone)?;
    let pod: Value = serde_json::from_slice(&stored.value).map_err(|_| gone())?;
    if object::uid(&pod) != binding.uid {
        return Err(gone());
    }
    Ok((stored, pod))
}

/// Whether the pod is where the binding wants it; if not, whether it may be bound.
fn is_there(binding: &Binding, stored: &StoredObject, pod: &Value) -> Result<bool, BindError> {
    match pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
        Some(node) if node == binding.node => return Ok(true),
        Some(node) => return Err(BindError::Bound { key: key(binding), node: node.to_owned() }),
        None => {}
    }
    if object::deletion_timestamp(pod).is_some() {
        return Err(BindError::Terminating { key: key(binding) });
    }
    if binding.resource_version.is_some_and(|version| version != stored.mod_revision) {
        return Err(BindError::Changed { key: key(binding) });
    }
    Ok(false)
}

fn verdict(binding: &Binding, outcome: TransactionOutcome) -> Result<u64, BindError> {
    match outcome {
        TransactionOutcome::Committed { revision } => Ok(revision),
        TransactionOutcome::Fenced => Err(BindError::Fenced),
        TransactionOutcome::ConditionFailed { current } => {
            let (stored, pod) = read(binding, current.first().and_then(Option::as_ref))?;
            match is_there(binding, stored, &pod)? {
                true => Ok(stored.mod_revision),
                false => Err(BindError::Changed { key: key(binding) }),
            }
        }
    }
}

fn key(binding: &Binding) -> String {
    format!("{}/{}", binding.namespace, binding.name)
}

/// Sets the condition `PodScheduled` to true, keeping the others and its place.
fn set_scheduled(pod: &mut Value, now: &str) {
    let scheduled = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
    });
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = pod["status"]["conditions"].as_array_mut() else { return };
    match conditions.iter_mut().find(|condition| condition["type"] == "PodScheduled") {
        Some(condition) => *condition = scheduled,
        None => conditions.push(scheduled),
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::object_store::SharedStore;
    use crate::object_store::memory::MemoryStore;

    fn pod(name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
            "spec": {"containers": []},
            "status": {"conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"},
                {"type": "Ready", "status": "False"},
            ]},
        })
    }

    async fn put(store: &MemoryStore, pod: &Value) -> u64 {
        let key = keys::object(pod_kind(), object::namespace(pod), object::name(pod));
        let mutations = vec![Mutation::Put { key, value: encode(pod) }];
        let transaction = Transaction { mutations, ..Transaction::default() };
        match store.transact(transaction).await.expect("memory store") {
            TransactionOutcome::Committed { revision } => revision,
            other => panic!("{other:?}"),
        }
    }

    fn binding(name: &str, revision: u64, node: &str) -> Binding {
        Binding {
            namespace: "default".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
            resource_version: Some(revision),
            node: node.into(),
        }
    }

    fn registry(store: &MemoryStore) -> Registry {
        Registry::new(SharedStore::new(store.clone()), TaskTracker::new(), CancellationToken::new())
    }

    #[tokio::test]
    async fn each_binding_stands_for_itself() {
        let store = MemoryStore::new();
        let registry = registry(&store);
        let good = put(&store, &pod("good")).await;
        let changed = put(&store, &pod("changed")).await;
        put(&store, &pod("changed")).await;
        let mut deleted = pod("deleted");
        deleted["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
        let deleted = put(&store, &deleted).await;
        let mut other = binding("good", good, "n1");
        other.uid = "another life".into();

        let bindings = [
            binding("good", good, "n1"),
            binding("changed", changed, "n1"),
            binding("deleted", deleted, "n1"),
            binding("missing", 1, "n1"),
            other,
        ];
        let results = registry.bind_all(&bindings, Some(1)).await.expect("memory store");
        assert!(results[0].is_ok());
        assert_eq!(results[1], Err(BindError::Changed { key: "default/changed".into() }));
        assert_eq!(results[2], Err(BindError::Terminating { key: "default/deleted".into() }));
        assert!(matches!(results[3], Err(BindError::Gone { .. })));
        assert!(matches!(results[4], Err(BindError::Gone { .. })));

        let bound = registry.get(pod_kind(), "default", "good").await.expect("exists");
        assert_eq!(bound.value()["spec"]["nodeName"], "n1");
        let conditions = bound.value()["status"]["conditions"].as_array().expect("conditions");
        assert_eq!(conditions.len(), 2);
        assert_eq!((&conditions[0]["status"], &conditions[0]["reason"]), (&json!("True"), &Value::Null));
    }

    #[tokio::test]
    async fn a_repeated_binding_is_success_and_another_node_is_refused() {
        let store = MemoryStore::new();
        let registry = registry(&store);
        let revision = put(&store, &pod("a")).await;
        let wanted = [binding("a", revision, "n1")];
        let first = registry.bind_all(&wanted, Some(1)).await.expect("memory store");
        let again = registry.bind_all(&wanted, Some(1)).await.expect("memory store");
        assert_eq!(first, again);
        let elsewhere = registry.bind_all(&[binding("a", revision, "n2")], Some(1)).await.expect("store");
        assert_eq!(elsewhere[0], Err(BindError::Bound { key: "default/a".into(), node: "n1".into() }));
    }

    #[tokio::test]
    async fn a_group_is_bound_as_a_whole_or_not_at_all() {
        let store = MemoryStore::new();
        let registry = registry(&store);
        let (one, two) = (put(&store, &pod("one")).await, put(&store, &pod("two")).await);
        let stale = [binding("one", one, "n1"), binding("two", two - 1, "n2")];
        let results = registry.bind_group(&stale, Some(1)).await.expect("memory store");
        assert!(results.iter().all(Result::is_err), "{results:?}");
        let untouched = registry.get(pod_kind(), "default", "one").await.expect("exists");
        assert_eq!(untouched.value()["spec"]["nodeName"], Value::Null);
        let wanted = [binding("one", one, "n1"), binding("two", two, "n2")];
        let results = registry.bind_group(&wanted, Some(1)).await.expect("memory store");
        assert_eq!(results[0], results[1], "one transaction, one revision");
        let again = registry.bind_group(&wanted, Some(1)).await.expect("memory store");
        assert_eq!(results, again, "repeating it is success");
    }

    #[tokio::test]
    async fn a_deposed_leaders_binding_loses_in_the_log() {
        let store = MemoryStore::new();
        let registry = registry(&store);
        let revision = put(&store, &pod("a")).await;
        let results = registry.bind_all(&[binding("a", revision, "n1")], Some(7)).await.expect("store");
        assert_eq!(results, [Err(BindError::Fenced)]);
        let pod = registry.get(pod_kind(), "default", "a").await.expect("exists");
        assert_eq!(pod.value()["spec"]["nodeName"], Value::Null);
    }
}
