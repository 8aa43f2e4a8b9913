//! Looking into unpacked layers as if they were mounted: what an upper layer has or hides is what counts.
//!
//! Reads only. Links inside lead to places inside; the layers' own files never name anything of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::is_whiteout;
use super::unpack::OPAQUE_ATTRIBUTE;
use crate::syscall;

/// Links that one path may lead through.
const LINKS_MAX: usize = 40;

/// Unpacked layers, one above the other.
#[derive(Clone, Debug, Default)]
pub struct LayerStack {
    topmost_first: Vec<PathBuf>,
}

/// A file of a stack.
#[derive(Clone, Debug)]
pub struct StackEntry {
    /// Where it is inside, free of links, relative to the root.
    pub path: PathBuf,
    /// Where it lies on the host.
    pub host: PathBuf,
    /// About itself.
    pub metadata: Metadata,
}

impl LayerStack {
    /// Layers, the lowest first.
    pub fn new(lowest_first: &[PathBuf]) -> Self {
        Self { topmost_first: lowest_first.iter().rev().cloned().collect() }
    }

    /// What a path leads to, every link followed.
    pub fn find(&self, path: &Path) -> io::Result<Option<StackEntry>> {
        let (real, missing) = self.walk(path)?;
        if !missing.as_os_str().is_empty() {
            return Ok(None);
        }
        self.at(&real)
    }

    /// A path free of links, relative to the root. What of it is not there stands as it is.
    pub fn real(&self, path: &Path) -> io::Result<PathBuf> {
        let (real, missing) = self.walk(path)?;
        Ok(real.join(missing))
    }

    /// What is in a directory, whose path is free of links, by name.
    pub fn list(&self, dir: &Path) -> io::Result<BTreeMap<OsString, PathBuf>> {
        let mut found = BTreeMap::new();
        let mut hidden = BTreeSet::new();
        for layer in &self.topmost_first {
            let Some(here) = Here::look(layer, dir)? else { continue };
            if let Here::Directory { host, .. } = &here {
                for entry in fs::read_dir(host)? {
                    let entry = entry?;
                    let name = entry.file_name();
                    match is_whiteout(&fs::symlink_metadata(entry.path())?) {
                        true => drop(hidden.insert(name)),
                        false if !hidden.contains(&name) => {
                            found.entry(name).or_insert_with(|| entry.path());
                        }
                        false => {}
                    }
                }
            }
            if here.hides() {
                break;
            }
        }
        Ok(found)
    }

    /// The part of a path that is there, links followed, and the rest.
    fn walk(&self, path: &Path) -> io::Result<(PathBuf, PathBuf)> {
        let mut real = PathBuf::new();
        let mut rest: Vec<OsString> = parts(path);
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                real.pop();
                continue;
            }
            let next = real.join(&name);
            match self.at(&next)? {
                Some(entry) if entry.metadata.is_symlink() => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(io::Error::other("too many levels of symbolic links"));
                    }
                    let target = fs::read_link(&entry.host)?;
                    if target.is_absolute() {
                        real = PathBuf::new();
                    }
                    rest.extend(parts(&target));
                }
                Some(_) => real = next,
                None => {
                    rest.push(name);
                    return Ok((real, rest.iter().rev().collect()));
                }
            }
        }
        Ok((real, PathBuf::new()))
    }

    /// What is at a path that is free of links but for its last part.
    fn at(&self, path: &Path) -> io::Result<Option<StackEntry>> {
        for layer in &self.topmost_first {
            match Here::look(layer, path)? {
                None => {}
                Some(Here::Hidden | Here::HidesBelow) => return Ok(None),
                Some(Here::Directory { host, metadata, .. } | Here::Other { host, metadata }) => {
                    return Ok(Some(StackEntry { path: path.to_owned(), host, metadata }));
                }
            }
        }
        Ok(None)
    }
}

/// What one layer says about a path. Nothing: the layers below decide.
enum Here {
    /// It is not there, whatever is below.
    Hidden,
    /// It is not in this layer, which hides all below.
    HidesBelow,
    /// A directory, perhaps alone.
    Directory { host: PathBuf, metadata: Metadata, opaque: bool },
    /// Anything else.
    Other { host: PathBuf, metadata: Metadata },
}

impl Here {
    fn look(layer: &Path, path: &Path) -> io::Result<Option<Self>> {
        let mut host = layer.to_owned();
        let mut metadata = fs::symlink_metadata(&host)?;
        let mut opaque = is_opaque(&host)?;
        for component in path.components() {
            if !metadata.is_dir() {
                return Ok(Some(Self::Hidden));
            }
            host.push(component);
            metadata = match fs::symlink_metadata(&host) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(opaque.then_some(Self::HidesBelow));
                }
                Err(error) => return Err(error),
            };
            if is_whiteout(&metadata) {
                return Ok(Some(Self::Hidden));
            }
            opaque |= metadata.is_dir() && is_opaque(&host)?;
        }
        Ok(Some(match metadata.is_dir() {
            true => Self::Directory { host, metadata, opaque },
            false => Self::Other { host, metadata },
        }))
    }

    fn hides(&self) -> bool {
        !matches!(self, Self::Directory { opaque: false, .. })
    }
}

