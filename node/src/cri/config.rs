//! The CRI server's configuration: YAML in the style of the node agent's. Keys are camelCase, unknown keys are
//! refused, every key has a default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ConfigError;
use crate::images::ImagesConfig;
use crate::network::check_range;

/// How the CRI server is to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CriConfig {
    /// The unix socket that the services are served on; mode 0600.
    pub socket: PathBuf,
    /// What must outlive a restart of the server: images, what was asked of sandboxes and containers, addresses.
    pub data_dir: PathBuf,
    /// What lives as long as the machine is up: the runtime's state.
    pub run_dir: PathBuf,
    /// The cgroup of sandboxes that name no parent of their own, as a path from the controllers' roots.
    pub cgroup_root: String,
    /// How to start a container shim. Empty: this binary with the argument `shim`.
    pub shim_command: Vec<String>,
    /// The bridge that sandboxes are attached to.
    pub bridge_name: String,
    /// The range of sandboxes' addresses. Empty: what a kubelet tells (UpdateRuntimeConfig).
    pub pod_cidr: String,
    /// Where Exec, Attach and PortForward are streamed; port 0: any free one.
    pub streaming_address: SocketAddr,
    /// Whether `barque/hello:1.0` is made out of this binary and imported at start.
    pub builtin_image: bool,
    /// The binary that the built-in image is made of. Empty: this binary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builtin_binary: Option<PathBuf>,
    /// Image archives (or layout directories) imported at start when their images are not there yet.
    pub image_archives: Vec<PathBuf>,
    /// Pulling images. Removing unused ones is the kubelet's business, not the server's.
    pub images: ImagesConfig,
}

impl Default for CriConfig {
    fn default() -> Self {
        Self {
            socket: "/run/barque/cri.sock".into(),
            data_dir: "/var/lib/barque/cri".into(),
            run_dir: "/run/barque/cri".into(),
            cgroup_root: "/barque-cri".into(),
            shim_command: Vec::new(),
            bridge_name: "cri0".into(),
            pod_cidr: "10.88.0.0/16".into(),
            streaming_address: SocketAddr::from(([127, 0, 0, 1], 0)),
            builtin_image: false,
            builtin_binary: None,
            image_archives: Vec::new(),
            images: ImagesConfig::default(),
        }
    }
}

impl CriConfig {
    /// Reads and validates the configuration file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self = serde_saphyr::from_str(&text).map_err(|e| ConfigError::Parse(e.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what the types cannot express.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |key, problem: String| Err(ConfigError::Value { key, problem });
        let paths = [("socket", &self.socket), ("dataDir", &self.data_dir), ("runDir", &self.run_dir)];
        for (key, path) in paths {
            if !path.is_absolute() {
                return refuse(key, format!("{} must be an absolute path", path.display()));
            }
        }
        if self.bridge_name.is_empty() || self.bridge_name.len() > 15 {
            return refuse("bridgeName", format!("{:?} must have 1 to 15 characters", self.bridge_name));
        }
        if !self.pod_cidr.is_empty()
            && let Some(problem) = check_range(&self.pod_cidr)
        {
            return refuse("podCidr", problem);
        }
        if !self.streaming_address.ip().is_loopback() {
            let problem = "must be a loopback address: whoever knows a stream's token may use it".to_owned();
            return refuse("streamingAddress", problem);
        }
        match self.images.problem() {
            Some((key, problem)) => refuse(key, problem),
            None => Ok(()),
        }
    }

    /// The command that starts a shim.
    pub(crate) fn shim_command(&self) -> Vec<String> {
        match self.shim_command.is_empty() {
            true => vec!["/proc/self/exe".to_owned(), "shim".to_owned()],
            false => self.shim_command.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_refused_by_its_key() {
        assert!(CriConfig::default().validate().is_ok());
        for (text, key) in [
            ("socket: here", "socket"),
            ("podCidr: 10.0.0.0", "podCidr"),
            ("bridgeName: a-name-that-is-too-long", "bridgeName"),
            ("streamingAddress: 0.0.0.0:1", "streamingAddress"),
        ] {
            let config: CriConfig = serde_saphyr::from_str(text).unwrap();
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        assert!(serde_saphyr::from_str::<CriConfig>("sockett: /x").is_err());
    }
}
