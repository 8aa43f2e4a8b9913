//! Pulling: from a name to an image in the store.
//!
//! Owns the order of it: ask for the digest, fetch what is missing in parallel, unpack, name. One pull per image
//! and identity runs at a time, however many ask; blobs that several pulls want are fetched once. A pull that is
//! dropped leaves blobs and beginnings of blobs for the next, and nothing that is visible.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt as _, Shared, WeakShared};
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use runtime::layers::LayerLimits;

use super::config::{ConfigFile, Descriptor, Manifest, Platform};
use super::credentials::{Credentials, Keyring};
use super::index::Committed;
use super::manifest::{self, Document, is_digest};
use super::registry::{Access, Delivered, Registries, RegistryError, Repository, Sink};
use super::store::Ingest;
use super::{Image, ImageError, ImageStore, ImagesConfig, Reference};

const INDEX_DEPTH_MAX: usize = 3;
/// How long another's work on the same blob is waited for before it is fetched a second time.
const SINK_WAIT: Duration = Duration::from_secs(2);
const SINK_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// What happens to one layer of a pull or push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerProgress {
    /// It is there already.
    Present,
    /// So many bytes of so many are there.
    Bytes(u64, u64),
    /// All bytes are there; it is being unpacked.
    Unpacking,
    /// Done.
    Done,
}

/// Hears what happens to layers, by their digests.
pub type Progress = Arc<dyn Fn(&str, LayerProgress) + Send + Sync>;

/// How a pull went.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The image, ready to run.
    pub image: Image,
    /// Whether anything had to be fetched.
    pub fetched: bool,
    /// How long it took.
    pub took: Duration,
    /// How long it took from the question on, waiting for other pulls included.
    pub took_with_waiting: Duration,
}

type Outcome = Result<Pulled, Arc<RegistryError>>;
type Flight = Shared<BoxFuture<'static, Outcome>>;
type FlightKey = (String, Vec<(String, Vec<Credentials>)>);

/// Pulls images into a store.
pub struct Puller {
    store: Arc<ImageStore>,
    config: Arc<ImagesConfig>,
    registries: Arc<Registries>,
    progress: Progress,
    permits: Semaphore,
    flights: Mutex<HashMap<FlightKey, WeakShared<BoxFuture<'static, Outcome>>>>,
    blobs: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// What one pull holds while it works: a place, and the right that its content stays.
struct Work {
    dir: Ingest,
    _using: Flock<std::fs::File>,
}

impl Puller {
    /// A puller for a store; `progress` hears of every layer.
    pub fn new(store: Arc<ImageStore>, config: ImagesConfig, progress: Progress) -> Arc<Self> {
        let config = Arc::new(config);
        Arc::new(Self {
            store,
            registries: Registries::new(Arc::clone(&config)),
            progress,
            permits: Semaphore::new(config.max_parallel_pulls),
            flights: Mutex::default(),
            blobs: Mutex::default(),
            config,
        })
    }

    /// Makes the store have what the name stands for at its registry now. Registries are shown what `keyring` has
    /// for them, else what the node's own file has, else nothing.
    pub async fn pull(self: &Arc<Self>, reference: &Reference, keyring: &Keyring) -> Outcome {
        let identities = self.identities(reference, keyring).map_err(|e| Arc::new(e.into()))?;
        self.flight((reference.to_string(), identities), reference).await
    }

    /// The hosts to ask, in order, and what to show to each.
    fn identities(
        &self,
        reference: &Reference,
        keyring: &Keyring,
    ) -> Result<Vec<(String, Vec<Credentials>)>, ImageError> {
        let mut keyring = keyring.clone();
        if let Some(path) = &self.config.credentials_file {
            let text = std::fs::read(path).map_err(ImageError::io("read", path))?;
            let bad = |e| ImageError::malformed(format!("credentialsFile {}", path.display()), e);
            keyring.append(Keyring::parse(&text).map_err(bad)?);
        }
        let hosts = self.registries.hosts(reference).into_iter();
        Ok(hosts
            .map(|host| {
                let found = keyring.find(&host, reference.path());
                (host, found)
            })
            .collect())
    }

    /// The pull of this image that is under way, or a new one.
    fn flight(self: &Arc<Self>, key: FlightKey, reference: &Reference) -> Flight {
        let mut flights = self.flights.lock().expect("no holder of the flights panics");
        flights.retain(|_, flight| flight.upgrade().is_some());
        if let Some(flight) = flights.get(&key).and_then(WeakShared::upgrade) {
            return flight;
        }
        let (puller, reference, hosts) = (Arc::clone(self), reference.clone(), key.1.clone());
        let flight = async move { puller.run(&reference, &hosts).await.map_err(Arc::new) };
        let flight = flight.boxed().shared();
        flights.insert(key, flight.downgrade().expect("it has just been made"));
        flight
    }

