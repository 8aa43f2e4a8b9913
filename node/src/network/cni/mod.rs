//! Pod networking by plugins of the Container Network Interface, version 0.3.0 to 1.0.0
//! (<https://github.com/containernetworking/cni/blob/spec-v1.0.0/SPEC.md>), instead of the node's own bridge.
//!
//! ```text
//! attach ─► the first network configuration of the directory ─► each plugin in turn: ADD, given what the one before made
//! release ─► the same plugins as then, in turn from the last: DEL
//! ```
//! What a pod was connected with is written down before the first plugin runs, so that it is taken down by the same
//! plugins, whatever has become of the configuration or the agent since. Owns these files. Promises that nothing is added
//! twice and that what was added is deleted before its file goes. Does not: choose addresses, or know what plugins do.

mod network;
mod plugin;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::net::{NetNs, Netlink};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::network::NetworkList;
use self::plugin::{Call, Command};
use super::{BridgeNetwork, NetworkError, POD_LINK, PodNetwork, Wanted, file_error};
use crate::pods::admission::HostPort;
use crate::pods::bandwidth::Bandwidth;

/// Where network configurations and plugins are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CniConfig {
    /// The directory of network configurations; the first by name counts.
    pub conf_dir: PathBuf,
    /// The directories of plugins.
    pub bin_dirs: Vec<PathBuf>,
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        }
    }
}

impl CniConfig {
    /// The key that is wrong and what is, if anything.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        if self.bin_dirs.is_empty() {
            return Some((
                "podNetwork.cni.binDirs",
                "is empty: name the directory of the plugins".to_owned(),
            ));
        }
        let relative = self.bin_dirs.iter().chain([&self.conf_dir]).find(|dir| !dir.is_absolute())?;
        Some(("podNetwork.cni", format!("{} is not an absolute path", relative.display())))
    }
}

/// What went wrong with plugins or their configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    /// There is nothing to connect pods with.
    #[error(
        "no network configuration in {dir}: put a file there whose name ends in .conflist, .conf or .json, as the \
         network's installation says"
    )]
    NoNetwork { dir: PathBuf },
    /// A configuration cannot be used.
    #[error("the network configuration {path} cannot be used: {problem}")]
    Network { path: PathBuf, problem: String },
    /// A plugin is nowhere.
    #[error("failed to find plugin {plugin:?} in path {dirs:?}")]
    NoPlugin { plugin: String, dirs: Vec<PathBuf> },
    /// A plugin has failed.
    #[error("plugin type={plugin:?} failed ({command}): {message}")]
    Plugin { plugin: String, command: &'static str, message: String },
    /// No plugin gave the pod an address.
    #[error("the plugins of network {network:?} gave the pod no address")]
    NoAddress { network: String },
    /// Nobody would make the ports of the host that the pod wants.
    #[error(
        "the pod asks for ports of the host, and no plugin of network {network:?} makes them: add the plugin portmap \
         with \"capabilities\": {{\"portMappings\": true}}"
    )]
    NoPorts { network: String },
}

/// What a pod is connected with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attachment {
    network: NetworkList,
    netns: PathBuf,
    /// `CNI_ARGS`.
    args: String,
    /// What plugins get that have the capability, by its name.
    capabilities: Map<String, Value>,
    /// What the last plugin said; `None` until all have.
    result: Option<Value>,
}

impl Attachment {
    /// The pod's address: the first of version 4, else the first.
    fn address(&self) -> Option<IpAddr> {
        let ips = self.result.as_ref()?["ips"].as_array()?;
        let addresses = ips.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok());
        let addresses: Vec<IpAddr> = addresses.collect();
        addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()).copied()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct CniNetwork {
    config: CniConfig,
    dir: PathBuf,
    /// Knows the node's range.
    routes: Arc<BridgeNetwork>,
}

impl CniNetwork {
    /// Keeps what pods are connected with below `dir`.
    pub(crate) fn open(
        dir: PathBuf,
        config: CniConfig,
        routes: Arc<BridgeNetwork>,
    ) -> Result<Self, NetworkError> {
        fs::create_dir_all(&dir).map_err(file_error(&dir))?;
        Ok(Self { config, dir, routes })
    }

    fn file(&self, uid: &str) -> PathBuf {
        self.dir.join(format!("{uid}.json"))
    }

