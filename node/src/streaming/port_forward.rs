//! `port-forward`: one connection to a port at the pod's own loopback address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use proto::node::PortForwardRequest;
use proto::node::stream_frame::Frame;
use runtime::net::netns::run_in_netns;
use tokio_util::sync::CancellationToken;

use super::pump::Ends;
use super::target::{self, StreamError};
use super::{Link, Sources};

/// A listener on a loopback answers at once, or its queue is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn serve(
    sources: &Sources,
    request: PortForwardRequest,
    link: &mut Link,
) -> Result<(), StreamError> {
    let netns = target::network(&sources.logs.roster, &request.pod_uid, &request.pod)?;
    let port = u16::try_from(request.port)
        .map_err(|_| StreamError::Connect(format!("{} is no port", request.port)))?;
    connect_in(netns, port, format!("{}/{}", request.namespace, request.pod), link).await
}

/// The same in a network namespace; `None`: the host's.
pub(super) async fn connect_in(
    netns: Option<PathBuf>,
    port: u16,
    pod: String,
    link: &mut Link,
) -> Result<(), StreamError> {
    let connecting = tokio::task::spawn_blocking(move || connect(netns, port, &pod));
    let connection = connecting.await.expect("connecting does not panic")?;
    connection.set_nonblocking(true)?;
    let connection = tokio::net::TcpStream::from_std(connection)?;
    connection.set_nodelay(true)?;
    link.send(Frame::Started(true)).await?;
    let (reader, writer) = connection.into_split();
    let ends =
        Ends { input: Some(Box::new(writer)), stdout: Some(Box::new(reader)), stderr: None, terminal: None };
    {
        let (up, down) = ends.carry(link, &CancellationToken::new());
        // The pod's side has said all: whatever else would come for it, nobody would be told of the answer.
        tokio::select! {
            read = up => read?,
            error = down => return Err(error),
        }
    }
    link.send(Frame::End(true)).await
}

fn connect(netns: Option<PathBuf>, port: u16, pod: &str) -> Result<TcpStream, StreamError> {
    let try_both = || {
        let dial =
            |address: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT_TIMEOUT);
        match dial(Ipv4Addr::LOCALHOST.into()) {
            Ok(connection) => Ok(connection),
            Err(first) => dial(Ipv6Addr::LOCALHOST.into()).map_err(|second| (first, second)),
        }
    };
    let connected = match netns {
        Some(path) => run_in_netns(&path, try_both)
            .map_err(|error| StreamError::Connect(format!("cannot enter the pod's network: {error}")))?,
        None => try_both(),
    };
    connected.map_err(|(first, second)| {
        StreamError::Connect(format!(
            "failed to connect to localhost:{port} inside the network of pod {pod}, \
             IPv4: dial tcp4 127.0.0.1:{port}: {}, IPv6: dial tcp6 [::1]:{port}: {}",
            words(&first),
            words(&second)
        ))
    })
}

fn words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => format!("connect: {error}"),
    }
}
