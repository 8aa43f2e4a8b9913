//! Where `COPY` takes from: the build's context, or the layers of an image.
//!
//! Promises: nothing outside the context is read, whatever its links say; what `.dockerignore` names is not there.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Component, Path, PathBuf};

use glob::{MatchOptions, Pattern};
use runtime::layers::LayerStack;

/// `*` stays within a part of a path.
const MATCH: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};
const IGNORE_FILE: &str = ".dockerignore";

/// A file that can be copied.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Relative to the origin's root, free of links but for the last part.
    pub(super) path: PathBuf,
    /// Where it lies.
    pub(super) host: PathBuf,
    /// About itself, links not followed.
    pub(super) metadata: Metadata,
}

/// A tree to copy from.
pub(super) enum Origin<'a> {
    Context(&'a Context),
    Layers(LayerStack),
}

impl Origin<'_> {
    /// The file that a path leads to.
    pub(super) fn find(&self, path: &Path) -> io::Result<Option<Item>> {
        match self {
            Self::Context(context) => context.find(path),
            Self::Layers(layers) => Ok(layers.find(path)?.map(|found| Item {
                path: found.path,
                host: found.host,
                metadata: found.metadata,
            })),
        }
    }

    /// What is in a directory, by name.
    pub(super) fn list(&self, dir: &Item) -> io::Result<Vec<Item>> {
        match self {
            Self::Context(context) => context.list(dir),
            Self::Layers(layers) => {
                let item = |(name, host): (std::ffi::OsString, PathBuf)| {
                    let metadata = fs::symlink_metadata(&host)?;
                    Ok(Item { path: dir.path.join(name), host, metadata })
                };
                layers.list(&dir.path)?.into_iter().map(item).collect()
            }
        }
    }

    /// Everything that a source names: one file, or those that a pattern matches.
    pub(super) fn matching(&self, source: &str) -> io::Result<Vec<Item>> {
        let plain = inside(Path::new(source));
        if !source.contains(['*', '?', '[']) {
            return Ok(self.find(&plain)?.into_iter().collect());
        }
        let mut found: Vec<Item> = self.find(Path::new(""))?.into_iter().collect();
        for part in plain.components() {
            let part = part.as_os_str().to_string_lossy();
            let pattern = Pattern::new(&part).map_err(|error| io::Error::other(error.to_string()))?;
            let mut next = Vec::new();
            for dir in found.iter().filter(|item| item.metadata.is_dir()) {
                let matches = |item: &Item| {
                    let name = item.path.file_name().unwrap_or_default();
                    pattern.matches_with(&name.to_string_lossy(), MATCH)
                };
                for item in self.list(dir)?.into_iter().filter(matches) {
                    // What is named is followed; what is found below it is copied as it is.
                    next.extend(self.find(&item.path)?);
                }
            }
            found = next;
        }
        Ok(found)
    }
}

/// A directory whose files are there for a build.
#[derive(Debug)]
pub(super) struct Context {
    root: PathBuf,
    ignored: Vec<(bool, Pattern)>,
}

impl Context {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let root = fs::canonicalize(dir)?;
        if !root.is_dir() {
            return Err(io::Error::other("it is not a directory"));
        }
        let ignored = match fs::read_to_string(root.join(IGNORE_FILE)) {
            Ok(text) => {
                patterns(&text).map_err(|problem| io::Error::other(format!("{IGNORE_FILE}: {problem}")))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { root, ignored })
    }

    /// Bytes of all files that are there.
    pub(super) fn size(&self) -> io::Result<u64> {
        let Some(root) = self.find(Path::new(""))? else { return Ok(0) };
        let (mut size, mut dirs) = (0, vec![root]);
        while let Some(dir) = dirs.pop() {
            for item in self.list(&dir)? {
                match item.metadata.is_dir() {
                    true => dirs.push(item),
                    false => size += item.metadata.len(),
                }
            }
        }
        Ok(size)
    }

