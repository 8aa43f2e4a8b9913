//! The engine's configuration: YAML, camelCase keys, unknown ones refused, every one with a default.

use std::path::PathBuf;

use runtime::UserIds;
use serde::{Deserialize, Serialize};

use crate::ConfigError;
use crate::images::ImagesConfig;
use crate::network::check_range;

/// How single containers are run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EngineConfig {
    /// Images, writable layers, logs, names and addresses.
    pub data_dir: PathBuf,
    /// What lives as long as the machine is up: the runtime's state.
    pub run_dir: PathBuf,
    /// The control group that holds those of the containers, in each hierarchy.
    pub cgroup_parent: String,
    /// How to start a shim. Empty: this binary with the argument `shim`.
    pub shim_command: Vec<String>,
    /// What a shim starts when its container has ended; the container's id is added. Empty: nothing, and what
    /// an ended container holds is freed by the next command.
    pub settle_command: Vec<String>,
    /// The bridge that containers are attached to.
    pub bridge_name: String,
    /// The range of containers' addresses; the first is the bridge's.
    pub bridge_range: String,
    /// A user namespace for all containers: which ids of the host are theirs. Not set: the host's users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_remap: Option<UsersRemap>,
    /// Pulling images.
    pub images: ImagesConfig,
}

/// The ids of the host that containers' users have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UsersRemap {
    /// The one that is root inside.
    pub first_id: u32,
    /// How many there are.
    pub ids: u32,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/barque/containers".into(),
            run_dir: "/run/barque/containers".into(),
            cgroup_parent: "docker".into(),
            shim_command: Vec::new(),
            settle_command: Vec::new(),
            bridge_name: "barque0".into(),
            bridge_range: "172.17.0.0/16".into(),
            users_remap: None,
            images: ImagesConfig::default(),
        }
    }
}

impl EngineConfig {
    /// Checks what the types cannot express.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |key, problem: String| Err(ConfigError::Value { key, problem });
        for (key, path) in [("dataDir", &self.data_dir), ("runDir", &self.run_dir)] {
            if !path.is_absolute() {
                return refuse(key, format!("{} must be an absolute path", path.display()));
            }
        }
        if self.cgroup_parent.is_empty()
            || self.cgroup_parent.split('/').any(|part| matches!(part, "" | "." | ".."))
        {
            return refuse(
                "cgroupParent",
                format!("{:?} must be a relative path of plain names", self.cgroup_parent),
            );
        }
        if self.bridge_name.is_empty() || self.bridge_name.len() > 15 {
            return refuse("bridgeName", format!("{:?} must have 1 to 15 characters", self.bridge_name));
        }
        if let Some(problem) = check_range(&self.bridge_range) {
            return refuse("bridgeRange", problem);
        }
        match self.images.problem() {
            Some((key, problem)) => refuse(key, problem),
            None => Ok(()),
        }
    }

    /// The command that starts a shim.
    pub(super) fn shim_command(&self) -> Vec<String> {
        match self.shim_command.is_empty() {
            true => vec!["/proc/self/exe".to_owned(), "shim".to_owned()],
            false => self.shim_command.clone(),
        }
    }

    /// The containers' ids on the host, if they are not the host's.
    pub(super) fn users(&self) -> Option<UserIds> {
        self.users_remap.map(|remap| UserIds { first: remap.first_id, length: remap.ids })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_refused_by_its_key() {
        assert!(EngineConfig::default().validate().is_ok());
        for (text, key) in [
            ("dataDir: here", "dataDir"),
            ("cgroupParent: ../up", "cgroupParent"),
            ("bridgeRange: 10.0.0.0", "bridgeRange"),
            ("bridgeName: a-name-that-is-too-long", "bridgeName"),
        ] {
            let config: EngineConfig = serde_saphyr::from_str(text).unwrap();
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        assert!(serde_saphyr::from_str::<EngineConfig>("dataDirr: /x").is_err());
    }
}