    async fn run(
        &self,
        reference: &Reference,
        hosts: &[(String, Vec<Credentials>)],
    ) -> Result<Pulled, RegistryError> {
        let asked_at = Instant::now();
        let _permit = self.permits.acquire().await.expect("the permits are never closed");
        let begun_at = Instant::now();
        let store = Arc::clone(&self.store);
        let work = spawn_blocking(move || {
            Ok::<_, ImageError>(Arc::new(Work { _using: store.using()?, dir: store.ingest_dir()? }))
        });
        let work = work.await.expect("locking does not panic")?;
        let mut failure = None;
        for (host, credentials) in hosts {
            let identities = credentials.iter().map(Some).chain(credentials.is_empty().then_some(None));
            for identity in identities {
                let (path, identity) = (reference.path(), identity.cloned());
                let repository = self.registries.repository(host, path, Access::Pull, identity);
                match self.pull_from(&repository, reference, &work).await {
                    Ok((image, fetched)) => {
                        let took = begun_at.elapsed();
                        return Ok(Pulled { image, fetched, took, took_with_waiting: asked_at.elapsed() });
                    }
                    Err(error) if error.is_local() => return Err(error),
                    Err(error) => {
                        tracing::debug!(%host, %error, "no image from there");
                        failure = Some(error);
                    }
                }
            }
        }
        Err(failure.expect("there is a host and an identity"))
    }

    async fn pull_from(
        &self,
        repository: &Repository,
        reference: &Reference,
        work: &Arc<Work>,
    ) -> Result<(Image, bool), RegistryError> {
        let digest = match repository.digest_of(reference).await {
            // Some do not know the question; and only the answer to the next says in words what is wrong.
            Err(
                RegistryError::Refused { .. }
                | RegistryError::NotFound { .. }
                | RegistryError::Unauthorized { .. },
            ) => None,
            other => other?,
        };
        if let Some(image) = digest.and_then(|digest| self.present(reference, &digest)) {
            return Ok((image, false));
        }
        let delivered = repository.manifest(reference).await?;
        let target = delivered.digest.clone();
        if let Some(image) = self.present(reference, &target) {
            return Ok((image, false));
        }
        let (digest, manifest) = self.resolve(repository, delivered).await?;
        self.fetch_content(repository, reference, &manifest, work).await?;
        let names = [reference.clone()];
        self.store.commit(&names, Committed { manifest: &digest, target: Some(&target), source: None })?;
        self.flush();
        let found = self.store.get(&reference.to_string()).map_err(ImageError::from)?;
        let lost = || ImageError::malformed(reference.to_string(), "it was removed while it was pulled");
        Ok((found.ok_or_else(lost)?, true))
    }

    /// The image if the store has it by digest; its tag then points there too.
    fn present(&self, reference: &Reference, digest: &str) -> Option<Image> {
        let by_digest = format!("{}@{digest}", reference.repository());
        self.store.get(&by_digest).ok()??;
        let reference_to = Reference::parse(&by_digest).ok()?;
        let (manifest, _) = self.store.manifest_of(&reference_to)?;
        let image = Committed { manifest: &manifest, target: Some(digest), source: None };
        self.store.commit(std::slice::from_ref(reference), image).ok()?;
        self.store.get(&reference.to_string()).ok()?
    }

    /// From what a name led to to the manifest for this machine; all on the way are stored.
    async fn resolve(
        &self,
        repository: &Repository,
        mut delivered: Delivered,
    ) -> Result<(String, Manifest), RegistryError> {
        for _ in 0..=INDEX_DEPTH_MAX {
            let what = format!("manifest {} of {}", delivered.digest, repository.host);
            let document = manifest::parse(&what, &delivered.bytes, delivered.media_type.as_deref())?;
            self.store.put_blob_bytes(&delivered.bytes)?;
            match document {
                Document::Image(manifest) => return Ok((delivered.digest, manifest)),
                Document::Index(index) => {
                    let chosen = manifest::select(&what, &index)?;
                    delivered = repository.manifest_by_digest(&chosen.digest).await?;
                }
            }
        }
        Err(ImageError::malformed(delivered.digest, "indexes are nested too deeply").into())
    }

    async fn fetch_content(
        &self,
        repository: &Repository,
        reference: &Reference,
        manifest: &Manifest,
        work: &Arc<Work>,
    ) -> Result<(), RegistryError> {
        self.fetch(repository, &manifest.config, work, false).await?;
        let config: ConfigFile = self.store.read_document(&manifest.config.digest)?;
        check_config(&reference.to_string(), manifest, &config)?;
        let layers = manifest.layers.iter().zip(&config.rootfs.diff_ids);
        let transfers: Vec<_> = layers
            .map(|(layer, diff_id)| self.fetch_layer(repository, layer, diff_id, work).boxed())
            .collect();
        let transfers = futures_util::stream::iter(transfers);
        transfers.buffer_unordered(self.config.max_parallel_layers).try_collect().await
    }

