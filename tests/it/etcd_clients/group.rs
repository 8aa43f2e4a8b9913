//! Three members on loopback as processes. Ours and etcd take the same flags.

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::support::{barque, certificates, eventually};

/// Whose members.
#[derive(Debug, Clone)]
pub(super) enum System {
    Barque,
    Etcd(PathBuf),
}

/// A group that ends with the value.
pub(super) struct Group {
    pub(super) system: System,
    pub(super) directory: tempfile::TempDir,
    members: Vec<Child>,
    pub(super) clients: Vec<String>,
    peers: Vec<String>,
    /// Clients come over TLS and show a certificate.
    pub(super) secured: bool,
}

/// The certificate of every member and of every client of a secured group, in its directory.
pub(super) const CERTIFICATE: &str = "store";

impl Group {
    /// Starts a group and waits until every member takes connections.
    pub(super) fn start(system: &System) -> Self {
        Self::start_as(system, false)
    }

    /// The same; clients of a secured group need a certificate.
    pub(super) fn start_as(system: &System, secured: bool) -> Self {
        let addresses = free_addresses(6);
        let (clients, peers) = addresses.split_at(3);
        let mut group = Self {
            system: system.clone(),
            directory: tempfile::tempdir().unwrap(),
            members: Vec::new(),
            clients: clients.to_vec(),
            peers: peers.to_vec(),
            secured,
        };
        if secured {
            certificates(group.directory.path(), CERTIFICATE);
        }
        for number in 0..3 {
            let member = group.launch(number);
            group.members.push(member);
        }
        for client in clients {
            eventually(|| std::net::TcpStream::connect(client).ok());
        }
        group
    }

    /// Where clients reach a member.
    pub(super) fn client_url(&self, number: usize) -> String {
        format!("{}://{}", if self.secured { "https" } else { "http" }, self.clients[number])
    }

    /// Ends a member's process as a power cut does.
    pub(super) fn kill(&mut self, number: usize) {
        self.members[number].kill().unwrap();
        self.members[number].wait().unwrap();
    }

    /// Starts a killed member again.
    pub(super) fn restart(&mut self, number: usize) {
        self.members[number] = self.launch(number);
    }

    fn launch(&self, number: usize) -> Child {
        let cluster: Vec<String> =
            self.peers.iter().enumerate().map(|(number, peer)| format!("m{number}=http://{peer}")).collect();
        let client = self.client_url(number);
        let peer = format!("http://{}", self.peers[number]);
        let mut command = match &self.system {
            System::Barque => {
                let mut command = barque();
                command.arg("store");
                command
            }
            System::Etcd(program) => Command::new(program),
        };
        let log = self.directory.path().join(format!("m{number}.log"));
        let log = OpenOptions::new().create(true).append(true).open(log).unwrap();
        if self.secured {
            let file = |ending: &str| self.directory.path().join(format!("{CERTIFICATE}{ending}"));
            command.arg("--cert-file").arg(file(".pem")).arg("--key-file").arg(file(".key"));
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(file("-ca.pem"));
        }
        command
            .args(["--name", &format!("m{number}")])
            .arg("--data-dir")
            .arg(self.directory.path().join(format!("m{number}")))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--initial-cluster-token", "clients", "--initial-cluster-state", "new"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Fails when a member's process has ended.
    pub(super) fn assert_all_run(&mut self) {
        for (number, member) in self.members.iter_mut().enumerate() {
            let ended = member.try_wait().unwrap();
            assert!(ended.is_none(), "member {number} ended: {ended:?}");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for number in 0..3 {
                let log = self.directory.path().join(format!("m{number}.log"));
                let text = std::fs::read_to_string(log).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(15).collect();
                println!("the end of m{number}'s log, newest first:\n{}", tail.join("\n"));
            }
        }
        for member in &mut self.members {
            let _ended = member.kill();
            let _reaped = member.wait();
        }
    }
}

/// Addresses that nobody listens on at the moment, all different.
pub(super) fn free_addresses(count: usize) -> Vec<String> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}
