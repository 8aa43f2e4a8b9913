//! Which pod has which address: one file per address, named by it, holding the pod's uid.
//!
//! A file is made exclusively and whole (written aside, then linked), so an address has one owner even if
//! two agents were to run, and an agent's death leaves either no file or a complete one. Addresses are given
//! round robin, so that one that was just freed is used last.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use runtime::net::Prefix;

use super::{NetworkError, file_error};

/// The shortest and longest prefixes that a node's range may have.
const PREFIX_LENGTHS: std::ops::RangeInclusive<u8> = 8..=30;

/// A node's pod address range: network, gateway and broadcast are not for pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    first: u32,
    last: u32,
    prefix_length: u8,
}

impl Range {
    /// Reads `10.244.1.0/24`.
    pub(crate) fn parse(text: &str) -> Result<Self, NetworkError> {
        let refuse = |problem| NetworkError::BadRange { range: text.to_owned(), problem };
        let (address, length) = text.split_once('/').ok_or_else(|| refuse("it has no prefix length"))?;
        let address: Ipv4Addr = address.parse().map_err(|_| refuse("only IPv4 ranges are supported"))?;
        let prefix_length: u8 = length.parse().map_err(|_| refuse("its prefix length is not a number"))?;
        if !PREFIX_LENGTHS.contains(&prefix_length) {
            return Err(refuse("its prefix length must be 8 to 30"));
        }
        let mask = u32::MAX << (32 - prefix_length);
        let first = u32::from(address) & mask;
        Ok(Self { first, last: first | !mask, prefix_length })
    }

    /// The network's own address.
    pub(crate) fn network(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.first)
    }

    /// The range as a prefix of its network.
    pub(crate) fn prefix(&self) -> Prefix {
        self.with_length(self.network())
    }

    /// An address with the range's prefix length.
    pub(crate) fn with_length(&self, address: Ipv4Addr) -> Prefix {
        Prefix::new(address.into(), self.prefix_length).expect("ranges have prefixes of at most 30 bits")
    }

    /// The bridge's address: the first one.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.first + 1)
    }

    pub(crate) fn prefix_length(&self) -> u8 {
        self.prefix_length
    }

    pub(crate) fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&u32::from(address))
    }

    /// The pods' addresses, beginning after `last_given`, each once.
    fn candidates(&self, last_given: Option<Ipv4Addr>) -> impl Iterator<Item = Ipv4Addr> {
        let (low, high) = (self.first + 2, self.last - 1);
        let start = match last_given.map(u32::from) {
            Some(given) if (low..high).contains(&given) => given + 1,
            _ => low,
        };
        (start..=high).chain(low..start).map(Ipv4Addr::from)
    }
}

/// The address files.
#[derive(Debug)]
pub(crate) struct Ipam {
    dir: PathBuf,
    last_given: Mutex<Option<Ipv4Addr>>,
}

impl Ipam {
    /// Opens the directory, making it if needed.
    pub(crate) fn open(dir: impl Into<PathBuf>) -> Result<Self, NetworkError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(file_error(&dir))?;
        let ipam = Self { dir, last_given: Mutex::default() };
        for entry in fs::read_dir(&ipam.dir).map_err(file_error(&ipam.dir))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("new-") {
                drop(fs::remove_file(entry.path()));
            }
        }
        Ok(ipam)
    }

    /// The pod's address in the range; a new one if it has none.
    pub(crate) fn reserve(&self, range: Range, uid: &str) -> Result<IpAddr, NetworkError> {
        let mut last_given = self.last_given.lock().expect("no holder of the address lock panics");
        let taken = self.all()?;
        if let Some((address, _)) = taken.iter().find(|(a, owner)| *owner == uid && range.contains(**a)) {
            return Ok(IpAddr::V4(*address));
        }
        let prepared = self.dir.join(format!("new-{}", hex::encode(rand::random::<[u8; 8]>())));
        fs::write(&prepared, uid).map_err(file_error(&prepared))?;
        let given = self.link_free(range, &prepared, *last_given, &taken);
        drop(fs::remove_file(&prepared));
        let given = given?;
        *last_given = Some(given);
        Ok(IpAddr::V4(given))
    }

    fn link_free(
        &self,
        range: Range,
        prepared: &Path,
        last_given: Option<Ipv4Addr>,
        taken: &BTreeMap<Ipv4Addr, String>,
    ) -> Result<Ipv4Addr, NetworkError> {
        for address in range.candidates(last_given).filter(|a| !taken.contains_key(a)) {
            let path = self.dir.join(address.to_string());
            match fs::hard_link(prepared, &path) {
                Ok(()) => return Ok(address),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(file_error(&path)(e)),
            }
        }
        let range = format!("{}/{}", Ipv4Addr::from(range.first), range.prefix_length);
        Err(NetworkError::Exhausted { range })
    }

    /// Frees what the pod has.
    pub(crate) fn release(&self, uid: &str) -> Result<(), NetworkError> {
        for (address, _) in self.all()?.iter().filter(|(_, owner)| *owner == uid) {
            let path = self.dir.join(address.to_string());
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file_error(&path)(e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Every address that is taken, with its pod.
    pub(crate) fn all(&self) -> Result<BTreeMap<Ipv4Addr, String>, NetworkError> {
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(&self.dir).map_err(file_error(&self.dir))? {
            let entry = entry.map_err(file_error(&self.dir))?;
            let Ok(address) = entry.file_name().to_string_lossy().parse::<Ipv4Addr>() else { continue };
            match fs::read_to_string(entry.path()) {
                Ok(uid) => drop(all.insert(address, uid)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(file_error(&entry.path())(e)),
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_refused() {
        let range = Range::parse("10.244.1.0/24").unwrap();
        assert_eq!(range.gateway(), Ipv4Addr::new(10, 244, 1, 1));
        assert!(range.contains(Ipv4Addr::new(10, 244, 1, 255)));
        assert!(!range.contains(Ipv4Addr::new(10, 244, 2, 0)));
        for text in ["10.244.1.0", "fd00::/64", "10.0.0.0/31", "10.0.0.0/x"] {
            assert!(Range::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_has_one_owner_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let range = Range::parse("10.0.0.0/29").unwrap();
        let ipam = Ipam::open(dir.path()).unwrap();
        let a = ipam.reserve(range, "a").unwrap();
        let b = ipam.reserve(range, "b").unwrap();
        assert_eq!(a.to_string(), "10.0.0.2");
        assert_eq!(b.to_string(), "10.0.0.3");
        let reopened = Ipam::open(dir.path()).unwrap();
        assert_eq!(reopened.reserve(range, "b").unwrap(), b);
        assert_eq!(reopened.reserve(range, "c").unwrap().to_string(), "10.0.0.4");
        assert_eq!(reopened.all().unwrap().len(), 3);
    }

    #[test]
    fn freed_addresses_are_used_last_and_the_range_ends() {
        let dir = tempfile::tempdir().unwrap();
        let range = Range::parse("10.0.0.0/29").unwrap();
        let ipam = Ipam::open(dir.path()).unwrap();
        let first = ipam.reserve(range, "a").unwrap();
        ipam.release("a").unwrap();
        ipam.release("a").unwrap();
        assert_ne!(ipam.reserve(range, "b").unwrap(), first);
        for uid in ["c", "d", "e", "f"] {
            ipam.reserve(range, uid).unwrap();
        }
        assert!(matches!(ipam.reserve(range, "g"), Err(NetworkError::Exhausted { .. })));
        ipam.release("c").unwrap();
        assert!(ipam.reserve(range, "g").is_ok());
    }
}
