//! What the engine remembers of its containers: a directory each.
//!
//! ```text
//! <dataDir>/containers/<id>/record.json  lock  log  root/{upper,work,merged}  etc/{hosts,hostname,resolv.conf}  volumes/
//! <dataDir>/containers/lock              names, addresses and ports of all
//! ```
//! Promises: a record is written whole, before what it describes is made, and removed last. What runs is not
//! remembered but asked of the runtime.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::locks::{self, Lock};
use super::options::{CreateOptions, PublishedPort};
use super::{EngineError, names};

/// Digits of an id.
const ID_DIGITS: usize = 64;
/// As many of them as users see.
const SHORT_ID_DIGITS: usize = 12;

/// A container as it was asked for, and what became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    /// Without a slash.
    pub(super) name: String,
    /// Nanoseconds since 1970.
    pub(super) created_at: i64,
    /// As it was asked for; other containers in it stand as ids.
    pub(super) asked: CreateOptions,
    pub(super) image: UsedImage,
    /// Whether a sandbox, an address or ports may be there.
    #[serde(default)]
    pub(super) standing: bool,
    /// When the start of its program was begun, while it stands. Nanoseconds since 1970.
    #[serde(default)]
    pub(super) launched_at: Option<i64>,
    /// Its address while it stands.
    #[serde(default)]
    pub(super) ip: Option<IpAddr>,
    /// Its ports while it stands: none is 0.
    #[serde(default)]
    pub(super) ports: Vec<PublishedPort>,
    /// How its last run ended.
    #[serde(default)]
    pub(super) ended: Option<Ended>,
}

/// The image that a container was made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct UsedImage {
    /// The digest of its configuration.
    pub(super) id: String,
    /// Its repository with digest.
    pub(super) reference: String,
    /// What its ports are said to be.
    pub(super) exposed: Vec<String>,
    /// Where it wants volumes.
    #[serde(default)]
    pub(super) volumes: Vec<String>,
    /// What a container of it runs.
    pub(super) args: Vec<String>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Ended {
    /// Nanoseconds since 1970; `None`: its program never ran.
    pub(super) started_at: Option<i64>,
    pub(super) finished_at: i64,
    pub(super) exit_code: i32,
    pub(super) oom_killed: bool,
    /// Why it could not be started.
    pub(super) error: String,
}

impl Record {
    /// As users know it.
    pub(super) fn short_id(&self) -> &str {
        short(&self.id)
    }
}

/// The beginning of an id that users see.
pub(super) fn short(id: &str) -> &str {
    id.get(..SHORT_ID_DIGITS).unwrap_or(id)
}

/// The records of an engine. Nothing is kept in memory: other commands change them.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(super) fn open(dir: PathBuf) -> Result<Self, EngineError> {
        fs::create_dir_all(&dir).map_err(EngineError::io("create", &dir))?;
        Ok(Self { dir })
    }

    /// A container's directory.
    pub(super) fn dir(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// The lock of what all containers share.
    pub(super) fn lock_all(&self) -> Result<Lock, EngineError> {
        locks::take(&self.dir.join("lock"))
    }

    /// The lock of one container, with its record as it is now.
    pub(super) fn lock(&self, id: &str) -> Result<(Lock, Record), EngineError> {
        let gone = || EngineError::NoSuchContainer(id.to_owned());
        let lock = locks::take_existing(&self.dir(id).join("lock"))?.ok_or_else(gone)?;
        Ok((lock, self.read(id)?.ok_or_else(gone)?))
    }

    /// The same if nobody has it.
    pub(super) fn try_lock(&self, id: &str) -> Result<Option<(Lock, Record)>, EngineError> {
        let Some(lock) = locks::try_existing(&self.dir(id).join("lock"))? else { return Ok(None) };
        Ok(self.read(id)?.map(|record| (lock, record)))
    }

    /// All of them, the newest first.
    pub(super) fn all(&self) -> Result<Vec<Record>, EngineError> {
        let mut all = Vec::new();
        for id in self.ids()? {
            all.extend(self.read(&id)?);
        }
        all.sort_by_key(|record| std::cmp::Reverse(record.created_at));
        Ok(all)
    }

    /// Every directory of a container, with a record or not yet.
    pub(super) fn ids(&self) -> Result<Vec<String>, EngineError> {
        let failed = || EngineError::io("list", &self.dir);
        let entries = fs::read_dir(&self.dir).map_err(failed())?;
        let mut ids = Vec::new();
        for entry in entries {
            ids.extend(entry.map_err(failed())?.file_name().into_string().ok().filter(|name| is_id(name)));
        }
        Ok(ids)
    }

    /// The container of a name, an id, or the beginning of one.
    pub(super) fn find(&self, reference: &str) -> Result<Record, EngineError> {
        let none = || EngineError::NoSuchContainer(reference.to_owned());
        if is_id(reference) {
            return self.read(reference)?.ok_or_else(none);
        }
        let all = self.all()?;
        let name = reference.strip_prefix('/').unwrap_or(reference);
        if let Some(named) = all.iter().find(|record| record.name == name) {
            return Ok(named.clone());
        }
        let mut found =
            all.into_iter().filter(|record| !reference.is_empty() && record.id.starts_with(reference));
        match (found.next(), found.next()) {
            (None, _) => Err(none()),
            (Some(record), None) => Ok(record),
            (Some(_), Some(_)) => Err(EngineError::Ambiguous(reference.to_owned())),
        }
    }

    pub(super) fn read(&self, id: &str) -> Result<Option<Record>, EngineError> {
        let path = self.dir(id).join("record.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| EngineError::Damaged { path, problem: error.to_string() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(EngineError::io("read", path)(error)),
        }
    }

    /// Writes one down. Its writer has its lock, or has just made it.
    pub(super) fn write(&self, record: &Record) -> Result<(), EngineError> {
        let dir = self.dir(&record.id);
        let (scratch, path) = (dir.join("record.tmp"), dir.join("record.json"));
        let bytes = serde_json::to_vec(record).map_err(io::Error::from);
        bytes
            .and_then(|bytes| fs::write(&scratch, bytes))
            .and_then(|()| fs::rename(&scratch, &path))
            .map_err(EngineError::io("write", &path))
    }

    /// Makes the directory of a new container, locked.
    pub(super) fn make(&self, id: &str) -> Result<Lock, EngineError> {
        let dir = self.dir(id);
        fs::create_dir(&dir).map_err(EngineError::io("create", &dir))?;
        locks::take(&dir.join("lock"))
    }

    /// Forgets one, its record first: what is left then is nobody's.
    pub(super) fn remove(&self, id: &str) -> Result<(), EngineError> {
        let dir = self.dir(id);
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        gone(fs::remove_file(dir.join("record.json")))
            .and_then(|()| gone(fs::remove_dir_all(&dir)))
            .map_err(EngineError::io("remove", &dir))
    }

    /// A name that a new container may have.
    pub(super) fn free_name(&self, wanted: &str) -> Result<String, EngineError> {
        let all = self.all()?;
        let owner = |name: &str| all.iter().find(|record| record.name == name);
        match (wanted, owner(wanted)) {
            ("", _) => Ok(names::make(|name| owner(name).is_some())),
            (name, Some(other)) => {
                Err(EngineError::NameTaken { name: name.to_owned(), id: other.id.clone() })
            }
            (name, None) => Ok(name.to_owned()),
        }
    }
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Nanoseconds since 1970.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Removes a directory that may be gone.
pub(super) fn remove_dir(dir: &Path) -> Result<(), EngineError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(EngineError::io("remove", dir)),
    }
}
