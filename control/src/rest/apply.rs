//! `PATCH` with `application/apply-patch+yaml`: server-side apply.

use api::Status;
use http::{HeaderMap, Response, StatusCode};

use super::respond::{self, Body};
use super::verbs::{Call, Verb};
use super::{Rest, body};
use crate::auth;
use crate::registry::{Application, FieldManager};

/// The media type of a configuration to apply.
pub(super) const APPLY: &str = "application/apply-patch+yaml";

impl Rest {
    /// Applies a configuration.
    pub(super) async fn apply(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        debug_assert_eq!(body::media_type(headers), APPLY);
        let Some(manager) = call.query.get("fieldManager") else {
            return Err(Status::invalid_request(
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
            ));
        };
        let document = body::yaml(body)?;
        let mut options = self.write_options(call, document.duplicates).await?;
        options.manager = FieldManager::Applies(manager.to_owned());
        let application = Application {
            config: document.value,
            force: call.query.flag("force"),
            no_creation: self.creation_refused(call),
        };
        let (written, created) = self.registry.apply(call.target(), application, &options).await?;
        let code = if created { StatusCode::CREATED } else { StatusCode::OK };
        let mut response = call.style.object(code, &written.object);
        respond::add_warnings(&mut response, &written.warnings);
        Ok(response)
    }

    /// Why the asker may not create what the request names; whoever may patch may not always.
    fn creation_refused(&self, call: &Call<'_>) -> Option<Status> {
        let attributes = super::attributes(call.resource, Verb::Create, call.query);
        let allowed = self.access.allows(call.identity, &attributes);
        (!allowed).then(|| auth::refusal(call.identity, &attributes))
    }
}
