//! Services on this node: what the cluster's network asks for, kept in force in the packet filter.
//!
//! ```text
//! cluster's network ─► plan (pure, one Service at a time) ─► table of the packet filter
//!                                                        └─► flows of datagrams that nobody answers any more: forgotten
//! ```
//! Owns the table, by the name of the node's bridge. Writes nothing before a leader has told everything once, so
//! what an earlier agent left goes on until then. What fails, and what somebody else did to the table, is put right
//! within [`CHECK_INTERVAL`].

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::net::{
    DatagramPlace, ServiceRules, ServiceTable, ServiceTableConfig, forget_dead_flows, sysctl,
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::plan::{NodeFacts, local_endpoints};
use super::BridgeNetwork;
use super::bridge::Addressing;
use super::cluster::{ClusterNetwork, Known, ServiceName};
use crate::session::outbox::{EventRecord, Outbox, node_record};

/// How often the table is looked at though nothing seems to have changed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Whether what bridges pass on meets the packet filter.
const BRIDGE_FILTER: &str = "net.bridge.bridge-nf-call-iptables";

/// Keeps Services in force until cancelled, and tells when they are for the first time. They stay in force afterwards,
/// as containers do.
pub(crate) async fn run(
    network: Arc<BridgeNetwork>,
    cluster: Arc<ClusterNetwork>,
    facts: NodeFacts,
    outbox: Arc<Outbox>,
    shutdown: CancellationToken,
) {
    let started = node_record(&facts.node_name, "Starting", "Starting kube-proxy.".to_owned());
    let mut started = Some(EventRecord { component: "kube-proxy", ..started });
    let mut changes = cluster.subscribe();
    let mut keeper = Keeper {
        network: Arc::clone(&network),
        facts,
        table: None,
        planned: BTreeMap::new(),
        told: String::new(),
    };
    loop {
        let addressed = network.changed();
        changes.mark_unchanged();
        if cluster.is_complete() {
            let changed = cluster.take_changed();
            let turn = tokio::task::spawn_blocking(move || {
                keeper.turn(changed);
                keeper
            });
            keeper = turn.await.expect("a turn over the Services does not panic");
            if keeper.is_in_force() {
                started.take().into_iter().for_each(|record| outbox.event(record));
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = changes.changed() => {}
            () = addressed => {}
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
        }
    }
}

struct Keeper {
    network: Arc<BridgeNetwork>,
    facts: NodeFacts,
    table: Option<ServiceTable>,
    /// What is asked for, so that a table that is made later has all of it.
    planned: BTreeMap<String, ServiceRules>,
    /// The last complaint, which is not repeated.
    told: String,
}

impl Keeper {
    fn is_in_force(&self) -> bool {
        self.table.is_some() && self.told.is_empty()
    }

    fn turn(&mut self, changed: BTreeMap<ServiceName, Known>) {
        let mut rules: BTreeMap<String, Option<ServiceRules>> = BTreeMap::new();
        let mut places = Vec::new();
        for (name, known) in changed {
            let planned = plan::plan(&known, &self.facts);
            let name = name.to_string();
            if planned.as_ref() == self.planned.get(&name) {
                continue;
            }
            places.extend(dead_places(self.planned.get(&name), planned.as_ref()));
            match &planned {
                Some(planned) => drop(self.planned.insert(name.clone(), planned.clone())),
                None => drop(self.planned.remove(&name)),
            }
            rules.insert(name, planned);
        }
        let Some(addressing) = self.network.addressing() else { return };
        let config = config(&addressing);
        let begun = Instant::now();
        let count = rules.len();
        let written = match &mut self.table {
            None => {
                let all =
                    self.planned.iter().map(|(name, rules)| (name.clone(), Some(rules.clone()))).collect();
                self.table.insert(ServiceTable::new(config)).apply(all).map(|()| false)
            }
            Some(table) => {
                table.set_config(config);
                match rules.is_empty() {
                    false => table.apply(rules).map(|()| false),
                    true => table.check(),
                }
            }
        };
        match written {
            Ok(repaired) => {
                if repaired {
                    tracing::warn!(
                        "the packet filter's table of Services was not as this node wants it; it is written anew"
                    );
                } else if count > 0 {
                    tracing::debug!(services = count, took = ?begun.elapsed(), "Services are in force");
                }
                self.told.clear();
            }
            Err(error) => self.complain(&error.to_string()),
        }
        match forget_dead_flows(&places) {
            Ok(0) => {}
            Ok(flows) => tracing::debug!(flows, "flows to backends that are gone are forgotten"),
            Err(error) => {
                tracing::warn!(%error, "flows to backends that are gone go on until they have been quiet for a while")
            }
        }
    }

    fn complain(&mut self, words: &str) {
        if self.told != words {
            tracing::error!(error = words, "Services are not in force as the cluster wants them; trying on");
            words.clone_into(&mut self.told);
        }
    }
}

/// Where datagrams were taken, with those who may answer them from now on.
fn dead_places(before: Option<&ServiceRules>, now: Option<&ServiceRules>) -> Vec<DatagramPlace> {
    let now = now.map(plan::datagram_places).unwrap_or_default();
    let before = before.map(plan::datagram_places).unwrap_or_default();
    let mut gone: Vec<DatagramPlace> = before
        .into_iter()
        .filter(|place| !now.iter().any(|new| (new.address, new.port) == (place.address, place.port)))
        .map(|place| DatagramPlace { answered_by: Default::default(), ..place })
        .collect();
    gone.extend(now);
    gone
}

fn config(addressing: &Addressing) -> ServiceTableConfig {
    // Where it can be switched on it is: answers between pods of this node would otherwise go past the packet filter.
    let bridge_is_filtered = sysctl::set(BRIDGE_FILTER, "1").is_ok();
    ServiceTableConfig {
        table: format!("barque-services-{}", addressing.bridge),
        bridge: addressing.bridge.clone(),
        own_pods: addressing.own_pods,
        all_pods: addressing.all_pods,
        services: addressing.services,
        bridge_is_filtered,
    }
}
