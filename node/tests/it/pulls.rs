//! Pulling and removing images through the public interface, against a registry with faults.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use node::images::{self, ImageStore, ImagesConfig, InUse, Keyring, Puller, Reference, RegistryConfig};
use serde_json::json;

use crate::Test;
use crate::host::run;
use crate::registry::{Guard, INDEX, MANIFEST, Registry, docker_config, file, layer, noise, tar_of};

pub(crate) const TESTS: &[Test] = &[
    ("pulls::a_broken_transfer_goes_on_where_it_broke", || run(a_broken_transfer_goes_on_where_it_broke())),
    ("pulls::wrong_content_is_refused", || run(wrong_content_is_refused())),
    ("pulls::who_one_is_decides", || run(who_one_is_decides())),
    ("pulls::what_passes_is_waited_out", || run(what_passes_is_waited_out())),
    ("pulls::mirrors_come_first_and_redirects_get_no_password", || run(mirrors_and_redirects())),
    ("pulls::every_form_of_manifest_is_told_apart", || run(every_form_of_manifest_is_told_apart())),
    ("pulls::many_who_ask_share_one_pull", || run(many_who_ask_share_one_pull())),
    ("pulls::a_dropped_pull_leaves_only_beginnings", || run(a_dropped_pull_leaves_only_beginnings())),
    ("pulls::tls_is_believed_by_authority", || run(tls_is_believed_by_authority())),
    ("pulls::bombs_in_layers_are_refused", || run(bombs_in_layers_are_refused())),
    ("pulls::unused_images_make_room", || run(unused_images_make_room())),
    ("pulls::two_processes_share_a_store", || run(two_processes_share_a_store())),
];

pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Arc<ImageStore>,
    pub(crate) config: ImagesConfig,
}

impl Lab {
    pub(crate) fn new() -> Self {
        // A pull that is dropped tidies up after its test.
        let dir = crate::scratch();
        let store = Arc::new(ImageStore::open(dir.path().join("images")).unwrap());
        let config = ImagesConfig { request_timeout: Duration::from_secs(10), ..ImagesConfig::default() };
        Self { dir, store, config }
    }

    fn puller(&self) -> Arc<Puller> {
        Puller::new(Arc::clone(&self.store), self.config.clone(), Arc::new(|_, _| {}))
    }

    pub(crate) async fn pull(&self, name: &str) -> Result<images::Pulled, String> {
        self.pull_as(name, &Keyring::default()).await
    }

    pub(crate) async fn pull_as(&self, name: &str, keyring: &Keyring) -> Result<images::Pulled, String> {
        let reference = Reference::parse(name).unwrap();
        self.puller().pull(&reference, keyring).await.map_err(|e| e.to_string())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.store.get(name).unwrap().is_some()
    }

    /// Nothing is left of work in progress.
    fn is_tidy(&self) {
        let ingest = fs::read_dir(self.dir.path().join("images/ingest")).unwrap().count();
        assert_eq!(ingest, 0, "work directories are left");
    }
}

pub(crate) fn contents(image: &images::Image, file: &str) -> Option<Vec<u8>> {
    image.layers.iter().rev().find_map(|layer| fs::read(layer.join(file)).ok())
}

async fn a_broken_transfer_goes_on_where_it_broke() {
    let (lab, registry) = (Lab::new(), Registry::start().await);
    let big = noise(3 << 20);
    registry.put_image("team/app:1", &[layer(&[("big", &big)]), layer(&[("small", b"s")])], json!({}));
    registry.state().breaks.extend([usize::MAX, 1 << 20, 1 << 20]);
    let pulled = lab.pull(&registry.name("team/app:1")).await.unwrap();
    assert!(pulled.fetched);
    assert_eq!(contents(&pulled.image, "big").unwrap(), big);
    assert_eq!(contents(&pulled.image, "small").unwrap(), b"s");
    assert!(registry.count("bytes=") >= 1, "{:?}", registry.state().asked);
    let sent = registry.state().sent;
    assert!(sent < (3 << 20) + (600 << 10), "what had come was not sent again: {sent}");
    // A registry that knows no parts sends everything again, and the image is right all the same.
    let (other, again) = (noise(2 << 20), layer(&[("big", &noise(10))]));
    registry.put_image("team/app:2", &[layer(&[("big", &other)]), again], json!({}));
    registry.state().breaks.extend([usize::MAX, 1 << 20]);
    registry.state().no_parts = true;
    lab.pull(&registry.name("team/app:2")).await.unwrap();
    lab.is_tidy();
    // By digest, also by that of an image whose tag has moved.
    let id = pulled.image.image_id;
    assert!(!lab.pull(&id).await.unwrap().fetched);
    registry.stop().await;
    assert!(lab.has(&id) && lab.has(&registry.name("team/app:1")));
}

