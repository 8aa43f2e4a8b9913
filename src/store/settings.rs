//! What `barque store` runs with: the flags' texts, checked and typed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use raft_store::Compaction;

use super::flags::Given;
use super::url::Url;

pub(crate) const NAME: &str = "default";
pub(crate) const TOKEN: &str = "etcd-cluster";
const CLIENT_URL: &str = "http://localhost:2379";
pub(crate) const PEER_URL: &str = "http://localhost:2380";
const LISTEN_CLIENT_URL: &str = "http://127.0.0.1:2379";
const LISTEN_PEER_URL: &str = "http://127.0.0.1:2380";
/// A member that is slower than this to notice a dead leader is of no use.
const ELECTION_TIMEOUT_MAX: Duration = Duration::from_secs(50);
/// An election must outlast a few heartbeats, as in etcd.
const HEARTBEATS_PER_ELECTION: u32 = 3;

/// Whether the cluster is to be made or joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClusterState {
    New,
    Existing,
}

/// Certificates of one side, by file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) trusted_ca: Option<PathBuf>,
    /// Callers without a certificate are refused.
    pub(crate) client_cert_auth: bool,
}

/// See the module's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) listen_client: Vec<Url>,
    pub(crate) advertise_client: Vec<Url>,
    pub(crate) listen_peer: Vec<Url>,
    pub(crate) advertise_peer: Vec<Url>,
    pub(crate) listen_metrics: Vec<Url>,
    pub(crate) listen_http: Vec<Url>,
    /// Peer URLs of every member, by name.
    pub(crate) initial_cluster: BTreeMap<String, Vec<Url>>,
    pub(crate) state: ClusterState,
    pub(crate) token: String,
    pub(crate) heartbeat_interval: Option<Duration>,
    pub(crate) election_timeout: Option<Duration>,
    pub(crate) snapshot_count: Option<u64>,
    pub(crate) snapshot_bytes_per_second: Option<u64>,
    pub(crate) lease_reads: bool,
    pub(crate) quota_bytes: Option<i64>,
    pub(crate) max_txn_ops: Option<usize>,
    pub(crate) max_request_bytes: Option<usize>,
    pub(crate) compaction: Compaction,
    pub(crate) strict_reconfig_check: bool,
    pub(crate) learners_max: Option<usize>,
    pub(crate) client_tls: Option<TlsFiles>,
    pub(crate) peer_tls: Option<TlsFiles>,
    pub(crate) peer_allowed_cn: Option<String>,
    pub(crate) auth_token: Option<String>,
    pub(crate) auth_token_ttl: Option<Duration>,
    pub(crate) bcrypt_cost: Option<u32>,
    pub(crate) log_level: String,
}

