//! Kernel settings under `/proc/sys`. Those under `net.` belong to the network namespace of the
//! calling thread: call from within [`super::NetNs::run`] for another one's.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Error, NetNs};

/// Reads a setting by its dotted name (`net.ipv4.ip_forward`).
pub fn get(name: &str) -> Result<String, Error> {
    let path = path_of(name)?;
    let text = fs::read_to_string(&path).map_err(|error| Error::io("read", &path, error))?;
    Ok(text.trim_end().to_owned())
}

/// Writes a setting by its dotted name. A slash may stand for the dot, for interface names with dots.
pub fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = path_of(name)?;
    fs::write(&path, value).map_err(|error| Error::io("write", &path, error))
}

/// Writes a setting inside a network namespace.
pub fn set_in(netns: &NetNs, name: &str, value: &str) -> Result<(), Error> {
    netns.run(|| set(name, value))?
}

fn path_of(name: &str) -> Result<PathBuf, Error> {
    let relative = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let escapes = relative.split('/').any(|part| part.is_empty() || part == "..");
    if escapes {
        return Err(Error::InvalidName {
            name: name.to_owned(),
            what: "sysctl",
            why: "it must be dotted words",
        });
    }
    Ok(Path::new("/proc/sys").join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_and_cannot_leave_the_tree() {
        assert_eq!(path_of("net.ipv4.ip_forward").unwrap(), Path::new("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(
            path_of("net/ipv4/conf/eth0.1/forwarding").unwrap(),
            Path::new("/proc/sys/net/ipv4/conf/eth0.1/forwarding")
        );
        for name in ["", "..", "net/../../etc", "net..ipv4"] {
            assert!(path_of(name).is_err(), "{name}");
        }
    }
}
