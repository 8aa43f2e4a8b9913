//! Three replicas on this machine, and a client of each. Dropping them ends the processes and removes their files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use control::pki::{self, Authority, ControlToken, Credentials};
use http::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::bench::pods::api::Api;
use crate::client::Client;
use crate::kubeconfig::Access;
use crate::up::process::log_tail;

const REPLICAS: usize = 3;
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
    processes: Vec<Child>,
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
        let program = std::env::current_exe().context("cannot find out which file this program is")?;
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
            let log = File::create(cluster.log(name)).context("cannot make a replica's log")?;
            let process = Command::new(&program)
                .args(["--log-level", "warn", "control", "--config"])
                .arg(&path)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .context("cannot start a replica")?;
            cluster.processes.push(process);
        }
        cluster.wait_serving().await?;
        Ok(cluster)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    /// A client; clients are spread over the replicas by number.
    pub(crate) fn api(&self, number: usize) -> anyhow::Result<Api> {
        let server = self.addresses[number % self.addresses.len()];
        Api::new(&Access { server, credentials: self.credentials.clone() })
    }

    /// The replicas' processes.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.processes.iter().filter_map(|process| i32::try_from(process.id()).ok()).collect()
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

    /// Kills a replica's process.
    pub(crate) fn kill(&self, number: usize) -> anyhow::Result<()> {
        let pid = i32::try_from(self.processes[number].id())?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("cannot kill the leader")
    }

    /// Until a write goes through at every replica, so that somebody leads and all follow.
    async fn wait_serving(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        for number in 0..REPLICAS {
            let mut api = self.api(number)?;
            let object =
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("b{number}")}});
            while let Err(error) =
                api.send(Method::POST, "/api/v1/namespaces/default/configmaps", &object).await
            {
                let ended = self.processes.iter_mut().any(|child| !matches!(child.try_wait(), Ok(None)));
                if ended || begun.elapsed() > START_TIMEOUT {
                    let log = log_tail(&self.log(&format!("m{}", number + 1)));
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
        for process in &self.processes {
            if let Ok(pid) = i32::try_from(process.id()) {
                let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
        let begun = Instant::now();
        for process in &mut self.processes {
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
