//! Whole clusters: `barque up`, real processes in network namespaces, stock kubectl, kill -9, power cuts.
//!
//! They need root and run one after the other. Where something is missing they say what, and count as skipped.

mod attach;
mod balancers;
mod bandwidth;
pub(crate) mod books;
mod by_hand;
mod clients;
mod deployments;
mod exec;
mod first_pod;
mod forward;
pub(crate) mod images;
mod ingress;
mod leader_loss;
mod logs;
mod masters;
mod node_death;
mod other_runtime;
mod pod_life;
mod policies;
mod power_cut;
mod services;
pub(crate) mod stage;
mod subnets;
mod three_workers;
mod virtual_address;
mod volumes;
mod workloads;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;
use std::time::Duration;

use chaos_tests::cluster::{Cluster, Options};
use tokio::sync::{Mutex, MutexGuard};

use crate::support::Owned;

/// Longest wait for anything here; the machine may be slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One cluster at a time: they share this machine's processors.
static TURN: Mutex<()> = Mutex::const_new(());

/// The turn of a test that makes its cluster by other means.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    TURN.blocking_lock()
}

static PANICS: Once = Once::new();

/// Has every panic said at once on standard error, past the harness's capture: what failed stands beside the
/// measurements of that moment, and not only at the very end of a long run.
fn say_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let _closed = writeln!(std::io::stderr(), "{}: {panic}", thread.name().unwrap_or("a thread"));
        before(panic);
    }));
}

/// A cluster, and the turn it runs in.
pub(crate) struct Lab {
    pub(crate) cluster: Cluster,
    pub(crate) options: Options,
    pub(crate) directory: tempfile::TempDir,
    _owned: Owned,
    _turn: MutexGuard<'static, ()>,
}

/// Says why a test is skipped on this machine, if it is.
pub(crate) fn skipped(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return false;
    }
    skip(test, "clusters need root");
    true
}

/// Says on standard error, past the test harness's capture, that a test does nothing here and why.
pub(crate) fn skip(test: &str, reason: &str) {
    crate::support::skipped(&format!("{test}: {reason}"));
}

/// Says a measurement, likewise.
pub(crate) fn measured(text: &str) {
    let _closed = writeln!(std::io::stderr(), "measured: {text}");
}

impl Lab {
    /// Brings a cluster up with its data in a new directory.
    pub(crate) async fn up(name: &str, masters: u8, nodes: u8) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("data");
        Self::up_in(name, masters, nodes, directory, data_dir).await
    }

    /// Brings a cluster up with its data in `data_dir`.
    pub(crate) async fn up_in(
        name: &str,
        masters: u8,
        nodes: u8,
        directory: tempfile::TempDir,
        data_dir: PathBuf,
    ) -> Self {
        Self::start(name, masters, nodes, (directory, data_dir), |_| {}).await
    }

    /// Brings a cluster up that has addresses for Services of type `LoadBalancer`.
    pub(crate) async fn up_balanced(name: &str, masters: u8, nodes: u8) -> Self {
        Self::up_with(name, masters, nodes, |options| options.load_balancer_addresses = 3).await
    }

    /// Brings a cluster up whose masters are nodes too.
    pub(crate) async fn up_with_master_nodes(name: &str, masters: u8, nodes: u8) -> Self {
        Self::up_with(name, masters, nodes, |options| options.master_nodes = true).await
    }

    /// Brings a cluster up whose API has an address that the leader holds.
    pub(crate) async fn up_with_virtual_address(name: &str, masters: u8, nodes: u8) -> Self {
        Self::up_with(name, masters, nodes, |options| options.virtual_address = true).await
    }

    async fn up_with(name: &str, masters: u8, nodes: u8, change: impl FnOnce(&mut Options)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("data");
        Self::start(name, masters, nodes, (directory, data_dir), change).await
    }

    async fn start(
        name: &str,
        masters: u8,
        nodes: u8,
        (directory, data_dir): (tempfile::TempDir, PathBuf),
        change: impl FnOnce(&mut Options),
    ) -> Self {
        PANICS.call_once(say_panics);
        let turn = TURN.lock().await;
        let owned = Owned::name(name);
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut options = Options {
            binary: env!("CARGO_BIN_EXE_barque").into(),
            name: name.to_owned(),
            data_dir,
            port,
            masters,
            nodes,
            master_nodes: false,
            virtual_address: false,
            load_balancer_addresses: 0,
            master_flags: Vec::new(),
        };
        change(&mut options);
        let cluster = Cluster::up(options.clone()).unwrap();
        Self { cluster, options, directory, _owned: owned, _turn: turn }
    }

    /// Takes the cluster down and asserts that nothing of it is left.
    pub(crate) fn down(self) {
        let said = self.cluster.down().unwrap();
        assert!(said.contains("is down"), "{said}");
        let left = chaos_tests::cluster::leftovers(&self.options).unwrap();
        assert!(left.is_empty(), "left behind: {left:#?}");
        drop(self.directory);
    }
}

/// The kubectl to use: the newest of those beside the one on PATH, or the one on PATH.
pub(crate) fn kubectls() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(found) = std::env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|file| file.exists())
    else {
        return Vec::new();
    };
    let resolved = found.canonicalize().unwrap_or_else(|_| found.clone());
    let directory = resolved.parent().unwrap_or(Path::new("/"));
    let versions: Vec<PathBuf> = (27..=33)
        .map(|minor| directory.join(format!("kubectl.1.{minor}")))
        .filter(|file| file.exists())
        .collect();
    if versions.is_empty() { vec![found] } else { versions }
}

/// Runs kubectl against a cluster.
pub(crate) fn kubectl(kubectl: &Path, cluster: &Cluster, args: &[&str]) -> Output {
    let home = cluster.directory();
    Command::new(kubectl)
        .args(args)
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("HOME", home)
        .output()
        .unwrap()
}

/// Runs kubectl, expects success, returns what it printed.
pub(crate) fn kubectl_ok(program: &Path, cluster: &Cluster, args: &[&str]) -> String {
    let output = kubectl(program, cluster, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}
