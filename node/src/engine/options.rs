//! What is asked of a container, in the words of `docker run`: read from text, kept in its record.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use runtime::IoLimit;
use runtime::seccomp::Seccomp;
use serde::{Deserialize, Serialize};

/// The least memory that a container can be limited to.
const MEMORY_MIN: u64 = 6 << 20;
/// Microseconds of a period of processor time.
pub(super) const CPU_PERIOD_US: u64 = 100_000;

/// An option that means nothing, or not together with others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOption {
    /// The text cannot be read.
    #[error("invalid argument {text:?} for {option}: {problem}")]
    Value {
        /// Which option.
        option: &'static str,
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Several do not go together.
    #[error("conflicting options: {0}")]
    Conflict(&'static str),
    /// It cannot be had as things are.
    #[error("{0}")]
    Refused(String),
}

fn bad(option: &'static str, text: &str, problem: impl Into<String>) -> BadOption {
    BadOption::Value { option, text: text.to_owned(), problem: problem.into() }
}

/// Everything that can be asked of a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateOptions {
    /// Unique; empty: one is made up.
    pub name: String,
    /// The image, as the user writes it.
    pub image: String,
    /// In place of the image's command.
    pub command: Vec<String>,
    /// In place of the image's entrypoint.
    pub entrypoint: Option<String>,
    /// `NAME=value` entries, over the image's.
    pub env: Vec<String>,
    /// Host name inside; empty: the beginning of the id.
    pub hostname: String,
    /// User, in place of the image's.
    pub user: String,
    /// Working directory, in place of the image's.
    pub working_dir: String,
    /// Its network.
    pub network: NetworkMode,
    /// Its processes.
    pub pid: PidSource,
    /// Ports of the host that lead to it.
    pub ports: Vec<PublishedPort>,
    /// Further ports that it says it listens at, as `80/tcp`.
    pub expose: Vec<String>,
    /// Containers that it knows by name.
    pub links: Vec<Link>,
    /// Directories and files of the host in it.
    pub volumes: Vec<VolumeBind>,
    /// A terminal instead of pipes.
    pub terminal: bool,
    /// Whether its input is kept open for those who attach.
    pub interactive: bool,
    /// Whether it is removed when it has ended.
    pub remove: bool,
    /// Resources.
    pub limits: Limits,
    /// All rights and devices.
    pub privileged: bool,
    /// Whether its users are the host's although the engine maps those of others.
    pub host_users: bool,
    /// Whether its System V IPC is the host's.
    pub host_ipc: bool,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// Whether no program of it gains rights that its parent lacks.
    pub no_new_privileges: bool,
    /// Whether its root filesystem can only be read.
    pub read_only: bool,
    /// Capabilities beside the usual ones.
    pub cap_add: Vec<String>,
    /// Usual capabilities that it does not get.
    pub cap_drop: Vec<String>,
    /// Free words for the user.
    pub labels: Vec<String>,
    /// Signal that asks it to stop; empty: the image's.
    pub stop_signal: String,
}

impl CreateOptions {
    /// Refuses what cannot mean anything.
    pub(super) fn check(&self) -> Result<(), BadOption> {
        match &self.network {
            NetworkMode::Container(_) if !self.hostname.is_empty() => {
                return Err(BadOption::Conflict("hostname and the network mode"));
            }
            NetworkMode::Container(_) if !self.links.is_empty() => {
                return Err(BadOption::Conflict("container type network can't be used with links"));
            }
            NetworkMode::Container(_) if !self.ports.is_empty() => {
                return Err(BadOption::Conflict("port publishing and the container type network mode"));
            }
            NetworkMode::Container(_) if !self.expose.is_empty() => {
                return Err(BadOption::Conflict("port exposing and the container type network mode"));
            }
            NetworkMode::Host if !self.hostname.is_empty() => {
                return Err(BadOption::Conflict("hostname and the host's network, which has a name"));
            }
            NetworkMode::Host if !self.links.is_empty() => {
                return Err(BadOption::Conflict("host type networking can't be used with links"));
            }
            NetworkMode::None if !self.links.is_empty() => {
                return Err(BadOption::Conflict("no network and links"));
            }
            _ => {}
        }
        self.limits.check()
    }
}

/// Which network a container has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// An address of its own behind the engine's bridge.
    #[default]
    Bridge,
    /// The host's.
    Host,
    /// A loopback interface, nothing else.
    None,
    /// That of another container: a reference, in records its id.
    Container(String),
}

impl FromStr for NetworkMode {
    type Err = BadOption;

