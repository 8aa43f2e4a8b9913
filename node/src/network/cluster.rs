//! The node's copy of what the cluster's network is made of: every Service and every EndpointSlice, what decides who
//! may reach whom ([`Policing`]), and where requests from outside go ([`Ingresses`]).
//!
//! Owns the only copy, in memory. Written by the leader's session, read by whoever leads packets or answers for names;
//! who follows it is woken by changes and takes the names of the Services that changed. A leader begins with an index;
//! what is known in the same revision is kept, the rest is asked for ([`ClusterNetwork::index`]). Until everything
//! that was asked for has come, the copy is not [complete](ClusterNetwork::is_complete), and what an earlier life
//! of the agent left in force stays.

mod ingresses;
mod policing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

pub(crate) use self::ingresses::Ingresses;
pub(crate) use self::policing::{PeerPod, Policing, transport};

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The address of an object: kind, namespace, name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// The kinds that the network is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Service,
    EndpointSlice,
    Ingress,
    IngressClass,
    NetworkPolicy,
    Namespace,
    Pod,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Ingress,
        Self::IngressClass,
        Self::NetworkPolicy,
        Self::Namespace,
        Self::Pod,
    ];

    /// `None`: a kind that this version does not know.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == text)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Ingress => "Ingress",
            Self::IngressClass => "IngressClass",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
        }
    }
}

/// Namespace and name of a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServiceName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Service and the slices of its endpoints.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) service: Option<Arc<Service>>,
    pub(crate) slices: BTreeMap<String, Arc<EndpointSlice>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ClusterNetwork {
    state: Mutex<State>,
    complete: Condvar,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    revisions: BTreeMap<Key, u64>,
    services: BTreeMap<ServiceName, Known>,
    /// Of which Service a slice is.
    owners: BTreeMap<Key, ServiceName>,
    /// Services by address, for names of addresses.
    addresses: BTreeMap<IpAddr, BTreeSet<ServiceName>>,
    policing: Arc<Policing>,
    ingresses: Arc<Ingresses>,
    /// Asked for and not there yet; `None`: no leader has told anything.
    awaited: Option<BTreeSet<Key>>,
    /// Everything was here once.
    told: bool,
    /// Changed since they were last taken.
    changed: BTreeSet<ServiceName>,
}

impl Default for ClusterNetwork {
    fn default() -> Self {
        Self { state: Mutex::default(), complete: Condvar::new(), changes: watch::Sender::new(0) }
    }
}

impl ClusterNetwork {
    /// A leader says what there is, and in which revisions. Gives what to ask it for.
    pub(crate) fn index(&self, objects: BTreeMap<Key, u64>) -> Vec<Key> {
        let mut state = self.lock();
        let gone: Vec<Key> =
            state.revisions.keys().filter(|key| !objects.contains_key(*key)).cloned().collect();
        for key in gone {
            state.remove(&key);
        }
        let lacks = |(key, revision): &(Key, u64)| state.revisions.get(key) != Some(revision);
        let wanted: Vec<Key> = objects.into_iter().filter(lacks).map(|(key, _)| key).collect();
        // Whatever is told now counts, also if it is older.
        for key in &wanted {
            state.revisions.remove(key);
        }
        state.awaited = Some(wanted.iter().cloned().collect());
        state.told |= wanted.is_empty();
        drop(state);
        self.complete.notify_all();
        self.changes.send_modify(|number| *number += 1);
        wanted
    }

    /// Some objects are as said; `None`: gone.
    pub(crate) fn apply(&self, objects: impl IntoIterator<Item = (Key, Option<(u64, bytes::Bytes)>)>) {
        let mut state = self.lock();
        for (key, object) in objects {
            match object {
                None => state.remove(&key),
                Some((revision, json)) => state.put(&key, revision, &json),
            }
            if let Some(awaited) = &mut state.awaited {
                awaited.remove(&key);
                state.told |= awaited.is_empty();
            }
        }
        drop(state);
        self.complete.notify_all();
        self.changes.send_modify(|number| *number += 1);
    }