async fn wrong_content_is_refused() {
    let (lab, registry) = (Lab::new(), Registry::start().await);
    let name = registry.name("app:1");
    registry.put_image("app:1", &[layer(&[("f", &noise(100_000))])], json!({}));
    registry.state().wrong = true;
    let error = lab.pull(&name).await.unwrap_err();
    assert!(error.contains("what came has the digest sha256:"), "{error}");
    assert!(!lab.has(&name) && lab.store.list().is_empty());
    registry.state().wrong = false;
    lab.pull(&name).await.unwrap();
    // A layer that is not what the configuration says.
    let (kind, bytes, _) = layer(&[("g", b"x")]);
    registry.put_image("liar:1", &[(kind, bytes, crate::registry::digest(b"other"))], json!({}));
    let error = lab.pull(&registry.name("liar:1")).await.unwrap_err();
    assert!(error.contains("is corrupt"), "{error}");
    assert!(!lab.has(&registry.name("liar:1")));
    let error = lab.pull(&registry.name("absent:1")).await.unwrap_err();
    let expected = format!("failed to resolve reference \"{}\": not found", registry.name("absent:1"));
    assert!(error.starts_with(&expected), "{error}");
    lab.is_tidy();
}

async fn who_one_is_decides() {
    let registry = Registry::start().await;
    registry.put_image("private/app:1", &[layer(&[("f", b"x")])], json!({}));
    let (name, host) = (registry.name("private/app:1"), registry.address.to_string());
    for guard in [Guard::Basic, Guard::Token] {
        registry.state().guard = guard;
        let lab = Lab::new();
        let error = lab.pull(&name).await.unwrap_err();
        assert!(error.contains("imagePullSecrets"), "{error}");
        assert!(error.contains("UNAUTHORIZED: as the test wants it"), "{error}");
        let wrong = json!({"auths": {&host: {"username": "robot", "password": "guess"}}}).to_string();
        let error = lab.pull_as(&name, &Keyring::parse(wrong.as_bytes()).unwrap()).await.unwrap_err();
        assert!(error.contains("not enough") && !error.contains("guess"), "{error}");
        // The wrong ones of one secret do not keep the right ones of another from being shown.
        let mut keyring = Keyring::parse(wrong.as_bytes()).unwrap();
        keyring.append(Keyring::parse(docker_config(&[&host]).as_bytes()).unwrap());
        lab.pull_as(&name, &keyring).await.unwrap();
        // The node's own file, for pods that bring nothing.
        let mut lab = Lab::new();
        lab.config.credentials_file = Some(file(lab.dir.path(), "config.json", &docker_config(&[&host])));
        lab.pull(&name).await.unwrap();
        // Credentials of another registry stay at home.
        let elsewhere = Keyring::parse(docker_config(&["other.example:5000"]).as_bytes()).unwrap();
        let before = registry.count("Basic");
        assert!(Lab::new().pull_as(&name, &elsewhere).await.is_err());
        assert_eq!(registry.count("Basic"), before);
    }
}

async fn what_passes_is_waited_out() {
    let (lab, registry) = (Lab::new(), Registry::start().await);
    registry.put_image("app:1", &[layer(&[("f", b"x")])], json!({}));
    registry.state().refusals.extend([(503, "UNAVAILABLE"), (429, "TOOMANYREQUESTS"), (500, "UNKNOWN")]);
    lab.pull(&registry.name("app:1")).await.unwrap();
    registry.state().refusals.extend([(503, "UNAVAILABLE"); 4]);
    let error = lab.pull(&registry.name("app:1")).await.unwrap_err();
    assert!(error.contains("503 Service Unavailable"), "{error}");
    registry.stop().await;
    let error = lab.pull(&registry.name("app:1")).await.unwrap_err();
    assert!(error.contains("refused"), "{error}");
    assert!(error.contains(&registry.address.to_string()), "{error}");
}

