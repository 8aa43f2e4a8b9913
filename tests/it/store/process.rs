//! A member of a store as a process.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use tonic::transport::Channel;

use crate::support::{Ended, Running, barque, eventually, free_address, run, text};

/// Where one member is, and what it is called.
pub(crate) struct Place {
    pub(crate) name: &'static str,
    pub(crate) data_dir: PathBuf,
    /// Where it writes what it says.
    pub(crate) log: PathBuf,
    pub(crate) client: SocketAddr,
    pub(crate) peer: SocketAddr,
}

impl Place {
    pub(crate) fn new(name: &'static str, directory: &Path) -> Self {
        let (data_dir, log) = (directory.join(name), directory.join(format!("{name}.log")));
        Self { name, data_dir, log, client: free_address(), peer: free_address() }
    }

    /// `name=url`, for `--initial-cluster`.
    pub(crate) fn listed(&self) -> String {
        format!("{}=http://{}", self.name, self.peer)
    }

    fn flags(&self) -> Vec<String> {
        let (client, peer) = (format!("http://{}", self.client), format!("http://{}", self.peer));
        [
            ("--name", self.name.to_owned()),
            ("--data-dir", text(&self.data_dir).to_owned()),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    /// Starts the member alone, or with more flags.
    pub(crate) fn start(&self, more: &[&str]) -> Running {
        let log = std::fs::File::create(&self.log).unwrap();
        let mut command = barque();
        command.arg("store").args(self.flags());
        if !more.contains(&"--initial-cluster") {
            command.args(["--initial-cluster", &self.listed()]);
        }
        Running::start(command.args(more).stderr(log))
    }

    /// Runs the member to its end, which comes by itself.
    pub(crate) fn refused(&self, more: &[&str]) -> Ended {
        let mut running = self.start(more);
        let code = eventually(|| running.child.try_wait().unwrap()).code();
        Ended { code, stdout: String::new(), stderr: self.said() }
    }

    /// What the member wrote since it was last started.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) async fn kv(&self) -> KvClient<Channel> {
        let to = Channel::from_shared(format!("http://{}", self.client)).unwrap();
        for _ in 0..1200 {
            if let Ok(channel) = to.connect().await {
                return KvClient::new(channel);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} does not listen", self.name);
    }

    pub(crate) async fn put(&self, key: &'static str, value: &'static str) {
        let request = pb::PutRequest {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from_static(value.as_bytes()),
            ..pb::PutRequest::default()
        };
        // A member that has just started may not have a leader yet.
        for _ in 0..60 {
            if self.kv().await.put(request.clone()).await.is_ok() {
                return;
            }
        }
        panic!("not written");
    }

    /// Value, the store's revision, the cluster's id.
    pub(crate) async fn get(&self, key: &'static str, revision: i64) -> Result<Found, tonic::Status> {
        let request = pb::RangeRequest {
            key: Bytes::from_static(key.as_bytes()),
            revision,
            ..pb::RangeRequest::default()
        };
        let mut last = Err(tonic::Status::unavailable("never asked"));
        for _ in 0..60 {
            last = self.kv().await.range(request.clone()).await;
            if !matches!(&last, Err(status) if status.code() == tonic::Code::Unavailable) {
                break;
            }
        }
        let answer = last?.into_inner();
        let header = answer.header.unwrap();
        let value = answer.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap());
        Ok(Found { value, revision: header.revision, cluster_id: header.cluster_id })
    }

    /// `GET path` in plain HTTP: the status line's code and the body.
    pub(crate) fn http(&self, path: &str) -> (u16, String) {
        let mut stream = eventually(|| TcpStream::connect(self.client).ok());
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// An operator's command against this member.
    pub(crate) fn ask(&self, words: &[&str]) -> Ended {
        let endpoint = self.client.to_string();
        run(&[words, &["--endpoints", &endpoint]].concat())
    }
}

pub(crate) struct Found {
    pub(crate) value: Option<String>,
    pub(crate) revision: i64,
    pub(crate) cluster_id: u64,
}
