//! Files that change all at once.
//!
//! ```text
//! volume/..2026_01_02_03_04_05.1a2b/key     the files of one state
//! volume/..data ─► ..2026_01_02_03_04_05.1a2b   replaced by rename: the moment of the change
//! volume/key ─► ..data/key                  what containers see
//! ```
//! Readers see the old state or the new one. A writer that died half-way leaves at most a state that nobody
//! points to; the next writer removes it. The layout is Kubernetes'; programs that watch `..data` work.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

const CURRENT: &str = "..data";
const NEXT: &str = "..data_tmp";
const DIRECTORY_MODE: u32 = 0o755;
/// What the group of a volume gets on files and on directories, which it also passes on.
const GROUP_FILE_MODE: u32 = 0o440;
const GROUP_DIRECTORY_MODE: u32 = 0o2550;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
    pub(super) owner: Option<u32>,
}

/// All files of a volume by relative path.
pub(super) type Payload = BTreeMap<PathBuf, File>;

/// Whether a path from the API stays inside the volume and out of the writer's own names.
pub(super) fn check_path(path: &str) -> Result<PathBuf, String> {
    let relative = Path::new(path);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || !plain || path.contains('\0') || path.starts_with("..") {
        return Err(format!("invalid path {path:?}: it must be relative, without \"..\""));
    }
    Ok(relative.components().collect())
}

/// Makes the directory hold exactly these files. Says whether anything changed.
pub(super) fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    let current = fs::read_link(dir.join(CURRENT)).ok();
    let is_new = match &current {
        Some(state) => !holds(&dir.join(state), payload, group),
        None => true,
    };
    let state = match (is_new, current) {
        (false, Some(state)) => state,
        _ => {
            let state = PathBuf::from(state_name());
            write_state(&dir.join(&state), payload, group)?;
            let next = dir.join(NEXT);
            remove(&next)?;
            symlink(&state, &next)?;
            fs::rename(&next, dir.join(CURRENT))?;
            state
        }
    };
    // Also after a writer that died in between.
    show(dir, payload)?;
    sweep(dir, payload, &state)?;
    Ok(is_new)
}

fn state_name() -> String {
    let now = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    format!("..{}.{:08x}", now.strftime("%Y_%m_%d_%H_%M_%S"), rand::random::<u32>())
}

fn write_state(state: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    let dir_mode = DIRECTORY_MODE | group.map_or(0, |_| GROUP_DIRECTORY_MODE);
    make_dir(state, dir_mode, group)?;
    for (path, file) in payload {
        let mut dir = state.to_owned();
        for part in path.parent().into_iter().flat_map(Path::components) {
            dir.push(part);
            if !dir.is_dir() {
                make_dir(&dir, dir_mode, group)?;
            }
        }
        let at = state.join(path);
        fs::write(&at, &file.content)?;
        // The owner first: changing it takes special bits of the mode away.
        chown(&at, file.owner, group)?;
        fs::set_permissions(&at, fs::Permissions::from_mode(mode_of(file, group)))?;
    }
    Ok(())
}

fn make_dir(dir: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    fs::create_dir(dir)?;
    chown(dir, None, group)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
}

fn mode_of(file: &File, group: Option<u32>) -> u32 {
    file.mode | group.map_or(0, |_| GROUP_FILE_MODE)
}

/// Whether a state on disk is this payload.
fn holds(state: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let mut found = 0;
    let mut dirs = vec![state.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { return false };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else { return false };
            if metadata.is_dir() {
                dirs.push(path);
                continue;
            }
            let wanted = path.strip_prefix(state).ok().and_then(|path| payload.get(path));
            let same = |file: &File| {
                metadata.permissions().mode() & 0o7777 == mode_of(file, group)
                    && fs::read(&path).is_ok_and(|content| content == file.content)
            };
            if !wanted.is_some_and(same) {
                return false;
            }
            found += 1;
        }
    }
    found == payload.len()
}

/// Links every first part of a path.
fn show(dir: &Path, payload: &Payload) -> io::Result<()> {
    for name in visible(payload) {
        let target = Path::new(CURRENT).join(&name);
        let link = dir.join(&name);
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            continue;
        }
        remove(&link)?;
        symlink(target, link)?;
    }
    Ok(())
}

/// Removes links to what is no longer there, and states that are not the present one.
fn sweep(dir: &Path, payload: &Payload, state: &Path) -> io::Result<()> {
    let visible = visible(payload);
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let is_own = name == CURRENT || name.as_os_str() == state.as_os_str();
        if !is_own && !visible.contains(&name) {
            remove(&dir.join(&name))?;
        }
    }
    Ok(())
}

fn visible(payload: &Payload) -> BTreeSet<OsString> {
    let first = |path: &PathBuf| path.components().next().map(|part| part.as_os_str().to_owned());
    payload.keys().filter_map(first).collect()
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |content: &str| File { content: content.into(), mode: 0o640, owner: None };
        files.iter().map(|(path, content)| (PathBuf::from(path), file(content))).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn states_replace_each_other_whole() {
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        let first = payload(&[("a", "1"), ("sub/b", "2")]);
        assert!(write(dir.path(), &first, None).unwrap());
        assert!(!write(dir.path(), &first, None).unwrap(), "nothing changed");
        assert_eq!((read("a"), read("sub/b")), ("1".into(), "2".into()));
        assert_eq!(fs::read_link(dir.path().join("a")).unwrap(), Path::new("..data/a"));
        let mode = fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        let before = fs::read_link(dir.path().join(CURRENT)).unwrap();
        assert!(write(dir.path(), &payload(&[("a", "3"), ("c", "4")]), None).unwrap());
        assert_ne!(fs::read_link(dir.path().join(CURRENT)).unwrap(), before);
        assert_eq!((read("a"), read("c")), ("3".into(), "4".into()));
        assert_eq!(names(dir.path()).len(), 4, "two links, one state: {:?}", names(dir.path()));
        assert!(write(dir.path(), &Payload::new(), None).unwrap());
        assert_eq!(names(dir.path()).len(), 2);
    }

    #[test]
    fn what_a_writer_that_died_left_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("..2026_01_01_00_00_00.dead")).unwrap();
        fs::write(dir.path().join("..2026_01_01_00_00_00.dead/a"), "half").unwrap();
        symlink("..2026_01_01_00_00_00.dead", dir.path().join(NEXT)).unwrap();
        let files = payload(&[("a", "1")]);
        write(dir.path(), &files, None).unwrap();
        assert_eq!(names(dir.path()).len(), 3, "{:?}", names(dir.path()));
        // Died after the rename and before the links.
        fs::remove_file(dir.path().join("a")).unwrap();
        assert!(!write(dir.path(), &files, None).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "1");
    }

    #[test]
    fn paths_stay_inside() {
        for good in ["a", "a/b", "a..b", ".hidden"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in ["", "/a", "../a", "a/../../b", "..data", "a/.."] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }
}
