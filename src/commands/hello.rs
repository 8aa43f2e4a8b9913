//! `barque hello`: the workload of the built-in image `barque/hello:1.0`.
//!
//! An HTTP server that answers with its host name and the caller's address and logs each request to standard
//! output. It is made to be process 1 of a container: process 1 gets no default action for signals, so TERM
//! and INT are handled, and end it at once.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::cli::HelloArgs;
use crate::signals::Signals;

/// Pause after a failed accept (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until TERM or INT.
pub(crate) fn run(args: &HelloArgs) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?
        .block_on(serve(args.port))
}

async fn serve(port: u16) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let host = nix::unistd::gethostname().context("cannot read the host name")?;
    let host = host.to_string_lossy().into_owned();
    print_line(format_args!("Hello server starting..."));
    let listener = listen(port).await?;
    print_line(format_args!("Local hostname is {host}"));
    print_line(format_args!("Listening on port {}", listener.local_addr()?.port()));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    tokio::spawn(answer(stream, peer, host.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            _ = signals.next() => return Ok(()),
        }
    }
}

/// Both families where the kernel has IPv6 (callers over IPv4 then appear as `::ffff:a.b.c.d`), else IPv4.
async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let both = SocketAddr::from((IpAddr::from(Ipv6Addr::UNSPECIFIED), port));
    match TcpListener::bind(both).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(error),
        Err(_) => TcpListener::bind(SocketAddr::from((IpAddr::from(Ipv4Addr::UNSPECIFIED), port))).await,
    }
    .with_context(|| format!("cannot listen on port {port}; choose another with --port"))
}

async fn answer(stream: tokio::net::TcpStream, peer: SocketAddr, host: String) {
    let caller = peer.ip();
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        print_line(format_args!("Received request for {} from {caller}", request.uri()));
        let body = format!("Hey there, this is {host}. Your IP is {caller}.\n");
        async move { Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(body)))) }
    });
    // A caller that breaks off is no event here.
    let _outcome =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Standard output may be closed by whoever reads the log; the server goes on.
fn print_line(line: std::fmt::Arguments<'_>) {
    let _closed = writeln!(std::io::stdout(), "{line}");
}
