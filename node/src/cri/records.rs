//! What the CRI server remembers of sandboxes and containers: one directory each, in it one file.
//!
//! ```text
//! <dataDir>/sandboxes/<id>/record.json   etc/{hosts,hostname,resolv.conf}
//! <dataDir>/containers/<id>/record.json  root/{upper,work,merged}
//! ```
//! Promises: a record is written whole, before what it describes is made; one that a crash left half-written is
//! as if it had never been. The configurations that clients gave are kept as they came. What runs is not
//! remembered but asked of the runtime.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use proto::cri::{ContainerConfig, PodSandboxConfig};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tonic::Status;

/// A sandbox as it was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    pub(super) id: String,
    /// Nanoseconds since 1970.
    pub(super) created_at: i64,
    pub(super) runtime_handler: String,
    #[serde(with = "wire")]
    pub(super) config: PodSandboxConfig,
    pub(super) ip: Option<IpAddr>,
    pub(super) netns: Option<PathBuf>,
    /// It was made to its end.
    pub(super) made: bool,
    /// It was stopped, or its making failed.
    pub(super) stopped: bool,
}

/// A container as it was asked for, and its end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub(super) id: String,
    pub(super) sandbox: String,
    /// Nanoseconds since 1970.
    pub(super) created_at: i64,
    #[serde(with = "wire")]
    pub(super) config: ContainerConfig,
    /// The name under which the image was found.
    pub(super) image_name: String,
    /// The digest of its configuration.
    pub(super) image_id: String,
    /// Its repository with digest.
    pub(super) image_ref: String,
    /// A start was begun.
    pub(super) launched: bool,
    pub(super) ended: Option<Ended>,
}

/// How a container ended, kept beyond what the runtime keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Ended {
    /// Nanoseconds since 1970; 0: never.
    pub(super) started_at: i64,
    pub(super) finished_at: i64,
    pub(super) exit_code: i32,
    pub(super) reason: String,
    pub(super) message: String,
}

/// Something with a record of its own.
pub(super) trait Record: Clone + Serialize + DeserializeOwned {
    /// In words.
    const WHAT: &'static str;
    fn id(&self) -> &str;
}

impl Record for SandboxRecord {
    const WHAT: &'static str = "sandbox";

    fn id(&self) -> &str {
        &self.id
    }
}

impl Record for ContainerRecord {
    const WHAT: &'static str = "container";

    fn id(&self) -> &str {
        &self.id
    }
}

/// All records of a kind, in memory and on disk.
#[derive(Debug)]
pub(super) struct Records<T> {
    dir: PathBuf,
    known: Mutex<BTreeMap<String, T>>,
}

impl<T: Record> Records<T> {
    /// Reads what is there; what has no whole record is removed by the caller, who is told of it.
    pub(super) fn open(dir: PathBuf) -> io::Result<(Self, Vec<PathBuf>)> {
        fs::create_dir_all(&dir)?;
        let (mut known, mut torn) = (BTreeMap::new(), Vec::new());
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let read = fs::read(path.join("record.json")).ok();
            match read.and_then(|bytes| serde_json::from_slice::<T>(&bytes).ok()) {
                Some(record) => drop(known.insert(record.id().to_owned(), record)),
                None => torn.push(path),
            }
        }
        Ok((Self { dir, known: Mutex::new(known) }, torn))
    }

    /// The directory of one of them.
    pub(super) fn dir(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// All, in the order of their ids.
    pub(super) fn all(&self) -> Vec<T> {
        self.known().values().cloned().collect()
    }

    /// The one that an id, or the beginning of one, stands for.
    pub(super) fn find(&self, id: &str) -> Result<Option<T>, Status> {
        if id.is_empty() {
            return Err(Status::invalid_argument(format!("the id of the {} is missing", T::WHAT)));
        }
        let known = self.known();
        if let Some(record) = known.get(id) {
            return Ok(Some(record.clone()));
        }
        let mut found = known.range(id.to_owned()..).take_while(|(full, _)| full.starts_with(id));
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some((_, record)), None) => Ok(Some(record.clone())),
            (Some(_), Some(_)) => Err(Status::invalid_argument(format!(
                "{id:?} is the beginning of several {}s' ids; give more of it",
                T::WHAT
            ))),
        }
    }

    /// The same, and NotFound if there is none.
    pub(super) fn get(&self, id: &str) -> Result<T, Status> {
        self.find(id)?.ok_or_else(|| Status::not_found(format!("there is no {} {id:?}", T::WHAT)))
    }

    /// Writes one down.
    pub(super) fn put(&self, record: T) -> Result<(), Status> {
        let mut known = self.known();
        self.write(&record)?;
        known.insert(record.id().to_owned(), record);
        Ok(())
    }

    /// Changes one, if it is (still) there.
    pub(super) fn change(&self, id: &str, change: impl FnOnce(&mut T)) -> Result<(), Status> {
        let mut known = self.known();
        let Some(mut record) = known.get(id).cloned() else { return Ok(()) };
        change(&mut record);
        self.write(&record)?;
        known.insert(id.to_owned(), record);
        Ok(())
    }

    /// Forgets one, with its directory.
    pub(super) fn remove(&self, id: &str) -> Result<(), Status> {
        let mut known = self.known();
        let dir = self.dir.join(id);
        remove_dir(&dir).map_err(|error| failed("remove", &dir, &error))?;
        known.remove(id);
        Ok(())
    }

    fn write(&self, record: &T) -> Result<(), Status> {
        let dir = self.dir.join(record.id());
        let (scratch, path) = (dir.join("record.tmp"), dir.join("record.json"));
        let bytes = serde_json::to_vec(record).expect("records have string keys only");
        let written = fs::create_dir_all(&dir)
            .and_then(|()| fs::write(&scratch, bytes))
            .and_then(|()| fs::rename(&scratch, &path));
        written.map_err(|error| failed("write", &path, &error))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, T>> {
        self.known.lock().expect("no holder of the records panics")
    }
}

/// Removes a directory; one that is not there is no error.
pub(super) fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A file operation that failed, as an answer.
pub(super) fn failed(operation: &str, path: &Path, error: &io::Error) -> Status {
    Status::internal(format!("cannot {operation} {}: {error}", path.display()))
}

/// Protobuf messages within JSON: base64 of their bytes.
mod wire {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use prost::Message;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: Message, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(value.encode_to_vec()))
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: Message + Default,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        T::decode(bytes.as_slice()).map_err(D::Error::custom)
    }
}
