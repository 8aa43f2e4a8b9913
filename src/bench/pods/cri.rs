//! Sandboxes with a container through the Kubernetes CRI: `barque cri` and containerd, in turns.
//!
//! Owns both servers, their data and the image that both run. Sandboxes have the host's network, so that no network plugin
//! takes part on either side.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::cri::image_service_client::ImageServiceClient;
use proto::cri::runtime_service_client::RuntimeServiceClient;
use proto::cri::{self, NamespaceMode};
use ring::digest::{SHA256, digest};
use runtime::net::Netlink;
use serde_json::json;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::args::BenchPodsArgs;
use super::clock;
use super::containers::{CPU_SHARES, MEMORY_BYTES, POLL_INTERVAL, START_TIMEOUT, WARM_UP, remove_cgroups};
use super::report::SandboxRow;
use crate::bench::histogram::Histogram;
use crate::up::progress::{Step, line};

/// What containers run, by its path in the image.
const PROGRAM: &str = "/barque";
const IMAGE: &str = "docker.io/barque/bench:1";
/// How long a server may take until it answers, and to end.
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);

/// One column.
struct Server {
    name: &'static str,
    directory: PathBuf,
    process: Child,
    client: RuntimeServiceClient<Channel>,
}

/// What one sandbox took.
struct Times {
    sandbox: Duration,
    container: Duration,
    removal: Duration,
}

/// Measures our server, and containerd if it is there.
pub(crate) async fn measure(args: &BenchPodsArgs, parent: &Path) -> anyhow::Result<Vec<SandboxRow>> {
    let directory = parent.join(format!("barque-bench-{}-cri", std::process::id()));
    fs::create_dir(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let made = Made(directory);
    let archive = archive(&made.0)?;
    let mut servers = vec![ours(&made.0, &archive).await?];
    if Command::new(&args.containerd).arg("--version").stdout(Stdio::null()).status().is_ok() {
        servers.push(containerd(&args.containerd, &made.0, &archive).await?);
    } else {
        line(format_args!("  {} is not there or does not run: left out", args.containerd.display()));
    }
    let step = Step::begin(format!("{} sandboxes of each server, in turns", args.starts));
    let mut rows: Vec<[Histogram; 3]> = servers.iter().map(|_| Default::default()).collect();
    for round in 0..args.starts + WARM_UP {
        for (server, row) in servers.iter_mut().zip(&mut rows) {
            let times = server.one(round).await.with_context(|| format!("a sandbox of {}", server.name))?;
            if round >= WARM_UP {
                for (histogram, time) in row.iter_mut().zip([times.sandbox, times.container, times.removal]) {
                    histogram.record(time);
                }
            }
        }
    }
    step.done();
    let rows = servers.iter().zip(&rows).map(|(server, row)| SandboxRow::of(server.name, row)).collect();
    for mut server in servers {
        server.end()?;
    }
    Ok(rows)
}

/// The directory of everything, removed when dropped, with what our server leaves for its next life.
struct Made(PathBuf);

impl Drop for Made {
    fn drop(&mut self) {
        let removed = Netlink::open().and_then(|mut netlink| netlink.delete_link(&bridge()));
        if let Err(error) = removed {
            line(format_args!("  the bridge was not removed: {error}"));
        }
        remove_cgroups(Path::new(&group()));
        if let Err(error) = fs::remove_dir_all(&self.0) {
            line(format_args!("  {} was not removed: {error}", self.0.display()));
        }
    }
}

/// An archive as `docker save` writes it: this program, and nothing else.
fn archive(directory: &Path) -> anyhow::Result<PathBuf> {
    let path = directory.join("image.tar");
    let mut layer = tar::Builder::new(Vec::new());
    let binary = std::env::current_exe().context("cannot find out which file this program is")?;
    layer.append_path_with_name(binary, &PROGRAM[1..]).context("cannot pack this program")?;
    let layer = layer.into_inner().context("cannot pack this program")?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": [PROGRAM, clock::WORD, clock::REST]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(digest(&SHA256, &layer).as_ref()))]},
    });
    let saved = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    let mut image = tar::Builder::new(fs::File::create(&path).context("cannot create the image")?);
    let documents = [("config.json", config.to_string()), ("manifest.json", saved.to_string())];
    let documents = documents.map(|(name, text)| (name, text.into_bytes()));
    for (name, bytes) in documents.into_iter().chain([("layer.tar", layer)]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        image.append_data(&mut header, name, bytes.as_slice()).context("cannot write the image")?;
    }
    image.finish().context("cannot write the image")?;
    Ok(path)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bridge that our server makes.
fn bridge() -> String {
    format!("bq{}", std::process::id())
}

/// The group that our server makes.
fn group() -> String {
    format!("barque-bench-{}-cri", std::process::id())
}

