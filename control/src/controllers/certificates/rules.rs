//! What the signers of Kubernetes sign, and which requests are old: pure.
//!
//! The rules are those of "Certificates and Certificate Signing Requests" in the Kubernetes documentation
//! ("Kubernetes signers"). `kubernetes.io/legacy-unknown` is nobody's here.

use std::time::Duration;

use api::object;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::pki::{GROUP_NODES, SigningRequest, USER_NODE_PREFIX, Usage, expires_at_s};

/// The longest life of a certificate, and that of one whose request does not say.
const LIFE_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The shortest.
const LIFE_MIN: Duration = Duration::from_secs(600);
/// How long a request is kept after the verdict…
const DECIDED_KEPT: SignedDuration = SignedDuration::from_hours(1);
/// …and without any.
const PENDING_KEPT: SignedDuration = SignedDuration::from_hours(24);

/// One of the signers that are served here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signer {
    /// `kubernetes.io/kube-apiserver-client`: any client.
    Client,
    /// `kubernetes.io/kube-apiserver-client-kubelet`: a node as a client.
    NodeClient,
    /// `kubernetes.io/kubelet-serving`: a node as a server.
    NodeServer,
}

/// Why a request cannot be signed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) String);

impl Signer {
    /// The signer of that name, if it is served.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "kubernetes.io/kube-apiserver-client" => Self::Client,
            "kubernetes.io/kube-apiserver-client-kubelet" => Self::NodeClient,
            "kubernetes.io/kubelet-serving" => Self::NodeServer,
            _ => return None,
        })
    }

    /// The usages that a request must have, and the one that it may leave out.
    fn purpose(self) -> &'static str {
        match self {
            Self::Client | Self::NodeClient => "client auth",
            Self::NodeServer => "server auth",
        }
    }
}

/// What may be signed of a request.
pub(super) fn check(signer: Signer, asked: &SigningRequest, request: &Value) -> Result<Vec<Usage>, Refusal> {
    if signer != Signer::Client {
        check_node(signer, asked)?;
    }
    if asked.wants_control() {
        return Err(Refusal("the request is for a part of the control plane".to_owned()));
    }
    let listed = request["spec"]["usages"].as_array().into_iter().flatten();
    let mut listed: Vec<&str> = listed.filter_map(Value::as_str).collect();
    listed.sort_unstable();
    listed.dedup();
    let purpose = signer.purpose();
    let allowed = [purpose, "digital signature", "key encipherment"];
    let is_exact = signer == Signer::Client || listed.contains(&"digital signature");
    if !is_exact || !listed.contains(&purpose) || listed.iter().any(|usage| !allowed.contains(usage)) {
        return Err(Refusal(format!("usages did not match [{}]", allowed.join(" "))));
    }
    let usages = listed.into_iter().map(|usage| match usage {
        "digital signature" => Usage::DigitalSignature,
        "key encipherment" => Usage::KeyEncipherment,
        "server auth" => Usage::ServerAuth,
        _ => Usage::ClientAuth,
    });
    Ok(usages.collect())
}

fn check_node(signer: Signer, asked: &SigningRequest) -> Result<(), Refusal> {
    let refuse = |why: &str| Err(Refusal(why.to_owned()));
    if asked.organizations != [GROUP_NODES] {
        return refuse("subject organization is not system:nodes");
    }
    if asked.common_name.strip_prefix(USER_NODE_PREFIX).is_none_or(str::is_empty) {
        return refuse("subject common name does not begin with system:node:");
    }
    let names = asked.names;
    if names.emails > 0 {
        return refuse("Email subjectAltNames are not allowed");
    }
    if names.uris > 0 || names.others > 0 {
        return refuse("URI subjectAltNames are not allowed");
    }
    match signer {
        Signer::NodeServer if names.dns + names.addresses == 0 => {
            refuse("DNS or IP subjectAltName is required")
        }
        Signer::NodeClient if names.dns > 0 => refuse("DNS subjectAltNames are not allowed"),
        Signer::NodeClient if names.addresses > 0 => refuse("IP subjectAltNames are not allowed"),
        _ => Ok(()),
    }
}

/// How long the certificate lasts.
pub(super) fn life(spec: &Value) -> Duration {
    let asked = spec["expirationSeconds"].as_u64().map_or(LIFE_MAX, Duration::from_secs);
    asked.clamp(LIFE_MIN, LIFE_MAX)
}

/// A condition of a request.
pub(super) fn condition<'a>(request: &'a Value, name: &str) -> Option<&'a Value> {
    let mut conditions = request["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == name)
}

/// Whether a request has its certificate.
pub(super) fn is_issued(request: &Value) -> bool {
    request["status"]["certificate"].as_str().is_some_and(|text| !text.is_empty())
}

