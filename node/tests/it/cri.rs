//! The CRI server over its unix socket, asked by a plain client: the life of sandboxes and containers, streams,
//! lists, what may be repeated, what is refused, restarts.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use node::cri::CriConfig;
use proto::cri::image_service_client::ImageServiceClient;
use proto::cri::runtime_service_client::RuntimeServiceClient;
use proto::cri::{self, ContainerState, PodSandboxState};
use streams::{ClientFrame, NodeFrame, NodeStream, StreamEnds, dial};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::host::{IMAGE, PATIENCE, eventually, run};

pub(crate) const TESTS: &[crate::Test] = &[
    ("cri::a_sandbox_and_its_container_live_and_go", || run(a_sandbox_and_its_container_live_and_go())),
    ("cri::programs_are_run_in_containers", || run(programs_are_run_in_containers())),
    ("cri::streams_are_had_at_the_address_given", || run(streams_are_had_at_the_address_given())),
    ("cri::lists_obey_filters", || run(lists_obey_filters())),
    ("cri::what_is_done_may_be_done_again", || run(what_is_done_may_be_done_again())),
    ("cri::bad_input_is_refused", || run(bad_input_is_refused())),
    ("cri::containers_outlive_the_server", || run(containers_outlive_the_server())),
    ("cri::containers_are_confined_as_asked", || run(containers_are_confined_as_asked())),
    ("cri::events_tell_what_happens", || run(events_tell_what_happens())),
    ("cri::images_are_listed_and_removed", || run(images_are_listed_and_removed())),
];

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

async fn a_sandbox_and_its_container_live_and_go() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mode = fs::metadata(server.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "only the server's user may ask");
    let version = client.version(cri::VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("barque", "v1"));
    let conditions = client.status(cri::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
    assert!(conditions.conditions.iter().all(|condition| condition.status), "{conditions:?}");
    let config = sandbox_config(&server, "web");
    let sandbox = run_sandbox(&mut client, &config).await;
    let seen = sandbox_status(&mut client, &sandbox).await.unwrap();
    assert_eq!(seen.state(), PodSandboxState::SandboxReady);
    assert_eq!((&seen.labels, &seen.annotations), (&config.labels, &config.annotations));
    let ip = seen.network.unwrap().ip;
    let id = create(&mut client, &sandbox, container_config("c", &["serve"])).await.unwrap();
    let created = status(&mut client, &id).await.unwrap();
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    assert!(created.image_ref.contains("@sha256:"), "{}", created.image_ref);
    start(&mut client, &id).await.unwrap();
    let running = status(&mut client, &id).await.unwrap();
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.started_at >= running.created_at && running.finished_at == 0);
    let address = format!("{ip}:8080");
    eventually("the container answers at the sandbox's address", || {
        std::net::TcpStream::connect(&address).is_ok()
    });
    let log = fs::read_to_string(&running.log_path).unwrap();
    assert!(log.lines().any(|line| line.ends_with(" stdout F serving")), "{log}");
    stop(&mut client, &id, 30).await;
    let stopped = status(&mut client, &id).await.unwrap();
    assert_eq!(stopped.state(), ContainerState::ContainerExited);
    assert_eq!((stopped.exit_code, stopped.reason.as_str()), (0, "Completed"));
    assert!(stopped.finished_at >= stopped.started_at);
    let request = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    client.stop_pod_sandbox(request).await.unwrap();
    let seen = sandbox_status(&mut client, &sandbox).await.unwrap();
    assert_eq!(seen.state(), PodSandboxState::SandboxNotready);
    assert_eq!(status(&mut client, &id).await.unwrap().exit_code, 0, "how it ended stays known");
    remove_sandbox(&mut client, &sandbox).await;
    assert_eq!(status(&mut client, &id).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(sandbox_status(&mut client, &sandbox).await.unwrap_err().code(), Code::NotFound);
    server.finish().await;
}

