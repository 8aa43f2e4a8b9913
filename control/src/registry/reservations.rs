//! What only one object may have: the addresses and node ports of Services, and the addresses that others reach them at.
//!
//! Owns the keys beside the objects, `/reservations/<what>/<which>`, each naming its holder. They are written and
//! removed in the very transaction that writes or removes their object, so that none leaks and no two objects
//! have the same. What an object reserves follows from the object alone ([`of`]); what it lacks is drawn at
//! random from what seems free, and drawn anew if somebody was faster. Service addresses and node ports are
//! those of Kubernetes' API reference (Service, `spec.clusterIP`, `spec.ports[*].nodePort`).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use api::{Cause, Kind, Status, object};
use bytes::Bytes;
use raft_store::chance;
use rand::Rng as _;
use serde_json::{Value, json};

use super::{Registry, error};
use crate::config::Cidr;
use crate::object_store::{Condition, Consistency, Mutation, ObjectStore, StoredObject};

const PREFIX: &[u8] = b"/reservations/";
const ADDRESSES: &str = "/reservations/service-addresses/";
const NODE_PORTS: &str = "/reservations/node-ports/";
const BALANCERS: &str = "/reservations/load-balancer-addresses/";
/// The class of Services whose addresses are given here, beside those without any.
pub(crate) const BALANCER_CLASS: &str = "barque.io/address-pool";
/// What stands for a service without an address of its own.
const HEADLESS: &str = "None";
/// How many are looked at for one that is free before giving up.
const LOOKS_MAX: usize = 4096;
/// How many ports a Service has at most where nobody said how many it will have.
const PORTS_USUAL_MAX: usize = 32;
/// How many spare ones are drawn beside those needed, for when somebody is faster.
const SPARE: usize = 4;

/// From where Services get their addresses and ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRanges {
    /// Addresses inside the cluster.
    pub addresses: Cidr,
    /// Ports of the nodes.
    pub node_ports: RangeInclusive<u16>,
}

impl Default for ServiceRanges {
    fn default() -> Self {
        let addresses = Cidr { address: Ipv4Addr::new(10, 96, 0, 0).into(), prefix: 16 };
        Self { addresses, node_ports: 30_000..=32_767 }
    }
}

impl ServiceRanges {
    /// The first address, which is the API's own.
    pub fn first(&self) -> IpAddr {
        self.nth(1)
    }

    /// The tenth address, at which nodes answer for names; `None`: there are not so many.
    pub fn tenth(&self) -> Option<IpAddr> {
        (self.count() >= 10).then(|| self.nth(10))
    }

    fn nth(&self, offset: u128) -> IpAddr {
        match self.addresses.address {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() | offset as u32).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() | offset).into(),
        }
    }

    /// How many addresses there are to give out: all but the network's own, and IPv4's last.
    fn count(&self) -> u128 {
        let bits = if self.addresses.address.is_ipv4() { 32 } else { 128 };
        let all = 1_u128.checked_shl(bits - u32::from(self.addresses.prefix)).unwrap_or(u128::MAX);
        all.saturating_sub(2).max(1)
    }

    fn contains(&self, address: IpAddr) -> bool {
        let (first, bits) = (to_bits(self.addresses.address), if address.is_ipv4() { 32 } else { 128 });
        let mask = u128::MAX.checked_shl(bits - u32::from(self.addresses.prefix)).unwrap_or(0);
        address.is_ipv4() == self.addresses.address.is_ipv4() && to_bits(address) & mask == first & mask
    }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn is_service(kind: &Kind) -> bool {
    kind.kind == "Service" && kind.group.is_empty()
}

