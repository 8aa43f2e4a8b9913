//! The ConfigMap `cluster-info` in `kube-public`: by it a machine that knows nothing but a bootstrap token finds the
//! cluster, and finds it genuine.
//!
//! It holds a kubeconfig with the masters' address and authority, and beside it, for every bootstrap token that is
//! meant for signing (`usage-bootstrap-signing`), a signature that only those who know the token can make and check
//! (`jws-kubeconfig-<id>`: a detached JWS, RFC 7515, by HMAC with SHA-256). Whoever holds no credentials reads it
//! only where `anonymousAuth` is on, which it is not unless somebody says so.

use std::time::Duration;

use api::kinds::RBAC_GROUP;
use api::{Kind, Status};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use serde_json::{Map, Value, json};

use super::{Context, core_kind, options, settled, ticks};
use crate::auth::ANONYMOUS;
use crate::auth::tokens::signing_tokens;
use crate::leader::Epoch;
use crate::registry::{ListOptions, Target};

const NAMESPACE: &str = "kube-public";
const NAME: &str = "cluster-info";
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";
/// Role and binding that let anybody read it, as kubeadm names them.
const ROLE: &str = "kubeadm:bootstrap-signer-clusterinfo";
/// How often tokens are looked at, and what somebody deleted or changed is made good.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut ticks = ticks(LOOK_INTERVAL);
    loop {
        ticks.tick().await;
        if let Err(status) = look(context, epoch).await {
            tracing::warn!(%status, "the ConfigMap cluster-info is not as it should be; trying again");
        }
    }
}

async fn look(context: &Context, epoch: Epoch) -> Result<(), Status> {
    let registry = &context.registry;
    let Some(found) = registry.get_local(core_kind("ConfigMap"), NAMESPACE, NAME).await? else {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME},
            "data": {KUBECONFIG: kubeconfig(context)}});
        make(context, epoch, core_kind("ConfigMap"), map).await?;
        return allow(context, epoch).await;
    };
    // What this replica has is enough: the next look sees the rest.
    let list = ListOptions { resource_version: Some("0".to_owned()), ..ListOptions::default() };
    let secrets = registry.list(core_kind("Secret"), Some("kube-system"), &list).await?;
    let tokens = signing_tokens(secrets.items.iter().map(|secret| secret.value()), registry.now());
    let data = signed(&found.value()["data"], &kubeconfig(context), &tokens);
    if found.value()["data"] != data {
        let put = |map: &mut Value| {
            map["data"] = data.clone();
            Ok(())
        };
        let target = Target::new(core_kind("ConfigMap"), NAMESPACE, NAME);
        settled(registry.modify(target, &options(epoch), put).await.map(drop))?;
    }
    allow(context, epoch).await
}

/// Lets those who are nobody read it, if nobodies are let in at all.
async fn allow(context: &Context, epoch: Epoch) -> Result<(), Status> {
    let kind = |kind| api::kinds::by_kind(RBAC_GROUP, "v1", kind).expect("the table of kinds has these");
    let role = json!({"metadata": {"name": ROLE}, "rules": [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME], "verbs": ["get"]}]});
    let binding = json!({"metadata": {"name": ROLE},
        "roleRef": {"apiGroup": RBAC_GROUP, "kind": "Role", "name": ROLE},
        "subjects": [{"apiGroup": RBAC_GROUP, "kind": "User", "name": ANONYMOUS}]});
    for (kind, wanted) in [(kind("Role"), role), (kind("RoleBinding"), binding)] {
        if context.registry.get_local(kind, NAMESPACE, ROLE).await?.is_none() {
            make(context, epoch, kind, wanted).await?;
        }
    }
    Ok(())
}

async fn make(context: &Context, epoch: Epoch, kind: &'static Kind, wanted: Value) -> Result<(), Status> {
    match context.registry.create(kind, NAMESPACE, wanted, &options(epoch)).await {
        Err(status) if status.reason() == "AlreadyExists" => Ok(()),
        made => settled(made.map(drop)),
    }
}

/// Where the cluster is, and by which authority it is known. Nobody's credentials are in it.
fn kubeconfig(context: &Context) -> String {
    let server = context.masters.first().map(|address| format!("https://{address}")).unwrap_or_default();
    let authority = STANDARD.encode(&context.ca_pem);
    format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {authority}\n    server: {server}\n  \
         name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {{}}\nusers: null\n"
    )
}

/// The data of the ConfigMap: the kubeconfig, a signature by each token, and whatever else somebody put there.
fn signed(data: &Value, kubeconfig: &str, tokens: &[(String, String)]) -> Value {
    let mut wanted: Map<String, Value> = data.as_object().cloned().unwrap_or_default();
    wanted.retain(|key, _| !key.starts_with(SIGNATURE_PREFIX));
    wanted.insert(KUBECONFIG.to_owned(), Value::from(kubeconfig));
    for (id, secret) in tokens {
        let signature = detached_signature(kubeconfig.as_bytes(), id, secret);
        wanted.insert(format!("{SIGNATURE_PREFIX}{id}"), Value::from(signature));
    }
    Value::Object(wanted)
}

/// A JWS without its content, which stands elsewhere.
fn detached_signature(content: &[u8], id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": id}).to_string());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, signed.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_come_and_go_with_their_tokens_and_other_entries_stay() {
        let data = json!({"own": "x", "jws-kubeconfig-gone00": "old"});
        let tokens = [("abcdef".to_owned(), "0123456789abcdef".to_owned())];
        let data = signed(&data, "content", &tokens);
        assert_eq!(data.as_object().map(Map::len), Some(3));
        assert_eq!((&data["own"], &data[KUBECONFIG]), (&json!("x"), &json!("content")));
        let signature = data["jws-kubeconfig-abcdef"].as_str().unwrap_or_default().to_owned();
        let (header, tag) = signature.split_once("..").expect("a detached signature");
        let header = URL_SAFE_NO_PAD.decode(header).expect("base64");
        assert_eq!(header, b"{\"alg\":\"HS256\",\"kid\":\"abcdef\"}");
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef");
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(&header), URL_SAFE_NO_PAD.encode("content"));
        let tag = URL_SAFE_NO_PAD.decode(tag).expect("base64");
        assert!(hmac::verify(&key, text.as_bytes(), &tag).is_ok());
        assert_eq!(signed(&data, "content", &tokens), data);
        assert_eq!(signed(&data, "content", &[]), json!({"own": "x", "kubeconfig": "content"}));
    }
}
