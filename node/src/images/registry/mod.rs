//! The client of registries: the OCI distribution API over HTTP.
//!
//! A [`Repository`] is one repository at one host under one identity. It resolves tags, reads manifests, streams
//! blobs, takes up what broke, pushes. Promises: what it hands out has the digest that was asked for; memory per
//! transfer is bounded; what may pass is tried again with growing pauses, what cannot is said at once. Knows
//! nothing of the store's index, of pods or of platforms.

mod auth;
mod download;
mod error;
mod http;
mod proxy;
mod push;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use ::http::{HeaderName, Method, Response, StatusCode, Uri};
use bytes::Bytes;
use hyper::body::Incoming;

pub use self::error::RegistryError;
use self::http::{Ask, Http};
use super::credentials::Credentials;
use super::manifest::{self, ACCEPTED, MANIFEST_BYTES_MAX};
use super::{ImagesConfig, Reference, sha256_hex};

pub(crate) use self::download::Sink;
pub(crate) use self::push::PushContent;

/// Tries of one request that may pass.
const TRIES_MAX: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Docker's registry does not answer under its name.
const DOCKER: (&str, &str) = ("docker.io", "registry-1.docker.io");
const DIGEST_HEADER: HeaderName = HeaderName::from_static("docker-content-digest");

/// The client; one per process.
pub(crate) struct Registries {
    config: Arc<ImagesConfig>,
    http: Http,
}

/// What one wants to do with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Pull,
    Push,
}

/// One repository at one host, for one who asks.
pub(crate) struct Repository {
    registries: Arc<Registries>,
    /// The host by its name in references, which is also that of its credentials.
    pub(crate) host: String,
    base: String,
    path: String,
    scope: String,
    credentials: Option<Credentials>,
    authorization: Mutex<Option<HeaderValue>>,
}

/// A manifest or index as it was delivered.
#[derive(Debug, Clone)]
pub(crate) struct Delivered {
    pub(crate) digest: String,
    pub(crate) media_type: Option<String>,
    pub(crate) bytes: Bytes,
}

impl Registries {
    pub(crate) fn new(config: Arc<ImagesConfig>) -> Arc<Self> {
        Arc::new(Self { http: Http::new(Arc::clone(&config)), config })
    }

    /// The hosts to ask for an image, mirrors first.
    pub(crate) fn hosts(&self, reference: &Reference) -> Vec<String> {
        let mirrors = self.config.registries.get(reference.domain()).map(|r| r.mirrors.clone());
        let mut hosts = mirrors.unwrap_or_default();
        hosts.push(reference.domain().to_owned());
        hosts
    }

    /// A repository at a host.
    pub(crate) fn repository(
        self: &Arc<Self>,
        host: &str,
        path: &str,
        access: Access,
        credentials: Option<Credentials>,
    ) -> Repository {
        let scheme = if self.http.is_plain(host) { "http" } else { "https" };
        let address = if host == DOCKER.0 { DOCKER.1 } else { host };
        let actions = if access == Access::Pull { "pull" } else { "pull,push" };
        Repository {
            registries: Arc::clone(self),
            host: host.to_owned(),
            base: format!("{scheme}://{address}/v2/{path}"),
            path: path.to_owned(),
            scope: format!("repository:{path}:{actions}"),
            credentials,
            authorization: Mutex::default(),
        }
    }
}

/// Whether a registry takes these credentials.
pub async fn check_login(
    config: ImagesConfig,
    registry: &str,
    credentials: Credentials,
) -> Result<(), RegistryError> {
    let registries = Registries::new(Arc::new(config));
    let whole = Repository {
        scope: String::new(),
        ..registries.repository(registry, "", Access::Pull, Some(credentials))
    };
    let ask = Ask::new(format!("failed to log in to {registry}"), Method::GET, whole.uri("")?);
    whole.exchange(&ask).await.map(drop)
}

impl Repository {
    /// The digest that a tag stands for just now, if the registry says so without sending the manifest.
    pub(crate) async fn digest_of(&self, reference: &Reference) -> Result<Option<String>, RegistryError> {
        if let Some(digest) = reference.digest() {
            return Ok(Some(digest.to_owned()));
        }
        let ask = self.manifest_ask(Method::HEAD, reference)?;
        let response = self.exchange(&ask).await?;
        let digest = response.headers().get(&DIGEST_HEADER).and_then(|value| value.to_str().ok());
        Ok(digest.filter(|digest| manifest::is_digest(digest)).map(str::to_owned))
    }

    /// The manifest or index that a reference names.
    pub(crate) async fn manifest(&self, reference: &Reference) -> Result<Delivered, RegistryError> {
        let ask = self.manifest_ask(Method::GET, reference)?;
        self.document(&ask, reference.digest()).await
    }

    /// A manifest by its digest alone.
    pub(crate) async fn manifest_by_digest(&self, digest: &str) -> Result<Delivered, RegistryError> {
        let what = format!("failed to fetch manifest {digest} of {}/{}", self.host, self.path);
        let ask = accepting(Ask::new(what, Method::GET, self.uri(&format!("/manifests/{digest}"))?))?;
        self.document(&ask, Some(digest)).await
    }

