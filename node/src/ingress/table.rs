//! Where a request goes: hosts and paths of Ingresses, resolved to endpoints. Pure.
//!
//! Owns the precedence. A host as written counts before a wildcard, a wildcard before rules without a host; under one
//! host the longest path, and `Exact` before `Prefix`; of two equal rules that of the older Ingress. What no rule of these
//! matches goes to the default backend of the oldest Ingress that has one.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::ingress::REDIRECT_ANNOTATION;
use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, Ingress, IngressBackend, IngressServiceBackend, ServiceBackendPort,
};

use super::certificates::Certificates;
use super::http2;
use crate::network::cluster::Known;

/// What is known of a Service, by namespace and name.
pub(super) type Lookup<'a> = &'a dyn Fn(&str, &str) -> Option<Known>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Table {
    hosts: HashMap<String, Vec<Route>>,
    /// `*.example.org` under `example.org`.
    wildcards: HashMap<String, Vec<Route>>,
    any_host: Vec<Route>,
    default: Option<Arc<Backend>>,
    /// Hosts whose callers are sent to `https`.
    redirected: HashSet<String>,
    pub(super) certificates: Arc<Certificates>,
}

#[derive(Debug)]
struct Route {
    is_exact: bool,
    /// Without the slash at the end, if it is a prefix.
    path: String,
    backend: Arc<Backend>,
}

/// Who answers for a rule.
#[derive(Debug)]
pub(super) struct Backend {
    /// Service and port, as messages name them.
    pub(super) name: String,
    /// Where there is nobody: why.
    pub(super) endpoints: Result<Vec<SocketAddr>, Absence>,
    /// They are spoken to in HTTP/2.
    pub(super) is_http2: bool,
    turn: AtomicUsize,
}

/// Why nobody answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Absence {
    #[error("there is no such Service")]
    NoService,
    #[error("the Service has no such port")]
    NoPort,
    #[error("the Service has no endpoints of its own: it is of type ExternalName")]
    External,
    #[error("only Services are answered for, no other resources")]
    Resource,
    #[error("no endpoint is ready")]
    NotReady,
}

impl Backend {
    fn absent(name: &str, absence: Absence) -> Self {
        let (name, turn) = (name.to_owned(), AtomicUsize::new(0));
        Self { name, endpoints: Err(absence), is_http2: false, turn }
    }

    /// Who stands behind a port of a Service.
    fn of(name: String, known: Option<Known>, wanted: &IngressServiceBackend) -> Self {
        let known = known.as_ref().ok_or(Absence::NoService);
        let (endpoints, is_http2) = match known.and_then(|known| Ok((known, port(known, wanted)?))) {
            Ok((known, port)) => {
                (endpoints(known, port), port.app_protocol.as_deref() == Some(http2::APP_PROTOCOL))
            }
            Err(absence) => (Err(absence), false),
        };
        Self { name, endpoints, is_http2, turn: AtomicUsize::new(0) }
    }

    /// At most so many endpoints, each request beginning with the next.
    pub(super) fn candidates(&self, most: usize) -> Result<impl Iterator<Item = SocketAddr>, Absence> {
        let endpoints = self.endpoints.as_ref().map_err(Clone::clone)?;
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = endpoints.len();
        Ok((0..count.min(most)).map(move |step| endpoints[(first.wrapping_add(step)) % count]))
    }
}

impl Table {
    /// What these Ingresses ask for, the oldest first.
    pub(super) fn compile(
        ingresses: &[Arc<Ingress>],
        lookup: Lookup<'_>,
        certificates: Arc<Certificates>,
    ) -> Self {
        let mut table = Self { certificates, ..Self::default() };
        let mut backends = Backends { lookup, known: HashMap::new() };
        for ingress in ingresses {
            let namespace = ingress.metadata.namespace.as_deref().unwrap_or_default();
            let Some(spec) = &ingress.spec else { continue };
            if let Some(default) = spec.default_backend.as_ref().filter(|_| table.default.is_none()) {
                table.default = Some(backends.get(namespace, default));
            }
            for rule in spec.rules.iter().flatten() {
                let paths = rule.http.iter().flat_map(|http| &http.paths);
                let routes: Vec<Route> = paths.map(|path| backends.route(namespace, path)).collect();
                table.at(rule.host.as_deref()).extend(routes);
            }
            table.redirect(ingress);
        }
        let hosts = table.hosts.values_mut().chain(table.wildcards.values_mut()).chain([&mut table.any_host]);
        for routes in hosts {
            // Stable: the older of two equal ones stays ahead.
            routes.sort_by_key(|route| (std::cmp::Reverse(route.path.len()), !route.is_exact));
        }
        table
    }