impl Settings {
    /// Checks and types what was given.
    pub(crate) fn of(given: &Given) -> anyhow::Result<Self> {
        let text = |name: &str| given.get(name).filter(|text| !text.is_empty()).map(str::to_owned);
        let urls = |name: &str, default: Option<&str>| match (text(name), default) {
            (Some(list), _) => Url::parse_list(&list).with_context(|| format!("--{name}")),
            (None, Some(default)) => Url::parse_list(default),
            (None, None) => Ok(Vec::new()),
        };
        let name = text("name").unwrap_or_else(|| NAME.to_owned());
        let advertise_peer = urls("initial-advertise-peer-urls", Some(PEER_URL))?;
        let listen_client = urls("listen-client-urls", Some(LISTEN_CLIENT_URL))?;
        ensure!(
            text("listen-client-urls").is_none() || text("advertise-client-urls").is_some(),
            "--advertise-client-urls is required when --listen-client-urls is set: it is what clients are told"
        );
        let initial_cluster = match text("initial-cluster") {
            Some(list) => parse_initial_cluster(&list).context("--initial-cluster")?,
            None => BTreeMap::from([(name.clone(), advertise_peer.clone())]),
        };
        let state = match text("initial-cluster-state").as_deref() {
            None | Some("new") => ClusterState::New,
            Some("existing") => ClusterState::Existing,
            Some(other) => bail!("--initial-cluster-state is new or existing, not {other:?}"),
        };
        let millis = |name: &str| Ok::<_, anyhow::Error>(number(given, name)?.map(Duration::from_millis));
        let settings = Self {
            data_dir: text("data-dir").map_or_else(|| PathBuf::from(format!("{name}.etcd")), PathBuf::from),
            name,
            listen_client,
            advertise_client: urls("advertise-client-urls", Some(CLIENT_URL))?,
            listen_peer: urls("listen-peer-urls", Some(LISTEN_PEER_URL))?,
            advertise_peer,
            listen_metrics: urls("listen-metrics-urls", None)?,
            listen_http: urls("listen-client-http-urls", None)?,
            initial_cluster,
            state,
            token: text("initial-cluster-token").unwrap_or_else(|| TOKEN.to_owned()),
            heartbeat_interval: millis("heartbeat-interval")?,
            election_timeout: millis("election-timeout")?,
            snapshot_count: number(given, "snapshot-count")?,
            snapshot_bytes_per_second: number(given, "snapshot-bytes-per-second")?,
            lease_reads: given.switch("experimental-lease-reads", false)?,
            quota_bytes: signed_number(given, "quota-backend-bytes")?,
            max_txn_ops: number(given, "max-txn-ops")?.map(bounded_usize),
            max_request_bytes: number(given, "max-request-bytes")?.map(bounded_usize),
            compaction: compaction(given)?,
            strict_reconfig_check: given.switch("strict-reconfig-check", true)?,
            learners_max: match number(given, "max-learners")? {
                Some(number) => Some(number),
                None => number(given, "experimental-max-learners")?,
            }
            .map(bounded_usize),
            client_tls: tls(given, "")?,
            peer_tls: tls(given, "peer-")?,
            peer_allowed_cn: text("peer-cert-allowed-cn"),
            auth_token: text("auth-token"),
            auth_token_ttl: number(given, "auth-token-ttl")?.map(Duration::from_secs),
            bcrypt_cost: number(given, "bcrypt-cost")?.map(|cost| u32::try_from(cost).unwrap_or(u32::MAX)),
            log_level: log_level(text("log-level").as_deref()),
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> anyhow::Result<()> {
        let https = |urls: &[Url]| urls.iter().any(|url| url.https);
        ensure!(
            !https(&self.listen_client) || self.client_tls.is_some(),
            "an https client URL needs --cert-file and --key-file"
        );
        let peers =
            self.initial_cluster.values().flatten().chain(&self.listen_peer).chain(&self.advertise_peer);
        let peers: Vec<Url> = peers.cloned().collect();
        match &self.peer_tls {
            Some(files) => {
                ensure!(
                    peers.iter().all(|url| url.https),
                    "with --peer-cert-file every peer URL must be https: members of one cluster all talk in \
                     clear text or none does"
                );
                ensure!(
                    files.trusted_ca.is_some(),
                    "--peer-cert-file needs --peer-trusted-ca-file: without it a member cannot tell the others \
                     from strangers"
                );
            }
            None => ensure!(
                !https(&peers),
                "an https peer URL needs --peer-cert-file, --peer-key-file and --peer-trusted-ca-file"
            ),
        }
        ensure!(
            self.peer_allowed_cn.is_none() || self.peer_tls.is_some(),
            "--peer-cert-allowed-cn needs --peer-cert-file"
        );
        let own = self
            .initial_cluster
            .get(&self.name)
            .with_context(|| format!("--initial-cluster does not name this member, {:?}", self.name))?;
        let sorted = |urls: &[Url]| {
            let mut urls = urls.to_vec();
            urls.sort();
            urls
        };
        ensure!(
            sorted(own) == sorted(&self.advertise_peer),
            "--initial-cluster has {} for {:?}, but --initial-advertise-peer-urls has {}: they must agree",
            list(own),
            self.name,
            list(&self.advertise_peer)
        );
        if let (Some(heartbeat), Some(election)) = (self.heartbeat_interval, self.election_timeout) {
            ensure!(
                election >= heartbeat * HEARTBEATS_PER_ELECTION,
                "--election-timeout must be at least {HEARTBEATS_PER_ELECTION} times --heartbeat-interval"
            );
        }
        ensure!(
            self.election_timeout.is_none_or(|timeout| timeout <= ELECTION_TIMEOUT_MAX),
            "--election-timeout must be at most {} ms",
            ELECTION_TIMEOUT_MAX.as_millis()
        );
        Ok(())
    }
}

/// URLs as texts.
pub(crate) fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::to_string).collect()
}

