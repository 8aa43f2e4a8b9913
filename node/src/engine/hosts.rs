//! The files of `/etc` that the engine writes for a container: its own name, those of linked containers, name servers.
//!
//! They are mounted one by one, so they are changed in place: a new file under the old name would stay outside.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::options::NetworkMode;
use super::record::Record;
use super::{Engine, EngineError};

/// Where they lie, below a container's directory and inside.
pub(super) const ETC_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

impl Engine {
    /// The directory of a container's files; those of whom it shares the network with.
    pub(super) fn etc_dir(&self, record: &Record) -> PathBuf {
        match &record.asked.network {
            NetworkMode::Container(other) => self.records.dir(other).join("etc"),
            _ => self.records.dir(&record.id).join("etc"),
        }
    }

    /// Writes a container's files. Not for one that has those of another.
    pub(super) fn write_etc(&self, record: &Record) -> Result<(), EngineError> {
        if matches!(record.asked.network, NetworkMode::Container(_)) {
            return Ok(());
        }
        let dir = self.etc_dir(record);
        fs::create_dir_all(&dir).map_err(EngineError::io("create", &dir))?;
        let host_file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (hostname, resolv_conf) = match record.asked.network {
            NetworkMode::Host => (host_file("/etc/hostname"), host_file("/etc/resolv.conf")),
            _ => (format!("{}\n", hostname(record)), reachable(&host_file("/etc/resolv.conf"))),
        };
        write_in_place(&dir.join("hostname"), &hostname)?;
        write_in_place(&dir.join("resolv.conf"), &resolv_conf)?;
        self.write_hosts(record)
    }

    fn write_hosts(&self, record: &Record) -> Result<(), EngineError> {
        let text = match record.asked.network {
            NetworkMode::Host => fs::read_to_string("/etc/hosts").unwrap_or_default(),
            _ => {
                let mut linked = Vec::new();
                for link in &record.asked.links {
                    if let Some(other) = self.records.read(&link.container)?
                        && let Some(ip) = other.ip
                    {
                        let names = format!("{} {} {}", link.alias, other.short_id(), other.name);
                        linked.push((ip, names));
                    }
                }
                hosts(&hostname(record), record.ip, &linked)
            }
        };
        write_in_place(&self.etc_dir(record).join("hosts"), &text)
    }

    /// Tells those who are linked to a container, and stand, of its address.
    pub(super) fn tell_linked(&self, of: &Record) -> Result<(), EngineError> {
        for other in self.records.all()? {
            if other.standing && other.asked.links.iter().any(|link| link.container == of.id) {
                self.write_hosts(&other)?;
            }
        }
        Ok(())
    }
}

/// The host name inside.
pub(super) fn hostname(record: &Record) -> String {
    match record.asked.hostname.as_str() {
        "" => record.short_id().to_owned(),
        own => own.to_owned(),
    }
}

fn hosts(hostname: &str, ip: Option<IpAddr>, linked: &[(IpAddr, String)]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for (ip, names) in linked {
        text += &format!("{ip}\t{names}\n");
    }
    if let Some(ip) = ip {
        text += &format!("{ip}\t{hostname}\n");
    }
    text
}

/// The host's name servers, but for those at its loopback, which are out of a container's reach.
fn reachable(resolv_conf: &str) -> String {
    let is_loopback = |line: &&str| {
        let address =
            line.strip_prefix("nameserver").map(str::trim).and_then(|text| text.parse::<IpAddr>().ok());
        address.is_some_and(|address| address.is_loopback())
    };
    resolv_conf.split_inclusive('\n').filter(|line| !is_loopback(line)).collect()
}

fn write_in_place(path: &Path, text: &str) -> Result<(), EngineError> {
    let file = fs::OpenOptions::new().create(true).truncate(true).write(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(EngineError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linked_containers_have_names() {
        let linked = [("172.17.0.2".parse().unwrap(), "db 0123456789ab store".to_owned())];
        let text = hosts("web", Some("172.17.0.3".parse().unwrap()), &linked);
        assert!(text.contains("172.17.0.2\tdb 0123456789ab store\n172.17.0.3\tweb\n"), "{text}");
    }

    #[test]
    fn servers_out_of_reach_are_left_out() {
        let text = "search lab\nnameserver 127.0.0.53\nnameserver 10.0.0.1\n";
        assert_eq!(reachable(text), "search lab\nnameserver 10.0.0.1\n");
    }
}
