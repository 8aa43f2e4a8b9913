//! The names of `barque store`'s settings: etcd's flags and `ETCD_*` variables, and what each is here.
//!
//! Owns the table of names and where values come from: the command line before the environment before the
//! default, or a configuration file instead of both, as etcd has it. What the values mean is `settings`.
//! Promises that an unknown flag is refused, that a flag of etcd that would have to do something and cannot is
//! refused with the reason, and that one that has no meaning here is accepted and mentioned once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;

use anyhow::{Context as _, bail};

/// How a flag is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// `--flag value` or `--flag=value`.
    Value,
    /// `--flag` or `--flag=true`.
    Switch,
}

/// What a flag of etcd is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// The same as in etcd.
    Same,
    /// Accepted: what it tunes does not exist here, for this reason.
    Idle(&'static str),
    /// Refused when it is set to anything but this value, for this reason.
    Only(&'static str, &'static str),
}

struct Flag {
    name: &'static str,
    takes: Takes,
    meaning: Meaning,
    help: &'static str,
}

const fn same(name: &'static str, help: &'static str) -> Flag {
    Flag { name, takes: Takes::Value, meaning: Meaning::Same, help }
}

const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag { name, takes: Takes::Switch, meaning: Meaning::Same, help }
}

const fn idle(name: &'static str, takes: Takes, why: &'static str) -> Flag {
    Flag { name, takes, meaning: Meaning::Idle(why), help: "" }
}

const fn only(name: &'static str, takes: Takes, value: &'static str, why: &'static str) -> Flag {
    Flag { name, takes, meaning: Meaning::Only(value, why), help: "" }
}

const NO_V2: &str = "the v2 API is not served";
const NO_DISCOVERY: &str = "members are named by --initial-cluster; there is no discovery service";
const NO_BACKEND: &str = "there is no bolt database here";
const NO_CRL: &str = "revocation lists are not read; issue short-lived certificates instead";
const NO_AUTO_TLS: &str = "certificates that nobody vouches for prove nothing; give a certificate and a key";
const ONE_LIBRARY: &str = "the TLS library's own choice of safe suites is used";
const NO_TRACING: &str = "traces are not exported";
const ALWAYS_CHECKED: &str = "members compare hashes all the time";
const NO_GATEWAY: &str = "JSON over HTTP is not served; gRPC is";
const HTTP2_OWN: &str = "the HTTP/2 server's own limits are used";
const LOG_LINES: &str = "logs are lines on standard error";

use Takes::{Switch, Value};

