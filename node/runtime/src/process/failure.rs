//! A failed step inside a container's init, before it is known which stage it belongs to.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Stage, StartError};

/// What failed, with what it concerned.
#[derive(Debug)]
pub(crate) struct Failure {
    path: Option<PathBuf>,
    errno: Option<i32>,
    message: String,
}

impl Failure {
    /// A system call or file operation that failed.
    pub(crate) fn io(operation: &str, path: impl AsRef<Path>, error: impl Into<io::Error>) -> Failure {
        let (path, error) = (path.as_ref(), error.into());
        Failure {
            path: Some(path.to_owned()),
            errno: error.raw_os_error(),
            message: format!("{operation} {}: {}", path.display(), plain(&error)),
        }
    }

    /// Something that is wrong without the kernel having said so.
    pub(crate) fn rule(message: impl Into<String>) -> Failure {
        Failure { path: None, errno: None, message: message.into() }
    }

    /// A failure with a message of its own form.
    pub(crate) fn worded(path: &Path, errno: i32, message: String) -> Failure {
        Failure { path: Some(path.to_owned()), errno: Some(errno), message }
    }

    /// As the caller of the runtime sees it.
    pub(crate) fn at(self, stage: Stage) -> StartError {
        StartError { stage, errno: self.errno, path: self.path, message: self.message }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let message = error.to_string();
        match error {
            Error::Io { path, source, .. } => {
                Failure { path: Some(path), errno: source.raw_os_error(), message }
            }
            _ => Failure::rule(message),
        }
    }
}

/// The kernel's words, lower-case and without the number that the standard library adds.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_like_those_of_container_tools() {
        let failure = Failure::io("mount", "/x", nix::errno::Errno::ENOENT).at(Stage::Mount);
        assert_eq!(failure.message, "mount /x: no such file or directory");
        assert_eq!(failure.errno, Some(libc::ENOENT));
        assert_eq!(failure.exit_code(), 128);
    }
}
