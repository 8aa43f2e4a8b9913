//! etcd's configuration file: YAML whose keys are the flags' names, with TLS in two sections of its own.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::flags::Given;

/// The sections, and what goes before their keys to make flags of them.
const SECTIONS: [(&str, &str); 2] = [("client-transport-security", ""), ("peer-transport-security", "peer-")];

/// Reads a file. As in etcd, it replaces flags and environment altogether.
pub(crate) fn read(path: &Path) -> anyhow::Result<Given> {
    let file: Value = crate::config::load(path)?;
    given(&file).with_context(|| format!("the configuration file {}", path.display()))
}

fn given(file: &Value) -> anyhow::Result<Given> {
    let mut given = Given::default();
    let Value::Object(settings) = file else { bail!("it is not a list of `name: value`") };
    for (key, value) in settings {
        match SECTIONS.iter().find(|(section, _)| section == key) {
            None => given.take(key, text(key, value)?, key)?,
            Some((section, prefix)) => {
                let Value::Object(settings) = value else {
                    bail!("{section} is not a list of `name: value`")
                };
                for (key, value) in settings {
                    // The authority's file and the switches are named alike in both sections.
                    given.take(&format!("{prefix}{key}"), text(key, value)?, &format!("{section}.{key}"))?;
                }
            }
        }
    }
    Ok(given)
}

fn text(key: &str, value: &Value) -> anyhow::Result<String> {
    Ok(match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(values) => {
            values.iter().map(|value| text(key, value)).collect::<anyhow::Result<Vec<_>>>()?.join(",")
        }
        Value::Object(_) => bail!("{key} is a section, which is not known"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_flags_and_tls_has_sections() {
        let file: Value = serde_saphyr::from_str(
            "name: a\nquota-backend-bytes: 1000\nstrict-reconfig-check: false\nlog-outputs: [stderr]\n\
             client-transport-security:\n  cert-file: c\n  client-cert-auth: true\n\
             peer-transport-security:\n  trusted-ca-file: ca\n  cert-file:\n",
        )
        .unwrap();
        let given = given(&file).unwrap();
        assert_eq!(given.get("name"), Some("a"));
        assert_eq!(given.get("quota-backend-bytes"), Some("1000"));
        assert!(!given.switch("strict-reconfig-check", true).unwrap());
        assert!(given.switch("client-cert-auth", false).unwrap());
        assert_eq!(given.get("cert-file"), Some("c"));
        assert_eq!(given.get("peer-trusted-ca-file"), Some("ca"));
        assert_eq!(given.get("peer-cert-file"), Some(""));
        assert_eq!(given.remarks.len(), 1);
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = |text: &str| format!("{:#}", given(&serde_saphyr::from_str(text).unwrap()).unwrap_err());
        assert!(error("nmae: a").contains("nmae"));
        assert!(error("client-transport-security:\n  nonsense: 1").contains("nonsense"));
        assert!(error("name:\n  a: b").contains("section"));
    }
}
