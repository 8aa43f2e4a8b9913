//! `authentication.k8s.io/v1beta1` `SelfSubjectReview`, which kubectl 1.27 asks: the same as v1 in every field.

use k8s_openapi::api::authentication::v1::SelfSubjectReviewStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

/// The question, and in its status the answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "only what its fields are called and of which types they are is of interest")]
pub(crate) struct SelfSubjectReview {
    #[serde(default)]
    api_version: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    status: Option<SelfSubjectReviewStatus>,
}