/// The keys that an object has to itself.
pub(super) fn of(kind: &Kind, object: &Value) -> BTreeSet<Bytes> {
    if !is_service(kind) {
        return BTreeSet::new();
    }
    let spec = &object["spec"];
    let addresses = spec["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let addresses = addresses.filter_map(|text| text.parse::<IpAddr>().ok());
    let mut keys: BTreeSet<Bytes> =
        addresses.map(|address| Bytes::from(format!("{ADDRESSES}{address}"))).collect();
    for port in spec["ports"].as_array().into_iter().flatten() {
        let Some(number) = port["nodePort"].as_u64().filter(|number| *number > 0) else { continue };
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        keys.insert(Bytes::from(format!("{NODE_PORTS}{protocol}/{number}")));
    }
    if let Some(number) = spec["healthCheckNodePort"].as_u64().filter(|number| *number > 0) {
        keys.insert(Bytes::from(format!("{NODE_PORTS}TCP/{number}")));
    }
    if spec["type"] == "LoadBalancer"
        && spec["loadBalancerClass"].as_str().is_none_or(|class| class == BALANCER_CLASS)
    {
        let given = object["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
        let given = given.filter_map(|ingress| ingress["ip"].as_str()?.parse::<IpAddr>().ok());
        keys.extend(given.map(|address| Bytes::from(format!("{BALANCERS}{address}"))));
    }
    keys
}

/// What a write must demand and do beside the object itself, so that it has what it reserves and nothing else.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) conditions: Vec<Condition>,
    pub(super) mutations: Vec<Mutation>,
}

/// From what is to what will be; `None` where there is no object.
pub(super) fn change(kind: &Kind, old: Option<&Value>, new: Option<&Value>) -> Change {
    let before = old.map(|old| of(kind, old)).unwrap_or_default();
    let after = new.map(|new| of(kind, new)).unwrap_or_default();
    let mut change = Change::default();
    for key in before.difference(&after) {
        change.mutations.push(Mutation::Delete { key: key.clone() });
    }
    let holder = new.map(object::key).unwrap_or_default();
    for key in after.difference(&before) {
        change.conditions.push(Condition::Absent { key: key.clone() });
        change.mutations.push(Mutation::Put { key: key.clone(), value: Bytes::from(holder.clone()) });
    }
    change
}

/// What seemed free a moment ago, to be given to one object.
#[derive(Debug, Default)]
pub(super) struct Free {
    addresses: Vec<IpAddr>,
    node_ports: Vec<u16>,
}

impl Registry {
    /// Looks for what the object may need.
    pub(super) async fn free_for(&self, kind: &Kind, object: &Value) -> Result<Free, Status> {
        let mut free = Free::default();
        if !is_service(kind) || object["spec"]["type"] == "ExternalName" {
            return Ok(free);
        }
        let ranges = self.service_ranges().clone();
        let count = ranges.count();
        let start = chance::rng().random_range(0..count);
        for step in 0..LOOKS_MAX.min(usize::try_from(count).unwrap_or(LOOKS_MAX)) {
            let address = ranges.nth(1 + (start + step as u128) % count);
            if address != ranges.first() && self.is_free(format!("{ADDRESSES}{address}")).await? {
                free.addresses.push(address);
                if free.addresses.len() == SPARE {
                    break;
                }
            }
        }
        let (low, high) = (*ranges.node_ports.start(), *ranges.node_ports.end());
        let span = usize::from(high - low) + 1;
        let wanted = object["spec"]["ports"].as_array().map_or(0, Vec::len).max(PORTS_USUAL_MAX) + SPARE;
        let start = chance::rng().random_range(0..span);
        for step in 0..LOOKS_MAX.min(span) {
            let port = low + ((start + step) % span) as u16;
            let mut is_free = true;
            for protocol in ["SCTP", "TCP", "UDP"] {
                is_free &= self.is_free(format!("{NODE_PORTS}{protocol}/{port}")).await?;
            }
            if is_free {
                free.node_ports.push(port);
                if free.node_ports.len() == wanted {
                    break;
                }
            }
        }
        Ok(free)
    }

    async fn is_free(&self, key: String) -> Result<bool, Status> {
        let found = self.store().get(Bytes::from(key), Consistency::Serializable).await;
        Ok(found.map_err(error::from_store)?.0.is_none())
    }

    /// Gives a Service what it lacks and takes from it what its type does not have. What the old one has
    /// stays with it.
    pub(super) fn reserve(
        &self,
        kind: &Kind,
        old: Option<&Value>,
        new: &mut Value,
        free: &mut Free,
    ) -> Result<(), Status> {
        if !is_service(kind) {
            return Ok(());
        }
        let mut causes = Vec::new();
        addresses(self.service_ranges(), old, new, free, &mut causes);
        node_ports(self.service_ranges(), old, new, free, &mut causes);
        match causes.is_empty() {
            true => Ok(()),
            false => Err(Status::invalid(kind, object::name(new), causes)),
        }
    }
}

fn text<'a>(spec: &'a Value, field: &str) -> &'a str {
    spec[field].as_str().unwrap_or_default()
}

