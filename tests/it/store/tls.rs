//! TLS on both sides: strangers stay outside.

use std::path::Path;

use super::process::Place;
use crate::support::{Running, barque, certificates, eventually, run, text};

/// Lays the files of one name over those of another.
fn replace(directory: &Path, name: &str, by: &str) {
    for end in [".pem", ".key", "-ca.pem"] {
        let from = directory.join(format!("{by}{end}"));
        std::fs::copy(from, directory.join(format!("{name}{end}"))).unwrap();
    }
}

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

#[test]
fn certificates_that_are_replaced_hold_for_new_clients() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path(), "old");
    certificates(directory.path(), "new");
    replace(directory.path(), "own", "old");
    let file = |name: &str| text(&directory.path().join(name)).to_owned();
    let place = Place::new("a", directory.path());
    let client = format!("https://{}", place.client);
    let mut command = barque();
    command.args(["store", "--name", "a", "--data-dir", text(&place.data_dir)]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    let peer = format!("http://{}", place.peer);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("a={peer}"), "--client-cert-auth"]);
    command.args(["--cert-file", &file("own.pem"), "--key-file", &file("own.key")]);
    command.args(["--trusted-ca-file", &file("own-ca.pem")]);
    let log = std::fs::File::create(&place.log).unwrap();
    let _running = Running::start(command.stderr(log));

    let list = |name: &str| {
        let [ca, certificate, key] = ["-ca.pem", ".pem", ".key"].map(|end| file(&format!("{name}{end}")));
        let trust = ["--cacert", &ca, "--cert", &certificate, "--key", &key];
        run(&[&["member", "list", "--endpoints", &client], &trust[..]].concat()).code
    };
    eventually(|| (list("old") == Some(0)).then_some(()));
    assert_eq!(list("new"), Some(1));

    // Half of what is needed: as it is in the middle of a replacement.
    std::fs::write(directory.path().join("own.pem"), "not a certificate").unwrap();
    eventually(|| place.said().contains("the old ones stay").then_some(()));
    assert_eq!(list("old"), Some(0));

    replace(directory.path(), "own", "new");
    eventually(|| (list("new") == Some(0)).then_some(()));
    assert_eq!(list("old"), Some(1));
}

#[tokio::test]
async fn certificates_that_are_replaced_hold_between_members() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path(), "old");
    certificates(directory.path(), "new");
    replace(directory.path(), "own", "old");
    let file = |name: &str| text(&directory.path().join(name)).to_owned();
    let places = ["a", "b", "c"].map(|name| Place::new(name, directory.path()));
    let listed: Vec<_> =
        places.iter().map(|place| format!("{}=https://{}", place.name, place.peer)).collect();
    let start = |place: &Place| {
        let (client, peer) = (format!("http://{}", place.client), format!("https://{}", place.peer));
        let mut command = barque();
        command.args(["store", "--name", place.name, "--data-dir", text(&place.data_dir)]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &listed.join(",")]);
        command.args(["--peer-cert-file", &file("own.pem"), "--peer-key-file", &file("own.key")]);
        command.args(["--peer-trusted-ca-file", &file("own-ca.pem")]);
        let log = std::fs::File::create(&place.log).unwrap();
        Running::start(command.stderr(log))
    };
    let mut running: Vec<_> = places.iter().map(start).collect();
    places[0].put("k", "before").await;

    replace(directory.path(), "own", "new");
    for place in &places {
        // The port, and the calls to the others.
        let taken_up = || place.said().matches("use the new certificates").count() >= 2;
        eventually(|| taken_up().then_some(()));
    }
    // Each one in turn knows only the new authority, and the others must both call it and let it in.
    for (number, place) in places.iter().enumerate() {
        drop(running.remove(0));
        running.push(start(place));
        place.put("k", ["first", "second", "third"][number]).await;
        let found = place.get("k", 0).await.unwrap();
        assert_eq!(found.value.as_deref(), Some(["first", "second", "third"][number]));
    }
}