async fn programs_are_run_in_containers() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let sandbox = run_sandbox(&mut client, &sandbox_config(&server, "exec")).await;
    let id = launch(&mut client, &sandbox, container_config("c", &["serve"])).await;
    let said = exec_sync(&mut client, &id, &["commands"], 10).await.unwrap();
    assert_eq!(said.exit_code, 0);
    let text = String::from_utf8(said.stdout.to_vec()).unwrap();
    assert!(text.contains("1: /barque work serve"), "{text}");
    let failed = exec_sync(&mut client, &id, &["remember", "/tmp-file"], 10).await.unwrap();
    assert_eq!(failed.exit_code, 1);
    assert_eq!(failed.stdout, Bytes::from("/tmp-file: 1\n"));
    let late = exec_sync(&mut client, &id, &["sleep", "600000"], 1).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    let request =
        cri::ExecSyncRequest { container_id: id.clone(), cmd: vec!["/none".to_owned()], timeout: 1 };
    let none = client.exec_sync(request).await.unwrap_err();
    assert!(none.message().contains("no such file"), "{none:?}");
    remove_sandbox(&mut client, &sandbox).await;
    server.finish().await;
}

async fn said(stream: &mut NodeStream, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        match tokio::time::timeout(PATIENCE, stream.incoming.recv()).await.expect("in time") {
            Some(Ok(NodeFrame::Stdout(bytes))) => text.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?} instead of {wanted:?}, after {text:?}"),
        }
    }
    text
}

async fn last(stream: &mut NodeStream) -> Result<NodeFrame, String> {
    loop {
        match tokio::time::timeout(PATIENCE, stream.incoming.recv()).await.expect("in time") {
            Some(Ok(NodeFrame::Stdout(_) | NodeFrame::Stderr(_) | NodeFrame::Started)) => {}
            Some(Ok(frame)) => return Ok(frame),
            Some(Err(failure)) => return Err(failure.message),
            None => panic!("no last frame"),
        }
    }
}

async fn streams_are_had_at_the_address_given() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let sandbox = run_sandbox(&mut client, &sandbox_config(&server, "streams")).await;
    let id = launch(&mut client, &sandbox, container_config("c", &["serve"])).await;
    let cmd = ["/barque", "work", "remember", "/a"].map(str::to_owned).to_vec();
    let request =
        cri::ExecRequest { container_id: id.clone(), cmd, stdout: true, stderr: true, ..Default::default() };
    let url = client.exec(request).await.unwrap().into_inner().url;
    let ends = StreamEnds { stdout: true, stderr: true, ..StreamEnds::default() };
    let mut stream = dial::remote_command(&url, ends).await.unwrap();
    said(&mut stream, "/a: 1").await;
    assert_eq!(last(&mut stream).await, Ok(NodeFrame::Exit(1)));
    let again = dial::remote_command(&url, ends).await.unwrap_err().to_string();
    assert!(again.contains("404"), "a token is good once: {again}");
    let request = cri::AttachRequest { container_id: id.clone(), stdout: true, ..Default::default() };
    let url = client.attach(request).await.unwrap().into_inner().url;
    let ends = StreamEnds { stdout: true, ..StreamEnds::default() };
    let mut attached = dial::remote_command(&url, ends).await.unwrap();
    let request = cri::PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: vec![8080] };
    let url = client.port_forward(request).await.unwrap().into_inner().url;
    let mut connection = dial::port_forward(&url, 8080).await.unwrap();
    connection.outgoing.send(ClientFrame::Stdin("GET / HTTP/1.0\r\n\r\n".into())).await.unwrap();
    let answer = said(&mut connection, "you are").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK"), "{answer}");
    said(&mut attached, "answered").await;
    let request = cri::PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: vec![9] };
    let url = client.port_forward(request).await.unwrap().into_inner().url;
    let mut refused = dial::port_forward(&url, 9).await.unwrap();
    let why = last(&mut refused).await.unwrap_err();
    assert!(why.contains("connection refused"), "{why}");
    let request = cri::AttachRequest { container_id: id, tty: true, stderr: true, ..Default::default() };
    assert_eq!(client.attach(request).await.unwrap_err().code(), Code::InvalidArgument);
    remove_sandbox(&mut client, &sandbox).await;
    server.finish().await;
}

