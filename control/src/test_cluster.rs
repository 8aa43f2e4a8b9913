//! A replica's whole work over a store in memory, for tests.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use api::Kind;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::cluster_work::{ClusterWork, Settings};
use crate::controllers::Timings;
use crate::object_store::memory::MemoryStore;
use crate::object_store::{Leadership, SharedStore};
use crate::pki::{Authority, ControlToken};
use crate::pod_cidr::PodRange;
use crate::registry::{ListOptions, Registry, Target, WriteOptions, bootstrap_namespaces};

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
        let store = MemoryStore::new();
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let shared = SharedStore::new(store.clone());
        let registry = Registry::new(shared.clone(), tasks.clone(), cancel.clone());
        bootstrap_namespaces(&registry).await.expect("namespaces");
        let settings = Settings {
            member_name: "m1".to_owned(),
            range: PodRange::new("10.244.0.0/16".parse().expect("a range"), 24),
            authority: authority(),
            timings,
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