const FLAGS: &[Flag] = &[
    same("name", "this member's name"),
    same("data-dir", "the directory of everything that must survive"),
    same("listen-client-urls", "where clients are served, separated by commas"),
    same("advertise-client-urls", "where clients find this member"),
    same("listen-client-http-urls", "where HTTP without gRPC is served beside the client URLs"),
    same("listen-peer-urls", "where the other members are served"),
    same("initial-advertise-peer-urls", "where the other members find this one"),
    same("initial-cluster", "name=url,… of every member of a new cluster"),
    same("initial-cluster-state", "new, or existing: join a cluster that has this member on its list"),
    same("initial-cluster-token", "what makes this cluster's ids its own"),
    same("listen-metrics-urls", "where /metrics and /health are served in addition"),
    same("metrics", "basic or extensive"),
    same("heartbeat-interval", "milliseconds between a leader's heartbeats (40)"),
    same("election-timeout", "milliseconds without a leader before a member campaigns (150)"),
    same("snapshot-count", "log entries between two checkpoints"),
    same("snapshot-bytes-per-second", "bytes of snapshots sent to other members (67108864); 0: no bound"),
    switch(
        "experimental-lease-reads",
        "linearizable reads at the leader without asking the others; at every member or none. No clock may run twice \
         as fast as another's, or stand still while its machine is suspended or moved",
    ),
    same("quota-backend-bytes", "bytes of live data before writes are refused"),
    same("max-txn-ops", "operations in one transaction"),
    same("max-request-bytes", "bytes of one request"),
    same("auto-compaction-mode", "periodic or revision"),
    same("auto-compaction-retention", "how much history is kept; 0: all"),
    switch("strict-reconfig-check", "refuse membership changes that would lose the quorum"),
    same("experimental-max-learners", "learners at the same time"),
    same("max-learners", "learners at the same time"),
    same("experimental-watch-progress-notify-interval", "between two progress notifications of a watch"),
    same("watch-progress-notify-interval", "between two progress notifications of a watch"),
    same("cert-file", "certificate shown to clients"),
    same("key-file", "its private key"),
    switch("client-cert-auth", "refuse clients without a certificate of the trusted authority"),
    same("trusted-ca-file", "the authority of clients' certificates"),
    same("peer-cert-file", "certificate shown to the other members"),
    same("peer-key-file", "its private key"),
    switch("peer-client-cert-auth", "refuse members without a certificate (always so when peers use https)"),
    same("peer-trusted-ca-file", "the authority of the members' certificates"),
    same("peer-cert-allowed-cn", "the common name that a member's certificate must carry"),
    same("auth-token", "simple, or jwt with its options"),
    same("auth-token-ttl", "seconds that a simple token lives"),
    same("bcrypt-cost", "cost of hashing passwords"),
    same("log-level", "debug, info, warn, error, or levels by target"),
    same("config-file", "YAML file that replaces flags and environment"),
    idle("wal-dir", Value, "the log lies in the data directory"),
    idle("max-snapshots", Value, "there is one checkpoint"),
    idle("max-wals", Value, "log files are recycled"),
    idle("initial-election-tick-advance", Switch, "elections are not slowed down at the start"),
    idle("pre-vote", Switch, "pre-votes are always on"),
    idle("backend-batch-interval", Value, NO_BACKEND),
    idle("backend-batch-limit", Value, NO_BACKEND),
    idle("backend-bbolt-freelist-type", Value, NO_BACKEND),
    idle("experimental-backend-bbolt-freelist-type", Value, NO_BACKEND),
    idle("experimental-bootstrap-defrag-threshold-megabytes", Value, NO_BACKEND),
    idle("experimental-memory-mlock", Switch, NO_BACKEND),
    idle("experimental-txn-mode-write-with-shared-buffer", Switch, NO_BACKEND),
    idle("grpc-keepalive-min-time", Value, HTTP2_OWN),
    idle("grpc-keepalive-interval", Value, HTTP2_OWN),
    idle("grpc-keepalive-timeout", Value, HTTP2_OWN),
    idle("max-concurrent-streams", Value, HTTP2_OWN),
    idle("socket-reuse-port", Switch, HTTP2_OWN),
    idle("socket-reuse-address", Switch, HTTP2_OWN),
    idle("cors", Value, NO_GATEWAY),
    idle("host-whitelist", Value, NO_GATEWAY),
    idle("enable-grpc-gateway", Switch, NO_GATEWAY),
    idle("logger", Value, LOG_LINES),
    idle("log-outputs", Value, LOG_LINES),
    idle("log-format", Value, LOG_LINES),
    idle("log-package-levels", Value, LOG_LINES),
    idle("enable-log-rotation", Switch, LOG_LINES),
    idle("log-rotation-config-json", Value, LOG_LINES),
    idle("debug", Switch, "use --log-level debug"),
    idle("enable-pprof", Switch, "there is no profiler inside"),
    idle("v2-deprecation", Value, NO_V2),
    idle("self-signed-cert-validity", Value, NO_AUTO_TLS),
    idle("experimental-initial-corrupt-check", Switch, ALWAYS_CHECKED),
    idle("experimental-corrupt-check-time", Value, ALWAYS_CHECKED),
    idle("experimental-compact-hash-check-enabled", Switch, ALWAYS_CHECKED),
    idle("experimental-compact-hash-check-time", Value, ALWAYS_CHECKED),
    idle("experimental-compaction-batch-limit", Value, "compaction never stalls writes"),
    idle("experimental-compaction-sleep-interval", Value, "compaction never stalls writes"),
    idle("experimental-enable-lease-checkpoint", Switch, "leases are always checkpointed"),
    idle("experimental-enable-lease-checkpoint-persist", Switch, "leases are always checkpointed"),
    idle("experimental-downgrade-check-time", Value, "there are no downgrades"),
    idle("experimental-warning-apply-duration", Value, "applying happens in memory"),
    idle("experimental-warning-unary-request-duration", Value, "use the metrics"),
    idle("experimental-snapshot-catchup-entries", Value, "a fixed number of entries is kept"),
    idle("experimental-stop-grpc-service-on-defrag", Switch, "a defragmentation stops nothing"),
    idle("experimental-enable-distributed-tracing", Switch, NO_TRACING),
    idle("experimental-distributed-tracing-address", Value, NO_TRACING),
    idle("experimental-distributed-tracing-service-name", Value, NO_TRACING),
    idle("experimental-distributed-tracing-instance-id", Value, NO_TRACING),
    idle("experimental-distributed-tracing-sampling-rate", Value, NO_TRACING),
    idle("experimental-peer-skip-client-san-verification", Switch, "addresses of members are not verified"),
    only("enable-v2", Switch, "false", NO_V2),
    only("experimental-enable-v2v3", Value, "", NO_V2),
    only("proxy", Value, "off", NO_V2),
    only("gateway", Value, "", NO_V2),
    only("discovery", Value, "", NO_DISCOVERY),
    only("discovery-srv", Value, "", NO_DISCOVERY),
    only("discovery-srv-name", Value, "", NO_DISCOVERY),
    only("discovery-proxy", Value, "", NO_DISCOVERY),
    only("discovery-fallback", Value, "proxy", NO_DISCOVERY),
    only("auto-tls", Switch, "false", NO_AUTO_TLS),
    only("peer-auto-tls", Switch, "false", NO_AUTO_TLS),
    only("client-crl-file", Value, "", NO_CRL),
    only("peer-crl-file", Value, "", NO_CRL),
    only("client-cert-allowed-hostname", Value, "", "only the authority of a certificate is checked"),
    only("peer-cert-allowed-hostname", Value, "", "use --peer-cert-allowed-cn"),
    only("cipher-suites", Value, "", ONE_LIBRARY),
    only("tls-min-version", Value, "TLS1.2", "TLS 1.2 and 1.3 are served"),
    only("tls-max-version", Value, "", "TLS 1.2 and 1.3 are served"),
    only(
        "force-new-cluster",
        Switch,
        "false",
        "use `barque store recover`, which also fences the old members",
    ),
    only("unsafe-no-fsync", Switch, "false", "what is acknowledged is on disk"),
];

