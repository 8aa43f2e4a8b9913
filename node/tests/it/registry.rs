//! A registry for tests: the distribution API in memory, with faults on demand and a record of what was asked.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use node::images;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const PIECE_BYTES: usize = 64 << 10;

type Body = BoxBody<Bytes, std::io::Error>;

/// Who may pull.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Guard {
    Nobody,
    Basic,
    Token,
}

pub(crate) struct State {
    blobs: BTreeMap<String, Bytes>,
    /// By `repository:tag` or `repository@digest`: media type and document.
    manifests: BTreeMap<String, (String, Bytes)>,
    pub(crate) guard: Guard,
    /// Statuses that the next requests get instead of answers.
    pub(crate) refusals: VecDeque<(u16, &'static str)>,
    /// After how many bytes the next blobs break off.
    pub(crate) breaks: VecDeque<usize>,
    /// A bit of every blob is wrong.
    pub(crate) wrong: bool,
    /// No parts of blobs: a request for one gets all of it.
    pub(crate) no_parts: bool,
    /// Where blobs are said to be.
    pub(crate) redirect: Option<String>,
    /// The pause between two pieces of a blob.
    pub(crate) pause: Duration,
    /// `METHOD path range authorization-scheme`.
    pub(crate) asked: Vec<String>,
    /// Bytes of blobs that were sent.
    pub(crate) sent: usize,
}

#[derive(Clone)]
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: Arc<Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

/// Name and password that guarded registries know.
pub(crate) const USER: (&str, &str) = ("robot", "open sesame");

impl Registry {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// A registry with TLS, and the PEM of the authority that vouches for it as `localhost` and `registry.lab`.
    pub(crate) async fn start_tls() -> (Self, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let own = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned(), "registry.lab".to_owned()])
            .unwrap()
            .signed_by(&own, &issuer)
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], own.serialize_der().try_into().unwrap())
            .unwrap();
        (Self::start_with(Some(TlsAcceptor::from(Arc::new(config)))).await, ca_pem)
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let state = State {
            blobs: BTreeMap::new(),
            manifests: BTreeMap::new(),
            guard: Guard::Nobody,
            refusals: VecDeque::new(),
            breaks: VecDeque::new(),
            wrong: false,
            no_parts: false,
            redirect: None,
            pause: Duration::ZERO,
            asked: Vec::new(),
            sent: 0,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let registry = Self { address, state: Arc::new(Mutex::new(state)), task: Arc::default() };
        registry.serve(listener, tls);
        registry
    }

    fn serve(&self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        let own = self.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (registry, tls) = (own.clone(), tls.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let registry = registry.clone();
                        async move { Ok::<_, Infallible>(registry.answer(request).await) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    match tls {
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            drop(http.serve_connection(TokioIo::new(stream), service).await);
                        }
                        None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                    }
                });
            }
        });
        *self.task.lock().unwrap() = Some(task);
    }

    /// Goes away: nobody listens any more, connections end.
    pub(crate) async fn stop(&self) {
        let task = self.task.lock().unwrap().take().unwrap();
        task.abort();
        drop(task.await);
    }

    /// Comes back under its address.
    pub(crate) async fn restart(&self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener, None);
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A reference to an image here.
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// How often something was asked for whose record contains the text.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.state().asked.iter().filter(|asked| asked.contains(text)).count()
    }

    pub(crate) fn put_blob(&self, bytes: impl Into<Bytes>) -> Value {
        let bytes = bytes.into();
        let (digest, size) = (digest(&bytes), bytes.len());
        self.state().blobs.insert(digest.clone(), bytes);
        json!({"digest": digest, "size": size})
    }

    /// Stores a document under a tag, and under its digest, which it returns.
    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, kind: &str, document: &Value) -> String {
        self.put_document(repository, tag, kind, document.to_string().into())
    }

    fn put_document(&self, repository: &str, tag: &str, kind: &str, bytes: Bytes) -> String {
        let digest = digest(&bytes);
        let entry = (kind.to_owned(), bytes);
        let mut state = self.state();
        state.manifests.insert(format!("{repository}@{digest}"), entry.clone());
        state.manifests.insert(format!("{repository}:{tag}"), entry);
        digest
    }

    /// An image of some layers (tars, perhaps compressed) with this configuration.
    pub(crate) fn put_image(&self, name: &str, layers: &[(&str, Vec<u8>, String)], config: Value) -> String {
        let (repository, tag) = name.split_once(':').unwrap();
        let manifest = self.manifest(layers, config);
        self.put_manifest(repository, tag, MANIFEST, &manifest)
    }

    /// The manifest of such an image; its blobs are stored.
    pub(crate) fn manifest(&self, layers: &[(&str, Vec<u8>, String)], config: Value) -> Value {
        let diff_ids: Vec<&String> = layers.iter().map(|(_, _, diff_id)| diff_id).collect();
        let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        let config = json!({"architecture": arch, "os": "linux", "config": config,
                            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let mut config = self.put_blob(config.to_string());
        config["mediaType"] = CONFIG.into();
        let layers: Vec<Value> = layers
            .iter()
            .map(|(kind, bytes, _)| {
                let mut layer = self.put_blob(bytes.clone());
                layer["mediaType"] = (*kind).into();
                layer
            })
            .collect();
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
    }

    /// An image that runs this test binary's `work`, told apart by `version`.
    pub(crate) fn put_program(&self, name: &str, version: &str) -> String {
        let config = json!({"Entrypoint": ["/barque", "work"], "Env": [format!("VERSION={version}")]});
        self.put_program_with(name, &[], config)
    }

    /// The same with layers above the program's, and a configuration.
    pub(crate) fn put_program_with(&self, name: &str, above: &[Layer], config: Value) -> String {
        let dir = tempfile::tempdir().unwrap();
        images::build_builtin(&std::env::current_exe().unwrap(), "x/y:1", dir.path()).unwrap();
        let read = |digest: &str| fs::read(dir.path().join("blobs/sha256").join(&digest[7..])).unwrap();
        let document = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let index = document(&fs::read(dir.path().join("index.json")).unwrap());
        let manifest = document(&read(index["manifests"][0]["digest"].as_str().unwrap()));
        let layer = manifest["layers"][0]["digest"].as_str().unwrap();
        let kind = "application/vnd.oci.image.layer.v1.tar";
        let layers = [&[(kind, read(layer), layer.to_owned())], above].concat();
        self.put_image(name, &layers, config)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let header = |name: &str| {
            request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
        };
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let (range, authorization) = (header("range"), header("authorization"));
        let scheme = authorization.split(' ').next().unwrap_or_default();
        self.state().asked.push(format!("{method} {path} {range} {scheme}"));
        if path == "/token" {
            return self.token(&authorization);
        }
        if let Some(refusal) = self.refusal(&authorization) {
            return refusal;
        }
        let Some((repository, rest)) = path.strip_prefix("/v2/").and_then(split) else {
            return reply(StatusCode::OK, "{}");
        };
        match (&method, rest) {
            (&Method::GET | &Method::HEAD, ("manifests", name)) => self.get_manifest(repository, name),
            (&Method::PUT, ("manifests", name)) => {
                let kind = header("content-type");
                let bytes = request.into_body().collect().await.unwrap().to_bytes();
                self.put_document(repository, name, &kind, bytes);
                reply(StatusCode::CREATED, "")
            }
            (&Method::POST, ("blobs", _)) => Response::builder()
                .status(StatusCode::ACCEPTED)
                .header("location", format!("/v2/{repository}/blobs/uploads/1?state=x"))
                .body(full(""))
                .unwrap(),
            (&Method::PUT, ("blobs", _)) => {
                let query = request.uri().query().unwrap_or_default().to_owned();
                let bytes = request.into_body().collect().await.unwrap().to_bytes();
                let named = query.split("digest=").nth(1).unwrap_or_default().replace("%3A", ":");
                if named != digest(&bytes) {
                    return refuse(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
                }
                self.put_blob(bytes);
                reply(StatusCode::CREATED, "")
            }
            (_, ("blobs", digest)) => self.get_blob(&method, digest, &range),
            _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
        }
    }

    fn token(&self, authorization: &str) -> Response<Body> {
        if authorization != basic() {
            return refuse(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
        }
        reply(StatusCode::OK, r#"{"token": "sesame-token", "expires_in": 60}"#)
    }

    fn refusal(&self, authorization: &str) -> Option<Response<Body>> {
        let mut state = self.state();
        if let Some((status, code)) = state.refusals.pop_front() {
            return Some(refuse(StatusCode::from_u16(status).unwrap(), code));
        }
        let (expected, challenge) = match state.guard {
            Guard::Nobody => return None,
            Guard::Basic => (basic(), "Basic realm=\"test\"".to_owned()),
            Guard::Token => {
                let realm = format!("http://{}/token", self.address);
                let challenge =
                    format!("Bearer realm=\"{realm}\",service=\"test\",scope=\"repository:x:pull\"");
                ("Bearer sesame-token".to_owned(), challenge)
            }
        };
        (authorization != expected).then(|| {
            let mut response = refuse(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
            response.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
            response
        })
    }

    fn get_manifest(&self, repository: &str, name: &str) -> Response<Body> {
        let state = self.state();
        let found = state.manifests.get(&format!("{repository}:{name}"));
        let Some((kind, bytes)) = found.or_else(|| state.manifests.get(&format!("{repository}@{name}")))
        else {
            return refuse(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
        };
        Response::builder()
            .header("content-type", kind)
            .header("docker-content-digest", digest(bytes))
            .body(full(bytes.clone()))
            .unwrap()
    }

    fn get_blob(&self, method: &Method, name: &str, range: &str) -> Response<Body> {
        let mut state = self.state();
        if let Some(location) = &state.redirect {
            let location = format!("{location}/{name}");
            return Response::builder().status(307).header("location", location).body(full("")).unwrap();
        }
        let Some(mut bytes) = state.blobs.get(name).cloned() else {
            return refuse(StatusCode::NOT_FOUND, "BLOB_UNKNOWN");
        };
        if state.wrong {
            let mut other = bytes.to_vec();
            other[0] ^= 1;
            bytes = other.into();
        }
        let whole = bytes.len();
        let from = range.strip_prefix("bytes=").and_then(|r| r.trim_end_matches('-').parse::<usize>().ok());
        let mut builder = Response::builder();
        if let Some(from) = from.filter(|_| !state.no_parts) {
            builder =
                builder.status(206).header("content-range", format!("bytes {from}-{}/{whole}", whole - 1));
            bytes = bytes.slice(from..);
        }
        builder = builder.header("content-length", bytes.len());
        if method == Method::HEAD {
            return builder.body(full("")).unwrap();
        }
        let mut pieces: Vec<Result<Frame<Bytes>, std::io::Error>> = Vec::new();
        let end = state.breaks.pop_front().map_or(bytes.len(), |after| after.min(bytes.len()));
        let breaks = end < bytes.len();
        for at in (0..end).step_by(PIECE_BYTES) {
            pieces.push(Ok(Frame::data(bytes.slice(at..end.min(at + PIECE_BYTES)))));
        }
        if breaks {
            pieces.push(Err(std::io::Error::other("a fault on demand")));
        }
        let pause = state.pause;
        drop(state);
        let own = self.clone();
        let stream = futures_util::stream::unfold(pieces.into_iter(), move |mut pieces| {
            let own = own.clone();
            async move {
                tokio::time::sleep(pause).await;
                let piece = pieces.next()?;
                if let Ok(frame) = &piece {
                    own.state().sent += frame.data_ref().map_or(0, Bytes::len);
                }
                Some((piece, pieces))
            }
        });
        builder.body(StreamBody::new(stream).boxed()).unwrap()
    }
}

/// A tar of files.
pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A layer: its media type, its bytes, the digest of its contents.
pub(crate) type Layer = (&'static str, Vec<u8>, String);

/// A plain layer of files.
pub(crate) fn layer(files: &[(&str, &[u8])]) -> Layer {
    let bytes = tar_of(files);
    let diff_id = digest(&bytes);
    ("application/vnd.oci.image.layer.v1.tar", bytes, diff_id)
}

/// What no compression makes smaller.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut noise);
    noise
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes)))
}

/// A docker configuration that knows the registry's user, at these hosts.
pub(crate) fn docker_config(hosts: &[&str]) -> String {
    let auths: BTreeMap<&str, Value> =
        hosts.iter().map(|host| (*host, json!({"username": USER.0, "password": USER.1}))).collect();
    json!({"auths": auths}).to_string()
}

/// Writes a file and returns its path.
pub(crate) fn file(dir: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn basic() -> String {
    use base64::Engine as _;
    let text = format!("{}:{}", USER.0, USER.1);
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
}

/// `repository/kind/name`, where the repository may have slashes.
fn split(path: &str) -> Option<(&str, (&str, &str))> {
    for kind in ["manifests", "blobs"] {
        if let Some((repository, name)) = path.split_once(&format!("/{kind}/")) {
            return Some((repository, (kind, name)));
        }
    }
    None
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed()
}

fn reply(status: StatusCode, text: &'static str) -> Response<Body> {
    Response::builder().status(status).body(full(text)).unwrap()
}

fn refuse(status: StatusCode, code: &str) -> Response<Body> {
    let text = json!({"errors": [{"code": code, "message": "as the test wants it"}]}).to_string();
    Response::builder().status(status).header("retry-after", "0").body(full(text)).unwrap()
}
