//! Registries behind an HTTP proxy: names that only the proxy knows.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use node::images::{ProxyConfig, RegistryConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::Test;
use crate::host::run;
use crate::pulls::Lab;
use crate::registry::{Registry, file};

pub(crate) const TESTS: &[Test] = &[
    ("proxy::tls_goes_through_a_tunnel", || run(tls_goes_through_a_tunnel())),
    ("proxy::plain_requests_name_their_registry", || run(plain_requests_name_their_registry())),
    ("proxy::what_a_proxy_refuses_is_told", || run(what_a_proxy_refuses_is_told())),
];

/// `robot:open sesame`.
const CREDENTIALS: &str = "Basic cm9ib3Q6b3BlbiBzZXNhbWU=";

/// A proxy that leads whoever may ask to one registry, whatever its name.
struct Proxy {
    address: SocketAddr,
    /// The first lines of what it was asked.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start(registry: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self { address: listener.local_addr().unwrap(), asked: Arc::default() };
        let asked = Arc::clone(&proxy.asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, registry, Arc::clone(&asked)));
            }
        });
        proxy
    }

    fn url(&self) -> String {
        format!("http://robot:open%20sesame@{}", self.address)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(mut client: TcpStream, registry: SocketAddr, asked: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if client.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let first = text.lines().next().unwrap().to_owned();
    let may = text.lines().any(|line| {
        let (name, value) = line.split_once(": ").unwrap_or_default();
        name.eq_ignore_ascii_case("proxy-authorization") && value == CREDENTIALS
    });
    asked.lock().unwrap().push(first.clone());
    if !may {
        let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
        drop(client.write_all(answer).await);
        return;
    }
    let mut server = TcpStream::connect(registry).await.unwrap();
    match first.starts_with("CONNECT ") {
        true => client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap(),
        false => server.write_all(&head).await.unwrap(),
    }
    // Either may hang up.
    drop(copy_bidirectional(&mut client, &mut server).await);
}

async fn tls_goes_through_a_tunnel() {
    let (registry, ca) = Registry::start_tls().await;
    registry.put_program("work:1", "1");
    let proxy = Proxy::start(registry.address).await;
    let mut lab = Lab::new();
    let trusted =
        RegistryConfig { ca_file: Some(file(lab.dir.path(), "ca.pem", &ca)), ..RegistryConfig::default() };
    lab.config.registries = [("registry.lab:5000".to_owned(), trusted)].into();
    lab.config.proxy = ProxyConfig { https_proxy: proxy.url(), ..ProxyConfig::default() };
    lab.pull("registry.lab:5000/work:1").await.unwrap();
    assert!(lab.has("registry.lab:5000/work:1"));
    let asked = proxy.asked();
    assert!(
        !asked.is_empty() && asked.iter().all(|line| line == "CONNECT registry.lab:5000 HTTP/1.1"),
        "{asked:?}"
    );
}

async fn plain_requests_name_their_registry() {
    let registry = Registry::start().await;
    registry.put_program("work:1", "1");
    let proxy = Proxy::start(registry.address).await;
    let mut lab = Lab::new();
    let plain = RegistryConfig { insecure: Some(true), ..RegistryConfig::default() };
    lab.config.registries = [("registry.lab:5000".to_owned(), plain)].into();
    lab.config.proxy = ProxyConfig { http_proxy: proxy.url(), ..ProxyConfig::default() };
    lab.pull("registry.lab:5000/work:1").await.unwrap();
    let asked = proxy.asked();
    let named = |line: &String| line.contains(" http://registry.lab:5000/v2/");
    assert!(!asked.is_empty() && asked.iter().all(named), "{asked:?}");
    // This machine's own registry is nobody's to lead to.
    lab.pull(&registry.name("work:1")).await.unwrap();
    assert_eq!(proxy.asked(), asked);
}

async fn what_a_proxy_refuses_is_told() {
    let registry = Registry::start().await;
    let proxy = Proxy::start(registry.address).await;
    let mut lab = Lab::new();
    lab.config.proxy.https_proxy = format!("http://{}", proxy.address);
    let error = lab.pull("registry.lab/work:1").await.unwrap_err();
    assert!(error.contains("407 Proxy Authentication Required"), "{error}");
    lab.config.proxy.no_proxy = "registry.lab".to_owned();
    let before = proxy.asked().len();
    let error = lab.pull("registry.lab/work:1").await.unwrap_err();
    assert!(!error.contains("proxy"), "{error}");
    assert_eq!(proxy.asked().len(), before, "it is reached directly, or not at all");
}
