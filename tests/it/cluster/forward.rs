//! `kubectl port-forward` and `kubectl proxy`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::first_pod::run_pod;
use super::skip;
use super::stage::{Live, Stage};
use crate::support::eventually;

/// What a GET of `/` answers.
pub(super) fn get(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

pub(super) fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

pub(super) fn free_port() -> u16 {
    TcpListener::bind(local(0)).unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_forwarded() {
    let Some(mut stage) = Stage::up("ports_are_forwarded", "it-forward").await else { return };
    let mut pod = super::first_pod::hello("web", Some("node-2"));
    let second = json!({"name": "second", "image": "barque/hello:1.0", "args": ["--port", "9090"]});
    pod["spec"]["containers"].as_array_mut().unwrap().push(second);
    run_pod(&mut stage.client, &pod).await;
    let expose = ["expose", "pod", "web", "--port", "80", "--target-port", "8080"];
    let program = stage.programs.last().unwrap().clone();
    stage.ok(&program, &["label", "pod", "web", "app=web"]);
    stage.ok(&program, &[&expose[..], &["--selector", "app=web"]].concat());
    for program in stage.programs.clone() {
        // A5-11: to a pod of a Service, by the Service's port.
        let port = free_port();
        let mut forward =
            Live::start(stage.command(&program, &["port-forward", "svc/web", &format!("{port}:80")]));
        forward.await_text(&format!("Forwarding from 127.0.0.1:{port} -> 8080\n"));
        assert!(eventually(|| get(local(port))).contains("this is web."));
        forward.interrupt();
        forward.ended();
        // KIA-CLIX-022, 023: several ports, both loopbacks; the program sees a caller on its own loopback.
        let (one, two) = (free_port(), free_port());
        let (one_to, two_to) = (format!("{one}:8080"), format!("{two}:9090"));
        let mut forward = Live::start(stage.command(&program, &["port-forward", "web", &one_to, &two_to]));
        forward.await_text(&format!("Forwarding from 127.0.0.1:{one} -> 8080\n"));
        if TcpListener::bind("[::1]:0").is_ok() {
            forward.await_text(&format!("Forwarding from [::1]:{one} -> 8080\n"));
        }
        forward.await_text(&format!("Forwarding from 127.0.0.1:{two} -> 9090\n"));
        for port in [one, two] {
            let answer = eventually(|| get(local(port)));
            assert!(answer.contains("this is web."), "{answer}");
            assert!(answer.contains("127.0.0.1"), "the caller is the pod's own loopback: {answer}");
        }
        // Many connections, some at once.
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..10).for_each(|_| assert!(get(local(one)).is_some())));
            }
        });
        // KIA-CLIX-027: the local port is taken.
        let (_, said) = stage.fails(&program, &["port-forward", "web", &one_to]);
        assert!(said.contains(&format!("Unable to listen on port {one}")), "{said}");
        assert!(said.contains("unable to listen on any of the requested ports"), "{said}");
        forward.interrupt();
        forward.ended();
        // Nobody listens there in the pod.
        let three = free_port();
        let mut forward =
            Live::start(stage.command(&program, &["port-forward", "web", &format!("{three}:4444")]));
        forward.await_text("Forwarding from");
        assert_eq!(get(local(three)), None);
        forward.await_text("failed to connect to localhost:4444");
        forward.child.kill().unwrap();
        forward.ended();
    }
    privileged_port(&stage);
    stage.lab.down();
}

/// KIA-CLIX-025: without the right to, as a user that is not root.
fn privileged_port(stage: &Stage) {
    let Some(setpriv) =
        ["/usr/bin/setpriv", "/bin/setpriv"].into_iter().find(|path| Path::new(path).exists())
    else {
        return skip("ports_are_forwarded", "no setpriv: the privileged port is not tried");
    };
    let kubeconfig = stage.lab.directory.path().join("kubeconfig-for-all");
    std::fs::copy(stage.lab.cluster.kubeconfig(), &kubeconfig).unwrap();
    for path in [kubeconfig.as_path(), stage.lab.directory.path()] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode).unwrap();
    }
    let start = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if start.trim() == "0" {
        return skip("ports_are_forwarded", "every port is unprivileged here");
    }
    let program = stage.programs.last().unwrap();
    let output = Command::new(setpriv)
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
        .arg(program)
        .args(["--server", &stage.server, "--kubeconfig"])
        .arg(&kubeconfig)
        .args(["port-forward", "web", "80:8080"])
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("permission denied") && !said.contains("bind") {
        return skip("ports_are_forwarded", "kubectl cannot be run by another user");
    }
    assert!(said.contains("Unable to listen on port 80: Listeners failed to create"), "{said}");
    assert!(said.contains("bind: permission denied"), "{said}");
    assert!(said.contains("error: unable to listen on any of the requested ports: [{80 8080}]"), "{said}");
}

/// KIA-CLIX-028.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_serves_the_api_without_credentials() {
    let Some(stage) = Stage::up("proxy_serves_the_api_without_credentials", "it-proxy").await else { return };
    let port = free_port();
    let args = ["proxy", "--port", &port.to_string()];
    let mut proxy = Live::start(stage.command(stage.programs.last().unwrap(), &args));
    proxy.await_text(&format!("Starting to serve on 127.0.0.1:{port}\n"));
    let answer = eventually(|| get(local(port)));
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("/api/v1"), "{answer}");
    proxy.interrupt();
    proxy.ended();
    stage.lab.down();
}
