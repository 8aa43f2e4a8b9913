//! A real etcd, if there is one on PATH: one member in a temporary directory on free ports, ended on drop.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::group::PATIENCE;

pub(crate) struct RealEtcd {
    pub(crate) address: String,
    pub(crate) version: (u32, u32),
    process: Child,
    _directory: tempfile::TempDir,
}

impl RealEtcd {
    /// `None` if there is none.
    pub(crate) async fn start() -> Option<Self> {
        let version = version()?;
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (client, peer) = (free_address(), free_address());
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(directory.path())
            .args(["--name", "real", "--log-level", "error", "--logger", "zap"])
            .args(["--listen-client-urls", &format!("http://{client}")])
            .args(["--advertise-client-urls", &format!("http://{client}")])
            .args(["--listen-peer-urls", &format!("http://{peer}")])
            .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
            .args(["--initial-cluster", &format!("real=http://{peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts");
        let etcd = Self { address: client, version, process, _directory: directory };
        etcd.answers().await;
        Some(etcd)
    }

    async fn answers(&self) {
        use proto::etcd::etcdserverpb::kv_client::KvClient;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(mut kv) = KvClient::connect(format!("http://{}", self.address)).await
                && kv.range(super::notes::get("none")).await.is_ok()
            {
                return;
            }
            assert!(Instant::now() < deadline, "etcd does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for RealEtcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// "etcd Version: 3.5.1" on the first line.
fn version() -> Option<(u32, u32)> {
    let output = Command::new("etcd").arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.lines().next()?.rsplit(' ').next()?.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").to_string()
}
