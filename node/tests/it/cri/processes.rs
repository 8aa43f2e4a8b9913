//! Programs in containers: what they are run with, how one speaks with them, and how they are confined.

use std::fs;

use bytes::Bytes;
use proto::cri;
use streams::{ClientFrame, NodeFrame, NodeStream, StreamEnds, dial};
use tonic::Code;

use super::*;
use crate::host::{PATIENCE, run};

pub(crate) const TESTS: &[crate::Test] = &[
    ("cri::programs_are_run_in_containers", || run(programs_are_run_in_containers())),
    ("cri::streams_are_had_at_the_address_given", || run(streams_are_had_at_the_address_given())),
    ("cri::containers_are_confined_as_asked", || run(containers_are_confined_as_asked())),
];

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
