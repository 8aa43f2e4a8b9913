//! The data path of Services: a table of the packet filter in which a new connection is led to one of the backends
//! behind the address and port that it asks for.
//!
//! ```text
//! from a pod of this node ───────────────────────────┐  frontends, ports: (address,) protocol, port ─► pool
//! from elsewhere ─ those that keep the source first ─┼─► pools: pool ─► chain for so many backends
//! from this host ────────────────────────────────────┘  endpoints: pool, random number ─► address, port
//! ```
//! Everything that differs between Services lies in maps, so that a packet's way is as long with ten thousand of
//! them as with one, and a change of one writes a few elements. Only the first packet of a connection comes here.
//!
//! Owns one table, by its name. Promises that a change is in force as a whole or not at all, that what somebody else
//! did to the table is noticed by [`ServiceTable::check`], and that after any failure the whole table is written anew.
//! Does not: know Kubernetes; IPv6.

mod layout;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use self::layout::{Chain, Set};
use super::ids::Ids;
use super::ledger::{self, Ledger};
use super::nft::{Batch, Value, Verdict, contents, generation};
use super::port_forward::Transport;
use super::{Error, Prefix};

type Entries = ledger::Entries<Set>;

/// Where connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    /// Its protocol.
    pub transport: Transport,
    /// The address; `None`: every address of this host but loopback.
    pub address: Option<Ipv4Addr>,
    /// The port.
    pub port: u16,
}

/// Whose connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everybody's. Callers that are no pods of this node are shown with this host's address.
    Everyone,
    /// Those from outside this node, which are shown as they are. Goes before `Everyone`.
    Outside,
}

/// Where a connection may be led.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The address.
    pub address: Ipv4Addr,
    /// The port.
    pub port: u16,
}

/// What callers get when there is no backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenEmpty {
    /// They are told so at once.
    #[default]
    Reject,
    /// Nothing.
    Drop,
}

/// Backends of which each connection gets one at random.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pool {
    /// They.
    pub backends: BTreeSet<Backend>,
    /// For how long a caller comes back to the backend that it had.
    pub affinity: Option<Duration>,
    /// What happens without any.
    pub when_empty: WhenEmpty,
}

/// One Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceRules {
    /// By a name that stays the same while the pool does.
    pub pools: BTreeMap<String, Pool>,
    /// Which frontends lead to which pool.
    pub frontends: BTreeMap<(Frontend, Scope), String>,
    /// Frontends with an address that only some may ask for: ranges of callers, which do not overlap. This host itself may
    /// always.
    pub callers: BTreeMap<Frontend, Vec<(Ipv4Addr, Ipv4Addr)>>,
}

/// What the table has to know of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTableConfig {
    /// The table's name.
    pub table: String,
    /// The bridge of this node's pods.
    pub bridge: String,
    /// Their addresses.
    pub own_pods: Prefix,
    /// The addresses of all nodes' pods: what goes elsewhere from a pod is shown with this host's address.
    pub all_pods: Option<Prefix>,
    /// The addresses of Services: those that none has are refused at once.
    pub services: Option<Prefix>,
    /// Whether what the bridge passes on between its ports meets the packet filter. Otherwise answers between pods of this
    /// node would go past it, and the caller has to be hidden.
    pub bridge_is_filtered: bool,
}

/// A pool as it is in the kernel.
#[derive(Debug, Clone)]
struct Slots {
    id: u32,
    backends: Vec<Backend>,
}

/// See the module.
#[derive(Debug)]
pub struct ServiceTable {
    config: ServiceTableConfig,
    services: BTreeMap<String, ServiceRules>,
    /// By service and pool.
    slots: BTreeMap<(String, String), Slots>,
    ids: Ids,
    ledger: Ledger<Set>,
    chains: BTreeSet<Chain>,
    /// The packet filter's generation after our last look at it. `None`: the table has to be written anew.
    generation: Option<u32>,
}