async fn lists_obey_filters() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let one = run_sandbox(&mut client, &sandbox_config(&server, "one")).await;
    let two = run_sandbox(&mut client, &sandbox_config(&server, "two")).await;
    let running = launch(&mut client, &one, container_config("a", &["serve"])).await;
    let created = create(&mut client, &two, container_config("b", &["serve"])).await.unwrap();
    let listed = async |filter: cri::ContainerFilter| -> Vec<String> {
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let found = client.clone().list_containers(request).await.unwrap().into_inner();
        found.containers.into_iter().map(|container| container.id).collect()
    };
    let all = listed(cri::ContainerFilter::default()).await;
    assert_eq!(all, [created.clone(), running.clone()], "the newest first");
    let state = Some(cri::ContainerStateValue { state: ContainerState::ContainerRunning.into() });
    assert_eq!(listed(cri::ContainerFilter { state, ..Default::default() }).await, [running.as_str()]);
    let of_two = cri::ContainerFilter { pod_sandbox_id: two.clone(), ..Default::default() };
    assert_eq!(listed(of_two).await, [created.as_str()]);
    let label_selector = HashMap::from([("name".to_owned(), "a".to_owned())]);
    assert_eq!(
        listed(cri::ContainerFilter { label_selector, ..Default::default() }).await,
        [running.as_str()]
    );
    let beginning = cri::ContainerFilter { id: running[..13].to_owned(), ..Default::default() };
    assert_eq!(listed(beginning).await, [running.as_str()]);
    let short = status(&mut client.clone(), &running[..13]).await.unwrap();
    assert_eq!(short.id, running, "the beginning of an id stands for it");
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: two.clone() };
    client.clone().stop_pod_sandbox(stop).await.unwrap();
    let state = Some(cri::PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() });
    let filter = Some(cri::PodSandboxFilter { state, ..Default::default() });
    let ready =
        client.clone().list_pod_sandbox(cri::ListPodSandboxRequest { filter }).await.unwrap().into_inner();
    assert_eq!(ready.items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), [one.as_str()]);
    let stats = client.clone().list_container_stats(cri::ListContainerStatsRequest::default()).await.unwrap();
    assert_eq!(stats.into_inner().stats.len(), 2);
    let stats = cri::PodSandboxStatsRequest { pod_sandbox_id: one.clone() };
    let stats =
        client.clone().pod_sandbox_stats(stats).await.unwrap().into_inner().stats.unwrap().linux.unwrap();
    assert_eq!(stats.containers.len(), 1);
    assert!(stats.containers[0].writable_layer.is_some());
    for sandbox in [one, two] {
        remove_sandbox(&mut client.clone(), &sandbox).await;
    }
    server.finish().await;
}

async fn what_is_done_may_be_done_again() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let config = sandbox_config(&server, "again");
    let sandbox = run_sandbox(&mut client, &config).await;
    assert_eq!(
        run_sandbox(&mut client, &config).await,
        sandbox,
        "the answer to the first may have been lost"
    );
    let id = launch(&mut client, &sandbox, container_config("c", &["serve"])).await;
    start(&mut client, &id).await.unwrap();
    let other = container_config("c", &["commands"]);
    assert_eq!(create(&mut client, &sandbox, other).await.unwrap_err().code(), Code::AlreadyExists);
    for _ in 0..2 {
        stop(&mut client, &id, 10).await;
    }
    assert_eq!(start(&mut client, &id).await.unwrap_err().code(), Code::FailedPrecondition);
    for _ in 0..2 {
        let request = cri::RemoveContainerRequest { container_id: id.clone() };
        client.remove_container(request).await.unwrap();
    }
    stop(&mut client, &id, 0).await;
    let by_force = launch(&mut client, &sandbox, container_config("running", &["serve"])).await;
    client.remove_container(cri::RemoveContainerRequest { container_id: by_force.clone() }).await.unwrap();
    assert_eq!(status(&mut client, &by_force).await.unwrap_err().code(), Code::NotFound);
    for _ in 0..2 {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
        client.stop_pod_sandbox(request).await.unwrap();
    }
    for _ in 0..2 {
        remove_sandbox(&mut client, &sandbox).await;
    }
    let request = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox };
    client.stop_pod_sandbox(request).await.unwrap();
    server.finish().await;
}

