//! Names that are not the cluster's: asked of other servers, and remembered for a while.
//!
//! Owns the memory of answers, which is bounded in number and in time. An upstream that does not answer is passed over;
//! an answer that was cut off is asked for again over TCP.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::wire::{DATAGRAM_BYTES_MAX, Outcome, Question, outcome};

/// Where servers of names listen.
pub(super) const PORT: u16 = 53;
/// How long one server may take before the next one is asked.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Answers that are remembered at most, and for how long.
const REMEMBERED_MAX: usize = 10_000;
const REMEMBERED_FOR_MAX: Duration = Duration::from_secs(30);
/// How long it is remembered that there is nothing, where the answer does not say.
const NOTHING_FOR: Duration = Duration::from_secs(5);
/// Questions on their way at once; more are refused.
const QUESTIONS_MAX: usize = 1024;

/// Whom to ask.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Upstreams {
    /// For everything that is not named below.
    pub(crate) all: Vec<IpAddr>,
    /// By domain; the longest one counts.
    pub(crate) stubs: BTreeMap<String, Vec<SocketAddr>>,
}

impl Upstreams {
    /// Those that serve a name, in order.
    fn of(&self, name: &str) -> Vec<SocketAddr> {
        let name = name.to_lowercase();
        let serves = |domain: &str| {
            let domain = domain.trim_matches('.').to_lowercase();
            name == domain || name.ends_with(&format!(".{domain}"))
        };
        let stub = self.stubs.iter().filter(|(domain, _)| serves(domain));
        match stub.max_by_key(|(domain, _)| domain.len()) {
            Some((_, servers)) => servers.clone(),
            None => self.all.iter().map(|address| SocketAddr::new(*address, PORT)).collect(),
        }
    }
}

/// Which question, without its number and letters' case.
type Key = (String, u16);

#[derive(Debug)]
struct Remembered {
    answer: Vec<u8>,
    at: Instant,
    until: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Forwarder {
    upstreams: Upstreams,
    remembered: Mutex<HashMap<Key, Remembered>>,
    questions: Semaphore,
}

impl Forwarder {
    pub(super) fn new(upstreams: Upstreams) -> Self {
        Self { upstreams, remembered: Mutex::default(), questions: Semaphore::new(QUESTIONS_MAX) }
    }

    /// Whether anybody serves the name.
    pub(super) fn serves(&self, name: &str) -> bool {
        !self.upstreams.of(name).is_empty()
    }

    /// What others say, as it goes to the caller; `None`: nobody says anything.
    pub(super) async fn ask(&self, question: &Question) -> Option<Vec<u8>> {
        let key = (question.name.to_lowercase(), question.number);
        if let Some((known, age_s)) = self.recall(&key) {
            return question.passed_on(&known, age_s);
        }
        let _place = self.questions.try_acquire().ok()?;
        for server in self.upstreams.of(&question.name) {
            match tokio::time::timeout(ASK_TIMEOUT, ask_one(server, question)).await {
                Ok(Ok((answer, outcome))) if outcome.is_known => {
                    let passed_on = question.passed_on(&answer, 0);
                    self.remember(key, answer, outcome);
                    return passed_on;
                }
                Ok(Ok(_)) => tracing::debug!(%server, name = question.name, "the name server failed"),
                Ok(Err(error)) => tracing::debug!(%server, name = question.name, %error, "no answer"),
                Err(_) => tracing::debug!(%server, name = question.name, "no answer in time"),
            }
        }
        None
    }

    fn recall(&self, key: &Key) -> Option<(Vec<u8>, u32)> {
        let now = Instant::now();
        let remembered = self.lock();
        let known = remembered.get(key).filter(|known| known.until > now)?;
        let age_s = u32::try_from(now.duration_since(known.at).as_secs()).unwrap_or(u32::MAX);
        Some((known.answer.clone(), age_s))
    }

    fn remember(&self, key: Key, answer: Vec<u8>, outcome: Outcome) {
        let lifetime = outcome.ttl_s.map_or(NOTHING_FOR, |ttl| Duration::from_secs(u64::from(ttl)));
        let at = Instant::now();
        let until = at + lifetime.min(REMEMBERED_FOR_MAX);
        let mut remembered = self.lock();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, known| known.until > at);
        }
        if remembered.len() < REMEMBERED_MAX {
            remembered.insert(key, Remembered { answer, at, until });
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Remembered>> {
        self.remembered.lock().expect("no holder of the answers panics")
    }
}

async fn ask_one(server: SocketAddr, question: &Question) -> io::Result<(Vec<u8>, Outcome)> {
    let id = rand::random();
    let bytes = question.onward(id).ok_or_else(|| io::Error::other("the question cannot be written"))?;
    let own: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A socket of its own for each question: a port that nobody can guess, and answers from that server only.
    let socket = UdpSocket::bind((own, 0)).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; usize::from(DATAGRAM_BYTES_MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match outcome(&buffer[..length], id, question) {
            None => {}
            Some(found) if found.is_cut_off => {
                let answer = ask_whole(server, &bytes).await?;
                let found = outcome(&answer, id, question);
                let found = found.ok_or_else(|| io::Error::other("the answer is to another question"))?;
                return Ok((answer, found));
            }
            Some(found) => return Ok((buffer[..length].to_vec(), found)),
        }
    }
}

/// The same over TCP.
async fn ask_whole(server: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_domain_says_whom_to_ask() {
        let server = |text: &str| vec![text.parse::<SocketAddr>().unwrap()];
        let upstreams = Upstreams {
            all: vec!["9.9.9.9".parse().unwrap()],
            stubs: [
                ("corp".to_owned(), server("10.0.0.1:53")),
                ("lab.corp".to_owned(), server("10.0.0.2:5353")),
            ]
            .into(),
        };
        let of = |name: &str| upstreams.of(name);
        assert_eq!(of("a.b"), server("9.9.9.9:53"));
        assert_eq!(of("a.Corp"), server("10.0.0.1:53"));
        assert_eq!(of("a.lab.corp"), server("10.0.0.2:5353"));
        assert_eq!(of("notcorp"), server("9.9.9.9:53"));
    }
}
