//! Connections to registries through an HTTP proxy: a tunnel (`CONNECT`) where TLS goes through it, the whole address
//! in each request where none does. Who is reached past the proxy is decided here, as Go's programs decide it.
//!
//! Does not: speak TLS to the proxy itself; its address is `http://`.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::uri::{Scheme, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tower::Service;

use super::super::ProxyConfig;

/// The longest answer of a proxy that is read.
const ANSWER_BYTES_MAX: usize = 8 << 10;
/// How long a proxy may take to reach the other side.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(20);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Makes connections, directly or through the proxy that the configuration names.
#[derive(Clone)]
pub(super) struct Dialler {
    pub(super) direct: HttpConnector,
    pub(super) proxies: Arc<ProxyConfig>,
}

/// A connection, and whether its other end is a proxy that reads requests.
pub(super) struct Wire {
    stream: TokioIo<TcpStream>,
    is_proxied: bool,
}

impl Service<Uri> for Dialler {
    type Response = Wire;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Wire, Failure>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let proxy = self.proxies.of(&uri);
        let dialled = self.direct.call(proxy.clone().unwrap_or_else(|| uri.clone()));
        Box::pin(async move {
            let Some(proxy) = proxy else {
                return Ok(Wire { stream: dialled.await?, is_proxied: false });
            };
            let named = |problem: String| format!("the proxy {}: {problem}", host_of(&proxy));
            let stream = dialled.await.map_err(|error| named(error.to_string()))?;
            if uri.scheme() != Some(&Scheme::HTTPS) {
                return Ok(Wire { stream, is_proxied: true });
            }
            let tunnel =
                tokio::time::timeout(TUNNEL_TIMEOUT, tunnel(stream.into_inner(), &uri, &proxy)).await;
            let tunnel = tunnel.unwrap_or_else(|_| Err("it does not answer".to_owned()));
            Ok(Wire { stream: TokioIo::new(tunnel.map_err(named)?), is_proxied: false })
        })
    }
}

/// Asks the proxy for a way to the address.
async fn tunnel(mut stream: TcpStream, uri: &Uri, proxy: &Uri) -> Result<TcpStream, String> {
    let address = format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(443));
    let authorization = credentials(proxy)
        .map(|credentials| format!("Proxy-Authorization: {credentials}\r\n"))
        .unwrap_or_default();
    let request = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n{authorization}\r\n");
    let broken = |error: io::Error| error.to_string();
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    let mut answer = Vec::new();
    // Nobody behind it speaks before we do: there is nothing past the answer's end.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() > ANSWER_BYTES_MAX || stream.read_buf(&mut answer).await.map_err(broken)? == 0 {
            return Err("its answer is none of HTTP".to_owned());
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let line = answer.lines().next().unwrap_or_default();
    match line.split(' ').nth(1) {
        Some("200") => Ok(stream),
        _ => Err(format!("it answered {line:?}")),
    }
}

/// What an address says of who asks.
pub(super) fn credentials(proxy: &Uri) -> Option<String> {
    let (user, _) = proxy.authority()?.as_str().rsplit_once('@')?;
    let user = percent_encoding::percent_decode_str(user).decode_utf8_lossy();
    Some(format!("Basic {}", STANDARD.encode(user.as_bytes())))
}

/// The address without who asks.
fn host_of(proxy: &Uri) -> String {
    format!("{}:{}", proxy.host().unwrap_or_default(), proxy.port_u16().unwrap_or(80))
}

impl ProxyConfig {
    /// The proxy that leads to an address; `None`: it is reached directly.
    pub(super) fn of(&self, uri: &Uri) -> Option<Uri> {
        let is_tls = uri.scheme() == Some(&Scheme::HTTPS);
        let proxy = if is_tls { &self.https_proxy } else { &self.http_proxy };
        let proxy = Some(proxy).filter(|proxy| !proxy.is_empty())?.parse().ok()?;
        let host = uri.host()?.trim_matches(['[', ']']).to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        (!self.is_exempt(&host, port)).then_some(proxy)
    }

    fn is_exempt(&self, host: &str, port: u16) -> bool {
        let ip: Option<IpAddr> = host.parse().ok();
        // This machine's own addresses are never somebody else's to reach.
        if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
            return true;
        }
        self.no_proxy.split(',').map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
            if entry == "*" {
                return true;
            }
            if let (Some(ip), Ok(range)) = (ip, entry.parse::<runtime::net::Prefix>()) {
                return range.contains(ip);
            }
            let (name, wanted) = match entry.rsplit_once(':').map(|(name, port)| (name, port.parse())) {
                Some((name, Ok(wanted))) => (name, Some(wanted)),
                _ => (entry, None),
            };
            if wanted.is_some_and(|wanted: u16| wanted != port) {
                return false;
            }
            let name = name.trim_start_matches('*').to_ascii_lowercase();
            // A domain stands for itself and what is below it, one with a dot before it for the latter only.
            match name.strip_prefix('.') {
                Some(_) => host.ends_with(&name),
                None => host == name || host.ends_with(&format!(".{name}")),
            }
        })
    }
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.is_proxied)
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_reached_past_the_proxy() {
        let proxies = ProxyConfig {
            https_proxy: "http://proxy.lab:3128".to_owned(),
            http_proxy: String::new(),
            no_proxy: "registry.lab, .inner.lab,10.0.0.0/8,192.168.1.1,other.lab:5000".to_owned(),
        };
        let through = |text: &str| proxies.of(&text.parse().unwrap()).is_some();
        for uri in [
            "https://docker.io/v2/",
            "https://inner.lab/",
            "https://other.lab/",
            "https://other.lab:5001/",
            "https://11.0.0.1/",
            "https://notregistry.lab/",
        ] {
            assert!(through(uri), "{uri}");
        }
        for uri in [
            "https://registry.lab/",
            "https://A.registry.lab:5000/",
            "https://x.inner.lab/",
            "https://10.1.2.3/",
            "https://192.168.1.1/",
            "https://other.lab:5000/",
            "https://localhost/",
            "https://127.0.0.1:5000/",
            "https://[::1]/",
            "http://docker.io/",
        ] {
            assert!(!through(uri), "{uri}");
        }
        let nobody = ProxyConfig { no_proxy: "*".to_owned(), ..proxies.clone() };
        assert!(nobody.of(&"https://docker.io/".parse().unwrap()).is_none());
    }

    #[test]
    fn who_asks_is_told_to_the_proxy() {
        let proxy: Uri = "http://robot:open%20sesame@proxy.lab:3128".parse().unwrap();
        assert_eq!(credentials(&proxy), Some(format!("Basic {}", STANDARD.encode("robot:open sesame"))));
        assert_eq!(host_of(&proxy), "proxy.lab:3128");
    }
}