fn list(urls: &[Url]) -> String {
    texts(urls).join(",")
}

fn bounded_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn number(given: &Given, name: &str) -> anyhow::Result<Option<u64>> {
    let Some(text) = given.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("--{name}: {text:?} is no number"))
}

fn signed_number(given: &Given, name: &str) -> anyhow::Result<Option<i64>> {
    let Some(text) = given.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("--{name}: {text:?} is no number"))
}

/// `name=url,…`, a name once for each of its URLs.
pub(crate) fn parse_initial_cluster(list: &str) -> anyhow::Result<BTreeMap<String, Vec<Url>>> {
    let mut members: BTreeMap<String, Vec<Url>> = BTreeMap::new();
    for part in list.split(',') {
        let (name, url) =
            part.trim().split_once('=').with_context(|| format!("{part:?} is not of the form name=url"))?;
        members.entry(name.to_owned()).or_default().push(Url::parse(url)?);
    }
    let mut urls: Vec<&Url> = members.values().flatten().collect();
    urls.sort();
    for pair in urls.windows(2) {
        ensure!(pair[0] != pair[1], "{} stands there twice", pair[0]);
    }
    Ok(members)
}

fn compaction(given: &Given) -> anyhow::Result<Compaction> {
    let retention = given.get("auto-compaction-retention").unwrap_or("0").trim();
    match given.get("auto-compaction-mode").filter(|mode| !mode.is_empty()).unwrap_or("periodic") {
        "periodic" => {
            // A bare number means hours.
            let period = match retention.parse::<u64>() {
                Ok(hours) => Duration::from_secs(hours.saturating_mul(3600)),
                Err(_) => duration(retention).context("--auto-compaction-retention")?,
            };
            Ok(if period.is_zero() { Compaction::Off } else { Compaction::Period(period) })
        }
        "revision" => {
            let kept = retention.parse().with_context(|| {
                format!("--auto-compaction-retention: {retention:?} is no number of revisions")
            })?;
            Ok(if kept == 0 { Compaction::Off } else { Compaction::Revisions(kept) })
        }
        other => bail!("--auto-compaction-mode is periodic or revision, not {other:?}"),
    }
}

/// A duration as Go writes it: `1h30m`, `500ms`, `5s`.
fn duration(text: &str) -> anyhow::Result<Duration> {
    let wrong = || format!("{text:?} is not a duration: write 1h, 30m, 5s or 500ms");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').with_context(wrong)?;
        let number: f64 = rest[..digits].parse().with_context(wrong)?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| at + digits);
        let unit = match &rest[digits..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            _ => bail!(wrong()),
        };
        total += Duration::try_from_secs_f64(number * unit).with_context(wrong)?;
        rest = &rest[unit_end..];
    }
    Ok(total)
}

