//! How a container ended, in the words of its status: code, reason, message.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use jiff::Timestamp;

use super::container_spec::instance_files;
use super::containers::Seen;
use super::context::Context;
use super::record::{InstanceState, PodRecord, Termination};
use crate::streaming::log_files::open_plain;

/// Bytes of a termination message that are kept.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Bytes of all termination messages of a pod: its containers share them evenly.
const POD_MESSAGES_BYTES_MAX: usize = 12 * 1024;
/// What is taken from the end of the log when a failed container left no message.
const LOG_TAIL_BYTES_MAX: u64 = 2048;
const LOG_TAIL_LINES_MAX: usize = 80;
/// What the kubelet says of a container that it cannot find.
const LOST_MESSAGE: &str = "The container could not be located when the pod was terminated";

/// Turns what the runtime saw (or did not see any more) into a termination.
pub(crate) fn of_seen(context: &Context, record: &PodRecord, name: &str, seen: Option<Seen>) -> Termination {
    let known_start = match record.container(name).and_then(|c| c.current.as_ref()).map(|i| &i.state) {
        Some(InstanceState::Running { started_at }) => Some(*started_at),
        _ => None,
    };
    match seen {
        Some(Seen::Exited { started_at, exit_code, oom_killed, finished_at }) => {
            let reason = match (oom_killed, exit_code) {
                (true, _) => "OOMKilled",
                (false, 0) => "Completed",
                (false, _) => "Error",
            };
            Termination {
                exit_code,
                reason: reason.to_owned(),
                message: message(context, record, name, exit_code != 0),
                started_at: started_at.or(known_start),
                finished_at,
            }
        }
        other => Termination {
            exit_code: 137,
            reason: "ContainerStatusUnknown".to_owned(),
            message: Some(LOST_MESSAGE.to_owned()),
            started_at: match other {
                Some(Seen::Lost { started_at }) => started_at.or(known_start),
                _ => known_start,
            },
            finished_at: Timestamp::now(),
        },
    }
}

fn message(context: &Context, record: &PodRecord, name: &str, failed: bool) -> Option<String> {
    let container = record.container_spec(name)?;
    let attempt = record.container(name)?.current.as_ref()?.attempt;
    let files = instance_files(context, record, name, attempt);
    let limit = MESSAGE_BYTES_MAX.min(POD_MESSAGES_BYTES_MAX / record.all_containers().count().max(1));
    let own = head(&files.termination_message, limit).filter(|m| !m.is_empty());
    let from_log = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    let message = own.or_else(|| (failed && from_log).then(|| log_tail(&files.log)).flatten())?;
    Some(message[..message.floor_char_boundary(limit)].to_owned())
}

fn head(path: &Path, limit: usize) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(limit as u64).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a log in the CRI format, without their heads.
fn log_tail(path: &Path) -> Option<String> {
    let mut file = open_plain(path).ok()?;
    let size = file.metadata().ok()?.len();
    // Heads take room, too: read more than is wanted, cut afterwards.
    file.seek(SeekFrom::Start(size.saturating_sub(4 * LOG_TAIL_BYTES_MAX))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let contents: Vec<&str> = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let tail = contents[contents.len().saturating_sub(LOG_TAIL_LINES_MAX)..].join("\n") + "\n";
    let mut cut = tail.len().saturating_sub(LOG_TAIL_BYTES_MAX as usize);
    while !tail.is_char_boundary(cut) {
        cut += 1;
    }
    Some(tail[cut..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_of_a_log_has_no_heads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let line = |n: usize| format!("2026-01-01T00:00:00.000000000Z stderr F line {n}\n");
        fs::write(&path, (0..200).map(line).collect::<String>()).unwrap();
        let tail = log_tail(&path).unwrap();
        assert!(tail.ends_with("line 198\nline 199\n"), "{tail}");
        assert_eq!(tail.lines().count(), LOG_TAIL_LINES_MAX);
        assert_eq!(head(&dir.path().join("none"), 9), None);
    }
}
