//! Tokens of service accounts that lie in Secrets (type `kubernetes.io/service-account-token`): made for who asks by
//! creating such a Secret, without an end, and good as long as the Secret and the account are there.
//!
//! Owns the claims of those tokens, which are Kubernetes' older ones. Who fills the Secrets is
//! `controllers::token_secrets`.

use api::{Kind, Status, object};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::service_account::{self, ISSUER, ServiceAccounts};
use super::{Identity, SYSTEM_AUTHENTICATED};
use crate::registry::Registry;

/// The type of such Secrets.
pub const TYPE: &str = "kubernetes.io/service-account-token";
/// The annotations that name their account.
pub const NAME_ANNOTATION: &str = "kubernetes.io/service-account.name";
/// And the uid of it.
pub const UID_ANNOTATION: &str = "kubernetes.io/service-account.uid";
const OLD_ISSUER: &str = "kubernetes/serviceaccount";

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
    sub: String,
}

/// The token that belongs into a Secret of that name, for an account as it was found.
///
/// # Errors
/// When the store cannot say which key signs.
pub async fn issue(accounts: &ServiceAccounts, secret: &str, account: &Value) -> Result<String, Status> {
    let (namespace, name) = (object::namespace(account), object::name(account));
    let claims = Claims {
        iss: OLD_ISSUER.to_owned(),
        namespace: namespace.to_owned(),
        secret: secret.to_owned(),
        account: name.to_owned(),
        uid: object::uid(account).to_owned(),
        sub: service_account::user(namespace, name),
    };
    accounts.signed(&claims).await
}

/// Whom such a token names, if it is one and counts.
pub(super) async fn identity(
    accounts: &ServiceAccounts,
    registry: &Registry,
    token: &str,
    audiences: &[&str],
) -> Option<Identity> {
    // Cheap to tell: what is not of this form is not verified twice.
    let claims: Claims = service_account::claims(token)?;
    if claims.iss != OLD_ISSUER || !audiences.contains(&ISSUER) || !accounts.is_signed(token).await {
        return None;
    }
    let of = |kind: &str| api::kinds::by_kind("", "v1", kind).expect("the table of kinds has the core kinds");
    let get = async |kind: &'static Kind, name: &str| {
        registry.get_local(kind, &claims.namespace, name).await.ok()?
    };
    let account = get(of("ServiceAccount"), &claims.account).await?;
    let secret = get(of("Secret"), &claims.secret).await?;
    let held = STANDARD.decode(secret.value()["data"]["token"].as_str()?).ok()?;
    let counts = object::uid(account.value()) == claims.uid
        && secret.value()["type"] == TYPE
        && object::deletion_timestamp(secret.value()).is_none()
        && held == token.as_bytes();
    let groups =
        service_account::groups(&claims.namespace).into_iter().chain([SYSTEM_AUTHENTICATED.to_owned()]);
    counts.then(|| Identity {
        user: service_account::user(&claims.namespace, &claims.account),
        groups: groups.collect(),
        uid: claims.uid.clone(),
        ..Identity::default()
    })
}