async fn bad_input_is_refused() {
    let server = Server::start().await;
    let client = server.client().await;
    let refused = async |config: Option<cri::PodSandboxConfig>| {
        let request = cri::RunPodSandboxRequest { config, runtime_handler: String::new() };
        client.clone().run_pod_sandbox(request).await.unwrap_err()
    };
    assert_eq!(refused(None).await.code(), Code::InvalidArgument);
    let mut config = sandbox_config(&server, "bad");
    config.metadata = None;
    assert_eq!(refused(Some(config)).await.code(), Code::InvalidArgument);
    let mut config = sandbox_config(&server, "bad");
    config.port_mappings = vec![cri::PortMapping { container_port: 80, host_port: 80, ..Default::default() }];
    let host_port = refused(Some(config)).await;
    assert_eq!(host_port.code(), Code::Unimplemented);
    assert!(host_port.message().contains("host ports"), "{host_port:?}");
    let handler = cri::RunPodSandboxRequest {
        config: Some(sandbox_config(&server, "bad")),
        runtime_handler: "kata".to_owned(),
    };
    assert_eq!(client.clone().run_pod_sandbox(handler).await.unwrap_err().code(), Code::InvalidArgument);
    let sandbox = run_sandbox(&mut client.clone(), &sandbox_config(&server, "good")).await;
    let create_with = async |change: &dyn Fn(&mut cri::ContainerConfig)| {
        let mut config = container_config("c", &["serve"]);
        change(&mut config);
        create(&mut client.clone(), &sandbox, config).await.unwrap_err().code()
    };
    assert_eq!(create_with(&|config| config.metadata = None).await, Code::InvalidArgument);
    assert_eq!(
        create_with(&|config| config.image.as_mut().unwrap().image = "none:1".into()).await,
        Code::NotFound
    );
    assert_eq!(
        create_with(&|config| config.image.as_mut().unwrap().image = "N O".into()).await,
        Code::InvalidArgument
    );
    let mount =
        |path: &str| cri::Mount { host_path: path.into(), container_path: "/x".into(), ..Default::default() };
    assert_eq!(
        create_with(&|config| config.mounts = vec![mount("/does/not/exist")]).await,
        Code::InvalidArgument
    );
    assert_eq!(
        create_with(&|config| {
            let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
            security.run_as_group = Some(cri::Int64Value { value: 7 });
        })
        .await,
        Code::InvalidArgument
    );
    for id in ["", "0123456789"] {
        let code = status(&mut client.clone(), id).await.unwrap_err().code();
        assert_eq!(code, if id.is_empty() { Code::InvalidArgument } else { Code::NotFound });
    }
    let elsewhere = create(&mut client.clone(), "0123", container_config("c", &["serve"])).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::NotFound);
    let request = cri::CheckpointContainerRequest::default();
    assert_eq!(client.clone().checkpoint_container(request).await.unwrap_err().code(), Code::Unimplemented);
    remove_sandbox(&mut client.clone(), &sandbox).await;
    server.finish().await;
}

async fn containers_outlive_the_server() {
    let mut server = Server::start().await;
    let mut client = server.client().await;
    let sandbox = run_sandbox(&mut client, &sandbox_config(&server, "stays")).await;
    let stays = launch(&mut client, &sandbox, container_config("stays", &["serve-on"])).await;
    let leaves = launch(&mut client, &sandbox, container_config("leaves", &["sleep", "600000"])).await;
    let waits = create(&mut client, &sandbox, container_config("waits", &["commands"])).await.unwrap();
    let before = status(&mut client, &stays).await.unwrap();
    server.stop().await;
    server.runtime().signal(&leaves, nix::sys::signal::Signal::SIGKILL as i32).unwrap();
    server.runtime().wait_exit(&leaves).unwrap();
    server.begin().await;
    let mut client = server.client().await;
    let after = status(&mut client, &stays).await.unwrap();
    assert_eq!(after, before, "it is the same one, and all that was said of it is kept");
    let ended = ended(&mut client, &leaves).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "Error"), "its end was not missed");
    assert_eq!(status(&mut client, &waits).await.unwrap().state(), ContainerState::ContainerCreated);
    start(&mut client, &waits).await.unwrap();
    assert_eq!(self::ended(&mut client, &waits).await.exit_code, 0);
    let seen = sandbox_status(&mut client, &sandbox).await.unwrap();
    assert_eq!(seen.state(), PodSandboxState::SandboxReady);
    stop(&mut client, &stays, 0).await;
    assert_eq!(status(&mut client, &stays).await.unwrap().exit_code, 137);
    remove_sandbox(&mut client, &sandbox).await;
    server.finish().await;
}

