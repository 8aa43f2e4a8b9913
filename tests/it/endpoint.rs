//! `barque endpoint` in front of masters that are played by the test: TLS servers that answer `/readyz`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use control::pki::{self, Authority, ControlToken, MemberIdentity};
use rustls_pki_types::ServerName;

use crate::support::{Running, barque, eventually, free_address, text};

/// A master that knows two things: whether it is ready, and its name.
struct FakeMaster {
    address: SocketAddr,
    ready: Arc<AtomicBool>,
    dead: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl FakeMaster {
    fn start(authority: &Authority, name: &'static str, address: SocketAddr) -> Self {
        let identity = MemberIdentity { name: name.to_owned(), addresses: vec![] };
        let credentials = authority.issue_member(&identity, SystemTime::now()).unwrap();
        let config = Arc::new(pki::server_config(&credentials, authority).unwrap());
        // The port of a master that was killed just now may take a moment to be free.
        let listener = eventually(|| TcpListener::bind(address).ok());
        let master = Self {
            address: listener.local_addr().unwrap(),
            ready: Arc::new(AtomicBool::new(true)),
            dead: Arc::new(AtomicBool::new(false)),
            connections: Arc::default(),
        };
        let (ready, dead) = (Arc::clone(&master.ready), Arc::clone(&master.dead));
        let connections = Arc::clone(&master.connections);
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                if dead.load(Ordering::SeqCst) {
                    return;
                }
                connections.lock().unwrap().push(socket.try_clone().unwrap());
                let (config, ready) = (Arc::clone(&config), Arc::clone(&ready));
                std::thread::spawn(move || serve(socket, config, &ready, name));
            }
        });
        master
    }

    /// As when the process is killed: the port closes and so does every connection.
    fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        let _wakes_the_listener = TcpStream::connect(self.address);
        for connection in self.connections.lock().unwrap().drain(..) {
            let _closed = connection.shutdown(Shutdown::Both);
        }
    }
}

