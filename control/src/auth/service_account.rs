//! Service accounts' tokens: signed JWTs (RFC 7519), made and checked.
//!
//! Owns their claims, which are Kubernetes'. Every replica has the same keys, derived from the cluster's secret
//! (see `signing_keys`), so a token that one issued any other accepts, and no token is stored. The algorithm is EdDSA
//! (Ed25519): its key can be derived without coordination and its signatures need no randomness. A token dies
//! with its expiry, its service account, or the pod that it is bound to, whichever is first.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Kind, Status, object};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use raft_store::chance;
use rand::Rng as _;
use serde::{Deserialize, Serialize};

use super::signing_keys::SigningKeys;
use super::{Identity, SYSTEM_AUTHENTICATED};
use crate::pki::{Authority, ServiceAccountKey};
use crate::registry::{Object, Registry};

/// Who issues the tokens, and the audience of those for the API itself.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// What a service account's user name begins with.
const USER_PREFIX: &str = "system:serviceaccount:";
/// The group of all service accounts; followed by a colon and a namespace, that of a namespace's.
const GROUP: &str = "system:serviceaccounts";
/// What more a token tells of its bearer.
const CREDENTIAL_KEY: &str = "authentication.kubernetes.io/credential-id";
const POD_NAME_KEY: &str = "authentication.kubernetes.io/pod-name";
const POD_UID_KEY: &str = "authentication.kubernetes.io/pod-uid";
/// The shortest and the longest life of a token.
const LIFE_S: std::ops::RangeInclusive<i64> = 600..=1 << 32;
/// The life of a token whose request does not say.
pub const LIFE_S_DEFAULT: i64 = 3600;
/// No token of ours is longer; longer text is refused unread.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Clocks of replicas may differ by this much.
const CLOCK_SKEW_S: i64 = 5;

/// What a token is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenWanted {
    /// The account's namespace.
    pub namespace: String,
    /// The account.
    pub account: String,
    /// Name and uid of the pod that the token is bound to.
    pub pod: Option<(String, String)>,
    /// For whom; none: the API.
    pub audiences: Vec<String>,
    /// How long, in seconds.
    pub life_s: i64,
}

/// A token and its life, in seconds since 1970.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedToken {
    /// The token. Secret.
    pub text: String,
    /// When it was made.
    pub issued_at_s: i64,
    /// When it ends.
    pub expires_at_s: i64,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
    nbf: i64,
    sub: String,
}

#[derive(Serialize, Deserialize)]
struct Kubernetes {
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Bound>,
    serviceaccount: Bound,
}

#[derive(Serialize, Deserialize)]
struct Bound {
    name: String,
    uid: String,
}

/// Makes and checks tokens; clones share the key.
#[derive(Debug, Clone)]
pub struct ServiceAccounts {
    registry: Registry,
    keys: SigningKeys,
}

impl ServiceAccounts {
    /// Over a registry that knows the accounts, with this cluster's key.
    pub fn new(registry: Registry, authority: Arc<Authority>) -> Self {
        Self { keys: SigningKeys::new(registry.clone(), authority), registry }
    }

    /// A token for an account that exists. `pods` are as the caller found them.
    pub async fn issue(&self, wanted: TokenWanted) -> Result<IssuedToken, Status> {
        if !LIFE_S.contains(&wanted.life_s) {
            let (kind, field) = (account_kind(), "spec.expirationSeconds");
            let why = match wanted.life_s > *LIFE_S.end() {
                true => "may not specify a duration larger than 2^32 seconds",
                false => "may not specify a duration less than 10 minutes",
            };
            let cause = api::Cause::invalid(field, wanted.life_s, why);
            return Err(Status::invalid(kind, &wanted.account, vec![cause]));
        }
        let (kind, namespace) = (account_kind(), &wanted.namespace);
        // What is not here yet may have been made at another replica just now.
        let account = match self.registry.get_local(kind, namespace, &wanted.account).await? {
            Some(account) => account,
            None => self.registry.get(kind, namespace, &wanted.account).await?,
        };
        let now = self.registry.now().as_second();
        let audiences = if wanted.audiences.is_empty() { vec![ISSUER.to_owned()] } else { wanted.audiences };
        let claims = Claims {
            aud: audiences,
            exp: now + wanted.life_s,
            iat: now,
            iss: ISSUER.to_owned(),
            jti: random_id(),
            kubernetes: Kubernetes {
                namespace: wanted.namespace.clone(),
                pod: wanted.pod.map(|(name, uid)| Bound { name, uid }),
                serviceaccount: Bound {
                    name: wanted.account.clone(),
                    uid: object::uid(account.value()).to_owned(),
                },
            },
            nbf: now,
            sub: user(&wanted.namespace, &wanted.account),
        };
        let text = self.signed(&claims).await?;
        Ok(IssuedToken { text, issued_at_s: now, expires_at_s: now + wanted.life_s })
    }

