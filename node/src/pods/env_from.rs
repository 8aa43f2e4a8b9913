//! Environment variables out of ConfigMaps and Secrets: `envFrom`, `configMapKeyRef`, `secretKeyRef`.
//!
//! Pure lookups in what the control plane gave the node; the sentences are the kubelet's. What is optional
//! and missing sets nothing; what is needed and missing is said, and the container waits for it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMapKeySelector, Container, EnvFromSource, EnvVarSource, SecretKeySelector,
};

use crate::objects::{Lookup, Objects};

/// Where variables are looked for.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) objects: &'a Objects,
    pub(crate) namespace: &'a str,
}

impl std::fmt::Debug for Sources<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Sources").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// The variables of the container's `envFrom`, in its order: a later source wins.
pub(crate) fn all(sources: Sources<'_>, container: &Container) -> Result<Vec<(String, String)>, String> {
    let mut variables = Vec::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let values = values(sources, source)?.unwrap_or_default();
        let named = values.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value));
        variables.extend(named.filter(|(name, _)| is_variable_name(name)));
    }
    Ok(variables)
}

/// What is to be told of keys that make no variable names: one sentence per source that has any.
pub(crate) fn skipped(sources: Sources<'_>, container: &Container) -> Vec<String> {
    let mut sentences = Vec::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let Ok(Some(values)) = values(sources, source) else { continue };
        let names = values.keys().map(|key| format!("{prefix}{key}"));
        let invalid: Vec<String> = names.filter(|name| !is_variable_name(name)).collect();
        if invalid.is_empty() {
            continue;
        }
        let (kind, object) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(map), _) => ("configMap", map.name.as_str()),
            (None, secret) => ("secret", secret.as_ref().map_or("", |secret| secret.name.as_str())),
        };
        sentences.push(format!(
            "Keys [{}] from the EnvFrom {kind} {}/{object} were skipped since they are considered invalid \
             environment variable names.",
            invalid.join(", "),
            sources.namespace
        ));
    }
    sentences
}

/// The value of a variable that names a key; `None`: it is optional and not there, so nothing is set.
pub(crate) fn one(sources: Sources<'_>, source: &EnvVarSource) -> Option<Result<Option<String>, String>> {
    if let Some(key) = &source.config_map_key_ref {
        return Some(of_config_map(sources, key));
    }
    source.secret_key_ref.as_ref().map(|key| of_secret(sources, key))
}

fn of_config_map(sources: Sources<'_>, selector: &ConfigMapKeySelector) -> Result<Option<String>, String> {
    let optional = selector.optional.unwrap_or(false);
    let found = sources.objects.config_map(sources.namespace, &selector.name);
    let Some(map) = found.or_optional("configmap", &selector.name, optional)? else { return Ok(None) };
    match map.data.as_ref().and_then(|data| data.get(&selector.key)) {
        Some(value) => Ok(Some(value.clone())),
        None if optional => Ok(None),
        None => Err(format!(
            "couldn't find key {} in ConfigMap {}/{}",
            selector.key, sources.namespace, selector.name
        )),
    }
}

fn of_secret(sources: Sources<'_>, selector: &SecretKeySelector) -> Result<Option<String>, String> {
    let optional = selector.optional.unwrap_or(false);
    let found = sources.objects.secret(sources.namespace, &selector.name);
    let Some(secret) = found.or_optional("secret", &selector.name, optional)? else { return Ok(None) };
    match secret.data.as_ref().and_then(|data| data.get(&selector.key)) {
        Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
        None if optional => Ok(None),
        None => Err(format!(
            "couldn't find key {} in Secret {}/{}",
            selector.key, sources.namespace, selector.name
        )),
    }
}

type Values = BTreeMap<String, String>;

fn values(sources: Sources<'_>, source: &EnvFromSource) -> Result<Option<Values>, String> {
    if let Some(map) = &source.config_map_ref {
        let found = sources.objects.config_map(sources.namespace, &map.name);
        let found = found.or_optional("configmap", &map.name, map.optional.unwrap_or(false))?;
        return Ok(found.map(|map| map.data.clone().unwrap_or_default()));
    }
    if let Some(secret) = &source.secret_ref {
        let found = sources.objects.secret(sources.namespace, &secret.name);
        let found = found.or_optional("secret", &secret.name, secret.optional.unwrap_or(false))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        return Ok(found.map(|secret| {
            secret.data.iter().flatten().map(|(key, value)| (key.clone(), text(&value.0))).collect()
        }));
    }
    Ok(None)
}

