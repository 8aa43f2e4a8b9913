//! Running kube-apiserver on a group, and asking it.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::Value;

use super::ctl::{programs, run};
use super::group::{CERTIFICATE, Group};
use crate::support::{DEADLINE, Running, certificates, eventually, free_address, text};

/// Longest wait for one answer; the apiserver itself gives up after a minute.
const ANSWER_MAX: Duration = Duration::from_secs(75);
/// How long an Event lasts.
pub(super) const EVENT_TTL: Duration = Duration::from_secs(4);
/// The name of the apiserver's own certificate.
const SERVING: &str = "api";
const TOKEN: &str = "secret";
/// With these it signs and verifies the tokens of service accounts.
const ACCOUNTS_PRIVATE: &str = "accounts.key";
const ACCOUNTS_PUBLIC: &str = "accounts.pub";
/// What stands before the point in a public key of the curve P-256 (RFC 5480).
const P256_PUBLIC_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// The programs that are needed.
pub(super) struct Programs {
    apiserver: PathBuf,
    kubectl: PathBuf,
}

impl Programs {
    /// Both from PATH, or the name of the one that is missing.
    pub(super) fn find() -> Result<Self, &'static str> {
        let first = |name| programs(name).into_iter().next().ok_or(name);
        Ok(Self { apiserver: first("kube-apiserver")?, kubectl: first("kubectl")? })
    }
}

/// A kube-apiserver that stores in a group; ends with the value.
pub(super) struct Api {
    programs: Programs,
    pub(super) directory: tempfile::TempDir,
    stores: Vec<String>,
    /// Certificates towards a secured store lie here.
    store_certificates: Option<PathBuf>,
    port: u16,
    server: Option<Running>,
}

impl Api {
    /// Starts it and waits until it is ready.
    pub(super) fn start(programs: Programs, group: &Group) -> Self {
        let directory = tempfile::tempdir().unwrap();
        certificates(directory.path(), SERVING);
        account_keys(directory.path());
        let users = format!("{TOKEN},admin,admin,\"system:masters\"\n");
        std::fs::write(directory.path().join("users"), users).unwrap();
        let mut api = Self {
            programs,
            directory,
            stores: (0..3).map(|number| group.client_url(number)).collect(),
            store_certificates: group.secured.then(|| group.directory.path().to_owned()),
            port: free_address().port(),
            server: None,
        };
        api.restart();
        api
    }

    /// Ends it with TERM, if it runs, and starts it.
    pub(super) fn restart(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.terminate();
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        self.server = Some(Running::start(self.launch().stderr(log)));
        eventually(|| {
            let ended = self.server.as_mut().and_then(|server| server.child.try_wait().unwrap());
            assert!(ended.is_none(), "kube-apiserver ended: {ended:?}");
            // Ready says so before the default namespaces are there.
            let made = ["get", "namespace", "default", "-o", "name", "--request-timeout=5s"];
            self.kubectl(&made).output().unwrap().status.success().then_some(())
        });
    }

