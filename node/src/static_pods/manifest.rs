//! A manifest as a pod of this node: the kubelet's rules for names, identity and annotations. Pure.
//!
//! What the API would have filled in or refused is filled in and refused here; what only the API could give
//! (objects, service accounts) cannot be asked for.

use std::path::{Path, PathBuf};

use api::references;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::pods::admission::SOURCE_ANNOTATION;

const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
const SEEN_ANNOTATION: &str = "kubernetes.io/config.seen";
/// Hex digits of a uid that is made of a manifest's content.
const UID_DIGITS: usize = 32;
const UID_BYTES_MAX: usize = 63;
/// The priorities that exist without an API.
const PRIORITY_CLASSES: [(&str, i32); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// Why a file is no static pod.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManifestError {
    #[error("cannot read it: {0}")]
    Io(#[from] std::io::Error),
    #[error("it is larger than {max} bytes")]
    TooLarge { max: u64 },
    #[error("it is neither YAML nor JSON: {0}")]
    Text(String),
    #[error("it is {found}, not a Pod of v1")]
    Kind { found: String },
    #[error("it is not a valid pod: {0}")]
    Invalid(String),
    #[error("it refers to {what}: a static pod runs without the API that has it")]
    Refers { what: String },
}

/// Where a manifest was found.
pub(super) struct Place<'a> {
    pub(super) node_name: &'a str,
    pub(super) path: &'a Path,
}

/// Reads one manifest.
pub(super) fn parse(text: &str, place: &Place<'_>, now: Timestamp) -> Result<Pod, ManifestError> {
    let mut manifest: Value = serde_saphyr::from_str(text).map_err(|e| ManifestError::Text(e.to_string()))?;
    let (version, kind) = (manifest["apiVersion"].clone(), manifest["kind"].clone());
    if version != "v1" || kind != "Pod" {
        let found =
            format!("{} of {}", kind.as_str().unwrap_or("something"), version.as_str().unwrap_or("nothing"));
        return Err(ManifestError::Kind { found });
    }
    let invalid = |problem: &dyn std::fmt::Display| ManifestError::Invalid(problem.to_string());
    let kind = api::kinds::by_kind("", "v1", "Pod").expect("the table of kinds has Pod");
    let unknown = api::decode::normalize(kind, &mut manifest).map_err(|status| invalid(&status.message()))?;
    for problem in unknown {
        tracing::warn!(path = %place.path.display(), problem, "a field of a static pod's manifest is ignored");
    }
    settle(&mut manifest, place, now)?;
    let names = |field: &str| manifest["spec"][field].is_string();
    let has_account = names("serviceAccountName") || names("serviceAccount");
    api::defaults::apply(kind, &mut manifest);
    if let Some(spec) = manifest["spec"].as_object_mut().filter(|_| !has_account) {
        // Without the API there is no account that it could run as.
        spec.remove("serviceAccountName");
        spec.remove("serviceAccount");
    }
    let causes = api::validation::create(kind, &manifest);
    if let Some(cause) = causes.first() {
        return Err(invalid(&format!("{}: {}", cause.field, cause.message)));
    }
    let pod: Pod = serde_json::from_value(manifest).map_err(|error| invalid(&error))?;
    check_references(&pod)?;
    Ok(pod)
}

/// Name, identity, place, and what follows from its being static.
fn settle(manifest: &mut Value, place: &Place<'_>, now: Timestamp) -> Result<(), ManifestError> {
    let uid = match manifest["metadata"]["uid"].as_str().unwrap_or_default() {
        "" => content_uid(manifest, place),
        given if is_plain(given) => given.to_owned(),
        given => return Err(ManifestError::Invalid(format!("metadata.uid: {given:?} is no uid"))),
    };
    if !manifest["spec"].is_object() {
        return Err(ManifestError::Invalid("spec: Required value".to_owned()));
    }
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if name.is_empty() {
        return Err(ManifestError::Invalid("metadata.name: Required value".to_owned()));
    }
    let metadata = &mut manifest["metadata"];
    metadata["name"] = json!(format!("{name}-{}", place.node_name.to_lowercase()));
    if metadata["namespace"].as_str().unwrap_or_default().is_empty() {
        metadata["namespace"] = json!("default");
    }
    if !metadata["annotations"].is_object() {
        metadata["annotations"] = json!({});
    }
    metadata["annotations"][HASH_ANNOTATION] = json!(uid);
    metadata["annotations"][SOURCE_ANNOTATION] = json!("file");
    metadata["annotations"][SEEN_ANNOTATION] = json!(now.to_string());
    metadata["uid"] = json!(uid);
    let spec = &mut manifest["spec"];
    spec["nodeName"] = json!(place.node_name);
    if let Some(class) = spec["priorityClassName"].as_str() {
        let known = PRIORITY_CLASSES.into_iter().find(|(name, _)| *name == class);
        let Some((_, priority)) = known else {
            return Err(ManifestError::Refers { what: format!("PriorityClass {class}") });
        };
        spec["priority"] = json!(priority);
    }
    if !spec["tolerations"].is_array() {
        spec["tolerations"] = json!([]);
    }
    let tolerations = spec["tolerations"].as_array_mut().expect("made an array above");
    tolerations.push(json!({"operator": "Exists", "effect": "NoExecute"}));
    manifest["status"] = json!({"phase": "Pending"});
    Ok(())
}