async fn containers_are_confined_as_asked() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let sandbox = run_sandbox(&mut client, &sandbox_config(&server, "confined")).await;
    let shared = server.dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let mut config = container_config("c", &["remember", "/data/a"]);
    config.mounts = vec![cri::Mount {
        host_path: shared.to_str().unwrap().to_owned(),
        container_path: "/data".to_owned(),
        ..Default::default()
    }];
    let linux = config.linux.as_mut().unwrap();
    linux.resources =
        Some(cri::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() });
    let id = launch(&mut client, &sandbox, config.clone()).await;
    assert_eq!(ended(&mut client, &id).await.exit_code, 1);
    assert_eq!(fs::read_to_string(shared.join("a")).unwrap(), "again\n");
    config.metadata.as_mut().unwrap().attempt = 1;
    config.mounts[0].readonly = true;
    let id = launch(&mut client, &sandbox, config).await;
    assert_eq!(ended(&mut client, &id).await.exit_code, 101, "it panics: the mount is read-only");
    assert_eq!(fs::read_to_string(shared.join("a")).unwrap(), "again\n");
    let mut config = container_config("user", &["serve"]);
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.run_as_user = Some(cri::Int64Value { value: 1234 });
    security.seccomp = Some(cri::SecurityProfile::default());
    security.no_new_privs = true;
    let id = launch(&mut client, &sandbox, config).await;
    let observed = server.runtime().observe(&id).unwrap().unwrap();
    let runtime::ContainerState::Running { process, .. } = observed.state else {
        panic!("{:?}", observed.state)
    };
    let text = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(
        (field("Uid:"), field("NoNewPrivs:"), field("Seccomp:")),
        ("1234".into(), "1".into(), "2".into())
    );
    let resources = cri::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(resources),
        ..Default::default()
    };
    client.update_container_resources(request).await.unwrap();
    let resources = status(&mut client, &id).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!(resources.cpu_shares, 512);
    let log = PathBuf::from(status(&mut client, &id).await.unwrap().log_path);
    let moved = log.with_extension("old");
    fs::rename(&log, &moved).unwrap();
    client.reopen_container_log(cri::ReopenContainerLogRequest { container_id: id.clone() }).await.unwrap();
    assert!(log.exists(), "the log was opened anew");
    let mut config = container_config("none", &[]);
    config.command = vec!["/no/such/program".to_owned()];
    let id = create(&mut client, &sandbox, config).await.unwrap();
    let error = start(&mut client, &id).await.unwrap_err();
    assert!(error.message().contains("/no/such/program"), "{error:?}");
    let failed = status(&mut client, &id).await.unwrap();
    assert_eq!((failed.exit_code, failed.reason.as_str()), (127, "StartError"));
    remove_sandbox(&mut client, &sandbox).await;
    server.finish().await;
}

async fn events_tell_what_happens() {
    use cri::ContainerEventType::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
        ContainerStoppedEvent as Stopped,
    };
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut events = client.get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner();
    let sandbox = run_sandbox(&mut client, &sandbox_config(&server, "events")).await;
    let id = launch(&mut client, &sandbox, container_config("c", &["commands"])).await;
    let mut told = Vec::new();
    while told.last() != Some(&Stopped) {
        let event = tokio::time::timeout(PATIENCE, events.message()).await.unwrap().unwrap().unwrap();
        assert_eq!((event.container_id.as_str(), event.containers_statuses.len()), (id.as_str(), 1));
        told.push(event.container_event_type());
    }
    assert_eq!(told, [Created, Started, Stopped]);
    remove_sandbox(&mut client, &sandbox).await;
    let event = tokio::time::timeout(PATIENCE, events.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(event.container_event_type(), Deleted);
    drop(events);
    server.finish().await;
}

async fn images_are_listed_and_removed() {
    let server = Server::start().await;
    let mut client = ImageServiceClient::new(server.channel().await);
    let images = client.list_images(cri::ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].repo_tags, ["docker.io/barque/hello:1.0"]);
    let spec = |name: &str| Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() });
    for name in [IMAGE, images[0].id.as_str(), images[0].repo_digests[0].as_str()] {
        let request = cri::ImageStatusRequest { image: spec(name), verbose: false };
        let found = client.image_status(request).await.unwrap().into_inner().image;
        assert_eq!(found.as_ref(), Some(&images[0]), "{name}");
    }
    let request = cri::ImageStatusRequest { image: spec("none:1"), verbose: false };
    assert_eq!(client.image_status(request).await.unwrap().into_inner().image, None);
    let request = cri::PullImageRequest { image: spec("127.0.0.1:1/none:1"), ..Default::default() };
    assert!(client.pull_image(request).await.is_err());
    let usage = client.image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert!(usage.image_filesystems[0].used_bytes.as_ref().unwrap().value > 0);
    for _ in 0..2 {
        client.remove_image(cri::RemoveImageRequest { image: spec(IMAGE) }).await.unwrap();
    }
    let images = client.list_images(cri::ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert!(images.is_empty(), "{images:?}");
    server.finish().await;
}