fn is_opaque(dir: &Path) -> io::Result<bool> {
    Ok(syscall::get_xattr(dir, OPAQUE_ATTRIBUTE)?.is_some_and(|value| value == b"y"))
}

/// The parts of a path, the last first.
fn parts(path: &Path) -> Vec<OsString> {
    let plain = |component: Component<'_>| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some(OsStr::new("..").to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(plain).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::{LayerLimits, pack_upper, unpack_layer};
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A layer of files; names that begin with `.wh.` hide.
    fn layer(work: &Path, name: &str, files: &[&str]) -> PathBuf {
        let (source, target) = (work.join(format!("{name}-source")), work.join(name));
        fs::create_dir(&source).unwrap();
        for file in files {
            match file.split_once(" -> ") {
                Some((link, to)) => {
                    fs::create_dir_all(source.join(link).parent().unwrap()).unwrap();
                    symlink(to, source.join(link)).unwrap();
                }
                None => write(&source, file, name),
            }
        }
        let mut archive = Vec::new();
        pack_upper(&source, &mut archive, None, |_, _| false).unwrap();
        unpack_layer(archive.as_slice(), &target, LayerLimits::default()).unwrap();
        target
    }

    fn text(stack: &LayerStack, path: &str) -> Option<String> {
        let found = stack.find(Path::new(path)).unwrap()?;
        Some(fs::read_to_string(found.host).unwrap_or_else(|_| "a directory".to_owned()))
    }

    fn names(stack: &LayerStack, dir: &str) -> Vec<String> {
        let list = stack.list(Path::new(dir)).unwrap();
        list.into_keys().map(|name| name.into_string().unwrap()).collect()
    }

    #[test]
    fn upper_layers_cover_and_hide() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let work = tempfile::tempdir().unwrap();
        let low = layer(work.path(), "low", &["etc/a", "etc/b", "opt/app/x", "var/log/y", "run -> /var"]);
        let high = ["etc/.wh.a", "etc/b", "etc/c", "opt/.wh..wh..opq", "opt/new", ".wh.gone"];
        let high = layer(work.path(), "high", &high);
        let stack = LayerStack::new(&[low, high]);
        assert_eq!(text(&stack, "/etc/a"), None);
        assert_eq!(text(&stack, "/etc/b").unwrap(), "high");
        assert_eq!(text(&stack, "etc/../etc/c").unwrap(), "high");
        assert_eq!(text(&stack, "/opt/app"), None);
        assert_eq!(text(&stack, "/opt").unwrap(), "a directory");
        assert_eq!(text(&stack, "/run/log/y").unwrap(), "low");
        assert_eq!(text(&stack, "/etc/b/c"), None);
        assert_eq!(names(&stack, "etc"), ["b", "c"]);
        assert_eq!(names(&stack, "opt"), ["new"]);
        assert_eq!(names(&stack, ""), ["etc", "opt", "run", "var"]);
        assert_eq!(stack.real(Path::new("/run/log/new/file")).unwrap(), Path::new("var/log/new/file"));
        assert_eq!(stack.real(Path::new("../../nowhere")).unwrap(), Path::new("nowhere"));
    }

    #[test]
    fn what_was_packed_is_unpacked_as_it_was() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let work = tempfile::tempdir().unwrap();
        let low = layer(work.path(), "low", &["etc/a", "opt/app/x"]);
        let upper = work.path().join("upper");
        write(&upper, "opt/app/mine", "mine");
        fs::hard_link(upper.join("opt/app/mine"), upper.join("opt/app/same")).unwrap();
        write(&upper, "etc/hosts", "");
        symlink("mine", upper.join("opt/app/link")).unwrap();
        let device = nix::sys::stat::makedev(0, 0);
        let kind = nix::sys::stat::SFlag::S_IFCHR;
        nix::sys::stat::mknod(&upper.join("etc/a"), kind, nix::sys::stat::Mode::empty(), device).unwrap();
        let pack = || {
            let mut archive = Vec::new();
            let left_out = |path: &Path, _: &Metadata| path == Path::new("etc/hosts");
            (pack_upper(&upper, &mut archive, None, left_out).unwrap(), archive)
        };
        let (packed, archive) = pack();
        assert_eq!((&packed, packed.bytes, packed.entries), (&pack().0, archive.len() as u64, 7));
        let target = work.path().join("high");
        let unpacked = unpack_layer(archive.as_slice(), &target, LayerLimits::default()).unwrap();
        assert_eq!(unpacked.diff_id, packed.diff_id);
        let stack = LayerStack::new(&[low, target]);
        assert_eq!(text(&stack, "etc/a"), None);
        assert_eq!(text(&stack, "etc/hosts"), None);
        assert_eq!(text(&stack, "opt/app/link").unwrap(), "mine");
        assert_eq!(names(&stack, "opt/app"), ["link", "mine", "same", "x"]);
        let number = |path: &str| {
            use std::os::unix::fs::MetadataExt as _;
            stack.find(Path::new(path)).unwrap().unwrap().metadata.ino()
        };
        assert_eq!(number("opt/app/mine"), number("opt/app/same"));
    }
}
