//! Every directed link between members, and from clients to members, as something that can fail.
//!
//! Each member is reached through ports of ours, one for the other members and one for clients; who dials is found
//! out by module `owner`. A connection has two pumps, one a direction; each obeys the state of its link *from → to* at every
//! piece of data. So a link can be cut one way only, whoever dialled.
//!
//! What a cut does is what a network that loses packets does to TCP: nothing arrives, no end is told, and what was under way
//! arrives after healing. Opening a connection is answered by us, so it succeeds even then, and is silent. Loss, duplication
//! and reordering of packets show to TCP's users as stalls only, so they are one fault here. No packet filter, no network namespace
//! and no privilege is needed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rand::Rng as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::owner;

/// The number that stands for all clients.
pub const CLIENTS: usize = usize::MAX;
/// Bytes read at a time.
const PIECE_BYTES: usize = 16 * 1024;
/// Pieces under way on one direction of one connection.
const PIECES_MAX: usize = 64;
/// How long a lost packet holds up a connection: TCP's shortest wait before it sends again.
const STALL: Duration = Duration::from_millis(200);
/// Between two attempts to find out who dialled.
const OWNER_PAUSE: Duration = Duration::from_millis(2);
/// How often that is tried.
const OWNER_ATTEMPTS: usize = 5;

/// What one direction of a link does.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LinkState {
    /// Nothing arrives.
    pub cut: bool,
    /// Everything arrives later by this…
    pub delay: Duration,
    /// …and by something between nothing and this.
    pub jitter: Duration,
    /// How likely a piece of data is held up as if a packet had been lost.
    pub stall_probability: f64,
    /// At most so many bytes a second.
    pub bytes_per_second: Option<u64>,
    /// The end of a connection is not passed on: the other side goes on waiting.
    pub half_open: bool,
}

struct Link {
    state: watch::Sender<LinkState>,
    /// Counts resets; a connection ends when it changes.
    resets: watch::Sender<u64>,
    bytes: AtomicU64,
    held: AtomicU64,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            state: watch::Sender::new(LinkState::default()),
            resets: watch::Sender::new(0),
            bytes: AtomicU64::new(0),
            held: AtomicU64::new(0),
        }
    }
}

type Table = Arc<Mutex<HashMap<(usize, usize), Arc<Link>>>>;

/// All links of a group. Clones are the same links; dropping the last one ends every connection.
#[derive(Clone)]
pub struct Links {
    table: Table,
    /// Processes by member; zero: none.
    pids: Arc<Vec<AtomicI32>>,
    stop: CancellationToken,
    _guard: Arc<DropGuard>,
}

impl Links {
    /// The links of so many members, all whole.
    pub fn new(members: usize) -> Self {
        let stop = CancellationToken::new();
        let pids = Arc::new((0..members).map(|_| AtomicI32::new(0)).collect());
        Self { table: Table::default(), pids, _guard: Arc::new(stop.clone().drop_guard()), stop }
    }

    /// Says which process a member is now.
    pub fn set_pid(&self, member: usize, pid: Option<i32>) {
        self.pids[member].store(pid.unwrap_or(0), Ordering::Relaxed);
    }

    /// Opens a port that leads to `target`, which belongs to `member`: for members, or for clients.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn open(
        &self,
        member: usize,
        target: SocketAddr,
        for_clients: bool,
    ) -> anyhow::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port on 127.0.0.1")?;
        let address = listener.local_addr()?;
        let door = Door {
            member,
            target,
            for_clients,
            table: Arc::clone(&self.table),
            pids: Arc::clone(&self.pids),
            stop: self.stop.clone(),
        };
        tokio::spawn(door.serve(listener));
        Ok(address)
    }

    /// Changes one direction.
    pub fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut LinkState)) {
        link(&self.table, from, to).state.send_modify(change);
    }

    /// Resets every connection that has data from one to the other.
    pub fn reset(&self, from: usize, to: usize) {
        link(&self.table, from, to).resets.send_modify(|count| *count += 1);
    }

    /// Makes every link whole.
    pub fn heal(&self) {
        for link in self.table.lock().unwrap_or_else(PoisonError::into_inner).values() {
            link.state.send_if_modified(|state| std::mem::take(state) != LinkState::default());
        }
    }

    /// Bytes that arrived in one direction.
    pub fn bytes(&self, from: usize, to: usize) -> u64 {
        link(&self.table, from, to).bytes.load(Ordering::Relaxed)
    }

    /// Pieces of data that a fault has held up or kept back, on all links.
    pub fn held(&self) -> u64 {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.values().map(|link| link.held.load(Ordering::Relaxed)).sum()
    }
}

fn link(table: &Table, from: usize, to: usize) -> Arc<Link> {
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(table.entry((from, to)).or_default())
}

/// One port.
struct Door {
    member: usize,
    target: SocketAddr,
    for_clients: bool,
    table: Table,
    pids: Arc<Vec<AtomicI32>>,
    stop: CancellationToken,
}

