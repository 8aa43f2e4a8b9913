//! The cluster's DNS, answered on every node out of the copy of Services that the node has anyway.
//!
//! ```text
//! pod ─► 10.96.0.10:53, an address of this host ─► zone (pure) ─┬─► answer
//!                                                               └─► forward (memory, other servers) ─► answer
//! ```
//! Owns the addresses of `clusterDNS` on the host's loopback link and the sockets at them. Promises an answer without any
//! master; a name of the cluster is failed, not denied, before a leader has told everything once. Questions and
//! connections at once are bounded; more are failed or closed.

mod forward;
mod wire;
mod zone;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::seq::SliceRandom as _;
use runtime::net::{Netlink, Prefix};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub(crate) use self::forward::Upstreams;
use self::forward::{Forwarder, PORT};
use self::wire::{Code, Question, Read, read};
use self::zone::{Answer, Zone};
use crate::Config;
use crate::network::cluster::ClusterNetwork;

/// Callers over TCP at once, and how long one may be silent.
const CONNECTIONS_MAX: usize = 256;
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Datagrams that wait for others' answers at once.
const WAITING_MAX: usize = 1024;
/// How often it is tried to take the addresses.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The link that has the addresses.
const LINK: &str = "lo";

/// Answers until cancelled. Does nothing without an address for it.
pub(crate) async fn run(config: Config, network: Arc<ClusterNetwork>, shutdown: CancellationToken) {
    let zone = Zone::new(&config.cluster_domain);
    let upstreams = Upstreams { all: upstreams(&config), stubs: config.dns_stub_domains.clone() };
    let responder = Arc::new(Responder { zone, network, forwarder: Forwarder::new(upstreams) });
    let serving = config.cluster_dns.iter().map(|address| keep_serving(*address, Arc::clone(&responder)));
    shutdown.run_until_cancelled(futures_util::future::join_all(serving)).await;
}

/// Those of the configuration, or of the host.
fn upstreams(config: &Config) -> Vec<IpAddr> {
    let listed = match config.dns_upstreams.is_empty() {
        false => config.dns_upstreams.clone(),
        true => host_servers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
    };
    // Never ourselves.
    listed.into_iter().filter(|address| !config.cluster_dns.contains(address)).collect()
}

fn host_servers(text: &str) -> Vec<IpAddr> {
    let words = text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    words
        .filter_map(|words| match words[..] {
            ["nameserver", address, ..] => address.parse().ok(),
            _ => None,
        })
        .collect()
}

