//! Tokens of service accounts for the pods of a node.
//!
//! A node gets a token only for a pod that is bound to it, only of the service account that this pod runs as,
//! and only for an audience that one of its volumes asks for.

use api::Status;
use k8s_openapi::api::core::v1::Pod;
use proto::node::{TokenRequest, TokenResponse};

use super::NodeSessions;
use super::mailbox::Mailbox;
use crate::auth::service_account::{IssuedToken, TokenWanted};
use crate::registry::Object;

impl NodeSessions {
    /// Answers a node's question, if this replica leads.
    pub(super) async fn answer_token(&self, node: &str, request: TokenRequest, mailbox: &Mailbox) {
        let Some(epoch) = *self.inner.epochs.borrow() else { return };
        let sequence = request.sequence;
        let response = match self.token(node, request).await {
            Ok(issued) => TokenResponse {
                sequence,
                token: issued.text,
                issued_at_s: issued.issued_at_s,
                expires_at_s: issued.expires_at_s,
                error: String::new(),
            },
            Err(status) => {
                tracing::debug!(node, %status, "no token");
                let error = status.message().to_owned();
                TokenResponse { sequence, error, ..TokenResponse::default() }
            }
        };
        mailbox.token(epoch, response);
    }

    async fn token(&self, node: &str, request: TokenRequest) -> Result<IssuedToken, Status> {
        let pod = self.inner.pods.get(&request.namespace, &request.pod_name);
        let wanted = allowed(pod.as_deref(), node, request)?;
        self.inner.accounts.issue(wanted).await
    }
}

/// What the node may have of what it asks for.
fn allowed(pod: Option<&Object>, node: &str, request: TokenRequest) -> Result<TokenWanted, Status> {
    let TokenRequest { namespace, service_account, pod_name, pod_uid, audience, .. } = request;
    let refused = |why: &str| Status::bad_request(format!("pod {namespace}/{pod_name}: {why}"));
    let pod: Pod = pod.ok_or_else(|| refused("there is no such pod"))?.decode()?;
    let spec = pod.spec.unwrap_or_default();
    if pod.metadata.uid.as_deref() != Some(&pod_uid) || spec.node_name.as_deref() != Some(node) {
        return Err(refused("it is not bound to this node"));
    }
    if spec.service_account_name.as_deref() != Some(&service_account) {
        return Err(refused("it runs as another service account"));
    }
    let volumes = spec.volumes.iter().flatten();
    let sources = volumes.flat_map(|v| v.projected.iter().flat_map(|p| p.sources.iter().flatten()));
    let mut projections = sources.filter_map(|source| source.service_account_token.as_ref());
    if !projections.any(|wanted| wanted.audience.as_deref().unwrap_or_default() == audience) {
        return Err(refused("none of its volumes asks for a token for that audience"));
    }
    Ok(TokenWanted {
        namespace,
        account: service_account,
        pod: Some((pod_name, pod_uid)),
        audiences: (!audience.is_empty()).then_some(audience).into_iter().collect(),
        life_s: request.expiration_seconds,
    })
}