/// Whether nobody needs the request any more.
pub(super) fn is_stale(request: &Value, now: Timestamp) -> bool {
    let older = |at: Option<&str>, kept: SignedDuration| {
        at.and_then(object::parse_timestamp).is_some_and(|at| now.duration_since(at) > kept)
    };
    let verdict = |name: &str| condition(request, name);
    let said = |condition: &Value| older(condition["lastUpdateTime"].as_str(), DECIDED_KEPT);
    let has_expired = || {
        let text = request["status"]["certificate"].as_str().unwrap_or_default();
        let end = STANDARD.decode(text).ok().and_then(|pem| expires_at_s(&pem));
        end.is_some_and(|end| end < now.as_second())
    };
    match (verdict("Approved"), is_issued(request)) {
        (Some(approved), true) if said(approved) || has_expired() => true,
        _ if ["Denied", "Failed"].into_iter().filter_map(verdict).any(said) => true,
        // Somebody else's signer may have its reasons to take long.
        (Some(_), _) => false,
        (None, _) => older(Some(object::creation_timestamp(request)), PENDING_KEPT),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};
    use serde_json::json;

    use super::*;

    fn asked(user: &str, group: &str, names: Vec<SanType>) -> SigningRequest {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.distinguished_name.push(DnType::CommonName, user);
        params.subject_alt_names = names;
        let key = KeyPair::generate().expect("a key");
        let pem = params.serialize_request(&key).and_then(|request| request.pem()).expect("a request");
        SigningRequest::parse(pem.as_bytes()).expect("it can be read")
    }

    fn dns() -> Vec<SanType> {
        vec![SanType::DnsName("n1".try_into().expect("a name"))]
    }

    fn said(signer: Signer, asked: &SigningRequest, usages: &[&str]) -> String {
        match check(signer, asked, &json!({"spec": {"usages": usages}})) {
            Ok(usages) => format!("{} usages", usages.len()),
            Err(Refusal(why)) => why,
        }
    }

    #[test]
    fn each_signer_has_its_rules() {
        let node = "system:node:n1";
        let client = ["client auth", "digital signature", "key encipherment"];
        let server = ["digital signature", "server auth"];
        let uri = vec![SanType::URI("spiffe://x".try_into().expect("a name"))];
        for (signer, asked, usages, expected) in [
            (Signer::Client, asked("jane", "dev", dns()), &client[..1], "1 usages"),
            (
                Signer::Client,
                asked("jane", "dev", vec![]),
                &["client auth", "server auth"],
                "usages did not match",
            ),
            (Signer::Client, asked("jane", "dev", vec![]), &["digital signature"], "usages did not match"),
            (Signer::NodeClient, asked(node, "system:nodes", vec![]), &client, "3 usages"),
            (Signer::NodeClient, asked(node, "system:nodes", vec![]), &client[..2], "2 usages"),
            (Signer::NodeClient, asked(node, "system:nodes", vec![]), &client[..1], "usages did not match"),
            (Signer::NodeClient, asked(node, "dev", vec![]), &client, "organization is not system:nodes"),
            (
                Signer::NodeClient,
                asked("n1", "system:nodes", vec![]),
                &client,
                "does not begin with system:node:",
            ),
            (
                Signer::NodeClient,
                asked(node, "system:nodes", dns()),
                &client,
                "DNS subjectAltNames are not allowed",
            ),
            (Signer::NodeServer, asked(node, "system:nodes", dns()), &server, "2 usages"),
            (
                Signer::NodeServer,
                asked(node, "system:nodes", vec![]),
                &server,
                "DNS or IP subjectAltName is required",
            ),
            (
                Signer::NodeServer,
                asked(node, "system:nodes", uri),
                &server,
                "URI subjectAltNames are not allowed",
            ),
            (Signer::NodeServer, asked(node, "system:nodes", dns()), &client, "usages did not match"),
            (Signer::Client, asked("m9", "barque:members", vec![]), &client, "part of the control plane"),
        ] {
            let got = said(signer, &asked, usages);
            assert!(got.contains(expected), "{signer:?} {usages:?}: {got}, not {expected}");
        }
        assert_eq!(Signer::named("kubernetes.io/legacy-unknown"), None);
    }

    #[test]
    fn certificates_last_as_asked_within_bounds() {
        for (seconds, expected) in [(json!(null), LIFE_MAX), (json!(3600), Duration::from_secs(3600))] {
            assert_eq!(life(&json!({"expirationSeconds": seconds})), expected);
        }
        assert_eq!(life(&json!({"expirationSeconds": 1 << 31})), LIFE_MAX);
        assert_eq!(life(&json!({"expirationSeconds": 1})), LIFE_MIN);
    }

    #[test]
    fn old_requests_go() {
        let now: Timestamp = "2024-01-02T12:00:00Z".parse().expect("a time");
        let request = |verdict: &str, at: &str, certificate: &str| {
            let conditions = match verdict {
                "" => json!([]),
                verdict => json!([{"type": verdict, "lastUpdateTime": at}]),
            };
            json!({"metadata": {"creationTimestamp": "2024-01-02T00:00:00Z"},
                "status": {"conditions": conditions, "certificate": certificate}})
        };
        let (long, short) = ("2024-01-02T10:00:00Z", "2024-01-02T11:30:00Z");
        for (verdict, at, certificate, stale) in [
            ("", "", "", false),
            ("Approved", long, "", false),
            ("Approved", long, "x", true),
            ("Approved", short, "x", false),
            ("Denied", long, "", true),
            ("Denied", short, "", false),
            ("Failed", long, "", true),
        ] {
            assert_eq!(
                is_stale(&request(verdict, at, certificate), now),
                stale,
                "{verdict} {at} {certificate}"
            );
        }
        let mut pending = request("", "", "");
        pending["metadata"]["creationTimestamp"] = json!("2024-01-01T11:00:00Z");
        assert!(is_stale(&pending, now));
    }
}
