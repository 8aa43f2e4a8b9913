//! The streaming server: Exec, Attach and PortForward answer with an address that holds a token, and a client
//! comes here with it, over SPDY or WebSocket.
//!
//! ```text
//! Exec ──► ticket ──► http://127.0.0.1:<port>/exec/<token> ──► upgrade ──► shim of the container
//! ```
//! Promises: a token is good once and for a minute; who has none is told nothing. Does not: TLS; the address is
//! a loopback one, and kubelets carry the stream on to their own clients.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use streams::upgrade::Asked;
use streams::{
    NodeStream, PodStreams, StreamEnds, StreamFuture, StreamRequest, StreamTarget, port_forward,
    remote_command,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::pods::containers::ContainerRuntime;
use crate::streaming::local;

/// How long a token is good.
const TICKET_TIME_MAX: Duration = Duration::from_secs(60);
/// Tokens that nobody has used yet.
const TICKETS_MAX: usize = 1024;
/// How long a client may take to say what it wants.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The wait after a connection could not be taken.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What a token is good for.
#[derive(Debug, Clone)]
pub(super) enum Ticket {
    Exec { id: String, command: Vec<String>, ends: StreamEnds },
    Attach { id: String, ends: StreamEnds },
    PortForward { sandbox: String, netns: Option<PathBuf> },
}

impl Ticket {
    fn word(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// See the module.
pub(super) struct Streams {
    containers: Arc<dyn ContainerRuntime>,
    /// `http://127.0.0.1:port`.
    base: String,
    tickets: Mutex<HashMap<String, (Ticket, Instant)>>,
}

type Body = Full<Bytes>;

impl Streams {
    pub(super) fn new(containers: Arc<dyn ContainerRuntime>, address: std::net::SocketAddr) -> Self {
        Self { containers, base: format!("http://{address}"), tickets: Mutex::default() }
    }

    /// An address for it.
    pub(super) fn ticket(&self, ticket: Ticket) -> Result<String, Status> {
        let token = hex::encode(rand::random::<[u8; 16]>());
        let url = format!("{}/{}/{token}", self.base, ticket.word());
        let mut tickets = self.tickets.lock().expect("no holder of the tickets panics");
        tickets.retain(|_, (_, at)| at.elapsed() < TICKET_TIME_MAX);
        if tickets.len() >= TICKETS_MAX {
            return Err(Status::resource_exhausted(
                "too many streams were asked for and not opened; try again later",
            ));
        }
        tickets.insert(token, (ticket, Instant::now()));
        Ok(url)
    }

    fn take(&self, path: &str) -> Option<Ticket> {
        let (word, token) = path.strip_prefix('/')?.split_once('/')?;
        let (ticket, at) = self.tickets.lock().expect("no holder of the tickets panics").remove(token)?;
        (ticket.word() == word && at.elapsed() < TICKET_TIME_MAX).then_some(ticket)
    }

    /// Serves connections until the server stops.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((connection, _)) => {
                    tokio::spawn(Arc::clone(&self).connection(connection, shutdown.clone()));
                }
                Err(error) => {
                    tracing::debug!(%error, "a stream's connection could not be taken");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, connection: TcpStream, shutdown: CancellationToken) {
        let _unset = connection.set_nodelay(true);
        let stop = shutdown.clone();
        let service = service_fn(move |request| {
            let (streams, stop) = (Arc::clone(&self), stop.clone());
            async move { Ok::<_, std::convert::Infallible>(streams.answer(request, stop).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(connection), service)
            .with_upgrades();
        tokio::select! {
            served = served => {
                if let Err(error) = served {
                    tracing::debug!(%error, "a stream's connection broke");
                }
            }
            () = shutdown.cancelled() => {}
        }
    }

    async fn answer(&self, mut request: Request<Incoming>, stop: CancellationToken) -> Response<Body> {
        let Some(ticket) = self.take(request.uri().path()) else {
            return refusal(
                StatusCode::NOT_FOUND,
                "there is no such stream: a token is good once, for a minute",
            );
        };
        let asked = Asked::of(request.headers());
        let upgrade = hyper::upgrade::on(&mut request);
        let (node, ends) = match ticket {
            Ticket::PortForward { sandbox, netns } => {
                let (answer, transport) = match asked.port_forward() {
                    Ok(agreed) => agreed,
                    Err(status) => return refusal(StatusCode::BAD_REQUEST, status.message()),
                };
                let target = StreamTarget { pod: sandbox, ..StreamTarget::default() };
                let session = port_forward::Session { streams: Arc::new(Connections { netns }), target };
                tokio::spawn(async move {
                    tokio::select! {
                        () = port_forward::serve(upgrade, transport, session) => {}
                        () = stop.cancelled() => {}
                    }
                });
                return answer.map(|()| Body::default());
            }
            Ticket::Exec { id, command, ends } => {
                (local::exec(Arc::clone(&self.containers), id, command, ends), ends)
            }
            Ticket::Attach { id, ends } => (local::attach(Arc::clone(&self.containers), id, ends), ends),
        };
        let (answer, protocol) = match asked.remote_command() {
            Ok(agreed) => agreed,
            Err(status) => return refusal(StatusCode::BAD_REQUEST, status.message()),
        };
        let mut node: NodeStream = node;
        if let Err(failure) = node.started().await {
            return refusal(StatusCode::INTERNAL_SERVER_ERROR, &failure.message);
        }
        tokio::spawn(async move {
            tokio::select! {
                () = remote_command::serve(upgrade, protocol, ends, node) => {}
                () = stop.cancelled() => {}
            }
        });
        answer.map(|()| Body::default())
    }
}

/// Connections into one sandbox's network.
struct Connections {
    netns: Option<PathBuf>,
}

impl PodStreams for Connections {
    fn open(&self, request: StreamRequest) -> StreamFuture<'_> {
        Box::pin(async move {
            match request {
                StreamRequest::PortForward { target, port } => {
                    Ok(local::port_forward(self.netns.clone(), port, target.pod))
                }
                _ => Err(api::Status::bad_request("only connections are made here")),
            }
        })
    }
}

fn refusal(code: StatusCode, message: &str) -> Response<Body> {
    let mut answer = Response::new(Body::from(format!("{message}\n")));
    *answer.status_mut() = code;
    answer
}
