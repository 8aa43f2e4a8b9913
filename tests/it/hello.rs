//! `barque hello`, the workload of the built-in image.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::{Running, barque};

#[test]
fn hello_answers_with_host_and_caller_logs_requests_and_ends_at_term() {
    let mut server = Running::start(barque().args(["hello", "--port", "0"]));
    assert_eq!(server.line(), "Hello server starting...");
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert_eq!(server.line(), format!("Local hostname is {host}"));
    let port = server.line().strip_prefix("Listening on port ").unwrap().parse::<u16>().unwrap();

    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /some/path HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    // Callers over IPv4 appear in IPv6 form where the host has IPv6.
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let caller = body.split("Your IP is ").nth(1).unwrap().trim_end().trim_end_matches('.');
    assert!(["127.0.0.1", "::ffff:127.0.0.1"].contains(&caller), "{caller}");
    assert_eq!(body, format!("Hey there, this is {host}. Your IP is {caller}.\n"));
    assert_eq!(server.line(), format!("Received request for /some/path from {caller}"));

    assert_eq!(server.terminate(), Some(0));
    assert_eq!(server.line(), "Received SIGTERM. Server shutting down...");
}

#[test]
fn hello_says_when_its_port_is_taken() {
    let taken = std::net::TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = crate::support::run(&["hello", "--port", &port]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains(&format!("port {port}")), "{}", ended.stderr);
}