    fn find(&self, path: &Path) -> io::Result<Option<Item>> {
        let host = match fs::canonicalize(self.root.join(path)) {
            Ok(host) => host,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let Ok(real) = host.strip_prefix(&self.root) else {
            return Err(io::Error::other("it leads out of the build context"));
        };
        let item = Item { path: real.to_owned(), host: host.clone(), metadata: fs::symlink_metadata(&host)? };
        if !self.ignores(path) && !self.ignores(real) {
            return Ok(Some(item));
        }
        Ok(if self.has_exceptions(&item)? { Some(item) } else { None })
    }

    /// Whether something in what is ignored is there after all.
    fn has_exceptions(&self, item: &Item) -> io::Result<bool> {
        Ok(item.metadata.is_dir() && !self.list(item)?.is_empty())
    }

    fn list(&self, dir: &Item) -> io::Result<Vec<Item>> {
        let mut items = Vec::new();
        for entry in fs::read_dir(&dir.host)? {
            let entry = entry?;
            let path = dir.path.join(entry.file_name());
            let metadata = fs::symlink_metadata(entry.path())?;
            let item = Item { path, host: entry.path(), metadata };
            if !self.ignores(&item.path) || self.has_exceptions(&item)? {
                items.push(item);
            }
        }
        items.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(items)
    }

    /// The last pattern that matches the path, or a directory that it is in, decides.
    fn ignores(&self, path: &Path) -> bool {
        let mut ignored = false;
        for (is_exception, pattern) in &self.ignored {
            let matches = |path: &Path| pattern.matches_path_with(path, MATCH);
            if path.ancestors().any(|part| part != Path::new("") && matches(part)) {
                ignored = !is_exception;
            }
        }
        ignored
    }
}

/// The patterns of an ignore file, and whether each is an exception.
fn patterns(text: &str) -> Result<Vec<(bool, Pattern)>, String> {
    let mut patterns = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (is_exception, pattern) = match line.strip_prefix('!') {
            Some(pattern) => (true, pattern.trim()),
            None => (false, line),
        };
        let pattern = inside(Path::new(pattern));
        if pattern == Path::new("") {
            continue;
        }
        let text = pattern.to_string_lossy();
        let pattern = Pattern::new(&text).map_err(|error| format!("{line:?}: {error}"))?;
        patterns.push((is_exception, pattern));
    }
    Ok(patterns)
}

/// A path without what leads nowhere: `/a/./b/../c` as `a/c`. A `..` that leads out stands first.
pub(super) fn inside(path: &Path) -> PathBuf {
    let mut parts: Vec<&OsStr> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::ParentDir if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            Component::ParentDir => parts.push(OsStr::new("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    parts.iter().collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn context(files: &[&str], ignored: &str) -> (tempfile::TempDir, Context) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        fs::write(dir.path().join(IGNORE_FILE), ignored).unwrap();
        let context = Context::open(dir.path()).unwrap();
        (dir, context)
    }

    fn names(context: &Context, source: &str) -> Vec<String> {
        let items = Origin::Context(context).matching(source).unwrap();
        items.iter().map(|item| item.path.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn patterns_name_files_of_one_directory() {
        let (_dir, context) = context(&["a.txt", "b.txt", "c.md", "sub/d.txt", "sub/e/f"], "");
        assert_eq!(names(&context, "*.txt"), ["a.txt", "b.txt"]);
        assert_eq!(names(&context, "/sub/?.txt"), ["sub/d.txt"]);
        assert_eq!(names(&context, "s*/e/f"), ["sub/e/f"]);
        assert_eq!(names(&context, "./sub/../c.md"), ["c.md"]);
        assert_eq!(names(&context, "none"), [""; 0]);
        assert_eq!(names(&context, "[ab].txt"), ["a.txt", "b.txt"]);
    }

    #[test]
    fn ignored_files_are_not_there() {
        let ignore = "# notes\n*.log\n/secret\n!secret/public\n**/deep\n";
        let files = ["x.log", "sub/x.log", "secret/key", "secret/public", "a/b/deep", "a/b/kept", "z"];
        let (_dir, context) = context(&files, ignore);
        assert_eq!(names(&context, "*.log"), [""; 0]);
        assert_eq!(names(&context, "sub/*"), ["sub/x.log"]);
        assert_eq!(names(&context, "secret/*"), ["secret/public"]);
        assert_eq!(names(&context, "a/b/*"), ["a/b/kept"]);
        let sizes: usize =
            ["sub/x.log", "secret/public", "a/b/kept", "z"].iter().map(|name| name.len()).sum();
        assert_eq!(context.size().unwrap(), (sizes + ignore.len()) as u64);
    }

    #[test]
    fn nothing_leads_out() {
        let (dir, context) = context(&["in/file"], "");
        symlink("in/file", dir.path().join("good")).unwrap();
        symlink("/etc/passwd", dir.path().join("bad")).unwrap();
        assert_eq!(names(&context, "good"), ["in/file"]);
        for source in ["bad", "../", "in/../../.."] {
            assert!(Origin::Context(&context).matching(source).is_err(), "{source}");
        }
    }
}
