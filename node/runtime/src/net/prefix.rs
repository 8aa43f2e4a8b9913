//! An address with its prefix length (`10.0.0.1/24`). The host part is kept: the same type says an
//! interface's address and, after [`Prefix::network`], a destination.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IP address and a prefix length that fits its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// The text was no `address/length`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address with a prefix length, like 10.0.0.1/24 or fd00::1/64")]
pub struct ParsePrefixError {
    text: String,
}

impl Prefix {
    /// The default route of IPv4, `0.0.0.0/0`.
    pub const DEFAULT_V4: Prefix = Prefix { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), length: 0 };
    /// The default route of IPv6, `::/0`.
    pub const DEFAULT_V6: Prefix = Prefix { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), length: 0 };

    /// An address with a prefix length; `None` when the length is longer than the address.
    pub fn new(address: IpAddr, length: u8) -> Option<Prefix> {
        (length <= family_bits(address)).then_some(Prefix { address, length })
    }

    /// The prefix that holds this one address only (`/32` or `/128`).
    pub fn host(address: IpAddr) -> Prefix {
        Prefix { address, length: family_bits(address) }
    }

    /// The address, host part and all.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The prefix length in bits.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// The same prefix with the host part cleared.
    pub fn network(&self) -> Prefix {
        let address = match self.address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        };
        Prefix { address, length: self.length }
    }

    /// Whether `address` lies inside this prefix.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && Prefix { address, length: self.length }.network() == self.network()
    }
}

fn family_bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParsePrefixError { text: text.to_owned() };
        let (address, length) = text.split_once('/').ok_or_else(refused)?;
        let address = address.parse().map_err(|_| refused())?;
        let length = length.parse().map_err(|_| refused())?;
        Prefix::new(address, length).ok_or_else(refused)
    }
}

impl TryFrom<String> for Prefix {
    type Error = ParsePrefixError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> String {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn text_goes_round() {
        for text in ["10.0.0.1/24", "0.0.0.0/0", "192.168.1.7/32", "fd00::1/64", "::/0", "fe80::1/128"] {
            assert_eq!(prefix(text).to_string(), text);
        }
    }

    #[test]
    fn bad_text_is_refused() {
        for text in ["", "10.0.0.1", "10.0.0.1/33", "fd00::/129", "x/8", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn network_clears_the_host_part() {
        assert_eq!(prefix("10.1.2.3/16").network(), prefix("10.1.0.0/16"));
        assert_eq!(prefix("10.1.2.3/0").network(), Prefix::DEFAULT_V4);
        assert_eq!(prefix("10.1.2.3/32").network(), prefix("10.1.2.3/32"));
        assert_eq!(prefix("fd00:1:2::5/48").network(), prefix("fd00:1:2::/48"));
    }

    #[test]
    fn contains_compares_within_a_family_only() {
        let net = prefix("10.1.0.0/16");
        assert!(net.contains("10.1.255.1".parse().unwrap()));
        assert!(!net.contains("10.2.0.1".parse().unwrap()));
        assert!(!net.contains("::1".parse().unwrap()));
        assert!(Prefix::DEFAULT_V6.contains("::1".parse().unwrap()));
    }
}
