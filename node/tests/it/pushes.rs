//! Pushing images, against a registry with faults and, where it is on PATH, Debian's `docker-registry`.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use node::images::{self, Format, Keyring, Reference};
use serde_json::json;

use crate::Test;
use crate::host::{PATIENCE, run};
use crate::pulls::{Lab, contents};
use crate::registry::{Guard, Registry, docker_config, file, layer, noise};

pub(crate) const TESTS: &[Test] = &[
    ("pushes::pushed_images_come_back", || run(pushed_images_come_back())),
    ("pushes::debians_registry_takes_and_gives", || run(debians_registry_takes_and_gives())),
];

async fn push(lab: &Lab, from: &str, to: &str, keyring: &Keyring, format: Option<Format>) -> images::Pushed {
    let (source, target) = (Reference::parse(from).unwrap(), Reference::parse(to).unwrap());
    let names = (&source, &target);
    images::push(&lab.store, lab.config.clone(), names, keyring, (format, Arc::new(|_, _| {}))).await.unwrap()
}

async fn pushed_images_come_back() {
    let (lab, registry) = (Lab::new(), Registry::start().await);
    registry.state().guard = Guard::Token;
    let exe = std::env::current_exe().unwrap();
    images::import_builtin(&lab.store, &exe, "barque/hello:1.0").unwrap();
    let target = registry.name("team/hello:1");
    let keyring = Keyring::parse(docker_config(&[&registry.address.to_string()]).as_bytes()).unwrap();
    let pushed = push(&lab, "barque/hello:1.0", &target, &keyring, None).await;
    assert!(lab.store.get("barque/hello:1.0").unwrap().unwrap().image_id.ends_with(&pushed.digest));
    let other = Lab::new();
    let pulled = other.pull_as(&target, &keyring).await.unwrap();
    assert!(pulled.image.image_id.ends_with(&pushed.digest));
    assert_eq!(contents(&pulled.image, "barque").unwrap().len() as u64, exe.metadata().unwrap().len());
    // In Docker's form it is another manifest over the same layers, which are not sent again.
    let before = registry.count("PUT /v2/team/hello/blobs");
    let docker =
        push(&lab, "barque/hello:1.0", &registry.name("team/hello:docker"), &keyring, Some(Format::Docker))
            .await;
    assert_ne!(docker.digest, pushed.digest);
    assert_eq!(registry.count("PUT /v2/team/hello/blobs"), before);
    other.pull_as(&registry.name("team/hello:docker"), &keyring).await.unwrap();
    // Exports of both forms are importable.
    for (format, file) in [(Format::Oci, "oci.tar"), (Format::Docker, "docker.tar")] {
        let path = other.dir.path().join(file);
        let reference = Reference::parse(&target).unwrap();
        images::export(&other.store, &reference, format, fs::File::create(&path).unwrap()).unwrap();
        let third = Lab::new();
        let imported = images::import(&third.store, &path, None).unwrap();
        assert_eq!(imported[0].names, std::slice::from_ref(&target));
        assert!(third.has(&target));
    }
}

/// Debian's `docker-registry`, in a process of its own.
struct DebianRegistry(Child);

impl Drop for DebianRegistry {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn debians_registry_takes_and_gives() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(program) = std::env::split_paths(&path).map(|d| d.join("docker-registry")).find(|p| p.exists())
    else {
        eprintln!("skipped: pushes::debians_registry_takes_and_gives: no docker-registry on PATH");
        return;
    };
    let lab = Lab::new();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // robot / open sesame
    let hash = "$2b$05$Yo76dWQRV1L6mE2G5ERGbuLW85oge5D4mFPyrf5ciOBEaXrGaFGKa";
    let password = file(lab.dir.path(), "htpasswd", &format!("robot:{hash}\n"));
    let config = json!({
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": true}},
        "storage": {"filesystem": {"rootdirectory": lab.dir.path().join("registry")}},
        "http": {"addr": address.to_string(), "secret": "s"},
        "auth": {"htpasswd": {"realm": "test", "path": password}},
    });
    let config = file(lab.dir.path(), "registry.yml", &config.to_string());
    let mut command = Command::new(program);
    let child = command.arg("serve").arg(config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let _registry = DebianRegistry(child);
    let end = std::time::Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(address).is_err() {
        assert!(std::time::Instant::now() < end, "docker-registry does not listen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let own = Registry::start().await;
    let name = own.name("team/app:1");
    let big = noise(5 << 20);
    own.put_image(
        "team/app:1",
        &[layer(&[("big", &big)]), layer(&[("etc", b"x")])],
        json!({"Cmd": ["/big"]}),
    );
    lab.pull(&name).await.unwrap();
    let keyring = Keyring::parse(docker_config(&[&address.to_string()]).as_bytes()).unwrap();
    let oci = push(&lab, &name, &format!("{address}/team/app:1"), &keyring, None).await;
    let docker = push(&lab, &name, &format!("{address}/team/app:d"), &keyring, Some(Format::Docker)).await;
    for (tag, digest) in [("1", oci.digest), ("d", docker.digest)] {
        let other = Lab::new();
        let target = format!("{address}/team/app:{tag}");
        assert!(other.pull(&target).await.unwrap_err().contains("imagePullSecrets"));
        let pulled = other.pull_as(&target, &keyring).await.unwrap();
        assert!(pulled.image.image_id.ends_with(&digest));
        assert_eq!(contents(&pulled.image, "big").unwrap(), big);
        assert!(!other.pull_as(&target, &keyring).await.unwrap().fetched);
        let error = other.pull_as(&format!("{address}/team/none:1"), &keyring).await.unwrap_err();
        assert!(error.contains("not found"), "{error}");
    }
}