async fn ours(parent: &Path, archive: &Path) -> anyhow::Result<Server> {
    let directory = parent.join("barque");
    let config = json!({
        "socket": directory.join("s"),
        "dataDir": directory.join("data"),
        "runDir": directory.join("run"),
        "cgroupRoot": format!("/{}", group()),
        "bridgeName": bridge(),
        "imageArchives": [archive],
    });
    let binary = std::env::current_exe().context("cannot find out which file this program is")?;
    let mut command = Command::new(binary);
    command.args(["cri", "--config"]);
    Server::begin("barque", directory, ("config.yaml", config.to_string()), command).await
}

async fn containerd(program: &Path, parent: &Path, archive: &Path) -> anyhow::Result<Server> {
    let directory = parent.join("containerd");
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = {:?}\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {IMAGE:?}\n\
         disable_apparmor = true\nrestrict_oom_score_adj = true\nstream_server_address = \"127.0.0.1\"\n",
        directory.join("root"),
        directory.join("state"),
        directory.join("s"),
    );
    let mut command = Command::new(program);
    command.arg("--config");
    let server = Server::begin("containerd", directory, ("config.toml", config), command).await?;
    let mut import = Command::new(program.with_file_name("ctr"));
    import.arg("--address").arg(server.directory.join("s"));
    import.args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
    let output = import.output().context("cannot execute ctr, which brings the image to containerd")?;
    ensure!(output.status.success(), "ctr: {}", String::from_utf8_lossy(&output.stderr));
    Ok(server)
}

impl Server {
    /// Starts a server that listens at `s` in its directory, with its configuration file as the last argument.
    async fn begin(
        name: &'static str,
        directory: PathBuf,
        (file, config): (&str, String),
        mut command: Command,
    ) -> anyhow::Result<Self> {
        fs::create_dir(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let (file, log) = (directory.join(file), directory.join("log"));
        fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
        let said = fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        command.arg(file).stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let process = command.spawn().with_context(|| format!("cannot execute {name}"))?;
        let socket = directory.join("s");
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        let channel = Endpoint::from_static("http://cri").connect_with_connector_lazy(connector);
        let client = RuntimeServiceClient::new(channel.clone());
        let mut server = Self { name, directory, process, client };
        let deadline = Instant::now() + SERVER_TIMEOUT;
        let mut images = ImageServiceClient::new(channel);
        while let Err(status) = images.list_images(cri::ListImagesRequest::default()).await {
            if Instant::now() > deadline || server.process.try_wait()?.is_some() {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("{name} does not serve: {status}\n{said}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(server)
    }

    /// One sandbox with one container, from the first call until nothing is left.
    async fn one(&mut self, round: usize) -> anyhow::Result<Times> {
        let config = self.sandbox(round);
        let logs = PathBuf::from(&config.log_directory);
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        let container = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "c".to_owned(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
            command: vec![PROGRAM.to_owned(), clock::WORD.to_owned(), clock::REST.to_owned()],
            log_path: "c.log".to_owned(),
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(cri::LinuxContainerResources {
                    memory_limit_in_bytes: MEMORY_BYTES.cast_signed(),
                    cpu_shares: CPU_SHARES.cast_signed(),
                    ..Default::default()
                }),
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        };
        let begun = clock::now()?;
        let run = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let id = self.client.run_pod_sandbox(run).await?.into_inner().pod_sandbox_id;
        let sandboxed = clock::now()?;
        let create = cri::CreateContainerRequest {
            pod_sandbox_id: id.clone(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let container_id = self.client.create_container(create).await?.into_inner().container_id;
        self.client.start_container(cri::StartContainerRequest { container_id }).await?;
        let first = printed(&logs.join("c.log")).await?;
        let removal = Instant::now();
        self.client.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
        self.client.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
        Ok(Times {
            sandbox: first.saturating_sub(begun),
            container: first.saturating_sub(sandboxed),
            removal: removal.elapsed(),
        })
    }

    fn sandbox(&self, round: usize) -> cri::PodSandboxConfig {
        let name = format!("bench-{round}");
        cri::PodSandboxConfig {
            log_directory: self.directory.join("logs").join(&name).to_string_lossy().into_owned(),
            metadata: Some(cri::PodSandboxMetadata {
                uid: name.clone(),
                name,
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Ends the server; nothing of it runs any more.
    fn end(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + SERVER_TIMEOUT;
        let pid = Pid::from_raw(i32::try_from(self.process.id()).context("ids of processes are small")?);
        kill(pid, Signal::SIGTERM).with_context(|| format!("cannot end {}", self.name))?;
        while self.process.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "{} does not end", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Err(error) = self.end() {
            line(format_args!("  {error:#}"));
        }
    }
}

/// The host's network, processes of its own.
fn namespaces() -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    }
}

/// The time that a container has printed.
async fn printed(log: &Path) -> anyhow::Result<Duration> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        if let Some(time) = text.ends_with('\n').then(|| clock::parse(&text)).flatten() {
            return Ok(time);
        }
        ensure!(Instant::now() < deadline, "it printed no time, but {text:?}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
