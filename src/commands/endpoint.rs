//! `barque endpoint`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::cli::EndpointArgs;
use crate::{config, endpoint, signals};

/// What the endpoint is configured by.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct EndpointConfig {
    listen: Option<SocketAddr>,
    ca: PathBuf,
    masters: Vec<SocketAddr>,
}

impl EndpointConfig {
    /// What the file says, and the flags before it.
    fn read(args: &EndpointArgs) -> anyhow::Result<Self> {
        let file: Self = match &args.config {
            Some(path) => config::load(path)?,
            None => Self::default(),
        };
        let masters = if args.masters.is_empty() { file.masters } else { args.masters.clone() };
        let read =
            Self { listen: args.listen.or(file.listen), ca: args.ca.clone().unwrap_or(file.ca), masters };
        ensure!(
            !read.ca.as_os_str().is_empty(),
            "the cluster's CA certificate is not named: give --ca or `ca`"
        );
        ensure!(!read.masters.is_empty(), "no master is named: give --master or `masters`");
        Ok(read)
    }
}

/// Runs the endpoint until TERM or INT.
pub(crate) fn run(args: &EndpointArgs) -> anyhow::Result<()> {
    let EndpointConfig { listen, ca, masters } = EndpointConfig::read(args)?;
    let listen = listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 6443)));
    // It moves bytes; one thread is plenty and keeps it small.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?
        .block_on(async {
            let shutdown = signals::shutdown_token()?;
            endpoint::serve(listen, &ca, &masters, shutdown).await
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_before_what_the_file_says() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "listen: 127.0.0.1:1\nca: a.crt\nmasters: ['10.0.0.1:6443']\n").unwrap();
        let flags = |config: bool, ca: Option<&str>, masters: &[&str]| EndpointArgs {
            config: config.then(|| file.path().to_owned()),
            listen: None,
            ca: ca.map(PathBuf::from),
            masters: masters.iter().map(|address| address.parse().unwrap()).collect(),
        };
        let read = EndpointConfig::read(&flags(true, Some("b.crt"), &[])).unwrap();
        assert_eq!(read.listen, "127.0.0.1:1".parse().ok());
        assert_eq!((read.ca, read.masters), ("b.crt".into(), vec!["10.0.0.1:6443".parse().unwrap()]));
        let alone = EndpointConfig::read(&flags(false, Some("b.crt"), &["10.0.0.2:1"])).unwrap();
        assert_eq!((alone.listen, alone.masters), (None, vec!["10.0.0.2:1".parse().unwrap()]));
        let nobody = EndpointConfig::read(&flags(false, Some("b.crt"), &[])).unwrap_err().to_string();
        assert!(nobody.contains("--master"), "{nobody}");
    }
}