/// What a shell takes as a name, and dashes and dots: keys of objects are checked more strictly than names
/// that a pod spells out, because nobody has looked at them as names before.
fn is_variable_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.starts_with(|first: char| first.is_ascii_digit())
        && !matches!(text, "" | "." | "..")
        && !text.starts_with("..")
        && text.bytes().all(plain)
}

impl<T> Lookup<T> {
    /// The object, `None` if it is optional and missing, or the sentence that the kubelet has for it.
    pub(crate) fn or_optional(
        self,
        kind: &str,
        name: &str,
        optional: bool,
    ) -> Result<Option<std::sync::Arc<T>>, String> {
        match self {
            Self::Found(object) => Ok(Some(object)),
            Self::Missing if optional => Ok(None),
            Self::Missing => Err(format!("{kind} \"{name}\" not found")),
            Self::Unknown => Err(format!("failed to sync {kind} cache: timed out waiting for the condition")),
        }
    }
}

#[cfg(test)]
mod tests {
    use api::references::{Reference, ReferenceKind};
    use serde_json::json;

    use super::*;

    fn objects() -> Objects {
        let objects = Objects::default();
        let map = json!({"metadata": {"name": "m"}, "data": {"a": "1", "2b": "2", "x.y": "3"}});
        objects.put(Reference::new(ReferenceKind::ConfigMap, "ns", "m"), map.to_string().as_bytes());
        let secret = json!({"metadata": {"name": "s"}, "data": {"user": "cm9vdA=="}});
        objects.put(Reference::new(ReferenceKind::Secret, "ns", "s"), secret.to_string().as_bytes());
        let kinds = [(ReferenceKind::ConfigMap, "m"), (ReferenceKind::Secret, "s")];
        objects.keep_only(&kinds.map(|(kind, name)| Reference::new(kind, "ns", name)));
        objects
    }

    fn container(env_from: serde_json::Value) -> Container {
        serde_json::from_value(json!({"name": "c", "envFrom": env_from})).unwrap()
    }

    #[test]
    fn whole_objects_become_variables_and_bad_names_are_told() {
        let objects = objects();
        let sources = Sources { objects: &objects, namespace: "ns" };
        let container = container(json!([
            {"configMapRef": {"name": "m"}},
            {"prefix": "DB_", "secretRef": {"name": "s"}},
            {"configMapRef": {"name": "none", "optional": true}},
        ]));
        let pairs = all(sources, &container).unwrap();
        let pairs: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(pairs, ["a=1", "x.y=3", "DB_user=root"]);
        assert_eq!(
            skipped(sources, &container),
            [
                "Keys [2b] from the EnvFrom configMap ns/m were skipped since they are considered invalid environment variable names."
            ]
        );
    }

    #[test]
    fn what_is_missing_is_said_unless_it_is_optional() {
        let objects = objects();
        let sources = Sources { objects: &objects, namespace: "ns" };
        let source = |json| serde_json::from_value::<EnvVarSource>(json).unwrap();
        for (wanted, expected) in [
            (json!({"configMapKeyRef": {"name": "m", "key": "a"}}), Ok(Some("1"))),
            (json!({"secretKeyRef": {"name": "s", "key": "user"}}), Ok(Some("root"))),
            (json!({"configMapKeyRef": {"name": "m", "key": "z", "optional": true}}), Ok(None)),
            (json!({"secretKeyRef": {"name": "z", "key": "z", "optional": true}}), Ok(None)),
            (
                json!({"configMapKeyRef": {"name": "m", "key": "z"}}),
                Err("couldn't find key z in ConfigMap ns/m"),
            ),
            (json!({"secretKeyRef": {"name": "s", "key": "z"}}), Err("couldn't find key z in Secret ns/s")),
            (json!({"configMapKeyRef": {"name": "z", "key": "z"}}), Err("configmap \"z\" not found")),
            (json!({"secretKeyRef": {"name": "z", "key": "z"}}), Err("secret \"z\" not found")),
        ] {
            let got = one(sources, &source(wanted.clone())).unwrap();
            assert_eq!(got, expected.map(|v| v.map(str::to_owned)).map_err(str::to_owned), "{wanted}");
        }
        let error = all(sources, &container(json!([{"secretRef": {"name": "z"}}]))).unwrap_err();
        assert_eq!(error, "secret \"z\" not found");
        let nothing = Objects::default();
        let sources = Sources { objects: &nothing, namespace: "ns" };
        let error = all(sources, &container(json!([{"configMapRef": {"name": "m", "optional": true}}])));
        assert_eq!(error.unwrap_err(), "failed to sync configmap cache: timed out waiting for the condition");
    }
}
