//! CertificateSigningRequests hold a request that can be read and whose requester has the key, and nobody asks
//! to become a master.

use api::{Cause, Kind, Status, object};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::Operation;
use crate::pki::{GROUP_MASTERS, GROUP_MEMBERS, SigningRequest};

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub(super) fn admit(kind: &Kind, operation: Operation, object: &mut Value) -> Result<(), Status> {
    if kind.kind != "CertificateSigningRequest" || operation != Operation::Create {
        return Ok(());
    }
    let spec = &object["spec"];
    // That there is none is validation's to say.
    let Some(text) = spec["request"].as_str().filter(|text| !text.is_empty()) else { return Ok(()) };
    let name = object::name(object);
    let refuse = |why: &str| Status::invalid(kind, name, vec![Cause::invalid("spec.request", text, why)]);
    let pem = STANDARD.decode(text).map_err(|_| refuse("must be base64"))?;
    let request = SigningRequest::parse(&pem).map_err(|error| refuse(&error.to_string()))?;
    let privileged = [GROUP_MASTERS, GROUP_MEMBERS];
    let wanted = request.organizations.iter().find(|group| privileged.contains(&group.as_str()));
    if let Some(group) = wanted.filter(|_| spec["signerName"] == CLIENT_SIGNER) {
        let why = format!("use of {CLIENT_SIGNER} signer with {group} group is not allowed");
        return Err(Status::forbidden(kind, name, &why));
    }
    Ok(())
}
