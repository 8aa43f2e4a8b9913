//! Finding a container's program, and becoming it.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, execve, faccessat};

use super::failure::{Failure, plain};
use crate::container::spec::PATH_DEFAULT;

/// Scripts name interpreters that may be scripts; the kernel follows this many.
const INTERPRETERS_MAX: usize = 5;
/// As much of a script's first line as the kernel reads.
const SCRIPT_LINE_BYTES_MAX: usize = 256;

/// The environment that a program starts with: the asked one, later entries winning, with `PATH`, `HOME`
/// and (with a terminal) `TERM` where it names none.
pub(crate) fn environment(asked: &[String], home: &str, terminal: bool) -> Vec<String> {
    let mut env: Vec<String> = Vec::with_capacity(asked.len() + 3);
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    for entry in asked {
        let key = name(entry);
        match env.iter_mut().find(|known| name(known) == key) {
            Some(known) => known.clone_from(entry),
            None => env.push(entry.clone()),
        }
    }
    let mut default = |key: &str, value: &str| {
        if !env.iter().any(|known| name(known) == key) {
            env.push(format!("{key}={value}"));
        }
    };
    default("PATH", PATH_DEFAULT);
    default("HOME", home);
    if terminal {
        default("TERM", "xterm");
    }
    env
}

/// Looks a program up as a shell would, with the rights that the process has now.
pub(crate) fn find(program: &str, env: &[String]) -> Result<PathBuf, Failure> {
    if program.contains('/') {
        let path = PathBuf::from(program);
        let found = fs::metadata(&path).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::ENOENT);
            Failure::worded(&path, errno, format!("exec: {program:?}: stat {program}: {}", plain(&error)))
        })?;
        return match executable(&path, &found) {
            Ok(()) => Ok(path),
            Err(error) => Err(refused(program, &path, error)),
        };
    }
    let search = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(PATH_DEFAULT);
    let mut forbidden = None;
    for dir in search.split(':') {
        let path = Path::new(if dir.is_empty() { "." } else { dir }).join(program);
        let Ok(found) = fs::metadata(&path) else { continue };
        match executable(&path, &found) {
            Ok(()) => return Ok(path),
            Err(error) => forbidden = forbidden.or(Some((path, error))),
        }
    }
    match forbidden {
        Some((path, error)) => Err(refused(program, &path, error)),
        None => {
            let message = format!("exec: {program:?}: executable file not found in $PATH");
            Err(Failure::worded(Path::new(program), libc::ENOENT, message))
        }
    }
}

fn executable(path: &Path, found: &fs::Metadata) -> Result<(), Errno> {
    if found.is_dir() {
        return Err(Errno::EISDIR);
    }
    if !found.is_file() {
        return Err(Errno::EACCES);
    }
    faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS)
}

fn refused(program: &str, path: &Path, error: Errno) -> Failure {
    let words = plain(&io::Error::from(error));
    Failure::worded(path, error as i32, format!("exec: {program:?}: {words}"))
}

/// Executes a program. Returns only when it cannot be.
pub(crate) fn become_program(path: &Path, args: &[String], env: &[String]) -> Result<Infallible, Failure> {
    let program = args.first().map(String::as_str).unwrap_or_default();
    refuse_self(program, path)?;
    let words = |list: &[String]| -> Result<Vec<CString>, Failure> {
        let word = |text: &String| {
            CString::new(text.as_str())
                .map_err(|_| Failure::worded(path, libc::EINVAL, format!("exec: {text:?}: zero byte")))
        };
        list.iter().map(word).collect()
    };
    let target = words(&[path.to_string_lossy().into_owned()])?;
    let (args, env) = (words(args)?, words(env)?);
    execve(&target[0], &args, &env).map_err(|error| {
        let words = plain(&io::Error::from(error));
        Failure::worded(path, error as i32, format!("exec {}: {words}", path.display()))
    })
}

/// A container must not execute the runtime's own file (through `/proc/self/exe`, itself or as a script's
/// interpreter): it could then take hold of the host's file and overwrite it.
fn refuse_self(program: &str, path: &Path) -> Result<(), Failure> {
    let Ok(own) = fs::metadata("/proc/self/exe") else { return Ok(()) };
    let mut next = path.to_owned();
    for _ in 0..INTERPRETERS_MAX {
        let Ok(found) = fs::metadata(&next) else { return Ok(()) };
        if (found.dev(), found.ino()) == (own.dev(), own.ino()) {
            return Err(refused(program, &next, Errno::EACCES));
        }
        match interpreter(&next) {
            Some(named) => next = named,
            None => return Ok(()),
        }
    }
    Ok(())
}

fn interpreter(path: &Path) -> Option<PathBuf> {
    let mut start = [0; SCRIPT_LINE_BYTES_MAX];
    let mut file = fs::File::open(path).ok()?;
    let length = io::Read::read(&mut file, &mut start).ok()?;
    let text = String::from_utf8_lossy(start[..length].strip_prefix(b"#!")?).into_owned();
    let line = text.lines().next()?.trim();
    line.split([' ', '\t']).next().filter(|name| !name.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn message(failure: Failure) -> String {
        failure.at(crate::error::Stage::Exec).message
    }

    fn dir_with(name: &str, mode: u32, content: &str) -> (tempfile::TempDir, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let env = vec![format!("PATH=/nonexistent:{}", dir.path().display())];
        (dir, env)
    }

    #[test]
    fn programs_are_found_along_the_path() {
        let (dir, env) = dir_with("tool", 0o755, "");
        assert_eq!(find("tool", &env).unwrap(), dir.path().join("tool"));
        let full = dir.path().join("tool").to_string_lossy().into_owned();
        assert_eq!(find(&full, &env).unwrap(), dir.path().join("tool"));
    }

    #[test]
    fn what_is_not_there_is_worded_as_users_know_it() {
        let failure = find("foo", &["PATH=/nonexistent".into()]).unwrap_err();
        assert_eq!(message(failure), "exec: \"foo\": executable file not found in $PATH");
        let failure = find("/foo/bar", &[]).unwrap_err();
        assert_eq!(message(failure), "exec: \"/foo/bar\": stat /foo/bar: no such file or directory");
    }

    #[test]
    fn what_cannot_be_executed_is_refused() {
        let (dir, env) = dir_with("notes", 0o644, "");
        assert_eq!(message(find("notes", &env).unwrap_err()), "exec: \"notes\": permission denied");
        let path = dir.path().to_string_lossy().into_owned();
        assert_eq!(message(find(&path, &env).unwrap_err()), format!("exec: {path:?}: is a directory"));
    }

    #[test]
    fn the_runtime_itself_is_refused_directly_and_as_an_interpreter() {
        assert!(refuse_self("x", Path::new("/proc/self/exe")).is_err());
        let (dir, _) = dir_with("script", 0o755, "#! /proc/self/exe -x\n");
        assert!(refuse_self("x", &dir.path().join("script")).is_err());
        symlink("/proc/self/exe", dir.path().join("link")).unwrap();
        assert!(refuse_self("x", &dir.path().join("link")).is_err());
        let (other, _) = dir_with("script", 0o755, "#!/bin/sh\n");
        assert!(refuse_self("x", &other.path().join("script")).is_ok());
    }

    #[test]
    fn the_environment_is_completed_and_later_entries_win() {
        let asked = ["A=1", "B=2", "A=3", "HOME=/h"].map(String::from);
        let env = environment(&asked, "/root", true);
        assert_eq!(env, ["A=3", "B=2", "HOME=/h", &format!("PATH={PATH_DEFAULT}"), "TERM=xterm"]);
    }
}
