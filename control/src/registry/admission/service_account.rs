//! Who a pod is to the API: a pod that names no service account runs as its namespace's `default`; the
//! account's token, the API's certificate and the namespace are mounted into its containers unless pod or
//! account say no; the account's image pull secrets are the pod's if it names none.

use api::object::MIRROR_ANNOTATION;
use api::{Kind, Status, object};
use raft_store::chance;
use rand::Rng as _;
use serde_json::{Map, Value, json};

use super::{Operation, is_pod};
use crate::object_store::Consistency;
use crate::registry::Registry;

const ACCOUNT_DEFAULT: &str = "default";
/// Where containers find the token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Odd on purpose, as in Kubernetes: so that tokens mounted by themselves can be told from others.
const TOKEN_SECONDS: i64 = 3607;

pub(super) fn admit(kind: &Kind, operation: Operation, object: &mut Value) -> Result<(), Status> {
    if !is_pod(kind) || operation != Operation::Create || is_mirror(object) {
        return Ok(());
    }
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    let text = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let account = match (text("serviceAccountName"), text("serviceAccount")) {
        (name, _) if !name.is_empty() => name,
        (_, name) if !name.is_empty() => name,
        _ => ACCOUNT_DEFAULT.to_owned(),
    };
    // The second field is the deprecated name of the first; Kubernetes keeps both.
    spec.insert("serviceAccountName".to_owned(), Value::from(account.as_str()));
    spec.insert("serviceAccount".to_owned(), Value::from(account));
    Ok(())
}

/// Gives a new pod what its account has. Reads the account, which must exist; only `default`, which every
/// namespace gets by itself, may still be on its way.
pub(in crate::registry) async fn mount(
    registry: &Registry,
    kind: &Kind,
    namespace: &str,
    pod: &mut Value,
    consistency: Consistency,
) -> Result<(), Status> {
    if !is_pod(kind) || is_mirror(pod) {
        return Ok(());
    }
    let name = pod["spec"]["serviceAccountName"].as_str().unwrap_or(ACCOUNT_DEFAULT).to_owned();
    let accounts =
        api::kinds::by_kind("", "v1", "ServiceAccount").expect("the table of kinds has ServiceAccount");
    let account = registry.read(accounts, namespace, &name, consistency).await?;
    if account.is_none() && name != ACCOUNT_DEFAULT {
        let why =
            format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        return Err(Status::forbidden(kind, object::name(pod), &why));
    }
    let account = account.map_or(Value::Null, |account| account.value().clone());
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    let has_secrets = spec.get("imagePullSecrets").and_then(Value::as_array).is_some_and(|s| !s.is_empty());
    if let Some(secrets) = account["imagePullSecrets"].as_array().filter(|s| !has_secrets && !s.is_empty()) {
        spec.insert("imagePullSecrets".to_owned(), Value::from(secrets.clone()));
    }
    let says = |object: &Value| object["automountServiceAccountToken"].as_bool();
    let own = spec.get("automountServiceAccountToken").and_then(Value::as_bool);
    if own.or_else(|| says(&account)).unwrap_or(true) {
        mount_token(spec);
    }
    Ok(())
}

/// A mirror pod shows what runs without the API: it is nobody to it.
fn is_mirror(pod: &Value) -> bool {
    !pod["metadata"]["annotations"][MIRROR_ANNOTATION].is_null()
}

fn mount_token(spec: &mut Map<String, Value>) {
    let volumes = spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let names = volumes.filter_map(|volume| volume["name"].as_str());
    let known = names.filter(|name| name.starts_with(VOLUME_PREFIX)).map(str::to_owned).next();
    let is_known = known.is_some();
    let volume = known.unwrap_or_else(|| api::name::generate(VOLUME_PREFIX, chance::rng().random()));
    let mut is_used = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert(Value::Null);
            if mounts.is_null() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if !mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
                is_used = true;
            }
        }
    }
    if !is_used || is_known {
        return;
    }
    let volumes = spec.entry("volumes").or_insert(Value::Null);
    if volumes.is_null() {
        *volumes = json!([]);
    }
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(json!({"name": volume, "projected": {"defaultMode": 0o644, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_that_mount_something_there_keep_it() {
        let mut pod = json!({"spec": {
            "initContainers": [{"name": "i", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}],
            "containers": [{"name": "c"}],
        }});
        mount_token(pod["spec"].as_object_mut().expect("an object"));
        assert_eq!(pod["spec"]["initContainers"][0]["volumeMounts"].as_array().map(Vec::len), Some(1));
        let volume = pod["spec"]["volumes"][0]["name"].as_str().expect("a volume").to_owned();
        assert!(volume.starts_with(VOLUME_PREFIX));
        assert_eq!(
            pod["spec"]["containers"][0]["volumeMounts"],
            json!([{"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}])
        );
        let before = pod.clone();
        mount_token(pod["spec"].as_object_mut().expect("an object"));
        assert_eq!(pod, before, "once is enough");
    }
}