    fn at(&mut self, host: Option<&str>) -> &mut Vec<Route> {
        match host.filter(|host| !host.is_empty()).map(str::to_ascii_lowercase) {
            None => &mut self.any_host,
            Some(host) => match host.strip_prefix("*.") {
                Some(suffix) => self.wildcards.entry(suffix.to_owned()).or_default(),
                None => self.hosts.entry(host).or_default(),
            },
        }
    }

    /// Callers of hosts that have a certificate are sent to it, unless the Ingress says otherwise.
    fn redirect(&mut self, ingress: &Ingress) {
        let annotations = ingress.metadata.annotations.as_ref();
        if annotations.and_then(|all| all.get(REDIRECT_ANNOTATION)).is_some_and(|value| value == "false") {
            return;
        }
        let tls = ingress.spec.iter().flat_map(|spec| spec.tls.iter().flatten());
        let hosts = tls.flat_map(|tls| tls.hosts.iter().flatten()).map(|host| host.to_ascii_lowercase());
        self.redirected.extend(hosts.filter(|host| self.certificates.has(host)));
    }

    /// Whether plain requests to a host are sent to `https`. `host` in lower case, without a port.
    pub(super) fn redirects(&self, host: &str) -> bool {
        self.redirected.contains(host)
            || host
                .split_once('.')
                .is_some_and(|(_, suffix)| self.redirected.contains(&format!("*.{suffix}")))
    }

    /// Who answers. `host` in lower case, without a port.
    pub(super) fn find(&self, host: &str, path: &str) -> Option<&Arc<Backend>> {
        let exact = self.hosts.get(host);
        // A wildcard stands for one label.
        let wildcard = host.split_once('.').and_then(|(_, suffix)| self.wildcards.get(suffix));
        let candidates = exact.into_iter().chain(wildcard).chain([&self.any_host]).flatten();
        let mut matching = candidates.filter(|route| route.matches(path)).map(|route| &route.backend);
        matching.next().or(self.default.as_ref())
    }
}

impl Route {
    fn matches(&self, path: &str) -> bool {
        if self.is_exact {
            return path == self.path;
        }
        path.strip_prefix(&*self.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

struct Backends<'a> {
    lookup: Lookup<'a>,
    known: HashMap<String, Arc<Backend>>,
}

impl Backends<'_> {
    fn route(&mut self, namespace: &str, path: &HTTPIngressPath) -> Route {
        let is_exact = path.path_type == "Exact";
        let text = path.path.as_deref().unwrap_or("/");
        let text = if is_exact { text } else { text.trim_end_matches('/') };
        Route { is_exact, path: text.to_owned(), backend: self.get(namespace, &path.backend) }
    }

    fn get(&mut self, namespace: &str, backend: &IngressBackend) -> Arc<Backend> {
        let Some(service) = &backend.service else {
            return Arc::new(Backend::absent("a resource", Absence::Resource));
        };
        let port = service.port.as_ref();
        let port_text = match port {
            Some(ServiceBackendPort { name: Some(name), .. }) => name.clone(),
            Some(ServiceBackendPort { number: Some(number), .. }) => number.to_string(),
            _ => String::new(),
        };
        let name = format!("{namespace}/{}:{port_text}", service.name);
        let known = self.known.entry(name.clone());
        let found = || Backend::of(name, (self.lookup)(namespace, &service.name), service);
        Arc::clone(known.or_insert_with(|| Arc::new(found())))
    }
}

/// The port that is meant.
fn port<'a>(known: &'a Known, wanted: &IngressServiceBackend) -> Result<&'a ServicePort, Absence> {
    let spec = known.service.as_ref().and_then(|service| service.spec.as_ref()).ok_or(Absence::NoService)?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return Err(Absence::External);
    }
    let is_wanted = |port: &&ServicePort| match &wanted.port {
        Some(ServiceBackendPort { name: Some(name), .. }) => port.name.as_ref() == Some(name),
        Some(ServiceBackendPort { number: Some(number), .. }) => port.port == *number,
        _ => false,
    };
    spec.ports.iter().flatten().find(is_wanted).ok_or(Absence::NoPort)
}

/// The ready endpoints of a Service's port.
fn endpoints(known: &Known, port: &ServicePort) -> Result<Vec<SocketAddr>, Absence> {
    let port_name = port.name.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    for slice in known.slices.values() {
        let ports = slice.ports.iter().flatten();
        let same = ports.filter(|port| port.name.as_deref().unwrap_or_default() == port_name);
        for number in same.filter_map(|port| u16::try_from(port.port?).ok()) {
            let ready = slice.endpoints.iter().filter(|endpoint| {
                endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false)
            });
            let addresses = ready.filter_map(|endpoint| endpoint.addresses.first()?.parse::<IpAddr>().ok());
            found.extend(addresses.map(|address| SocketAddr::new(address, number)));
        }
    }
    found.sort_unstable();
    found.dedup();
    if found.is_empty() { Err(Absence::NotReady) } else { Ok(found) }
}

#[cfg(test)]
mod tests;
