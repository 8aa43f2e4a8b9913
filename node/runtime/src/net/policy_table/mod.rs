//! Who may reach the pods of this node and whom they may reach: a table of the packet filter in which a new connection
//! of a pod that is held to anything passes only if it is among what the pod is allowed.
//!
//! ```text
//! forwarded ─ known connection? ─► accepted
//!           └ source, destination ─► held? ─ no ─► accepted
//!                                       └ class of the pod; class, other side ─► ports; ports, protocol, port ─► accepted
//!                                                                                                      else dropped
//! ```
//! Pods that are allowed the same share a class. Everything lies in maps and sets: two of them are searched by halves, the
//! others by hash, so that a packet's way is as long with a thousand policies as with one; and only the first packet of a
//! connection takes it. Egress and ingress are judged apart, each where the pod is.
//!
//! Owns one table, by its name. Promises that a change is in force as a whole or not at all, that what somebody else did
//! to the table is noticed by [`PolicyTable::check`], and that after any failure the whole table is written anew. What this
//! host itself sends to a pod or hears from one is never judged. Does not: know Kubernetes; IPv6; end connections
//! that were allowed when they began.

mod layout;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use self::layout::{Direction, Set};
use super::Error;
use super::ids::Ids;
use super::ledger::{self, Ledger};
use super::nft::{Batch, Element, Value, Verdict, contents, generation};
use super::port_forward::Transport;

type Entries = ledger::Entries<Set>;

/// Ports of the side that is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ports {
    /// Everything, also what has no ports.
    All,
    /// The ports from the first to the last one.
    Of {
        /// Their protocol.
        transport: Transport,
        /// The first.
        first: u16,
        /// The last.
        last: u16,
    },
}

/// Addresses from the first to the last one, and what is allowed with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The first.
    pub first: Ipv4Addr,
    /// The last.
    pub last: Ipv4Addr,
    /// At which ports.
    pub ports: BTreeSet<Ports>,
}

/// What pods of a class are allowed in one direction; everything else is not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// With single others.
    pub peers: BTreeMap<Ipv4Addr, BTreeSet<Ports>>,
    /// With ranges of addresses, which may overlap.
    pub blocks: Vec<Block>,
}

/// The classes of a pod; `None`: it is not held to anything in that direction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodRules {
    /// Of connections to it.
    pub ingress: Option<String>,
    /// Of those that it begins.
    pub egress: Option<String>,
}

/// Everything that the table says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyRules {
    /// By a name that stays the same while pods are of the class.
    pub classes: BTreeMap<String, Allowed>,
    /// The pods of this node that are held to anything.
    pub pods: BTreeMap<Ipv4Addr, PodRules>,
}

/// A class as it is in the kernel.
#[derive(Debug)]
struct Class {
    id: u32,
    /// The port sets that it holds.
    ports: BTreeSet<BTreeSet<Ports>>,
    entries: Entries,
}

/// See the module.
#[derive(Debug)]
pub struct PolicyTable {
    name: String,
    rules: PolicyRules,
    classes: BTreeMap<String, Class>,
    class_ids: Ids,
    /// Numbers of port sets, and how many classes hold each.
    ports: BTreeMap<BTreeSet<Ports>, (u32, usize)>,
    port_ids: Ids,
    ledger: Ledger<Set>,
    /// The packet filter's generation after our last look at it. `None`: the table has to be written anew.
    generation: Option<u32>,
}