impl Door {
    async fn serve(self, listener: TcpListener) {
        let door = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                () = door.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let door = Arc::clone(&door);
                    tokio::spawn(async move { door.connect(stream, peer).await });
                }
                // Out of files, for a moment.
                Err(_) => tokio::time::sleep(OWNER_PAUSE).await,
            }
        }
    }

    async fn connect(&self, here: TcpStream, peer: SocketAddr) {
        let Some(from) = self.dialler(&here, peer).await else { return };
        let there_link = link(&self.table, from, self.member);
        let back_link = link(&self.table, self.member, from);
        let stop = self.stop.child_token();
        // A connection through a cut link is silent; it is opened once something can arrive.
        let mut state = there_link.state.subscribe();
        let mut resets = there_link.resets.subscribe();
        let open = async {
            drop(state.wait_for(|state| !state.cut).await);
            TcpStream::connect(self.target).await
        };
        let there = tokio::select! {
            () = stop.cancelled() => return,
            _ = resets.changed() => return reset(&here),
            there = open => there,
        };
        let Ok(there) = there else { return reset(&here) };
        let _nodelay = (here.set_nodelay(true), there.set_nodelay(true));
        let mut back_resets = back_link.resets.subscribe();
        let (here_read, here_write) = here.into_split();
        let (there_read, there_write) = there.into_split();
        let ended = CancellationToken::new();
        let out = pump(here_read, there_write, there_link, ended.clone());
        let back = pump(there_read, here_write, back_link, ended.clone());
        tokio::select! {
            () = stop.cancelled() => {}
            _ = resets.changed() => {}
            _ = back_resets.changed() => {}
            _ = async { tokio::join!(out, back) } => {}
        }
    }

    async fn dialler(&self, here: &TcpStream, peer: SocketAddr) -> Option<usize> {
        if self.for_clients {
            return Some(CLIENTS);
        }
        let local = here.local_addr().ok()?;
        for _ in 0..OWNER_ATTEMPTS {
            let candidates: Vec<(usize, i32)> = self
                .pids
                .iter()
                .enumerate()
                .map(|(number, pid)| (number, pid.load(Ordering::Relaxed)))
                .filter(|(_, pid)| *pid != 0)
                .collect();
            if let Some(number) = owner::of(peer, local, &candidates) {
                return Some(number);
            }
            tokio::time::sleep(OWNER_PAUSE).await;
        }
        None
    }
}

/// Makes the end of a connection a reset.
fn reset(stream: &TcpStream) {
    // It may have ended by itself.
    let _gone = stream.set_zero_linger();
}

/// Passes one direction on until its end.
async fn pump(mut from: OwnedReadHalf, to: OwnedWriteHalf, link: Arc<Link>, ended: CancellationToken) {
    let (queue, pieces) = mpsc::channel(PIECES_MAX);
    let writer = write_pieces(to, pieces, Arc::clone(&link), ended.clone());
    let reader = async {
        let mut free_at = Instant::now();
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let read = tokio::select! {
                read = from.read(&mut buffer) => read,
                () = ended.cancelled() => break,
            };
            let Ok(bytes @ 1..) = read else { break };
            let due = due(&link, bytes, &mut free_at);
            if queue.send((due, buffer[..bytes].to_vec())).await.is_err() {
                break;
            }
        }
        drop(queue);
    };
    tokio::join!(reader, writer);
}

/// When a piece of data may arrive: never before the one ahead of it.
fn due(link: &Link, bytes: usize, free_at: &mut Instant) -> Instant {
    let state = link.state.borrow();
    let mut random = rand::rng();
    let mut late = state.delay + state.jitter.mul_f64(random.random::<f64>());
    if state.stall_probability > 0.0 && random.random_bool(state.stall_probability.clamp(0.0, 1.0)) {
        late += STALL;
    }
    let now = Instant::now();
    if !late.is_zero() || state.bytes_per_second.is_some() {
        link.held.fetch_add(1, Ordering::Relaxed);
    }
    let mut due = (now + late).max(*free_at);
    if let Some(rate) = state.bytes_per_second {
        due += Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
    }
    *free_at = due;
    due
}

type Piece = (Instant, Vec<u8>);

async fn write_pieces(
    mut to: OwnedWriteHalf,
    mut pieces: mpsc::Receiver<Piece>,
    link: Arc<Link>,
    ended: CancellationToken,
) {
    let mut state = link.state.subscribe();
    while let Some((due, bytes)) = pieces.recv().await {
        tokio::time::sleep_until(due).await;
        if state.borrow().cut {
            link.held.fetch_add(1, Ordering::Relaxed);
            drop(state.wait_for(|state| !state.cut).await);
        }
        if to.write_all(&bytes).await.is_err() {
            break;
        }
        link.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
    // The end is news, too: it takes the same way.
    drop(state.wait_for(|state| !state.cut && !state.half_open).await);
    let _ended = to.shutdown().await;
    ended.cancel();
}
