//! The provider for bare hosts: addresses of a pool, each held by one node that announces it on its network.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use super::{Provider, Refusal};
use crate::registry::BALANCER_CLASS;

/// Most addresses in a pool: they are looked at one after the other.
const ADDRESSES_MAX: u64 = 1 << 16;

/// Addresses from the first to the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    /// The first.
    pub first: Ipv4Addr,
    /// The last.
    pub last: Ipv4Addr,
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address =
            |text: &str| text.trim().parse::<Ipv4Addr>().map_err(|_| format!("{text:?} is no IPv4 address"));
        let (first, last) = if let Some((first, last)) = text.split_once('-') {
            (address(first)?, address(last)?)
        } else if let Some((first, length)) = text.split_once('/') {
            let first = address(first)?;
            let length: u32 = length
                .parse()
                .ok()
                .filter(|length| *length <= 32)
                .ok_or_else(|| format!("{text:?}: {length:?} is no prefix length"))?;
            let host = u32::MAX.checked_shr(length).unwrap_or(0);
            if first.to_bits() & host != 0 {
                return Err(format!("{text:?}: {first} is not the first address of a /{length}"));
            }
            (first, Ipv4Addr::from_bits(first.to_bits() | host))
        } else {
            (address(text)?, address(text)?)
        };
        if first > last {
            return Err(format!("{text:?} ends before it begins"));
        }
        let range = Self { first, last };
        match range.count() > ADDRESSES_MAX {
            true => {
                Err(format!("{text:?} has {} addresses; at most {ADDRESSES_MAX} are possible", range.count()))
            }
            false => Ok(range),
        }
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl AddressRange {
    /// Whether the address is one of them.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }

    fn count(&self) -> u64 {
        u64::from(self.last.to_bits()) - u64::from(self.first.to_bits()) + 1
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct AddressPool {
    ranges: Vec<AddressRange>,
}

impl AddressPool {
    pub(super) fn new(ranges: Vec<AddressRange>) -> Self {
        Self { ranges }
    }
}

impl Provider for AddressPool {
    fn class(&self) -> &'static str {
        BALANCER_CLASS
    }

    fn choose(&self, wish: Option<Ipv4Addr>, taken: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr, Refusal> {
        if self.ranges.is_empty() {
            return Err(Refusal::NoPool);
        }
        match wish {
            Some(wish) if !self.ranges.iter().any(|range| range.contains(wish)) => {
                Err(Refusal::Outside(wish))
            }
            Some(wish) if taken.contains(&wish) => Err(Refusal::Taken(wish)),
            Some(wish) => Ok(wish),
            None => {
                let all = self.ranges.iter().flat_map(|range| range.first.to_bits()..=range.last.to_bits());
                let mut free = all.map(Ipv4Addr::from_bits).filter(|address| !taken.contains(address));
                free.next().ok_or(Refusal::Exhausted)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_in_three_forms_and_mistakes_are_told() {
        let read =
            |text: &str| text.parse::<AddressRange>().map(|range| format!("{}-{}", range.first, range.last));
        assert_eq!(read("192.0.2.7").as_deref(), Ok("192.0.2.7-192.0.2.7"));
        assert_eq!(read("192.0.2.16/28").as_deref(), Ok("192.0.2.16-192.0.2.31"));
        assert_eq!(read("192.0.2.9-192.0.2.11").as_deref(), Ok("192.0.2.9-192.0.2.11"));
        for wrong in ["192.0.2.7/28", "192.0.2.9-192.0.2.8", "x", "10.0.0.0/8", "10.0.0.0/33", "::1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn wishes_are_granted_or_refused_and_the_first_free_one_is_given() {
        let pool = AddressPool::new(vec!["192.0.2.1".parse().unwrap(), "192.0.2.8/31".parse().unwrap()]);
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let mut taken = BTreeSet::new();
        for expected in ["192.0.2.1", "192.0.2.8", "192.0.2.9"] {
            let chosen = pool.choose(None, &taken).unwrap();
            assert_eq!(chosen, address(expected));
            taken.insert(chosen);
        }
        assert_eq!(pool.choose(None, &taken), Err(Refusal::Exhausted));
        taken.remove(&address("192.0.2.8"));
        assert_eq!(pool.choose(Some(address("192.0.2.8")), &taken), Ok(address("192.0.2.8")));
        assert_eq!(
            pool.choose(Some(address("192.0.2.9")), &taken),
            Err(Refusal::Taken(address("192.0.2.9")))
        );
        assert_eq!(
            pool.choose(Some(address("192.0.2.7")), &taken),
            Err(Refusal::Outside(address("192.0.2.7")))
        );
        assert_eq!(AddressPool::new(Vec::new()).choose(None, &taken), Err(Refusal::NoPool));
    }
}