fn addresses(
    ranges: &ServiceRanges,
    old: Option<&Value>,
    new: &mut Value,
    free: &mut Free,
    causes: &mut Vec<Cause>,
) {
    let is_external = new["spec"]["type"] == "ExternalName";
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if is_external {
        let had = old.is_some_and(|old| old["spec"]["type"] != "ExternalName");
        if had {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec.remove(field);
            }
        }
        return;
    }
    let wanted = spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default();
    let first = spec.get("clusterIPs").and_then(|ips| ips[0].as_str()).unwrap_or_default();
    let kept = old.map(|old| text(&old["spec"], "clusterIP")).unwrap_or_default();
    let chosen =
        [wanted, first, kept].into_iter().find(|text| !text.is_empty()).unwrap_or_default().to_owned();
    let chosen = match chosen.as_str() {
        HEADLESS => chosen,
        "" => match free.addresses.pop() {
            Some(address) => address.to_string(),
            None => {
                let why = "failed to allocate a serviceIP: range is full";
                return causes.push(Cause::invalid("spec.clusterIPs", "", why));
            }
        },
        text => match text.parse::<IpAddr>() {
            Ok(address) if ranges.contains(address) || kept == text => address.to_string(),
            Ok(address) => {
                let why = format!(
                    "failed to allocate IP {address}: the provided network does not match the current range: the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
                    ranges.addresses
                );
                return causes.push(Cause::invalid("spec.clusterIPs", json!([text]), &why));
            }
            // Validation says what is wrong with it.
            Err(_) => return,
        },
    };
    let is_v4 = chosen.parse::<IpAddr>().map_or(ranges.addresses.address.is_ipv4(), |ip| ip.is_ipv4());
    spec.insert("clusterIPs".to_owned(), json!([chosen]));
    spec.insert("clusterIP".to_owned(), Value::from(chosen));
    if spec.get("ipFamilies").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        spec.insert("ipFamilies".to_owned(), json!([if is_v4 { "IPv4" } else { "IPv6" }]));
    }
    spec.entry("ipFamilyPolicy").or_insert_with(|| Value::from("SingleStack"));
}