    /// A token with these claims.
    pub(super) async fn signed<T: Serialize>(&self, claims: &T) -> Result<String, Status> {
        let key = self.keys.newest().await?;
        let header = Header { alg: "EdDSA".to_owned(), kid: key.id() };
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()));
        Ok(format!("{signed}.{signature}"))
    }

    /// Whether a key that counts signed a token.
    pub(super) async fn is_signed(&self, token: &str) -> bool {
        let checked = async {
            let (signed, signature) = token.rsplit_once('.').filter(|_| token.len() <= TOKEN_BYTES_MAX)?;
            let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
            let header: Header = decode(signed.split('.').next()?)?;
            let key = self.keys.named(&header.kid).await?;
            (header.alg == "EdDSA" && key.verify(signed.as_bytes(), &signature)).then_some(())
        };
        checked.await.is_some()
    }

    /// The keys by which tokens are verified, oldest first.
    ///
    /// # Errors
    /// When the store cannot say.
    pub(crate) async fn keys(&self) -> Result<Vec<ServiceAccountKey>, Status> {
        self.keys.all(false).await
    }

    /// Whom a token names, if it is ours, for the API, alive, and so are its account and its pod.
    pub async fn authenticate(&self, token: &str) -> Option<Identity> {
        self.review(token, &[ISSUER]).await.map(|(identity, _)| identity)
    }

    /// Whom a token names, if it is ours, alive, and for one of these audiences; and for which of them it is.
    pub async fn review(&self, token: &str, audiences: &[&str]) -> Option<(Identity, Vec<String>)> {
        let claims = self.verified(token).await?;
        let meant = claims.aud.into_iter().filter(|audience| audiences.contains(&audience.as_str()));
        let meant: Vec<String> = meant.collect();
        if meant.is_empty() {
            return None;
        }
        let Kubernetes { namespace, pod, serviceaccount } = claims.kubernetes;
        let of =
            |object: Option<Arc<Object>>, uid: &str| object.is_some_and(|o| object::uid(o.value()) == uid);
        let account = self.registry.get_local(account_kind(), &namespace, &serviceaccount.name).await.ok()?;
        if !of(account, &serviceaccount.uid) {
            return None;
        }
        let mut extra = BTreeMap::from([(CREDENTIAL_KEY.to_owned(), vec![format!("JTI={}", claims.jti)])]);
        if let Some(pod) = pod {
            let kind = api::kinds::by_kind("", "v1", "Pod").expect("the table of kinds has Pod");
            let found = self.registry.get_local(kind, &namespace, &pod.name).await.ok()?;
            if !of(found, &pod.uid) {
                return None;
            }
            extra.insert(POD_NAME_KEY.to_owned(), vec![pod.name]);
            extra.insert(POD_UID_KEY.to_owned(), vec![pod.uid]);
        }
        let groups = groups(&namespace).into_iter().chain([SYSTEM_AUTHENTICATED.to_owned()]).collect();
        let user = user(&namespace, &serviceaccount.name);
        Some((Identity { user, groups, uid: serviceaccount.uid, extra }, meant))
    }

    async fn verified(&self, token: &str) -> Option<Claims> {
        let claims: Claims = claims(token)?;
        if !self.is_signed(token).await {
            return None;
        }
        let now = self.registry.now().as_second();
        let is_good = claims.iss == ISSUER && claims.exp > now && claims.nbf <= now + CLOCK_SKEW_S;
        is_good.then_some(claims)
    }
}

impl std::fmt::Debug for IssuedToken {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("IssuedToken")
            .field("expires_at_s", &self.expires_at_s)
            .finish_non_exhaustive()
    }
}

fn account_kind() -> &'static Kind {
    api::kinds::by_kind("", "v1", "ServiceAccount").expect("the table of kinds has ServiceAccount")
}

/// An account as a user.
pub(super) fn user(namespace: &str, name: &str) -> String {
    format!("{USER_PREFIX}{namespace}:{name}")
}

/// The groups of every account of a namespace.
pub(super) fn groups(namespace: &str) -> [String; 2] {
    [GROUP.to_owned(), format!("{GROUP}:{namespace}")]
}

/// What a token claims, if it claims just that. Nothing is verified.
pub(super) fn claims<T: for<'a> Deserialize<'a>>(token: &str) -> Option<T> {
    decode(token.split('.').nth(1).filter(|_| token.len() <= TOKEN_BYTES_MAX)?)
}

fn encode<T: Serialize>(value: &T) -> String {
    let json = serde_json::to_vec(value).expect("claims have string keys only");
    URL_SAFE_NO_PAD.encode(json)
}