impl ServiceTable {
    /// Nothing is in force before the first call of another function.
    pub fn new(config: ServiceTableConfig) -> Self {
        Self {
            config,
            services: BTreeMap::new(),
            slots: BTreeMap::new(),
            ids: Ids::default(),
            ledger: Ledger::default(),
            chains: BTreeSet::new(),
            generation: None,
        }
    }

    /// What it knows of its host.
    pub fn config(&self) -> &ServiceTableConfig {
        &self.config
    }

    /// The host is another from now on; the table is written anew with the next change or check.
    pub fn set_config(&mut self, config: ServiceTableConfig) {
        if self.config == config {
            return;
        }
        self.config = config;
        self.generation = None;
        // Which backends are pods of this node may be another matter now.
        self.ledger = Ledger::default();
        let names: Vec<String> = self.services.keys().cloned().collect();
        for name in names {
            let entries = self.entries(&name);
            self.ledger.replace(&name, Entries::new(), entries);
        }
    }

    /// Changes some Services; `None`: it is gone. After a failure the next call writes everything anew.
    pub fn apply(&mut self, changes: BTreeMap<String, Option<ServiceRules>>) -> Result<(), Error> {
        self.ledger.begin();
        let mut chains = BTreeSet::new();
        for (service, rules) in changes {
            chains.extend(rules.iter().flat_map(|rules| rules.pools.values()).filter_map(Chain::of));
            self.change(&service, rules);
        }
        if self.generation.is_none() {
            return self.rewrite();
        }
        let (gone, new) = self.ledger.end();
        if gone.is_empty() && new.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::on(&self.config.table);
        let chains: Vec<Chain> = chains.difference(&self.chains).copied().collect();
        chains.iter().for_each(|chain| layout::add_chain(&mut batch, *chain));
        for (set, elements) in gone {
            batch.delete_elements(set.name(), &elements);
        }
        for (set, elements) in new {
            batch.add_elements(set.name(), &elements);
        }
        self.generation = None;
        match batch.commit("change") {
            Ok(()) => {
                self.chains.extend(chains);
                self.generation = Some(generation()?);
                Ok(())
            }
            // Somebody else has changed the table under us.
            Err(_) => self.rewrite(),
        }
    }

    /// Looks whether the table is as it should be, and makes it so. Says whether it had to.
    pub fn check(&mut self) -> Result<bool, Error> {
        let now = generation()?;
        match self.generation {
            Some(known) if known == now => Ok(false),
            Some(_) if self.is_intact()? => {
                self.generation = Some(now);
                Ok(false)
            }
            _ => self.rewrite().map(|()| true),
        }
    }

    /// Takes the table away.
    pub fn remove(&mut self) -> Result<(), Error> {
        self.generation = None;
        Batch::anew(&self.config.table).commit("remove")
    }

    fn is_intact(&self) -> Result<bool, Error> {
        let sets = Set::OURS.map(Set::name);
        let Some(found) = contents(&self.config.table, &sets)? else { return Ok(false) };
        let rules = layout::rules(&self.config, &self.chains);
        Ok(found.rules == rules
            && Set::OURS.iter().all(|set| self.ledger.has_exactly(*set, &found.keys[set.name()])))
    }

    fn rewrite(&mut self) -> Result<(), Error> {
        self.generation = None;
        let chains = self.wanted_chains();
        let mut batch = Batch::anew(&self.config.table);
        layout::make(&mut batch, &self.config);
        chains.iter().for_each(|chain| layout::add_chain(&mut batch, *chain));
        for set in Set::OURS {
            batch.add_elements(set.name(), &self.ledger.elements(set));
        }
        batch.commit("write")?;
        self.chains = chains;
        self.generation = Some(generation()?);
        Ok(())
    }

    fn wanted_chains(&self) -> BTreeSet<Chain> {
        let pools = self.services.values().flat_map(|rules| rules.pools.values());
        pools.filter_map(Chain::of).collect()
    }

