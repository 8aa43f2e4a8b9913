//! Secrets at rest: whole replicas on real disks, stopped and started with other keys.
//!
//! `GET` through a replica shows what was written; the files of its store do not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use control::pki::{Authority, ControlToken, write_private};
use control::{Config, Error};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::client::{CONFIG_MAPS, Client, config_map};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const PATIENCE: Duration = Duration::from_secs(60);

/// Replicas of one cluster, in this process.
struct Replicas {
    directory: tempfile::TempDir,
    authority: Authority,
    members: BTreeMap<String, SocketAddr>,
    running: BTreeMap<String, (CancellationToken, tokio::task::JoinHandle<Result<(), Error>>)>,
}

impl Replicas {
    fn new(count: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let token = ControlToken::generate(SystemTime::now()).unwrap();
        write_private(&directory.path().join("token"), token.to_secret_text().as_bytes()).unwrap();
        let sockets: Vec<_> =
            (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap());
        let members = (1..).map(|number| format!("m{number}")).zip(addresses).collect();
        Self {
            directory,
            authority: Authority::from_token(&token).unwrap(),
            members,
            running: BTreeMap::new(),
        }
    }

    /// Starts a replica with these providers for Secrets; none: without any configuration.
    fn start(&mut self, name: &str, providers: Option<&str>) {
        let mut config = json!({
            "name": name, "dataDir": self.directory.path().join(name), "tokenFile": self.directory.path().join("token"),
            "listenAddress": self.members[name], "initialMembers": self.members,
        });
        if let Some(providers) = providers {
            let path = self.directory.path().join(format!("{name}-encryption.yaml"));
            let text = format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
                 resources: [{{resources: [secrets], providers: [{providers}]}}]\n"
            );
            std::fs::write(&path, text).unwrap();
            config["encryptionConfigFile"] = json!(path);
        }
        let config = Config::parse(&config.to_string()).unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(control::run(config, stop.clone()));
        self.running.insert(name.to_owned(), (stop, running));
    }

    async fn stop(&mut self, name: &str) {
        let (stop, running) = self.running.remove(name).unwrap();
        stop.cancel();
        tokio::time::timeout(PATIENCE, running).await.expect("it stops").unwrap().unwrap();
    }

    /// Why a replica ended by itself.
    async fn ended(&mut self, name: &str) -> String {
        let (_stop, running) = self.running.remove(name).unwrap();
        let ended = tokio::time::timeout(PATIENCE, running).await.expect("it ends by itself").unwrap();
        ended.unwrap_err().to_string()
    }

    fn client(&self, name: &str) -> Client {
        let admin = self.authority.issue_admin("admin", SystemTime::now()).unwrap();
        Client::to(self.members[name], &self.authority, Some(&admin))
    }

    /// A client of a replica that is ready.
    async fn ready(&self, name: &str) -> Client {
        let client = self.client(name);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            assert!(tokio::time::Instant::now() < deadline, "{name} is not ready");
            let connected = tokio::net::TcpStream::connect(self.members[name]).await.is_ok();
            if connected && client.get("/api/v1/namespaces/default").await.code == 200 {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn is_on_disk(&self, name: &str, words: &str) -> bool {
        holds(&self.directory.path().join(name).join("store"), words.as_bytes())
    }
}

fn holds(path: &Path, words: &[u8]) -> bool {
    if path.is_dir() {
        let entries = std::fs::read_dir(path).unwrap();
        return entries.map(|entry| entry.unwrap().path()).any(|path| holds(&path, words));
    }
    std::fs::read(path).unwrap_or_default().windows(words.len()).any(|found| found == words)
}

fn keyed(provider: &str, name: &str, byte: u8) -> String {
    format!("{{{provider}: {{keys: [{{name: {name}, secret: \"{}\"}}]}}}}", STANDARD.encode([byte; 32]))
}

async fn read(client: &Client) -> Value {
    client.get(&format!("{SECRETS}/s")).await.expect(200)["data"]["password"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_lie_encrypted_through_restarts_and_rotation() {
    let mut replicas = Replicas::new(1);
    let (first, second) = (keyed("aesgcm", "key1", 1), keyed("chacha20poly1305", "key2", 2));
    let encoded = STANDARD.encode("correct-horse-battery-staple");
    replicas.start("m1", Some(&format!("{first}, {{identity: {{}}}}")));
    let client = replicas.ready("m1").await;
    let secret = json!({"metadata": {"name": "s"}, "data": {"password": encoded}});
    client.post(SECRETS, &secret).await.expect(201);
    client.post(CONFIG_MAPS, &config_map("c", "in-plain-sight")).await.expect(201);
    assert_eq!(read(&client).await, json!(encoded));
    replicas.stop("m1").await;
    assert!(replicas.is_on_disk("m1", "in-plain-sight"), "what is not encrypted is found there");
    assert!(!replicas.is_on_disk("m1", &encoded));
    assert!(replicas.is_on_disk("m1", "k8s:enc:aesgcm:v1:key1:"));
    // The next key is made the first; the leader rewrites, and the older key can go.
    replicas.start("m1", Some(&format!("{second}, {first}")));
    let client = replicas.ready("m1").await;
    assert_eq!(read(&client).await, json!(encoded));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !replicas.is_on_disk("m1", "k8s:enc:chacha20poly1305:v1:key2:") {
        assert!(tokio::time::Instant::now() < deadline, "nothing was rewritten");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(read(&client).await, json!(encoded));
    replicas.stop("m1").await;
    replicas.start("m1", Some(&second));
    let client = replicas.ready("m1").await;
    assert_eq!(read(&client).await, json!(encoded));
    let mut updated = client.get(&format!("{SECRETS}/s")).await.expect(200);
    updated["data"]["more"] = json!("eA==");
    client.put(&format!("{SECRETS}/s"), &updated).await.expect(200);
    assert_eq!(client.put(&format!("{SECRETS}/s"), &updated).await.code, 409, "versions count as ever");
    replicas.stop("m1").await;
    // Without its key it is an error that says so, and everything else works.
    replicas.start("m1", Some(&format!("{{identity: {{}}}}, {first}")));
    let client = replicas.ready("m1").await;
    let (code, _, message) = client.get(&format!("{SECRETS}/s")).await.status();
    assert_eq!(code, 500);
    for words in [
        "unable to transform key \"/registry/core/secrets/default/s\"",
        "under the key \"key2\" of chacha20poly1305",
    ] {
        assert!(message.contains(words), "{message}");
    }
    client.get(&format!("{CONFIG_MAPS}/c")).await.expect(200);
    replicas.stop("m1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_could_not_read_the_others_stops_and_says_so() {
    let mut replicas = Replicas::new(3);
    let first = format!("{}, {{identity: {{}}}}", keyed("aesgcm", "key1", 1));
    for name in ["m1", "m2", "m3"] {
        replicas.start(name, Some(&first));
    }
    let client = replicas.ready("m1").await;
    let encoded = STANDARD.encode("correct-horse-battery-staple");
    let secret = json!({"metadata": {"name": "s"}, "data": {"password": encoded}});
    client.post(SECRETS, &secret).await.expect(201);
    for name in ["m1", "m2", "m3"] {
        assert_eq!(read(&replicas.ready(name).await).await, json!(encoded), "{name}");
    }
    replicas.stop("m3").await;
    assert!(!replicas.is_on_disk("m3", &encoded) && replicas.is_on_disk("m3", "k8s:enc:aesgcm:v1:key1:"));
    replicas.start("m3", None);
    let why = replicas.ended("m3").await;
    assert!(
        why.contains("writes secrets under aesgcm:key1:") && why.contains("`encryptionConfigFile`"),
        "{why}"
    );
    replicas.start("m3", Some(&format!("{}, {first}", keyed("aesgcm", "key2", 2))));
    let why = replicas.ended("m3").await;
    assert!(why.contains("this member would write secrets under aesgcm:key2:"), "{why}");
    replicas.start("m3", Some(&first));
    assert_eq!(read(&replicas.ready("m3").await).await, json!(encoded));
    for name in ["m1", "m2", "m3"] {
        replicas.stop(name).await;
    }
}

#[tokio::test]
async fn what_a_configuration_gets_wrong_is_said_before_anything_starts() {
    let mut replicas = Replicas::new(1);
    replicas.start("m1", Some("{secretbox: {keys: []}}"));
    let why = replicas.ended("m1").await;
    assert!(why.contains("m1-encryption.yaml") && why.contains("\"secretbox\" is not offered"), "{why}");
}