fn tls(given: &Given, prefix: &str) -> anyhow::Result<Option<TlsFiles>> {
    let path =
        |name: &str| given.get(&format!("{prefix}{name}")).filter(|text| !text.is_empty()).map(PathBuf::from);
    match (path("cert-file"), path("key-file")) {
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles {
            certificate,
            key,
            trusted_ca: path("trusted-ca-file"),
            client_cert_auth: given.switch(&format!("{prefix}client-cert-auth"), false)?,
        })),
        (None, None) => {
            ensure!(
                !given.switch(&format!("{prefix}client-cert-auth"), false)?,
                "--{prefix}client-cert-auth needs --{prefix}cert-file and --{prefix}key-file"
            );
            Ok(None)
        }
        _ => bail!("--{prefix}cert-file and --{prefix}key-file go together"),
    }
}

/// etcd's levels by our names.
fn log_level(given: Option<&str>) -> String {
    match given {
        None => "info,openraft=warn".to_owned(),
        Some("info") => "info,openraft=warn".to_owned(),
        Some("dpanic" | "panic" | "fatal") => "error".to_owned(),
        Some(level) => level.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(values: &[(&str, &str)]) -> anyhow::Result<Settings> {
        let mut given = Given::default();
        for (name, value) in values {
            given.take(name, (*value).to_owned(), name)?;
        }
        Settings::of(&given)
    }

    fn refused(values: &[(&str, &str)]) -> String {
        format!("{:#}", settings(values).unwrap_err())
    }

    #[test]
    fn without_flags_it_is_etcds_single_member() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.name, "default");
        assert_eq!(settings.data_dir, PathBuf::from("default.etcd"));
        assert_eq!(texts(&settings.listen_client), ["http://127.0.0.1:2379"]);
        assert_eq!(texts(&settings.advertise_client), ["http://localhost:2379"]);
        assert_eq!(texts(&settings.listen_peer), ["http://127.0.0.1:2380"]);
        assert_eq!(list(&settings.initial_cluster["default"]), "http://localhost:2380");
        assert_eq!(settings.compaction, Compaction::Off);
        assert!(settings.strict_reconfig_check);
    }

    #[test]
    fn settings_that_cannot_work_are_refused_with_the_reason() {
        assert!(
            refused(&[("listen-client-urls", "http://a:1")]).contains("--advertise-client-urls is required")
        );
        assert!(refused(&[("initial-cluster", "x=http://a:1")]).contains("does not name this member"));
        assert!(refused(&[("initial-cluster", "default=http://a:1")]).contains("they must agree"));
        assert!(refused(&[("initial-cluster", "default=http://a:1,b=http://a:1")]).contains("twice"));
        assert!(refused(&[("cert-file", "c")]).contains("go together"));
        assert!(refused(&[("client-cert-auth", "true")]).contains("needs --cert-file"));
        assert!(refused(&[("listen-peer-urls", "https://a:1")]).contains("needs --peer-cert-file"));
        assert!(
            refused(&[("peer-cert-file", "c"), ("peer-key-file", "k")])
                .contains("every peer URL must be https")
        );
        assert!(refused(&[("initial-cluster-state", "old")]).contains("new or existing"));
        assert!(
            refused(&[("heartbeat-interval", "100"), ("election-timeout", "200")])
                .contains("at least 3 times")
        );
        assert!(refused(&[("max-txn-ops", "many")]).contains("no number"));
    }

    #[test]
    fn retention_is_hours_a_duration_or_revisions() {
        let compaction = |mode: &str, retention: &str| {
            settings(&[("auto-compaction-mode", mode), ("auto-compaction-retention", retention)])
                .map(|settings| settings.compaction)
        };
        assert_eq!(compaction("periodic", "2").unwrap(), Compaction::Period(Duration::from_secs(7200)));
        assert_eq!(compaction("periodic", "1h30m").unwrap(), Compaction::Period(Duration::from_secs(5400)));
        assert_eq!(compaction("periodic", "500ms").unwrap(), Compaction::Period(Duration::from_millis(500)));
        assert_eq!(compaction("revision", "1000").unwrap(), Compaction::Revisions(1000));
        assert_eq!(compaction("revision", "0").unwrap(), Compaction::Off);
        assert!(compaction("periodic", "soon").is_err());
        assert!(compaction("weekly", "1").is_err());
    }
}
