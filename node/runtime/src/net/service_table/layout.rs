//! The table's sets, chains and rules: everything in it that does not depend on which Services there are, but for
//! one chain for each number of backends that some pool has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::{Backend, Frontend, Pool, Scope, ServiceTableConfig};
use crate::net::Prefix;
use crate::net::nft::{
    Batch, Bytes, ConnectionState, FORWARD, Header, Hook, LOCAL_OUT, Mapped, Meta, POST_ROUTING, PRE_ROUTING,
    PRIORITY_DESTINATION_NAT, PRIORITY_FILTER, PRIORITY_SOURCE_NAT, Register, Rule, SetSpec, Verdict,
};

/// The chain that tells callers that nobody is there.
pub(super) const REJECT: &str = "reject";
const FROM_PODS: &str = "from-pods";
/// The chain that lets some callers pass.
pub(super) const GUARD: &str = "guard";
const AFFINITY: &str = "affinity";
/// Callers that are remembered at once; more than that are led anywhere.
const AFFINITY_CALLERS_MAX: u32 = 1 << 20;
/// The bit of a packet's mark that says that its source is to be hidden. The others hold the pool's number
/// between the rule that finds the pool and the one that finds the backend.
const HIDE_SOURCE: u32 = 1 << 31;
const PRIORITY_BEFORE_NAT: i32 = PRIORITY_DESTINATION_NAT - 10;
const SOURCE_OFFSET: u32 = 12;
const DESTINATION_OFFSET: u32 = 16;
const ALL_BITS: [u8; 4] = [0xff; 4];
const NO_BITS: [u8; 4] = [0; 4];

const R0: Register = Register::new(0);
const R1: Register = Register::new(1);
const R2: Register = Register::new(2);
const R3: Register = Register::new(3);
const R4: Register = Register::new(4);
const R5: Register = Register::new(5);
const R6: Register = Register::new(6);
const R7: Register = Register::new(7);

/// Sets and maps that this program fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Set {
    /// address, protocol, port ─► pool
    Frontends,
    /// The same for connections from outside this node; looked at first.
    FrontendsOutside,
    /// protocol, port ─► pool
    Ports,
    PortsOutside,
    /// pool ─► chain
    Pools,
    /// pool, number ─► address, port
    Endpoints,
    /// pool, address, port, of pools that callers come back to
    Members,
    /// A pod of this node that calls itself.
    Hairpins,
    /// address, protocol, port with nobody behind ─► chain
    Dead,
    DeadPorts,
    /// address, protocol, port that not everybody may ask for ─► chain
    Guarded,
    /// address, protocol, port, range of callers that may
    Callers,
}

impl Set {
    pub(super) const OURS: [Self; 12] = [
        Self::Frontends,
        Self::FrontendsOutside,
        Self::Ports,
        Self::PortsOutside,
        Self::Pools,
        Self::Endpoints,
        Self::Members,
        Self::Hairpins,
        Self::Dead,
        Self::DeadPorts,
        Self::Guarded,
        Self::Callers,
    ];

    pub(super) fn frontends(is_port: bool, scope: Scope) -> Self {
        match (is_port, scope) {
            (false, Scope::Everyone) => Self::Frontends,
            (false, Scope::Outside) => Self::FrontendsOutside,
            (true, Scope::Everyone) => Self::Ports,
            (true, Scope::Outside) => Self::PortsOutside,
        }
    }

    pub(super) fn dead(is_port: bool) -> Self {
        if is_port { Self::DeadPorts } else { Self::Dead }
    }

