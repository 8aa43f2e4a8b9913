//! Addresses at which others reach Services of type `LoadBalancer`.
//!
//! ```text
//!  Service ─► address of the provider's pool ─► status.loadBalancer (reserved in the same transaction)
//!                                           └► one live node holds it, told in its session, announces it
//! ```
//! Owns the status of Services whose class is the provider's or that name none, and which node holds which address. The
//! latter is decided in memory by who leads and told under its epoch; a new leader decides in the same way. Promises
//! that no two Services get one address and that none stays behind (`registry/reservations`); that a Service that gets
//! none hears why; that an address moves soon after its node was last heard of ([`SILENCE_MAX`]). Does not lead
//! packets: every node does that for every address (`node/src/network/services`).

mod holders;
mod pool;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{Status, object};
use serde_json::{Value, json};

pub(crate) use self::holders::Holders;
use self::holders::hold;
use self::pool::AddressPool;
pub use self::pool::AddressRange;
use super::work_queue::{Key, key_of};
use super::{Context, core_kind, options, settled};
use crate::leader::Epoch;
use crate::reflector::{Delta, Feed};
use crate::registry::{EventRecord, EventType, Object, Regarding, Target};

const COMPONENT: &str = "service-lb-controller";
/// Nodes with this label hold no addresses.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// A node that was silent for longer holds nothing; agents say something every half second.
const SILENCE_MAX: Duration = Duration::from_millis(1_200);
/// How often it is looked at who lives.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// For how long a new leader waits for nodes to speak before it decides without them.
const HEARING_MAX: Duration = Duration::from_secs(2);
/// How old may be what is known of endpoints.
const ENDPOINTS_AGE_MAX: Duration = Duration::from_millis(500);
/// The wait before an address that somebody else had just got is chosen anew.
const RETRY: Duration = Duration::from_millis(200);

/// Nodes that have a ready endpoint, by Service.
type Endpoints = BTreeMap<Key, BTreeSet<String>>;

/// Who gives Services addresses.
trait Provider: Send + Sync {
    /// The class of Services that it serves, beside those that name none.
    fn class(&self) -> &'static str;
    /// An address: the one that is wished for, or any that nobody has.
    fn choose(&self, wish: Option<Ipv4Addr>, taken: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr, Refusal>;
}

/// Why a Service gets no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error(
        "no address: the masters have none to give; name some in their configuration (loadBalancer.addresses), or the \
         class of another provider in spec.loadBalancerClass"
    )]
    NoPool,
    #[error(
        "no address: all that the masters have to give are in use; delete a Service of type LoadBalancer, or add \
         addresses to their configuration (loadBalancer.addresses)"
    )]
    Exhausted,
    #[error(
        "spec.loadBalancerIP: {0} is not among the addresses that the masters have to give (loadBalancer.addresses)"
    )]
    Outside(Ipv4Addr),
    #[error("spec.loadBalancerIP: another Service has {0}")]
    Taken(Ipv4Addr),
    #[error("spec.loadBalancerIP: {0:?} is no IPv4 address")]
    NoAddress(String),
}

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let provider = AddressPool::new(context.balancer_addresses.clone());
    let mut work = Work {
        context,
        epoch,
        provider: &provider,
        since: Instant::now(),
        services: BTreeMap::new(),
        given: BTreeMap::new(),
        told: BTreeMap::new(),
        holders: None,
        endpoints: None,
        due: true,
    };
    let mut feed = Feed::new(context.every("", "Service").clone());
    loop {
        let wait = if work.services.is_empty() { RETRY * 10 } else { LOOK_INTERVAL };
        tokio::select! {
            delta = feed.next() => work.note(delta),
            () = tokio::time::sleep(wait) => {}
        }
        while let Some(delta) = feed.try_next() {
            work.note(delta);
        }
        if std::mem::take(&mut work.due) {
            work.give().await;
        }
        work.hold();
    }
}