    /// Whether everything that a leader named is here.
    pub(crate) fn is_complete(&self) -> bool {
        self.lock().awaited.as_ref().is_some_and(BTreeSet::is_empty)
    }

    /// Waits, blocking, until what a leader named is here; not before any leader has spoken. Says whether it is here.
    pub(crate) fn wait_complete(&self, timeout: Duration) -> bool {
        let is_awaited =
            |state: &mut State| state.awaited.as_ref().is_some_and(|awaited| !awaited.is_empty());
        let waited = self.complete.wait_timeout_while(self.lock(), timeout, is_awaited);
        let (state, _) = waited.expect("no holder of the cluster's network panics");
        state.awaited.as_ref().is_some_and(BTreeSet::is_empty)
    }

    /// Whether any leader has said what there is since the agent began.
    pub(crate) fn has_heard(&self) -> bool {
        self.lock().awaited.is_some()
    }

    /// What decides who may reach whom; the same one until any of it changes.
    pub(crate) fn policing(&self) -> Arc<Policing> {
        Arc::clone(&self.lock().policing)
    }

    /// What decides where requests from outside go; the same one until any of it changes.
    pub(crate) fn ingresses(&self) -> Arc<Ingresses> {
        Arc::clone(&self.lock().ingresses)
    }

    /// Whether a leader has named everything once, and everything was here at some time.
    pub(crate) fn is_told(&self) -> bool {
        self.lock().told
    }

    /// Sees a new number after every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The Services that changed since the last call, with what is known of them now. For one follower.
    pub(crate) fn take_changed(&self) -> BTreeMap<ServiceName, Known> {
        let mut state = self.lock();
        let changed = std::mem::take(&mut state.changed);
        changed
            .into_iter()
            .map(|name| {
                let known = state.services.get(&name).cloned().unwrap_or_default();
                (name, known)
            })
            .collect()
    }

    /// What is known of a Service.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Known> {
        let name = ServiceName { namespace: namespace.to_owned(), name: name.to_owned() };
        self.lock().services.get(&name).cloned()
    }

    /// The Services that a balancer outside asks nodes about, with the port at which it asks.
    pub(crate) fn checked(&self) -> Vec<(u16, ServiceName)> {
        let port = |known: &Known| {
            let spec = known.service.as_ref()?.spec.as_ref()?;
            let is_local = spec.external_traffic_policy.as_deref() == Some("Local");
            let is_balanced = spec.type_.as_deref() == Some("LoadBalancer");
            spec.health_check_node_port.filter(|_| is_local && is_balanced)
        };
        let state = self.lock();
        let checked = state.services.iter().filter_map(|(name, known)| Some((port(known)?, name.clone())));
        checked
            .filter_map(|(port, name)| Some((u16::try_from(port).ok().filter(|port| *port > 0)?, name)))
            .collect()
    }

    /// Whether a namespace has any Service.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        let first = ServiceName { namespace: namespace.to_owned(), name: String::new() };
        let state = self.lock();
        state.services.range(first..).next().is_some_and(|(name, _)| name.namespace == namespace)
    }

    /// The Services of a namespace.
    pub(crate) fn of_namespace(&self, namespace: &str) -> Vec<Arc<Service>> {
        let first = ServiceName { namespace: namespace.to_owned(), name: String::new() };
        let state = self.lock();
        let of_namespace = state.services.range(first..).take_while(|(name, _)| name.namespace == namespace);
        of_namespace.filter_map(|(_, known)| known.service.clone()).collect()
    }

    /// The Services that have an address, or an endpoint with it.
    pub(crate) fn at(&self, address: IpAddr) -> Vec<(ServiceName, Known)> {
        let state = self.lock();
        let names = state.addresses.get(&address).into_iter().flatten();
        names.filter_map(|name| Some((name.clone(), state.services.get(name)?.clone()))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the cluster's network panics")
    }
}