fn decode<T: for<'a> Deserialize<'a>>(text: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

fn random_id() -> String {
    let bytes: [u8; 16] = chance::rng().random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::test_cluster::{TestCluster, authority, pod};

    async fn accounts() -> (TestCluster, ServiceAccounts) {
        let cluster = TestCluster::start(crate::controllers::Timings::default()).await;
        cluster.until("ServiceAccount", "default", "default", |_| true).await;
        let accounts = ServiceAccounts::new(cluster.registry.clone(), authority());
        (cluster, accounts)
    }

    fn wanted() -> TokenWanted {
        TokenWanted {
            namespace: "default".into(),
            account: "default".into(),
            life_s: LIFE_S_DEFAULT,
            ..TokenWanted::default()
        }
    }

    #[tokio::test]
    async fn a_token_names_its_account_and_carries_kubernetes_claims() {
        let (_cluster, accounts) = accounts().await;
        let token = accounts.issue(wanted()).await.expect("issued");
        let identity = accounts.authenticate(&token.text).await.expect("ours");
        assert_eq!(identity.user, "system:serviceaccount:default:default");
        assert_eq!(
            identity.groups,
            ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]
        );
        let claims: serde_json::Value =
            decode(token.text.split('.').nth(1).expect("three parts")).expect("JSON");
        assert_eq!(claims["iss"], ISSUER);
        assert_eq!(claims["aud"], json!([ISSUER]));
        assert_eq!(claims["sub"], "system:serviceaccount:default:default");
        assert_eq!(claims["exp"].as_i64().expect("a time") - claims["iat"].as_i64().expect("a time"), 3600);
        assert_eq!(claims["kubernetes.io"]["serviceaccount"]["name"], "default");
        assert!(!format!("{token:?}").contains(&token.text));
        let short = TokenWanted { life_s: 60, ..wanted() };
        let error = accounts.issue(short).await.expect_err("too short");
        assert!(error.message().contains("may not specify a duration less than 10 minutes"), "{error}");
        let nobody = TokenWanted { account: "nobody".into(), ..wanted() };
        let error = accounts.issue(nobody).await.expect_err("no such account");
        assert_eq!(error.message(), "serviceaccounts \"nobody\" not found");
    }

    #[tokio::test]
    async fn what_is_not_ours_not_for_us_or_bound_to_what_is_gone_is_nobody() {
        let (cluster, accounts) = accounts().await;
        let token = accounts.issue(wanted()).await.expect("issued").text;
        let other = TokenWanted { audiences: vec!["vault".into()], ..wanted() };
        let other = accounts.issue(other).await.expect("issued").text;
        assert!(accounts.authenticate(&other).await.is_none(), "for somebody else");
        // Claims and signature of different tokens, no signature, another algorithm's name.
        let (head, signature) = token.rsplit_once('.').expect("three parts");
        let (other_head, _) = other.rsplit_once('.').expect("three parts");
        let none =
            format!("{}.{}.", encode(&json!({"alg": "none"})), head.split('.').nth(1).expect("claims"));
        for bad in
            [format!("{other_head}.{signature}"), format!("{head}."), none, String::new(), "a.b".into()]
        {
            assert!(accounts.authenticate(&bad).await.is_none(), "{bad}");
        }
        // Keys are rotated: the newest signs, older ones count until they are taken away.
        let map = json!({"metadata": {"name": "barque-service-account-keys"}, "data": {"keys": "0,1"}});
        cluster.create("ConfigMap", "kube-system", map).await;
        let newer = accounts.issue(wanted()).await.expect("issued").text;
        let kid =
            |token: &str| decode::<Header>(token.split('.').next().expect("a header")).expect("JSON").kid;
        assert_ne!(kid(&token), kid(&newer));
        assert!(
            accounts.authenticate(&token).await.is_some() && accounts.authenticate(&newer).await.is_some()
        );
        let target = crate::registry::Target::new(
            crate::test_cluster::kind("ConfigMap"),
            "kube-system",
            "barque-service-account-keys",
        );
        cluster.modify(target, |map| map["data"]["keys"] = json!("1")).await;
        assert!(accounts.authenticate(&token).await.is_none(), "its key does not count any more");
        assert!(accounts.authenticate(&newer).await.is_some());
        cluster.modify(target, |map| map["data"]["keys"] = json!("0")).await;
        let strangers = crate::pki::ControlToken::generate(std::time::SystemTime::now()).expect("a token");
        let strangers = Authority::from_token(&strangers).expect("an authority");
        let strangers = ServiceAccounts::new(cluster.registry.clone(), Arc::new(strangers));
        assert!(strangers.authenticate(&token).await.is_none(), "another cluster's key");
        cluster.create("Pod", "default", pod("p", "1")).await;
        let found = cluster.get("Pod", "default", "p").await.expect("made");
        let bound = TokenWanted { pod: Some(("p".into(), object::uid(&found).to_owned())), ..wanted() };
        let bound = accounts.issue(bound).await.expect("issued").text;
        assert!(accounts.authenticate(&bound).await.is_some());
        let target = crate::registry::Target::new(crate::test_cluster::kind("Pod"), "default", "p");
        let now = crate::registry::DeleteOptions { grace_period_s: Some(0), ..Default::default() };
        cluster.registry.delete(target, &now).await.expect("deleted");
        assert!(accounts.authenticate(&bound).await.is_none(), "its pod is gone");
        assert!(accounts.authenticate(&token).await.is_some());
    }
}
