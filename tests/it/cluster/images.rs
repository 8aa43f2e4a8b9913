//! Images with stock kubectl and Debian's `docker-registry`: pushed by `barque image`, pulled by pods, private, away,
//! replaced under the same tag.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use chaos_tests::cluster::{Cluster, until};
use serde_json::{Value, json};

use super::{Lab, PATIENCE, kubectl_ok, kubectls, skip, skipped};

const TEST: &str = "pods_run_what_a_registry_has";
pub(crate) const HTPASSWD_PASSWORD: &str = "open sesame";
/// With that password.
const HTPASSWD: &str = "robot:$2b$05$Yo76dWQRV1L6mE2G5ERGbuLW85oge5D4mFPyrf5ciOBEaXrGaFGKa\n";

/// A registry in a process of its own.
pub(crate) struct Registry {
    program: PathBuf,
    config: PathBuf,
    pub(crate) address: SocketAddr,
    process: Option<Child>,
}

impl Registry {
    pub(crate) fn new(program: PathBuf, directory: &Path, host: &str) -> Self {
        let passwords = directory.join("htpasswd");
        std::fs::write(&passwords, HTPASSWD).unwrap();
        let auth = json!({"htpasswd": {"realm": "test", "path": passwords}});
        Self::with(program, directory, host, ("registry.yml", auth))
    }

    /// Another one over what that has, for everybody.
    pub(crate) fn public(program: PathBuf, directory: &Path, host: &str) -> Self {
        Self::with(program, directory, host, ("public-registry.yml", json!({})))
    }

    fn with(program: PathBuf, directory: &Path, host: &str, (file, auth): (&str, Value)) -> Self {
        let free = std::net::TcpListener::bind((host, 0)).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let config = json!({
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": directory.join("registry")}},
            "http": {"addr": address.to_string(), "secret": "s"},
            "auth": auth,
        });
        let path = directory.join(file);
        std::fs::write(&path, config.to_string()).unwrap();
        let mut registry = Self { program, config: path, address, process: None };
        registry.start();
        registry
    }

