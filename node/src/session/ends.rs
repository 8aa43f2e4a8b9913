//! Last statuses of pods of which nothing else is left, on disk until the leader has stored them.
//!
//! One small file for each, replaced by rename; like checkpoints they are whole or not there as long as the machine is up.
//! An agent that dies after it has removed a pod and before that was stored is followed by one that tells it with the
//! exit codes that were seen, not by one that knows nothing of the pod.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::outbox::PodKey;

/// The directory of the files. None: nothing is kept.
#[derive(Debug, Default)]
pub(super) struct Ends {
    dir: Option<PathBuf>,
}

/// What a file holds.
#[derive(Serialize, Deserialize)]
pub(super) struct End {
    namespace: String,
    name: String,
    uid: String,
    pub(super) status: Box<RawValue>,
}

impl End {
    pub(super) fn key(&self) -> PodKey {
        PodKey { namespace: self.namespace.clone(), name: self.name.clone(), uid: self.uid.clone() }
    }
}

impl Ends {
    /// Those of `dir`, and what an agent before this one left there.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, Vec<End>)> {
        fs::create_dir_all(dir)?;
        let mut ends = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<End>(&text)?));
            match read {
                Ok(end) if path.file_stem().is_some_and(|stem| *stem == *end.uid) => ends.push(end),
                // Half of one: the pod itself was not removed yet.
                _ => fs::remove_file(&path)?,
            }
        }
        Ok((Self { dir: Some(dir.to_owned()) }, ends))
    }

    /// Keeps a pod's last status.
    pub(super) fn keep(&self, key: &PodKey, status: &[u8]) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let status: Box<RawValue> = serde_json::from_slice(status)?;
        let end =
            End { namespace: key.namespace.clone(), name: key.name.clone(), uid: key.uid.clone(), status };
        let temporary = dir.join(format!("{}.tmp", key.uid));
        fs::write(&temporary, serde_json::to_vec(&end)?)?;
        fs::rename(temporary, dir.join(file(&key.uid)))
    }

    /// It is stored, or nobody asks for it any more.
    pub(super) fn forget(&self, uid: &str) {
        let Some(dir) = &self.dir else { return };
        match fs::remove_file(dir.join(file(uid))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // It is told once more after the next start, and forgotten then.
                tracing::warn!(pod_uid = uid, %error, "cannot remove the last status of a pod");
            }
            _ => {}
        }
    }
}

fn file(uid: &str) -> String {
    format!("{uid}.json")
}