struct Work<'a> {
    context: &'a Context,
    epoch: Epoch,
    provider: &'a dyn Provider,
    since: Instant,
    /// The Services that the provider serves.
    services: BTreeMap<Key, Arc<Object>>,
    /// Written, and perhaps not yet seen.
    given: BTreeMap<Key, Ipv4Addr>,
    /// What each was refused with.
    told: BTreeMap<Key, Refusal>,
    holders: Option<Holders>,
    endpoints: Option<(Instant, Endpoints)>,
    due: bool,
}

impl Work<'_> {
    fn note(&mut self, delta: Delta) {
        let key = key_of(delta.object());
        match delta {
            Delta::Applied(service) if self.serves(service.value()) => {
                if address_of(service.value()).is_some() {
                    self.given.remove(&key);
                }
                self.services.insert(key, service);
            }
            Delta::Applied(_) | Delta::Deleted(_) => {
                self.services.remove(&key);
                self.given.remove(&key);
                self.told.remove(&key);
            }
        }
        self.due = true;
    }

    fn serves(&self, service: &Value) -> bool {
        let spec = &service["spec"];
        spec["type"] == "LoadBalancer"
            && spec["loadBalancerClass"].as_str().is_none_or(|class| class == self.provider.class())
            && object::deletion_timestamp(service).is_none()
    }

    /// Gives addresses to those that have none, or another than they wish for.
    async fn give(&mut self) {
        let mut waiting: Vec<(Key, Arc<Object>)> =
            self.services.iter().map(|(key, service)| (key.clone(), service.clone())).collect();
        // Whoever takes any address must not take the one that another waits for.
        waiting.sort_by_key(|(_, service)| wish_of(service.value()) == Ok(None));
        for (key, service) in waiting {
            let has = self.given.get(&key).copied().or_else(|| address_of(service.value()));
            let wish = wish_of(service.value());
            let chosen = match wish {
                Err(refusal) => Err(refusal),
                Ok(None) if has.is_some() => continue,
                Ok(Some(wish)) if has == Some(wish) => continue,
                Ok(wish) => self.provider.choose(wish, &self.taken(&key)),
            };
            match chosen {
                Ok(address) => match self.write(&service, address).await {
                    Ok(()) => {
                        self.told.remove(&key);
                        self.given.insert(key, address);
                        self.say(
                            &service,
                            EventType::Normal,
                            "EnsuredLoadBalancer",
                            "Ensured load balancer".to_owned(),
                        );
                    }
                    Err(status) => {
                        tracing::debug!(service = %service.name(), %status, "the address is not written; another try");
                        tokio::time::sleep(RETRY).await;
                        self.due = true;
                    }
                },
                Err(refusal) => {
                    if self.told.get(&key) != Some(&refusal) {
                        let message = format!("Error syncing load balancer: {refusal}");
                        self.say(&service, EventType::Warning, "SyncLoadBalancerFailed", message);
                        self.told.insert(key.clone(), refusal);
                    }
                }
            }
        }
    }

    /// What others have.
    fn taken(&self, by_others_than: &Key) -> BTreeSet<Ipv4Addr> {
        let all = self.context.every("", "Service").list();
        let seen = all.iter().filter(|service| key_of(service) != *by_others_than);
        let seen = seen.filter_map(|service| address_of(service.value()));
        let given = self.given.iter().filter(|(key, _)| *key != by_others_than).map(|(_, address)| *address);
        seen.chain(given).collect()
    }

    async fn write(&self, service: &Object, address: Ipv4Addr) -> Result<(), Status> {
        let uid = object::uid(service.value()).to_owned();
        let target = Target::status(core_kind("Service"), service.namespace(), service.name());
        let change = |value: &mut Value| {
            if object::uid(value) == uid && value["spec"]["type"] == "LoadBalancer" {
                let ingress = json!([{"ip": address.to_string(), "ipMode": "VIP"}]);
                value["status"]["loadBalancer"] = json!({"ingress": ingress});
            }
            Ok(())
        };
        settled(self.context.registry.modify(target, &options(self.epoch), change).await.map(drop))
    }

    fn say(&self, service: &Object, event_type: EventType, reason: &str, message: String) {
        let regarding = Regarding::object(service.value());
        let record = EventRecord::now(COMPONENT, regarding, event_type, reason, message);
        self.context.events.say(record, self.epoch.fence());
    }

    /// Decides who holds what, and tells the nodes if that changed.
    fn hold(&mut self) {
        let now = Instant::now();
        let (ready, alive) = self.nodes(now);
        // A leader that has just begun may not have heard of everybody yet.
        if self.holders.is_none() && alive.len() < ready && now.duration_since(self.since) < HEARING_MAX {
            return;
        }
        let is_local = |service: &Object| service.value()["spec"]["externalTrafficPolicy"] == "Local";
        if self.services.values().any(|service| is_local(service)) {
            self.find_endpoints(now);
        }
        let mut wanted = BTreeMap::new();
        for (key, service) in &self.services {
            if let Some(address) = address_of(service.value()) {
                // Only nodes that have an endpoint lead what comes from outside.
                let of_service = self.endpoints.as_ref().and_then(|(_, all)| all.get(key)).cloned();
                wanted.insert(address, is_local(service).then(|| of_service.unwrap_or_default()));
            }
        }
        let holders = hold(&wanted, &alive, self.holders.as_ref().unwrap_or(&Holders::new()));
        if self.holders.as_ref() == Some(&holders) {
            return;
        }
        for (address, node) in &holders {
            let before = self.holders.as_ref().and_then(|before| before.get(address));
            if before != Some(node) {
                tracing::info!(%address, node, before, "a node holds an address of Services");
            }
        }
        self.context.sessions.set_holders(self.epoch, holders.clone());
        self.holders = Some(holders);
    }

    /// How many nodes say that they are ready, and which of them were heard of lately.
    fn nodes(&self, now: Instant) -> (usize, BTreeSet<String>) {
        let all = self.context.nodes.list();
        let is_ready = |node: &&Arc<Object>| {
            let value = node.value();
            let conditions = value["status"]["conditions"].as_array().into_iter().flatten();
            let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
            let is_excluded = value["metadata"]["labels"].get(EXCLUDED).is_some();
            ready.any(|condition| condition["status"] == "True") && !is_excluded
        };
        let ready: Vec<&Arc<Object>> = all.iter().filter(is_ready).collect();
        let is_heard = |node: &&&Arc<Object>| {
            let beat = self.context.heartbeats.get(node.name());
            beat.is_some_and(|beat| now.saturating_duration_since(beat.at) <= SILENCE_MAX)
        };
        (ready.len(), ready.iter().filter(is_heard).map(|node| node.name().to_owned()).collect())
    }

    /// Looks where endpoints are, unless that was done a moment ago.
    fn find_endpoints(&mut self, now: Instant) {
        if self.endpoints.as_ref().is_some_and(|(at, _)| now.duration_since(*at) < ENDPOINTS_AGE_MAX) {
            return;
        }
        let mut all = Endpoints::new();
        for slice in self.context.every("discovery.k8s.io", "EndpointSlice").list() {
            let value = slice.value();
            let service =
                value["metadata"]["labels"]["kubernetes.io/service-name"].as_str().unwrap_or_default();
            let key = (slice.namespace().to_owned(), service.to_owned());
            if !self.services.contains_key(&key) {
                continue;
            }
            let ready = value["endpoints"].as_array().into_iter().flatten();
            let ready = ready.filter(|endpoint| endpoint["conditions"]["ready"] != false);
            let nodes = ready.filter_map(|endpoint| endpoint["nodeName"].as_str().map(str::to_owned));
            all.entry(key).or_default().extend(nodes);
        }
        self.endpoints = Some((now, all));
    }
}

/// The address that a Service shows.
fn address_of(service: &Value) -> Option<Ipv4Addr> {
    service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str()?.parse().ok()
}

fn wish_of(service: &Value) -> Result<Option<Ipv4Addr>, Refusal> {
    match service["spec"]["loadBalancerIP"].as_str().filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| Refusal::NoAddress(text.to_owned())),
    }
}

#[cfg(test)]
mod tests;
