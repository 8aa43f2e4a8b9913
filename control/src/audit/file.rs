//! The file of the audit log: appended to, set aside when it is full, old ones removed.
//!
//! `audit.log` is set aside as `audit-2024-01-31T23-59-59.999.log`. Readable by the owner only. Whole lines only
//! stand in a file; one that is larger than the bound gets a file of its own.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

const TIME: &str = "%Y-%m-%dT%H-%M-%S%.3f";

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of one file.
    pub bytes: u64,
    /// Files that were set aside; 0: all.
    pub backups: usize,
    /// Days for which those are kept; 0: for ever.
    pub age_days: u32,
}

#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    bounds: Bounds,
    /// When the newest file was set aside: later ones have later names.
    last_aside: Option<Timestamp>,
}

impl Log {
    pub(super) fn open(path: &Path, bounds: Bounds) -> io::Result<Self> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)?;
        }
        let file = append_to(path)?;
        let size = file.metadata()?.len();
        let mut log = Self { path: path.to_owned(), file, size, bounds, last_aside: None };
        log.last_aside = log.set_aside()?.into_iter().map(|(at, _)| at).max();
        Ok(log)
    }

    /// Appends lines, in as few writes as the bounds allow.
    pub(super) fn write(&mut self, lines: &[String]) -> io::Result<()> {
        let mut batch = String::new();
        for line in lines {
            let after = self.size + (batch.len() + line.len()) as u64;
            if after > self.bounds.bytes && self.size + batch.len() as u64 > 0 {
                self.append(&batch)?;
                batch.clear();
                self.rotate()?;
            }
            batch.push_str(line);
        }
        self.append(&batch)
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        self.size += text.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let now = Timestamp::now();
        let next = |last: Timestamp| last.checked_add(SignedDuration::from_millis(1)).unwrap_or(last);
        let at = self.last_aside.map_or(now, |last| now.max(next(last)));
        let aside = self.path.with_file_name(self.name_of(at));
        self.last_aside = Some(at);
        std::fs::rename(&self.path, aside)?;
        self.file = append_to(&self.path)?;
        self.size = 0;
        if let Err(error) = self.prune(now) {
            tracing::warn!(%error, "old audit logs were not removed");
        }
        Ok(())
    }

    fn stem(&self) -> &str {
        self.path.file_stem().and_then(OsStr::to_str).unwrap_or("audit")
    }

    fn suffix(&self) -> String {
        self.path.extension().and_then(OsStr::to_str).map_or(String::new(), |suffix| format!(".{suffix}"))
    }

    fn name_of(&self, at: Timestamp) -> String {
        let at = jiff::fmt::strtime::format(TIME, at).unwrap_or_default();
        format!("{}-{at}{}", self.stem(), self.suffix())
    }

    /// When a file was set aside, if it is one of those.
    fn set_aside_at(&self, name: &str) -> Option<Timestamp> {
        let at = name.strip_prefix(self.stem())?.strip_prefix('-')?.strip_suffix(&self.suffix())?;
        Timestamp::strptime(format!("{TIME}%z"), format!("{at}+0000")).ok()
    }

    /// Every file that was set aside, and when.
    fn set_aside(&self) -> io::Result<Vec<(Timestamp, PathBuf)>> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut aside = Vec::new();
        for entry in std::fs::read_dir(directory.unwrap_or(Path::new(".")))? {
            let entry = entry?;
            if let Some(at) = entry.file_name().to_str().and_then(|name| self.set_aside_at(name)) {
                aside.push((at, entry.path()));
            }
        }
        Ok(aside)
    }

    fn prune(&self, now: Timestamp) -> io::Result<()> {
        let mut aside = self.set_aside()?;
        aside.sort_by(|left, right| right.cmp(left));
        let keep = if self.bounds.backups == 0 { usize::MAX } else { self.bounds.backups };
        let age = SignedDuration::from_hours(24 * i64::from(self.bounds.age_days));
        for (index, (at, path)) in aside.into_iter().enumerate() {
            let is_old = self.bounds.age_days > 0 && now.duration_since(at) > age;
            if index >= keep || is_old {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn full_files_are_set_aside_and_only_so_many_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        std::fs::write(directory.path().join("audit-of-somebody.log"), "x").unwrap();
        let mut log = Log::open(&path, Bounds { bytes: 20, backups: 2, age_days: 0 }).unwrap();
        let lines: Vec<String> = (0..10).map(|number| format!("line {number}\n")).collect();
        log.write(&lines[..1]).unwrap();
        log.write(&lines[1..]).unwrap();
        let names = names(directory.path());
        assert_eq!(names.len(), 4, "{names:?}");
        assert!(names.contains(&"audit-of-somebody.log".to_owned()));
        let text = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        let kept: String =
            names.iter().filter(|name| *name != "audit-of-somebody.log").map(|name| text(name)).collect();
        assert_eq!(kept, lines[4..].concat(), "the newest, in order, nothing cut");
        log.write(&["x".repeat(100)]).unwrap();
        assert_eq!(text("audit.log").len(), 100);
        // What was there is appended to.
        let log = Log::open(&path, Bounds { bytes: 20, backups: 2, age_days: 0 }).unwrap();
        assert_eq!(log.size, 100);
    }

    #[test]
    fn old_files_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let log = Log::open(&path, Bounds { bytes: 20, backups: 0, age_days: 2 }).unwrap();
        for name in ["audit-2024-01-01T00-00-00.000.log", "audit-2024-01-09T00-00-00.000.log"] {
            std::fs::write(directory.path().join(name), "x").unwrap();
        }
        log.prune("2024-01-10T00:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(names(directory.path()), ["audit-2024-01-09T00-00-00.000.log", "audit.log"]);
    }
}