impl PolicyTable {
    /// Nothing is in force before the first call of another function.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            rules: PolicyRules::default(),
            classes: BTreeMap::new(),
            class_ids: Ids::default(),
            ports: BTreeMap::new(),
            port_ids: Ids::default(),
            ledger: Ledger::default(),
            generation: None,
        }
    }

    /// Exactly these rules are in force from now on. After a failure the next call writes everything anew.
    pub fn set(&mut self, rules: PolicyRules) -> Result<(), Error> {
        self.ledger.begin();
        self.change(rules);
        if self.generation.is_none() {
            return self.rewrite();
        }
        let (gone, new) = self.ledger.end();
        if gone.is_empty() && new.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::on(&self.name);
        for (set, elements) in gone {
            batch.delete_elements(set.name(), &elements);
        }
        for (set, elements) in new {
            batch.add_elements(set.name(), &elements);
        }
        self.generation = None;
        match batch.commit("change") {
            Ok(()) => {
                self.generation = Some(generation()?);
                Ok(())
            }
            // Somebody else has changed the table under us.
            Err(_) => self.rewrite(),
        }
    }

    /// Forbids a pod everything in the directions named, beside what a table of an earlier life may hold: for as long as
    /// nobody knows what it is allowed. The next change writes the table anew.
    pub fn forbid(&mut self, pod: Ipv4Addr, ingress: bool, egress: bool) -> Result<(), Error> {
        self.generation = None;
        let wanted = [(Direction::Ingress, ingress), (Direction::Egress, egress)];
        let wanted =
            || wanted.into_iter().filter(|(_, is_wanted)| *is_wanted).map(|(direction, _)| direction);
        let write = |mut batch: Batch| {
            for direction in wanted() {
                let value = Value::Verdict(Verdict::Goto(direction.check_chain().to_owned()));
                let element = Element { key: pod.octets().to_vec(), value };
                batch.add_elements(Set::Held(direction).name(), &[element]);
            }
            batch.commit("forbid in")
        };
        if write(Batch::on(&self.name)).is_ok() {
            return Ok(());
        }
        let mut batch = Batch::on(&self.name);
        layout::make(&mut batch);
        write(batch)
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

    /// Takes the table away, with whatever is in it.
    pub fn remove(&mut self) -> Result<(), Error> {
        self.generation = None;
        Batch::anew(&self.name).commit("remove")
    }

    fn is_intact(&self) -> Result<bool, Error> {
        let sets = Set::OURS.map(Set::name);
        let Some(found) = contents(&self.name, &sets)? else { return Ok(false) };
        Ok(found.rules == layout::rules()
            && Set::OURS.iter().all(|set| self.ledger.has_exactly(*set, &found.keys[set.name()])))
    }

    fn rewrite(&mut self) -> Result<(), Error> {
        self.generation = None;
        let mut batch = Batch::anew(&self.name);
        layout::make(&mut batch);
        for set in Set::OURS {
            batch.add_elements(set.name(), &self.ledger.elements(set));
        }
        batch.commit("write")?;
        self.generation = Some(generation()?);
        Ok(())
    }

    fn change(&mut self, rules: PolicyRules) {
        let before: BTreeMap<Ipv4Addr, Entries> =
            self.rules.pods.iter().map(|(pod, rules)| (*pod, self.pod_entries(*pod, rules))).collect();
        for (name, allowed) in &rules.classes {
            if self.rules.classes.get(name) != Some(allowed) {
                self.change_class(name, Some(allowed));
            }
        }
        let gone: Vec<String> =
            self.rules.classes.keys().filter(|name| !rules.classes.contains_key(*name)).cloned().collect();
        let pods: BTreeSet<Ipv4Addr> = before.keys().chain(rules.pods.keys()).copied().collect();
        for pod in pods {
            let before = before.get(&pod).cloned().unwrap_or_default();
            let after = rules.pods.get(&pod).map(|rules| self.pod_entries(pod, rules)).unwrap_or_default();
            if before != after {
                self.ledger.replace(&format!("pod {pod}"), before, after);
            }
        }
        gone.iter().for_each(|name| self.change_class(name, None));
        self.rules = rules;
    }

    fn change_class(&mut self, name: &str, allowed: Option<&Allowed>) {
        let old = self.classes.remove(name);
        let id = old.as_ref().map_or_else(|| self.class_ids.take(), |old| old.id);
        let (ports, entries) = match allowed {
            Some(allowed) => self.class_entries(id, allowed),
            None => Default::default(),
        };
        let before = old.as_ref().map(|old| old.entries.clone()).unwrap_or_default();
        self.ledger.replace(&format!("class {name}"), before, entries.clone());
        old.into_iter().flat_map(|old| old.ports).for_each(|ports| self.release_ports(&ports));
        match allowed {
            Some(_) => drop(self.classes.insert(name.to_owned(), Class { id, ports, entries })),
            None => self.class_ids.give_back(id),
        }
    }

    /// What a class has in the table; holds the port sets that it needs.
    fn class_entries(&mut self, id: u32, allowed: &Allowed) -> (BTreeSet<BTreeSet<Ports>>, Entries) {
        let ranges = layout::disjoint(&allowed.blocks);
        let of_blocks = ranges.iter().map(|(_, _, ports)| ports);
        let held: BTreeSet<BTreeSet<Ports>> = allowed.peers.values().chain(of_blocks).cloned().collect();
        held.iter().for_each(|ports| self.hold_ports(ports));
        let class = layout::id_bytes(id);
        let mut entries = Entries::new();
        for (peer, ports) in &allowed.peers {
            let key = [class.clone(), peer.octets().to_vec()].concat();
            entries.insert((Set::Peers, key), Value::Bytes(layout::id_bytes(self.ports[ports].0)));
        }
        for (first, last, ports) in &ranges {
            let (begin, end) = layout::address_range(*first, *last);
            let bytes = Some(layout::id_bytes(self.ports[ports].0));
            let range = Value::Range { end: [class.clone(), end].concat(), bytes };
            entries.insert((Set::Blocks, [class.clone(), begin].concat()), range);
        }
        (held, entries)
    }

    fn pod_entries(&self, pod: Ipv4Addr, rules: &PodRules) -> Entries {
        let mut entries = Entries::new();
        let own = pod.octets();
        for (direction, class) in [(Direction::Ingress, &rules.ingress), (Direction::Egress, &rules.egress)] {
            let Some(class) = class else { continue };
            let held = Value::Verdict(Verdict::Goto(direction.check_chain().to_owned()));
            entries.insert((Set::Held(direction), own.to_vec()), held);
            entries.insert((Set::Itself, [own, own].concat()), Value::Nothing);
            // A class that nobody knows allows nothing.
            if let Some(class) = self.classes.get(class) {
                let id = Value::Bytes(layout::id_bytes(class.id));
                entries.insert((Set::Classes(direction), own.to_vec()), id);
            }
        }
        entries
    }

    fn hold_ports(&mut self, ports: &BTreeSet<Ports>) {
        if let Some((_, holders)) = self.ports.get_mut(ports) {
            *holders += 1;
            return;
        }
        let id = self.port_ids.take();
        self.ports.insert(ports.clone(), (id, 1));
        self.ledger.replace(&format!("ports {id}"), Entries::new(), port_entries(id, ports));
    }

    fn release_ports(&mut self, ports: &BTreeSet<Ports>) {
        let Some((id, holders)) = self.ports.get_mut(ports) else { return };
        *holders -= 1;
        if *holders > 0 {
            return;
        }
        let id = *id;
        self.ports.remove(ports);
        self.port_ids.give_back(id);
        self.ledger.replace(&format!("ports {id}"), port_entries(id, ports), Entries::new());
    }
}