fn node_ports(
    ranges: &ServiceRanges,
    old: Option<&Value>,
    new: &mut Value,
    free: &mut Free,
    causes: &mut Vec<Cause>,
) {
    let spec = &new["spec"];
    let balanced = text(spec, "type") == "LoadBalancer";
    let allocates = text(spec, "type") == "NodePort"
        || (balanced && spec["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true));
    let has_ports = allocates || balanced;
    let checks = balanced && text(spec, "externalTrafficPolicy") == "Local";
    let known: Vec<Value> = old.and_then(|old| old["spec"]["ports"].as_array().cloned()).unwrap_or_default();
    let check_port = old.and_then(|old| old["spec"]["healthCheckNodePort"].as_u64());
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let ports = spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten();
    for (index, port) in ports.filter_map(Value::as_object_mut).enumerate() {
        if !has_ports {
            // A type without node ports gives back those it had; asking for one is refused by validation.
            let had = port.get("nodePort").filter(|own| known.iter().any(|old| old["nodePort"] == **own));
            if had.is_some() {
                port.remove("nodePort");
            }
            continue;
        }
        let field = format!("spec.ports[{index}].nodePort");
        if let Some(number) = port.get("nodePort").and_then(Value::as_u64).filter(|number| *number > 0) {
            causes.extend(outside(ranges, &field, number));
        } else if allocates {
            let same = known
                .iter()
                .find(|old| old["port"] == port["port"] && old.get("protocol") == port.get("protocol"));
            let kept = same.and_then(|old| old["nodePort"].as_u64()).filter(|number| *number > 0);
            match kept.or_else(|| free.node_ports.pop().map(u64::from)) {
                Some(number) => drop(port.insert("nodePort".to_owned(), Value::from(number))),
                None => causes.push(Cause::invalid(field, 0, "failed to allocate a nodePort: range is full")),
            }
        }
    }
    if !checks {
        spec.remove("healthCheckNodePort");
    } else if spec.get("healthCheckNodePort").and_then(Value::as_u64).unwrap_or(0) == 0
        && let Some(port) = check_port.or_else(|| free.node_ports.pop().map(u64::from))
    {
        spec.insert("healthCheckNodePort".to_owned(), Value::from(port));
    }
}

/// Why a node port that was asked for cannot be given, if it lies outside the range.
fn outside(ranges: &ServiceRanges, field: &str, number: u64) -> Option<Cause> {
    let (low, high) = (ranges.node_ports.start(), ranges.node_ports.end());
    let is_inside = u16::try_from(number).is_ok_and(|number| ranges.node_ports.contains(&number));
    let why = format!("provided port is not in the valid range. The range of valid ports is {low}-{high}");
    (!is_inside).then(|| Cause::invalid(field, number, &why))
}

/// The key that another object has, if that is why a write failed.
pub(super) fn refused(conditions: &[Condition], current: &[Option<StoredObject>]) -> Option<Bytes> {
    conditions.iter().zip(current).find_map(|(condition, found)| match (condition, found) {
        (Condition::Absent { key }, Some(_)) if key.starts_with(PREFIX) => Some(key.clone()),
        _ => None,
    })
}

/// The refusal of what another object has.
pub(super) fn taken(kind: &Kind, name: &str, key: &[u8]) -> Status {
    let key = String::from_utf8_lossy(key);
    if let Some(address) = key.strip_prefix(BALANCERS) {
        let why = format!("another Service has {address}");
        let field = "status.loadBalancer.ingress[0].ip";
        return Status::invalid(kind, name, vec![Cause::invalid(field, address, &why)]);
    }
    let cause = match (key.strip_prefix(ADDRESSES), key.strip_prefix(NODE_PORTS)) {
        (Some(address), _) => Cause::invalid(
            "spec.clusterIPs",
            json!([address]),
            &format!("failed to allocate IP {address}: provided IP is already allocated"),
        ),
        (None, Some(port)) => {
            let number = port.rsplit('/').next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
            Cause::invalid("spec.ports[0].nodePort", number, "provided port is already allocated")
        }
        (None, None) => Cause::forbidden("spec", &format!("{key} belongs to another object")),
    };
    Status::invalid(kind, name, vec![cause])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object_store::SharedStore;
    use crate::object_store::memory::MemoryStore;
    use crate::registry::{DeleteOptions, Target, WriteOptions, bootstrap_namespaces};
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    fn kind() -> &'static Kind {
        api::kinds::by_kind("", "v1", "Service").expect("a kind")
    }

    async fn registry(prefix: u8, node_ports: RangeInclusive<u16>) -> Registry {
        let store = SharedStore::new(MemoryStore::new());
        let addresses = Cidr { address: Ipv4Addr::new(10, 96, 0, 0).into(), prefix };
        let ranges = ServiceRanges { addresses, node_ports };
        let registry = Registry::with_ranges(store, ranges, TaskTracker::new(), CancellationToken::new());
        bootstrap_namespaces(&registry).await.expect("namespaces");
        registry
    }

    fn service(name: &str, spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        object
    }

    async fn create(registry: &Registry, name: &str, spec: Value) -> Result<Value, String> {
        let options = WriteOptions::default();
        let made = registry.create(kind(), "default", service(name, spec), &options).await;
        made.map(|made| made.object.value()["spec"].clone()).map_err(|why| why.message().to_owned())
    }

    async fn reserved(registry: &Registry) -> usize {
        let request = crate::object_store::ListRequest {
            prefix: Bytes::from_static(b"/reservations/"),
            after: None,
            limit: None,
            revision: None,
            consistency: Consistency::Linearizable,
        };
        registry.store().list(request).await.expect("a list").items.len()
    }

    #[tokio::test]
    async fn addresses_and_ports_are_given_out_once_and_come_back() {
        let registry = registry(29, 30_000..=30_002).await;
        let mut seen = BTreeSet::new();
        for index in 0..5 {
            let spec = create(&registry, &format!("s{index}"), json!({})).await.expect("room");
            assert_eq!(
                (&spec["ipFamilies"], &spec["ipFamilyPolicy"]),
                (&json!(["IPv4"]), &json!("SingleStack"))
            );
            assert!(seen.insert(spec["clusterIP"].as_str().unwrap_or_default().to_owned()), "{seen:?}");
        }
        let full = create(&registry, "s5", json!({})).await.expect_err("the first address is the API's");
        assert!(full.contains("range is full"), "{full}");
        let delete = DeleteOptions::default();
        registry.delete(Target::new(kind(), "default", "s0"), &delete).await.expect("deleted");
        create(&registry, "s5", json!({})).await.expect("one came back");
        assert_eq!(reserved(&registry).await, 5);
    }

    #[tokio::test]
    async fn what_was_asked_for_is_given_or_refused() {
        let registry = registry(24, 30_000..=30_010).await;
        let asked = json!({"clusterIP": "10.96.0.10", "type": "NodePort", "ports": [{"port": 80, "nodePort": 30_005}]});
        let spec = create(&registry, "a", asked).await.expect("free");
        assert_eq!(spec["clusterIPs"], json!(["10.96.0.10"]));
        let twice = create(&registry, "b", json!({"clusterIP": "10.96.0.10"})).await.expect_err("taken");
        assert!(twice.contains("provided IP is already allocated"), "{twice}");
        let port = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_005}]});
        let twice = create(&registry, "b", port).await.expect_err("taken");
        assert!(twice.contains("provided port is already allocated"), "{twice}");
        let outside = create(&registry, "b", json!({"clusterIP": "10.97.0.1"})).await.expect_err("outside");
        assert!(outside.contains("The range of valid IPs is 10.96.0.0/24"), "{outside}");
        let low = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]});
        let low = create(&registry, "b", low).await.expect_err("outside");
        assert!(low.contains("The range of valid ports is 30000-30010"), "{low}");
        let none = create(&registry, "b", json!({"clusterIP": "None"})).await.expect("headless");
        assert_eq!(none["clusterIPs"], json!(["None"]));
        assert_eq!(reserved(&registry).await, 2);
    }

    #[tokio::test]
    async fn a_changed_type_takes_and_gives_back() {
        let registry = registry(24, 30_000..=30_010).await;
        let before = create(&registry, "a", json!({})).await.expect("free");
        let change = async |kind_of: &str| {
            let target = Target::new(kind(), "default", "a");
            let changed = registry
                .modify(target, &WriteOptions::default(), |service| {
                    service["spec"]["type"] = json!(kind_of);
                    if kind_of == "ExternalName" {
                        service["spec"]["externalName"] = json!("a.example");
                    }
                    Ok(())
                })
                .await
                .expect("changed");
            changed.object.value()["spec"].clone()
        };
        let with_port = change("NodePort").await;
        assert_eq!(with_port["clusterIP"], before["clusterIP"]);
        assert!(with_port["ports"][0]["nodePort"].as_u64().is_some_and(|port| port >= 30_000));
        let again = change("LoadBalancer").await;
        assert_eq!(again["ports"][0]["nodePort"], with_port["ports"][0]["nodePort"]);
        assert_eq!(reserved(&registry).await, 2);
        let plain = change("ClusterIP").await;
        assert!(plain["ports"][0].get("nodePort").is_none(), "{plain}");
        assert_eq!(reserved(&registry).await, 1);
        let external = change("ExternalName").await;
        assert!(external.get("clusterIP").is_none(), "{external}");
        assert_eq!(reserved(&registry).await, 0);
    }

    #[tokio::test]
    async fn writers_at_once_never_get_the_same() {
        let registry = registry(27, 30_000..=30_050).await;
        let made = (0..25).map(|index| {
            let registry = registry.clone();
            async move { create(&registry, &format!("s{index}"), json!({"type": "NodePort"})).await }
        });
        let made: Vec<_> = futures_util::future::join_all(made).await;
        let addresses: BTreeSet<String> = made
            .iter()
            .filter_map(|spec| Some(spec.as_ref().ok()?["clusterIP"].as_str()?.to_owned()))
            .collect();
        assert_eq!(addresses.len(), 25, "{made:?}");
    }
}
