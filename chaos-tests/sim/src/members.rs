//! Members as simulated hosts.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use raft_store::simulation::{Network, SimDisk, Simulation};
use raft_store::{Config, Member, Store};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::WatchStream;
use tonic::transport::Server;
use turmoil::net::TcpListener;

use crate::{chance, net};

/// Where members listen for each other.
const PEER_PORT: u16 = 2380;
/// Where they listen for clients.
pub(crate) const CLIENT_PORT: u16 = 2379;
/// The longest flush of a disk that is well.
const FLUSH_MICROSECONDS: u64 = 1_500;

/// The host's name of a member.
pub(crate) fn name(number: usize) -> String {
    format!("m{}", number + 1)
}

/// What outlives a member's process.
pub(crate) struct Seat {
    number: usize,
    directory: PathBuf,
    pub(crate) disk: RefCell<SimDisk>,
    /// What each flush takes longer, in milliseconds.
    pub(crate) slowness: Arc<AtomicU64>,
    /// Counts flushes.
    flushes: Arc<AtomicU64>,
    pub(crate) leads: Cell<bool>,
    /// Its process is ended before long, and may end by itself until then.
    pub(crate) doomed: Cell<bool>,
    /// Why it ended by itself.
    pub(crate) ended: RefCell<Option<String>>,
}

impl Seat {
    pub(crate) fn new(number: usize, directory: PathBuf) -> Rc<Self> {
        Rc::new(Self {
            number,
            directory,
            disk: RefCell::new(SimDisk::default()),
            slowness: Arc::default(),
            flushes: Arc::default(),
            leads: Cell::new(false),
            doomed: Cell::new(false),
            ended: RefCell::new(None),
        })
    }

    fn config(&self, members: usize) -> Config {
        let all: BTreeMap<u64, Member> = (0..members)
            .map(|number| {
                let name = name(number);
                let address = format!("{name}:{PEER_PORT}");
                (number as u64 + 1, Member::new(name, address))
            })
            .collect();
        let (slowness, flushes) = (Arc::clone(&self.slowness), Arc::clone(&self.flushes));
        let own = self.number as u64;
        let flush_time = move || {
            let number = flushes.fetch_add(1, Ordering::Relaxed);
            let usual = chance::mixed(number ^ own << 48) % FLUSH_MICROSECONDS;
            Duration::from_micros(usual) + Duration::from_millis(slowness.load(Ordering::Relaxed))
        };
        let simulation = Simulation {
            disk: self.disk.borrow().clone(),
            flush_time: Arc::new(flush_time),
            network: Network { channel: net::peer_channel, refuses: net::refuses },
        };
        Config {
            simulation: Some(simulation),
            checkpoint_entries: u64::MAX,
            checkpoint_log_bytes: usize::MAX,
            log_entries_kept: u64::MAX,
            log_bytes_kept: usize::MAX,
            hash_check_period: Duration::ZERO,
            ..Config::new([7; 16], self.number as u64 + 1, all, self.directory.clone())
        }
    }

    /// A member's process, from its start to its end.
    pub(crate) async fn live(self: Rc<Self>, members: usize) -> turmoil::Result {
        self.leads.set(false);
        self.doomed.set(false);
        let store = Store::open(self.config(members)).await?;
        let peers = TcpListener::bind(("0.0.0.0", PEER_PORT)).await?;
        let clients = TcpListener::bind(("0.0.0.0", CLIENT_PORT)).await?;
        let service = store.peer_service();
        let services = raft_store::etcd::services(&store);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(net::incoming(peers)));
        tokio::spawn(Server::builder().add_routes(services).serve_with_incoming(net::incoming(clients)));
        let seat = Rc::clone(&self);
        let mut leadership = WatchStream::new(store.watch_leadership());
        tokio::task::spawn_local(async move {
            while let Some(leadership) = leadership.next().await {
                seat.leads.set(leadership.is_self);
            }
        });
        let reason = store.failed().await;
        if !self.doomed.get() {
            *self.ended.borrow_mut() = Some(format!("{}: {reason}", name(self.number)));
        }
        std::future::pending().await
    }
}
