//! Which pod and port a name means: `[SCHEME:]NAME[:PORT]`.

use api::{Kind, Status};
use serde_json::Value;

use crate::backends::{self, Asked, Backend, Place, host};
use crate::object_store::Consistency;
use crate::rest::Rest;
use crate::rest::path::Resource;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// Whether the port speaks TLS. Its certificate is not verified, as nobody could have named its authority.
    pub(super) tls: bool,
    /// As addresses are written: what redirects of the pod name itself by.
    pub(super) host: String,
    pub(super) place: Place,
}

/// A name taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

impl<'a> Named<'a> {
    fn parse(id: &'a str) -> Option<Self> {
        let parts: Vec<&str> = id.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        (matches!(scheme, "" | "http" | "https") && !name.is_empty()).then_some(Self { scheme, name, port })
    }
}

impl Rest {
    /// What a proxy's name means now.
    pub(super) async fn proxy_target(&self, resource: &Resource) -> Result<Target, Status> {
        let id = resource.name.as_deref().unwrap_or_default();
        let namespace = resource.namespace.as_deref().unwrap_or_default();
        let word = resource.kind.kind.to_lowercase();
        let named =
            Named::parse(id).ok_or_else(|| Status::bad_request(format!("invalid {word} request {id:?}")))?;
        let Backend { place, host } = match resource.kind.kind {
            "Pod" => self.pod_backend(resource.kind, namespace, &named).await?,
            _ => {
                let asked = Asked { namespace, name: named.name, port: named.port, id };
                backends::of_service(self.registry.store(), asked, Consistency::Linearizable).await?
            }
        };
        Ok(Target { tls: named.scheme == "https", host, place })
    }

    async fn pod_backend(
        &self,
        kind: &'static Kind,
        namespace: &str,
        named: &Named<'_>,
    ) -> Result<Backend, Status> {
        let pod = self.registry.get(kind, namespace, named.name).await?;
        let value = pod.value();
        let port = match named.port {
            "" => first_port(value).unwrap_or(if named.scheme == "https" { 443 } else { 80 }),
            text => text.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
                Status::bad_request(format!("invalid pod request {:?}", format!("{}:{text}", named.name)))
            })?,
        };
        let address = value["status"]["podIP"].as_str().unwrap_or_default();
        if address.is_empty() {
            return Err(Status::bad_request("address not allowed"));
        }
        let target = backends::target(&pod)?;
        Ok(Backend { place: Place::Pod { target, port }, host: host(address, port) })
    }
}

fn first_port(pod: &Value) -> Option<u16> {
    let containers = pod["spec"]["containers"].as_array()?;
    let mut ports = containers.iter().filter_map(|container| container["ports"].as_array()?.first());
    u16::try_from(ports.next()?["containerPort"].as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_up_to_three_parts() {
        let parts = |id| Named::parse(id).map(|named| (named.scheme, named.name, named.port));
        assert_eq!(parts("a"), Some(("", "a", "")));
        assert_eq!(parts("a:80"), Some(("", "a", "80")));
        assert_eq!(parts("https:a:"), Some(("https", "a", "")));
        for wrong in ["", ":80", "ftp:a:80", "a:b:c:d"] {
            assert_eq!(parts(wrong), None, "{wrong}");
        }
    }
}