async fn mirrors_and_redirects() {
    let (mut lab, registry, other) = (Lab::new(), Registry::start().await, Registry::start().await);
    other.put_image("team/app:1", &[layer(&[("f", b"x")])], json!({}));
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mirrors = vec![dead, registry.address.to_string(), other.address.to_string()];
    let config = RegistryConfig { mirrors, ..RegistryConfig::default() };
    lab.config.registries = BTreeMap::from([("hub.example".to_owned(), config)]);
    let pulled = lab.pull("hub.example/team/app:1").await.unwrap();
    assert_eq!(pulled.image.name, "hub.example/team/app:1");
    assert!(registry.count("manifests/1") >= 1, "the first mirror that lives was asked");
    // Blobs elsewhere: followed, without the password for here.
    registry.put_image("team/app:2", &[layer(&[("f", b"two")])], json!({}));
    other.put_image("team/app:2", &[layer(&[("f", b"two")])], json!({}));
    registry.state().guard = Guard::Basic;
    registry.state().redirect = Some(format!("http://{}/v2/team/app/blobs", other.address));
    let asked_before = other.state().asked.len();
    let keyring = Keyring::parse(docker_config(&[&registry.address.to_string()]).as_bytes()).unwrap();
    lab.pull_as(&registry.name("team/app:2"), &keyring).await.unwrap();
    let asked = other.state().asked[asked_before..].to_vec();
    assert!(!asked.is_empty() && asked.iter().all(|a| !a.contains("Basic")), "{asked:?}");
}

