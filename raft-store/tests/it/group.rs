//! A group of members on loopback, each with a directory, a server and a store that can be stopped alone.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft_store::state_machine::{
    Command, Compare, CompareResult, CompareTarget, Fence, Op, Outcome, PutRequest, RangeRequest, TxnCommand,
    TxnOutcome,
};
use raft_store::{Config, Error, Member, MemberId, Store};
use tokio::runtime::Runtime;
use tonic::transport::server::TcpIncoming;

use crate::proxy::Proxy;

/// Longest wait for anything in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A member with an event loop of its own, which takes every task and connection along when it ends, as the
/// end of a process does.
pub(crate) struct Running {
    pub(crate) store: Store,
    event_loop: Runtime,
}

pub(crate) struct Group {
    directory: tempfile::TempDir,
    members: BTreeMap<MemberId, Member>,
    tune: fn(&mut Config),
    pub(crate) running: BTreeMap<MemberId, Running>,
}

impl Group {
    /// Starts all members of a new group.
    pub(crate) async fn start(size: u64, tune: fn(&mut Config)) -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary directory"), size, tune).await
    }

    /// The same for a test that copies whole directories, which would hold up the disk that the others measure
    /// their leaders' patience against.
    pub(crate) async fn start_in_memory(size: u64, tune: fn(&mut Config)) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self::start_in(directory.expect("a temporary directory"), size, tune).await
    }

    async fn start_in(directory: tempfile::TempDir, size: u64, tune: fn(&mut Config)) -> Self {
        log_if_asked();
        let mut listeners = BTreeMap::new();
        let mut members = BTreeMap::new();
        for id in 1..=size {
            let listener = listen("127.0.0.1:0".parse().expect("an address"));
            let address = listener.local_addr().expect("bound").to_string();
            members.insert(id, Member::new(format!("m{id}"), address));
            listeners.insert(id, listener);
        }
        let mut group = Self { directory, members, tune, running: BTreeMap::new() };
        for (id, listener) in listeners {
            group.start_on(id, listener).await;
        }
        group
    }

    /// The same, with every member reached through a proxy.
    pub(crate) async fn start_behind_proxies(
        size: u64,
        tune: fn(&mut Config),
    ) -> (Self, BTreeMap<MemberId, Proxy>) {
        log_if_asked();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut group = Self { directory, members: BTreeMap::new(), tune, running: BTreeMap::new() };
        let (mut proxies, mut listeners) = (BTreeMap::new(), BTreeMap::new());
        for id in 1..=size {
            let (listener, address) = group.reserve();
            let proxy = Proxy::to(address).await;
            group.members.insert(id, Member::new(format!("m{id}"), proxy.address.clone()));
            proxies.insert(id, proxy);
            listeners.insert(id, listener);
        }
        for (id, listener) in listeners {
            group.start_on(id, listener).await;
        }
        (group, proxies)
    }

    /// An address for a member that is to join.
    pub(crate) fn reserve(&self) -> (TcpListener, String) {
        let listener = listen("127.0.0.1:0".parse().expect("an address"));
        let address = listener.local_addr().expect("bound").to_string();
        (listener, address)
    }

    /// Starts a member that was added to the list.
    pub(crate) async fn join(&mut self, id: MemberId, listener: TcpListener) {
        let address = listener.local_addr().expect("bound").to_string();
        self.join_at(id, listener, address).await;
    }

    /// The same for a member that the others reach at another address than its own.
    pub(crate) async fn join_at(&mut self, id: MemberId, listener: TcpListener, address: String) {
        self.members.insert(id, Member::new(format!("m{id}"), address));
        self.start_on(id, listener).await;
    }

    /// Starts a member that must not take part, and returns why it stops.
    pub(crate) async fn start_refused(&mut self, id: MemberId) -> String {
        self.start_member(id).await;
        let store = self.store(id).clone();
        let reason = tokio::time::timeout(PATIENCE, async move { store.failed().await }).await;
        reason.expect("it stops by itself")
    }

    /// Starts a member that was stopped, at its old address.
    pub(crate) async fn start_member(&mut self, id: MemberId) {
        let address: SocketAddr = self.members[&id].address.parse().expect("an address");
        let listener = listen(address);
        self.start_on(id, listener).await;
    }

    async fn start_on(&mut self, id: MemberId, listener: TcpListener) {
        let mut config = Config::new([7; 16], id, self.members.clone(), self.data_dir(id));
        (self.tune)(&mut config);
        let event_loop = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("an event loop");
        let opened = event_loop.spawn(Store::open(config)).await.expect("opening does not panic");
        let store = opened.expect("the store opens");
        let service = store.peer_service();
        event_loop.spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming(listener))
                .await
                .expect("the server runs");
        });
        self.running.insert(id, Running { store, event_loop });
    }

    /// Serves etcd's protocol from a running member; returns the address.
    pub(crate) fn serve_etcd(&self, id: MemberId) -> String {
        let listener = listen("127.0.0.1:0".parse().expect("an address"));
        let address = listener.local_addr().expect("bound").to_string();
        let running = &self.running[&id];
        let services = raft_store::etcd::services(&running.store);
        running.event_loop.spawn(async move {
            tonic::transport::Server::builder()
                .add_routes(services)
                .serve_with_incoming(incoming(listener))
                .await
                .expect("the server runs");
        });
        address
    }

    /// Stops a member in an orderly way.
    pub(crate) async fn stop_member(&mut self, id: MemberId) {
        let Running { store, event_loop } = self.running.remove(&id).expect("it runs");
        event_loop.spawn(async move { store.shutdown().await }).await.expect("stopping does not panic");
        let ended = tokio::task::spawn_blocking(move || event_loop.shutdown_timeout(PATIENCE));
        ended.await.expect("the event loop ends");
    }

    /// Ends a member as `kill -9` ends a process: its sockets are closed, and it tells nobody.
    pub(crate) async fn kill_member(&mut self, id: MemberId) {
        let Running { store, event_loop } = self.running.remove(&id).expect("it runs");
        let ended = tokio::task::spawn_blocking(move || event_loop.shutdown_timeout(PATIENCE));
        ended.await.expect("the event loop ends");
        drop(store);
    }

    /// Waits until members have nothing to say of their own accord any more; returns the leader.
    pub(crate) async fn settled(&self) -> MemberId {
        loop {
            let leader = self.leader().await;
            self.converged().await;
            let applied = self.store(leader).status().applied_index;
            tokio::time::sleep(Duration::from_secs(1)).await;
            if self.leader().await == leader && self.store(leader).status().applied_index == applied {
                return leader;
            }
        }
    }

    /// Leaves all directories as a kill of all members at this moment would. The group is [`settled`](Self::settled):
    /// directories are copied one after the other, and a member must not acknowledge what its copy lacks.
    pub(crate) async fn kill_all(&mut self) {
        let image = |id: MemberId| self.directory.path().join(format!("image{id}"));
        let killed: Vec<_> = self.running.keys().map(|id| (*id, self.data_dir(*id), image(*id))).collect();
        for (_, directory, image) in &killed {
            copy(directory, image);
        }
        for (id, directory, image) in killed {
            self.stop_member(id).await;
            std::fs::remove_dir_all(&directory).expect("removed");
            std::fs::rename(&image, &directory).expect("renamed");
        }
    }

    pub(crate) async fn stop(mut self) {
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            self.stop_member(id).await;
        }
    }

    pub(crate) fn data_dir(&self, id: MemberId) -> PathBuf {
        self.directory.path().join(format!("m{id}"))
    }

    pub(crate) fn store(&self, id: MemberId) -> &Store {
        &self.running[&id].store
    }

    /// Waits for a leader that every running member agrees on.
    pub(crate) async fn leader(&self) -> MemberId {
        let mut agreed = None;
        eventually("all members agree on a leader", || {
            let leaders: Vec<_> = self.running.values().map(|r| r.store.leadership().leader).collect();
            let first = leaders[0].filter(|leader| self.running.contains_key(leader));
            agreed = first.filter(|_| leaders.iter().all(|leader| *leader == first));
            agreed.is_some_and(|leader| self.store(leader).leadership().is_self)
        })
        .await;
        agreed.expect("just found")
    }

    pub(crate) async fn a_follower(&self) -> MemberId {
        let leader = self.leader().await;
        *self.running.keys().find(|id| **id != leader).expect("there is a follower")
    }

    /// Waits until every running member has applied the same and hashes it to the same value.
    pub(crate) async fn converged(&self) {
        eventually("all members have the same state", || {
            let states: Vec<_> = self.running.values().map(|r| r.store.status()).collect();
            states.iter().all(|s| {
                (s.applied_index, s.state_hash, s.revision)
                    == (states[0].applied_index, states[0].state_hash, states[0].revision)
            })
        })
        .await;
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    let listener = TcpListener::bind(address).expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    listener
}

pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn put_op(key: &str, value: &str) -> Op {
    Op::Put(PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..PutRequest::default()
    })
}

pub(crate) async fn put(store: &Store, key: &str, value: &str) -> Result<TxnOutcome, Error> {
    txn(store, TxnCommand::of(put_op(key, value))).await
}

pub(crate) async fn txn(store: &Store, txn: TxnCommand) -> Result<TxnOutcome, Error> {
    match store.propose(&Command::Txn(txn)).await? {
        Outcome::Txn(outcome) => Ok(outcome),
        other => panic!("a transaction gave {other:?}"),
    }
}

/// Writes `key` only if its newest revision is `mod_revision`.
pub(crate) fn put_if(key: &str, mod_revision: u64, value: &str, fence: Option<u64>) -> TxnCommand {
    TxnCommand {
        fence: fence.map(|term| Fence { term }),
        compares: vec![Compare {
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::new(),
            result: CompareResult::Equal,
            target: CompareTarget::ModRevision(mod_revision),
        }],
        success: vec![put_op(key, value)],
        failure: vec![],
    }
}

pub(crate) fn get(store: &Store, key: &str) -> Option<String> {
    let request = RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..RangeRequest::default() };
    let response = store.range(&request).expect("the newest revision can be read");
    response.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).expect("text"))
}

/// Prints the log of everything to the test's output.
/// Connections without Nagle's delay, as the real servers have them: a heartbeat may not wait 40 ms for a
/// delayed acknowledgement.
fn incoming(listener: TcpListener) -> TcpIncoming {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// Copies a directory with all that is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("created");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("listed");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

fn log_if_asked() {
    if std::env::var_os("BARQUE_TEST_LOG").is_some() {
        log();
    }
}

pub(crate) fn log() {
    let _ = tracing_subscriber::fmt().with_test_writer().with_max_level(tracing::Level::INFO).try_init();
}
