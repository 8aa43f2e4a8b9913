//! `port-forward`: one connection to a port at the pod's own loopback address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt as _;
use proto::node::PortForwardRequest;
use proto::node::stream_frame::Frame;
use runtime::net::netns::run_in_netns;
use streams::{ClientFrame, NodeFrame, NodeStream};
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
    if let Some(connecting) = sources.runtime.connect(&request.pod_uid, port) {
        let connection = connecting.await.map_err(StreamError::Connect)?;
        return carry(connection, link).await;
    }
    connect_in(netns, port, format!("{}/{}", request.namespace, request.pod), link).await
}

/// Carries a connection that the container runtime has made.
async fn carry(connection: NodeStream, link: &mut Link) -> Result<(), StreamError> {
    let NodeStream { incoming: mut from_pod, outgoing: to_pod } = connection;
    link.send(Frame::Started(true)).await?;
    let Link { out, incoming } = link;
    let down = async {
        while let Some(Ok(frame)) = incoming.next().await {
            let said = match frame.frame {
                Some(Frame::Stdin(bytes)) => ClientFrame::Stdin(bytes),
                Some(Frame::StdinEnd(_)) => ClientFrame::StdinEnd,
                _ => continue,
            };
            // One that has ended takes no more; its end comes by the other way.
            let _ended = to_pod.send(said).await;
        }
    };
    let up = async {
        loop {
            let frame = match from_pod.recv().await {
                Some(Ok(NodeFrame::Stdout(bytes))) => Frame::Stdout(bytes),
                Some(Ok(NodeFrame::End)) | None => Frame::End(true),
                Some(Ok(_)) => continue,
                Some(Err(failure)) => return Err(StreamError::Connect(failure.message)),
            };
            let last = matches!(frame, Frame::End(_));
            out.send(super::frame(frame)).await.map_err(|_| StreamError::HungUp)?;
            if last {
                return Ok(());
            }
        }
    };
    tokio::select! {
        () = down => Err(StreamError::HungUp),
        done = up => done,
    }
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
