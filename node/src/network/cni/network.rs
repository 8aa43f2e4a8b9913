//! Network configurations: which plugins connect a pod, and what each is told.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::CniError;

/// Versions whose results have a list of addresses.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The first version in which DEL is told what ADD had made.
const DELETE_KNOWS_FROM: &str = "0.4.0";

/// A network: plugins in turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetworkList {
    pub(super) name: String,
    cni_version: String,
    pub(super) plugins: Vec<Map<String, Value>>,
}

impl NetworkList {
    /// The first of a directory by name, as libcni chooses it.
    pub(super) fn load(dir: &Path) -> Result<Self, CniError> {
        let is_network = |path: &PathBuf| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("conflist" | "conf" | "json")) && path.is_file()
        };
        let files = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let first = files.filter(is_network).min();
        let path = first.ok_or_else(|| CniError::NoNetwork { dir: dir.to_owned() })?;
        let text = fs::read_to_string(&path).map_err(|error| error.to_string());
        text.and_then(|text| Self::parse(&text)).map_err(|problem| CniError::Network { path, problem })
    }

    /// Reads a list, or a configuration of one plugin alone.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let listed = match value.get("plugins") {
            Some(_) => value,
            None => {
                json!({"name": value["name"], "cniVersion": value["cniVersion"], "plugins": [value]})
            }
        };
        let list: Self = serde_json::from_value(listed).map_err(|error| error.to_string())?;
        if !VERSIONS.contains(&list.cni_version.as_str()) {
            return Err(format!("cniVersion is {:?}: use one of {}", list.cni_version, VERSIONS.join(", ")));
        }
        if list.plugins.is_empty() {
            return Err("it has no plugins".to_owned());
        }
        // A plugin's name becomes a file name.
        if let Some(bad) = list.plugins.iter().map(type_of).find(|name| name.is_empty() || name.contains('/'))
        {
            return Err(format!("{bad:?} is not the type of a plugin"));
        }
        Ok(list)
    }

    /// Whether a plugin wants to be told something.
    pub(super) fn has_capability(&self, name: &str) -> bool {
        self.plugins.iter().any(|plugin| wants(plugin, name))
    }

    /// What a plugin is given: its own part, the network's name and version, the capabilities that it has, and what was
    /// made before.
    pub(super) fn given_to(
        &self,
        plugin: &Map<String, Value>,
        capabilities: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Value {
        let mut given = plugin.clone();
        given.insert("name".to_owned(), json!(self.name));
        given.insert("cniVersion".to_owned(), json!(self.cni_version));
        let wanted = capabilities.iter().filter(|(name, _)| wants(plugin, name));
        let wanted: Map<String, Value> = wanted.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !wanted.is_empty() {
            given.insert("runtimeConfig".to_owned(), Value::Object(wanted));
        }
        if let Some(previous) = previous {
            given.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(given)
    }

    /// Whether DEL is given the result of ADD.
    pub(super) fn tells_delete(&self) -> bool {
        let place = |version: &str| VERSIONS.iter().position(|known| *known == version);
        place(&self.cni_version) >= place(DELETE_KNOWS_FROM)
    }
}

/// A plugin's name.
pub(super) fn type_of(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn wants(plugin: &Map<String, Value>, capability: &str) -> bool {
    plugin.get("capabilities").is_some_and(|capabilities| capabilities[capability] == true)
}
