//! What stands behind a name: which pod or address a Service's port leads to, and a connection to it.
//!
//! For parts of a replica that speak to what runs in the cluster (the proxy, webhooks). Pods are reached through
//! their nodes' sessions, so that a replica needs no route to them; other endpoints at their addresses. Promises
//! that nobody reaches this machine itself by way of an endpoint.

use std::io;
use std::net::{IpAddr, SocketAddr};

use api::{Kind, Status};
use raft_store::chance;
use rand::Rng;
use serde_json::Value;
use streams::{PodStreams, StreamRequest, StreamTarget};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::object_store::{Consistency, ObjectStore, SharedStore};
use crate::registry::{Object, keys, status_from_store};

/// A backend, and what it calls itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backend {
    pub(crate) place: Place,
    /// As addresses are written.
    pub(crate) host: String,
}

/// How it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Through the pod's node.
    Pod { target: StreamTarget, port: u16 },
    /// At an address that is no pod's.
    Address(SocketAddr),
}

/// A port of a Service, by number or name; empty: the one without a name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) port: &'a str,
    /// What errors call it.
    pub(crate) id: &'a str,
}

/// A stream of bytes, whatever carries it.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// One of the ready backends of a Service, drawn at random.
pub(crate) async fn of_service(
    store: &SharedStore,
    asked: Asked<'_>,
    consistency: Consistency,
) -> Result<Backend, Status> {
    let Asked { namespace, name, port, id } = asked;
    let read = |kind: &'static str, name: String| async move {
        let kind = api::kinds::by_kind("", "v1", kind).expect("the table of kinds has the core group's");
        read(store, kind, (namespace, &name), consistency).await
    };
    let service = read("Service", name.to_owned()).await?;
    let port_name = port_name(service.value(), port).ok_or_else(|| {
        Status::service_unavailable(format!("no service port {port} found for service {name:?}"))
    })?;
    let none = || Status::service_unavailable(format!("no endpoints available for service {id:?}"));
    let endpoints = match read("Endpoints", name.to_owned()).await {
        Ok(endpoints) => endpoints,
        Err(status) if status.code() == 404 => {
            return Err(Status::service_unavailable(format!("no endpoints available for service {name:?}")));
        }
        Err(status) => return Err(status),
    };
    let backends = backends(endpoints.value(), &port_name);
    if backends.is_empty() {
        return Err(none());
    }
    let (address, port) = &backends[chance::rng().random_range(0..backends.len())];
    let ip = address["ip"].as_str().unwrap_or_default();
    let reference = &address["targetRef"];
    if reference["kind"] == "Pod" {
        let pod = read("Pod", reference["name"].as_str().unwrap_or_default().to_owned()).await?;
        return Ok(Backend {
            place: Place::Pod { target: target(&pod)?, port: *port },
            host: host(ip, *port),
        });
    }
    let ip: IpAddr = ip.parse().map_err(|_| none())?;
    if !is_proxyable(ip) {
        return Err(Status::bad_request("address not allowed"));
    }
    Ok(Backend { place: Place::Address(SocketAddr::new(ip, *port)), host: host(&ip.to_string(), *port) })
}

/// Connects to a backend.
pub(crate) async fn connect(place: &Place, streams: &dyn PodStreams) -> io::Result<Box<dyn Connection>> {
    match place {
        Place::Pod { target, port } => {
            let request = StreamRequest::PortForward { target: target.clone(), port: *port };
            let opened = streams.open(request).await;
            let mut node = opened.map_err(|status| io::Error::other(status.message().to_owned()))?;
            node.started().await.map_err(|failure| io::Error::other(failure.message))?;
            Ok(Box::new(streams::connection(node)))
        }
        Place::Address(address) => Ok(Box::new(TcpStream::connect(address).await?)),
    }
}

async fn read(
    store: &SharedStore,
    kind: &'static Kind,
    (namespace, name): (&str, &str),
    consistency: Consistency,
) -> Result<Object, Status> {
    let key = keys::object(kind, namespace, name);
    let (stored, _) = store.get(key, consistency).await.map_err(status_from_store)?;
    stored.map(|stored| Object::new(kind, stored)).ok_or_else(|| Status::not_found(kind, name))
}

/// The pod, on its node. Refused while it has none.
pub(crate) fn target(pod: &Object) -> Result<StreamTarget, Status> {
    let value = pod.value();
    let node = value["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", pod.name())));
    }
    Ok(StreamTarget {
        node: node.to_owned(),
        namespace: pod.namespace().to_owned(),
        pod: pod.name().to_owned(),
        pod_uid: api::object::uid(value).to_owned(),
        container: String::new(),
    })
}

/// An address that may be a backend's, and not this machine itself or its link.
fn is_proxyable(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(mapped) => return is_proxyable(mapped.into()),
            None => ip.is_unicast_link_local(),
        },
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_link_local)
}

pub(crate) fn host(address: &str, port: u16) -> String {
    match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    }
}

/// The name of the service's port that is asked for, by name or number. Nothing asked is the port without a name.
fn port_name(service: &Value, asked: &str) -> Option<String> {
    let Ok(number) = asked.parse::<u64>() else { return Some(asked.to_owned()) };
    let ports = service["spec"]["ports"].as_array()?;
    let port = ports.iter().find(|port| port["port"].as_u64() == Some(number))?;
    Some(port["name"].as_str().unwrap_or_default().to_owned())
}

/// The ready addresses that have a port of that name, with its number.
fn backends<'a>(endpoints: &'a Value, port_name: &str) -> Vec<(&'a Value, u16)> {
    let mut found = Vec::new();
    for subset in endpoints["subsets"].as_array().into_iter().flatten() {
        let ports = subset["ports"].as_array().into_iter().flatten();
        let mut named = ports.filter(|port| port["name"].as_str().unwrap_or_default() == port_name);
        let number = named.next().and_then(|port| u16::try_from(port["port"].as_u64()?).ok());
        if let Some(number) = number {
            found.extend(
                subset["addresses"].as_array().into_iter().flatten().map(|address| (address, number)),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_services_port_is_found_by_number_or_name() {
        let service =
            json!({"spec": {"ports": [{"name": "web", "port": 80}, {"name": "admin", "port": 81}]}});
        assert_eq!(port_name(&service, "81").as_deref(), Some("admin"));
        assert_eq!(port_name(&service, "web").as_deref(), Some("web"));
        assert_eq!(port_name(&service, "").as_deref(), Some(""));
        assert_eq!(port_name(&service, "82"), None);
        let endpoints = json!({"subsets": [
            {"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"name": "web", "port": 8080}]},
            {"addresses": [{"ip": "10.0.0.3"}], "ports": [{"name": "admin", "port": 8081}]},
            {"notReadyAddresses": [{"ip": "10.0.0.4"}], "ports": [{"name": "web", "port": 8080}]}]});
        let found = backends(&endpoints, "web");
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|(_, port)| *port == 8080));
        assert!(backends(&endpoints, "").is_empty());
    }

    #[test]
    fn nobody_reaches_this_machine_through_a_service() {
        for (ip, may) in [
            ("127.0.0.1", false),
            ("0.0.0.0", false),
            ("169.254.169.254", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("fe80::1", false),
            ("10.0.0.1", true),
            ("2001:db8::1", true),
        ] {
            assert_eq!(is_proxyable(ip.parse().unwrap()), may, "{ip}");
        }
    }
}
