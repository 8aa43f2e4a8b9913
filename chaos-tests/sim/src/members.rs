//! Members as simulated hosts.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use control::pki::Authority;
use raft_store::simulation::{Network, SimDisk, Simulation};
use raft_store::{Config, Member, MemberId, Store};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::WatchStream;
use tonic::transport::Server;
use turmoil::net::TcpListener;

use crate::{chance, masters, net};

/// Members of a group at most.
pub(crate) const SEATS_MAX: usize = 5;
/// Where members listen for each other.
const PEER_PORT: u16 = 2380;
/// Where they listen for clients.
pub(crate) const CLIENT_PORT: u16 = 2379;
/// How often members compare what they hold.
const HASH_CHECK_PERIOD: Duration = Duration::from_secs(2);
/// The longest flush of a disk that is well.
const FLUSH_MICROSECONDS: u64 = 1_500;

/// The host's name of a member.
pub(crate) fn name(number: usize) -> String {
    format!("m{}", number + 1)
}

/// Where a member is found by the others.
pub(crate) fn peer_address(number: usize) -> String {
    format!("{}:{PEER_PORT}", name(number))
}

/// How members are set up, alike but for their clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Log entries from one checkpoint to the next.
    pub checkpoint_entries: u64,
    /// Of what a checkpoint covers, so many entries stay in the log.
    pub log_entries_kept: u64,
    /// The leader reads by its lease.
    pub lease_reads: bool,
    /// How fast each member's clock runs, in per cent of the time of day. A member whose clock is fast does everything sooner: its own
    /// times are as much shorter.
    pub clocks: [u32; SEATS_MAX],
}

/// What outlives a member's process.
pub(crate) struct Seat {
    number: usize,
    pub(crate) id: Cell<MemberId>,
    directory: PathBuf,
    settings: Settings,
    members: usize,
    /// Signs what the control plane above the store signs; none: there is none.
    authority: Option<Arc<Authority>>,
    /// Members as they were when this one came.
    known: RefCell<BTreeMap<MemberId, Member>>,
    /// It came after the others.
    joins: Cell<bool>,
    /// Who sat here is gone, and nobody has been taken in yet.
    pub(crate) vacant: Cell<bool>,
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
    pub(crate) fn new(
        number: usize,
        directory: PathBuf,
        members: usize,
        settings: Settings,
        authority: Option<Arc<Authority>>,
    ) -> Rc<Self> {
        let founder = |number: usize| (number as u64 + 1, Member::new(name(number), peer_address(number)));
        Rc::new(Self {
            number,
            id: Cell::new(number as u64 + 1),
            directory,
            settings,
            members,
            authority,
            known: RefCell::new((0..members).map(founder).collect()),
            joins: Cell::new(false),
            vacant: Cell::new(false),
            disk: RefCell::new(SimDisk::default()),
            slowness: Arc::default(),
            flushes: Arc::default(),
            leads: Cell::new(false),
            doomed: Cell::new(false),
            ended: RefCell::new(None),
        })
    }

    /// Its process is gone, with all that it had written.
    pub(crate) fn vacate(&self) {
        self.vacant.set(true);
        *self.disk.borrow_mut() = SimDisk::default();
        // There is nothing before the member's first start.
        let _ = std::fs::remove_dir_all(&self.directory);
    }

    /// Who sits here from now on may start: the group has taken them in.
    pub(crate) fn admit(&self, members: BTreeMap<MemberId, Member>) {
        *self.known.borrow_mut() = members;
        self.joins.set(true);
        self.vacant.set(false);
    }

    fn config(&self) -> Config {
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
        let known = self.known.borrow().clone();
        let usual = Config::new([7; 16], self.id.get(), known, self.directory.clone());
        let by_own_clock = |time: Duration| time * 100 / self.settings.clocks[self.number % SEATS_MAX];
        Config {
            simulation: Some(simulation),
            member: Member::new(name(self.number), peer_address(self.number)),
            join: self.joins.get(),
            checkpoint_entries: self.settings.checkpoint_entries,
            log_entries_kept: self.settings.log_entries_kept,
            lease_reads: self.settings.lease_reads,
            hash_check_period: HASH_CHECK_PERIOD,
            heartbeat_interval: by_own_clock(usual.heartbeat_interval),
            election_timeout_min: by_own_clock(usual.election_timeout_min),
            election_timeout_max: by_own_clock(usual.election_timeout_max),
            ..usual
        }
    }

    /// A member's process, from its start to its end.
    pub(crate) async fn live(self: Rc<Self>) -> turmoil::Result {
        self.leads.set(false);
        self.doomed.set(false);
        let store = Store::open(self.config()).await?;
        let peers = TcpListener::bind(("0.0.0.0", PEER_PORT)).await?;
        let clients = TcpListener::bind(("0.0.0.0", CLIENT_PORT)).await?;
        let service = store.peer_service();
        let services = raft_store::etcd::services(&store);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(net::incoming(peers)));
        tokio::spawn(Server::builder().add_routes(services).serve_with_incoming(net::incoming(clients)));
        if let Some(authority) = self.authority.clone() {
            masters::start(&store, authority, &self.directory, self.number, self.members).await?;
        }
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
