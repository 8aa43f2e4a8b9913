//! The CRI server over its unix socket, asked by a plain client. Here: a server of its own for each test, and what
//! every test asks.

pub(crate) mod life;
pub(crate) mod processes;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use node::cri::CriConfig;
use proto::cri::runtime_service_client::RuntimeServiceClient;
use proto::cri::{self, ContainerState};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::host::{IMAGE, PATIENCE};

static NEXT: AtomicU32 = AtomicU32::new(1);

type Runtime = RuntimeServiceClient<Channel>;

/// A CRI server of its own.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    config: CriConfig,
    task: Option<(JoinHandle<Result<(), node::Error>>, CancellationToken)>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new()
            .prefix(&format!("barque-cri-{}-", std::process::id()))
            .tempdir()
            .unwrap();
        let exe = std::env::current_exe().unwrap();
        let config = CriConfig {
            socket: dir.path().join("cri.sock"),
            data_dir: dir.path().join("data"),
            run_dir: dir.path().join("run"),
            cgroup_root: format!("/barque-cri-test/{}-{number}", std::process::id()),
            shim_command: vec![exe.to_str().unwrap().to_owned(), "shim".to_owned()],
            bridge_name: format!("cb{number}"),
            pod_cidr: format!("10.{}.{number}.0/24", 200 + number % 50),
            builtin_image: true,
            builtin_binary: Some(exe),
            ..CriConfig::default()
        };
        let mut server = Self { dir, config, task: None };
        server.begin().await;
        server
    }

    pub(crate) async fn begin(&mut self) {
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(node::cri::run(self.config.clone(), shutdown.clone()));
        self.task = Some((task, shutdown));
        let end = tokio::time::Instant::now() + PATIENCE;
        while UnixStream::connect(&self.config.socket).await.is_err() {
            let (task, _) = self.task.as_mut().unwrap();
            if task.is_finished() {
                panic!("the server ended: {:?}", task.await);
            }
            assert!(tokio::time::Instant::now() < end, "the server does not begin to serve");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) async fn stop(&mut self) {
        let (task, shutdown) = self.task.take().unwrap();
        shutdown.cancel();
        tokio::time::timeout(PATIENCE, task).await.expect("the server stops").unwrap().unwrap();
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.config.socket
    }

    /// Kills the first process of every sandbox.
    pub(crate) fn kill_pauses(&self) {
        for sandbox in self.runtime().sandboxes().unwrap() {
            let pause = nix::unistd::Pid::from_raw(sandbox.pause.unwrap().pid);
            nix::sys::signal::kill(pause, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    }

    async fn channel(&self) -> Channel {
        let path = self.config.socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        Endpoint::from_static("http://cri").connect_with_connector(connector).await.unwrap()
    }

    async fn client(&self) -> Runtime {
        Runtime::new(self.channel().await)
    }

    fn runtime(&self) -> runtime::Runtime {
        let config = runtime::RuntimeConfig {
            state_dir: self.config.run_dir.join("runtime"),
            shim_command: self.config.shim_command.iter().map(Into::into).collect(),
            cgroup_root: PathBuf::new(),
            every_hierarchy: false,
        };
        runtime::Runtime::new(config).unwrap()
    }

    /// Stops it and asserts that nothing of it is left.
    pub(crate) async fn finish(mut self) {
        self.stop().await;
        let dir = self.dir.path().to_str().unwrap().to_owned();
        for sub in ["data/sandboxes", "data/containers", "data/network/addresses", "run/runtime/containers"] {
            let left: Vec<_> = fs::read_dir(self.dir.path().join(sub)).into_iter().flatten().collect();
            assert!(left.is_empty(), "left in {sub}: {left:?}");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&dir), "mounts are left");
        let links = runtime::net::Netlink::open().unwrap().links().unwrap();
        assert!(!links.iter().any(|link| link.name.starts_with("vb")), "links are left");
        self.remove_cgroups();
    }

    fn remove_cgroups(&self) {
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let own = hierarchy.path().join(self.config.cgroup_root.trim_start_matches('/'));
            if own.is_dir() {
                fs::remove_dir(&own).unwrap_or_else(|error| panic!("{}: {error}", own.display()));
            }
            drop(fs::remove_dir(hierarchy.path().join("barque-cri-test")));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        if let Some((_, shutdown)) = self.task.take() {
            shutdown.cancel();
        }
        let runtime = self.runtime();
        for sandbox in runtime.sandboxes().unwrap_or_default() {
            drop(runtime.delete_sandbox(&sandbox.id));
        }
        let mut netlink = runtime::net::Netlink::open().unwrap();
        for link in netlink.links().unwrap_or_default().iter().filter(|link| link.name.starts_with("vb")) {
            drop(netlink.delete_link(&link.name));
        }
    }
}

fn sandbox_config(server: &Server, name: &str) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("{name}-uid"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: server.dir.path().join("logs").join(name).to_str().unwrap().to_owned(),
        dns_config: Some(cri::DnsConfig {
            servers: vec!["10.0.0.10".to_owned()],
            searches: vec!["cluster.local".to_owned()],
            options: Vec::new(),
        }),
        labels: HashMap::from([("app".to_owned(), name.to_owned())]),
        annotations: HashMap::from([("note".to_owned(), "kept as it came".to_owned())]),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(cri::NamespaceOption {
                    pid: cri::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container_config(name: &str, work: &[&str]) -> cri::ContainerConfig {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
        command: words(&["/barque", "work"]),
        args: words(work),
        labels: HashMap::from([("name".to_owned(), name.to_owned())]),
        log_path: format!("{name}/0.log"),
        linux: Some(cri::LinuxContainerConfig {
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(cri::NamespaceOption {
                    pid: cri::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            resources: None,
        }),
        ..Default::default()
    }
}

async fn run_sandbox(client: &mut Runtime, config: &cri::PodSandboxConfig) -> String {
    let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    client.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id
}

async fn create(
    client: &mut Runtime,
    sandbox: &str,
    config: cri::ContainerConfig,
) -> Result<String, tonic::Status> {
    let pod_sandbox_id = sandbox.to_owned();
    let request = cri::CreateContainerRequest { pod_sandbox_id, config: Some(config), sandbox_config: None };
    Ok(client.create_container(request).await?.into_inner().container_id)
}

async fn start(client: &mut Runtime, id: &str) -> Result<(), tonic::Status> {
    client.start_container(cri::StartContainerRequest { container_id: id.to_owned() }).await.map(drop)
}

async fn launch(client: &mut Runtime, sandbox: &str, config: cri::ContainerConfig) -> String {
    let id = create(client, sandbox, config).await.unwrap();
    start(client, &id).await.unwrap();
    id
}

async fn stop(client: &mut Runtime, id: &str, timeout: i64) {
    let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout };
    client.stop_container(request).await.unwrap();
}

async fn status(client: &mut Runtime, id: &str) -> Result<cri::ContainerStatus, tonic::Status> {
    let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    Ok(client.container_status(request).await?.into_inner().status.unwrap())
}

async fn sandbox_status(client: &mut Runtime, id: &str) -> Result<cri::PodSandboxStatus, tonic::Status> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    Ok(client.pod_sandbox_status(request).await?.into_inner().status.unwrap())
}

async fn ended(client: &mut Runtime, id: &str) -> cri::ContainerStatus {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let status = status(client, id).await.unwrap();
        if status.state() == ContainerState::ContainerExited {
            return status;
        }
        assert!(tokio::time::Instant::now() < end, "{id} does not end: {status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn remove_sandbox(client: &mut Runtime, id: &str) {
    let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
    client.remove_pod_sandbox(request).await.unwrap();
}

async fn exec_sync(
    client: &mut Runtime,
    id: &str,
    work: &[&str],
    timeout: i64,
) -> Result<cri::ExecSyncResponse, tonic::Status> {
    let cmd = ["/barque", "work"].iter().chain(work).map(|word| (*word).to_owned()).collect();
    let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
    Ok(client.exec_sync(request).await?.into_inner())
}
