//! The life of sandboxes, containers and images: what may be repeated, what is refused, what a restart of the server
//! leaves alone.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use proto::cri::image_service_client::ImageServiceClient;
use proto::cri::{self, ContainerState, PodSandboxState};
use tonic::Code;

use super::*;
use crate::host::{IMAGE, PATIENCE, eventually, run};

pub(crate) const TESTS: &[crate::Test] = &[
    ("cri::a_sandbox_and_its_container_live_and_go", || run(a_sandbox_and_its_container_live_and_go())),
    ("cri::lists_obey_filters", || run(lists_obey_filters())),
    ("cri::what_is_done_may_be_done_again", || run(what_is_done_may_be_done_again())),
    ("cri::bad_input_is_refused", || run(bad_input_is_refused())),
    ("cri::containers_outlive_the_server", || run(containers_outlive_the_server())),
    ("cri::events_tell_what_happens", || run(events_tell_what_happens())),
    ("cri::images_are_listed_and_removed", || run(images_are_listed_and_removed())),
];

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
    eventually("what it printed is in its log", || {
        let log = fs::read_to_string(&running.log_path).unwrap();
        log.lines().any(|line| line.ends_with(" stdout F serving"))
    });
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
    config.port_mappings =
        vec![cri::PortMapping { container_port: 80, host_port: 70_000, ..Default::default() }];
    let host_port = refused(Some(config)).await;
    assert_eq!(host_port.code(), Code::InvalidArgument);
    assert!(host_port.message().contains("1 to 65535"), "{host_port:?}");
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