    fn start(&mut self) {
        let mut command = Command::new(&self.program);
        command.arg("serve").arg(&self.config).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(command.spawn().unwrap());
        let listens = until(PATIENCE, || TcpStream::connect(self.address).ok());
        assert!(listens.is_some(), "docker-registry does not listen");
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Gives a node's agent these settings for images.
pub(super) fn configure(cluster: &Cluster, node: &str, settings: &Value) {
    let file = cluster.directory().join(node).join("config.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let without: String = text
        .split_inclusive('\n')
        .scan(false, |inside, line| {
            *inside = line.starts_with("images:") || (*inside && line.starts_with([' ', '-']));
            Some(if *inside { "" } else { line })
        })
        .collect();
    std::fs::write(&file, format!("{}\nimages: {settings}\n", without.trim_end())).unwrap();
    let stat = format!("/proc/{}/stat", cluster.pid(node).unwrap());
    cluster.kill(node).unwrap();
    let ended = || std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "));
    assert!(until(PATIENCE, || ended().then_some(())).is_some(), "{node} does not end");
    cluster.complete().unwrap();
}

/// Runs `barque image` for the lab's node; returns what it printed.
fn image(lab: &Lab, args: &[&str]) -> Result<String, String> {
    let data_dir = lab.options.data_dir.to_str().unwrap();
    let own = ["--name", &lab.options.name, "--data-dir", data_dir, "--node", "node-1"];
    let (verb, rest) = args.split_first().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_barque"))
        .args(["image", verb])
        .args(own)
        .args(rest)
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

fn pod(name: &str, image: &str, policy: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1, "imagePullSecrets": [{"name": "regcred"}],
            "containers": [{"name": "hello", "image": image, "imagePullPolicy": policy}],
        },
    })
}

/// KIA-IMG-002, -007 to -011, KIA-POD-044: a cluster, a registry with passwords, kubectl.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_run_what_a_registry_has() {
    if skipped(TEST) {
        return;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let registry = std::env::split_paths(&path).map(|dir| dir.join("docker-registry")).find(|p| p.exists());
    let Some(program) = registry else { return skip(TEST, "no docker-registry on PATH") };
    let Some(kubectl) = kubectls().pop() else { return skip(TEST, "no kubectl on PATH") };
    let lab = Lab::up("it-images", 1, 1).await;
    let ok = |args: &[&str]| kubectl_ok(&kubectl, &lab.cluster, args);
    let node = ok(&["get", "node", "node-1", "-o", "jsonpath={.status.addresses[0].address}"]);
    let gateway = format!("{}.1", node.rsplit_once('.').unwrap().0);
    let mut registry = Registry::new(program, lab.directory.path(), &gateway);
    let host = registry.address.to_string();
    configure(&lab.cluster, "node-1", &json!({"registries": {&host: {"insecure": true}}}));

    // Pushed from the node's own store, while its agent runs.
    let login = lab.directory.path().join("login.json");
    let auths = json!({"auths": {&host: {"username": "robot", "password": "open sesame"}}});
    std::fs::write(&login, auths.to_string()).unwrap();
    let login = login.to_str().unwrap();
    let name = format!("{host}/team/hello:1");
    let refused = image(&lab, &["push", "barque/hello:1.0", &name]).unwrap_err();
    assert!(refused.contains("no credentials"), "{refused}");
    let pushed = image(&lab, &["push", "--credentials", login, "barque/hello:1.0", &name]).unwrap();
    assert!(pushed.starts_with("1: digest: sha256:"), "{pushed}");

    // Private: refused without the secret, run as soon as it is there.
    let apply = |pod: &Value| {
        let file = lab.directory.path().join("pod.json");
        std::fs::write(&file, pod.to_string()).unwrap();
        ok(&["apply", "-f", file.to_str().unwrap()])
    };
    let shows = |pod: &str, word: &str| {
        let shown = until(PATIENCE, || ok(&["get", "pod", pod, "--no-headers"]).contains(word).then_some(()));
        let told = || format!("{}\n{}", ok(&["describe", "pod", pod]), lab.cluster.log("node-1"));
        assert!(shown.is_some(), "{pod} is not {word}: {}", told());
    };
    apply(&pod("private", &name, "Always"));
    shows("private", "ErrImagePull");
    shows("private", "ImagePullBackOff");
    let server = format!("--docker-server={host}");
    ok(&[
        "create",
        "secret",
        "docker-registry",
        "regcred",
        &server,
        "--docker-username=robot",
        "--docker-password=open sesame",
    ]);
    shows("private", "Running");
    let described = ok(&["describe", "pod", "private"]);
    for text in [
        format!("Pulling image \"{name}\""),
        format!("Successfully pulled image \"{name}\" in "),
        "Error: ErrImagePull".to_owned(),
        format!("Back-off pulling image \"{name}\""),
    ] {
        assert!(described.contains(&text), "{text}: {described}");
    }
    assert!(!described.contains("sesame"));
    let listed = ok(&["get", "node", "node-1", "-o", "jsonpath={.status.images[*].names[*]}"]);
    assert!(
        listed.contains(&format!("{host}/team/hello@sha256:")) || listed.contains("barque/hello"),
        "{listed}"
    );

    // The registry goes away: Always does not start, IfNotPresent does; and it heals.
    registry.stop();
    apply(&pod("asks", &name, "Always"));
    apply(&pod("keeps", &name, "IfNotPresent"));
    shows("keeps", "Running");
    shows("asks", "ImagePullBackOff");
    registry.start();
    shows("asks", "Running");

    // By hand: listed, not removed while it is used, exported and imported.
    let list = image(&lab, &["ls"]).unwrap();
    assert!(list.starts_with("REPOSITORY") && list.contains(&format!("{host}/team/hello")), "{list}");
    let refused = image(&lab, &["rm", &name]).unwrap_err();
    assert!(refused.contains("is in use by default/"), "{refused}");
    ok(&["delete", "pod", "private", "asks", "keeps"]);
    let removed = image(&lab, &["rm", &name]).unwrap();
    assert!(removed.contains(&format!("Untagged: {name}")), "{removed}");
    let archive = lab.directory.path().join("hello.tar");
    let archive = archive.to_str().unwrap();
    for format in ["oci", "docker"] {
        image(&lab, &["export", "--format", format, "-o", archive, "barque/hello:1.0"]).unwrap();
        let imported = image(&lab, &["import", "-t", &format!("lab/{format}:2"), archive]).unwrap();
        assert!(imported.contains(&format!("Loaded image: docker.io/lab/{format}:2")), "{imported}");
        let about: Value =
            serde_json::from_str(&image(&lab, &["inspect", &format!("lab/{format}:2")]).unwrap()).unwrap();
        assert_eq!(about["Config"]["Entrypoint"][0], "/barque");
    }
    let pulled = image(&lab, &["pull", "--credentials", login, &name]).unwrap();
    assert_eq!(pulled, format!("{name}\n"));
    apply(&pod("imported", "lab/docker:2", "Never"));
    shows("imported", "Running");
    ok(&["delete", "pod", "imported"]);
    drop(registry);
    lab.down();
}
