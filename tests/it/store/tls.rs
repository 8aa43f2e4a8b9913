//! TLS on both sides: strangers stay outside.

use super::process::Place;
use crate::support::{Running, barque, certificates, eventually, run, text};

#[test]
fn nobody_gets_in_without_a_certificate_of_the_authority() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path(), "own");
    certificates(directory.path(), "stranger");
    let file = |name: &str| text(&directory.path().join(name)).to_owned();
    let place = Place::new("a", directory.path());
    let (client, peer) = (format!("https://{}", place.client), format!("https://{}", place.peer));
    let mut command = barque();
    command.args(["store", "--name", "a", "--data-dir", text(&place.data_dir)]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("a={peer}"), "--client-cert-auth"]);
    for (flag, name) in [("cert-file", "own.pem"), ("key-file", "own.key"), ("trusted-ca-file", "own-ca.pem")]
    {
        command.args([format!("--{flag}"), file(name), format!("--peer-{flag}"), file(name)]);
    }
    let log = std::fs::File::create(directory.path().join("log")).unwrap();
    let _running = Running::start(command.stderr(log));

    let (ca, endpoint) = (file("own-ca.pem"), client.as_str());
    let list =
        |more: &[&str]| run(&[&["member", "list", "--endpoints", endpoint, "--cacert", &ca], more].concat());
    let (own, own_key) = (file("own.pem"), file("own.key"));
    eventually(|| (list(&["--cert", &own, "--key", &own_key]).code == Some(0)).then_some(()));
    assert_eq!(list(&[]).code, Some(1));
    let (stranger, stranger_key) = (file("stranger.pem"), file("stranger.key"));
    assert_eq!(list(&["--cert", &stranger, "--key", &stranger_key]).code, Some(1));
    // The port of the members does not even let a stranger finish its handshake.
    let at_peers = |certificate: &str, key: &str| {
        let ended = run(&[
            "member",
            "list",
            "--endpoints",
            &peer,
            "--cacert",
            &ca,
            "--cert",
            certificate,
            "--key",
            key,
        ]);
        assert_eq!(ended.code, Some(1));
        ended.stderr
    };
    assert!(
        at_peers(&own, &own_key).contains("not served") || at_peers(&own, &own_key).contains("mplemented")
    );
    let refused = at_peers(&stranger, &stranger_key);
    assert!(!refused.contains("mplemented"), "{refused}");
}
