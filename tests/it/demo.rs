//! `barque demo`, the other programs of the books' examples, outside of containers.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Running, barque, eventually, free_address, run, text};

fn ask(port: u16, method: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn the_proxys_admin_interface_decides_its_health_and_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("admin.log");
    let (port, admin) = (free_address().port(), free_address().port());
    let mut command = barque();
    command.args(["demo", "proxy", "--port", &port.to_string(), "--admin-port", &admin.to_string()]);
    let mut proxy = Running::start(command.arg("--admin-log").arg(&log));
    assert!(proxy.line().starts_with("starting main dispatch loop"));
    for (method, path, wanted) in [
        ("GET", "/ready", "200 OK"),
        ("POST", "/healthcheck/fail", "200 OK"),
        ("GET", "/ready", "503 Service Unavailable"),
        ("POST", "/healthcheck/ok", "200 OK"),
        ("GET", "/ready", "200 OK"),
        ("GET", "/nothing", "404 Not Found"),
        ("POST", "/quitquitquit", "200 OK"),
    ] {
        let answer = ask(admin, method, path).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {wanted}")), "{method} {path}: {answer}");
    }
    assert_eq!(eventually(|| proxy.child.try_wait().unwrap()).code(), Some(0));
    let logged = std::fs::read_to_string(log).unwrap();
    assert_eq!(logged.lines().nth(2), Some("\"GET /ready\" 503"), "{logged}");
}

#[test]
fn the_web_server_serves_files_of_its_directory_and_is_told_to_end() {
    let directory = tempfile::tempdir().unwrap();
    let (root, pid) = (directory.path().join("html"), directory.path().join("pid"));
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("quote"), "words\n").unwrap();
    std::fs::write(directory.path().join("secret"), "s").unwrap();
    for how in ["quit", "stop"] {
        let port = free_address().port();
        let mut server = Running::start(&mut serve(&root, &pid, port));
        assert!(server.line().starts_with("serving "));
        assert!(ask(port, "GET", "/quote").unwrap().ends_with("\r\n\r\nwords\n"));
        for path in ["/../secret", "/nothing", "/quote/../../secret"] {
            assert!(ask(port, "GET", path).unwrap().starts_with("HTTP/1.1 404"), "{path}");
        }
        assert_eq!(run(&["demo", "web", "--pid-file", text(&pid), "-s", how]).code, Some(0));
        assert_eq!(eventually(|| server.child.try_wait().unwrap()).code(), Some(0));
    }
    std::fs::write(&pid, "-1\n").unwrap();
    let refused = run(&["demo", "web", "--pid-file", text(&pid), "-s", "stop"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("is no process id"), "{}", refused.stderr);
}

/// A pre-stop hook that says `-s quit` is followed by TERM before a busy machine lets the server see either.
#[test]
fn the_web_server_ends_gracefully_when_the_end_is_told_twice() {
    let directory = tempfile::tempdir().unwrap();
    let pid = directory.path().join("pid");
    for _ in 0..10 {
        let mut server = Running::start(&mut serve(directory.path(), &pid, free_address().port()));
        assert!(server.line().starts_with("serving "));
        for signal in [Signal::SIGSTOP, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGCONT] {
            kill(Pid::from_raw(server.child.id().cast_signed()), signal).unwrap();
        }
        assert!(server.line().starts_with("SIGQUIT: "));
        assert_eq!(eventually(|| server.child.try_wait().unwrap()).code(), Some(0));
    }
}

fn serve(root: &Path, pid: &Path, port: u16) -> std::process::Command {
    let mut command = barque();
    command.args(["demo", "web", "--port", &port.to_string(), "--root", text(root), "--pid-file", text(pid)]);
    command
}

#[test]
fn quotes_differ_and_warming_up_takes_its_time() {
    let quotes = [run(&["demo", "quote"]).stdout, run(&["demo", "quote"]).stdout];
    assert_ne!(quotes[0], quotes[1]);
    let warm = run(&["demo", "warm-up", "1"]);
    assert_eq!((warm.code, warm.stdout.lines().last()), (Some(0), Some("Warm")));
    let mut interrupted = Running::start(barque().args(["demo", "warm-up", "100"]));
    assert_eq!(interrupted.line(), "Warming up for 100 seconds");
    assert_eq!(interrupted.terminate(), Some(1));
}
