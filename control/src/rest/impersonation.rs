//! Impersonation: a request made as somebody else, by who may (`Impersonate-*` headers, "User impersonation"
//! of the Kubernetes documentation).

use std::collections::BTreeMap;

use api::Status;
use http::HeaderMap;
use percent_encoding::percent_decode_str;

use crate::auth::{
    ANONYMOUS, Access, Attributes, Identity, ResourceName, SYSTEM_AUTHENTICATED, SYSTEM_UNAUTHENTICATED,
    refusal,
};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA_PREFIX: &str = "impersonate-extra-";
const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// As whom else a request is to be handled; `None`: as the asker himself.
///
/// # Errors
/// 403 when the asker may not, 400 when the headers name no user.
pub(super) fn apply(
    access: &Access,
    asker: &Identity,
    headers: &HeaderMap,
) -> Result<Option<Identity>, Status> {
    let is_asked = headers.keys().any(|name| {
        let name = name.as_str();
        matches!(name, USER | GROUP | UID) || name.starts_with(EXTRA_PREFIX)
    });
    if !is_asked {
        return Ok(None);
    }
    let wanted = wanted(headers)?;
    for request in wanted.requests() {
        if !access.allows(asker, &request.attributes()) {
            return Err(refusal(asker, &request.attributes()));
        }
    }
    tracing::info!(
        user = asker.user,
        impersonated = wanted.identity.user,
        "a request is made as somebody else"
    );
    Ok(Some(wanted.identity))
}

struct Wanted {
    identity: Identity,
    /// The groups that the headers name.
    groups: Vec<String>,
}

/// One thing that is impersonated, as roles speak of it.
struct Part<'a> {
    group: &'static str,
    plural: &'static str,
    subresource: &'a str,
    namespace: &'a str,
    name: &'a str,
}

impl Part<'_> {
    fn attributes(&self) -> Attributes<'_> {
        Attributes {
            verb: "impersonate",
            resource: Some(ResourceName { group: self.group, plural: self.plural }),
            subresource: self.subresource,
            namespace: self.namespace,
            name: self.name,
            ..Attributes::default()
        }
    }
}

fn wanted(headers: &HeaderMap) -> Result<Wanted, Status> {
    let text = |value: &http::HeaderValue| value.to_str().map(str::to_owned).ok();
    let user = headers.get(USER).and_then(text).unwrap_or_default();
    if user.is_empty() {
        return Err(Status::bad_request("requested impersonation of groups, uid or extra without a user"));
    }
    let groups: Vec<String> = headers.get_all(GROUP).iter().filter_map(text).collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let (Some(key), Some(value)) = (name.as_str().strip_prefix(EXTRA_PREFIX), text(value)) {
            let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
            extra.entry(key).or_default().push(value);
        }
    }
    let uid = headers.get(UID).and_then(text).unwrap_or_default();
    let mut all = groups.clone();
    if let Some((namespace, _)) = account(&user).filter(|_| groups.is_empty()) {
        all.push("system:serviceaccounts".to_owned());
        all.push(format!("system:serviceaccounts:{namespace}"));
    }
    let known = if user == ANONYMOUS { SYSTEM_UNAUTHENTICATED } else { SYSTEM_AUTHENTICATED };
    if !all.iter().any(|group| group == known) {
        all.push(known.to_owned());
    }
    Ok(Wanted { identity: Identity { user, groups: all, uid, extra }, groups })
}

/// Namespace and name of a service account's user.
fn account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix(ACCOUNT_PREFIX)?.split_once(':')
}

impl Wanted {
    /// What must be allowed, each by itself.
    fn requests(&self) -> impl Iterator<Item = Part<'_>> {
        let of = |group, plural, name| Part { group, plural, subresource: "", namespace: "", name };
        let user = match account(&self.identity.user) {
            Some((namespace, name)) => Part { namespace, ..of("", "serviceaccounts", name) },
            None => of("", "users", self.identity.user.as_str()),
        };
        let groups = self.groups.iter().map(move |group| of("", "groups", group.as_str()));
        let uid = Some(self.identity.uid.as_str()).filter(|uid| !uid.is_empty());
        let uid = uid.map(move |uid| of(AUTHENTICATION_GROUP, "uids", uid));
        let extra = self.identity.extra.iter().flat_map(move |(key, values)| {
            values.iter().map(move |value| Part {
                subresource: key.as_str(),
                ..of(AUTHENTICATION_GROUP, "userextras", value.as_str())
            })
        });
        std::iter::once(user).chain(groups).chain(uid).chain(extra)
    }
}
