//! The audit log: who asked what, when, and what became of it, as a policy file wants it.
//!
//! Owns the policy ([`Policy`]), the form of events ([`Event`]) and the file they go to, one JSON object a line in
//! the words of `audit.k8s.io/v1`. Promises that no request waits for the disk: events are handed to a thread of
//! their own over a bounded queue, and those that do not fit are dropped and counted. At level `Metadata` an event
//! holds nothing of any body. Does not read requests: that is `rest::audit`'s.
//!
//! ```text
//!   request ─► policy: level, stages ─► event ─► queue (bounded) ─► thread ─► file ─► rotated, old ones removed
//! ```

mod event;
mod file;
mod policy;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use exposition::Exposition;
use serde::Deserialize;

pub use self::event::{Answer, Event, Stage};
pub use self::file::Bounds;
pub use self::policy::{Decision, Level, Policy, Subject};

/// Events that wait for the disk at once…
const QUEUE_EVENTS_MAX: usize = 10_000;
/// …and their bytes.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes that are written at once.
const BATCH_BYTES: usize = 256 * 1024;
/// Largest policy file.
const POLICY_BYTES_MAX: u64 = 1024 * 1024;
const MEGABYTE: u64 = 1024 * 1024;

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The policy file cannot be read.
    #[error(
        "cannot read the audit policy {path}: {source}; `audit.policyFile` in the configuration names it"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no policy.
    #[error("the audit policy {path} cannot be used: {reason}")]
    Policy {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The log cannot be written.
    #[error("cannot open the audit log {path}: {source}; `audit.logPath` in the configuration names it")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Where the audit log goes and by which policy; the names are kube-apiserver's.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// A file with an `audit.k8s.io/v1` Policy.
    pub policy_file: PathBuf,
    /// The log.
    pub log_path: PathBuf,
    /// Megabytes after which the log is set aside and begun anew.
    #[serde(default = "default_size")]
    pub log_max_size: u64,
    /// How many of those set aside are kept; 0: all.
    #[serde(default = "default_backups")]
    pub log_max_backup: usize,
    /// How many days they are kept; 0: for ever.
    #[serde(default)]
    pub log_max_age: u32,
}

fn default_size() -> u64 {
    100
}

fn default_backups() -> usize {
    10
}

/// The audit log of one replica.
#[derive(Debug)]
pub struct Audit {
    policy: Policy,
    sender: Mutex<Option<SyncSender<String>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    waiting_bytes: AtomicUsize,
}

impl Audit {
    /// Reads the policy, opens the log and starts the thread that writes it.
    pub fn open(settings: &Settings) -> Result<Self, AuditError> {
        let path = &settings.policy_file;
        let failed = |source| AuditError::Read { path: path.clone(), source };
        if std::fs::metadata(path).map_err(failed)?.len() > POLICY_BYTES_MAX {
            return Err(failed(std::io::Error::other("it is larger than any policy")));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let policy =
            Policy::parse(&text).map_err(|reason| AuditError::Policy { path: path.clone(), reason })?;
        let bounds = Bounds {
            bytes: settings.log_max_size.max(1).saturating_mul(MEGABYTE),
            backups: settings.log_max_backup,
            age_days: settings.log_max_age,
        };
        Self::start(policy, settings.log_path.clone(), bounds)
    }

    /// As [`Audit::open`], with a policy that was read already.
    pub fn start(policy: Policy, path: PathBuf, bounds: Bounds) -> Result<Self, AuditError> {
        let failed = |source| AuditError::Open { path: path.clone(), source };
        let log = file::Log::open(&path, bounds).map_err(failed)?;
        let (sender, receiver) = sync_channel(QUEUE_EVENTS_MAX);
        let counts = Arc::new(Counts::default());
        let counting = counts.clone();
        let writer = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write_all(&receiver, log, &counting))
            .map_err(failed)?;
        Ok(Self { policy, sender: Mutex::new(Some(sender)), writer: Mutex::new(Some(writer)), counts })
    }

    /// What the policy wants of a request.
    pub fn decide(&self, subject: &Subject<'_>) -> Decision {
        self.policy.decide(subject)
    }

    /// Hands an event to the log, or drops it if the disk cannot follow.
    pub fn write(&self, event: &Event) {
        let line = event.line();
        let bytes = line.len();
        let before = self.counts.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = match sender.as_ref().filter(|_| before + bytes <= QUEUE_BYTES_MAX) {
            Some(sender) => {
                matches!(sender.try_send(line), Err(TrySendError::Full(_) | TrySendError::Disconnected(_)))
            }
            None => true,
        };
        if refused {
            self.counts.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes what waits, and ends. Blocks until that is done.
    pub fn close(&self) {
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the writer of the audit log ended early; its last events are lost");
        }
    }

    /// Adds its numbers to the text.
    pub fn expose(&self, out: &mut Exposition) {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        for (name, help, count) in [
            ("apiserver_audit_event_total", "Events written to the audit log.", &self.counts.written),
            (
                "barque_audit_dropped_total",
                "Events that found the queue of the audit log full.",
                &self.counts.dropped,
            ),
            ("apiserver_audit_error_total", "Events that could not be written.", &self.counts.failed),
        ] {
            out.counter(name, help, get(count));
        }
    }
}

/// The thread: takes what waits, as much as makes one write.
fn write_all(receiver: &Receiver<String>, mut log: file::Log, counts: &Counts) {
    let mut is_failing = false;
    while let Ok(first) = receiver.recv() {
        let mut lines = vec![first];
        let mut bytes = lines[0].len();
        while bytes < BATCH_BYTES
            && let Ok(line) = receiver.try_recv()
        {
            bytes += line.len();
            lines.push(line);
        }
        counts.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let count = lines.len() as u64;
        match log.write(&lines) {
            Ok(()) => {
                is_failing = false;
                counts.written.fetch_add(count, Ordering::Relaxed);
            }
            Err(error) => {
                counts.failed.fetch_add(count, Ordering::Relaxed);
                if !is_failing {
                    tracing::error!(%error, "the audit log cannot be written; events are lost until it can");
                }
                is_failing = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn event(id: &str) -> Event {
        let identity = crate::auth::Identity::anonymous();
        Event::new(id, Level::Metadata, Stage::ResponseComplete, &identity)
    }

    #[test]
    fn what_waits_is_written_before_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let bounds = Bounds { bytes: MEGABYTE, backups: 0, age_days: 0 };
        let audit = Audit::start(Policy::default(), path.clone(), bounds).unwrap();
        for number in 0..500 {
            audit.write(&event(&number.to_string()));
        }
        audit.close();
        audit.write(&event("late"));
        let text = std::fs::read_to_string(&path).unwrap();
        let ids: Vec<String> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["auditID"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(ids, (0..500).map(|number| number.to_string()).collect::<Vec<_>>());
        let mut numbers = Exposition::default();
        audit.expose(&mut numbers);
        let numbers = numbers.finish();
        assert!(numbers.contains("apiserver_audit_event_total 500"), "{numbers}");
        assert!(numbers.contains("barque_audit_dropped_total 1"), "{numbers}");
    }

    #[test]
    fn a_disk_that_does_not_follow_costs_events_and_not_requests() {
        let (sender, receiver) = sync_channel(2);
        let audit = Audit {
            policy: Policy::default(),
            sender: Mutex::new(Some(sender)),
            writer: Mutex::new(None),
            counts: Arc::default(),
        };
        for number in 0..5 {
            audit.write(&event(&number.to_string()));
        }
        assert_eq!(audit.counts.dropped.load(Ordering::Relaxed), 3);
        assert_eq!(receiver.try_iter().count(), 2);
    }
}
