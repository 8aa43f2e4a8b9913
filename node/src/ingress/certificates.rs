//! The certificates of Ingresses, by the host that a caller names.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::Ingress;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

use super::table::Table;
use crate::objects::{Lookup, Objects};

/// Certificates with their keys. Hosts are in lower case, wildcards as written.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    hosts: HashMap<String, Arc<CertifiedKey>>,
    /// Of an Ingress that names no hosts with its certificate.
    other: Option<Arc<CertifiedKey>>,
}

/// Why a Secret gives no certificate.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("there is no such Secret, or it is not here yet")]
    Missing,
    #[error("it lacks {0}")]
    Lacks(&'static str),
    #[error("{0} is not PEM as it should be")]
    NotPem(&'static str),
    #[error("certificate and key cannot be used: {0}")]
    Unusable(rustls::Error),
}

impl Certificates {
    /// What these Ingresses name, the oldest first; and what is wrong with the rest.
    pub(super) fn read(
        ingresses: &[Arc<Ingress>],
        objects: &Objects,
        provider: &CryptoProvider,
    ) -> (Self, Vec<String>) {
        let (mut certificates, mut problems) = (Self::default(), Vec::new());
        for ingress in ingresses {
            let namespace = ingress.metadata.namespace.as_deref().unwrap_or_default();
            for tls in ingress.spec.iter().flat_map(|spec| spec.tls.iter().flatten()) {
                let Some(name) = tls.secret_name.as_deref().filter(|name| !name.is_empty()) else { continue };
                let key = match certified(objects.secret(namespace, name), provider) {
                    Ok(key) => Arc::new(key),
                    Err(problem) => {
                        problems.push(format!("Secret {namespace}/{name}: {problem}"));
                        continue;
                    }
                };
                let hosts = tls.hosts.as_deref().unwrap_or_default();
                if hosts.is_empty() {
                    certificates.other.get_or_insert_with(|| Arc::clone(&key));
                }
                for host in hosts {
                    certificates.hosts.entry(host.to_ascii_lowercase()).or_insert_with(|| Arc::clone(&key));
                }
            }
        }
        (certificates, problems)
    }

    /// Whether there is one for a host as a rule names it, in lower case.
    pub(super) fn has(&self, host: &str) -> bool {
        self.hosts.contains_key(host)
    }

    fn find(&self, host: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let host = host.map(str::to_ascii_lowercase);
        let exact = host.as_deref().and_then(|host| self.hosts.get(host));
        let wildcard = || {
            let (_, suffix) = host.as_deref()?.split_once('.')?;
            self.hosts.get(&format!("*.{suffix}"))
        };
        exact.or_else(wildcard).or(self.other.as_ref()).cloned()
    }
}

fn certified(secret: Lookup<Secret>, provider: &CryptoProvider) -> Result<CertifiedKey, Problem> {
    let Lookup::Found(secret) = secret else { return Err(Problem::Missing) };
    let part = |name: &'static str| {
        let found = secret.data.as_ref().and_then(|data| data.get(name));
        found.map(|bytes| bytes.0.as_slice()).ok_or(Problem::Lacks(name))
    };
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_slice_iter(part("tls.crt")?).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or(Problem::NotPem("tls.crt"))?;
    let key = PrivateKeyDer::from_pem_slice(part("tls.key")?).map_err(|_| Problem::NotPem("tls.key"))?;
    CertifiedKey::from_der(chain, key, provider).map_err(Problem::Unusable)
}

/// Chooses the certificate of each connection out of the newest table.
#[derive(Debug)]
pub(super) struct Chooser(pub(super) watch::Receiver<Arc<Table>>);

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().certificates.find(hello.server_name())
    }
}