    fn manifest_ask(&self, method: Method, reference: &Reference) -> Result<Ask, RegistryError> {
        let name = reference.digest().or(reference.tag()).unwrap_or("latest");
        let mirror = match self.host == reference.domain() {
            true => String::new(),
            false => format!(" at the mirror {}", self.host),
        };
        let what = format!("failed to resolve reference \"{reference}\"{mirror}");
        accepting(Ask::new(what, method, self.uri(&format!("/manifests/{name}"))?))
    }

    async fn document(&self, ask: &Ask, expected: Option<&str>) -> Result<Delivered, RegistryError> {
        let response = self.exchange(ask).await?;
        let header = |name: HeaderName| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let (media_type, said) = (header(CONTENT_TYPE), header(DIGEST_HEADER));
        let bytes = self.http().read(&ask.what, response.into_body(), MANIFEST_BYTES_MAX).await?;
        let digest = format!("sha256:{}", sha256_hex(&bytes));
        let said = said.filter(|said| said.starts_with("sha256:"));
        if let Some(expected) = expected.or(said.as_deref()).filter(|expected| *expected != digest) {
            let what = format!("{}: expected the digest {expected}", ask.what);
            return Err(RegistryError::Corrupt { what, found: digest });
        }
        Ok(Delivered { digest, media_type, bytes })
    }

    /// Sends a request until it is answered well, or in a way that will not change.
    async fn exchange(&self, ask: &Ask) -> Result<Response<Incoming>, RegistryError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let (error, asked) = match self.try_once(ask).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => {
                    let asked = http::retry_after(response.headers());
                    (self.http().refusal(ask, response, self.credentials.is_some()).await, asked)
                }
                Err(error) => (error, None),
            };
            if !error.is_transient() || tries >= TRIES_MAX {
                return Err(error);
            }
            tracing::debug!(%error, tries, "trying again");
            tokio::time::sleep(asked.unwrap_or_else(|| pause(tries))).await;
        }
    }

    /// Once, or twice if the registry wants to know first who asks.
    async fn try_once(&self, ask: &Ask) -> Result<Response<Incoming>, RegistryError> {
        let shown = self.authorization();
        let response = self.http().send(ask, shown.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let Some(challenge) = auth::challenge(response.headers()) else { return Ok(response) };
        // Another transfer may have learnt the answer meanwhile.
        if let Some(newer) = self.authorization().filter(|newer| Some(newer) != shown.as_ref()) {
            return self.http().send(ask, Some(&newer)).await;
        }
        let answer =
            auth::answer(self.http(), &ask.uri, challenge, &self.scope, self.credentials.as_ref()).await?;
        let Some(answer) = answer.filter(|answer| Some(answer) != shown.as_ref()) else {
            return Ok(response);
        };
        *self.authorization.lock().expect("no holder of the authorization panics") = Some(answer.clone());
        self.http().send(ask, Some(&answer)).await
    }

    fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().expect("no holder of the authorization panics").clone()
    }

    fn http(&self) -> &Http {
        &self.registries.http
    }

    fn uri(&self, rest: &str) -> Result<Uri, RegistryError> {
        let text = format!("{}{rest}", self.base);
        text.parse().map_err(|e| RegistryError::Protocol { what: text, problem: format!("no address: {e}") })
    }
}

fn accepting(mut ask: Ask) -> Result<Ask, RegistryError> {
    for kind in ACCEPTED {
        ask = ask.header(ACCEPT, kind)?;
    }
    Ok(ask)
}

/// Doubling, and never the same for two who were refused together.
fn pause(tries: u32) -> Duration {
    let pause = PAUSE.saturating_mul(1 << tries.saturating_sub(1).min(10)).min(PAUSE_MAX);
    pause.mul_f64(rand::random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::RegistryConfig;

    /// KIA-IMG-007.
    #[test]
    fn names_without_a_registry_are_dockers() {
        let mirrored =
            RegistryConfig { mirrors: vec!["mirror.lab:5000".into()], ..RegistryConfig::default() };
        let config = ImagesConfig {
            registries: [("docker.io".to_owned(), mirrored)].into(),
            ..ImagesConfig::default()
        };
        let registries = Registries::new(Arc::new(config));
        let addresses = |name: &str| -> Vec<String> {
            let reference = Reference::parse(name).unwrap();
            let hosts = registries.hosts(&reference).into_iter();
            hosts.map(|h| registries.repository(&h, reference.path(), Access::Pull, None).base).collect()
        };
        let mirror = "https://mirror.lab:5000/v2/library/nginx";
        assert_eq!(addresses("nginx"), [mirror, "https://registry-1.docker.io/v2/library/nginx"]);
        assert_eq!(addresses("r.lab:5000/team/app:1"), ["https://r.lab:5000/v2/team/app"]);
        assert_eq!(addresses("localhost:5000/app"), ["http://localhost:5000/v2/app"]);
    }
}