/// The values that were given, by flag; of [`Meaning::Same`] flags only.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    values: BTreeMap<&'static str, String>,
    /// What was accepted without effect, for the log.
    pub(crate) remarks: Vec<String>,
}

impl Given {
    /// The value of a flag, if one was given.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        debug_assert!(
            find(name).is_some_and(|flag| flag.meaning == Meaning::Same),
            "{name} is not in the table"
        );
        self.values.get(name).map(String::as_str)
    }

    /// Whether a switch is on.
    pub(crate) fn switch(&self, name: &str, default: bool) -> anyhow::Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(text) => parse_bool(text).with_context(|| format!("--{name}")),
        }
    }

    /// Takes a value from the named place (`--flag`, a variable, a line of a file).
    pub(crate) fn take(&mut self, name: &str, value: String, place: &str) -> anyhow::Result<()> {
        let flag = find(name).with_context(|| format!("{place}: there is no such setting"))?;
        match flag.meaning {
            Meaning::Same => {
                self.values.insert(flag.name, value);
            }
            Meaning::Idle(why) => self.remarks.push(format!("{place} has no effect: {why}")),
            Meaning::Only(allowed, why) if value != allowed => {
                bail!("{place} cannot be {value:?} here: {why}; leave it out")
            }
            Meaning::Only(..) => {}
        }
        Ok(())
    }
}

fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

fn parse_bool(text: &str) -> anyhow::Result<bool> {
    match text {
        "true" | "1" | "t" | "T" | "TRUE" | "True" => Ok(true),
        "false" | "0" | "f" | "F" | "FALSE" | "False" => Ok(false),
        _ => bail!("{text:?} is neither true nor false"),
    }
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Run with these settings.
    Run(Given),
    /// Print the flags.
    Help,
    /// Print the version.
    Version,
}