    pub(super) fn name(self) -> &'static str {
        self.spec().name
    }

    fn spec(self) -> SetSpec {
        let id = Mapped::Bytes(4);
        let (name, key_bytes, mapped) = match self {
            Self::Frontends => ("frontends", 12, id),
            Self::FrontendsOutside => ("frontends-outside", 12, id),
            Self::Ports => ("ports", 8, id),
            Self::PortsOutside => ("ports-outside", 8, id),
            Self::Pools => ("pools", 4, Mapped::Verdicts),
            Self::Endpoints => ("endpoints", 8, Mapped::Bytes(8)),
            Self::Members => ("members", 12, Mapped::Nothing),
            Self::Hairpins => ("hairpins", 8, Mapped::Nothing),
            Self::Dead => ("dead", 12, Mapped::Verdicts),
            Self::DeadPorts => ("dead-ports", 8, Mapped::Verdicts),
            Self::Guarded => ("guarded", 12, Mapped::Verdicts),
            Self::Callers => ("callers", 20, Mapped::Nothing),
        };
        SetSpec { name, key_bytes, mapped, remembers: None, of_ranges: self == Self::Callers }
    }
}

/// A chain that chooses among so many backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Chain {
    backends: u32,
    affinity_s: Option<u64>,
}

impl Chain {
    /// `None`: there is nothing to choose.
    pub(super) fn of(pool: &Pool) -> Option<Self> {
        let backends = u32::try_from(pool.backends.len()).ok().filter(|count| *count > 0)?;
        Some(Self { backends, affinity_s: pool.affinity.map(|timeout| timeout.as_secs().max(1)) })
    }

    pub(super) fn name(self) -> String {
        match self.affinity_s {
            None => format!("pool-{}", self.backends),
            Some(timeout) => format!("pool-{}-{timeout}s", self.backends),
        }
    }

    fn rules(self) -> Vec<Rule> {
        let drop = || Rule::default().verdict(&Verdict::Drop);
        let chosen = || pool_into(Rule::default(), R0).random(self.backends, R1).look_up("endpoints", R0, R5);
        let Some(timeout) = self.affinity_s.map(Duration::from_secs) else {
            // Between two looks the maps may have changed: the caller's next packet finds them as they are then.
            return vec![lead(chosen()), drop()];
        };
        let caller = pool_into(Rule::default(), R2).load_bytes(source(), R3);
        let known = pool_into(caller.look_up(AFFINITY, R2, R5), R4).among("members", R4);
        let remembered = |rule: Rule| lead(rule.remember(AFFINITY, (R2, R5), timeout));
        let first_time = pool_into(chosen(), R2).load_bytes(source(), R3);
        vec![remembered(known), remembered(first_time), lead(chosen()), drop()]
    }
}

/// The number of the packet's pool.
fn pool_into(rule: Rule, register: Register) -> Rule {
    let of_pool = (!HIDE_SOURCE).to_ne_bytes();
    rule.load_meta(Meta::Mark, register).bits(register, register, (of_pool, NO_BITS))
}

/// To the address and port in the fifth and sixth register; of the mark only that the source is hidden stays.
fn lead(rule: Rule) -> Rule {
    rule.load_meta(Meta::Mark, R7)
        .bits(R7, R7, (HIDE_SOURCE.to_ne_bytes(), NO_BITS))
        .set_meta(Meta::Mark, R7)
        .forward_to(R5, R6)
}

fn source() -> Bytes {
    Bytes { header: Header::Network, offset: SOURCE_OFFSET, length: 4 }
}

fn destination() -> Bytes {
    Bytes { header: Header::Network, offset: DESTINATION_OFFSET, length: 4 }
}

fn with_port(rule: Rule, protocol: Register, port: Register) -> Rule {
    let destination_port = Bytes { header: Header::Transport, offset: 2, length: 2 };
    rule.load_meta(Meta::TransportProtocol, protocol).load_bytes(destination_port, port)
}

/// Asked for by its address.
fn by_address(rule: Rule) -> Rule {
    with_port(rule.load_bytes(destination(), R0), R1, R2)
}

/// Asked for at an address of this host that others reach.
fn by_port(rule: Rule) -> Rule {
    let not_loopback = ([0xff, 0, 0, 0], [127, 0, 0, 0]);
    with_port(rule.not_masked(DESTINATION_OFFSET, not_loopback).for_this_host(), R0, R1)
}

