//! One group's directory in one hierarchy: reading and writing its control files.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use super::limits::Write;
use crate::container::state::Unenforced;
use crate::error::Error;

/// A directory of control files.
#[derive(Clone, Debug)]
pub(super) struct ControlDir {
    pub(super) path: PathBuf,
}

impl ControlDir {
    pub(super) fn new(path: PathBuf) -> ControlDir {
        ControlDir { path }
    }

    pub(super) fn read(&self, file: &str) -> Result<String, Error> {
        let path = self.path.join(file);
        fs::read_to_string(&path).map_err(|error| Error::io("read", path, error))
    }

    pub(super) fn write(&self, file: &str, value: &str) -> Result<(), Error> {
        // Control files exist or their controller does not: never created by us.
        let path = self.path.join(file);
        let written = fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut opened| opened.write_all(value.as_bytes()));
        written.map_err(|error| Error::io("write", path, error))
    }

    /// Writes a limit's files; a host whose kernel does not know it is reported.
    pub(super) fn apply(
        &self,
        name: &str,
        files: &[Write],
        unenforced: &mut Vec<Unenforced>,
    ) -> Result<(), Error> {
        let mut report = |reason: String| unenforced.push(Unenforced { limit: name.to_owned(), reason });
        if files.is_empty() {
            report("this version of cgroups has no such limit".to_owned());
        }
        for (file, value) in files {
            match self.write(file, value) {
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    report(format!("this kernel has no {file}"));
                    break;
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// A file that holds one number; `None` if it is not there or says `max`.
    pub(super) fn number(&self, file: &str) -> Option<u64> {
        self.read(file).ok()?.trim().parse().ok()
    }

    /// A number of a file of `key number` lines.
    pub(super) fn keyed(&self, file: &str, key: &str) -> Option<u64> {
        let text = self.read(file).ok()?;
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// The processes of this group, those of groups below it included.
    pub(super) fn processes(&self) -> Vec<i32> {
        let own = self.read("cgroup.procs").unwrap_or_default();
        let mut pids: Vec<i32> = own.lines().filter_map(|line| line.trim().parse().ok()).collect();
        for child in self.children() {
            pids.extend(child.processes());
        }
        pids
    }

    pub(super) fn children(&self) -> Vec<ControlDir> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Vec::new() };
        entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| ControlDir::new(entry.path()))
            .collect()
    }
}
