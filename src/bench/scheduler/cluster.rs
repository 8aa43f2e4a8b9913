//! Three replicas on this machine, and a client of each. Dropping them ends the processes and removes their files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use control::pki::{self, Authority, ControlToken, Credentials};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::bench::pods::api::Api;
use crate::client::Client;
use crate::kubeconfig::Access;
use crate::up::process::log_tail;

/// How many replicas.
pub(crate) const REPLICAS: usize = 3;
/// Longest wait for the replicas to serve and lead.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a replica to end after TERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Nobody speaks for the nodes; this long their silence is borne.
const NODE_GRACE: &str = "24h";

/// The running replicas.
pub(crate) struct Cluster {
    directory: PathBuf,
    addresses: Vec<SocketAddr>,
    credentials: Credentials,
    processes: Vec<Option<Child>>,
}

impl Cluster {
    /// Starts three replicas in a new directory under `parent`.
    pub(crate) async fn start(parent: &Path, scheduler_config: Option<&Path>) -> anyhow::Result<Self> {
        let directory = parent.join(format!("barque-bench-scheduler-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let now = SystemTime::now();
        let token = ControlToken::generate(now)?;
        let token_file = directory.join("token");
        pki::write_private(&token_file, token.to_secret_text().as_bytes())?;
        let credentials = Authority::from_token(&token)?.issue_admin("bench", now)?;
        let mut cluster =
            Self { directory, addresses: free_addresses()?, credentials, processes: Vec::new() };
        let members: BTreeMap<String, SocketAddr> =
            (1..=REPLICAS).map(|number| format!("m{number}")).zip(cluster.addresses.clone()).collect();
        for (name, address) in &members {
            let mut config = json!({
                "name": name, "dataDir": cluster.directory.join(name), "tokenFile": token_file,
                "listenAddress": address, "initialMembers": members, "nodeGracePeriod": NODE_GRACE,
                "podCIDR": "10.0.0.0/8", "disableAdmissionPlugins": ["TaintNodesByCondition"],
            });
            if let Some(path) = scheduler_config {
                config["schedulerConfigFile"] = json!(fs::canonicalize(path)?);
            }
            let path = cluster.directory.join(format!("{name}.yaml"));
            fs::write(&path, serde_json::to_vec(&config)?)?;
        }
        for number in 0..REPLICAS {
            let process = cluster.launch(number)?;
            cluster.processes.push(Some(process));
        }
        cluster.wait_serving(0..REPLICAS).await?;
        Ok(cluster)
    }

    fn launch(&self, number: usize) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("cannot find out which file this program is")?;
        let log = File::options().create(true).append(true).open(self.log(number));
        Command::new(&program)
            .args(["--log-level", "warn", "control", "--config"])
            .arg(self.directory.join(format!("m{}.yaml", number + 1)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.context("cannot make a replica's log")?)
            .spawn()
            .context("cannot start a replica")
    }

    fn log(&self, number: usize) -> PathBuf {
        self.directory.join(format!("m{}.log", number + 1))
    }

    /// A client; clients are spread over the replicas by number.
    pub(crate) fn api(&self, number: usize) -> anyhow::Result<Api> {
        let server = self.addresses[number % self.addresses.len()];
        Api::new(&Access { server, credentials: self.credentials.clone() })
    }

    /// The replicas' processes.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.processes.iter().flatten().filter_map(|process| i32::try_from(process.id()).ok()).collect()
    }

    /// Which of the replicas leads.
    pub(crate) async fn leader(&self) -> anyhow::Result<usize> {
        let client = Client::new(&self.credentials)?;
        for (number, address) in self.addresses.iter().enumerate() {
            if client.status(*address).await.is_ok_and(|status| status.role == "leader") {
                return Ok(number);
            }
        }
        anyhow::bail!("no replica leads")
    }

    /// The same once there is one.
    pub(crate) async fn wait_leader(&self) -> anyhow::Result<usize> {
        let begun = Instant::now();
        loop {
            match self.leader().await {
                Err(error) if begun.elapsed() > START_TIMEOUT => return Err(error),
                Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
                leader => return leader,
            }
        }
    }

    /// Kills a replica's process.
    pub(crate) fn kill(&self, number: usize) -> anyhow::Result<()> {
        let process = self.processes[number].as_ref().context("this replica does not run")?;
        let pid = i32::try_from(process.id())?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("cannot kill a replica")
    }

    /// Starts a replica that was killed, and waits until it serves.
    pub(crate) async fn bring_back(&mut self, number: usize) -> anyhow::Result<()> {
        if let Some(mut process) = self.processes[number].take() {
            process.wait().context("cannot wait for a replica that was killed")?;
        }
        self.processes[number] = Some(self.launch(number)?);
        self.wait_serving(number..number + 1).await
    }

    /// Until writes go through at these replicas, so that somebody leads and they follow.
    async fn wait_serving(&mut self, replicas: Range<usize>) -> anyhow::Result<()> {
        let begun = Instant::now();
        for number in replicas {
            let mut api = self.api(number)?;
            // A namespace is there from the beginning; who cannot read what a majority has, cannot mark it either.
            let mark = json!({"metadata": {"annotations": {"bench.barque.io/turn": begun.elapsed().as_nanos().to_string()}}});
            while let Err(error) = api.patch("/api/v1/namespaces/default", &mark).await {
                let mut running = self.processes.iter_mut().flatten();
                let ended = running.any(|child| !matches!(child.try_wait(), Ok(None)));
                if ended || begun.elapsed() > START_TIMEOUT {
                    let log = log_tail(&self.log(number));
                    return Err(error.context(format!("the replicas do not serve: {log}")));
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.processes.iter().flatten() {
            if let Ok(pid) = i32::try_from(process.id()) {
                let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
        let begun = Instant::now();
        for process in self.processes.iter_mut().flatten() {
            while matches!(process.try_wait(), Ok(None)) && begun.elapsed() < STOP_TIMEOUT {
                std::thread::sleep(POLL_INTERVAL);
            }
            let _gone = process.kill();
            let _reaped = process.wait();
        }
        let _left = fs::remove_dir_all(&self.directory);
    }
}

fn free_addresses() -> anyhow::Result<Vec<SocketAddr>> {
    // Held together, so that no port is given twice.
    let held: Vec<TcpListener> =
        (0..REPLICAS).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    Ok(held.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
}