async fn keep_serving(address: IpAddr, responder: Arc<Responder>) {
    let mut told = String::new();
    loop {
        let Err(error) = serve(address, &responder).await;
        let words = error.to_string();
        if words != told {
            tracing::error!(%address, error = %words, "names are not answered on this node; trying on");
            told = words;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

async fn serve(address: IpAddr, responder: &Arc<Responder>) -> io::Result<std::convert::Infallible> {
    tokio::task::spawn_blocking(move || take_address(address)).await.map_err(io::Error::other)??;
    let datagrams = Arc::new(UdpSocket::bind((address, PORT)).await?);
    let listener = TcpListener::bind((address, PORT)).await?;
    tracing::info!(%address, "answering for names");
    tokio::select! {
        end = serve_datagrams(datagrams, responder) => end,
        end = serve_connections(listener, responder) => end,
    }
}

fn take_address(address: IpAddr) -> io::Result<()> {
    let mut netlink = Netlink::open().map_err(io::Error::other)?;
    netlink.set_up(LINK).map_err(io::Error::other)?;
    if !netlink.addresses().map_err(io::Error::other)?.iter().any(|own| own.prefix.address() == address) {
        netlink.add_address(LINK, Prefix::host(address)).map_err(io::Error::other)?;
    }
    Ok(())
}

async fn serve_datagrams(
    socket: Arc<UdpSocket>,
    responder: &Arc<Responder>,
) -> io::Result<std::convert::Infallible> {
    let waiting = Arc::new(Semaphore::new(WAITING_MAX));
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let (length, caller) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // A caller that has gone: its host said so.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        let question = match read(&buffer[..length]) {
            Read::Question(question) => question,
            Read::Refused(refusal) => {
                let _gone = socket.send_to(&refusal, caller).await;
                continue;
            }
            Read::Noise => continue,
        };
        if let Some(answer) = responder.own_answer(&question) {
            send(&socket, caller, &question, answer).await;
            continue;
        }
        let Ok(place) = Arc::clone(&waiting).try_acquire_owned() else {
            send(&socket, caller, &question, question.failure(Code::Failed)).await;
            continue;
        };
        let (socket, responder) = (Arc::clone(&socket), Arc::clone(responder));
        tokio::spawn(async move {
            let answer = responder.others_answer(&question).await;
            send(&socket, caller, &question, answer).await;
            drop(place);
        });
    }
}

async fn send(socket: &UdpSocket, caller: SocketAddr, question: &Question, answer: Option<Vec<u8>>) {
    let fits = |bytes: &Vec<u8>| bytes.len() <= question.datagram_bytes_max();
    let Some(answer) = answer else { return };
    if let Some(bytes) = Some(answer).filter(fits).or_else(|| question.cut_off()) {
        let _gone = socket.send_to(&bytes, caller).await;
    }
}

async fn serve_connections(
    listener: TcpListener,
    responder: &Arc<Responder>,
) -> io::Result<std::convert::Infallible> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let (stream, _) = listener.accept().await?;
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let responder = Arc::clone(responder);
        tokio::spawn(async move {
            if let Err(error) = serve_connection(stream, &responder).await {
                tracing::debug!(%error, "a caller over TCP went away");
            }
            drop(place);
        });
    }
}

async fn serve_connection(mut stream: TcpStream, responder: &Responder) -> io::Result<()> {
    loop {
        let question = async {
            let length = stream.read_u16().await?;
            let mut bytes = vec![0; usize::from(length)];
            stream.read_exact(&mut bytes).await.map(|_| bytes)
        };
        let Ok(bytes) = tokio::time::timeout(SILENCE_MAX, question).await else { return Ok(()) };
        let answer = match read(&bytes?) {
            Read::Noise => return Ok(()),
            Read::Refused(refusal) => Some(refusal),
            Read::Question(question) => match responder.own_answer(&question) {
                Some(answer) => answer,
                None => responder.others_answer(&question).await,
            },
        };
        let Some(bytes) = answer else { return Ok(()) };
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &bytes].concat();
        let written = stream.write_all(&framed);
        tokio::time::timeout(SILENCE_MAX, written).await.map_err(io::Error::other)??;
    }
}

struct Responder {
    zone: Zone,
    network: Arc<ClusterNetwork>,
    forwarder: Forwarder,
}

impl Responder {
    /// What this node knows itself, as far as it can be written; `None`: others are to be asked.
    fn own_answer(&self, question: &Question) -> Option<Option<Vec<u8>>> {
        let found = self.zone.answer(&self.network, &question.name, question.asked);
        let domain = self.zone.domain();
        Some(match found {
            Answer::Elsewhere if self.forwarder.serves(&question.name) => return None,
            Answer::Elsewhere => question.failure(Code::NoName),
            Answer::Records(mut records, others) => {
                // Callers take the first one: each endpoint is to be it as often as the others.
                records.shuffle(&mut rand::rng());
                question.answer(&domain, Code::Good, (&records, &others))
            }
            // What is not known yet may well be there.
            _ if !self.network.is_told() => question.failure(Code::Failed),
            Answer::NoName => question.answer(&domain, Code::NoName, (&[], &[])),
            Answer::NoData => question.answer(&domain, Code::Good, (&[], &[])),
        })
    }

    async fn others_answer(&self, question: &Question) -> Option<Vec<u8>> {
        self.forwarder.ask(question).await.or_else(|| question.failure(Code::Failed))
    }
}

#[cfg(test)]
mod tests;