    fn read(&self, uid: &str) -> Result<Option<Attachment>, NetworkError> {
        let path = self.file(uid);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => {
                let parsed = read.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
                parsed.map(Some).map_err(file_error(&path))
            }
        }
    }

    fn write(&self, uid: &str, attachment: &Attachment) -> Result<(), NetworkError> {
        let path = self.file(uid);
        let temporary = path.with_extension("tmp");
        let bytes = serde_json::to_vec(attachment).expect("an attachment has string keys only");
        let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(file_error(&path))
    }

    fn call(
        &self,
        command: Command,
        uid: &str,
        attachment: &Attachment,
        plugin: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Result<Value, NetworkError> {
        let call = Call {
            command,
            container_id: uid,
            // What is gone has no name any more.
            netns: Some(attachment.netns.as_path()).filter(|netns| netns.exists()),
            link: POD_LINK,
            args: &attachment.args,
            bin_dirs: &self.config.bin_dirs,
        };
        let given = attachment.network.given_to(plugin, &attachment.capabilities, previous);
        Ok(call.run(network::type_of(plugin), &given)?)
    }

    fn add(&self, uid: &str, mut attachment: Attachment) -> Result<Attachment, NetworkError> {
        let mut previous = None;
        for plugin in &attachment.network.plugins {
            previous = Some(self.call(Command::Add, uid, &attachment, plugin, previous.as_ref())?);
        }
        attachment.result = previous;
        Ok(attachment)
    }

    fn delete(&self, uid: &str, attachment: &Attachment) -> Result<(), NetworkError> {
        let made = attachment.result.as_ref().filter(|_| attachment.network.tells_delete());
        for plugin in attachment.network.plugins.iter().rev() {
            self.call(Command::Delete, uid, attachment, plugin, made)?;
        }
        let path = self.file(uid);
        fs::remove_file(&path).map_err(file_error(&path))
    }
}

impl PodNetwork for CniNetwork {
    fn reserve(&self, _uid: &str) -> Result<Option<IpAddr>, NetworkError> {
        Ok(None)
    }

    fn attach(&self, pod: &Wanted<'_>, netns: &Path) -> Result<IpAddr, NetworkError> {
        if let Some(known) = self.read(pod.uid)? {
            match known.address().filter(|_| known.netns == netns) {
                Some(address) => return Ok(address),
                None => self.delete(pod.uid, &known)?,
            }
        }
        let pod_cidr = self.routes.pod_cidr().ok_or(NetworkError::NotReady)?;
        let network = NetworkList::load(&self.config.conf_dir)?;
        if !pod.ports.is_empty() && !network.has_capability("portMappings") {
            return Err(CniError::NoPorts { network: network.name }.into());
        }
        let mut capabilities = Map::new();
        capabilities.insert("portMappings".to_owned(), pod.ports.iter().map(mapping).collect());
        capabilities.insert("ipRanges".to_owned(), json!([[{"subnet": pod_cidr}]]));
        capabilities.extend(bandwidth(pod.bandwidth).map(|value| ("bandwidth".to_owned(), value)));
        if capabilities.contains_key("bandwidth") && !network.has_capability("bandwidth") {
            tracing::warn!(pod = pod.name, network = network.name, "no plugin holds pods to a bandwidth");
        }
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={uid};K8S_POD_UID={uid}",
            pod.namespace,
            pod.name,
            uid = pod.uid
        );
        let attachment = Attachment { network, netns: netns.to_owned(), args, capabilities, result: None };
        self.write(pod.uid, &attachment)?;
        Netlink::open_in(&NetNs::open(netns)?)?.set_up("lo")?;
        let attachment = self.add(pod.uid, attachment)?;
        self.write(pod.uid, &attachment)?;
        let network = &attachment.network.name;
        attachment.address().ok_or_else(|| CniError::NoAddress { network: network.clone() }.into())
    }

    /// Plugins have done that.
    fn publish(&self, _uid: &str, _ip: IpAddr, _ports: &[HostPort]) -> Result<(), NetworkError> {
        Ok(())
    }

    /// What plugins have made stays without the agent.
    fn publish_all(&self, _pods: &[(String, IpAddr, Vec<HostPort>)]) -> Result<(), NetworkError> {
        Ok(())
    }

    fn release(&self, uid: &str) -> Result<(), NetworkError> {
        match self.read(uid)? {
            Some(attachment) => self.delete(uid, &attachment),
            None => Ok(()),
        }
    }

    fn owners(&self) -> Result<Vec<String>, NetworkError> {
        let files = fs::read_dir(&self.dir).map_err(file_error(&self.dir))?.flatten();
        let uid = |file: fs::DirEntry| {
            file.file_name().into_string().ok()?.strip_suffix(".json").map(str::to_owned)
        };
        Ok(files.filter_map(uid).collect())
    }
}

/// What a pod may send and receive, as the plugin of that name wants it: bits, and bits a second.
fn bandwidth(Bandwidth { ingress, egress }: Bandwidth) -> Option<Value> {
    let mut value = Map::new();
    for (direction, rate) in [("ingress", ingress), ("egress", egress)] {
        if let Some(rate) = rate {
            value.insert(format!("{direction}Rate"), json!(rate));
            value.insert(format!("{direction}Burst"), json!(runtime::net::burst_bytes(rate) * 8));
        }
    }
    (!value.is_empty()).then_some(Value::Object(value))
}

/// A port as portmap wants it.
fn mapping(port: &HostPort) -> Value {
    let mut mapping = json!({
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": port.protocol.to_lowercase(),
    });
    if let Some(address) = port.address {
        mapping["hostIP"] = json!(address.to_string());
    }
    mapping
}

#[cfg(test)]
mod tests;