fn port_entries(id: u32, ports: &BTreeSet<Ports>) -> Entries {
    let mut entries = Entries::new();
    for (begin, end) in layout::port_ranges(ports) {
        let range = Value::Range { end: [layout::id_bytes(id), end].concat(), bytes: None };
        entries.insert((Set::Ports, [layout::id_bytes(id), begin].concat()), range);
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, 1, last)
    }

    fn tcp(port: u16) -> BTreeSet<Ports> {
        [Ports::Of { transport: Transport::Tcp, first: port, last: port }].into()
    }

    fn rules(pods: &[u8], peers: &[u8], port: u16) -> PolicyRules {
        let allowed = Allowed {
            peers: peers.iter().map(|last| (peer(*last), tcp(port))).collect(),
            blocks: Vec::new(),
        };
        let of_pod = PodRules { ingress: Some("c".to_owned()), egress: None };
        PolicyRules {
            classes: [("c".to_owned(), allowed)].into(),
            pods: pods.iter().map(|last| (peer(*last), of_pod.clone())).collect(),
        }
    }

    fn changed(table: &mut PolicyTable, rules: PolicyRules) -> (usize, usize) {
        table.ledger.begin();
        table.change(rules);
        let (gone, new) = table.ledger.end();
        let count = |of: &[(Set, Vec<Element>)]| of.iter().map(|(_, elements)| elements.len()).sum();
        (count(&gone), count(&new))
    }

    #[test]
    fn a_change_writes_little_and_nothing_stays_behind() {
        let mut table = PolicyTable::new("t");
        // A range of ports, two peers; for the pod: held, its class, itself.
        assert_eq!(changed(&mut table, rules(&[1], &[8, 9], 80)), (0, 6));
        assert_eq!(changed(&mut table, rules(&[1], &[8, 9], 80)), (0, 0));
        assert_eq!(changed(&mut table, rules(&[1, 2], &[8, 9], 80)), (0, 3), "one more pod of the class");
        assert_eq!(changed(&mut table, rules(&[1, 2], &[8, 9, 10], 80)), (0, 1), "one more peer");
        // Other ports: another number at every peer.
        assert_eq!(changed(&mut table, rules(&[1, 2], &[8], 81)), (3 + 1, 1 + 1));
        assert_eq!(changed(&mut table, PolicyRules::default()), (6 + 1 + 1, 0));
        assert!(Set::OURS.iter().all(|set| table.ledger.elements(*set).is_empty()));
        assert!(table.ports.is_empty() && table.classes.is_empty());
    }
}
