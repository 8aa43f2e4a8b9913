//! State of an earlier boot. A state directory that survives a restart of the machine names processes
//! that are gone, whose pids others may have now, and files that the power cut tore. What is readable is
//! kept, for the caller to learn of (containers that are lost, or had ended) and to delete.

use std::fs;
use std::io;
use std::path::Path;

use serde::de::IgnoredAny;

use super::plan::Bundle;
use super::state;
use crate::error::Error;

/// Changes with every start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Where the state directory remembers which one it was last used in.
const REMEMBERED: &str = "boot_id";

/// Takes note of the boot. If the state is from another one, forgets its processes and removes bundles
/// whose plan is torn.
pub(crate) fn check(state_dir: &Path, bundle_dirs: &[&Path]) -> Result<(), Error> {
    let current = fs::read_to_string(BOOT_ID).map_err(|error| Error::io("read", BOOT_ID, error))?;
    let path = state_dir.join(REMEMBERED);
    let remembered = match fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io("read", path, error)),
    };
    if remembered.as_ref() == Some(&current) {
        return Ok(());
    }
    if remembered.is_some() {
        for dir in bundle_dirs {
            for entry in fs::read_dir(dir).map_err(|error| Error::io("read", *dir, error))? {
                let entry = entry.map_err(|error| Error::io("read", *dir, error))?;
                forget(&Bundle::new(entry.path()))?;
            }
        }
    }
    fs::write(&path, current).map_err(|error| Error::io("write", path, error))
}

fn forget(bundle: &Bundle) -> Result<(), Error> {
    if matches!(state::read::<IgnoredAny>(&bundle.plan()), Err(Error::State { .. })) {
        return fs::remove_dir_all(&bundle.dir)
            .map_err(|error| Error::io("remove torn state in", &bundle.dir, error));
    }
    match fs::remove_file(bundle.shim()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("forget process in", &bundle.dir, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(dir: &Path, id: &str, plan: &str) -> Bundle {
        let bundle = Bundle::new(dir.join(id));
        fs::create_dir_all(&bundle.dir).unwrap();
        fs::write(bundle.plan(), plan).unwrap();
        fs::write(bundle.shim(), "{}").unwrap();
        bundle
    }

    #[test]
    fn only_another_boot_changes_anything() {
        let dir = tempfile::tempdir().unwrap();
        let bundles = dir.path().join("containers");
        let whole = bundle(&bundles, "whole", "{}");
        let torn = bundle(&bundles, "torn", "");
        check(dir.path(), &[&bundles]).unwrap();
        check(dir.path(), &[&bundles]).unwrap();
        assert!(whole.shim().exists() && torn.dir.exists());
        fs::write(dir.path().join(REMEMBERED), "another").unwrap();
        check(dir.path(), &[&bundles]).unwrap();
        assert!(whole.plan().exists() && !whole.shim().exists());
        assert!(!torn.dir.exists());
        fs::write(whole.shim(), "{}").unwrap();
        check(dir.path(), &[&bundles]).unwrap();
        assert!(whole.shim().exists(), "this boot's by now");
    }
}
