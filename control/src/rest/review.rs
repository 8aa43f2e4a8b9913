//! Reviews: questions about who somebody is and what he may do, answered and not stored
//! (`authentication.k8s.io/v1` and `authorization.k8s.io/v1` of the Kubernetes API reference).

use std::collections::BTreeMap;

use api::{Cause, Kind, Status, object};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::verbs::Call;
use super::{Body, Rest, body, respond};
use crate::auth::rbac::rule::PolicyRule;
use crate::auth::service_account::ISSUER;
use crate::auth::{Attributes, Identity, ResourceName};
use crate::registry::check_fields;

impl Rest {
    /// Answers a review.
    pub(super) async fn review(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let document = body::object(&body::media_type(headers), body)?;
        let options = call.query.write_options(document.duplicates, call.user_agent)?;
        let (kind, mut review) = (call.kind(), document.value);
        let warnings = check_fields(kind, &mut review, &options)?;
        if kind.namespaced && object::namespace(&review).is_empty() {
            object::set_namespace(&mut review, call.namespace());
        }
        let status = match kind.kind {
            "SelfSubjectReview" => json!({"userInfo": user_info(call.identity)}),
            "TokenReview" => self.review_token(&review).await?,
            "SelfSubjectRulesReview" => self.review_rules(&review, call.identity)?,
            "SelfSubjectAccessReview" => {
                let asked = asked(kind, &review["spec"])?;
                self.verdict(call.identity, &asked)
            }
            _ => {
                let (who, asked) = (subject(kind, &review)?, asked(kind, &review["spec"])?);
                let inside = review["spec"]["resourceAttributes"]["namespace"].as_str().unwrap_or_default();
                if kind.namespaced && inside != call.namespace() {
                    let (field, why) = ("spec.resourceAttributes.namespace", "must match metadata.namespace");
                    return Err(refused(kind, Cause::invalid(field, inside, why)));
                }
                self.verdict(&who, &asked)
            }
        };
        review["status"] = status;
        object::set_metadata(&mut review, "creationTimestamp", Value::Null);
        let mut response = call.style.value(StatusCode::CREATED, &review);
        respond::add_warnings(&mut response, &warnings);
        Ok(response)
    }

    fn verdict(&self, who: &Identity, asked: &Attributes<'_>) -> Value {
        match self.access.reason(who, asked) {
            Some(reason) => json!({"allowed": true, "reason": reason}),
            None => json!({"allowed": false}),
        }
    }

    async fn review_token(&self, review: &Value) -> Result<Value, Status> {
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let named = review["spec"]["audiences"].as_array().into_iter().flatten();
        let mut audiences: Vec<&str> = named.filter_map(Value::as_str).collect();
        if audiences.is_empty() {
            audiences.push(ISSUER);
        }
        Ok(match self.tokens.review(token, &audiences).await {
            Some((identity, audiences)) => {
                json!({"authenticated": true, "user": user_info(&identity), "audiences": audiences})
            }
            None => {
                json!({"error": "the token is not valid, has expired, or is not meant for these audiences", "user": {}})
            }
        })
    }

    fn review_rules(&self, review: &Value, who: &Identity) -> Result<Value, Status> {
        let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let rules = self.access.rules(who, namespace);
        let (paths, resources): (Vec<PolicyRule>, Vec<PolicyRule>) =
            rules.into_iter().partition(|rule| !rule.non_resource_urls.is_empty());
        Ok(json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false}))
    }
}

fn refused(kind: &'static Kind, cause: Cause) -> Status {
    Status::invalid(kind, "", vec![cause])
}

/// Whom an access review asks about.
fn subject(kind: &'static Kind, review: &Value) -> Result<Identity, Status> {
    let spec = &review["spec"];
    let user = spec["user"].as_str().unwrap_or_default().to_owned();
    let groups = spec["groups"].as_array().into_iter().flatten();
    let groups: Vec<String> = groups.filter_map(|group| group.as_str().map(str::to_owned)).collect();
    if user.is_empty() && groups.is_empty() {
        return Err(refused(
            kind,
            Cause::invalid("spec.user", "", "at least one of user or group must be specified"),
        ));
    }
    let uid = spec["uid"].as_str().unwrap_or_default().to_owned();
    Ok(Identity { user, groups, uid, extra: BTreeMap::new() })
}

/// What an access review asks about: a resource or a path, and not both.
fn asked<'a>(kind: &'static Kind, spec: &'a Value) -> Result<Attributes<'a>, Status> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |of: &'a Value, field: &str| of.get(field).and_then(Value::as_str).unwrap_or_default();
    match (resource.is_object(), path.is_object()) {
        (true, true) => Err(refused(
            kind,
            Cause::invalid(
                "spec.nonResourceAttributes",
                path.clone(),
                "cannot be specified in combination with resourceAttributes",
            ),
        )),
        (false, false) => Err(refused(
            kind,
            Cause::invalid(
                "spec.resourceAttributes",
                Value::Null,
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ),
        )),
        (true, false) => Ok(Attributes {
            verb: text(resource, "verb"),
            resource: Some(ResourceName {
                group: text(resource, "group"),
                plural: text(resource, "resource"),
            }),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            ..Attributes::default()
        }),
        (false, true) => {
            Ok(Attributes { verb: text(path, "verb"), path: text(path, "path"), ..Attributes::default() })
        }
    }
}

pub(super) fn user_info(identity: &Identity) -> Value {
    let mut info = Map::new();
    info.insert("username".to_owned(), json!(identity.user));
    if !identity.uid.is_empty() {
        info.insert("uid".to_owned(), json!(identity.uid));
    }
    info.insert("groups".to_owned(), json!(identity.groups));
    if !identity.extra.is_empty() {
        info.insert("extra".to_owned(), json!(identity.extra));
    }
    Value::Object(info)
}
