//! `http://host:port` and `https://host:port`, as etcd's URL flags have them.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};

use anyhow::{Context as _, bail, ensure};

/// Where something is served, and whether behind TLS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Url {
    pub(crate) https: bool,
    /// A name or an address; IPv6 addresses in brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Url {
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").with_context(|| {
            format!("{text:?} is no URL: write http://address:port or https://address:port")
        })?;
        let https = match scheme {
            "http" => false,
            "https" => true,
            "unix" | "unixs" => {
                bail!("{text:?}: sockets of the file system are not served; use a loopback address")
            }
            _ => bail!("{text:?}: the scheme must be http or https"),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        ensure!(!authority.contains('/'), "{text:?}: a URL of a member has no path");
        let (host, port) = authority.rsplit_once(':').with_context(|| format!("{text:?} names no port"))?;
        ensure!(!host.is_empty(), "{text:?} names no host");
        let port = port.parse().with_context(|| format!("{text:?}: {port:?} is no port"))?;
        Ok(Self { https, host: host.to_owned(), port })
    }

    /// A list separated by commas.
    pub(crate) fn parse_list(text: &str) -> anyhow::Result<Vec<Self>> {
        let urls: Vec<Self> = text.split(',').map(Self::parse).collect::<anyhow::Result<_>>()?;
        Ok(urls)
    }

    /// `host:port`.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The address to listen on.
    pub(crate) fn listen_address(&self) -> anyhow::Result<SocketAddr> {
        let mut addresses = self
            .authority()
            .to_socket_addrs()
            .with_context(|| format!("cannot find the address of {self}"))?;
        addresses.next().with_context(|| format!("{self} has no address"))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", if self.https { "https" } else { "http" }, self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_written_back() {
        for text in ["http://127.0.0.1:2379", "https://[::1]:2380", "http://etcd-0.etcd:1"] {
            assert_eq!(Url::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Url::parse("http://a:1/").unwrap().authority(), "a:1");
        assert_eq!(Url::parse_list("http://a:1,https://b:2").unwrap().len(), 2);
    }

    #[test]
    fn what_is_no_url_is_refused_with_the_reason() {
        for (text, reason) in [
            ("a:1", "is no URL"),
            ("ftp://a:1", "http or https"),
            ("unix://a:1", "not served"),
            ("http://a", "names no port"),
            ("http://a:1/x", "no path"),
            ("http://a:99999", "is no port"),
            ("http://:1", "names no host"),
            ("", "is no URL"),
        ] {
            let error = format!("{:#}", Url::parse(text).unwrap_err());
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
