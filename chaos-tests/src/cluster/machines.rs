//! A whole cluster that an experiment breaks: masters, and nodes with pods, each a machine that can be cut off or lose its
//! power alone.
//!
//! Owns the way from *machine* to process, link and residents; making and removing is `barque up`'s and `down`'s. Promises that a
//! machine whose power goes has nothing left but its disk: no process, no mount, no network of pods, no runtime
//! directory.

use std::collections::HashSet;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runtime::net::{NetNs, Netlink, netns};
use serde::Deserialize;
use serde_json::Value;

use super::keeper::{Keeper, unmount_under};
use super::{Cluster, Options, has_ended, until};
use crate::client::Client;

/// Where masters serve.
const MASTER_PORT: u16 = 6443;
/// Ports of this machine that clusters are found at.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// Each machine's own end of its only link.
const UPLINK: &str = "eth0";
/// Longest wait for a machine to end in an orderly way.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for a master to say whether it leads.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How it says so.
const LEADS: &str = "etcd_server_is_leader 1";
/// Longest wait until all machines are well.
const HEALTH_PATIENCE: Duration = Duration::from_secs(60);
/// Rounds of killing what lives on a machine: each sees what the round before saw being born.
const ROUNDS_MAX: usize = 50;
/// Between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Lines of a log that are shown.
const LOG_LINES: usize = 12;

/// What of `plan.json` matters here.
#[derive(Debug, Deserialize)]
struct Plan {
    machines: Vec<Machine>,
}

#[derive(Debug, Clone, Deserialize)]
struct Machine {
    name: String,
    role: String,
    address: IpAddr,
    netns: String,
    link: String,
}

/// See the module. Masters come first in the numbers, then nodes. Dropping it removes everything, or makes it whole where
/// somebody else made it.
pub struct Machines {
    machines: Vec<Machine>,
    /// The process of each, while it is to run.
    pids: Vec<Option<i32>>,
    masters: usize,
    cluster: Cluster,
    /// What says that nobody else breaks this cluster. The keeper waits for its end.
    _lock: Option<File>,
    // Last: it waits until everything is gone, or whole.
    _keeper: Option<Keeper>,
}

impl Machines {
    /// Makes a cluster and waits until it is Ready. `master_flags` are more flags for each master.
    ///
    /// # Errors
    /// With what `barque up` said.
    pub fn up(
        program: &Path,
        parent: &Path,
        [masters, nodes]: [u8; 2],
        master_flags: Vec<String>,
    ) -> anyhow::Result<Self> {
        let name = format!("chaos-{:08x}", rand::random::<u32>());
        let keeper = Keeper::start_for_cluster(program, parent, &name)?;
        let options = Options {
            binary: program.to_owned(),
            name,
            data_dir: keeper.directory().to_owned(),
            port: rand::random_range(PORTS),
            masters,
            nodes,
            master_nodes: false,
            virtual_address: false,
            load_balancer_addresses: 0,
            master_flags,
        };
        let mut all = Self::of(Cluster::up(options)?)?;
        all._keeper = Some(keeper);
        for number in 0..all.size() {
            ensure!(all.pids[number].is_some(), "{} has ended{}", all.name(number), all.log_tail(number));
        }
        Ok(all)
    }