    fn change(&mut self, service: &str, rules: Option<ServiceRules>) {
        let before = self.entries(service);
        let old = match &rules {
            Some(rules) => self.services.insert(service.to_owned(), rules.clone()),
            None => self.services.remove(service),
        };
        let known = |rules: &Option<ServiceRules>, pool: &String| {
            rules.as_ref().is_some_and(|rules| rules.pools.contains_key(pool))
        };
        for pool in old.iter().flat_map(|old| old.pools.keys()).filter(|pool| !known(&rules, pool)) {
            if let Some(slots) = self.slots.remove(&(service.to_owned(), pool.clone())) {
                self.ids.give_back(slots.id);
            }
        }
        for (name, pool) in rules.iter().flat_map(|rules| &rules.pools) {
            let slots = self
                .slots
                .entry((service.to_owned(), name.clone()))
                .or_insert_with(|| Slots { id: self.ids.take(), backends: Vec::new() });
            slots.fill(&pool.backends);
        }
        let after = self.entries(service);
        self.ledger.replace(service, before, after);
    }

    /// Everything that a Service has in the table.
    fn entries(&self, service: &str) -> Entries {
        let mut entries = Entries::new();
        let Some(rules) = self.services.get(service) else { return entries };
        for (name, pool) in &rules.pools {
            if let Some(slots) = self.slots.get(&(service.to_owned(), name.clone())) {
                self.pool_entries(pool, slots, &mut entries);
            }
        }
        for ((frontend, scope), name) in &rules.frontends {
            let slots = self.slots.get(&(service.to_owned(), name.clone()));
            let (Some(pool), Some(slots)) = (rules.pools.get(name), slots) else { continue };
            let key = layout::frontend_key(frontend);
            let is_port = frontend.address.is_none();
            if pool.backends.is_empty() && pool.when_empty == WhenEmpty::Reject {
                let rejected = Value::Verdict(Verdict::Goto(layout::REJECT.to_owned()));
                entries.insert((Set::dead(is_port), key), rejected);
            } else {
                entries
                    .insert((Set::frontends(is_port, *scope), key), Value::Bytes(layout::id_bytes(slots.id)));
            }
        }
        for (frontend, callers) in &rules.callers {
            let guarded = Value::Verdict(Verdict::Goto(layout::GUARD.to_owned()));
            entries.insert((Set::Guarded, layout::frontend_key(frontend)), guarded);
            for range in callers {
                let (begin, end) = layout::caller_range(frontend, *range);
                entries.insert((Set::Callers, begin), Value::Range { end, bytes: None });
            }
        }
        entries
    }

    fn pool_entries(&self, pool: &Pool, slots: &Slots, entries: &mut Entries) {
        let id = layout::id_bytes(slots.id);
        let verdict = match Chain::of(pool) {
            Some(chain) => Verdict::Goto(chain.name()),
            None if pool.when_empty == WhenEmpty::Drop => Verdict::Drop,
            None => return,
        };
        entries.insert((Set::Pools, id.clone()), Value::Verdict(verdict));
        for (index, backend) in slots.backends.iter().enumerate() {
            let place = layout::backend_bytes(backend);
            let index = layout::id_bytes(index as u32);
            entries.insert((Set::Endpoints, [id.clone(), index].concat()), Value::Bytes(place.clone()));
            if pool.affinity.is_some() {
                entries.insert((Set::Members, [id.clone(), place].concat()), Value::Nothing);
            }
            if self.config.own_pods.contains(IpAddr::V4(backend.address)) {
                let own = backend.address.octets();
                entries.insert((Set::Hairpins, [own, own].concat()), Value::Nothing);
            }
        }
    }
}