/// Reads arguments and environment.
pub(crate) fn read(
    args: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> anyhow::Result<Asked> {
    let mut given = Given::default();
    // Variables first, so that flags replace them.
    for (name, value) in environment {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
        let Some(rest) = name.strip_prefix("ETCD_") else { continue };
        let flag = rest.to_ascii_lowercase().replace('_', "-");
        if find(&flag).is_none() {
            given.remarks.push(format!("the environment variable {name} is not known"));
        } else {
            given.take(&flag, value.to_owned(), name)?;
        }
    }
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let arg = arg.into_string().map_err(|arg| anyhow::anyhow!("{arg:?} is not UTF-8"))?;
        let Some(body) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            bail!("{arg:?} is not a flag; `barque store --help` lists them");
        };
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        match name {
            "help" | "h" => return Ok(Asked::Help),
            "version" => return Ok(Asked::Version),
            _ => {}
        }
        let Some(flag) = find(name) else {
            bail!("there is no flag --{name}; `barque store --help` lists them");
        };
        let value = match (value, flag.takes) {
            (Some(value), _) => value,
            (None, Takes::Switch) => "true".to_owned(),
            (None, Takes::Value) => {
                let next = args.next().with_context(|| format!("--{name} needs a value"))?;
                next.into_string().map_err(|value| anyhow::anyhow!("--{name}: {value:?} is not UTF-8"))?
            }
        };
        given.take(name, value, &format!("--{name}"))?;
    }
    Ok(Asked::Run(given))
}

/// The text of `barque store --help`.
pub(crate) fn help() -> String {
    let mut text = String::from(
        "Runs one member of a store alone, in place of etcd: flags and ETCD_* variables are etcd's.\n\n\
         Usage: barque store [FLAGS]\n       barque store recover --help\n\nFlags:\n",
    );
    let mut idle = Vec::new();
    for flag in FLAGS {
        match flag.meaning {
            Meaning::Same => {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "  --{:<44} {}", flag.name, flag.help);
            }
            Meaning::Idle(_) => idle.push(flag.name),
            Meaning::Only(..) => {}
        }
    }
    let _ = writeln!(text, "\nFlags of etcd that are accepted and have no effect:\n  {}", idle.join(" "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Given> {
        let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
        match read(args.iter().map(OsString::from), environment)? {
            Asked::Run(given) => Ok(given),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_goes_before_the_environment() {
        let given = run(
            &["--name", "a", "-max-txn-ops=7", "--client-cert-auth"],
            &[("ETCD_NAME", "b"), ("ETCD_DATA_DIR", "/d"), ("PATH", "/bin"), ("ETCDCTL_API", "3")],
        )
        .unwrap();
        assert_eq!(given.get("name"), Some("a"));
        assert_eq!(given.get("data-dir"), Some("/d"));
        assert_eq!(given.get("max-txn-ops"), Some("7"));
        assert!(given.switch("client-cert-auth", false).unwrap());
        assert!(given.switch("strict-reconfig-check", true).unwrap());
        assert!(given.remarks.is_empty(), "{:?}", given.remarks);
    }

    #[test]
    fn what_has_no_meaning_is_mentioned_and_what_cannot_be_done_is_refused() {
        let given = run(&["--max-wals", "5", "--enable-v2=false"], &[("ETCD_NONSENSE", "1")]).unwrap();
        assert_eq!(given.remarks.len(), 2, "{:?}", given.remarks);
        let refused = |args: &[&str]| run(args, &[]).unwrap_err().to_string();
        assert!(
            refused(&["--auto-tls"]).contains("--auto-tls cannot be \"true\" here"),
            "{}",
            refused(&["--auto-tls"])
        );
        assert!(refused(&["--force-new-cluster"]).contains("barque store recover"));
        assert!(refused(&["--bogus"]).contains("there is no flag --bogus"));
        assert!(refused(&["--name"]).contains("needs a value"));
        assert!(refused(&["stray"]).contains("not a flag"));
        let error = run(&[], &[("ETCD_AUTO_TLS", "true")]).unwrap_err().to_string();
        assert!(error.starts_with("ETCD_AUTO_TLS cannot be"), "{error}");
    }

    #[test]
    fn no_flag_is_listed_twice() {
        for (at, flag) in FLAGS.iter().enumerate() {
            assert!(FLAGS[..at].iter().all(|other| other.name != flag.name), "{}", flag.name);
        }
        assert!(help().contains("--initial-cluster-token"));
    }
}
