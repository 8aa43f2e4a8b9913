//! Bootstrap tokens: Secrets `bootstrap-token-<id>` of type `bootstrap.kubernetes.io/token` in `kube-system`, with
//! which a machine that nobody knows yet asks for its certificate (`<id>.<secret>`; "Authenticating with Bootstrap
//! Tokens" of the Kubernetes documentation).
//!
//! Nothing is kept here: a token counts while its Secret says so, as this replica has it.

use api::{Kind, object};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::digest;
use serde_json::Value;

use crate::auth::{Identity, SYSTEM_AUTHENTICATED};
use crate::registry::Registry;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const NAME_PREFIX: &str = "bootstrap-token-";
const USER_PREFIX: &str = "system:bootstrap:";
const GROUP: &str = "system:bootstrappers";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 16;
const GROUP_BYTES_MAX: usize = 256;

/// Whom a bootstrap token names, if it is one and counts.
pub(super) async fn identity(registry: &Registry, token: &str) -> Option<Identity> {
    let (id, secret) = split(token)?;
    let name = format!("{NAME_PREFIX}{id}");
    let found = registry.get_local(secret_kind(), NAMESPACE, &name).await.ok()??;
    let value = found.value();
    let counts = is_token(value)
        && object::deletion_timestamp(value).is_none()
        && entry(value, "token-id").as_deref() == Some(id)
        && entry(value, "token-secret").is_some_and(|own| is_same(&own, secret))
        && entry(value, "usage-bootstrap-authentication").as_deref() == Some("true")
        && !is_expired(value, registry.now());
    if !counts {
        return None;
    }
    let mut groups = vec![GROUP.to_owned()];
    let more = entry(value, "auth-extra-groups").unwrap_or_default();
    for group in more.split(',').map(str::trim).filter(|group| !group.is_empty()) {
        if !is_group(group) {
            tracing::warn!(
                secret = name,
                group,
                "a bootstrap token names a group that none may name; it does not count"
            );
            return None;
        }
        groups.push(group.to_owned());
    }
    groups.push(SYSTEM_AUTHENTICATED.to_owned());
    Some(Identity { user: format!("{USER_PREFIX}{id}"), groups, ..Identity::default() })
}

/// Whether a Secret is a bootstrap token.
pub fn is_token(secret: &Value) -> bool {
    secret["type"] == TYPE
        && object::namespace(secret) == NAMESPACE
        && object::name(secret).starts_with(NAME_PREFIX)
}

/// Id and secret of the tokens by which the cluster's address is signed, in the order of ids.
pub fn signing_tokens<'a>(secrets: impl Iterator<Item = &'a Value>, now: Timestamp) -> Vec<(String, String)> {
    let counts = |secret: &&Value| {
        is_token(secret)
            && object::deletion_timestamp(secret).is_none()
            && entry(secret, "usage-bootstrap-signing").as_deref() == Some("true")
            && !is_expired(secret, now)
    };
    let tokens = secrets.filter(counts).filter_map(|secret| {
        let (id, own) = (entry(secret, "token-id")?, entry(secret, "token-secret")?);
        // A Secret of another name than its token's is nobody's.
        let is_named = object::name(secret).strip_prefix(NAME_PREFIX) == Some(id.as_str());
        (is_named && split(&format!("{id}.{own}")).is_some()).then_some((id, own))
    });
    let mut tokens: Vec<(String, String)> = tokens.collect();
    tokens.sort();
    tokens
}

/// Whether a bootstrap token's time is over. One that does not say lasts; one that says nonsense is over.
pub fn is_expired(secret: &Value, now: Timestamp) -> bool {
    match entry(secret, "expiration") {
        None => false,
        Some(text) => object::parse_timestamp(&text).is_none_or(|end| end <= now),
    }
}

/// An entry of a Secret's data; empty ones count as none.
fn entry(secret: &Value, key: &str) -> Option<String> {
    let bytes = STANDARD.decode(secret["data"][key].as_str()?).ok()?;
    String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

/// Id and secret of what has the form of a bootstrap token.
fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (id.len() == ID_BYTES && secret.len() == SECRET_BYTES && is_plain(id) && is_plain(secret))
        .then_some((id, secret))
}

/// Compares hashes, so that the time taken says nothing about the secret.
fn is_same(own: &str, given: &str) -> bool {
    let hash = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
    hash(own).as_ref() == hash(given).as_ref()
}

/// Whether a bootstrap token may name the group.
fn is_group(group: &str) -> bool {
    let rest = group.strip_prefix("system:bootstrappers:");
    group.len() <= GROUP_BYTES_MAX
        && rest.is_some_and(|rest| {
            let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            rest.bytes().all(|byte| is_letter(byte) || matches!(byte, b':' | b'-'))
                && rest.bytes().last().is_some_and(is_letter)
        })
}

fn secret_kind() -> &'static Kind {
    api::kinds::by_kind("", "v1", "Secret").expect("the table of kinds has Secret")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object_store::SharedStore;
    use crate::object_store::memory::MemoryStore;
    use crate::registry::{Target, WriteOptions, bootstrap_namespaces};

    fn secret(expiration: &str, groups: &str) -> Value {
        json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": TYPE, "stringData": {
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "expiration": expiration,
            "usage-bootstrap-authentication": "true", "auth-extra-groups": groups}})
    }

    #[tokio::test]
    async fn a_token_counts_while_its_secret_says_so() {
        let registry =
            Registry::new(SharedStore::new(MemoryStore::new()), Default::default(), Default::default());
        bootstrap_namespaces(&registry).await.expect("namespaces");
        let group = "system:bootstrappers:kubeadm:default-node-token";
        let made =
            registry.create(secret_kind(), NAMESPACE, secret("", group), &WriteOptions::default()).await;
        made.expect("created");
        let token = "abcdef.0123456789abcdef";
        let who = identity(&registry, token).await.expect("known");
        assert_eq!(who.user, "system:bootstrap:abcdef");
        assert_eq!(who.groups, [GROUP, group, SYSTEM_AUTHENTICATED]);
        for other in
            ["abcdef.0123456789abcdee", "abcdeg.0123456789abcdef", "abcdef.", "ABCDEF.0123456789abcdef"]
        {
            assert_eq!(identity(&registry, other).await, None, "{other}");
        }
        for (key, value) in [
            ("expiration", "2020-01-01T00:00:00Z"),
            ("expiration", "soon"),
            ("auth-extra-groups", "system:masters"),
            ("usage-bootstrap-authentication", "false"),
            ("token-secret", ""),
        ] {
            let target = Target::new(secret_kind(), NAMESPACE, "bootstrap-token-abcdef");
            let mut before = Value::Null;
            let change = |secret: &mut Value| {
                before = secret["data"][key].clone();
                secret["data"][key] = json!(STANDARD.encode(value));
                Ok(())
            };
            registry.modify(target, &WriteOptions::default(), change).await.expect("changed");
            assert_eq!(identity(&registry, token).await, None, "{key} {value}");
            let back = |secret: &mut Value| {
                secret["data"][key] = before.clone();
                Ok(())
            };
            registry.modify(target, &WriteOptions::default(), back).await.expect("changed");
            assert!(identity(&registry, token).await.is_some());
        }
    }
}