async fn every_form_of_manifest_is_told_apart() {
    let (lab, registry) = (Lab::new(), Registry::start().await);
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let ours = registry.manifest(&[layer(&[("f", b"ours")])], json!({"Cmd": ["ours"]}));
    let mut docker = ours.clone();
    docker["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json".into();
    docker["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
    docker["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar".into();
    let digest = registry.put_manifest("multi", "part", docker["mediaType"].as_str().unwrap(), &docker);
    let entry = |os: &str, arch: &str, digest: &str| {
        json!({"mediaType": docker["mediaType"], "digest": digest, "size": 1,
               "platform": {"os": os, "architecture": arch}})
    };
    let nobody = crate::registry::digest(b"nobody");
    let list = json!({"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
                      "manifests": [entry("linux", "s390x", &nobody), entry("linux", arch, &digest)]});
    let target = registry.put_manifest("multi", "1", list["mediaType"].as_str().unwrap(), &list);
    let pulled = lab.pull(&registry.name("multi:1")).await.unwrap();
    assert_eq!(pulled.image.config.cmd, ["ours"]);
    // Its identity is that of the list: what is pinned by it is found.
    assert!(pulled.image.image_id.ends_with(&target));
    assert!(lab.has(&registry.name(&format!("multi@{target}"))));
    assert!(lab.has(&registry.name(&format!("multi@{digest}"))));
    assert!(!lab.pull(&registry.name("multi:1")).await.unwrap().fetched, "it has not changed");
    let refused = |tag: &'static str, kind: &'static str, document: serde_json::Value| {
        registry.put_manifest("odd", tag, kind, &document);
        let (name, lab) = (registry.name(&format!("odd:{tag}")), &lab);
        async move { lab.pull(&name).await.unwrap_err() }
    };
    let old = json!({"schemaVersion": 1, "name": "x", "fsLayers": []});
    let error = refused("old", "application/vnd.docker.distribution.manifest.v1+prettyjws", old).await;
    assert!(error.contains("schema 1"), "{error}");
    let foreign = json!({"schemaVersion": 2, "manifests": [entry("windows", arch, &digest)]});
    let error = refused("foreign", INDEX, foreign).await;
    assert!(error.contains(&format!("no manifest for linux/{arch}; it has: windows/{arch}")), "{error}");
    let mut kept_away = ours.clone();
    kept_away["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
    let error = refused("kept-away", MANIFEST, kept_away).await;
    assert!(error.contains("foreign layer"), "{error}");
    let mut escaping = ours.clone();
    escaping["layers"][0]["digest"] = "sha256:../../../../../tmp/x".into();
    let error = refused("escaping", MANIFEST, escaping).await;
    assert!(error.contains("is not sha256"), "{error}");
    let mut huge = ours.clone();
    huge["annotations"] = json!({"a": "x".repeat(5 << 20)});
    let error = refused("huge", MANIFEST, huge).await;
    assert!(error.contains("longer than"), "{error}");
    lab.is_tidy();
}

async fn many_who_ask_share_one_pull() {
    let (lab, registry) = (Lab::new(), Registry::start().await);
    let shared = layer(&[("shared", &noise(500_000))]);
    registry.put_image("app:1", &[shared.clone(), layer(&[("one", b"1")])], json!({}));
    registry.put_image("app:2", &[shared.clone(), layer(&[("two", b"2")])], json!({}));
    registry.state().pause = Duration::from_millis(20);
    let puller = lab.puller();
    let names = ["app:1", "app:2", "app:1", "app:1", "app:2", "app:1"].map(|n| registry.name(n));
    let references: Vec<Reference> = names.iter().map(|n| Reference::parse(n).unwrap()).collect();
    let keyring = Keyring::default();
    let pulls = join_all(references.iter().map(|reference| puller.pull(reference, &keyring))).await;
    assert!(pulls.iter().all(Result::is_ok), "{pulls:?}");
    let asked = format!("GET /v2/app/blobs/{}", crate::registry::digest(&shared.1));
    assert_eq!(registry.count(&asked), 1, "the shared layer was fetched once");
    assert_eq!(registry.count("HEAD /v2/app/manifests/1"), 1);
    assert_eq!(lab.store.list().len(), 2);
}

async fn a_dropped_pull_leaves_only_beginnings() {
    let (lab, registry) = (Lab::new(), Registry::start().await);
    let name = registry.name("app:1");
    let bytes = noise(2 << 20);
    registry.put_image("app:1", &[layer(&[("f", &bytes)])], json!({}));
    registry.state().pause = Duration::from_millis(10);
    let puller = lab.puller();
    let (reference, keyring) = (Reference::parse(&name).unwrap(), Keyring::default());
    {
        let pull = puller.pull(&reference, &keyring);
        tokio::pin!(pull);
        let enough = async {
            while registry.state().sent < 1 << 20 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::select! {
            _ = &mut pull => panic!("it cannot be over"),
            () = enough => {}
        }
    }
    assert!(!lab.has(&name));
    registry.state().pause = Duration::ZERO;
    // Another process would find the beginning, too.
    let store = Arc::new(ImageStore::open(lab.dir.path().join("images")).unwrap());
    let again = Puller::new(store, lab.config.clone(), Arc::new(|_, _| {}));
    let pulled = again.pull(&reference, &keyring).await.unwrap();
    assert_eq!(contents(&pulled.image, "f").unwrap(), bytes);
    let sent = registry.state().sent;
    assert!(sent < 4 << 20, "it went on where it was dropped: {sent}");
    assert!(registry.count("bytes=") >= 1);
    let partial = fs::read_dir(lab.dir.path().join("images/partial")).unwrap().count();
    assert_eq!(partial, 0, "a beginning that was completed is none any more");
}

async fn tls_is_believed_by_authority() {
    let (registry, ca_pem) = Registry::start_tls().await;
    registry.put_image("app:1", &[layer(&[("f", b"x")])], json!({}));
    let host = format!("localhost:{}", registry.address.port());
    let name = format!("{host}/app:1");
    let mut lab = Lab::new();
    let mut config = RegistryConfig { insecure: Some(false), ..RegistryConfig::default() };
    lab.config.registries = BTreeMap::from([(host.clone(), config.clone())]);
    let error = lab.pull(&name).await.unwrap_err();
    assert!(error.contains("certificate") && error.contains("set caFile"), "{error}");
    config.ca_file = Some(file(lab.dir.path(), "ca.pem", &ca_pem));
    lab.config.registries.insert(host.clone(), config.clone());
    lab.pull(&name).await.unwrap();
    // Without TLS it is not spoken to, unless that is asked for.
    let plain = Registry::start().await;
    plain.put_image("app:1", &[layer(&[("f", b"x")])], json!({}));
    let host = format!("localhost:{}", plain.address.port());
    lab.config
        .registries
        .insert(host.clone(), RegistryConfig { insecure: Some(false), ..Default::default() });
    assert!(lab.pull(&format!("{host}/app:1")).await.is_err());
    lab.config.registries.insert(host.clone(), RegistryConfig { insecure: Some(true), ..Default::default() });
    lab.pull(&format!("{host}/app:1")).await.unwrap();
}

async fn bombs_in_layers_are_refused() {
    let (mut lab, registry) = (Lab::new(), Registry::start().await);
    lab.config.layer_bytes_max = 1 << 20;
    let tar = tar_of(&[("zeros", &vec![0; 8 << 20])]);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, &tar).unwrap();
    let packed = encoder.finish().unwrap();
    let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    registry.put_image("bomb:1", &[(kind, packed, crate::registry::digest(&tar))], json!({}));
    let error = lab.pull(&registry.name("bomb:1")).await.unwrap_err();
    assert!(error.contains("more than 1048576 bytes"), "{error}");
    lab.is_tidy();
    // Something that leads out of the layer's root.
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..14].copy_from_slice(b"../../escaped\0");
    header.set_size(1);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, &b"x"[..]).unwrap();
    let tar = builder.into_inner().unwrap();
    let diff_id = crate::registry::digest(&tar);
    registry.put_image("escape:1", &[("application/vnd.oci.image.layer.v1.tar", tar, diff_id)], json!({}));
    let error = lab.pull(&registry.name("escape:1")).await.unwrap_err();
    assert!(error.contains("leads out of the layer"), "{error}");
    assert!(
        !lab.dir.path().join("images/escaped").exists()
            && !lab.dir.path().join("images/ingest/escaped").exists()
    );
    lab.is_tidy();
}

async fn unused_images_make_room() {
    let (mut lab, registry) = (Lab::new(), Registry::start().await);
    let base = layer(&[("base", &noise(100_000))]);
    for number in 1..=3 {
        let own = layer(&[("own", &noise(50_000))]);
        registry.put_image(&format!("app:{number}"), &[base.clone(), own], json!({}));
        lab.pull(&registry.name(&format!("app:{number}"))).await.unwrap();
    }
    images::import_builtin(&lab.store, &std::env::current_exe().unwrap(), "barque/hello:1.0").unwrap();
    let id = lab.store.get(&registry.name("app:2")).unwrap().unwrap().image_id;
    let in_use = InUse::from([(id.clone(), "default/p/c".to_owned())]);
    // The disk is below the threshold: nothing happens.
    lab.config.gc_high_threshold_percent = 100;
    assert_eq!(lab.store.collect_garbage(&lab.config, &in_use).unwrap(), 0);
    assert_eq!(lab.store.list().len(), 4);
    // Whatever the disk holds is too much: all goes that may, and it is said that this was not enough.
    (lab.config.gc_high_threshold_percent, lab.config.gc_low_threshold_percent) = (1, 0);
    assert!(lab.store.collect_garbage(&lab.config, &in_use).is_err());
    assert_eq!(lab.store.list().len(), 4, "images younger than two minutes stay");
    lab.config.gc_minimum_age = Duration::ZERO;
    let error = lab.store.collect_garbage(&lab.config, &in_use).unwrap_err().to_string();
    assert!(
        error.contains("Failed to garbage collect required amount of images. Attempted to free"),
        "{error}"
    );
    assert!(lab.has(&id) && lab.has("barque/hello:1.0"));
    assert!(!lab.has(&registry.name("app:1")) && !lab.has(&registry.name("app:3")));
    let image = lab.store.get(&id).unwrap().unwrap();
    assert!(contents(&image, "base").is_some(), "what an image in use shares with others stays");
    let layers = fs::read_dir(lab.dir.path().join("images/layers")).unwrap().count();
    assert_eq!(layers, 3, "layers that no image has are gone");
    // By hand: not while it is used; then with all that is its own.
    let two = Reference::parse(&registry.name("app:2")).unwrap();
    let error = lab.store.remove(&two, &in_use).unwrap_err().to_string();
    assert!(error.contains("is in use by default/p/c"), "{error}");
    let removed = lab.store.remove(&two, &InUse::new()).unwrap();
    assert!(removed.bytes.unwrap() > 250_000, "{removed:?}");
    assert_eq!(fs::read_dir(lab.dir.path().join("images/layers")).unwrap().count(), 1);
}

async fn two_processes_share_a_store() {
    let (lab, registry) = (Lab::new(), Registry::start().await);
    registry.put_image("app:1", &[layer(&[("f", &noise(1 << 20))])], json!({}));
    let other = ImageStore::open(lab.dir.path().join("images")).unwrap();
    lab.pull(&registry.name("app:1")).await.unwrap();
    assert!(other.get(&registry.name("app:1")).unwrap().is_some(), "what one brings the other sees");
    let reference = Reference::parse(&registry.name("app:1")).unwrap();
    other.remove(&reference, &InUse::new()).unwrap();
    assert!(!lab.has(&registry.name("app:1")), "what one removes the other misses");
    // Content that a pull has just brought is not swept away under it.
    registry.state().pause = Duration::from_millis(20);
    let (puller, keyring) = (lab.puller(), Keyring::default());
    let pull = puller.pull(&reference, &keyring);
    let sweep = async {
        while registry.state().sent < (1 << 20) + (300 << 10) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Neither opening the store nor sweeping it disturbs the pull.
        let third = ImageStore::open(lab.dir.path().join("images")).unwrap();
        third.sweep().unwrap()
    };
    let (pulled, swept) = tokio::join!(pull, sweep);
    assert_eq!(swept, None);
    assert!(contents(&pulled.unwrap().image, "f").is_some());
}
