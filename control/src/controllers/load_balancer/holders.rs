//! Which node holds which address. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ring::digest;

/// Nodes by the addresses that they hold.
pub(crate) type Holders = BTreeMap<Ipv4Addr, String>;

/// Every address gets a node, if there is any for it. One that has a node keeps it as long as that is possible;
/// others are spread over the nodes, in the same way by whoever decides.
///
/// `wanted`: addresses, each with the nodes that may hold it (`None`: any). `alive`: the nodes that there are.
pub(super) fn hold(
    wanted: &BTreeMap<Ipv4Addr, Option<BTreeSet<String>>>,
    alive: &BTreeSet<String>,
    before: &Holders,
) -> Holders {
    let mut holders = Holders::new();
    for (address, only) in wanted {
        let fits = |node: &&String| only.as_ref().is_none_or(|only| only.contains(*node));
        let fitting: Vec<&String> = alive.iter().filter(fits).collect();
        // Where nobody fits somebody holds it all the same, so that callers are told rather than left alone.
        let candidates = if fitting.is_empty() { alive.iter().collect() } else { fitting };
        let kept = before.get(address).filter(|node| candidates.contains(node));
        let chosen = kept.or_else(|| candidates.into_iter().max_by_key(|node| weight(*address, node)));
        // While no node is there the last one is not told otherwise.
        if let Some(node) = chosen.or_else(|| before.get(address)) {
            holders.insert(*address, node.clone());
        }
    }
    holders
}

fn weight(address: Ipv4Addr, node: &str) -> Vec<u8> {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&address.octets());
    context.update(node.as_bytes());
    context.finish().as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn addresses_are_spread_and_move_only_when_their_node_is_gone() {
        let wanted: BTreeMap<_, _> = (0..60).map(|last| (Ipv4Addr::new(192, 0, 2, last), None)).collect();
        let all = nodes(&["n1", "n2", "n3"]);
        let first = hold(&wanted, &all, &Holders::new());
        assert_eq!(first, hold(&wanted, &all, &Holders::new()), "whoever decides");
        for node in &all {
            assert!(first.values().filter(|held_by| *held_by == node).count() >= 8, "{first:?}");
        }
        let second = hold(&wanted, &nodes(&["n1", "n3"]), &first);
        for (address, node) in &first {
            assert!(node == "n2" || second[address] == *node, "{address} had no reason to move");
        }
        assert!(second.values().all(|node| node != "n2"));
        assert_eq!(hold(&wanted, &all, &second), second, "a node that is back takes nothing away");
        assert_eq!(hold(&wanted, &BTreeSet::new(), &second), second);
        assert!(hold(&BTreeMap::new(), &all, &second).is_empty());
    }

    #[test]
    fn an_address_goes_where_its_endpoints_are() {
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let only = |names: &[&str]| BTreeMap::from([(address, Some(nodes(names)))]);
        let all = nodes(&["n1", "n2"]);
        let held = hold(&only(&["n2"]), &all, &Holders::new());
        assert_eq!(held[&address], "n2");
        assert_eq!(hold(&only(&["n1"]), &all, &held)[&address], "n1");
        assert_eq!(hold(&only(&[]), &all, &held)[&address], "n2", "nobody has one");
    }
}