impl Slots {
    /// Holds exactly these from now on; those that stay keep their places as far as possible.
    fn fill(&mut self, wanted: &BTreeSet<Backend>) {
        let held: BTreeSet<Backend> = self.backends.iter().copied().collect();
        let mut fresh = wanted.difference(&held).copied();
        let mut index = 0;
        while index < self.backends.len() {
            if wanted.contains(&self.backends[index]) {
                index += 1;
            } else if let Some(backend) = fresh.next() {
                self.backends[index] = backend;
                index += 1;
            } else {
                self.backends.swap_remove(index);
            }
        }
        self.backends.extend(fresh);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::nft::Element;

    fn backend(last: u8) -> Backend {
        Backend { address: Ipv4Addr::new(10, 244, 1, last), port: 80 }
    }

    #[test]
    fn backends_that_stay_keep_their_places() {
        let mut slots = Slots { id: 1, backends: [1, 2, 3, 4].map(backend).to_vec() };
        slots.fill(&[1, 3, 4, 5].map(backend).into());
        assert_eq!(slots.backends, [1, 5, 3, 4].map(backend));
        slots.fill(&[3, 4].map(backend).into());
        assert_eq!(slots.backends, [4, 3].map(backend), "the last ones fill the gaps");
        slots.fill(&[3, 4, 9].map(backend).into());
        assert_eq!(slots.backends, [4, 3, 9].map(backend));
        slots.fill(&BTreeSet::new());
        assert!(slots.backends.is_empty());
    }

    fn table() -> ServiceTable {
        ServiceTable::new(ServiceTableConfig {
            table: "t".to_owned(),
            bridge: "br".to_owned(),
            own_pods: "10.244.1.0/24".parse().unwrap(),
            all_pods: None,
            services: None,
            bridge_is_filtered: true,
        })
    }

    fn rules(backends: &[u8], port: u16) -> ServiceRules {
        let pool = Pool { backends: backends.iter().copied().map(backend).collect(), ..Pool::default() };
        let address = Some(Ipv4Addr::new(10, 96, 0, 9));
        let frontend = Frontend { transport: Transport::Tcp, address, port };
        ServiceRules {
            pools: [("p".to_owned(), pool)].into(),
            frontends: [((frontend, Scope::Everyone), "p".to_owned())].into(),
            callers: BTreeMap::new(),
        }
    }

    fn changed(table: &mut ServiceTable, service: &str, rules: Option<ServiceRules>) -> (usize, usize) {
        table.ledger.begin();
        table.change(service, rules);
        let (gone, new) = table.ledger.end();
        let count = |of: &[(Set, Vec<Element>)]| of.iter().map(|(_, elements)| elements.len()).sum();
        (count(&gone), count(&new))
    }

    #[test]
    fn a_change_writes_little_and_everything_goes_with_the_service() {
        let mut table = table();
        // The frontend, the pool, three backends and that they are pods of this node.
        assert_eq!(changed(&mut table, "s", Some(rules(&[1, 2, 3], 80))), (0, 8));
        assert_eq!(changed(&mut table, "s", Some(rules(&[1, 2, 3], 80))), (0, 0));
        // One backend for another: its place, and that it is of this node.
        assert_eq!(changed(&mut table, "s", Some(rules(&[1, 2, 4], 80))), (2, 2));
        // Nobody is left: the frontend is refused.
        assert_eq!(changed(&mut table, "s", Some(rules(&[], 80))), (8, 1));
        assert_eq!(changed(&mut table, "s", None), (1, 0));
        assert!(table.slots.is_empty() && table.ids.free() == [1]);
    }

    #[test]
    fn another_host_is_another_table() {
        let mut table = table();
        changed(&mut table, "s", Some(rules(&[1, 2], 80)));
        assert_eq!(table.ledger.elements(Set::Hairpins).len(), 2);
        let own_pods = "10.244.9.0/24".parse().unwrap();
        table.set_config(ServiceTableConfig { own_pods, ..table.config().clone() });
        assert!(table.ledger.elements(Set::Hairpins).is_empty());
        assert_eq!(table.ledger.elements(Set::Endpoints).len(), 2);
        assert_eq!(changed(&mut table, "s", None), (4, 0));
    }

    #[test]
    fn of_two_that_claim_the_same_frontend_one_has_it() {
        let mut table = table();
        changed(&mut table, "b", Some(rules(&[1], 80)));
        // The other one's frontend takes the place of the first one's.
        assert_eq!(changed(&mut table, "a", Some(rules(&[2], 80))), (1, 4));
        assert_eq!(changed(&mut table, "a", None), (4, 1));
        assert_eq!(changed(&mut table, "b", None), (4, 0));
        assert!(Set::OURS.iter().all(|set| table.ledger.elements(*set).is_empty()));
    }
}