    /// The machines of a cluster that is there, whatever of it runs.
    pub(super) fn of(cluster: Cluster) -> anyhow::Result<Self> {
        let path = cluster.directory().join("plan.json");
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let Plan { machines } =
            serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))?;
        let masters = machines.iter().filter(|machine| machine.role == "master").count();
        let pids = vec![None; machines.len()];
        let mut all = Self { machines, pids, masters, cluster, _lock: None, _keeper: None };
        for number in 0..all.size() {
            all.pids[number] = all.cluster.pid(all.name(number)).ok().filter(|pid| !has_ended(*pid));
        }
        Ok(all)
    }

    /// Has somebody look after the cluster when this is dropped.
    pub(super) fn keep(&mut self, keeper: Keeper, lock: File) {
        (self._keeper, self._lock) = (Some(keeper), Some(lock));
    }

    /// The cluster's name, unique on this machine.
    pub fn cluster(&self) -> &str {
        &self.cluster.options.name
    }

    /// How many machines.
    pub fn size(&self) -> usize {
        self.machines.len()
    }

    /// How many of them are masters.
    pub fn masters(&self) -> usize {
        self.masters
    }

    /// A machine's name.
    pub fn name(&self, number: usize) -> &str {
        &self.machines[number].name
    }

    /// Where masters serve.
    pub fn servers(&self) -> Vec<SocketAddr> {
        let masters = self.machines.iter().take(self.masters);
        masters.map(|machine| SocketAddr::new(machine.address, MASTER_PORT)).collect()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.cluster.kubeconfig()
    }

    /// Machines whose processes are to run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.size()).filter(|number| self.pids[*number].is_some()).collect()
    }

    /// The master that leads, by its own word. One that cannot be asked has lost its office, or soon will.
    pub async fn leader(&self) -> Option<usize> {
        let client = Client::from_kubeconfig(&self.kubeconfig()).ok()?;
        let asked = self.servers().into_iter().map(|server| {
            let mut client = client.at(server);
            async move { tokio::time::timeout(ASK_TIMEOUT, client.get("/metrics")).await.ok()?.ok() }
        });
        let told = futures_util::future::join_all(asked).await;
        let leads = |told: &Value| told.as_str().is_some_and(|text| text.lines().any(|line| line == LEADS));
        told.iter().position(|told| told.as_ref().is_some_and(leads))
    }

    fn pid(&self, number: usize) -> anyhow::Result<Pid> {
        let pid = self.pids[number].with_context(|| format!("{} does not run", self.name(number)))?;
        Ok(Pid::from_raw(pid))
    }

    /// Sends a signal to a machine's process: a master, or a node's agent.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, number: usize, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid(number)?;
        kill(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name(number)))
    }

    /// Ends a machine's process as a crash does; what runs beside it goes on. Returns whether it ran.
    pub fn kill(&mut self, number: usize) -> bool {
        let Some(pid) = self.pids[number].take() else { return false };
        let ran = !has_ended(pid);
        let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        ran && until(STOP_PATIENCE, || has_ended(pid).then_some(())).is_some()
    }

    /// Ends a machine's process in an orderly way.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn terminate(&mut self, number: usize) -> anyhow::Result<()> {
        self.signal(number, Signal::SIGTERM)?;
        let pid = self.pid(number)?.as_raw();
        let deadline = Instant::now() + STOP_PATIENCE;
        while !has_ended(pid) {
            if Instant::now() >= deadline {
                self.kill(number);
                bail!("{} does not end after TERM{}", self.name(number), self.log_tail(number));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        self.pids[number] = None;
        Ok(())
    }

    /// Starts a machine's process.
    ///
    /// # Errors
    /// When it runs, or cannot be started.
    pub fn launch(&mut self, number: usize) -> anyhow::Result<()> {
        ensure!(self.pids[number].is_none(), "{} runs already", self.name(number));
        let name = self.name(number).to_owned();
        self.cluster.start(&name)?;
        self.pids[number] = Some(self.cluster.pid(&name)?);
        Ok(())
    }

    /// Cuts a machine's only link. What runs on it goes on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn isolate(&self, number: usize) -> anyhow::Result<()> {
        let link = &self.machines[number].link;
        Netlink::open()?.set_down(link).with_context(|| format!("cannot cut {}", self.name(number)))
    }

    /// Mends a machine's link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn mend(&self, number: usize) -> anyhow::Result<()> {
        let link = &self.machines[number].link;
        Netlink::open()?.set_up(link).with_context(|| format!("cannot mend {}", self.name(number)))
    }

    /// Takes a machine's power: from one moment to the next it is off the network and nothing runs on it. Its disk stays
    /// as it is; [`super::faulty_disk`] is for disks that lose something.
    ///
    /// # Errors
    /// When something of it lives on.
    pub fn power_off(&mut self, number: usize) -> anyhow::Result<()> {
        self.isolate(number)?;
        self.kill(number);
        let name = self.name(number).to_owned();
        let cannot = || format!("cannot take the power of {name}");
        self.kill_residents(number).with_context(cannot)?;
        for directory in [self.run_directory(number), self.cluster.directory().join(&name)] {
            unmount_under(&directory).with_context(cannot)?;
        }
        match fs::remove_dir_all(self.run_directory(number)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(cannot)?,
            _ => {}
        }
        let mut inside = Netlink::open_in(&NetNs::open_named(&self.machines[number].netns)?)?;
        for link in inside.links()? {
            if link.name != UPLINK && link.name != "lo" {
                // The other end of a pair goes with the first.
                let _gone = inside.delete_link(&link.name);
            }
        }
        self.remove_cgroups(number).with_context(cannot)
    }

    /// Gives it back: the link, and the machine's process.
    ///
    /// # Errors
    /// When one of them cannot be had.
    pub fn power_on(&mut self, number: usize) -> anyhow::Result<()> {
        self.mend(number)?;
        self.launch(number)
    }

    /// Mends every link and starts every machine's process that does not run.
    ///
    /// # Errors
    /// When one of them cannot be had back.
    pub fn heal(&mut self) -> anyhow::Result<()> {
        for number in 0..self.size() {
            self.mend(number)?;
            if self.pids[number].is_none() {
                self.launch(number).context("a machine cannot be started again")?;
            }
        }
        Ok(())
    }

    fn run_directory(&self, number: usize) -> PathBuf {
        self.cluster.run_directory().join(self.name(number))
    }

    /// Containers, and those that watch over them.
    fn kill_residents(&self, number: usize) -> anyhow::Result<()> {
        for _ in 0..ROUNDS_MAX {
            let residents = self.residents(number)?;
            if residents.is_empty() {
                return Ok(());
            }
            for pid in &residents {
                let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            until(STOP_PATIENCE, || residents.iter().all(|pid| has_ended(*pid)).then_some(()))
                .context("processes live on after KILL")?;
        }
        bail!("processes come again and again")
    }

    /// Processes in the machine's network, in that of one of its pods, or in its cgroups.
    fn residents(&self, number: usize) -> anyhow::Result<Vec<i32>> {
        let machine = &self.machines[number];
        let mut networks = HashSet::from([fs::metadata(netns::named_path(&machine.netns)?)?.ino()]);
        let run_directory = self.run_directory(number);
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            let mut fields = line.split(' ').skip(3);
            let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
            if Path::new(point).starts_with(&run_directory) {
                let inode = root.strip_prefix("net:[").and_then(|rest| rest.strip_suffix(']'));
                networks.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
            }
        }
        let cgroup = format!(":/barque/{}/{}/", self.cluster.options.name, machine.name);
        let lives_here = |pid: &i32| {
            let network = fs::metadata(format!("/proc/{pid}/ns/net")).map(|network| network.ino());
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            network.is_ok_and(|network| networks.contains(&network))
                || groups.lines().any(|line| format!("{line}/").contains(&cgroup))
        };
        let numbers = fs::read_dir("/proc")?.flatten();
        let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        Ok(pids.filter(lives_here).filter(|pid| !has_ended(*pid)).collect())
    }

    fn remove_cgroups(&self, number: usize) -> anyhow::Result<()> {
        for controller in fs::read_dir("/sys/fs/cgroup")?.flatten() {
            let own =
                controller.path().join("barque").join(&self.cluster.options.name).join(self.name(number));
            if own.is_dir() {
                let removed = until(STOP_PATIENCE, || remove_cgroup(&own).ok());
                removed.with_context(|| format!("{} does not go", own.display()))?;
            }
        }
        Ok(())
    }

    /// Machines that ended though nobody ended them. They count as not running from now on.
    pub fn unexpected_ends(&mut self) -> Vec<(usize, String)> {
        let mut ended = Vec::new();
        for number in 0..self.size() {
            if self.pids[number].is_some_and(has_ended) {
                self.pids[number] = None;
                ended.push((number, format!("{} ended{}", self.name(number), self.log_tail(number))));
            }
        }
        ended
    }

    /// Waits until every master and node that is to run is well.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_healthy(&self) -> anyhow::Result<()> {
        self.cluster.leader(HEALTH_PATIENCE).map(drop)
    }

    /// Waits until all masters have applied the same entries and hash what they hold to the same value. Returns whether they
    /// got there.
    pub fn agree(&self, patience: Duration) -> bool {
        let agreed = || {
            let status = self.cluster.status().ok()?;
            let rows = status.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            // Name, address, role, term, last entry, committed, applied, revision, hash; other tables have no addresses.
            let is_master = |row: &Vec<&str>| {
                row.len() == 9 && row[0].starts_with("master-") && row[1].parse::<SocketAddr>().is_ok()
            };
            let masters: Vec<Vec<&str>> = rows.filter(is_master).collect();
            let told: Vec<&[&str]> = masters.iter().map(|row| &row[6..]).collect();
            (told.len() == self.masters && told.iter().all(|row| *row == told[0])).then_some(())
        };
        until(patience, agreed).is_some()
    }

    /// The end of a machine's log, ready to stand after a message.
    pub fn log_tail(&self, number: usize) -> String {
        let text = self.cluster.log(self.name(number));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|line| format!("\n  {line}")).collect()
    }
}

/// The innermost first; the kernel refuses while something lives there.
fn remove_cgroup(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}