/// The same content at the same place is the same pod.
fn content_uid(manifest: &Value, place: &Place<'_>) -> String {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    digest.update(manifest.to_string().as_bytes());
    digest.update(format!("host:{}file:{}", place.node_name, place.path.display()).as_bytes());
    let mut uid = hex::encode(digest.finish());
    uid.truncate(UID_DIGITS);
    uid
}

/// Whether a uid can name a directory.
fn is_plain(uid: &str) -> bool {
    uid.len() <= UID_BYTES_MAX && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn check_references(pod: &Pod) -> Result<(), ManifestError> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let refers = |what: String| Err(ManifestError::Refers { what });
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if let Some(reference) = references::of_pod(namespace, name, spec).into_iter().next() {
        return refers(reference.to_string());
    }
    if let Some(account) = spec.service_account_name.as_deref().filter(|name| !name.is_empty()) {
        return refers(format!("ServiceAccount {namespace}/{account}"));
    }
    let volumes = spec.volumes.iter().flatten();
    let mut sources = volumes.flat_map(|v| v.projected.iter().flat_map(|p| p.sources.iter().flatten()));
    if sources.any(|source| source.service_account_token.is_some()) {
        return refers("a token of a ServiceAccount".to_owned());
    }
    Ok(())
}

/// The manifests at a path: a directory's files, but for those whose names begin with a dot, or the one file.
pub(super) fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    if !found.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !is_hidden && std::fs::metadata(entry.path()).is_ok_and(|found| found.is_file()) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: c, image: i}]\n";

    fn read(text: &str) -> Result<Pod, ManifestError> {
        let place = Place { node_name: "node1", path: Path::new("/etc/manifests/web.yaml") };
        parse(text, &place, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_manifest_becomes_a_pod_of_the_node() {
        let pod = read(WEB).unwrap();
        let metadata = &pod.metadata;
        assert_eq!(metadata.name.as_deref(), Some("web-node1"));
        assert_eq!(metadata.namespace.as_deref(), Some("default"));
        let uid = metadata.uid.clone().unwrap();
        assert_eq!(uid.len(), 32);
        let annotations = metadata.annotations.clone().unwrap();
        assert_eq!(annotations[HASH_ANNOTATION], uid);
        assert_eq!(annotations[SOURCE_ANNOTATION], "file");
        assert_eq!(annotations[SEEN_ANNOTATION], "1970-01-01T00:00:00Z");
        let spec = pod.spec.unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("node1"));
        assert_eq!(spec.termination_grace_period_seconds, Some(30), "as the API fills in");
        let tolerations = spec.tolerations.unwrap();
        assert_eq!(tolerations.last().unwrap().effect.as_deref(), Some("NoExecute"));
        let json = serde_json::to_string(&serde_saphyr::from_str::<Value>(WEB).unwrap()).unwrap();
        assert_eq!(read(&json).unwrap().metadata.uid, Some(uid.clone()), "YAML and JSON are one content");
        assert_ne!(read(&WEB.replace("image: i", "image: j")).unwrap().metadata.uid, Some(uid));
        let own = read(&WEB.replace("name: web", "name: web, uid: my-own")).unwrap();
        assert_eq!(own.metadata.uid.as_deref(), Some("my-own"));
        let critical = read(&WEB.replace("spec:\n", "spec:\n  priorityClassName: system-node-critical\n"));
        assert_eq!(critical.unwrap().spec.unwrap().priority, Some(2_000_001_000));
    }

    #[test]
    fn what_cannot_be_a_static_pod_is_refused_with_the_reason() {
        let with = |line: &str| WEB.replace("spec:\n", &format!("spec:\n  {line}\n"));
        for (text, word) in [
            ("{".to_owned(), "neither YAML nor JSON"),
            ("apiVersion: v1\nkind: ConfigMap\n".to_owned(), "ConfigMap of v1"),
            (WEB.replace("metadata: {name: web}\n", ""), "metadata.name"),
            (WEB.replace("name: web", "name: Web"), "metadata.name"),
            (WEB.replace("name: web", "name: web, uid: ../x"), "metadata.uid"),
            (
                WEB.replace("{name: c, image: i}", "{name: c, image: i, ports: [{containerPort: 99999}]}"),
                "spec.",
            ),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n".to_owned(), "spec"),
            (with("serviceAccountName: x"), "ServiceAccount default/x"),
            (with("volumes: [{name: v, secret: {secretName: s}}]"), "Secret default/s"),
            (with("volumes: [{name: v, configMap: {name: m}}]"), "ConfigMap default/m"),
            (with("priorityClassName: mine"), "PriorityClass mine"),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn hidden_files_and_directories_are_no_manifests() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.json", ".hidden.yaml"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let names: Vec<_> =
            files(dir.path()).unwrap().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["a.json", "b.yaml"]);
        assert_eq!(files(&dir.path().join("a.json")).unwrap().len(), 1);
        assert!(files(&dir.path().join("none")).unwrap().is_empty());
    }
}
