//! Which range of pod addresses a node gets.
//!
//! Pure: the lowest part of the cluster's range that no node has. Uniqueness comes from the caller, who
//! allocates under one lock, on the newest list of nodes, with a fenced write.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::Cidr;

/// Every part of the range is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {parts} pod ranges of {range} are in use; remove nodes or give the cluster a larger podCIDR")]
pub struct Exhausted {
    range: Cidr,
    parts: u128,
}

/// The cluster's range of pod addresses and the size of a node's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodRange {
    range: Cidr,
    node_prefix: u8,
}

impl PodRange {
    /// A range cut into parts of `node_prefix` bits. The prefix must lie between the range's and the width
    /// of an address, which the configuration checks.
    pub fn new(range: Cidr, node_prefix: u8) -> Self {
        Self { range, node_prefix }
    }

    /// The range of all pods.
    pub fn cluster(&self) -> Cidr {
        self.range
    }

    /// The lowest part that is not in `taken`.
    pub fn allocate<'a>(&self, taken: impl IntoIterator<Item = &'a str>) -> Result<String, Exhausted> {
        let taken: BTreeSet<&str> = taken.into_iter().collect();
        let bits = if self.range.address.is_ipv4() { 32 } else { 128 };
        let parts = 1_u128.checked_shl(u32::from(self.node_prefix - self.range.prefix)).unwrap_or(u128::MAX);
        let step = u32::from(bits - self.node_prefix);
        // One more candidate than there are taken ones always suffices.
        let candidates = parts.min(taken.len() as u128 + 1);
        (0..candidates)
            .map(|part| self.part(part << step))
            .find(|part| !taken.contains(part.as_str()))
            .ok_or(Exhausted { range: self.range, parts })
    }

    fn part(&self, offset: u128) -> String {
        let address = match self.range.address {
            IpAddr::V4(first) => IpAddr::V4(Ipv4Addr::from_bits(first.to_bits() | offset as u32)),
            IpAddr::V6(first) => IpAddr::V6(Ipv6Addr::from_bits(first.to_bits() | offset)),
        };
        format!("{address}/{}", self.node_prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_part() {
        let range = PodRange::new("10.244.0.0/16".parse().expect("a range"), 24);
        assert_eq!(range.allocate([]).expect("free"), "10.244.0.0/24");
        assert_eq!(range.allocate(["10.244.0.0/24", "10.244.2.0/24"]).expect("free"), "10.244.1.0/24");
        // Ranges of other sizes or elsewhere are nobody's here.
        assert_eq!(range.allocate(["192.168.0.0/24", ""]).expect("free"), "10.244.0.0/24");
    }

    #[test]
    fn exhaustion_says_what_to_do() {
        let range = PodRange::new("fd00::/63".parse().expect("a range"), 64);
        assert_eq!(range.allocate(["fd00::/64"]).expect("free"), "fd00:0:0:1::/64");
        let error = range.allocate(["fd00::/64", "fd00:0:0:1::/64"]).expect_err("all taken");
        assert!(error.to_string().contains("all 2 pod ranges of fd00::/63"), "{error}");
    }
}
