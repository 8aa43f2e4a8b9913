//! Which pod has which user ids of the host: one file per range, named by its first id, holding the pod's uid.
//!
//! For pods with `hostUsers: false`. Promises: a range belongs to one pod, from before its sandbox is made until
//! nothing of the pod is left, over any restart or death of the agent; files are made whole and exclusively.
//! Does not: write mappings; the runtime does.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use runtime::UserIds;
use serde::{Deserialize, Serialize};

/// Ids of one pod at least, and what ranges are multiples of: programs expect ids up to 65535.
const IDS_PER_POD_MIN: u32 = 65536;

/// The host's user ids that pods may have as their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UserNamespacesConfig {
    /// How many ids each pod gets; a multiple of 65536.
    pub ids_per_pod: u32,
    /// The first id of the first pod; a multiple of 65536. There are ranges for `maxPods` pods.
    pub first_id: u32,
}

impl Default for UserNamespacesConfig {
    fn default() -> Self {
        Self { ids_per_pod: IDS_PER_POD_MIN, first_id: IDS_PER_POD_MIN }
    }
}

impl UserNamespacesConfig {
    /// What cannot be used, with the key.
    pub(crate) fn problem(&self, max_pods: u32) -> Option<(&'static str, String)> {
        let fits = |id: u32| id >= IDS_PER_POD_MIN && id.is_multiple_of(IDS_PER_POD_MIN);
        let end = u64::from(self.first_id) + u64::from(self.ids_per_pod) * u64::from(max_pods);
        if !fits(self.ids_per_pod) {
            let problem = format!("{} is no multiple of {IDS_PER_POD_MIN}", self.ids_per_pod);
            return Some(("userNamespaces.idsPerPod", problem));
        }
        if !fits(self.first_id) {
            let problem = format!("{} is no multiple of {IDS_PER_POD_MIN} above 0", self.first_id);
            return Some(("userNamespaces.firstId", problem));
        }
        let problem =
            format!("ids for {max_pods} pods end at {end}, beyond what the kernel has: {}", u32::MAX);
        (end > u64::from(u32::MAX)).then_some(("userNamespaces.firstId", problem))
    }
}

/// Why a pod has no ids.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserIdsError {
    /// Every range belongs to a pod.
    #[error("no range of user ids is left for the pod: all {count} from {first} belong to others")]
    Exhausted { count: u32, first: u32 },
    /// The files cannot be used.
    #[error("cannot use {path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

/// The ranges.
#[derive(Debug)]
pub(crate) struct UserIdPool {
    dir: PathBuf,
    config: UserNamespacesConfig,
    count: u32,
    /// Held while a range is chosen.
    choosing: Mutex<()>,
}

impl UserIdPool {
    /// Opens the directory, making it if needed. `count` ranges there are.
    pub(crate) fn open(dir: &Path, config: UserNamespacesConfig, count: u32) -> Result<Self, UserIdsError> {
        fs::create_dir_all(dir).map_err(file_error(dir))?;
        let pool = Self { dir: dir.to_owned(), config, count, choosing: Mutex::default() };
        for entry in fs::read_dir(dir).map_err(file_error(dir))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("new-") {
                drop(fs::remove_file(entry.path()));
            }
        }
        Ok(pool)
    }

    /// The pod's range; a new one if it has none.
    pub(crate) fn reserve(&self, uid: &str) -> Result<UserIds, UserIdsError> {
        let _choosing = self.choosing.lock().expect("no holder of the lock panics");
        let length = self.config.ids_per_pod;
        let taken = self.all()?;
        if let Some((first, _)) = taken.iter().find(|(_, owner)| *owner == uid) {
            return Ok(UserIds { first: *first, length });
        }
        // Ranges of an earlier configuration may lie across the present ones.
        let is_free = |first: u32| taken.keys().all(|other| other.abs_diff(first) >= length);
        let mut ranges = (0..self.count).map(|number| self.config.first_id + number * length);
        let Some(first) = ranges.find(|first| is_free(*first)) else {
            return Err(UserIdsError::Exhausted { count: self.count, first: self.config.first_id });
        };
        let prepared = self.dir.join(format!("new-{uid}"));
        let path = self.dir.join(first.to_string());
        let made = fs::write(&prepared, uid).and_then(|()| fs::hard_link(&prepared, &path));
        drop(fs::remove_file(&prepared));
        made.map_err(file_error(&path))?;
        Ok(UserIds { first, length })
    }

    /// Frees what the pod has. Nothing is no error.
    pub(crate) fn release(&self, uid: &str) -> Result<(), UserIdsError> {
        for (first, _) in self.all()?.iter().filter(|(_, owner)| *owner == uid) {
            let path = self.dir.join(first.to_string());
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file_error(&path)(e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The pods that have ids of their own.
    pub(crate) fn owners(&self) -> Result<Vec<String>, UserIdsError> {
        Ok(self.all()?.into_values().collect())
    }

    fn all(&self) -> Result<BTreeMap<u32, String>, UserIdsError> {
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(&self.dir).map_err(file_error(&self.dir))? {
            let entry = entry.map_err(file_error(&self.dir))?;
            let Ok(first) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            match fs::read_to_string(entry.path()) {
                Ok(uid) => drop(all.insert(first, uid)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(file_error(&entry.path())(e)),
            }
        }
        Ok(all)
    }
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> UserIdsError {
    let path = path.to_owned();
    move |source| UserIdsError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(first_id: u32) -> UserNamespacesConfig {
        UserNamespacesConfig { first_id, ..UserNamespacesConfig::default() }
    }

    #[test]
    fn a_range_has_one_owner_across_restarts_and_the_ranges_end() {
        let dir = tempfile::tempdir().unwrap();
        let pool = UserIdPool::open(dir.path(), config(65536), 2).unwrap();
        let a = pool.reserve("a").unwrap();
        let b = pool.reserve("b").unwrap();
        assert_eq!((a.first, b.first, a.length), (65536, 131_072, 65536));
        let pool = UserIdPool::open(dir.path(), config(65536), 2).unwrap();
        assert_eq!(pool.reserve("b").unwrap(), b);
        let full = pool.reserve("c").unwrap_err().to_string();
        assert_eq!(full, "no range of user ids is left for the pod: all 2 from 65536 belong to others");
        pool.release("a").unwrap();
        pool.release("a").unwrap();
        assert_eq!(pool.owners().unwrap(), ["b"]);
        assert_eq!(pool.reserve("c").unwrap(), a);
    }

    #[test]
    fn ranges_of_an_earlier_configuration_are_not_given_again() {
        let dir = tempfile::tempdir().unwrap();
        let before = UserIdPool::open(dir.path(), config(131_072), 1).unwrap().reserve("a").unwrap();
        let pool = UserIdPool::open(dir.path(), config(65536), 3).unwrap();
        assert_eq!(pool.reserve("a").unwrap(), before);
        assert_eq!(pool.reserve("b").unwrap().first, 65536);
        assert_eq!(pool.reserve("c").unwrap().first, 196_608);
    }
}