impl State {
    fn put(&mut self, key: &Key, revision: u64, json: &[u8]) {
        let known = self.revisions.get(key);
        // A policy is also told ahead of what is told of all objects in order.
        let is_older = key.kind == Kind::NetworkPolicy && known.is_some_and(|known| *known > revision);
        if known == Some(&revision) || is_older {
            return;
        }
        let is_read = match key.kind {
            Kind::Service => read::<Service>(key, json).map(|service| self.put_service(key, service)),
            Kind::EndpointSlice => read::<EndpointSlice>(key, json).map(|slice| self.put_slice(key, slice)),
            Kind::Ingress | Kind::IngressClass => {
                Arc::make_mut(&mut self.ingresses).put(key, json).then_some(())
            }
            Kind::NetworkPolicy | Kind::Namespace | Kind::Pod => {
                Arc::make_mut(&mut self.policing).put(key, json).then_some(())
            }
        };
        if is_read.is_some() {
            self.revisions.insert(key.clone(), revision);
        }
    }

    fn put_service(&mut self, key: &Key, service: Service) {
        let name = ServiceName { namespace: key.namespace.clone(), name: key.name.clone() };
        self.forget_addresses(&name);
        self.services.entry(name.clone()).or_default().service = Some(Arc::new(service));
        self.note(name);
    }

    fn put_slice(&mut self, key: &Key, slice: EndpointSlice) {
        let labels = slice.metadata.labels.as_ref();
        let Some(owner) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else {
            self.remove_slice(key);
            return;
        };
        let owner = ServiceName { namespace: key.namespace.clone(), name: owner.clone() };
        if self.owners.get(key).is_some_and(|before| *before != owner) {
            self.remove_slice(key);
        }
        self.forget_addresses(&owner);
        self.owners.insert(key.clone(), owner.clone());
        let known = self.services.entry(owner.clone()).or_default();
        known.slices.insert(key.name.clone(), Arc::new(slice));
        self.note(owner);
    }

    fn remove(&mut self, key: &Key) {
        self.revisions.remove(key);
        match key.kind {
            Kind::Service => {}
            Kind::EndpointSlice => return self.remove_slice(key),
            Kind::Ingress | Kind::IngressClass => {
                return Arc::make_mut(&mut self.ingresses).remove(key);
            }
            Kind::NetworkPolicy | Kind::Namespace | Kind::Pod => {
                return Arc::make_mut(&mut self.policing).remove(key);
            }
        }
        let name = ServiceName { namespace: key.namespace.clone(), name: key.name.clone() };
        self.forget_addresses(&name);
        if let Some(known) = self.services.get_mut(&name) {
            known.service = None;
        }
        self.note(name);
    }

    fn remove_slice(&mut self, key: &Key) {
        let Some(owner) = self.owners.remove(key) else { return };
        self.forget_addresses(&owner);
        if let Some(known) = self.services.get_mut(&owner) {
            known.slices.remove(&key.name);
        }
        self.note(owner);
    }

    /// A Service is another, or is gone.
    fn note(&mut self, name: ServiceName) {
        match self.services.get(&name) {
            Some(known) if known.service.is_none() && known.slices.is_empty() => {
                self.services.remove(&name);
            }
            Some(known) => {
                for address in known.addresses() {
                    self.addresses.entry(address).or_default().insert(name.clone());
                }
            }
            None => {}
        }
        self.changed.insert(name);
    }

    fn forget_addresses(&mut self, name: &ServiceName) {
        let Some(known) = self.services.get(name) else { return };
        for address in known.addresses() {
            if let Some(names) = self.addresses.get_mut(&address) {
                names.remove(name);
                if names.is_empty() {
                    self.addresses.remove(&address);
                }
            }
        }
    }
}

impl Known {
    fn addresses(&self) -> BTreeSet<IpAddr> {
        let own =
            self.service.iter().filter_map(|service| service.spec.as_ref()?.cluster_ips.as_ref()).flatten();
        let endpoints = self.slices.values().flat_map(|slice| &slice.endpoints);
        let others = endpoints.flat_map(|endpoint| &endpoint.addresses);
        own.chain(others).filter_map(|text| text.parse().ok()).collect()
    }
}

