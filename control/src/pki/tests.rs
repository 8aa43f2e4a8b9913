//! The parts together: derivation, tokens, requests, and real handshakes over a socket.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::ServerName;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn token() -> ControlToken {
    ControlToken::generate(SystemTime::now()).unwrap()
}

fn member() -> MemberIdentity {
    MemberIdentity { name: "master-1".to_owned(), addresses: vec![[10, 9, 0, 1].into()] }
}

#[test]
fn every_master_derives_the_same_authority_from_the_token() {
    let token = token();
    let first = Authority::from_token(&token).unwrap();
    let second = Authority::from_token(&token.to_secret_text().parse().unwrap()).unwrap();
    assert_eq!(first.certificate(), second.certificate());
    assert_eq!(first.cluster_id(), second.cluster_id());
    assert_eq!(first.cluster_id().len(), 16);
    let other = Authority::from_token(&super::tests::token()).unwrap();
    assert_ne!(first.certificate(), other.certificate());
}

#[test]
fn node_tokens_are_checked_without_memory_and_expire() {
    let token = token();
    let now = SystemTime::now();
    let issuer = Authority::from_token(&token).unwrap();
    let checker = Authority::from_token(&token).unwrap();
    let node_token: NodeToken = issuer.issue_node_token(HOUR, now).unwrap().to_secret_text().parse().unwrap();
    checker.verify_node_token(&node_token, now).unwrap();
    assert_eq!(node_token.ca_sha256(), checker.sha256());

    let late = checker.verify_node_token(&node_token, now + HOUR).unwrap_err();
    assert!(matches!(late, Error::NodeTokenExpired { .. }), "{late}");
    let stranger = Authority::from_token(&super::tests::token()).unwrap();
    assert!(matches!(stranger.verify_node_token(&node_token, now), Err(Error::NodeTokenForeign)));

    // A longer life, written by the bearer.
    let text = node_token.to_secret_text();
    let expires = node_token.expires_unix().to_string();
    let stretched: NodeToken = text.replace(&expires, "9999999999").parse().unwrap();
    assert!(matches!(checker.verify_node_token(&stretched, now), Err(Error::NodeTokenForeign)));
}

#[test]
fn a_node_request_yields_what_the_authority_decides_not_what_it_asks_for() {
    let authority = Authority::from_token(&token()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut wanted = rcgen::CertificateParams::new(vec!["barque-control".to_owned()]).unwrap();
    wanted.distinguished_name.push(rcgen::DnType::OrganizationName, GROUP_MASTERS);
    let csr = wanted.serialize_request(&key).unwrap().pem().unwrap();

    let pem = authority.sign_node_csr("worker-1", &csr, SystemTime::now()).unwrap();
    let credentials = Credentials {
        certificate_pem: pem,
        key_pem: key.serialize_pem(),
        ca_pem: authority.certificate_pem().to_owned(),
    };
    let seen = handshake(&authority, &credentials, SERVER_NAME).unwrap().unwrap();
    assert_eq!(seen.node_name(), Some("worker-1"));
    assert_eq!(seen.groups, [GROUP_NODES]);

    let damaged = csr.replace('A', "B");
    assert!(matches!(
        authority.sign_node_csr("worker-1", &damaged, SystemTime::now()),
        Err(Error::RequestInvalid { .. })
    ));
    let error = authority.sign_node_csr("Worker 1", &csr, SystemTime::now()).unwrap_err().to_string();
    assert!(error.contains("only a-z"), "{error}");
}

#[test]
fn members_are_reached_by_name_and_by_every_address() {
    let authority = Authority::from_token(&token()).unwrap();
    let admin = authority.issue_admin("admin", SystemTime::now()).unwrap();
    for name in ["barque-control", "localhost", "kubernetes.default.svc", "127.0.0.1", "::1", "10.9.0.1"] {
        let seen = handshake(&authority, &admin, name).unwrap().unwrap();
        assert_eq!(seen, Identity { user: "admin".to_owned(), groups: vec![GROUP_MASTERS.to_owned()] });
    }
    let refused = handshake(&authority, &admin, "10.9.0.2").unwrap_err();
    assert!(refused.contains("certificate not valid for name"), "{refused}");
}

#[test]
fn strangers_are_refused_and_the_nameless_stay_anonymous() {
    let authority = Authority::from_token(&token()).unwrap();
    let stranger = Authority::from_token(&token()).unwrap();
    let mut intruder = stranger.issue_admin("admin", SystemTime::now()).unwrap();
    intruder.ca_pem = authority.certificate_pem().to_owned();
    assert!(handshake(&authority, &intruder, SERVER_NAME).is_err(), "a foreign client certificate");
    let own = stranger.issue_admin("admin", SystemTime::now()).unwrap();
    assert!(handshake(&authority, &own, SERVER_NAME).is_err(), "a foreign server certificate");

    let nameless = Credentials {
        certificate_pem: String::new(),
        key_pem: String::new(),
        ca_pem: authority.certificate_pem().to_owned(),
    };
    assert_eq!(handshake(&authority, &nameless, SERVER_NAME).unwrap(), None);
    // A node's certificate is no server certificate.
    let node = authority.issue_admin("admin", SystemTime::now()).unwrap();
    let error = connect(&server_config(&node, &authority).unwrap(), &nameless, SERVER_NAME).unwrap_err();
    assert!(error.contains("certificate"), "{error}");
}

/// What the server saw of the client, or the first failure of either side.
fn handshake(authority: &Authority, client: &Credentials, name: &str) -> Result<Option<Identity>, String> {
    let server = authority.issue_member(&member(), SystemTime::now()).unwrap();
    connect(&server_config(&server, authority).unwrap(), client, name)
}

fn connect(
    server: &rustls::ServerConfig,
    client: &Credentials,
    name: &str,
) -> Result<Option<Identity>, String> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Arc::new(server.clone());
    let serving = std::thread::spawn(move || -> Result<Option<Identity>, String> {
        let (mut socket, _) = listener.accept().map_err(|error| error.to_string())?;
        let mut connection = rustls::ServerConnection::new(server).map_err(|error| error.to_string())?;
        let mut stream = rustls::Stream::new(&mut connection, &mut socket);
        let mut byte = [0];
        stream.read_exact(&mut byte).map_err(|error| error.to_string())?;
        stream.write_all(&byte).map_err(|error| error.to_string())?;
        assert_eq!(connection.alpn_protocol(), Some(ALPN_H2));
        let peer = connection.peer_certificates().and_then(|chain| chain.first());
        Ok(peer.map(|certificate| Identity::from_verified(certificate).unwrap()))
    });
    let own = (!client.certificate_pem.is_empty()).then_some(client);
    let config = client_config(&client.ca_pem, own, &[ALPN_H2]).unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    let mut byte = [7];
    let outcome = stream.write_all(&byte).and_then(|()| stream.read_exact(&mut byte));
    drop(socket);
    let served = serving.join().unwrap();
    outcome.map_err(|error| error.to_string())?;
    served
}