fn serve(
    mut socket: TcpStream,
    config: Arc<rustls::ServerConfig>,
    ready: &AtomicBool,
    name: &str,
) -> Option<()> {
    let mut connection = rustls::ServerConnection::new(config).ok()?;
    let mut stream = BufReader::new(rustls::Stream::new(&mut connection, &mut socket));
    loop {
        let mut request = String::new();
        stream.read_line(&mut request).ok().filter(|read| *read > 0)?;
        let mut header = String::new();
        while stream.read_line(&mut header).ok().filter(|read| *read > 0)? > 2 {
            header.clear();
        }
        let good = !request.contains("/readyz") || ready.load(Ordering::SeqCst);
        let status = if good { "200 OK" } else { "503 Service Unavailable" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{name}", name.len());
        stream.get_mut().write_all(answer.as_bytes()).ok()?;
        stream.get_mut().flush().ok()?;
    }
}

struct Lab {
    authority: Authority,
    _directory: tempfile::TempDir,
    listen: SocketAddr,
    endpoint: Running,
    masters: Vec<FakeMaster>,
}

fn lab(names: &[&'static str]) -> Lab {
    let authority = Authority::from_token(&ControlToken::generate(SystemTime::now()).unwrap()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let ca: PathBuf = directory.path().join("ca.crt");
    std::fs::write(&ca, authority.certificate_pem()).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let masters: Vec<FakeMaster> =
        names.iter().map(|name| FakeMaster::start(&authority, name, any)).collect();
    let listen = free_address();
    let mut command = barque();
    command.args(["--log-level", "off", "endpoint", "--listen", &listen.to_string(), "--ca", text(&ca)]);
    for master in &masters {
        command.args(["--master", &master.address.to_string()]);
    }
    let endpoint = Running::start(&mut command);
    eventually(|| TcpStream::connect(listen).ok());
    Lab { authority, _directory: directory, listen, endpoint, masters }
}

/// A client's connection through the endpoint.
struct Client {
    connection: rustls::ClientConnection,
    socket: TcpStream,
}

impl Client {
    fn connect(lab: &Lab) -> Option<Self> {
        let config = pki::client_config(lab.authority.certificate_pem(), None, &[pki::ALPN_HTTP1]).unwrap();
        let name = ServerName::try_from(pki::SERVER_NAME).unwrap();
        let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let socket = TcpStream::connect(lab.listen).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Some(Self { connection, socket })
    }

    /// Which master answers.
    fn ask(&mut self) -> Option<String> {
        let mut stream = BufReader::new(rustls::Stream::new(&mut self.connection, &mut self.socket));
        stream.get_mut().write_all(b"GET /who HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        String::from_utf8(body).ok()
    }
}

fn ask_once(lab: &Lab) -> Option<String> {
    Client::connect(lab)?.ask()
}

#[test]
fn connections_move_to_the_living_master_when_theirs_dies() {
    let lab = lab(&["one", "two"]);
    // Both take turns while both live.
    eventually(|| {
        let answers: Vec<_> = (0..4).filter_map(|_| ask_once(&lab)).collect();
        (answers.contains(&"one".to_owned()) && answers.contains(&"two".to_owned())).then_some(())
    });
    let mut open: Vec<Client> = (0..4).map(|_| Client::connect(&lab).unwrap()).collect();
    let homes: Vec<String> = open.iter_mut().map(|client| client.ask().unwrap()).collect();
    assert!(homes.contains(&"one".to_owned()), "{homes:?}");

    lab.masters[0].kill();
    let began = Instant::now();
    for (client, home) in open.iter_mut().zip(&homes) {
        match home.as_str() {
            "one" => assert_eq!(client.ask(), None, "its connection is cut"),
            _ => assert_eq!(client.ask().as_deref(), Some("two"), "the others go on"),
        }
    }
    for _ in 0..8 {
        assert_eq!(ask_once(&lab).as_deref(), Some("two"), "a new connection reaches the living one");
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn a_master_that_is_not_ready_gets_no_new_connections_and_loses_its_old_ones() {
    let lab = lab(&["one", "two"]);
    let mut held = eventually(|| {
        let mut client = Client::connect(&lab)?;
        (client.ask()? == "one").then_some(client)
    });
    lab.masters[0].ready.store(false, Ordering::SeqCst);
    eventually(|| (0..6).all(|_| ask_once(&lab).as_deref() == Some("two")).then_some(()));
    eventually(|| held.ask().is_none().then_some(()));
    lab.masters[0].ready.store(true, Ordering::SeqCst);
    eventually(|| (ask_once(&lab)? == "one").then_some(()));
}

#[test]
fn when_no_master_is_ready_one_is_asked_all_the_same() {
    let lab = lab(&["one"]);
    assert_eq!(eventually(|| ask_once(&lab)), "one");
    lab.masters[0].ready.store(false, Ordering::SeqCst);
    // The client then gets the master's own answer about what is wrong.
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(ask_once(&lab).as_deref(), Some("one"));
}

#[test]
fn a_master_that_comes_back_is_used_again() {
    let mut lab = lab(&["one"]);
    assert_eq!(eventually(|| ask_once(&lab)), "one");
    let address = lab.masters[0].address;
    lab.masters[0].kill();
    assert_eq!(ask_once(&lab), None, "nobody is there");
    lab.masters[0] = FakeMaster::start(&lab.authority, "again", address);
    assert_eq!(eventually(|| ask_once(&lab)), "again");
    assert_eq!(lab.endpoint.terminate(), Some(0));
}

#[test]
fn a_stranger_with_another_authority_is_never_used() {
    let lab = lab(&["one"]);
    let stranger = Authority::from_token(&ControlToken::generate(SystemTime::now()).unwrap()).unwrap();
    let address = lab.masters[0].address;
    assert_eq!(eventually(|| ask_once(&lab)), "one");
    lab.masters[0].kill();
    let _impostor = FakeMaster::start(&stranger, "impostor", address);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(ask_once(&lab), None, "the client itself refuses it too");
}