    fn from_str(text: &str) -> Result<Self, BadOption> {
        match (text, text.strip_prefix("container:")) {
            ("bridge" | "default", _) => Ok(Self::Bridge),
            ("host", _) => Ok(Self::Host),
            ("none", _) => Ok(Self::None),
            (_, Some(reference)) if !reference.is_empty() => Ok(Self::Container(reference.to_owned())),
            _ => Err(bad("--network", text, "there are bridge, host, none and container:NAME")),
        }
    }
}

/// Whose processes a container sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidSource {
    /// Its own only.
    #[default]
    Own,
    /// The host's.
    Host,
    /// Those of another container: a reference, in records its id.
    Container(String),
}

impl FromStr for PidSource {
    type Err = BadOption;

    fn from_str(text: &str) -> Result<Self, BadOption> {
        match (text, text.strip_prefix("container:")) {
            ("host", _) => Ok(Self::Host),
            (_, Some(reference)) if !reference.is_empty() => Ok(Self::Container(reference.to_owned())),
            _ => Err(bad("--pid", text, "there are host and container:NAME")),
        }
    }
}

/// A port of the host that leads to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The one address of the host, or all of them.
    pub address: Option<IpAddr>,
    /// 0: any free one, chosen at the start.
    pub host_port: u16,
    /// The port in the container.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

impl FromStr for PublishedPort {
    type Err = BadOption;

    /// `[[ADDRESS:]HOST:]CONTAINER[/PROTOCOL]`
    fn from_str(text: &str) -> Result<Self, BadOption> {
        let refuse = |problem: &str| bad("--publish", text, problem);
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        if !matches!(protocol, "tcp" | "udp" | "sctp") {
            return Err(refuse("the protocol is tcp, udp or sctp"));
        }
        let number = |part: &str| part.parse::<u16>().ok().filter(|port| *port != 0);
        let mut parts = ports.rsplitn(3, ':');
        let container_port = parts.next().and_then(number).ok_or_else(|| refuse("ports are 1 to 65535"))?;
        let host_port = match parts.next() {
            None | Some("") => 0,
            Some(part) => number(part).ok_or_else(|| refuse("ports are 1 to 65535"))?,
        };
        let address = match parts.next() {
            None | Some("") => None,
            Some(part) => {
                let address: IpAddr = part.parse().map_err(|_| refuse("the first part is no address"))?;
                Some(address).filter(|address| !address.is_unspecified())
            }
        };
        Ok(Self { address, host_port, container_port, protocol: protocol.to_owned() })
    }
}

/// A container that another knows by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// A reference, in records the id.
    pub container: String,
    /// The name.
    pub alias: String,
}

impl FromStr for Link {
    type Err = BadOption;

    /// `CONTAINER[:ALIAS]`
    fn from_str(text: &str) -> Result<Self, BadOption> {
        let (container, alias) = text.split_once(':').unwrap_or((text, text));
        let plain = |word: &str| !word.is_empty() && !word.contains([':', ' ', '\t', '\n']);
        if !plain(container) || !plain(alias) {
            return Err(bad("--link", text, "it is CONTAINER or CONTAINER:ALIAS"));
        }
        Ok(Self { container: container.to_owned(), alias: alias.to_owned() })
    }
}

/// A directory or file of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeBind {
    /// On the host; a missing directory is made at the start.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// Whether it can only be read.
    pub read_only: bool,
}

impl FromStr for VolumeBind {
    type Err = BadOption;

    /// `HOST:CONTAINER[:ro]`
    fn from_str(text: &str) -> Result<Self, BadOption> {
        let refuse = |problem: &str| bad("--volume", text, problem);
        let mut parts = text.split(':');
        let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
            return Err(refuse("it is HOST-DIRECTORY:CONTAINER-DIRECTORY; there are no named volumes"));
        };
        let read_only = match (parts.next(), parts.next()) {
            (None | Some("rw"), None) => false,
            (Some("ro"), None) => true,
            _ => return Err(refuse("what may follow is ro or rw")),
        };
        let (source, target) = (PathBuf::from(source), PathBuf::from(target));
        if !source.is_absolute() || !target.is_absolute() {
            return Err(refuse("both are absolute paths; there are no named volumes"));
        }
        Ok(Self { source, target, read_only })
    }
}

/// Resources of a container. `None`: as much as there is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Bytes of memory and swap together, -1 for as much swap as there is. `None`: twice the memory.
    pub memory_swap: Option<i64>,
    /// Bytes that are taken away last.
    pub memory_reservation: Option<u64>,
    /// Billionths of a processor.
    pub nano_cpus: Option<u64>,
    /// Weight against others.
    pub cpu_shares: Option<u64>,
    /// Processors to run on.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to allocate from.
    pub cpuset_mems: Option<String>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Rates of disks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io: Vec<IoLimit>,
}