    fn launch(&self) -> Command {
        let own = |ending: &str| self.directory.path().join(format!("{SERVING}{ending}"));
        let flag = |name: &str, path: &Path| format!("--{name}={}", text(path));
        let mut command = Command::new(&self.programs.apiserver);
        command.args([
            format!("--etcd-servers={}", self.stores.join(",")),
            // It compacts what is older than one to two of these.
            "--etcd-compaction-interval=2s".to_owned(),
            "--etcd-db-metric-poll-interval=1s".to_owned(),
            format!("--event-ttl={}s", EVENT_TTL.as_secs()),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.port),
            flag("tls-cert-file", &own(".pem")),
            flag("tls-private-key-file", &own(".key")),
            flag("cert-dir", self.directory.path()),
            flag("token-auth-file", &self.directory.path().join("users")),
            flag("service-account-key-file", &self.directory.path().join(ACCOUNTS_PUBLIC)),
            flag("service-account-signing-key-file", &self.directory.path().join(ACCOUNTS_PRIVATE)),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            // Nobody makes service accounts here.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ]);
        if let Some(directory) = &self.store_certificates {
            let file = |ending: &str| directory.join(format!("{CERTIFICATE}{ending}"));
            command.arg(flag("etcd-cafile", &file("-ca.pem")));
            command.arg(flag("etcd-certfile", &file(".pem"))).arg(flag("etcd-keyfile", &file(".key")));
        }
        command
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// kubectl with these words.
    pub(super) fn kubectl(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.kubectl);
        command
            .env("HOME", self.directory.path())
            .env("KUBECONFIG", "/dev/null")
            .arg(format!("--server=https://127.0.0.1:{}", self.port))
            .arg(format!("--token={TOKEN}"))
            .arg("--certificate-authority")
            .arg(self.directory.path().join(format!("{SERVING}-ca.pem")))
            .args(words);
        command
    }

    /// What kubectl prints, which must succeed; the words are separated by spaces.
    #[track_caller]
    pub(super) fn ok(&self, words: &str) -> String {
        self.ok_with("", words)
    }

    /// The same with a standard input.
    #[track_caller]
    pub(super) fn ok_with(&self, input: &str, words: &str) -> String {
        let (ok, stdout, stderr) = run(self.kubectl(&split(words)), input);
        assert!(ok, "kubectl {words}: {stdout}{stderr}");
        stdout
    }

    /// kubectl must fail with this in its error.
    #[track_caller]
    pub(super) fn fails_with(&self, input: &str, words: &str, error: &str) {
        let (ok, stdout, stderr) = run(self.kubectl(&split(words)), input);
        assert!(!ok, "kubectl {words}: it succeeded: {stdout}");
        assert!(stderr.contains(error), "kubectl {words}: {error:?} is not in {stderr}");
    }

    /// Starts kubectl with words that go on until they are ended.
    pub(super) fn follow(&self, words: &str) -> Running {
        Running::start(self.kubectl(&split(words)).stderr(Stdio::null()))
    }

    /// A way in without TLS, for callers that ask much.
    pub(super) fn proxy(&self) -> Proxy {
        let process = self.follow("proxy --port=0");
        let line = process.line();
        let address = line.strip_prefix("Starting to serve on ").expect(&line).to_owned();
        Proxy { _process: process, way: Way { address } }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            println!("the end of kube-apiserver's log, newest first:\n{}", tail.join("\n"));
        }
    }
}

/// kube-apiserver takes no Ed25519 here.
fn account_keys(directory: &Path) {
    let (random, kind) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
    let private = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(kind, private.as_ref(), &random).unwrap();
    let public = [&P256_PUBLIC_HEAD, pair.public_key().as_ref()].concat();
    let pem = |label: &str, der: &[u8]| {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
    };
    std::fs::write(directory.join(ACCOUNTS_PRIVATE), pem("PRIVATE KEY", private.as_ref())).unwrap();
    std::fs::write(directory.join(ACCOUNTS_PUBLIC), pem("PUBLIC KEY", &public)).unwrap();
}

fn split(words: &str) -> Vec<&str> {
    words.split(' ').collect()
}

/// `kubectl proxy`; ends with the value.
pub(super) struct Proxy {
    _process: Running,
    pub(super) way: Way,
}

/// Where to ask in plain HTTP.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) address: String,
}

/// Why there is no answer; whether the request was carried out is unknown.
#[derive(Debug)]
pub(super) struct NoAnswer;

impl Way {
    /// One request: the status code and the object.
    pub(super) fn ask(&self, method: &str, path: &str, body: &str) -> Result<(u16, Value), NoAnswer> {
        let mut answer = String::new();
        let code = self.open(method, path, body)?.1.read_to_string(&mut answer).map_err(|_| NoAnswer);
        code?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(NoAnswer)?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(NoAnswer)?;
        Ok((code, serde_json::from_str(body).unwrap_or(Value::Null)))
    }

    /// The lines of a watch, to its end.
    pub(super) fn lines(&self, path: &str) -> Result<impl Iterator<Item = String> + use<>, NoAnswer> {
        let (stream, reader) = self.open("GET", path, "")?;
        stream.set_read_timeout(Some(DEADLINE)).map_err(|_| NoAnswer)?;
        Ok(reader.lines().map_while(Result::ok).skip_while(|line| !line.is_empty()).skip(1))
    }

    /// HTTP/1.0: the end of the answer is the end of the connection.
    fn open(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<(TcpStream, BufReader<TcpStream>), NoAnswer> {
        let mut stream = TcpStream::connect(&self.address).map_err(|_| NoAnswer)?;
        stream.set_read_timeout(Some(ANSWER_MAX)).map_err(|_| NoAnswer)?;
        let (host, bytes) = (&self.address, body.len());
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Content-Length: {bytes}\r\n\r\n{body}"
        )
        .map_err(|_| NoAnswer)?;
        let reader = BufReader::new(stream.try_clone().map_err(|_| NoAnswer)?);
        Ok((stream, reader))
    }
}
