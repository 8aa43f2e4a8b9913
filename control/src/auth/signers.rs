//! Who may decide about requests for certificates: besides the right to write them, `approve` or `sign` on the
//! signer that they are for (`CertificateApproval` and `CertificateSigning` of the Kubernetes documentation).

use api::{Kind, Status, object};
use serde_json::Value;

use super::{Access, Attributes, Identity, ResourceName};
use crate::registry::Guard;

const GROUP: &str = "certificates.k8s.io";

/// The check of what an identity writes. `None`: it is about something else.
pub(crate) fn guard(access: &Access, identity: &Identity, kind: &Kind) -> Option<Guard> {
    if kind.group != GROUP || kind.kind != "CertificateSigningRequest" {
        return None;
    }
    let (access, identity) = (access.clone(), identity.clone());
    Some(Guard::new(move |kind, old, new| match old {
        Some(old) => check(&access, &identity, kind, (old, new)),
        None => Ok(()),
    }))
}

fn check(
    access: &Access,
    identity: &Identity,
    kind: &Kind,
    (old, new): (&Value, &Value),
) -> Result<(), Status> {
    let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
    let conditions = |of: &Value, verdicts: &[&str]| -> Vec<Value> {
        let all = of["status"]["conditions"].as_array().into_iter().flatten();
        all.filter(|one| verdicts.iter().any(|verdict| one["type"] == *verdict)).cloned().collect()
    };
    let differ = |verdicts: &[&str]| conditions(old, verdicts) != conditions(new, verdicts);
    if differ(&["Approved", "Denied"]) && !allows(access, identity, "approve", signer) {
        let why = format!("user not permitted to approve requests with signerName {signer:?}");
        return Err(Status::forbidden(kind, object::name(new), &why));
    }
    let is_issued = old["status"]["certificate"] != new["status"]["certificate"];
    if (is_issued || differ(&["Failed"])) && !allows(access, identity, "sign", signer) {
        let why = format!("user not permitted to sign requests with signerName {signer:?}");
        return Err(Status::forbidden(kind, object::name(new), &why));
    }
    Ok(())
}

/// A role names one signer, or all of a domain.
fn allows(access: &Access, identity: &Identity, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    [signer, &format!("{domain}/*")].into_iter().any(|name| {
        let resource = Some(ResourceName { group: GROUP, plural: "signers" });
        access.allows(identity, &Attributes { verb, resource, name, ..Attributes::default() })
    })
}