/// Notes the pool that was found and goes to its chain.
fn to_pool(rule: Rule, map: Set, hides_source: bool) -> Rule {
    let rule = rule.look_up(map.name(), R0, R4);
    let flip = if hides_source { HIDE_SOURCE.to_ne_bytes() } else { NO_BITS };
    rule.bits(R4, R5, (ALL_BITS, flip)).set_meta(Meta::Mark, R5).decide(Set::Pools.name(), R4)
}

fn for_everyone(hides_source: bool) -> [Rule; 2] {
    [
        to_pool(by_address(Rule::default()), Set::Frontends, hides_source),
        to_pool(by_port(Rule::default()), Set::Ports, hides_source),
    ]
}

/// Mask and value, of IPv4.
fn masked(prefix: &Prefix) -> Option<([u8; 4], [u8; 4])> {
    let IpAddr::V4(network) = prefix.network().address() else { return None };
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.length())).unwrap_or(0).to_be_bytes();
    Some((mask, network.octets()))
}

fn from(prefix: &Prefix) -> Option<Rule> {
    Some(Rule::default().masked(Header::Network, SOURCE_OFFSET, masked(prefix)?))
}

fn pre_routing(config: &ServiceTableConfig) -> Vec<Rule> {
    let own = from(&config.own_pods).map(|rule| rule.verdict(&Verdict::Goto(FROM_PODS.to_owned())));
    let outside = [
        to_pool(by_address(Rule::default()), Set::FrontendsOutside, false),
        to_pool(by_port(Rule::default()), Set::PortsOutside, false),
    ];
    own.into_iter().chain(outside).chain(for_everyone(true)).collect()
}

fn dead() -> Vec<Rule> {
    let new = || Rule::default().connection(ConnectionState::New);
    let by_address = by_address(new()).decide(Set::Dead.name(), R0);
    vec![by_address, by_port(new()).decide(Set::DeadPorts.name(), R0)]
}

/// Those who may ask for an address that not everybody may ask for.
fn guard() -> Vec<Rule> {
    let caller = by_address(Rule::default()).load_bytes(source(), R3).bits(R3, R4, (NO_BITS, NO_BITS));
    let may = caller.among(Set::Callers.name(), R0).verdict(&Verdict::Accept);
    vec![may, Rule::default().verdict(&Verdict::Drop)]
}

/// What still has an address of Services after all maps were asked.
fn nobodys(config: &ServiceTableConfig) -> Option<Rule> {
    let services = masked(config.services.as_ref()?)?;
    let rule = Rule::default().masked(Header::Network, DESTINATION_OFFSET, services);
    Some(rule.connection(ConnectionState::New))
}

/// TCP is reset, all else is refused.
fn refused(rule: Option<Rule>) -> Vec<Rule> {
    rule.into_iter().flat_map(|rule| [rule.clone().reset(), rule.reject()]).collect()
}

fn post_routing(config: &ServiceTableConfig) -> Vec<Rule> {
    let hide = HIDE_SOURCE.to_ne_bytes();
    let marked =
        Rule::default().load_meta(Meta::Mark, R0).bits(R0, R0, (hide, NO_BITS)).holds(R0, &hide, true);
    let itself = Rule::default().load_bytes(source(), R0).load_bytes(destination(), R1);
    let mut rules = vec![marked.masquerade(), itself.among(Set::Hairpins.name(), R0).masquerade()];
    let own = || from(&config.own_pods);
    if !config.bridge_is_filtered {
        rules.extend(
            own().map(|rule| rule.link(Meta::OutputName, &config.bridge).was_forwarded().masquerade()),
        );
    }
    if let (Some(own), Some(all)) = (own(), config.all_pods.as_ref().and_then(masked)) {
        let elsewhere = own.not_masked(DESTINATION_OFFSET, all);
        rules.push(elsewhere.not_link(Meta::OutputName, &config.bridge).masquerade());
    }
    rules
}

