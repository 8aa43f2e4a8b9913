//! CertificateSigningRequests on the leader: those of nodes for themselves are approved, those that are approved
//! are signed with the cluster's authority, and old ones are removed.
//!
//! ```text
//!   made ──approve, deny (a person; nodes' own: here)──► Approved ──the signer's rules──► certificate, or Failed
//!     └────────────── after a day, or an hour after the verdict: removed ◄──────────────────┘
//! ```
//!
//! Requests for other signers than Kubernetes' own (see `rules`) are left to who serves those. What is decided is
//! pure and stands in `rules`; here is what reads and writes.

mod rules;

use std::time::{Duration, SystemTime};

use api::{Kind, Status, object};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use self::rules::{Refusal, Signer};
use super::{Context, options, settled, whole_seconds};
use crate::auth::{Attributes, Identity, ResourceName};
use crate::leader::Epoch;
use crate::pki::SigningRequest;
use crate::reflector::Feed;
use crate::registry::{DeleteOptions, Object, Part, Target};

const GROUP: &str = "certificates.k8s.io";
/// How often every request is looked at, beside when one changes: rights may have come, time has gone by.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How long to wait after a failed write.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let requests = context.every(GROUP, "CertificateSigningRequest");
    let mut feed = Feed::new(requests.clone());
    loop {
        while feed.try_next().is_some() {}
        let mut wait = LOOK_INTERVAL;
        for request in requests.list() {
            if let Err(status) = handle(context, epoch, &request).await {
                tracing::warn!(request = request.name(), %status, "the certificate request was not handled");
                wait = RETRY_AFTER;
            }
        }
        tokio::select! {
            _ = feed.next() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn handle(context: &Context, epoch: Epoch, request: &Object) -> Result<(), Status> {
    let value = request.value();
    if rules::is_stale(value, Timestamp::now()) {
        return settled(remove(context, epoch, request).await);
    }
    let Some(signer) = Signer::named(value["spec"]["signerName"].as_str().unwrap_or_default()) else {
        return Ok(());
    };
    let is = |verdict: &str| rules::condition(value, verdict).is_some();
    if object::deletion_timestamp(value).is_some() || is("Denied") || is("Failed") || rules::is_issued(value)
    {
        return Ok(());
    }
    settled(match is("Approved") {
        true => sign(context, epoch, request, signer).await,
        false => approve(context, epoch, request, signer).await,
    })
}

async fn remove(context: &Context, epoch: Epoch, request: &Object) -> Result<(), Status> {
    let options = DeleteOptions {
        resource_version: Some(request.revision().to_string()),
        fence: epoch.fence(),
        ..DeleteOptions::default()
    };
    context.registry.delete(Target::new(kind(), "", request.name()), &options).await.map(drop)
}

/// Approves a node's request for its own certificate as a client, if the requester may have it.
async fn approve(context: &Context, epoch: Epoch, request: &Object, signer: Signer) -> Result<(), Status> {
    let value = request.value();
    if signer != Signer::NodeClient {
        return Ok(());
    }
    let Ok(asked) = parse(value) else { return Ok(()) };
    if rules::check(signer, &asked, value).is_err() {
        return Ok(());
    }
    let who = requester(&value["spec"]);
    let own = who.user == asked.common_name;
    let ways = [
        (own, "selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."),
        (true, "nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."),
    ];
    let may = |subresource: &str| {
        let resource = Some(ResourceName { group: GROUP, plural: "certificatesigningrequests" });
        let asked = Attributes { verb: "create", resource, subresource, ..Attributes::default() };
        context.access.allows(&who, &asked)
    };
    let Some((_, _, message)) = ways.into_iter().find(|(fits, subresource, _)| *fits && may(subresource))
    else {
        return Ok(());
    };
    let target = Target { part: Part::Approval, ..Target::new(kind(), "", request.name()) };
    add_condition(context, epoch, target, ("Approved", "AutoApproved", message)).await
}

async fn sign(context: &Context, epoch: Epoch, request: &Object, signer: Signer) -> Result<(), Status> {
    let value = request.value();
    let target = Target::status(kind(), "", request.name());
    let checked = parse(value).and_then(|asked| {
        let usages = rules::check(signer, &asked, value)?;
        Ok((asked, usages))
    });
    let (asked, usages) = match checked {
        Ok(checked) => checked,
        Err(Refusal(why)) => {
            tracing::info!(request = request.name(), why, "the certificate request cannot be signed");
            return add_condition(context, epoch, target, ("Failed", "SignerValidationFailure", &why)).await;
        }
    };
    let life = rules::life(&value["spec"]);
    let issued = context.authority.sign_request(&asked, &usages, life, SystemTime::now());
    let certificate = issued.map_err(|error| Status::internal(&error.to_string()))?;
    let certificate = STANDARD.encode(certificate);
    let put = |request: &mut Value| {
        if !rules::is_issued(request) {
            request["status"]["certificate"] = json!(certificate);
        }
        Ok(())
    };
    context.registry.modify(target, &options(epoch), put).await?;
    tracing::info!(request = request.name(), user = asked.common_name, "a certificate was issued");
    Ok(())
}

async fn add_condition(
    context: &Context,
    epoch: Epoch,
    target: Target<'_>,
    (verdict, reason, message): (&str, &str, &str),
) -> Result<(), Status> {
    let now = object::timestamp(whole_seconds(Timestamp::now()));
    let add = |request: &mut Value| {
        if rules::condition(request, verdict).is_some() {
            return Ok(());
        }
        let condition = json!({"type": verdict, "status": "True", "reason": reason, "message": message,
            "lastUpdateTime": now, "lastTransitionTime": now});
        match request["status"]["conditions"].as_array_mut() {
            Some(conditions) => conditions.push(condition),
            None => request["status"]["conditions"] = json!([condition]),
        }
        Ok(())
    };
    context.registry.modify(target, &options(epoch), add).await.map(drop)
}

fn parse(request: &Value) -> Result<SigningRequest, Refusal> {
    let text = request["spec"]["request"].as_str().unwrap_or_default();
    let pem =
        STANDARD.decode(text).map_err(|_| Refusal("unable to parse csr: it is no base64".to_owned()))?;
    SigningRequest::parse(&pem).map_err(|error| Refusal(format!("unable to parse csr: {error}")))
}

/// Who made the request, as the server noted it.
fn requester(spec: &Value) -> Identity {
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    Identity {
        user: text("username"),
        groups: serde_json::from_value(spec["groups"].clone()).unwrap_or_default(),
        uid: text("uid"),
        extra: serde_json::from_value(spec["extra"].clone()).unwrap_or_default(),
    }
}

fn kind() -> &'static Kind {
    api::kinds::by_kind(GROUP, "v1", "CertificateSigningRequest").expect("the table of kinds has requests")
}
