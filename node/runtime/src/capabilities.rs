//! Capabilities: names, the default set of container runtimes, and putting a set into force.
//!
//! Inside a container the bounding, permitted and effective sets are the computed set; inheritable and
//! ambient stay empty, so that a process which is not root has none unless a file grants them.

use crate::container::spec::CapabilitiesSpec;
use crate::error::Error;

/// A set of capabilities, one bit per number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set(pub(crate) u64);

/// All names, by number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has unless it asks for something else (the set of Docker and containerd); without `CAP_`.
pub const CAPABILITIES_DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

impl Set {
    const ALL: Set = Set((1 << NAMES.len()) - 1);

    fn with(self, other: Set) -> Set {
        Set(self.0 | other.0)
    }

    fn without(self, other: Set) -> Set {
        Set(self.0 & !other.0)
    }

    /// What is in both.
    pub(crate) fn and(self, other: Set) -> Set {
        Set(self.0 & other.0)
    }

    /// Whether a number is in the set.
    pub(crate) fn contains(self, number: u32) -> bool {
        self.0 & (1 << number) != 0
    }
}

impl CapabilitiesSpec {
    /// The set that this asks for.
    pub(crate) fn set(&self, privileged: bool) -> Result<Set, Error> {
        if privileged {
            return Ok(Set::ALL);
        }
        let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
        let mut set = CAPABILITIES_DEFAULT.iter().fold(Set::default(), |set, name| set.with(bit_of(name)));
        if self.add.iter().any(is_all) {
            set = Set::ALL;
        }
        if self.drop.iter().any(is_all) {
            set = Set::default();
        }
        for name in self.add.iter().filter(|name| !is_all(name)) {
            set = set.with(parse(name)?);
        }
        for name in self.drop.iter().filter(|name| !is_all(name)) {
            set = set.without(parse(name)?);
        }
        Ok(set)
    }
}

fn parse(name: &str) -> Result<Set, Error> {
    let unknown = || Error::invalid("process.capabilities", format!("{name:?} is no capability"));
    named(name).ok_or_else(unknown)
}

/// The set of one capability, by its name with or without `CAP_`, in any case.
pub(crate) fn named(name: &str) -> Option<Set> {
    let upper = name.to_ascii_uppercase();
    let set = bit_of(upper.strip_prefix("CAP_").unwrap_or(&upper));
    (set != Set::default()).then_some(set)
}

fn bit_of(name: &str) -> Set {
    Set(NAMES.iter().position(|known| *known == name).map_or(0, |number| 1 << number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Set {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        CapabilitiesSpec { add: owned(add), drop: owned(drop) }.set(false).unwrap()
    }

    #[test]
    fn the_default_set_is_that_of_docker() {
        assert_eq!(set(&[], &[]).0, 0xa804_25fb);
    }

    #[test]
    fn add_and_drop_follow_kubernetes() {
        assert_eq!(set(&[], &["ALL"]).0, 0);
        assert_eq!(set(&["NET_BIND_SERVICE"], &["ALL"]).0, 1 << 10);
        assert_eq!(set(&["cap_sys_time"], &["all"]).0, 1 << 25);
        assert_eq!(set(&["ALL"], &[]), Set::ALL);
        assert_eq!(set(&["ALL"], &["CHOWN"]), Set::ALL.without(Set(1)));
        assert_eq!(set(&["CHOWN"], &["CHOWN"]).0, 0xa804_25fb & !1);
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let spec = CapabilitiesSpec { add: vec!["FLY".into()], drop: vec![] };
        assert!(spec.set(false).unwrap_err().to_string().contains("\"FLY\""));
    }
}