/// The chains that are always there: their hooks, if they hang at one, and rules.
fn fixed(config: &ServiceTableConfig) -> Vec<(&'static str, Option<Hook>, Vec<Rule>)> {
    let hook = |kind, number, priority| Some(Hook { kind, number, priority });
    let guarded =
        by_address(Rule::default().connection(ConnectionState::New)).decide(Set::Guarded.name(), R0);
    let off_host = nobodys(config).map(|rule| rule.not_link(Meta::OutputName, "lo"));
    vec![
        (REJECT, None, refused(Some(Rule::default()))),
        (FROM_PODS, None, for_everyone(false).into()),
        (GUARD, None, guard()),
        ("guarded", hook("filter", PRE_ROUTING, PRIORITY_BEFORE_NAT), vec![guarded]),
        ("dead", hook("filter", PRE_ROUTING, PRIORITY_BEFORE_NAT), dead()),
        ("dead-output", hook("filter", LOCAL_OUT, PRIORITY_BEFORE_NAT), dead()),
        ("prerouting", hook("nat", PRE_ROUTING, PRIORITY_DESTINATION_NAT), pre_routing(config)),
        ("output", hook("nat", LOCAL_OUT, PRIORITY_DESTINATION_NAT), for_everyone(true).into()),
        ("forward", hook("filter", FORWARD, PRIORITY_FILTER), refused(nobodys(config))),
        ("output-late", hook("filter", LOCAL_OUT, PRIORITY_FILTER), refused(off_host)),
        ("postrouting", hook("nat", POST_ROUTING, PRIORITY_SOURCE_NAT), post_routing(config)),
    ]
}

/// Makes the table without any Service.
pub(super) fn make(batch: &mut Batch, config: &ServiceTableConfig) {
    batch.make_table();
    for set in Set::OURS {
        batch.set(&set.spec());
    }
    batch.set(&SetSpec {
        name: AFFINITY,
        key_bytes: 8,
        mapped: Mapped::Bytes(8),
        remembers: Some(AFFINITY_CALLERS_MAX),
        of_ranges: false,
    });
    let chains = fixed(config);
    for (name, hook, _) in &chains {
        match hook {
            Some(hook) => batch.chain(name, *hook),
            None => batch.inner_chain(name),
        }
    }
    for (name, _, rules) in chains {
        rules.into_iter().for_each(|rule| batch.rule(name, rule));
    }
}

pub(super) fn add_chain(batch: &mut Batch, chain: Chain) {
    let name = chain.name();
    batch.inner_chain(&name);
    chain.rules().into_iter().for_each(|rule| batch.rule(&name, rule));
}

/// How many rules each chain has that has any.
pub(super) fn rules(config: &ServiceTableConfig, chains: &BTreeSet<Chain>) -> BTreeMap<String, usize> {
    let fixed = fixed(config).into_iter().map(|(name, _, rules)| (name.to_owned(), rules.len()));
    let all = fixed.chain(chains.iter().map(|chain| (chain.name(), chain.rules().len())));
    all.filter(|(_, rules)| *rules > 0).collect()
}

/// A number as it is in a register.
pub(super) fn id_bytes(id: u32) -> Vec<u8> {
    id.to_ne_bytes().to_vec()
}

fn port_bytes(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

pub(super) fn backend_bytes(backend: &Backend) -> Vec<u8> {
    [backend.address.octets(), port_bytes(backend.port)].concat()
}

/// The keys at which a range of callers of a frontend begins and before which it ends.
pub(super) fn caller_range(frontend: &Frontend, (first, last): (Ipv4Addr, Ipv4Addr)) -> (Vec<u8>, Vec<u8>) {
    let key = |address: Ipv4Addr, after: u8| {
        [frontend_key(frontend), address.octets().to_vec(), vec![0, 0, 0, after]].concat()
    };
    (key(first, 0), key(last, 1))
}

pub(super) fn frontend_key(frontend: &Frontend) -> Vec<u8> {
    let protocol = [frontend.transport.number(), 0, 0, 0];
    let asked = [protocol, port_bytes(frontend.port)].concat();
    match frontend.address {
        Some(address) => [address.octets().to_vec(), asked].concat(),
        None => asked,
    }
}