fn read<T: DeserializeOwned>(key: &Key, json: &[u8]) -> Option<T> {
    serde_json::from_slice(json)
        .inspect_err(
            |error| tracing::error!(?key, %error, "an object of the network cannot be read; ignored"),
        )
        .ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn key(kind: Kind, name: &str) -> Key {
        Key { kind, namespace: "d".to_owned(), name: name.to_owned() }
    }

    fn object(revision: u64, value: &Value) -> Option<(u64, bytes::Bytes)> {
        Some((revision, value.to_string().into()))
    }

    fn service(address: &str) -> Value {
        json!({"metadata": {"name": "s", "namespace": "d"}, "spec": {"clusterIPs": [address]}})
    }

    fn slice(of: &str, address: &str) -> Value {
        json!({"metadata": {"name": "e", "namespace": "d", "labels": {SERVICE_NAME: of}},
            "addressType": "IPv4", "endpoints": [{"addresses": [address]}]})
    }

    #[test]
    fn a_new_leader_is_asked_for_what_differs_only() {
        let network = ClusterNetwork::default();
        assert!(!network.is_complete(), "nobody has told anything");
        let (s, e) = (key(Kind::Service, "s"), key(Kind::EndpointSlice, "e"));
        let wanted = network.index([(s.clone(), 3), (e.clone(), 4)].into());
        assert_eq!(wanted, [s.clone(), e.clone()]);
        network.apply([(s.clone(), object(3, &service("10.96.0.7")))]);
        assert!(!network.is_complete());
        network.apply([(e.clone(), object(4, &slice("s", "10.244.0.9")))]);
        assert!(network.is_complete());
        assert_eq!(network.take_changed().len(), 1);

        assert_eq!(network.index([(s.clone(), 3), (e.clone(), 5)].into()), std::slice::from_ref(&e));
        assert!(!network.is_complete());
        // It went in the meantime.
        network.apply([(e, None)]);
        assert!(network.is_complete());
        let changed = network.take_changed();
        assert!(changed.values().all(|known| known.service.is_some() && known.slices.is_empty()));
        assert_eq!(network.index(BTreeMap::new()), []);
        assert!(network.is_complete() && network.get("d", "s").is_none() && !network.has_namespace("d"));
        let changed = network.take_changed();
        assert!(changed.len() == 1 && changed.values().all(|known| known.service.is_none()));
    }

    #[test]
    fn addresses_are_found_as_long_as_somebody_has_them() {
        let network = ClusterNetwork::default();
        let (s, e) = (key(Kind::Service, "s"), key(Kind::EndpointSlice, "e"));
        let names = |address: &str| {
            let found = network.at(address.parse().unwrap());
            found.into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()
        };
        network.apply([
            (e.clone(), object(1, &slice("s", "10.244.0.9"))),
            (s.clone(), object(2, &service("10.96.0.7"))),
        ]);
        assert_eq!(
            (names("10.96.0.7"), names("10.244.0.9")),
            (vec!["d/s".to_owned()], vec!["d/s".to_owned()])
        );
        network.apply([(s, object(3, &service("10.96.0.8")))]);
        assert_eq!((names("10.96.0.7"), names("10.96.0.8")), (vec![], vec!["d/s".to_owned()]));
        // The slice is another Service's now.
        network.apply([(e, object(4, &slice("t", "10.244.0.9")))]);
        assert_eq!(names("10.244.0.9"), ["d/t"]);
        assert!(network.get("d", "s").unwrap().slices.is_empty());
    }

    #[test]
    fn what_cannot_be_read_changes_nothing() {
        let network = ClusterNetwork::default();
        let s = key(Kind::Service, "s");
        network.apply([(s.clone(), object(1, &service("10.96.0.7")))]);
        network.apply([(s, Some((2, bytes::Bytes::from_static(b"{\"spec\": 7}"))))]);
        assert!(network.get("d", "s").is_some());
    }
}