    async fn fetch_layer(
        &self,
        repository: &Repository,
        layer: &Descriptor,
        diff_id: &str,
        work: &Arc<Work>,
    ) -> Result<(), RegistryError> {
        let fetched = self.fetch(repository, layer, work, true).await?;
        let unpacked = self.unpack(layer, diff_id, work).await?;
        let end = if fetched || unpacked { LayerProgress::Done } else { LayerProgress::Present };
        (self.progress)(&layer.digest, end);
        Ok(())
    }

    /// Makes the store have a blob. Returns whether it had to be fetched.
    async fn fetch(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        work: &Arc<Work>,
        told: bool,
    ) -> Result<bool, RegistryError> {
        let turn = self.turn(&blob.digest);
        let _turn = turn.lock().await;
        let path = self.store.blob_path(&blob.digest);
        if path.exists() {
            return Ok(false);
        }
        let sink = self.sink(&blob.digest, work).await?;
        let size = blob.size;
        let progress = |at| {
            if told {
                (self.progress)(&blob.digest, LayerProgress::Bytes(at, size));
            }
        };
        let sink = repository.fetch_blob(blob, sink, &progress).await?;
        self.store.put_blob(&sink.path, &blob.digest)?;
        Ok(true)
    }

    /// The file to collect a blob in: the one where a transfer before left off, unless another process is at it.
    async fn sink(&self, digest: &str, work: &Arc<Work>) -> Result<Sink, ImageError> {
        // The writer of a transfer that was dropped just now still writes what had come.
        let deadline = Instant::now() + SINK_WAIT;
        while Instant::now() < deadline {
            if let Some((file, path)) = self.store.partial(digest)? {
                return Ok(Sink { file, path });
            }
            tokio::time::sleep(SINK_RETRY_INTERVAL).await;
        }
        let path = work.dir.join(hex::encode(rand::random::<[u8; 8]>()));
        let file = std::fs::OpenOptions::new().create_new(true).read(true).write(true).open(&path);
        let file = file.map_err(ImageError::io("create", &path))?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        let file = file.map_err(|(_, errno)| ImageError::io("lock", &path)(errno.into()))?;
        Ok(Sink { file, path })
    }

    /// Makes the store have a layer's directory. Returns whether it had to be unpacked.
    async fn unpack(
        &self,
        layer: &Descriptor,
        diff_id: &str,
        work: &Arc<Work>,
    ) -> Result<bool, RegistryError> {
        let turn = self.turn(diff_id);
        let _turn = turn.lock().await;
        if self.store.layer_dir(diff_id).is_dir() {
            return Ok(false);
        }
        (self.progress)(&layer.digest, LayerProgress::Unpacking);
        let (store, work) = (Arc::clone(&self.store), Arc::clone(work));
        let (digest, diff_id) = (layer.digest.clone(), diff_id.to_owned());
        let limits = LayerLimits { bytes: self.config.layer_bytes_max, ..LayerLimits::default() };
        let unpacked = spawn_blocking(move || {
            super::layer::unpack_into(&store, &work.dir, &store.blob_path(&digest), &diff_id, limits)
        });
        unpacked.await.expect("unpacking does not panic")?;
        Ok(true)
    }

    /// One at a time for each blob and layer.
    fn turn(&self, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut blobs = self.blobs.lock().expect("no holder of the turns panics");
        blobs.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = blobs.get(digest).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        blobs.insert(digest.to_owned(), Arc::downgrade(&turn));
        turn
    }

    /// Makes what was pulled safe against a power cut, off everybody's path.
    fn flush(&self) {
        let store = Arc::clone(&self.store);
        spawn_blocking(move || {
            if let Err(error) = store.flush() {
                tracing::warn!(%error, "images are not safe against a power cut yet");
            }
        });
    }
}

/// Whether configuration and manifest belong together and are for this machine.
pub(super) fn check_config(what: &str, manifest: &Manifest, config: &ConfigFile) -> Result<(), ImageError> {
    let platform =
        Platform { architecture: config.architecture.clone(), os: config.os.clone(), variant: String::new() };
    if !manifest::is_this_platform(&platform) {
        let wanted = format!("linux/{}", manifest::architecture());
        return Err(ImageError::malformed(what, format!("it is for {platform}, this machine is {wanted}")));
    }
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(ImageError::malformed(what, "manifest and configuration differ in their layers"));
    }
    match config.rootfs.diff_ids.iter().find(|diff_id| !is_digest(diff_id)) {
        Some(bad) => Err(ImageError::malformed(what, format!("{bad:?} is not sha256:<64 hex digits>"))),
        None => Ok(()),
    }
}
