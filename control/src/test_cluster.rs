//! A replica's whole work over a store in memory, for tests.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use api::Kind;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::cluster_work::{ClusterWork, Settings};
use crate::controllers::{AddressRange, Timings};
use crate::object_store::memory::MemoryStore;
use crate::object_store::{Leadership, SharedStore};
use crate::pki::{Authority, ControlToken};
use crate::pod_cidr::PodRange;
use crate::registry::{DeleteOptions, ListOptions, Registry, Target, WriteOptions, bootstrap_namespaces};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) struct TestCluster {
    pub(crate) store: MemoryStore,
    pub(crate) registry: Registry,
    pub(crate) work: ClusterWork,
    _stop: DropGuard,
}

pub(crate) fn kind(kind: &str) -> &'static Kind {
    api::kinds::by_kind("", "v1", kind).expect("a core kind")
}

pub(crate) fn any(group: &str, kind: &str) -> &'static Kind {
    let found = api::kinds().iter().find(|known| known.group == group && known.kind == kind);
    found.expect("a kind")
}

/// The status of a pod that runs and is ready.
pub(crate) fn running() -> Value {
    json!({"phase": "Running", "conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}]})
}

/// The one authority of all test clusters of this process.
pub(crate) fn authority() -> Arc<Authority> {
    static AUTHORITY: LazyLock<Arc<Authority>> = LazyLock::new(|| {
        let token = ControlToken::generate(SystemTime::now()).expect("a token");
        Arc::new(Authority::from_token(&token).expect("an authority"))
    });
    AUTHORITY.clone()
}

impl TestCluster {
    /// A replica that leads in term 1 and has the system's namespaces.
    pub(crate) async fn start(timings: Timings) -> Self {
        Self::start_with_balancers(timings, Vec::new()).await
    }

    /// The same, with addresses for Services of type `LoadBalancer`.
    pub(crate) async fn start_with_balancers(
        timings: Timings,
        balancer_addresses: Vec<AddressRange>,
    ) -> Self {
        let store = MemoryStore::new();
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let shared = SharedStore::new(store.clone());
        let registry = Registry::new(shared.clone(), tasks.clone(), cancel.clone());
        bootstrap_namespaces(&registry).await.expect("namespaces");
        let settings = Settings {
            member_name: "m1".to_owned(),
            range: PodRange::new("10.244.0.0/16".parse().expect("a range"), 24),
            authority: authority(),
            masters: vec!["192.168.0.1:6443".parse().expect("an address")],
            balancer_addresses,
            timings,
            scheduler: Arc::default(),
        };
        let work = ClusterWork::start(&shared, &registry, settings, &tasks, &cancel);
        let mut epochs = work.epochs.clone();
        epochs.wait_for(Option::is_some).await.expect("the replica leads");
        Self { store, registry, work, _stop: cancel.drop_guard() }
    }

    pub(crate) fn lead(&self, term: u64) {
        self.store.set_leadership(Leadership { term, leader: Some(1), is_self: true });
    }

    pub(crate) fn follow(&self, term: u64) {
        self.store.set_leadership(Leadership { term, leader: Some(2), is_self: false });
    }

    pub(crate) async fn create(&self, kind_name: &str, namespace: &str, value: Value) {
        let options = WriteOptions::default();
        self.registry.create(kind(kind_name), namespace, value, &options).await.expect("created");
    }

    pub(crate) async fn modify(&self, target: Target<'_>, change: impl FnMut(&mut Value) + Send) {
        let mut change = change;
        let options = WriteOptions::default();
        let apply = |value: &mut Value| {
            change(value);
            Ok(())
        };
        self.registry.modify(target, &options, apply).await.expect("modified");
    }

    pub(crate) async fn node(&self, name: &str, cpu: &str) {
        self.create("Node", "", node(name, cpu)).await;
    }

    pub(crate) async fn pod(&self, name: &str, cpu: &str) {
        self.create("Pod", "default", pod(name, cpu)).await;
    }

    pub(crate) async fn get(&self, kind_name: &str, namespace: &str, name: &str) -> Option<Value> {
        let found = self.registry.get_local(kind(kind_name), namespace, name).await.expect("memory store");
        found.map(|object| object.value().clone())
    }

    /// Waits until the object is as it should be.
    pub(crate) async fn until(
        &self,
        kind_name: &str,
        namespace: &str,
        name: &str,
        is_right: impl Fn(&Value) -> bool,
    ) -> Value {
        let looking = async {
            loop {
                if let Some(value) = self.get(kind_name, namespace, name).await.filter(&is_right) {
                    return value;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, looking).await {
            Ok(value) => value,
            Err(_) => panic!("{kind_name} {name} is {:?}", self.get(kind_name, namespace, name).await),
        }
    }

    /// Creates an object of any kind in the namespace `default`.
    pub(crate) async fn make(&self, group: &str, kind: &str, value: Value) {
        let made = self.registry.create(any(group, kind), "default", value, &WriteOptions::default()).await;
        made.expect("created");
    }

    /// The objects of any kind in the namespace `default`, in the order of names.
    pub(crate) async fn all(&self, group: &str, kind: &str) -> Vec<Value> {
        let list = self.registry.list(any(group, kind), Some("default"), &ListOptions::default()).await;
        list.expect("memory store").items.iter().map(|object| object.value().clone()).collect()
    }

    /// Waits until the objects of a kind are as they should be.
    pub(crate) async fn until_all(
        &self,
        group: &str,
        kind: &str,
        is_right: impl Fn(&[Value]) -> bool,
    ) -> Vec<Value> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let found = self.all(group, kind).await;
            if is_right(&found) {
                return found;
            }
            assert!(tokio::time::Instant::now() < deadline, "{found:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Plays every node's agent: gives each pod the status that `status` says, if it says one, and removes pods
    /// that are to stop.
    pub(crate) fn play(&self, status: impl Fn(&Value) -> Option<Value> + Send + 'static) -> DropGuard {
        let (registry, stop) = (self.registry.clone(), CancellationToken::new());
        let playing = async move {
            loop {
                let pods = registry.list(kind("Pod"), Some("default"), &ListOptions::default()).await;
                for pod in pods.expect("memory store").items {
                    let target = Target::new(kind("Pod"), "default", pod.name());
                    if api::object::deletion_timestamp(pod.value()).is_some() {
                        let now = DeleteOptions::now(api::object::uid(pod.value()));
                        drop(registry.delete(target, &now).await);
                    }
                    let Some(wanted) = status(pod.value()) else { continue };
                    let target = Target::status(kind("Pod"), "default", pod.name());
                    let change = |value: &mut Value| {
                        for (key, part) in wanted.as_object().into_iter().flatten() {
                            value["status"][key] = part.clone();
                        }
                        Ok(())
                    };
                    drop(registry.modify(target, &WriteOptions::default(), change).await);
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        };
        let until = stop.clone();
        tokio::spawn(async move { until.run_until_cancelled(playing).await });
        stop.drop_guard()
    }

    /// Waits until there is no such object.
    pub(crate) async fn until_gone(&self, kind_name: &str, namespace: &str, name: &str) {
        let looking = async {
            while self.get(kind_name, namespace, name).await.is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, looking).await.is_err() {
            panic!("still there: {:?}", self.get(kind_name, namespace, name).await);
        }
    }

    /// Waits for an Event with this reason about an object of this name; gives its message.
    pub(crate) async fn event(&self, reason: &str, about: &str) -> String {
        let looking = async {
            loop {
                let events = self.registry.list(kind("Event"), None, &ListOptions::default()).await;
                let events = events.expect("memory store").items;
                let found = events
                    .iter()
                    .map(|event| event.value())
                    .find(|event| event["reason"] == reason && event["involvedObject"]["name"] == about);
                if let Some(event) = found {
                    return event["message"].as_str().unwrap_or_default().to_owned();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("no Event {reason}"))
    }
}

pub(crate) fn node(name: &str, cpu: &str) -> Value {
    let list = json!({"cpu": cpu, "memory": "8Gi", "pods": "110"});
    let octet = name.bytes().last().unwrap_or_default();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {
            "allocatable": list, "capacity": list,
            "addresses": [
                {"type": "InternalIP", "address": format!("192.168.0.{octet}")},
                {"type": "Hostname", "address": name},
            ],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    })
}

pub(crate) fn pod(name: &str, cpu: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [
            {"name": "c", "image": "barque/hello:1.0", "resources": {"requests": {"cpu": cpu}}},
        ]},
    })
}

pub(crate) fn condition<'a>(value: &'a Value, name: &str) -> &'a Value {
    let conditions = value["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().find(|condition| condition["type"] == name).unwrap_or(&Value::Null)
}
