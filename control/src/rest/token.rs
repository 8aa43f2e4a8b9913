//! `serviceaccounts/<name>/token`: a token for the asking, bound to a pod if the request says so.

use api::{Status, object};
use http::{HeaderMap, Response, StatusCode};
use jiff::Timestamp;
use serde_json::json;

use super::verbs::Call;
use super::{Rest, body};
use crate::auth::service_account::{ISSUER, LIFE_S_DEFAULT, TokenWanted};
use crate::rest::respond::Body;

impl Rest {
    /// Answers a `TokenRequest`.
    pub(super) async fn token(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let mut request = body::object(&body::media_type(headers), body)?.value;
        let spec = &request["spec"];
        let audiences = spec["audiences"].as_array().into_iter().flatten();
        let mut wanted = TokenWanted {
            namespace: call.namespace().to_owned(),
            account: call.name().to_owned(),
            pod: None,
            audiences: audiences.filter_map(|audience| audience.as_str().map(str::to_owned)).collect(),
            life_s: spec["expirationSeconds"].as_i64().unwrap_or(LIFE_S_DEFAULT),
        };
        let bound = &spec["boundObjectRef"];
        if bound.is_null() {
            self.restrict_token(call, None)?;
        } else {
            if bound["kind"] != "Pod" {
                return Err(Status::bad_request(format!(
                    "cannot bind token to object of type {}: only pods can be named here",
                    bound["kind"]
                )));
            }
            let name = bound["name"].as_str().unwrap_or_default();
            let kind = api::kinds::by_kind("", "v1", "Pod").expect("the table of kinds has Pod");
            let pod = self.registry.get(kind, call.namespace(), name).await?;
            self.restrict_token(call, Some(pod.value()))?;
            let uid = object::uid(pod.value());
            if bound["uid"].as_str().is_some_and(|asked| !asked.is_empty() && asked != uid) {
                let why = format!(
                    "the UID in the bound object reference ({}) does not match the UID in record ({uid})",
                    bound["uid"]
                );
                return Err(Status::conflict(call.resource.kind, call.name(), &why));
            }
            if pod.value()["spec"]["serviceAccountName"] != call.name() {
                let why = format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    call.name()
                );
                return Err(Status::bad_request(why));
            }
            wanted.pod = Some((name.to_owned(), uid.to_owned()));
        }
        let life_s = wanted.life_s;
        let issued = self.accounts.issue(wanted).await?;
        let at = Timestamp::from_second(issued.expires_at_s).unwrap_or(Timestamp::UNIX_EPOCH);
        request["apiVersion"] = json!("authentication.k8s.io/v1");
        request["kind"] = json!("TokenRequest");
        request["metadata"]["name"] = json!(call.name());
        request["metadata"]["namespace"] = json!(call.namespace());
        request["spec"]["expirationSeconds"] = json!(life_s);
        if request["spec"]["audiences"].as_array().is_none_or(Vec::is_empty) {
            request["spec"]["audiences"] = json!([ISSUER]);
        }
        request["status"] = json!({"token": issued.text, "expirationTimestamp": object::timestamp(at)});
        Ok(call.style.value(StatusCode::CREATED, &request))
    }
}