impl Limits {
    fn check(&self) -> Result<(), BadOption> {
        let refuse = |message: String| Err(BadOption::Refused(message));
        if self.memory.is_some_and(|bytes| bytes < MEMORY_MIN) {
            return refuse(format!("a container needs a memory limit of {} MiB at least", MEMORY_MIN >> 20));
        }
        match (self.memory, self.memory_swap) {
            (None, Some(_)) => {
                refuse("--memory-swap needs --memory: it is memory and swap together".to_owned())
            }
            (Some(memory), Some(both)) if both >= 0 && (both as u64) < memory => refuse(
                "--memory-swap is memory and swap together: it cannot be less than --memory".to_owned(),
            ),
            _ => Ok(()),
        }
    }

    /// Swap alone, in bytes.
    pub(super) fn swap(&self) -> Option<u64> {
        let memory = self.memory?;
        match self.memory_swap {
            None | Some(0) => Some(memory),
            Some(both) if both < 0 => Some(u64::MAX >> 1),
            Some(both) => Some((both as u64).saturating_sub(memory)),
        }
    }
}

/// Reads a number of bytes: `100m`, `1g`, `65536`, units of 1024.
pub fn parse_bytes(option: &'static str, text: &str) -> Result<u64, BadOption> {
    let refuse = || bad(option, text, "it is a number of bytes, or of b, k, m, g or t");
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        Some(b't') => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    let number: u64 = digits.parse().map_err(|_| refuse())?;
    number.checked_mul(1 << shift).ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn ports_are_read() {
        let port = |text: &str| text.parse::<PublishedPort>();
        let plain = port("8080:80").unwrap();
        assert_eq!((plain.address, plain.host_port, plain.container_port), (None, 8080, 80));
        assert_eq!(plain.protocol, "tcp");
        let all = port("127.0.0.1:53:5353/udp").unwrap();
        assert_eq!(all.address, Some("127.0.0.1".parse().unwrap()));
        assert_eq!((all.host_port, all.container_port, all.protocol.as_str()), (53, 5353, "udp"));
        assert_eq!(port("80").unwrap().host_port, 0);
        assert_eq!(port("0.0.0.0:1:2").unwrap().address, None);
        for text in ["", "0:80", "80:0", "x:80", "70000:80", "80/icmp", "a.b:1:2"] {
            assert!(port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_are_read() {
        let bytes = |text: &str| parse_bytes("--memory", text);
        assert_eq!(bytes("100m").unwrap(), 104_857_600);
        assert_eq!(bytes("20M").unwrap(), 20_971_520);
        assert_eq!(bytes("1gb").unwrap(), 1 << 30);
        assert_eq!(bytes("4096b").unwrap(), 4096);
        for text in ["", "m", "1.5g", "-1", "99999999999t"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn volumes_links_and_modes_are_read() {
        let bind: VolumeBind = "/a:/b:ro".parse().unwrap();
        assert!(bind.read_only && bind.source == Path::new("/a") && bind.target == Path::new("/b"));
        for text in ["/a", "a:/b", "/a:b", "/a:/b:z"] {
            assert!(text.parse::<VolumeBind>().is_err(), "{text}");
        }
        assert_eq!("db".parse::<Link>().unwrap().alias, "db");
        assert!("a:b:c".parse::<Link>().is_err());
        assert_eq!("container:x".parse::<NetworkMode>().unwrap(), NetworkMode::Container("x".into()));
        assert!("container:".parse::<NetworkMode>().is_err() && "bridge2".parse::<NetworkMode>().is_err());
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let joined =
            CreateOptions { network: NetworkMode::Container("a".into()), ..CreateOptions::default() };
        assert!(joined.check().is_ok());
        let with_port = CreateOptions { ports: vec!["1:1".parse().unwrap()], ..joined.clone() };
        let with_name = CreateOptions { hostname: "x".into(), ..joined.clone() };
        let with_link = CreateOptions { links: vec!["a".parse().unwrap()], ..joined };
        for options in [with_port, with_name, with_link] {
            assert!(options.check().unwrap_err().to_string().starts_with("conflicting options"));
        }
    }

    #[test]
    fn swap_is_what_both_leave() {
        let limits = |memory, both| Limits { memory, memory_swap: both, ..Limits::default() };
        assert_eq!(limits(None, None).swap(), None);
        assert_eq!(limits(Some(100 << 20), Some(100 << 20)).swap(), Some(0));
        assert_eq!(limits(Some(100 << 20), None).swap(), Some(100 << 20));
        assert!(limits(None, Some(1)).check().is_err());
        assert!(limits(Some(100 << 20), Some(99 << 20)).check().is_err());
        assert!(limits(Some(1 << 20), None).check().is_err());
        assert!(limits(Some(100 << 20), Some(-1)).check().is_ok());
    }
}
